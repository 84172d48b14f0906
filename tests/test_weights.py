"""Open weights: logits of transformers, both ways, bit for bit; what is damaged or another model is refused in one line; what was there survives.

Parity to 1e-5: both sides compute in float32 with logits of size 1 to 10, and add up the same products in another order.
"""

import errno
import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import SMALL, scramble, their_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import safetensors.torch
import tokenizers
import transformers

import minseal.weights
from minseal import GPT, GPTConfig, LoRAConfig, Tokenizer, UserError, attach, load, save
from minseal.families import FAMILIES
from minseal.files import load_tensors, save_tensors, write_safetensors
from minseal.model import KVCache
from minseal.sample import left_padded
from minseal.tokenizer import QWEN_PATTERN, train_ranks
from minseal.weights import export

CONFIG = dict(
    vocab_size=280,
    block_size=64,
    n_layer=1,
    n_head=2,
    n_kv_head=1,
    n_embd=16,
    head_dim=8,
    mlp_dim=24,
)
TOKENIZER = Tokenizer(train_ranks("some text, and more text: the text of the tests", 279))
IDS = torch.arange(40).view(2, 20) * 6


def make(seed=0, **settings):
    return (
        GPT(GPTConfig(**{**CONFIG, **settings}))
        .init_weights(torch.Generator().manual_seed(seed))
        .eval()
    )


@pytest.fixture
def checkpoint(tmp_path):
    save(tmp_path / "model", make(), TOKENIZER, {"about": {"note": "made in a test"}})
    return tmp_path / "model"


def refused(path):
    """The message that loading gives; it is one line and names the folder."""
    with pytest.raises(UserError) as e:
        load(path)
    assert len(str(e.value).splitlines()) == 1 and str(path) in str(e.value)
    return str(e.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": False},
        {"position": "learned", "norm": "layer", "mlp": "gelu", "bias": True, "qkv_bias": True},
        {"rope_scaling": (8.0, 1.0, 4.0, 32), "qk_norm": True},
    ],
    ids=["tiny", "untied", "gpt2", "llama3"],
)
def test_saved_and_loaded_gives_equal_logits(tmp_path, settings):
    model = make(seed=3, **settings)
    save(tmp_path / "a", model, TOKENIZER, {"about": {"minutes": 1.5}})
    again, tokenizer = load(tmp_path / "a")
    assert torch.equal(again(IDS), model(IDS))  # bit for bit
    assert (
        again.config == model.config and tokenizer.ranks == TOKENIZER.ranks and not again.training
    )
    assert json.loads((tmp_path / "a" / "config.json").read_text())["about"] == {"minutes": 1.5}
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "config.json",
        "weights.pt",
        "ranks.tiktoken",
    }


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_weights(checkpoint, share):
    data = (checkpoint / "weights.pt").read_bytes()
    (checkpoint / "weights.pt").write_bytes(data[: int(share * len(data))])
    assert "weights.pt is damaged" in refused(checkpoint)


JUNK = {
    "text": b"hello",
    "one byte": b"\x80",
    "zip": b"PK\x03\x04" + bytes(50),
    "bytes": bytes(range(256)),
    "zeros": bytes(1000),
    "pickle": pickle.dumps([1, 2], 2),
    "half a pickle": pickle.dumps({"a": 1}, 2)[:-3],
}


@pytest.mark.parametrize("junk", JUNK)
def test_junk_for_weights(checkpoint, junk):
    (checkpoint / "weights.pt").write_bytes(JUNK[junk])
    assert "weights.pt" in refused(checkpoint)


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"wte.weight": 3}, {1: torch.zeros(2)}, torch.zeros(3)],
    ids=["list", "number", "no name", "one tensor"],
)
def test_a_file_of_something_else(checkpoint, content):
    torch.save(content, checkpoint / "weights.pt")
    assert "weights.pt" in refused(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "weights.pt", "ranks.tiktoken"])
def test_missing_file(checkpoint, name):
    (checkpoint / name).unlink()
    assert name in refused(checkpoint)


