"""Files in and out: whole or not at all, and every complaint is a UserError of one line."""

import importlib
import json
import math
import os
import platform
import secrets
import shutil
import stat
import time
import weakref
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .terminal import printable

try:
    import fcntl
except ImportError:  # Windows: nobody is kept out
    fcntl = None  # type: ignore[assignment]

OURS = ".minseal-"  # so begins the name of what is there for a while only
NOTE = f"{OURS}lock"  # says who has locked the folder
Writer = Callable[[Path], object]  # writes one file at the path that it is given


class UserError(ValueError):
    """What was handed to minseal is wrong: its one line says what was expected, and what came."""

    def __init__(self, message: str) -> None:
        if len(message) > 1000:  # what came stands in the middle, what to do at the end
            message = f"{message[:600]} ... {message[-300:]}"
        super().__init__(printable(message, one_line=True))


def first_line(error: BaseException) -> str:
    """What an error of another package says, fit for one line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def need(package: str, extra: str, what: object = "this") -> ModuleType:
    """The module of a package that only an extra installs; without it, a UserError says how."""
    try:
        return importlib.import_module(package)
    except ImportError:
        name, how = package.split(".")[0], f"pip install 'minseal[{extra}]'"
        raise UserError(f"{what} needs the package {name}: {how}") from None


def read_text(path: str | Path, errors: str = "strict") -> str:
    """A file of UTF-8 text, whole. errors: as in open()."""
    try:  # Windows likes to put a mark in front
        return Path(path).read_text(encoding="utf-8-sig", errors=errors)
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected a file") from None
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {path} as text in UTF-8: {first_line(e)}") from None


def read_json(path: str | Path, once: bool = False) -> dict:
    """The JSON object in a file. once: refuse a key that stands twice in an object."""
    data = parse_json(read_text(path), path, once)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def parse_json(text: str, where: object, once: bool = False) -> Any:
    """Any JSON value. once: as in read_json. Raises UserError, in the name of `where`."""
    try:
        return json.loads(text, object_pairs_hook=_object_of if once else None)
    except RecursionError:
        raise UserError(f"cannot read {where} as JSON: nested too deep") from None
    except ValueError as e:  # also a number of thousands of digits
        raise UserError(f"cannot read {where} as JSON: {first_line(e)}") from None


def _object_of(pairs: list[tuple[str, Any]]) -> dict:
    data: dict = {}
    for key, value in pairs:
        if key in data:  # json would keep the last of two without a word
            raise ValueError(f"{key!r} stands in it twice")
        data[key] = value
    return data


def load_tensors(path: str | Path, checksums: bool = False) -> dict[str, Tensor]:
    """{name: tensor} in torch's own format, mapped; never runs code of the file (weights_only).

    checksums: read it all once and compare; torch does not.
    """
    try:
        if not os.path.isfile(path):  # to open a pipe would wait for ever
            raise ValueError("there is no such file")
        with zipfile.ZipFile(path) as file:
            if any(part.compress_type for part in file.infolist()):
                raise ValueError("its parts are packed, and cannot be mapped")
            if checksums and file.testzip() is not None:
                raise ValueError("a checksum is wrong")
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        # Views of a few numbers, or none, may claim any size; nothing may grow when it is copied.
        plain = all(t.is_cpu and t.layout is torch.strided for t in tensors.values())
        size = sum(math.prod(t.shape) * t.element_size() for t in tensors.values())
        most = 2 * os.path.getsize(path)  # a tied head lies there once, under two names
    except Exception as e:  # torch.load knows a dozen errors for a file that is none of its own
        raise UserError(f"{path} is missing, damaged or no checkpoint: {first_line(e)}") from None
    if not plain or size > most or not all(type(name) is str for name in tensors):
        raise UserError(f"{path} is no checkpoint: expected names with tensors, whole in the file")
    return tensors


def save_tensors(path: str | Path, tensors: dict[str, Tensor]) -> None:
    """Write {name: tensor} to one file, in torch's own format."""
    write_folder(Path(path).parent, {Path(path).name: write_tensors(tensors)})


def write_folder(folder: str | Path, writers: dict[str, Writer]) -> None:
    """Write files of a folder, which is made, and all are on the disk when this returns.

    They are written into a new folder inside it, of a name that nobody could have made a link of,
    flushed, and then renamed over what was there: none of them if one cannot be written. Where a
    kill ends that, tidy() goes on.
    """
    at = folder = Path(folder)
    made: list[Path] = []
    try:
        made = make_folder(folder)
        tidy(folder)
        shop = folder / f"{OURS}{secrets.token_hex(8)}.tmp"
        shop.mkdir()
        with _locked(shop):
            try:
                for name, writer in writers.items():
                    at = folder / name
                    writer(shop / name)
                    # As the umask has it: some libraries write for their owner alone.
                    (shop / name).chmod(shop.stat().st_mode & 0o666)
                    flush(shop / name)
                flush(shop)
                shop = shop.rename(shop.with_suffix(".done"))  # from here on it is written
                for name in writers:
                    at = folder / name
                    os.replace(shop / name, at)
                flush(folder)
            finally:
                _settle(shop)
    except (OSError, RuntimeError) as e:  # torch.save turns a full disk into a RuntimeError
        raise UserError(f"cannot write {at} (what was there stays): {first_line(e)}") from None
    finally:
        _remove(made)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder, on the disk, too; returns it and those above it that are new, inmost first."""
    new = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for f in new:
        flush(f.parent)
    return new


def _remove(paths: list[Path]) -> None:
    """Files, and folders that are empty."""
    for path in paths:
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def real_path(path: str | Path) -> Path:
    """Where all links on the way lead, even in a circle. UserError for what is no name."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as e:
        raise UserError(f"no file {path}: {first_line(e)}") from None


