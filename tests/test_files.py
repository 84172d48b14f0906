"""Tensors on disk: what safetensors and gguf write is read to the bit, what we write they read; no damage gives anything but one line."""

import json
import sys

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minseal import UserError
from minseal.files import (
    DTYPES,
    read_gguf,
    read_json,
    read_safetensors,
    write_folder,
    write_json,
    write_safetensors,
    write_whole,
)

TENSORS = {
    "weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "half": torch.arange(6).half().view(2, 3),
    "brain": torch.ones(5).bfloat16(),
    "none": torch.zeros(0, 7),
    "one": torch.tensor(2.5),
    "whole": torch.arange(3),
    "byte": torch.arange(3, dtype=torch.uint8),
    "yes": torch.tensor([True, False]),
}


def refused(f, path):
    """The message: one line that names the file."""
    with pytest.raises(UserError) as e:
        f(path)
    assert len(str(e.value).splitlines()) == 1 and str(path) in str(e.value)
    return str(e.value)


def read_all(path):
    return {name: t.read() for name, t in read_safetensors(path).items()}


def equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype and a[k].shape == b[k].shape for k in a
    )


# ---- safetensors -------------------------------------------------------------------------------------------------------


def test_what_safetensors_writes_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(TENSORS, path, metadata={"format": "pt", "note": "hello"})
    assert equal(read_all(path), TENSORS)
    assert all(
        t.shape == tuple(TENSORS[name].shape) and t.dtype == TENSORS[name].dtype
        for name, t in read_safetensors(path).items()
    )


