"""Files: whole or not at all, and no damage gives anything but one line that names the file."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minseal import UserError
from minseal.files import (
    load_tensors,
    need,
    parse_json,
    read_json,
    read_text,
    save_tensors,
    write_folder,
    write_json,
    write_whole,
)


def refused(f, path, *args):
    """The message: one line that names the file."""
    with pytest.raises(UserError) as e:
        f(path, *args)
    assert len(str(e.value).splitlines()) == 1 and str(path) in str(e.value)
    return str(e.value)


def test_a_package_that_is_not_there_is_named_with_its_extra():
    assert need("json", extra="weights") is json
    with pytest.raises(UserError) as e:
        need("no_such_package.part", extra="weights", what="model.gguf")
    line = "model.gguf needs the package no_such_package: pip install 'minseal[weights]'"
    assert str(e.value) == line


# ---- text and JSON ----


def test_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfna\xc3\xafve\r\n")  # with the mark that Windows puts in front
    assert read_text(path) == "naïve\n"
    path.write_bytes(b"\xff\xfe")
    assert "UTF-8" in refused(read_text, path)
    assert "is a folder" in refused(read_text, tmp_path)
    assert "no file" in refused(read_text, tmp_path / "none")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"3", b"null", b"{", b"\xff", b"[" * 100_000, b'{"x": ' + b"1" * 5000 + b"}"],
    ids=lambda c: repr(c[:9]),
)
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    refused(read_json, tmp_path / "a.json")
    refused(read_json, tmp_path)
    refused(read_json, tmp_path / "none")


def test_a_key_that_stands_twice(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": {"b": 1, "b": 2}}')
    assert read_json(path) == {"a": {"b": 2}}
    assert "'b' stands in it twice" in refused(read_json, path, True)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_value_comes_back(value):
    assert parse_json(json.dumps(value), "it", once=True) == value


# ---- tensors ----


def test_tensors_of_any_kind_come_back(tmp_path):
    half = torch.randn(3).bfloat16()
    tensors = {"a": torch.randn(2, 3).requires_grad_(), "b": torch.arange(4), "half": half}
    save_tensors(tmp_path / "a.pt", tensors)
    again = load_tensors(tmp_path / "a.pt")
    assert set(again) == set(tensors) and not again["a"].requires_grad
    for name, t in tensors.items():
        assert torch.equal(again[name], t) and again[name].dtype == t.dtype
    refused(load_tensors, tmp_path / "none.pt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_torch_itself_meets_a_full_disk(tmp_path):
    save_tensors(tmp_path / "a.pt", {"x": torch.ones(3)})
    (tmp_path / "a.pt.tmp").symlink_to("/dev/full")
    refused(save_tensors, tmp_path / "a.pt", {"x": torch.zeros(300_000)})
    assert load_tensors(tmp_path / "a.pt")["x"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


# ---- whole files or none ----


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
        writers = {"a": lambda path: path.write_text("whole"), "b": fail(error)}
        with pytest.raises(expected) as e:
            write_folder(tmp_path / folder, writers)
        assert expected is not UserError or len(str(e.value).splitlines()) == 1
    with pytest.raises(expected):
        write_whole({tmp_path / "old" / "a": fail(error)})
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["a"]
    assert (tmp_path / "old" / "a").read_text() == "mine"


def test_a_folder_and_what_was_in_it(tmp_path):
    write_folder(tmp_path / "a" / "b", {"x.json": write_json({"é": [1, 2.5, None]})})
    assert read_json(tmp_path / "a" / "b" / "x.json") == {"é": [1, 2.5, None]}
    write_folder(tmp_path / "a" / "b", {"y.json": write_json({})})
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["x.json", "y.json"]
    refused(write_folder, tmp_path / "a" / "b" / "x.json", {})


@pytest.mark.parametrize("what", ["a\nb", "\x1b[2J" * 9, "x" * 10**6, "\u202e" * 10**5])
def test_every_complaint_is_one_short_line_that_can_be_printed(what):
    """Whatever came stands in it: a value of a stranger, in a notebook as on the command line."""
    told = str(UserError(f"some.json: width is {what}; lower --section"))
    assert told.isprintable() and len(told) < 10_000
    assert told.startswith("some.json: width is ") and told.endswith("; lower --section")
