"""Adapters on disk: peft loads what minseal writes, and the other way round; to the same logits."""

import copy
import json
import re
import time
from contextlib import contextmanager
from dataclasses import fields

import peft
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minseal import UserError
from minseal.lora import TARGETS, LoRAConfig, attach
from minseal.open_models.peft import (
    NO_VALUE,
    OF_ANY_VALUE,
    OF_SOME_VALUES,
    load_adapter,
    save_adapter,
)

FAMILIES = {
    "llama": {},
    "qwen2": dict(head_dim=8, qkv_bias=True),
    "qwen3": dict(qk_norm=True),
    "gpt2": dict(
        tied=True,
        head_dim=8,
        n_kv_head=4,
        norm="layer",
        position="learned",
        mlp="gelu",
        bias=True,
        qkv_bias=True,
    ),
}
IDS = torch.randint(0, 48, (2, 40), generator=torch.Generator().manual_seed(0))
CLOSE = dict(rtol=0, atol=1e-5)  # float32: the same sums in another order


def trained(model, K=1, config=LoRAConfig(4, 8.0), seed=0):
    """K adapters that change the logits, as training would leave them."""
    adapters, generator = attach(model, K, config), torch.Generator().manual_seed(seed)
    state = adapters.state()
    for name, old in state.items():
        if name != "scale":
            state[name] = 0.1 * torch.randn(old.shape, generator=generator)
    adapters.load(state)
    return adapters


@pytest.fixture
def saved(make_gpt, tmp_path):
    """(a model without adapters, the folder of an adapter made on it)"""
    model = make_gpt()
    adapters = trained(model)
    save_adapter(tmp_path / "adapter", model, adapters.state(), LoRAConfig(4, 8.0), "someone/base")
    adapters.remove()
    return model, tmp_path / "adapter"


@pytest.mark.parametrize("targets", [TARGETS, ("q", "v"), ("k", "down")], ids="-".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_ours_to_the_same_logits_and_so_do_we(twins, tmp_path, family, targets):
    theirs, mine = twins(family, **FAMILIES[family])
    plain, config = mine(IDS), LoRAConfig(4, 8.0, targets)
    adapters = trained(mine, 2, config)
    with torch.no_grad():
        wanted = mine(torch.cat([IDS, IDS]))[2:]  # adapter 1
    save_adapter(tmp_path, mine, adapters.state(), config, "base", k=1)
    adapters.remove()
    assert (wanted - plain).abs().max() > 0.1  # the adapter does something
    torch.testing.assert_close(
        peft.PeftModel.from_pretrained(theirs, tmp_path).eval()(IDS).logits, wanted, **CLOSE
    )
    again, there = load_adapter(tmp_path, mine)
    torch.testing.assert_close(mine(IDS), wanted, **CLOSE)
    assert (there.rank, there.alpha, len(again)) == (4, 8.0, 1)
    assert set(there.targets) >= set(targets) - {"gate"} and (
        family == "gpt2" or there == config
    )  # GPT-2's q, k and v are one layer in PEFT


@pytest.mark.parametrize("family", FAMILIES)
def test_we_load_theirs_to_the_same_logits(twins, tmp_path, family):
    theirs, mine = twins(family, **FAMILIES[family])
    targets = ["c_attn", "mlp.c_proj"] if family == "gpt2" else ["q_proj", "down_proj"]
    config = peft.LoraConfig(
        r=6,
        lora_alpha=3,
        target_modules=targets,
        rank_pattern={targets[1]: 2},
        alpha_pattern={targets[1]: 5},
        fan_in_fan_out=family == "gpt2",
        init_lora_weights=False,
    )
    adapted = peft.get_peft_model(theirs, config).eval()
    adapted.save_pretrained(tmp_path)
    load_adapter(tmp_path, mine)
    torch.testing.assert_close(mine(IDS), adapted(IDS).logits, **CLOSE)


def test_training_goes_on_from_a_loaded_adapter(saved):
    """What was learnt persists: the first loss after loading is the saved model's."""
    from minseal import Document, InnerConfig, SelfEdit, adapt

    model, folder = saved
    edit = SelfEdit((Document(tuple(range(20)), (True,) * 20),))
    adapters, config = load_adapter(folder, model)
    state = adapters.state()
    with torch.no_grad():
        wanted = torch.nn.functional.cross_entropy(
            model(torch.arange(20)[None])[0, :-1], torch.arange(1, 20)
        )
    adapters.remove()
    adapters = adapt(
        model, [edit], InnerConfig(epochs=2, rank=config.rank, alpha=config.alpha), start=state
    )
    assert abs(adapters.losses[0][0] - wanted) < 1e-5 and adapters.losses[0][1] < wanted


def refused(folder, model, *words):
    with pytest.raises(UserError) as e:
        load_adapter(folder, model, "this/model")
    assert len(str(e.value).splitlines()) == 1 and all(
        word in str(e.value) for word in (str(folder), *words)
    )
    assert model.n_adapters is None


def test_an_adapter_for_another_model_names_both(saved, make_gpt):
    _, folder = saved
    refused(folder, make_gpt(seed=1), "someone/base", "this/model")  # same shapes, other weights
    (folder / "minseal.json").unlink()  # as PEFT writes it: only the shapes can tell
    refused(folder, make_gpt(n_embd=40), "someone/base", "this/model")
    refused(folder, make_gpt(n_layer=1), "someone/base", "this/model", "layers.1")


def test_the_same_model_in_another_dtype_is_known_again(saved):
    model, folder = saved
    load_adapter(folder, model.bfloat16())


# ---- what is more than plain LoRA: by what peft itself does with it ----


def change(folder, drop=(), **values):
    """Change settings of an adapter."""
    path = folder / "adapter_config.json"
    settings = {k: v for k, v in json.loads(path.read_text()).items() if k not in drop}
    path.write_text(json.dumps(settings | values))


@contextmanager
def changed(folder, **values):
    """Like change, until the end of a `with`."""
    before = (folder / "adapter_config.json").read_text()
    change(folder, **values)
    yield
    (folder / "adapter_config.json").write_text(before)


def theirs_to_disk(base, folder, seed=0, targets=("q_proj", "down_proj"), **settings):
    """Their model with an adapter that changes the logits, which is written to the folder."""
    gpt2 = "GPT2" in type(base).__name__
    targets = ["c_attn", "mlp.c_proj"] if gpt2 else list(targets)
    config = peft.LoraConfig(target_modules=targets, fan_in_fan_out=gpt2, **settings)
    adapted = peft.get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    adapted.save_pretrained(folder)
    return adapted


MORE = {  # refused with these values: beside peft's variants of LoRA
    "peft_type": "IA3",
    "bias": "all",
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1, 2],
    "target_parameters": ["q_proj.weight"],
    "layer_replication": [[0, 2], [1, 2]],
    "megatron_config": {"a": 1},
    "use_qalora": True,
    "lora_bias": True,
    "of_a_peft_to_come": {"rate": 0.5},
    "use_something_new": True,
}
OF_THE_BASE = ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "to_come"]
VARIANTS = [f.name for f in fields(peft.LoraConfig) if f.metadata.get("is_lora_variant")]