def test_no_folder_and_a_file_in_its_place(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "expected a folder with config.json" in refused(tmp_path / "missing")
    assert "no GGUF file" in refused(tmp_path / "file")  # the one kind of model that is a file
    (tmp_path / "empty").mkdir()
    assert "expected a folder with config.json" in refused(tmp_path / "empty")


def test_another_shape_names_the_tensor_and_both_shapes(checkpoint):
    told = json.loads((checkpoint / "config.json").read_text())
    told["model"]["mlp_dim"] = 32
    (checkpoint / "config.json").write_text(json.dumps(told))
    message = refused(checkpoint)
    (name,) = [n for n in make().state_dict() if n in message]
    assert (
        str(tuple(make().state_dict()[name].shape)) in message
        and str(tuple(make(mlp_dim=32).state_dict()[name].shape)) in message
    )


def test_a_missing_and_an_extra_tensor_are_named(checkpoint):
    state = torch.load(checkpoint / "weights.pt")
    some = sorted(state)[1]
    torch.save({k: v for k, v in state.items() if k != some}, checkpoint / "weights.pt")
    assert some in (message := refused(checkpoint)) and "missing" in message
    torch.save({**state, "blocks.9.surprise": torch.zeros(2)}, checkpoint / "weights.pt")
    assert "blocks.9.surprise" in refused(checkpoint)
    torch.save({}, checkpoint / "weights.pt")
    assert "0 tensors" in refused(checkpoint)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "{}",
        '{"model": null}',
        '{"model": [1]}',
        '{"model": {"n_embd": "wide"}}',
        '{"model": {"colour": 3}}',
        '{"model": {"norm": "batch"}}',
        '{"model": {"n_kv_head": 0}}',
        '{"model": {"n_head": 4, "n_kv_head": 3}}',
        '{"model": {"n_embd": -4}}',
    ],
)
def test_a_broken_config(checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    assert "config.json" in refused(checkpoint)


def test_a_config_that_is_no_text(checkpoint):
    (checkpoint / "config.json").write_bytes(bytes(range(256)))
    assert "config.json" in refused(checkpoint)


def test_a_tokenizer_larger_than_the_model(checkpoint):
    ranks = {bytes([b]): b for b in range(256)} | {b"word %d" % i: 256 + i for i in range(44)}
    save(checkpoint, make(), Tokenizer(ranks), {})  # 300 of them, and the end-of-text token
    message = refused(checkpoint)
    assert "301" in message and "280" in message


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "write",
    [torch.save, lambda x, path: Path(path).write_bytes(pickle.dumps(x, 2))],
    ids=["torch", "pickle"],
)
def test_code_in_a_checkpoint_is_refused_and_not_run(checkpoint, tmp_path, write):
    write({"wte.weight": Evil(tmp_path / "executed")}, checkpoint / "weights.pt")
    assert "weights.pt" in refused(checkpoint)
    assert not (tmp_path / "executed").exists()


# ---- failing writes ----------------------------------------------------------------------------------------------------


