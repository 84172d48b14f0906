"""Files: whole or not at all, and no damage gives anything but one line that names the file."""

import errno
import fcntl
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kills import kill_everywhere

from minseal import UserError, files
from minseal.files import (
    claim,
    hold,
    is_empty,
    load_tensors,
    need,
    parse_json,
    plain_only,
    read_json,
    read_text,
    save_tensors,
    write_folder,
    write_json,
    write_tensors,
    write_text,
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


def test_torch_itself_meets_a_full_disk(tmp_path):
    """A limit on the size of files stands in for the disk; torch makes a RuntimeError of it."""
    save_tensors(tmp_path / "a.pt", {"x": torch.ones(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        refused(save_tensors, tmp_path / "a.pt", {"x": torch.zeros(300_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
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


def test_what_was_there_as_a_link_is_replaced_and_never_followed(tmp_path):
    """Kind: a stranger's folder in which names that are written are links to a file of mine."""
    mine, folder = tmp_path / "mine", tmp_path / "theirs"
    mine.write_text("mine")
    folder.mkdir()
    for name in ("a", "a.tmp", ".a.tmp", ".minseal-lock", ".minseal-0.tmp", ".minseal-0.done"):
        (folder / name).symlink_to(mine)
    with hold(folder):
        write_folder(folder, {"a": write_text("new")})
    assert mine.read_text() == "mine" and (folder / "a").read_text() == "new"
    assert not (folder / "a").is_symlink()


@pytest.mark.parametrize("kind", ["link", "second name", "pipe", "folder"])
def test_what_is_appended_to_is_a_plain_file_of_its_own(tmp_path, kind):
    mine, path = tmp_path / "mine", tmp_path / "log"
    mine.write_text("mine")
    make = {"link": path.symlink_to, "second name": path.hardlink_to, "pipe": os.mkfifo}
    make.get(kind, lambda *_: path.mkdir())(path if kind == "pipe" else mine)
    with pytest.raises(OSError):  # at once: opening a pipe nobody reads would wait for ever
        open(path, "a", opener=plain_only)
    assert mine.read_text() == "mine"


def test_files_are_on_the_disk_before_they_get_their_names(tmp_path, monkeypatch):
    """Kind: a loss of power. What was written is flushed, renamed, and the folder flushed."""
    done, fsync, replace = [], os.fsync, os.replace

    def name_of(file):
        return Path(os.readlink(f"/proc/self/fd/{file}")).name

    monkeypatch.setattr(os, "fsync", lambda file: done.append(name_of(file)) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append(f"> {b.name}") or replace(a, b))
    write_folder(tmp_path / "new", {"a": write_text("1"), "b": write_tensors({})})
    assert done.pop(3).startswith(".minseal-")
    assert done == [tmp_path.name, "a", "b", "> a", "> b", "new"]


def test_a_writer_that_was_killed_is_put_right_by_the_next(tmp_path):
    """Half of its files go, all of them are kept; one that is at work is let alone."""
    for name in ("1.tmp", "2.done", "3.tmp"):
        (tmp_path / f".minseal-{name}").mkdir()
        (tmp_path / f".minseal-{name}" / f"from {name}").write_text("x")
    at_work = os.open(tmp_path / ".minseal-3.tmp", os.O_RDONLY)
    fcntl.flock(at_work, fcntl.LOCK_EX)
    write_folder(tmp_path, {"a": write_text("1")})
    assert {p.name for p in tmp_path.iterdir()} == {"a", "from 2.done", ".minseal-3.tmp"}
    os.close(at_work)
    assert not is_empty(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a", "from 2.done"}


# ---- one folder, several processes ----

HOLDER = """
import sys, time
from pathlib import Path
from minseal.files import hold
lock = hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_can_be_read_by_whom_the_umask_lets_whoever_wrote_them(tmp_path, mask, mode):
    """safetensors writes files that only their owner reads."""
    before = os.umask(mask)
    try:
        mine = lambda path: os.close(os.open(path, os.O_CREAT, 0o600))
        write_folder(tmp_path / "a", {"x.json": write_json({}), "y": mine})
    finally:
        os.umask(before)
    assert {f.stat().st_mode & 0o777 for f in (tmp_path / "a").iterdir()} == {mode}


def test_a_folder_in_use_is_refused_by_the_name_of_its_holder_until_that_is_killed(tmp_path):
    held = tmp_path / "held"
    command = [sys.executable, "-c", HOLDER, str(held)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        told = refused(hold, held)
        assert f"process {process.pid} on {platform.node()} since" in told
        refused(lambda out: claim(out).__enter__(), held)
        process.kill()
    assert [p.name for p in held.iterdir()] == [".minseal-lock"] and is_empty(held)
    with hold(held) as lock:  # what a dead process held is free
        assert str(os.getpid()) in (held / ".minseal-lock").read_text()
        assert hold(held) is lock  # within a process it is shared
    assert list(held.iterdir()) == []


def test_a_lock_and_the_folder_made_for_it_are_gone_with_the_object(tmp_path):
    lock = hold(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / ".minseal-lock").exists()
    del lock
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["fcntl", "flock"])
def test_where_there_are_no_locks_it_goes_on_without(tmp_path, monkeypatch, missing):
    """Windows has no fcntl, and some file systems of networks lock nothing."""

    def none(*args):
        raise OSError(errno.ENOTSUP, "not supported")

    if missing == "fcntl":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", none)
    with claim(tmp_path / "a"):
        write_folder(tmp_path / "a", {"x": write_text("1")})
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x"]


# ---- kills ----


def content(path):
    return path.read_bytes()


def work(folder):
    write_folder(folder, {"a": write_text("1"), "b": write_text("2")})
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b"]


def test_killed_at_any_file_operation_the_same_again_is_whole(tmp_path):
    assert kill_everywhere(Path(__file__), tmp_path) > 8