def test_whatever_is_more_than_plain_lora_is_refused_by_name(saved):
    model, folder = saved
    cases = [*MORE.items(), *((name, [1, 2]) for name in VARIANTS)]
    for key, value in cases + [("init_lora_weights", how) for how in OF_THE_BASE]:
        with changed(folder, **{key: value}):
            refused(folder, model, key)


def test_an_adapter_that_begins_at_a_token_is_refused(twins, tmp_path):
    theirs, mine = twins("llama")
    theirs_to_disk(theirs, tmp_path, alora_invocation_tokens=[3, 4], task_type="CAUSAL_LM")
    refused(tmp_path, mine, "alora_invocation_tokens", "[3, 4]")


def test_every_setting_of_the_installed_peft_has_a_decision():
    """A field that a later peft adds is refused as soon as it has a value: no default may have."""
    known = OF_ANY_VALUE | OF_SOME_VALUES.keys()
    for name, value in peft.LoraConfig().to_dict().items():
        assert name in known or value in NO_VALUE, name
    assert not known & (VARIANTS | MORE.keys()) - OF_SOME_VALUES.keys()


@pytest.mark.parametrize("how", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_ways_to_begin_that_leave_the_base_alone_load(twins, tmp_path, how):
    theirs, mine = twins("llama")
    adapted = theirs_to_disk(
        theirs,
        tmp_path,
        r=4,
        init_lora_weights=how,
        lora_dropout=0.5,
        layers_to_transform=[1],
        exclude_modules=["o_proj"],
        revision="main",
        task_type="CAUSAL_LM",
    )
    load_adapter(tmp_path, mine)
    torch.testing.assert_close(mine(IDS), adapted(IDS).logits, **CLOSE)


@pytest.mark.parametrize("how", ["pissa", "olora"])
def test_what_peft_converted_to_plain_lora_loads(twins, tmp_path, how):
    theirs, mine = twins("llama")
    config = peft.LoraConfig(r=4, init_lora_weights=how, target_modules=["q_proj", "up_proj"])
    adapted = peft.get_peft_model(theirs, config).eval()
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(tmp_path / "first")
    adapted.peft_config["default"].init_lora_weights = how
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p += 0.1
    wanted = adapted(IDS).logits
    adapted.save_pretrained(tmp_path / "raw")
    refused(tmp_path / "raw", mine, "init_lora_weights", how)
    adapted.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "first")
    )
    load_adapter(tmp_path / "plain", mine)
    # Their base had lost B A in float32, and has it back from the adapter: rounded twice.
    torch.testing.assert_close(mine(IDS), wanted, rtol=0, atol=1e-4)