def full_disk(monkeypatch, name):
    """From now on, what is written to a file of that name (or a temporary one beside it) ends half way: no space left."""
    whole_text, whole_save = Path.write_text, torch.save
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half_a_text(self, text, *args, **kwargs):
        if not self.name.startswith(name):
            return whole_text(self, text, *args, **kwargs)
        whole_text(self, text[: len(text) // 2], *args, **kwargs)
        raise no_space

    def half_a_save(tensors, path, *args, **kwargs):
        whole_save(tensors, path, *args, **kwargs)
        if Path(path).name.startswith(name):
            os.truncate(path, os.path.getsize(path) // 2)
            raise no_space

    monkeypatch.setattr(Path, "write_text", half_a_text)
    monkeypatch.setattr(torch, "save", half_a_save)


@pytest.mark.parametrize("name", ["weights.pt", "ranks.tiktoken", "config.json"])
def test_a_full_disk_leaves_the_last_good_checkpoint(checkpoint, monkeypatch, name):
    before = load(checkpoint)[0](IDS)
    full_disk(monkeypatch, name)
    with pytest.raises(UserError, match=f"{name}.*No space left") as e:
        save(checkpoint, make(seed=1), TOKENIZER, {})
    assert len(str(e.value).splitlines()) == 1
    monkeypatch.undo()
    assert torch.equal(load(checkpoint)[0](IDS), before)
    assert not list(checkpoint.glob("*.tmp*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_torch_itself_meets_a_full_disk(tmp_path):
    save_tensors(tmp_path / "a.pt", {"x": torch.ones(3)})
    (tmp_path / "a.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match="a.pt") as e:
        save_tensors(tmp_path / "a.pt", {"x": torch.zeros(300_000)})
    assert len(str(e.value).splitlines()) == 1
    assert load_tensors(tmp_path / "a.pt")["x"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file"):
        save(tmp_path / "file" / "model", make(), TOKENIZER, {})
    with pytest.raises(UserError, match="file"):
        save_tensors(tmp_path / "file" / "a.pt", {"x": torch.ones(3)})
    assert (tmp_path / "file").read_text() == "mine"


def test_tensors_of_any_kind_come_back(tmp_path):
    tensors = {
        "a": torch.randn(2, 3).requires_grad_(),
        "b": torch.arange(4),
        "half": torch.randn(3).bfloat16(),
    }
    save_tensors(tmp_path / "a.pt", tensors)
    again = load_tensors(tmp_path / "a.pt")
    assert set(again) == set(tensors) and all(
        torch.equal(again[k], tensors[k]) and again[k].dtype == tensors[k].dtype for k in tensors
    )
    assert not again["a"].requires_grad


def test_a_model_with_adapters_is_not_written(tmp_path):
    model = make()
    adapters = attach(model, 1, LoRAConfig(rank=2))
    for write in (
        lambda: save(tmp_path / "a", model, TOKENIZER, {}),
        lambda: export(tmp_path / "a", model, TOKENIZER),
    ):
        with pytest.raises(UserError, match="adapters"):
            write()
    assert not list(tmp_path.iterdir())
    adapters.remove()
    save(tmp_path / "a", model, TOKENIZER, {})
    load(tmp_path / "a")


# ---- the Hugging Face layout, against transformers ---------------------------------------------------------------------

GPT2 = dict(
    tied=True,
    n_kv_head=4,
    head_dim=8,
    norm="layer",
    position="learned",
    mlp="gelu",
    bias=True,
    qkv_bias=True,
)
KINDS = {
    "llama": ("llama", {}),
    "llama-3.1": ("llama", dict(rope_scaling=(8.0, 1.0, 4.0, 32), rope_theta=5e5)),
    "smollm2": ("llama", dict(tied=True, n_kv_head=1)),
    "qwen2": ("qwen2", dict(head_dim=8, qkv_bias=True, norm_eps=1e-6, rope_theta=1e6)),
    "qwen2-tied": ("qwen2", dict(qkv_bias=True, tied=True)),
    "qwen3": ("qwen3", dict(qk_norm=True)),
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied": ("gpt2", GPT2 | dict(tied=False)),
}
TEXTS = [
    "Many years ago, in a house by the sea",
    "for i in range(12):\n    print(i)\n\n",
    "naïve café – 東京 🦭",
]


@pytest.fixture(scope="session")
def bpe():
    """bpe(kind): a real byte-level BPE of transformers, 300 tokens; the special one is number 0, as SmolLM2's are first. Qwen's cuts text its own way:
    transformers insists on that for its model_type."""

    @functools.cache
    def make(qwen):
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        pre = tokenizers.pre_tokenizers
        bpe.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
        if qwen:
            bpe.normalizer = tokenizers.normalizers.NFC()
            bpe.pre_tokenizer = pre.Sequence(
                [
                    pre.Split(tokenizers.Regex(QWEN_PATTERN), "isolated"),
                    pre.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        bpe.decoder = tokenizers.decoders.ByteLevel()
        bpe.train_from_iterator(
            TEXTS + [Path(__file__).read_text(encoding="utf-8")],
            tokenizers.trainers.BpeTrainer(
                vocab_size=300,
                special_tokens=["<|endoftext|>"],
                initial_alphabet=pre.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")

    return lambda kind: make(kind.startswith("qwen"))


def make_theirs(kind, seed=0, **more):
    family, settings = KINDS[kind]
    config = GPTConfig(
        **{**SMALL, "vocab_size": 320 if settings.get("tied") else 300, **settings, **more}
    )  # 320: padded rows, as in Qwen's
    return scramble(their_model(family, config), seed).eval()


def write_theirs(path, kind, bpe, dtype=torch.float32, **save):
    make_theirs(kind).to(dtype).save_pretrained(path, **save)
    bpe(kind).save_pretrained(path)
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32
    )  # not .to(dtype).float(): that would round their rope, too


@torch.no_grad()
def difference(mine, theirs):
    ids = torch.randint(0, 300, (2, 60), generator=torch.Generator().manual_seed(0))
    a, b = mine(ids), theirs(ids).logits
    assert b.std() > 0.3  # no model of zeros
    return (a - b).abs().max().item()


@torch.no_grad()
def greedy(model, prompts, n=64, real=300):
    """Prompts (lists of ids), each with n more: always the likeliest of the `real` tokens (padded rows of the embedding have no text)."""
    ids, docs = left_padded(prompts)
    cache, texts = KVCache(model, len(prompts), ids.shape[1] + n), [list(p) for p in prompts]
    for _ in range(n):
        ids, docs = model(ids, docs, cache)[:, -1:, :real].argmax(-1), None  # (B, 1)
        for text, new in zip(texts, ids[:, 0].tolist()):
            text.append(new)
    return texts


@torch.no_grad()
def they_write(theirs, text, n=64, real=300):
    """Whether transformers, greedy, goes on from text[:-n] to text: one reading shows it, since each token is right if all before it are."""
    return (
        theirs(torch.tensor([text])).logits[0, -n - 1 : -1, :real].argmax(-1).tolist() == text[-n:]
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "8KB"}], ids=["single", "sharded"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_greedy_text_of_transformers(tmp_path, bpe, kind, shards, dtype):
    theirs = write_theirs(tmp_path, kind, bpe, getattr(torch, dtype), **shards)
    assert (
        len(list(tmp_path.glob("*.safetensors"))) > 3
        if shards
        else (tmp_path / "model.safetensors").exists()
    )
    mine, tokenizer = load(tmp_path, "cpu", dtype="float32")
    assert difference(mine, theirs) < 1e-5  # measured: at most 7e-6
    assert all(p.dtype == torch.float32 for p in mine.parameters()) and not mine.training
    assert load(tmp_path, "cpu")[0].wte.weight.dtype == getattr(torch, dtype)  # as stored
    if dtype == "float32" and not shards:
        ids = tokenizer.encode(TEXTS[0])
        assert ids == bpe(kind)(TEXTS[0])["input_ids"]
        text = greedy(mine, [ids])[0]
        assert they_write(theirs, text) and tokenizer.decode(text) == bpe(kind).decode(
            text, skip_special_tokens=True
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_out_again_bit_for_bit(tmp_path, bpe, kind, dtype):
    theirs = write_theirs(tmp_path / "a", kind, bpe, dtype)
    mine, tokenizer = load(tmp_path / "a", "cpu")
    export(tmp_path / "b", mine, tokenizer)
    a, b = (safetensors.torch.load_file(tmp_path / f / "model.safetensors") for f in "ab")
    assert a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype == dtype for k in a
    )
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32)
    assert type(again) is type(theirs) and difference(mine.float(), again) < 1e-5
    assert again.config.eos_token_id == 0 and again.config.tie_word_embeddings == mine.config.tied
    encode = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    assert (
        [encode(text)["input_ids"] for text in TEXTS]
        == [tokenizer.encode(text) for text in TEXTS]
        == [bpe(kind)(text)["input_ids"] for text in TEXTS]
    )
    # and minseal's own folder
    mine = load(tmp_path / "a", "cpu")[0]
    save(tmp_path / "own", mine, tokenizer, {})
    own, own_tokenizer = load(tmp_path / "own", "cpu")
    assert (
        own.config == mine.config
        and own_tokenizer.settings() == tokenizer.settings()
        and own_tokenizer.ranks == tokenizer.ranks
    )
    assert all(
        torch.equal(p, q) and p.dtype == q.dtype
        for p, q in zip(own.state_dict().values(), mine.state_dict().values(), strict=True)
    )
    # and from the exported folder back: the same model
    assert load(tmp_path / "b", "cpu")[0].config == mine.config


def test_the_tiny_model_goes_to_transformers(tmp_path, pretrained):
    model, tokenizer = pretrained
    export(tmp_path / "tiny", model, tokenizer)
    theirs, encode = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tiny"),
        transformers.AutoTokenizer.from_pretrained(tmp_path / "tiny"),
    )
    ids = tokenizer.encode("The red house belongs to Mara. " * 3)
    assert encode("The red house belongs to Mara. " * 3)["input_ids"] == ids
    with torch.no_grad():
        assert (
            theirs(torch.tensor([ids])).logits - model(torch.tensor([ids]))
        ).abs().max() < 1e-4  # logits up to 20; measured: 2e-5
    assert they_write(theirs, greedy(model, [ids], 20)[0], 20)


def test_a_model_of_no_family_is_not_exported(tmp_path):
    for settings in (
        {"norm": "layer"},
        GPT2 | {"n_head": 2, "n_kv_head": 1},
        GPT2 | {"n_head": 2, "n_kv_head": 2, "head_dim": 10},
    ):
        with pytest.raises(UserError, match="exported|family"):
            export(tmp_path / "a", make(**settings), TOKENIZER)
    assert not list(tmp_path.iterdir())


def test_gpt2_as_it_lies_on_the_hub(tmp_path, bpe):
    """The file of the hub: no prefix, masks among the tensors, the head under its own name, n_inner null, the older tokenizer files."""
    theirs = write_theirs(tmp_path, "gpt2", bpe)
    tensors = {k.removeprefix("transformer."): v for k, v in theirs.state_dict().items()}
    assert "lm_head.weight" in tensors  # and it is not read: the configuration ties it
    tensors["lm_head.weight"] = torch.full_like(tensors["lm_head.weight"], 7)
    safetensors.torch.save_file(
        {
            **tensors,
            "h.0.attn.bias": torch.ones(1, 1, 4, 4),
            "h.1.attn.masked_bias": torch.tensor(-1e4),
        },
        tmp_path / "model.safetensors",
    )
    about = change(tmp_path / "config.json", n_inner=None)
    for key in ("tie_word_embeddings", "layer_norm_epsilon"):
        about.pop(key)
    (tmp_path / "config.json").write_text(json.dumps(about))
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in data["model"]["merges"])
    )
    (tmp_path / "tokenizer.json").unlink()
    assert "mlp" in refused(tmp_path)  # SMALL is 56 wide inside, not 4 * 32
    change(tmp_path / "config.json", n_inner=56)
    mine, tokenizer = load(tmp_path, "cpu")
    assert (
        difference(mine, theirs) < 1e-5
        and tokenizer.encode(TEXTS[2]) == bpe("gpt2")(TEXTS[2])["input_ids"]
    )


def change(path, **values):
    about = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps(about))
    return about


# ---- a folder that cannot be read --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def good_folder(tmp_path_factory, bpe):
    path = tmp_path_factory.mktemp("good")
    write_theirs(path, "llama", bpe)
    return path


@pytest.fixture
def folder(tmp_path, good_folder):
    """A readable llama in the Hugging Face layout, to be spoiled."""
    return shutil.copytree(good_folder, tmp_path / "llama")


OTHER = {"silu": "relu", "gelu_new": "relu", False: True, True: False}


@pytest.mark.parametrize(
    "family, key", [(f.name, key) for f in FAMILIES.values() for key in f.expected]
)
def test_another_model_of_the_family(folder, family, key):
    value = OTHER[FAMILIES[family].expected[key]]
    (folder / "config.json").write_text(json.dumps({"model_type": family, key: value}))
    message = refused(folder)
    assert key in message and repr(value) in message


@pytest.mark.parametrize(
    "values, told",
    [
        ({"model_type": "mamba"}, "'mamba'"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4}}, "'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "'linear'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": "x",
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 32,
                }
            },
            "config.json",
        ),
        ({"partial_rotary_factor": 0.5}, "0.5"),
        ({"layer_types": ["sliding_attention"]}, "sliding_attention"),
        ({"layer_types": 3}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"vocab_size": -3}, "vocab_size is -3"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": "300"}, "vocab_size is '300'"),
        ({"vocab_size": 1e9}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"vocab_size": 10**9}, "(1000000000, 32)"),
        ({"vocab_size": 2**31 - 1, "hidden_size": 2**31 - 1}, "config"),
        ({"vocab_size": 2**80}, "vocab_size"),
        ({"vocab_size": None}, "has no vocab_size"),
        ({"num_hidden_layers": 10**9}, "1000000000 blocks"),
        ({"num_attention_heads": None}, "has no num_attention_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "n_kv_head"),
        ({"head_dim": 7}, "head_dim"),
        ({"max_position_embeddings": 2**30}, "max_position_embeddings"),
        ({"max_position_embeddings": -1}, "max_position_embeddings"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"hidden_size": [32]}, "hidden_size"),
    ],
    ids=str,
)
def test_a_configuration_of_nonsense(folder, values, told):
    change(folder / "config.json", **values)
    assert told in refused(folder)


