"""minseal's own folder: bit for bit there and back; what is damaged is refused in one line."""

import errno
import json
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from minseal import GPT, GPTConfig, LoRAConfig, Tokenizer, UserError, attach, load, save
from minseal.tokenizer import train_ranks

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
FILES = ["config.json", "weights.pt", "ranks.tiktoken"]


def make(seed=0, **settings):
    model = GPT(GPTConfig(**{**CONFIG, **settings}))
    return model.init_weights(torch.Generator().manual_seed(seed)).eval()


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
    assert again.config == model.config and not again.training
    assert tokenizer.ranks == TOKENIZER.ranks and tokenizer.settings() == TOKENIZER.settings()
    assert json.loads((tmp_path / "a" / "config.json").read_text())["about"] == {"minutes": 1.5}
    assert {p.name for p in (tmp_path / "a").iterdir()} == set(FILES)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_weights(checkpoint, share):
    data = (checkpoint / "weights.pt").read_bytes()
    (checkpoint / "weights.pt").write_bytes(data[: int(share * len(data))])
    assert "weights.pt is missing, damaged or" in refused(checkpoint)


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


@pytest.mark.parametrize(
    "change",
    [
        lambda t: torch.zeros(1).expand(2**30, 4),
        lambda t: torch.as_strided(torch.zeros(9), (10**5, 10**5), (0, 0)),
        lambda t: torch.empty(10**6, 10**6, device="meta"),
        lambda t: torch.empty(t.shape, device="meta"),
        lambda t: torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (10**6, 10**6)),
        lambda t: t.to_sparse(),
        lambda t: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    ],
    ids="expanded strided meta small-meta sparse small-sparse nested".split(),
)
def test_tensors_that_do_not_lie_in_the_file(checkpoint, change):
    """A file of 20 KB may say that it holds gigabytes: its own size is the measure."""
    path, about = checkpoint / "weights.pt", json.loads((checkpoint / "config.json").read_text())
    state = torch.load(path)
    state["wte.weight"] = change(state["wte.weight"])
    torch.save(state, path)
    for vocab_size in (280, 2**30):
        about["model"]["vocab_size"] = vocab_size
        (checkpoint / "config.json").write_text(json.dumps(about))
        assert "weights.pt" in refused(checkpoint)


def test_a_packed_file_is_not_read_as_if_it_were_plain(checkpoint):
    """torch would map the packed bytes as weights."""
    path = checkpoint / "weights.pt"
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            new.writestr(name, data)
    assert "packed" in refused(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["wte.weight", "blocks.0.norm2.weight", "blocks.0.mlp.up.weight"])
def test_numbers_that_are_none_are_refused_by_the_name_of_the_tensor(checkpoint, name, value):
    state = torch.load(checkpoint / "weights.pt")
    state[name].view(-1)[5] = value
    torch.save(state, checkpoint / "weights.pt")
    assert name in (message := refused(checkpoint)) and "not finite" in message


@pytest.mark.parametrize(
    "values",
    [
        {"norm_eps": 10**400},
        {"rope_theta": 10**400},
        {"rope_scaling": [8, 1, 4, 10**400]},
        {"block_size": 2**31 - 1},
        {"block_size": 3_000_000},
        {"head_dim": 2**31 - 2},
        {"n_layer": 2**31 - 1},
        {"vocab_size": 2**31 - 1},
    ],
    ids=str,
)
def test_one_number_of_the_configuration_makes_nothing_large(checkpoint, values):
    about = json.loads((checkpoint / "config.json").read_text())
    about["model"] |= values
    (checkpoint / "config.json").write_text(json.dumps(about))
    begin = time.process_time()
    refused(checkpoint)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("name", FILES)
def test_missing_file(checkpoint, name):
    (checkpoint / name).unlink()
    assert name in refused(checkpoint)


def test_another_shape_names_the_tensor_and_both_shapes(checkpoint):
    about = json.loads((checkpoint / "config.json").read_text())
    about["model"]["mlp_dim"] = 32
    (checkpoint / "config.json").write_text(json.dumps(about))
    message = refused(checkpoint)
    (name,) = [n for n in make().state_dict() if n in message]
    for model in (make(), make(mlp_dim=32)):
        assert str(tuple(model.state_dict()[name].shape)) in message


def test_a_missing_and_an_extra_tensor_are_named(checkpoint):
    state = torch.load(checkpoint / "weights.pt")
    some = sorted(state)[1]
    torch.save({k: v for k, v in state.items() if k != some}, checkpoint / "weights.pt")
    assert some in (message := refused(checkpoint)) and "missing" in message
    torch.save({**state, "blocks.9.surprise": torch.zeros(2)}, checkpoint / "weights.pt")
    assert "blocks.9.surprise" in refused(checkpoint)
    torch.save({**state, some: state[some].long()}, checkpoint / "weights.pt")
    assert "int64" in refused(checkpoint)
    torch.save({}, checkpoint / "weights.pt")
    assert "wte.weight is missing" in refused(checkpoint)


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
        b"\xff\xfe",
    ],
)
def test_a_broken_config(checkpoint, text):
    (checkpoint / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
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


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(checkpoint, tmp_path, zipped):
    evil, path = {"wte.weight": Evil(tmp_path / "executed")}, checkpoint / "weights.pt"
    torch.save(evil, path) if zipped else path.write_bytes(pickle.dumps(evil, 2))
    assert "weights.pt" in refused(checkpoint)
    assert not (tmp_path / "executed").exists()


# ---- failing writes ----


def full_disk(monkeypatch, name):
    """What is written to a file of that name (or beside it) ends half way: no space left."""
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


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_leaves_the_last_good_checkpoint(checkpoint, monkeypatch, name):
    before = load(checkpoint)[0](IDS)
    full_disk(monkeypatch, name)
    for folder in (checkpoint, checkpoint.parent / "new"):
        with pytest.raises(UserError, match=f"{name}.*No space left") as e:
            save(folder, make(seed=1), TOKENIZER, {})
        assert len(str(e.value).splitlines()) == 1
    monkeypatch.undo()
    assert torch.equal(load(checkpoint)[0](IDS), before)
    assert not list(checkpoint.glob("*.tmp*")) and not (checkpoint.parent / "new").exists()


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file"):
        save(tmp_path / "file" / "model", make(), TOKENIZER, {})
    assert (tmp_path / "file").read_text() == "mine"


def test_a_model_with_adapters_is_not_written(tmp_path):
    model = make()
    adapters = attach(model, 1, LoRAConfig(rank=2))
    with pytest.raises(UserError, match="adapters"):
        save(tmp_path / "a", model, TOKENIZER, {})
    assert not list(tmp_path.iterdir())
    adapters.remove()
    save(tmp_path / "a", model, TOKENIZER, {})
    load(tmp_path / "a")


# ---- no extra, and the toys ----

WITHOUT_EXTRAS = """
import sys
for name in ("safetensors", "tokenizers", "gguf", "huggingface_hub"):
    sys.modules[name] = None
import minseal
model, tokenizer = minseal.load("tiny_data/knowledge", "cpu")
print(tokenizer.decode(tokenizer.encode("Hi")))
try:
    minseal.load("tiny_data/no_such", "cpu")
except minseal.UserError as e:
    print(e)
"""


def test_the_toys_need_no_extra_and_are_found_from_anywhere(tmp_path):
    root = str(Path(__file__).parent.parent)
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert run.stdout.splitlines() == [
        "Hi",
        "no toy model at tiny_data/no_such: expected a folder of minseal's tiny_data",
    ], run.stderr