# ---- ranks and scales ----

PATTERNS = {
    "gpt2": [
        {"transformer.h.0.attn.c_attn": 40},
        {"^transformer.h.1.attn.c_attn": 40, "c_attn": 3},
        {"attn.c_attn": 40, ".*c_proj": 2},
        {r"transformer\.h\.[01]\.mlp\.c_proj": 40},
        {"h.0.attn.c_attn": 40, "^h.1.attn.c_attn": 40, "c_att": 40, "transformer": 40},
        {".*": 40, "c_attn": 2},
        {r"(h|x)\.\d\.(attn|mlp)\.c_\w+": 40},
    ],
    "llama": [
        {"model.layers.0.self_attn.q_proj": 40},
        {"^model.layers.1.self_attn.q_proj$": 40, "q_proj": 3},
        {r"layers\.[02]\..*": 40, "^layers.1.mlp.down_proj": 40},
        {"proj": 40, "_proj": 40, "elf_attn.q_proj": 40, ".*proj": 5},
    ],
}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", PATTERNS)
def test_patterns_find_the_layers_that_they_find_in_peft(twins, tmp_path, family, rslora):
    """By the full name, from its begin or behind a dot; the first that fits counts."""
    theirs, mine = twins(family, **FAMILIES[family])
    for i, patterns in enumerate(PATTERNS[family]):
        adapted = theirs_to_disk(
            copy.deepcopy(theirs),
            tmp_path / str(i),
            r=4,
            use_rslora=rslora,
            alpha_pattern=patterns,
            rank_pattern={name: 2 + value % 5 for name, value in patterns.items()},
        )
        with load_adapter(tmp_path / str(i), mine)[0]:
            # Scales of up to 20: their rounding in float32 is so much larger. A wrong one: 10.
            torch.testing.assert_close(mine(IDS), adapted(IDS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "drop, values",
    [
        (["lora_alpha"], {}),
        (["r", "lora_alpha", "alpha_pattern", "rank_pattern"], {}),
        ([], {"lora_alpha": 0}),
        ([], {"lora_alpha": 0, "alpha_pattern": {"q_proj": 4}}),
        ([], {"lora_alpha": -2.5}),
        ([], {"fan_in_fan_out": True, "task_type": None, "inference_mode": True}),
    ],
    ids=str,
)
def test_settings_that_are_missing_or_nothing_are_as_in_peft(twins, tmp_path, drop, values):
    theirs, mine = twins("llama")
    theirs_to_disk(theirs, tmp_path, r=8, lora_alpha=5, alpha_pattern={"down_proj": 3})
    change(tmp_path, drop, **values)
    again = peft.PeftModel.from_pretrained(twins("llama")[0], tmp_path).eval()
    load_adapter(tmp_path, mine)
    torch.testing.assert_close(mine(IDS), again(IDS).logits, **CLOSE)


NONSENSE = [
    {"r": 0},
    {"r": -4},
    {"r": 4.0},
    {"r": 5},  # not that of the tensors
    {"r": True},
    {"r": 10**400},
    {"r": None},
    {"r": None, "rank_pattern": {"r": 4}},
    {"lora_alpha": float("nan")},
    {"lora_alpha": float("inf")},
    {"lora_alpha": 10**400},
    {"lora_alpha": "16"},
    {"lora_alpha": [1]},
    {"alpha_pattern": {"q_proj": None}},
    {"alpha_pattern": {"q_proj": float("nan")}},
    {"alpha_pattern": [["q_proj", 3]]},
    {"alpha_pattern": {"(": 3}},
    {"alpha_pattern": {"(" * 5000: 3}},
    {"alpha_pattern": dict.fromkeys(map(str, range(20_000)), 3)},
    {"rank_pattern": {"q_proj": 0}},
    {"rank_pattern": {"q_proj": 9}},
    {"base_model_name_or_path": "two\nlines", "r": 7},
]


def test_settings_of_nonsense(saved):
    model, folder = saved
    for values in NONSENSE:
        with changed(folder, **values):
            refused(folder, model)


def test_a_fingerprint_of_nonsense(saved):
    model, folder = saved
    one = [None, [1], "x", 10**400, True, float("nan"), 1e300]
    for there in [3, None, "abc", {}, [], [1], [[1], [1, 2]] * 8, *([x] * 16 for x in one)]:
        (folder / "minseal.json").write_text(json.dumps({"fingerprint": there}))
        refused(folder, model, "fingerprint")
    (folder / "minseal.json").write_text(json.dumps({"fingerprint": [1] * 16}))
    refused(folder, model, "weights differ")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, 0, 1, 4, 8, "", "none", "(", "q_proj", "pissa", "x\ny"])
    | st.text(max_size=5),
    lambda some: (
        st.lists(some, max_size=3)
        | st.dictionaries(
            st.sampled_from(["q_proj", "(", "a{9}", ".*"]) | st.text(max_size=4), some
        )
    ),
    max_leaves=4,
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_settings_load_or_are_refused_in_one_line(saved, data):
    model, folder = saved
    path = folder / data.draw(st.sampled_from(["adapter_config.json", "minseal.json"]))
    before = path.read_text()
    known = {*json.loads(before), *OF_ANY_VALUE, *OF_SOME_VALUES}
    keys = st.sampled_from(["new\nkey", *sorted(known)])
    changes = data.draw(st.dictionaries(keys, values, min_size=1, max_size=2))
    path.write_text(json.dumps(json.loads(before) | changes))
    try:
        load_adapter(folder, model)[0].remove()
    except UserError as e:
        assert len(str(e).splitlines()) == 1
    finally:
        path.write_text(before)
    assert model.n_adapters is None


