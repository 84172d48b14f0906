"""Checkpoints: what is saved comes back bit for bit; what is damaged is refused in one line; what was there survives."""

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from minseal import GPT, GPTConfig, Tokenizer, UserError, load, save
from minseal.tokenizer import train_ranks
from minseal.weights import load_tensors, save_tensors

CONFIG = dict(vocab_size=280, block_size=64, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, head_dim=8, mlp_dim=24)
TOKENIZER = Tokenizer(train_ranks("some text, and more text: the text of the tests", 279))
IDS = torch.arange(40).view(2, 20) * 6


def make(seed=0, **settings):
    return GPT(GPTConfig(**{**CONFIG, **settings})).init_weights(torch.Generator().manual_seed(seed)).eval()


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


@pytest.mark.parametrize("settings", [{}, {"tied": False}, {"position": "learned", "norm": "layer", "mlp": "gelu", "bias": True, "qkv_bias": True},
                                      {"rope_scaling": (8.0, 1.0, 4.0, 32), "qk_norm": True}], ids=["tiny", "untied", "gpt2", "llama3"])
def test_saved_and_loaded_gives_equal_logits(tmp_path, settings):
    model = make(seed=3, **settings)
    save(tmp_path / "a", model, TOKENIZER, {"about": {"minutes": 1.5}})
    again, tokenizer = load(tmp_path / "a")
    assert torch.equal(again(IDS), model(IDS))  # bit for bit
    assert again.config == model.config and tokenizer.ranks == TOKENIZER.ranks and not again.training
    assert json.loads((tmp_path / "a" / "config.json").read_text())["about"] == {"minutes": 1.5}
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"config.json", "weights.pt", "ranks.tiktoken"}


@pytest.mark.parametrize("share", [0, .01, .3, .9, .999])
def test_truncated_weights(checkpoint, share):
    data = (checkpoint / "weights.pt").read_bytes()
    (checkpoint / "weights.pt").write_bytes(data[:int(share * len(data))])
    assert "weights.pt is damaged" in refused(checkpoint)


JUNK = {"text": b"hello", "one byte": b"\x80", "zip": b"PK\x03\x04" + bytes(50), "bytes": bytes(range(256)), "zeros": bytes(1000),
        "pickle": pickle.dumps([1, 2], 2), "half a pickle": pickle.dumps({"a": 1}, 2)[:-3]}


@pytest.mark.parametrize("junk", JUNK)
def test_junk_for_weights(checkpoint, junk):
    (checkpoint / "weights.pt").write_bytes(JUNK[junk])
    assert "weights.pt" in refused(checkpoint)


@pytest.mark.parametrize("content", [[1, 2], {}, {"wte.weight": 3}, {1: torch.zeros(2)}, torch.zeros(3)],
                         ids=["list", "nothing", "number", "no name", "one tensor"])
def test_a_file_of_something_else(checkpoint, content):
    torch.save(content, checkpoint / "weights.pt")
    assert "weights.pt" in refused(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "weights.pt", "ranks.tiktoken"])
def test_missing_file(checkpoint, name):
    (checkpoint / name).unlink()
    assert name in refused(checkpoint)


def test_no_folder_and_a_file_in_its_place(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "missing", tmp_path / "file"):
        assert "expected a folder with config.json" in refused(path)


def test_another_shape_names_the_tensor_and_both_shapes(checkpoint):
    told = json.loads((checkpoint / "config.json").read_text())
    told["model"]["mlp_dim"] = 32
    (checkpoint / "config.json").write_text(json.dumps(told))
    message = refused(checkpoint)
    name, = [n for n in make().state_dict() if n in message]
    assert str(tuple(make().state_dict()[name].shape)) in message and str(tuple(make(mlp_dim=32).state_dict()[name].shape)) in message


def test_a_missing_and_an_extra_tensor_are_named(checkpoint):
    state = torch.load(checkpoint / "weights.pt")
    some = sorted(state)[1]
    torch.save({k: v for k, v in state.items() if k != some}, checkpoint / "weights.pt")
    assert some in (message := refused(checkpoint)) and "missing" in message
    torch.save({**state, "blocks.9.surprise": torch.zeros(2)}, checkpoint / "weights.pt")
    assert "blocks.9.surprise" in refused(checkpoint)


@pytest.mark.parametrize("text", [
    "", "{", "[1]", "{}", '{"model": null}', '{"model": [1]}', '{"model": {"n_embd": "wide"}}', '{"model": {"colour": 3}}',
    '{"model": {"norm": "batch"}}', '{"model": {"n_kv_head": 0}}', '{"model": {"n_head": 4, "n_kv_head": 3}}', '{"model": {"n_embd": -4}}'])
def test_a_broken_config(checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    assert "config.json" in refused(checkpoint)


def test_a_config_that_is_no_text(checkpoint):
    (checkpoint / "config.json").write_bytes(bytes(range(256)))
    assert "config.json" in refused(checkpoint)


def test_a_tokenizer_larger_than_the_model(checkpoint):
    ranks = {bytes([b]): b for b in range(256)} | {b"word %d" % i: 256 + i for i in range(44)}
    Tokenizer(ranks).save(checkpoint / "ranks.tiktoken")  # 300 of them, and the end-of-text token
    message = refused(checkpoint)
    assert "301" in message and "280" in message


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda x, path: Path(path).write_bytes(pickle.dumps(x, 2))], ids=["torch", "pickle"])
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
        whole_text(self, text[:len(text) // 2], *args, **kwargs)
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
    tensors = {"a": torch.randn(2, 3).requires_grad_(), "b": torch.arange(4), "half": torch.randn(3).bfloat16()}
    save_tensors(tmp_path / "a.pt", tensors)
    again = load_tensors(tmp_path / "a.pt")
    assert set(again) == set(tensors) and all(torch.equal(again[k], tensors[k]) and again[k].dtype == tensors[k].dtype for k in tensors)
    assert not again["a"].requires_grad