def test_what_we_write_safetensors_reads(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {
        **TENSORS,
        "turned": TENSORS["weight"].T,
        "learned": torch.ones(2, requires_grad=True),
        "näme\n": torch.ones(2),
    }
    write_safetensors(tensors)(path)
    assert equal(
        safetensors.torch.load_file(path), {k: v.detach() for k, v in tensors.items()}
    ) and equal(read_all(path), {k: v.detach() for k, v in tensors.items()})
    with safetensors.safe_open(path, "pt") as f:
        assert f.metadata() == {"format": "pt"}  # transformers insists on it
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 8 == 0


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype(tmp_path, dtype):
    tensors = {"x": torch.tensor([[1, 0, 3]]).to(dtype)}
    write_safetensors(tensors)(tmp_path / "a")
    assert equal(read_all(tmp_path / "a"), tensors) and equal(
        safetensors.torch.load_file(tmp_path / "a"), tensors
    )


def made(path, header, data=b"", length=None):
    """A safetensors file with this header: text, or an object."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def x(**changes):
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    "header, told",
    [
        (x(data_offsets=[0, 4]), "another size"),
        (x(data_offsets=[0, 16]), "another size"),
        (x(data_offsets=[8, 0]), "another size"),
        (x(data_offsets=[-8, 0]), "whole numbers"),
        (x(data_offsets=[4, 12]), "gap"),
        (x(data_offsets=[0]), "header"),
        (x(data_offsets=[0, 4, 8]), "header"),
        (x(data_offsets="08"), "header"),
        (x(data_offsets=8), "header"),
        (x(data_offsets=[0, 1e999]), "header"),
        (x(data_offsets=[0.0, 8.0]), "header"),
        (x(data_offsets=[False, 8]), "header"),
        (x(shape=[3]), "another size"),
        (x(shape=[-2]), "whole numbers"),
        (x(shape=[-1, -2]), "whole numbers"),
        (x(shape="2"), "header"),
        (x(shape=2), "header"),
        (x(shape=[2**63, 2**63]), "another size"),
        (x(shape=[0, 2**70]), "another size"),
        (x(dtype="F4"), "'F4'"),
        (x(dtype="f32"), "'f32'"),
        (x(dtype=None), "'None'"),
        (x(dtype=["F32"]), "of type"),
        (x() | {"y": x()["x"]}, "overlaps"),
        (x() | {"y": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "overlaps"),
        (x() | {"y": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}}, "gap"),
        (x() | {"y": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, "truncated"),
        ({"x": {"dtype": "F32"}}, "header"),
        ({"x": 3}, "header"),
        ({"x": None}, "header"),
        ({}, "truncated"),
        ([], "header"),
        (3, "header"),
        ("x", "header"),
        (None, "header"),
        (b"{", "header"),
        (b"", "header"),
        (b"\xff\xfe\xff", "header"),
        (b"[" * 100_000, "header"),
        (b'{"x":' * 50_000, "header"),
        (b'{"x": {"shape": [1' + b"0" * 5000 + b"]}}", "header"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_header_that_lies(tmp_path, header, told):
    assert told in refused(read_all, made(tmp_path / "a.safetensors", header, bytes(8)))


@pytest.mark.parametrize("length", [2**63 + 1, 2**64 - 1, 10**8 + 1, 10**6, 300])
def test_a_header_longer_than_the_file(tmp_path, length):
    assert "truncated" in refused(read_all, made(tmp_path / "a.safetensors", x(), bytes(8), length))


def test_a_header_beyond_all_measure(tmp_path):
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as f:  # a file with a hole: it takes no room
        f.write((200_000_000).to_bytes(8, "little"))
        f.truncate(300_000_000)
    assert "claims 200000000" in refused(read_all, path)


def test_empty_tensors_may_lie_anywhere(tmp_path):
    header = {
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "a": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]},
        "c": {"dtype": "F16", "shape": [0], "data_offsets": [8, 8]},
    }
    assert read_all(made(tmp_path / "a", header, bytes(8)))["a"].shape == (0, 3)


def test_every_truncation_of_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        refused(read_all, path)
    path.write_bytes(data + b"\0")
    assert "has" in refused(read_all, path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 1300),
)
@example([(0, 0)], 1300)
def test_a_damaged_safetensors_loads_or_is_refused_in_one_line(tmp_path, flips, length):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    data = bytearray(path.read_bytes())
    for place, value in flips:
        data[place % len(data)] = value
    path.write_bytes(data[:length])
    try:
        read_all(path)
    except UserError as e:
        assert len(str(e).splitlines()) == 1 and str(path) in str(e)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_for_a_header(tmp_path, value):
    for header in (
        value,
        {"x": value},
        x(shape=value),
        x(data_offsets=value),
        x(dtype=value),
        {"__metadata__": value},
    ):
        try:
            read_all(made(tmp_path / "a", header, bytes(8)))
        except UserError as e:
            assert len(str(e).splitlines()) == 1


def test_a_file_that_becomes_shorter_or_goes_while_it_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    tensors = read_safetensors(path)
    path.write_bytes(path.read_bytes()[:-4])
    refused(lambda _: [t.read() for t in tensors.values()], path)
    path.unlink()
    refused(lambda _: tensors["weight"].read(), path)
    refused(read_safetensors, path)


# ---- GGUF (models are in test_weights.py) ------------------------------------------------------------------------------


def write_gguf(path, tensors, **fields):
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in fields.items():
        {
            int: writer.add_int64,
            float: writer.add_float64,
            str: writer.add_string,
            bool: writer.add_bool,
            list: writer.add_array,
        }[type(value)](key, value)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


FIELDS = {
    "number": -3,
    "real": 0.1,
    "text": "naïve 東京",
    "yes": True,
    "words": ["a", "", "é"],
    "numbers": [1, -2, 3],
    "reals": [0.5, 1.5],
}


def test_what_gguf_writes_is_read(tmp_path):
    path, noise = (
        tmp_path / "a.gguf",
        np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32),
    )
    Q = gguf.GGMLQuantizationType
    kinds = [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1]
    write_gguf(
        path,
        {kind.name: (noise, kind) for kind in kinds} | {"row": (noise[0, :5], Q.F32)},
        **FIELDS,
    )
    fields, tensors = read_gguf(path)
    assert fields == {"general.architecture": "llama", **FIELDS}
    theirs = gguf.GGUFReader(path)
    assert [t.name for t in theirs.tensors] == list(tensors)
    for t in theirs.tensors:
        mine = tensors[t.name]
        assert mine.dtype == torch.float32 and mine.shape == (mine.read().shape) == (
            (5,) if t.name == "row" else (6, 64)
        )
        assert np.array_equal(
            mine.read().numpy(), gguf.dequantize(t.data, t.tensor_type).astype(np.float32)
        )


def test_every_truncation_of_gguf(tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(path, {"x": (np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.F32)}, **FIELDS)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        refused(read_gguf, path)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=4))
@example([(23, 255)])  # 2^64 fields
@example([(15, 255)])  # 2^64 tensors
def test_a_damaged_gguf_is_read_or_refused_in_one_line(tmp_path, flips):
    path = tmp_path / "a.gguf"
    write_gguf(
        path,
        {
            "x": (np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.F32),
            "y": (np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.Q8_0),
        },
        **FIELDS,
    )
    data = bytearray(path.read_bytes())
    for place, value in flips:
        data[place % len(data)] = value
    path.write_bytes(data)
    try:
        for t in read_gguf(path)[1].values():
            assert t.read().shape == t.shape
    except UserError as e:
        assert len(str(e).splitlines()) == 1 and str(path) in str(e)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"hello, this is no model",
        b"GGUF" + bytes(40),
        b"GGUF\0\0\0\3" + bytes(40),
        bytes(1000),
    ],
    ids=str,
)
def test_no_gguf(tmp_path, content):
    (tmp_path / "a.gguf").write_bytes(content)
    assert "no GGUF file" in refused(read_gguf, tmp_path / "a.gguf")
    refused(read_gguf, tmp_path)
    refused(read_gguf, tmp_path / "none.gguf")


def test_a_kind_that_cannot_be_dequantised(tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(path, {"x": (np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.F32)})
    data = path.read_bytes()
    kind, begin = (0).to_bytes(4, "little") + bytes(8), data.index(b"x\2\0\0\0") + 21
    assert data[begin : begin + 12] == kind
    path.write_bytes(
        data[:begin] + int(gguf.GGMLQuantizationType.I32).to_bytes(4, "little") + data[begin + 4 :]
    )
    tensors = read_gguf(path)[1]
    assert "I32" in refused(lambda _: tensors["x"].read(), path)


def test_gguf_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"minseal\[weights\]"):
        read_gguf(tmp_path / "a.gguf")


# ---- whole files or none -----------------------------------------------------------------------------------------------


class Stop(BaseException):
    """Like Ctrl-C."""


def fail(error):
    def write(path):
        path.write_text("half")
        raise error

    return write


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("two\nlines"),
        Stop(),
        KeyError("a bug"),
        UserError("not this"),
    ],
    ids=repr,
)
def test_all_files_or_none(tmp_path, error):
    expected = UserError if isinstance(error, (OSError, RuntimeError)) else type(error)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").write_text("mine")
    for folder in ("new", "old"):
        with pytest.raises(expected) as e:
            write_folder(
                tmp_path / folder, {"a": lambda path: path.write_text("whole"), "b": fail(error)}
            )
        assert expected is not UserError or len(str(e.value).splitlines()) == 1
    with pytest.raises(expected):
        write_whole({tmp_path / "old" / "a": fail(error)})
    assert [p.name for p in tmp_path.iterdir()] == ["old"] and [
        p.name for p in (tmp_path / "old").iterdir()
    ] == ["a"]
    assert (tmp_path / "old" / "a").read_text() == "mine"


def test_a_folder_and_what_was_in_it(tmp_path):
    write_folder(tmp_path / "a" / "b", {"x.json": write_json({"é": [1, 2.5, None]})})
    assert read_json(tmp_path / "a" / "b" / "x.json") == {"é": [1, 2.5, None]}
    write_folder(tmp_path / "a" / "b", {"y.json": write_json({})})
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["x.json", "y.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"3", b"null", b"{", b"\xff", b"[" * 100_000, b'{"x": ' + b"1" * 5000 + b"}"],
    ids=lambda c: repr(c[:9]),
)
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    assert "a.json" in refused(read_json, tmp_path / "a.json")
    refused(read_json, tmp_path)
    refused(read_json, tmp_path / "none")