def test_patterns_that_track_back_do_not_hang(saved):
    """What is found to fit nothing is no harm; what takes too long for a name is refused."""
    model, folder = saved
    begin = time.process_time()
    for pattern in ("(.*)*(.*)*(.*)*(.*)*(.*)*x", "(a|a)*(.*.*)*(.|.)*b", "([a-z]+.?)+[A-Z]"):
        change(folder, alpha_pattern={pattern: 3})
        load_adapter(folder, model)[0].remove()
    for pattern in (9 * "(.*)" + r"\3\4\5\6z?[^j]", "(?R)*"):
        change(folder, alpha_pattern={pattern: 3})
        refused(folder, model, "too long")
    for pattern in ("(?:a{60000}){60000}", "(?:a?){0,9999}" * 100, "x" * 70_000):  # gigabytes
        change(folder, alpha_pattern={pattern: 3})
        refused(folder, model, "alpha_pattern")
    assert time.process_time() - begin < 2  # measured: 0.3


def spoil(folder, f):
    path = folder / "adapter_model.safetensors"
    tensors = {name: t.clone() for name, t in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(f(tensors) or tensors, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("ab", "AB")
def test_numbers_that_are_none_are_refused_by_the_name_of_their_layer(saved, ab, value):
    model, folder = saved
    name = f"base_model.model.model.layers.1.mlp.up_proj.lora_{ab}.weight"
    spoil(folder, lambda tensors: tensors[name].view(-1)[7:8].fill_(value) and None)
    refused(folder, model, "layers.1.mlp.up_proj", "not finite")


@pytest.mark.parametrize(
    "change_shape",
    [
        lambda t: t.flatten(),
        lambda t: t[..., None],
        lambda t: t[0, 0],
        lambda t: t[:0],
        lambda t: t.T,
        lambda t: t.to(torch.int8),
    ],
)
@pytest.mark.parametrize("only", ["lora_A", "layers.1.mlp.up_proj.lora_B"])
def test_tensors_of_another_shape(saved, change_shape, only):
    model, folder = saved

    def change_some(tensors):
        return {
            name: change_shape(t).contiguous() if only in name else t for name, t in tensors.items()
        }

    spoil(folder, change_some)
    refused(folder, model)


@pytest.mark.parametrize("ab", "AB")
def test_a_tensor_without_its_partner(saved, ab):
    model, folder = saved
    name = f"base_model.model.model.layers.1.mlp.up_proj.lora_{ab}.weight"
    spoil(folder, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    refused(folder, model, "up_proj", "None")


def test_one_layer_of_a_great_rank_does_not_make_all_as_large(twins, tmp_path):
    """Sizes are checked before anything is made: here 8 MB on disk would be 60 in memory."""
    theirs, mine = twins("llama")
    theirs_to_disk(
        theirs,
        tmp_path,
        targets=("q_proj", "up_proj", "gate_proj", "down_proj"),
        rank_pattern={"layers.0.self_attn.q_proj": 40_000},
    )
    refused(tmp_path, mine, "rank of 40000")


def test_damaged_and_missing_files(saved, tmp_path):
    model, folder = saved
    refused(tmp_path / "nowhere", model, "adapter_config.json")
    data = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(data[: len(data) // 2])
    refused(folder, model, "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, model, "adapter_model.safetensors")


def test_an_adapter_that_reaches_beyond_the_blocks_is_refused(twins, tmp_path):
    theirs, mine = twins("llama")
    peft.get_peft_model(
        theirs, peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    ).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=re.escape("lm_head")):
        load_adapter(tmp_path, mine)
