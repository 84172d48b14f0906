"""GGUF files, written as llama.cpp's converter does: the logits of the model that was written."""

import json
import os
import struct
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from their_models import (
    KINDS,
    TEXTS,
    bpe,
    difference,
    greedy,
    make_theirs,
    refused,
    they_write,
)

from minseal import UserError, checkpoint, load
from minseal.open_models.gguf import read_gguf

Q = gguf.GGMLQuantizationType
LLAMA32 = {"llama-3.1": (8.0, 1.0, 4.0, 8192), "llama-3.2": (32.0, 1.0, 4.0, 8192)}
KINDS = KINDS | {"llama-3.2": KINDS["llama-3.1"]}
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


def write(path, kind="llama", quantised=Q.F32, leave_out=(), **more):
    """As llama.cpp's convert_hf_to_gguf.py does, with the names of the package gguf.

    Returns the model of transformers, its weights rounded like the file's.
    """
    theirs = make_gguf_theirs(kind)
    family, c = KINDS[kind][0], theirs.config
    writer = gguf.GGUFWriter(path, family)
    if family == "gpt2":
        about = {"feed_forward_length": c.n_inner}
        reals = {"attention.layer_norm_epsilon": c.layer_norm_epsilon}
    else:
        about = {
            "feed_forward_length": c.intermediate_size,
            "attention.head_count_kv": c.num_key_value_heads,
            "attention.key_length": c.head_dim,
            "attention.value_length": c.head_dim,
            "rope.dimension_count": c.head_dim,
        }
        reals = {
            "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
            "rope.freq_base": c.rope_parameters["rope_theta"],
        }
    about |= {
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "attention.head_count": c.num_attention_heads,
    }
    for key, value in (about | more).items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_string
        add(f"{family}.{key}", value)
    for key, value in reals.items():
        writer.add_float32(f"{family}.{key}", value)
    add_tokenizer(writer, kind, c.vocab_size)

    if kind in LLAMA32:
        writer.add_tensor("rope_freqs.weight", np.array(rope_factors(c), dtype=np.float32))
    names = gguf.get_tensor_name_map(ARCHITECTURES[family], c.num_hidden_layers)
    rounded = {}
    for name, tensor in theirs.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        turned = family == "gpt2" and tensor.dim() == 2 and ".h." in name
        plain = np.ascontiguousarray(tensor.numpy().T if turned else tensor.numpy())
        values = plain
        if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
            pairs = values.reshape(heads, 2, -1, values.shape[1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)  # llama.cpp's permute()
        qtype = quantised if values.ndim == 2 else Q.F32
        theirs_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(theirs_name, gguf.quants.quantize(values, qtype), raw_dtype=qtype)
        # Rows are rounded each alone, so their order does not matter.
        plain = gguf.dequantize(gguf.quants.quantize(plain, qtype), qtype)
        rounded[name] = torch.from_numpy((plain.T if turned else plain).copy())
    finish(writer)
    theirs.load_state_dict(rounded, strict=False)
    return theirs


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer, kind, vocab_size):
    model = json.loads(bpe(kind).backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    padding = [f"[PAD{i}]" for i in range(len(tokens), vocab_size)]
    normal = [gguf.TokenType.NORMAL] * (len(tokens) - 1)
    unused = [gguf.TokenType.UNUSED] * len(padding)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if "qwen" in kind else "gpt-2")
    writer.add_token_list(tokens + padding)
    writer.add_token_types([gguf.TokenType.CONTROL, *normal, *unused])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(0)


def rope_factors(c):
    """Copied from llama.cpp's LlamaModel.generate_extra_tensors."""
    scaling, factors = c.rope_parameters, []
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low_freq, high_freq = scaling["low_freq_factor"], scaling["high_freq_factor"]
    for i in range(0, c.head_dim, 2):
        wavelen = 2 * np.pi * scaling["rope_theta"] ** (i / c.head_dim)
        if wavelen < original / high_freq:
            factors.append(1)
        elif wavelen > original / low_freq:
            factors.append(factor)
        else:
            smooth = (original / wavelen - low_freq) / (high_freq - low_freq)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    assert 1 in factors and factor in factors
    return factors


