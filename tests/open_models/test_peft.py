"""Adapters on disk: peft loads what minseal writes, and the other way round; to the same logits."""

import json
import re

import peft
import pytest
import torch

from minseal import UserError
from minseal.lora import TARGETS, LoRAConfig, attach
from minseal.open_models.peft import load_adapter, save_adapter

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


@pytest.mark.parametrize(
    "key, value",
    [
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("use_rslora", True),
        ("peft_type", "IA3"),
    ],
)
def test_what_our_lora_does_not_have_is_refused(saved, key, value):
    model, folder = saved
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, key: value}))
    refused(folder, model, key)


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