def flush(path: Path) -> None:
    """A file as it is, or the names in a folder, will survive a loss of power."""
    is_folder = path.is_dir()
    with suppress(OSError) if is_folder else nullcontext():  # not every system flushes folders
        file = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def plain_only(path: str, flags: int) -> int:
    """An opener for open(): follows no link, and refuses pipes and devices, which could hang."""
    no_link = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = os.open(path, flags | no_link, 0o666)
    about = os.fstat(file)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        os.close(file)
        raise OSError("expected a plain file, got a link, a pipe or a device")
    return file


# ---- kills, and other processes ------------------------------------------------------------------


def tidy(folder: Path) -> None:
    """What killed writers left in a folder: what was whole is moved to its place, the rest goes."""
    for shop in folder.glob(f"{OURS}*.*"):
        with suppress(OSError), _locked(shop) as free:
            if free:
                _settle(shop)


def _settle(shop: Path) -> None:
    for path in shop.iterdir() if shop.suffix == ".done" else ():
        with suppress(OSError):
            os.replace(path, shop.parent / path.name)
    shutil.rmtree(shop, ignore_errors=True)


def is_empty(folder: Path) -> bool:
    """Whether there is nothing at a path, once it is tidied, but empty folders."""
    if not os.path.lexists(folder):
        return True
    if not folder.is_dir():
        return False
    tidy(folder)
    inside = [f for f in folder.iterdir() if not f.name.startswith(OURS)]
    return all(f.is_dir() and not f.is_symlink() and is_empty(f) for f in inside)


@contextmanager
def _locked(folder: Path) -> Iterator[bool | None]:
    """Lock a folder until this ends, or the process dies.

    False: it is another's. None: there are no locks on this disk or system, nobody is kept out.
    """
    if fcntl is None:
        yield None
        return
    file, got = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW), True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        got = False if isinstance(e, BlockingIOError) else None
    try:
        yield got
    finally:
        os.close(file)


class Lock:
    """A folder, made if need be, that this process alone writes while the object is in use.

    Raises UserError, which says who else does. What a process that died had locked is free.
    """

    def __init__(self, folder: Path) -> None:
        note, who = folder / NOTE, "another process"
        try:
            with ExitStack() as keep:
                keep.callback(_remove, make_folder(folder))
                if keep.enter_context(_locked(folder)) is False:
                    with suppress(OSError), open(note, errors="replace", opener=plain_only) as f:
                        who = " ".join(f.read(200).split()) or who
                    raise UserError(f"{folder} is in use by {who}: wait for it, or end it")
                _remove([note])
                keep.callback(_remove, [note])
                with open(note, "x", encoding="utf-8") as f:
                    f.write(f"process {os.getpid()} on {platform.node()} since {time.ctime()}")
                self.release = weakref.finalize(self, keep.pop_all().close)
        except OSError as e:
            raise UserError(f"cannot use the folder {folder}: {first_line(e)}") from None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


HELD: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()


def hold(folder: Path) -> Lock:
    """The lock of a folder; within a process it is shared."""
    folder = real_path(folder)
    lock = HELD.get(folder)
    if lock is None or not lock.release.alive:
        HELD[folder] = lock = Lock(folder)
    return lock


@contextmanager
def claim(out: str | Path) -> Iterator[None]:
    """A new folder for a model, ours alone meanwhile. UserError if there is anything in it."""
    folder = Path(out)
    if not (folder / NOTE).exists():  # what a kill left of a lock goes with the next one
        _refuse_what_is_there(folder)
    with hold(folder):
        _refuse_what_is_there(folder)  # another may have come between
        yield


def _refuse_what_is_there(out: Path) -> None:
    if not is_empty(out):
        raise UserError(f"{out} is there already: choose another folder, or remove it")


def write_text(text: str) -> Writer:
    # The name of a file may hold bytes that are no letters.
    return lambda path: Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(data: bytes) -> Writer:
    return lambda path: Path(path).write_bytes(data)


def write_json(data: Any) -> Writer:
    return write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_tensors(tensors: dict[str, Tensor]) -> Writer:
    return lambda path: torch.save({k: t.detach().cpu() for k, t in tensors.items()}, path)