def make_gguf_theirs(kind):
    """Rows of whole blocks of 32 values."""
    sizes = {"mlp_dim": 64} if KINDS[kind][0] == "gpt2" else {"head_dim": 16, "mlp_dim": 64}
    if kind in LLAMA32:
        sizes["rope_scaling"] = LLAMA32[kind]
    return make_theirs("llama-3.1" if kind in LLAMA32 else kind, **sizes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantised", [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_1], ids=lambda q: q.name)
def test_logits_of_the_model_that_was_written(tmp_path, kind, quantised):
    theirs = write(tmp_path / "model.gguf", kind, quantised)
    mine, tokenizer = load(tmp_path / "model.gguf", "cpu")
    assert difference(mine, theirs) < 1e-5  # measured: at most 6e-6, quantised or not
    assert mine.config.tied == theirs.config.tie_word_embeddings
    assert mine.config.norm_eps in (pytest.approx(1e-5), pytest.approx(1e-6))
    assert mine.config.rope_scaling == LLAMA32.get(kind)
    ids = [bpe(kind)(text)["input_ids"] for text in TEXTS]
    assert [tokenizer.encode(text) for text in TEXTS] == ids and tokenizer.eot == 0
    assert mine.wte.weight.dtype == torch.float32
    if quantised == Q.F16:
        assert load(tmp_path / "model.gguf", "cpu", "float16")[0].wte.weight.dtype == torch.float16


# ---- files that cannot be read ----


@pytest.fixture(scope="module")
def good_gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write(path, "llama", Q.Q8_0)
    return path


def test_truncated_models(tmp_path, good_gguf):
    data, path = good_gguf.read_bytes(), tmp_path / "model.gguf"
    # The last tensor is followed by padding, which nobody misses.
    for length in (0, 3, 4, 7, 15, 23, 24, 25, *range(30, len(data) - 40, len(data) // 60)):
        path.write_bytes(data[:length])
        assert "model.gguf" in refused(path)


def write_small(path, **tensors):
    """A file of one field of each type, and these tensors in these types."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_int64("number", -3)
    writer.add_float64("real", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "naïve 東京")
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("words", ["a", "", "é"])
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    finish(writer)


ONES = np.ones((2, 32), np.float32)


def test_what_gguf_writes_is_read(tmp_path):
    noise = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    kinds = [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1]
    tensors = {kind.name: (noise, kind) for kind in kinds} | {"row": (noise[0, :5], Q.F32)}
    write_small(tmp_path / "a.gguf", **tensors)
    fields, stored = read_gguf(tmp_path / "a.gguf")
    assert fields["text"] == "naïve 東京" and fields["words"] == ["a", "", "é"]
    assert (fields["number"], fields["real"], fields["yes"]) == (-3, 0.1, True)
    assert list(stored) == list(tensors)
    for name, (values, kind) in tensors.items():
        wanted = gguf.dequantize(gguf.quants.quantize(values, kind), kind)
        assert stored[name].shape == values.shape and stored[name].dtype == torch.float32
        assert np.array_equal(stored[name].read().numpy(), wanted.astype(np.float32))


def test_every_truncation(tmp_path):
    """The package (0.19.0) refuses each; no check of ours is needed."""
    path = tmp_path / "a.gguf"
    write_small(path, x=(ONES, Q.F32))
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(UserError) as e:
            read_gguf(path)
        assert len(str(e.value).splitlines()) == 1 and str(path) in str(e.value)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=4))
@example([(23, 255)])  # 2^64 fields
@example([(15, 255)])  # 2^64 tensors
@example([(325, 0)])  # a dimension of 0
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, flips):
    path = tmp_path / "a.gguf"
    write_small(path, x=(ONES, Q.F32), y=(ONES, Q.Q8_0))
    data = bytearray(path.read_bytes())
    for place, value in flips:
        data[place % len(data)] = value
    path.write_bytes(data)
    try:
        for t in read_gguf(path)[1].values():
            assert t.read().shape == t.shape
    except UserError as e:
        assert len(str(e).splitlines()) == 1 and str(path) in str(e)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_model_loads_or_is_refused_in_one_line(tmp_path, good_gguf, monkeypatch, data):
    # A damaged length of the context may make tables of gigabytes, and that is no error.
    monkeypatch.setattr(checkpoint, "LARGEST_TABLE", 2**20)
    content = bytearray(good_gguf.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):  # the header, mostly
        content[data.draw(st.integers(0, 12_000))] = data.draw(st.integers(0, 255))
    (tmp_path / "model.gguf").write_bytes(content)
    try:
        load(tmp_path / "model.gguf", "cpu")
    except UserError as e:
        assert len(str(e).splitlines()) == 1 and "model.gguf" in str(e)


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF", b"hello", b"GGUF" + bytes(40), b"GGUF\0\0\0\3" + bytes(40), bytes(1000)],
    ids=str,
)
def test_no_gguf(tmp_path, content):
    (tmp_path / "a.gguf").write_bytes(content)
    refused(tmp_path / "a.gguf")


def text(s):
    return len(s).to_bytes(8, "little") + s


def array(kind, n, data):
    return text(b"key") + struct.pack("<IIQ", 9, kind, n) + data


def of_tensors(n, info):
    return struct.pack("<4sIQQ", b"GGUF", 3, n, 0) + info


def of_fields(n, data):
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, n) + data


TENSOR = struct.pack("<IQIQ", 1, 1, 0, 0)  # dimensions, one of 1 number, F32, offset
HUGE = {
    "numbers": of_fields(1, array(0, 2**60, bytes(100))),
    "strings": of_fields(1, array(8, 2**60, bytes(100))),
    "arrays": of_fields(1, array(9, 2**60, bytes(100))),
    "a million strings": of_fields(1, array(8, 2**21, bytes(8 * 2**21))),
    "arrays in arrays": of_fields(1, array(9, 1, struct.pack("<IQ", 9, 1) * 50_000)),
    "fields": of_fields(2**63, b""),
    "many fields": of_fields(10**5, b"".join(text(b"%d" % i) + b"\0" * 5 for i in range(10**5))),
    "tensors": of_tensors(2**63, b""),
    "many tensors": of_tensors(
        10**5, b"".join(text(b"%d" % i) + TENSOR for i in range(10**5)) + bytes(64)
    ),
    "dimensions": of_tensors(1, text(b"x") + struct.pack("<IQ", 2**32 - 1, 1) + bytes(99)),
    "a name": of_tensors(1, struct.pack("<Q", 2**63) + bytes(99)),
    "a shape": of_tensors(1, text(b"x") + struct.pack("<IQQIQ", 2, 2**32, 2**32, 0, 0) + bytes(64)),
    "an offset": of_tensors(1, text(b"x") + struct.pack("<IQIQ", 1, 1, 0, 2**63) + bytes(64)),
}


@pytest.mark.parametrize("what", HUGE)
def test_counts_beyond_the_file_are_refused_at_once(tmp_path, what):
    """The package (0.19.0) goes on behind the end of the file, or takes 400 bytes for each."""
    (tmp_path / "a.gguf").write_bytes(HUGE[what])
    begin = time.process_time()
    assert "damaged" in refused(tmp_path / "a.gguf")
    assert time.process_time() - begin < 2  # measured: at most 0.6


def test_large_arrays_are_read(tmp_path):
    """As in a vocabulary of 100,000: to the same values, 10 times as fast as by the package."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    words, numbers = [f"é{i}" for i in range(100_000)], list(range(100_000))
    writer.add_array("words", words)
    writer.add_array("numbers", numbers)
    writer.add_array("reals", [0.5, -1.5])
    writer.add_array("yes", [True, False])
    finish(writer)
    begin = time.process_time()
    fields, _ = read_gguf(tmp_path / "a.gguf")
    assert time.process_time() - begin < 2  # measured: 0.3
    assert (fields["words"], fields["numbers"]) == (words, numbers)
    assert (fields["reals"], fields["yes"]) == ([0.5, -1.5], [True, False])


@pytest.mark.parametrize(
    "more", [{"attention.key_length": 2**31 - 2}, {"context_length": 2**31 - 1}], ids=str
)
@pytest.mark.parametrize("kind", ["llama", "llama-3.1"])
def test_one_number_makes_nothing_large(tmp_path, kind, more):
    dimensions = {"rope.dimension_count": v for k, v in more.items() if "key" in k}
    write(tmp_path / "model.gguf", kind, **more, **dimensions)
    begin = time.process_time()
    refused(tmp_path / "model.gguf")
    assert time.process_time() - begin < 2


def test_numbers_that_are_none_are_refused_by_the_name_of_the_tensor(tmp_path, good_gguf):
    """The scale of a block of 32 numbers is NaN."""
    reader = gguf.GGUFReader(good_gguf)
    (tensor,) = (t for t in reader.tensors if t.name == "blk.1.ffn_up.weight")
    data = bytearray(good_gguf.read_bytes())
    data[tensor.data_offset : tensor.data_offset + 2] = np.float16("nan").tobytes()
    (tmp_path / "model.gguf").write_bytes(data)
    assert "blk.1.ffn_up.weight" in refused(tmp_path / "model.gguf")


def test_a_kind_that_cannot_be_dequantised(tmp_path):
    path = tmp_path / "a.gguf"
    write_small(path, x=(ONES, Q.F32))
    data = path.read_bytes()
    begin = data.index(b"x\2\0\0\0") + 21
    assert data[begin : begin + 4] == int(Q.F32).to_bytes(4, "little")
    path.write_bytes(data[:begin] + int(Q.I32).to_bytes(4, "little") + data[begin + 4 :])
    with pytest.raises(UserError, match="'x'.*I32"):
        read_gguf(path)[1]["x"].read()


@pytest.mark.parametrize(
    "more, reason",
    [
        ({"expert_count": 8}, "experts"),
        ({"attention.sliding_window": 64}, "sliding"),
        ({"rope.scaling.type": "yarn"}, "scaling"),
        ({"rope.dimension_count": 8}, "part of each head"),
        ({"attention.head_count": "many"}, "head_count is 'many'"),
    ],
    ids=str,
)
def test_another_model(tmp_path, more, reason):
    write(tmp_path / "model.gguf", **more)
    assert reason in refused(tmp_path / "model.gguf")


def test_without_its_package(good_gguf, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "the package gguf: pip install 'minseal[weights]'" in refused(good_gguf)


# ---- the real one ----

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
    largest, size = [], 0.0
    with torch.no_grad():
        for ids in prompts + texts:
            a, b = mine(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
            largest.append((a - b).abs().max().item())
            size = max(size, b.abs().max().item())
    print(
        f"{len(PROMPTS)} prompts, greedy texts equal; largest difference of logits "
        f"(up to {size:.0f}): {max(largest[:20]):.1e} over the prompts, "
        f"{max(largest[20:]):.1e} over the texts; the first text: {tokenizer.decode(texts[0])!r}"
    )
    # 30 layers in float32: each rounds to 6e-8 of its size.
    assert max(largest[:20]) < 1e-4 and max(largest) < 1e-5 * size