@pytest.fixture
def small_tables(monkeypatch):
    """A damaged length of the context may make tables of gigabytes, and that is no error."""
    monkeypatch.setattr(minseal.weights, "LARGEST_TABLE", 2**20)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2**33)
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(0, 3), max_size=2)
    | st.just({})
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_configuration_loads_or_is_refused_in_one_line(folder, good_folder, small_tables, data):
    about = json.loads((good_folder / "config.json").read_text())
    for key in data.draw(st.lists(st.sampled_from(sorted(about)), min_size=1, max_size=2)):
        about[key] = data.draw(scalars)
    (folder / "config.json").write_text(json.dumps(about))
    try:
        load(folder, "cpu")
    except UserError as e:
        assert len(str(e).splitlines()) == 1


def rewrite(folder, f):
    """Change the tensors of a folder."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    f(tensors)
    safetensors.torch.save_file(tensors, path)


def test_tensors_that_do_not_fit(folder):
    q = "model.layers.1.self_attn.q_proj.weight"
    rewrite(folder, lambda t: t.update({q: torch.zeros(48, 31)}))
    assert (
        q in (message := refused(folder))
        and "blocks.1.attn.q.weight" in message
        and "(48, 31)" in message
        and "(48, 32)" in message
    )
    rewrite(folder, lambda t: t.update({q: torch.zeros(48, 32, dtype=torch.int32)}))
    assert (
        q in (message := refused(folder)) and "int32" in message
    )  # quantised by someone: numbers, but not the weights
    rewrite(folder, lambda t: t.pop(q))
    assert (
        q in (message := refused(folder))
        and "blocks.1.attn.q.weight" in message
        and "missing" in message
    )
    rewrite(
        folder,
        lambda t: t.update({q: torch.zeros(48, 32), "model.layers.2.mlp\n.up": torch.zeros(2)}),
    )
    assert "model.layers.2.mlp" in refused(folder)


def test_the_configuration_says_whether_the_head_is_tied(folder, bpe):
    rewrite(folder, lambda t: t.pop("lm_head.weight"))
    assert "lm_head.weight is missing" in refused(folder)
    shutil.rmtree(folder)
    theirs = write_theirs(folder, "smollm2", bpe)
    rewrite(folder, lambda t: t.update({"lm_head.weight": torch.ones(320, 32)}))
    mine = load(folder, "cpu")[0]
    assert difference(mine, theirs) < 1e-5 and mine.head.weight is mine.wte.weight
    change(folder / "config.json", tie_word_embeddings=False)
    assert torch.equal(load(folder, "cpu")[0].head.weight, torch.ones(320, 32))


def test_a_tokenizer_larger_than_the_embedding(folder):
    rewrite(
        folder,
        lambda t: t.update(
            {
                "model.embed_tokens.weight": torch.zeros(299, 32),
                "lm_head.weight": torch.zeros(299, 32),
            }
        ),
    )
    change(folder / "config.json", vocab_size=299)
    assert "300 tokens" in (message := refused(folder)) and "299 rows" in message


@pytest.mark.parametrize(
    "file",
    [
        "model-00002-of-00002.safetensors",
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..",
        ".",
        "",
        "x\0",
        3,
    ],
)
def test_shards_that_are_not_there(tmp_path, bpe, file):
    write_theirs(tmp_path, "llama", bpe, max_shard_size="8KB")
    (tmp_path.parent / "x.safetensors").write_bytes(b"")
    index = tmp_path / "model.safetensors.index.json"
    file_of = json.loads(index.read_text())["weight_map"]
    change(index, weight_map={**file_of, "model.norm.weight": file})
    assert (
        "weight_map"
        if file == 3
        else "lacks"
        if file in ("", "model-00002-of-00002.safetensors")
        else "outside"
    ) in refused(tmp_path)
    change(index, weight_map=file_of)
    load(tmp_path)
    shard = tmp_path / file_of["model.norm.weight"]
    shard.rename(tmp_path / "elsewhere")
    assert shard.name in refused(tmp_path) and "lacks" in refused(tmp_path)
    (tmp_path / "elsewhere").rename(shard)
    change(
        index,
        weight_map={k: v for k, v in file_of.items() if k != "model.norm.weight"}
        | {"another": shard.name},
    )
    assert "disagree" in refused(tmp_path)
    for nonsense in ("[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{"):
        index.write_text(nonsense)
        refused(tmp_path)


def test_files_of_another_kind(folder):
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert "SentencePiece" in refused(folder)
    (folder / "tokenizer.model").unlink()
    assert "tokenizer.json" in refused(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in (message := refused(folder)) and "safe_serialization" in message
    (folder / "pytorch_model.bin").unlink()
    assert "no model.safetensors" in refused(folder)


@pytest.mark.parametrize("protocol", ["zip", 0, 2, 5])
def test_a_pickle_under_the_name_of_safetensors(folder, tmp_path, protocol):
    file = folder / "model.safetensors"
    torch.save(Evil(tmp_path / "executed"), file) if protocol == "zip" else file.write_bytes(
        pickle.dumps(Evil(tmp_path / "executed"), protocol)
    )
    message = refused(folder)
    assert ("pickle" if protocol else "safetensors") in message and not (
        tmp_path / "executed"
    ).exists()


@pytest.mark.parametrize("share", [0, 0.0001, 0.001, 0.05, 0.5, 0.999])
def test_truncated_safetensors(folder, share):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert "model.safetensors" in refused(folder)


def test_a_dtype_and_a_device_that_are_not_there(folder):
    for settings in (
        {"dtype": "float8"},
        {"device": "cuda"} if not torch.cuda.is_available() else {"device": "cuda:99"},
    ):
        with pytest.raises(UserError, match="float8|cuda") as e:
            load(folder, **settings)
        assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("whole", [0, 1000, 20_000])
def test_a_full_disk_leaves_no_half_model(tmp_path, monkeypatch, whole):
    """The disk takes `whole` bytes of model.safetensors and no more."""
    model = make()
    export(tmp_path / "old", make(seed=1), TOKENIZER)
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}

    class Full:
        def __init__(self, path, mode="r"):
            self.file, self.left = open(path, mode), whole

        def write(self, data):
            data = memoryview(data).cast("B")
            self.file.write(data[: self.left])
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        __enter__, __exit__ = lambda self: self, lambda self, *_: self.file.close()

    monkeypatch.setattr(minseal.files, "open", Full, raising=False)
    for name in ("new", "old"):
        with pytest.raises(UserError, match="model.safetensors.*No space left") as e:
            export(tmp_path / name, model, TOKENIZER)
        assert len(str(e.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["old"] and {
        p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()
    } == before


def test_a_full_disk_leaves_no_half_folder(tmp_path, monkeypatch):
    full_disk(monkeypatch, "weights.pt")
    with pytest.raises(UserError, match="No space left"):
        save(tmp_path / "new", make(), TOKENIZER, {})
    assert not list(tmp_path.iterdir())


# ---- the hub -----------------------------------------------------------------------------------------------------------


def test_a_hub_id_is_fetched(good_folder, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **settings: asked.append((name, settings)) or str(good_folder),
    )
    model, _ = load("owner/a-model_1.5", "cpu")
    assert model.config == load(good_folder, "cpu")[0].config
    ((name, settings),) = asked
    assert name == "owner/a-model_1.5" and not any(
        "bin" in pattern or pattern == "*" for pattern in settings["allow_patterns"]
    )  # no pickles


def test_a_hub_id_that_does_not_come(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    for error in (
        OSError("no route\nto host"),
        ValueError(),
        huggingface_hub.errors.HFValidationError("bad id"),
    ):
        assert "owner/name" in refused_source("owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "minseal[weights]" in refused_source("owner/name")
    for source in ("no", "a/b/c", "owner/name with space", "https://host/owner/name"):
        assert "hub id" in refused_source(source)


def test_the_hub_itself_when_offline():
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import minseal\ntry: minseal.load('owner/minseal-has-no-such-model')\nexcept minseal.UserError as e: print(e)",
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert (
        run.returncode == 0
        and len(run.stdout.splitlines()) == 1
        and "owner/minseal-has-no-such-model" in run.stdout
    )


def refused_source(source):
    with pytest.raises(UserError) as e:
        load(source)
    assert len(str(e.value).splitlines()) == 1 and source in str(e.value)
    return str(e.value)


# ---- GGUF --------------------------------------------------------------------------------------------------------------

Q = gguf.GGMLQuantizationType
GGUF_SIZES = dict(head_dim=16, mlp_dim=64)  # rows of whole blocks of 32 values
LLAMA32 = {"llama-3.1": (8.0, 1.0, 4.0, 8192), "llama-3.2": (32.0, 1.0, 4.0, 8192)}
KINDS |= {"llama-3.2": KINDS["llama-3.1"]}


def write_gguf(path, theirs, kind, bpe, quantised=Q.F32, **more):
    """As llama.cpp's convert_hf_to_gguf.py does, with the names of the package gguf. Returns the model whose weights were rounded like the file's."""
    family, c = KINDS[kind][0], theirs.config
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_head_count(c.num_attention_heads)
    if family == "gpt2":
        writer.add_feed_forward_length(c.n_inner)
        writer.add_layer_norm_eps(c.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(c.intermediate_size)
        writer.add_head_count_kv(c.num_key_value_heads)
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
        writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
        writer.add_rope_dimension_count(c.head_dim)
    for key, value in more.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_string)(
            f"{family}.{key}", value
        )

    data = json.loads(bpe(kind).backend_tokenizer.to_str())
    tokens = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    padding = [f"[PAD{i}]" for i in range(len(tokens), c.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if "qwen" in kind else "gpt-2")
    writer.add_token_list(tokens + padding)
    writer.add_token_types(
        [gguf.TokenType.CONTROL]
        + [gguf.TokenType.NORMAL] * (len(tokens) - 1)
        + [gguf.TokenType.UNUSED] * len(padding)
    )
    writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
    writer.add_eos_token_id(0)

    if kind in LLAMA32:
        writer.add_tensor("rope_freqs.weight", np.array(rope_factors(c), dtype=np.float32))
    names = gguf.get_tensor_name_map(
        {
            "llama": gguf.MODEL_ARCH.LLAMA,
            "gpt2": gguf.MODEL_ARCH.GPT2,
            "qwen2": gguf.MODEL_ARCH.QWEN2,
            "qwen3": gguf.MODEL_ARCH.QWEN3,
        }[family],
        c.num_hidden_layers,
    )
    rounded = {}
    for name, tensor in theirs.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        values, turned = tensor.numpy(), family == "gpt2" and tensor.dim() == 2 and ".h." in name
        values = np.ascontiguousarray(values.T) if turned else values
        if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
            values = (
                values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            )  # llama.cpp's permute()
        qtype = quantised if values.ndim == 2 else Q.F32
        packed = gguf.quants.quantize(values, qtype)
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight", ".bias")), packed, raw_dtype=qtype
        )
        plain = (
            tensor.numpy().T if turned else tensor.numpy()
        )  # rows are rounded each alone, so their order does not matter
        plain = gguf.dequantize(gguf.quants.quantize(np.ascontiguousarray(plain), qtype), qtype)
        rounded[name] = torch.from_numpy((plain.T if turned else plain).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs.load_state_dict(rounded, strict=False)
    return theirs


def rope_factors(c):
    """Copied from llama.cpp's LlamaModel.generate_extra_tensors."""
    scaling, factors = c.rope_parameters, []
    low, high = (
        scaling["original_max_position_embeddings"] / scaling["low_freq_factor"],
        scaling["original_max_position_embeddings"] / scaling["high_freq_factor"],
    )
    for i in range(0, c.head_dim, 2):
        wavelen = 2 * np.pi * scaling["rope_theta"] ** (i / c.head_dim)
        if wavelen < high:
            factors.append(1)
        elif wavelen > low:
            factors.append(scaling["factor"])
        else:
            smooth = (
                scaling["original_max_position_embeddings"] / wavelen - scaling["low_freq_factor"]
            ) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    assert 1 in factors and scaling["factor"] in factors
    return factors


