"""Files in and out: whole or not at all, and every complaint is a UserError of one line."""

import importlib
import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .terminal import printable

Writer = Callable[[Path], object]  # writes one file at the path that it is given


class UserError(ValueError):
    """What was handed to minseal is wrong: its one line says what was expected, and what came."""

    def __init__(self, message: str) -> None:
        if len(message) > 1000:  # what came stands in the middle, what to do at the end
            message = f"{message[:600]} ... {message[-300:]}"
        super().__init__(printable(message, one_line=True))


def first_line(error: BaseException) -> str:
    """What an error of another package says, fit for one line of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


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


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """{name: tensor} in torch's own format, mapped; never runs code of the file (weights_only)."""
    try:
        with zipfile.ZipFile(path) as file:
            if any(part.compress_type for part in file.infolist()):
                raise ValueError("its parts are packed, and cannot be mapped")
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
    write_whole({Path(path): write_tensors(tensors)})


def write_whole(writers: dict[Path, Writer]) -> None:
    """Write several files: all under temporary names, then renamed.

    A kill or a full disk never leaves half a file, and what was there before survives.
    """
    temporaries = {path: Path(f"{path}.tmp") for path in writers}
    try:
        for path, temporary in temporaries.items():
            writers[path](temporary)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except (OSError, RuntimeError) as e:  # torch.save turns a full disk into a RuntimeError
        raise UserError(f"cannot write {path} (what was there stays): {first_line(e)}") from None
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)  # there only after an error


def write_folder(folder: str | Path, writers: dict[str, Writer]) -> None:
    """Like write_whole, with file names in a folder, which is made; it goes again if that fails."""
    folder = Path(folder)
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole({folder / name: writer for name, writer in writers.items()})
    except OSError as e:  # of mkdir: write_whole raises none
        raise UserError(f"cannot make the folder {folder}: {first_line(e)}") from None
    finally:
        if new and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def write_text(text: str) -> Writer:
    return lambda path: Path(path).write_text(text, encoding="utf-8")


def write_json(data: Any) -> Writer:
    return write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_tensors(tensors: dict[str, Tensor]) -> Writer:
    return lambda path: torch.save({k: t.detach().cpu() for k, t in tensors.items()}, path)
