"""The way back: transformers reads what is written, bit for bit; a failing write leaves nothing."""

import signal
import sys

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from their_models import (
    GPT2,
    KINDS,
    TEXTS,
    TOKENIZER,
    bpe,
    difference,
    greedy,
    they_write,
    tiny,
    write_theirs,
)

from minseal import LoRAConfig, UserError, attach, load, save
from minseal.open_models.export import export


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_out_again_bit_for_bit(tmp_path, kind, dtype):
    theirs = write_theirs(tmp_path / "a", kind, dtype)
    mine, tokenizer = load(tmp_path / "a", "cpu", "stored")
    export(tmp_path / "b", mine, tokenizer)
    a, b = (safetensors.torch.load_file(tmp_path / f / "model.safetensors") for f in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype == dtype for k in a)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32)
    assert type(again) is type(theirs) and difference(mine.float(), again) < 1e-5
    assert again.config.eos_token_id == 0 and again.config.tie_word_embeddings == mine.config.tied
    encode = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    ids = [tokenizer.encode(text) for text in TEXTS]
    assert ids == [encode(text)["input_ids"] for text in TEXTS]
    assert ids == [bpe(kind)(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("kind", ["llama-3.1", "qwen2-tied", "gpt2"])
def test_converted_loaded_and_exported_is_the_same(tmp_path, kind):
    write_theirs(tmp_path / "a", kind, torch.bfloat16)
    mine, tokenizer = load(tmp_path / "a", "cpu")
    save(tmp_path / "own", mine, tokenizer, {"about": {"source": "a"}})
    assert (tmp_path / "own" / "tokenizer.json").exists()
    assert not (tmp_path / "own" / "ranks.tiktoken").exists()
    (tmp_path / "own" / "ranks.tiktoken").write_text("of another model, saved here before")
    own, own_tokenizer = load(tmp_path / "own", "cpu")
    export(tmp_path / "b", own, own_tokenizer)
    again, again_tokenizer = load(tmp_path / "b", "cpu")
    for model, other in ((own, own_tokenizer), (again, again_tokenizer)):
        assert model.config == mine.config and other.specials == tokenizer.specials
        assert [other.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
        pairs = zip(model.state_dict().values(), mine.state_dict().values(), strict=True)
        assert all(torch.equal(p, q) and p.dtype == q.dtype for p, q in pairs)


def test_the_tiny_model_goes_to_transformers(tmp_path, pretrained):
    model, tokenizer = pretrained
    export(tmp_path / "tiny", model, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    encode = transformers.AutoTokenizer.from_pretrained(tmp_path / "tiny")
    ids = tokenizer.encode("The red house belongs to Mara. " * 3)
    assert encode("The red house belongs to Mara. " * 3)["input_ids"] == ids
    with torch.no_grad():
        a, b = theirs(torch.tensor([ids])).logits, model(torch.tensor([ids]))
    assert (a - b).abs().max() < 1e-4  # logits up to 20; measured: 2e-5
    assert they_write(theirs, greedy(model, [ids], 20)[0], 20)


def test_the_tiny_model_of_grids_whose_pattern_is_its_own(tmp_path):
    model, tokenizer = load("tiny_data/fewshot", "cpu")
    export(tmp_path / "tiny", model, tokenizer)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tiny" / "tokenizer.json"))
    text = '{"rotate": 1}\n012 340\n\nnaïve  "a_b": 12'
    assert theirs.encode(text).ids == tokenizer.encode(text)
    assert load(tmp_path / "tiny", "cpu")[1].encode(text) == tokenizer.encode(text)


def test_a_model_of_no_family_is_not_exported(tmp_path):
    own_head_dim = {"n_head": 2, "n_kv_head": 2, "head_dim": 10}
    for settings in ({"norm": "layer"}, GPT2 | {"n_head": 2, "n_kv_head": 1}, GPT2 | own_head_dim):
        with pytest.raises(UserError, match="exported|family"):
            export(tmp_path / "a", tiny(**settings), TOKENIZER)
    assert not list(tmp_path.iterdir())


def test_a_model_with_adapters_is_not_exported(tmp_path):
    model = tiny()
    attach(model, 1, LoRAConfig(rank=2))
    with pytest.raises(UserError, match="adapters"):
        export(tmp_path / "a", model, TOKENIZER)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
@pytest.mark.parametrize("room", [0, 1000, 15_000])
def test_a_full_disk_leaves_no_half_model(tmp_path, room):
    import resource

    export(tmp_path / "old", tiny(seed=1), TOKENIZER)
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}
    assert len(before["model.safetensors"]) > 16_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for folder in ("new", "old"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(UserError, match="model.safetensors.*stays") as e:
                export(tmp_path / folder, tiny(), TOKENIZER)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert len(str(e.value).splitlines()) == 1
    signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before