def gguf_theirs(kind):
    sizes = {} if KINDS[kind][0] == "gpt2" else GGUF_SIZES
    return make_theirs(
        kind,
        **sizes
        | ({"mlp_dim": 64} if not sizes else {})
        | ({"rope_scaling": LLAMA32[kind]} if kind in LLAMA32 else {}),
    )


@pytest.mark.parametrize("kind", [*KINDS])
@pytest.mark.parametrize("quantised", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_1], ids=lambda q: q.name)
def test_gguf(tmp_path, bpe, kind, quantised):
    theirs = write_gguf(tmp_path / "model.gguf", gguf_theirs(kind), kind, bpe, quantised)
    mine, tokenizer = load(tmp_path / "model.gguf", "cpu")
    assert difference(mine, theirs) < 1e-5  # measured: at most 6e-6, quantised or not
    assert mine.config.tied == theirs.config.tie_word_embeddings and mine.config.norm_eps in (
        1e-5,
        1e-6,
    )
    assert mine.config.rope_scaling == LLAMA32.get(kind)
    assert [tokenizer.encode(text) for text in TEXTS] == [
        bpe(kind)(text)["input_ids"] for text in TEXTS
    ] and tokenizer.eot == 0
    if quantised == Q.F16:
        assert load(tmp_path / "model.gguf", "cpu", "float16")[0].wte.weight.dtype == torch.float16


@pytest.fixture(scope="session")
def good_gguf(tmp_path_factory, bpe):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, gguf_theirs("llama"), "llama", bpe, Q.Q8_0)
    return path


def test_truncated_gguf(tmp_path, good_gguf):
    data, path = good_gguf.read_bytes(), tmp_path / "model.gguf"
    for length in (
        0,
        3,
        4,
        7,
        15,
        23,
        24,
        25,
        *range(30, len(data) - 40, len(data) // 120),
    ):  # the last tensor is followed by padding
        path.write_bytes(data[:length])
        assert "model.gguf" in refused(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_gguf_loads_or_is_refused_in_one_line(tmp_path, good_gguf, small_tables, data):
    content = bytearray(good_gguf.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 12_000))] = data.draw(
            st.integers(0, 255)
        )  # the header, mostly
    (tmp_path / "model.gguf").write_bytes(content)
    try:
        load(tmp_path / "model.gguf", "cpu")
    except UserError as e:
        assert len(str(e).splitlines()) == 1 and "model.gguf" in str(e)


@pytest.mark.parametrize(
    "more, told",
    [
        ({"expert_count": 8}, "experts"),
        ({"attention.sliding_window": 64}, "sliding"),
        ({"rope.scaling.type": "yarn"}, "scaling"),
        ({"rope.dimension_count": 8}, "part of each head"),
        ({"attention.head_count": "many"}, "head_count is 'many'"),
    ],
    ids=str,
)
def test_gguf_of_another_model(tmp_path, bpe, more, told, monkeypatch):
    for key in ("rope.dimension_count", "attention.head_count"):
        if key in more:
            monkeypatch.setattr(
                gguf.GGUFWriter,
                {
                    "rope.dimension_count": "add_rope_dimension_count",
                    "attention.head_count": "add_head_count",
                }[key],
                lambda self, value: None,
            )
    write_gguf(tmp_path / "model.gguf", gguf_theirs("llama"), "llama", bpe, **more)
    assert told in refused(tmp_path / "model.gguf")


def test_gguf_without_its_package(good_gguf, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"minseal\[weights\]"):
        load(good_gguf)


PROMPTS = [
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "Water boils at",
    "In 1969,",
    "My favourite colour is",
    "2 + 2 =",
    "To be or not to be,",
    "The quick brown fox",
    "Dear Sir or Madam,",
    "The moon is",
    "A recipe for bread:\n",
    "import torch\n",
    "Der Hund",
    "Photosynthesis is",
    "The longest river",
    "\n\n",
    "She opened the door and",
    "Rule 1:",
    "<|im_start|>user\nHello",
]


@pytest.mark.slow
@pytest.mark.skipif(
    "MINSEAL_SMOLLM2" not in os.environ, reason="MINSEAL_SMOLLM2 names a GGUF file of SmolLM2-135M"
)
def test_the_real_smollm2():
    path = Path(os.environ["MINSEAL_SMOLLM2"])
    mine, tokenizer = load(path, "cpu")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    texts = greedy(mine, prompts, real=tokenizer.vocab_size)
    assert all(they_write(theirs, text, real=tokenizer.vocab_size) for text in texts)
    with torch.no_grad():
        pairs = [
            (mine(torch.tensor([ids])), theirs(torch.tensor([ids])).logits)
            for ids in prompts + texts
        ]
    difference, size = (
        [(a - b).abs().max().item() for a, b in pairs],
        max(b.abs().max().item() for _, b in pairs),
    )
    print(
        f"{len(PROMPTS)} prompts, greedy texts equal; largest difference of logits (up to {size:.0f}): {max(difference[:20]):.1e} over the prompts, "
        f"{max(difference[20:]):.1e} over the texts; the first text: {tokenizer.decode(texts[0])!r}"
    )
    assert (
        max(difference[:20]) < 1e-4 and max(difference) < 1e-5 * size
    )  # 30 layers in float32: each rounds to 6e-8 of its size


# ---- memory ------------------------------------------------------------------------------------------------------------

PEAK = """
import sys, minseal, minseal.weights, torch
from minseal.weights import load, save
def now(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
source, out, dtype = sys.argv[1:]
minseal.weights.empty(minseal.GPTConfig(), torch.float32, "cpu")  # torch itself imports 70 MB of code at the first model on the meta device
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = now("VmRSS")
model, tokenizer = load(source, "cpu", dtype)
loaded = now("VmHWM") - before
save(out, model, tokenizer, {})
print(sum(p.nbytes for p in model.parameters()), loaded, now("VmHWM") - before, max(p.nbytes // p.element_size() for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_the_peak_of_memory(tmp_path, bpe, stored):
    """Converting takes the weights as they will be, plus the largest tensor as it is stored, plus 20 MB for code, tokenizer and the allocator."""
    config = GPTConfig(
        vocab_size=8192, n_layer=12, n_head=12, n_kv_head=12, n_embd=768, head_dim=64, mlp_dim=2048
    )
    family, about = minseal.weights.describe(config)
    (tmp_path / "big").mkdir()
    bpe("llama").save_pretrained(tmp_path / "big")
    (tmp_path / "big" / "config.json").write_text(json.dumps(about))
    with torch.device("meta"):
        shapes = {
            minseal.weights.located(name, family)[0]: p.shape
            for name, p in GPT(config).named_parameters()
        }
    noise = {
        shape: torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(stored)
        for shape in set(shapes.values())
    }
    write_safetensors({name: noise[shape] for name, shape in shapes.items()})(
        tmp_path / "big" / "model.safetensors"
    )

    def run(source, out):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, tmp_path / source, tmp_path / out, "bfloat16"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        return map(int, done.stdout.split())

    weights, loaded, saved, largest = run("big", "own")
    limit = weights + largest * stored.itemsize + 20e6
    print(
        f"from {stored}: weights {weights / 1e6:.0f} MB, peak of loading {loaded / weights:.2f}, with saving {saved / weights:.2f} of them; allowed {limit / weights:.2f}"
    )
    assert 150e6 < weights <= loaded <= saved < limit and limit < 1.25 * weights
