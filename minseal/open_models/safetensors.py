"""Safetensors files, through the package `safetensors`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..files import UserError, Writer, first_line, need, read_json
from .families import Stored

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
PICKLE = (
    "a pickle can run code when it is read, so it is refused; "
    "save the model again with transformers, safe_serialization=True"
)


def read_safetensors(path: Path) -> dict[str, Stored]:
    """{name: Stored} of one file; nothing is read but its header. Raises UserError."""
    tensors = {}
    with open_safely(path) as file:
        for name in file.keys():
            told = file.get_slice(name)
            dtype, shape = told.get_dtype(), tuple(told.get_shape())
            tensors[name] = Stored(shape, FLOATS.get(dtype, dtype), partial(_read, path, name))
    return tensors


def _read(path: Path, name: str) -> Tensor:
    # A file is mapped as long as it is open, and what was read of it counts as memory in use:
    # so it is opened for each tensor, and loading takes one tensor more than the weights.
    with open_safely(path) as file:
        return file.get_tensor(name)


@contextmanager
def open_safely(path: Path) -> Iterator:
    """The package's open file; whatever it does not like is a UserError."""
    package = need("safetensors", "weights", what=path)
    try:
        with package.safe_open(path, "pt") as file:
            yield file
    except UserError:
        raise
    except Exception as e:  # SafetensorError, OSError, and torch's own for numbers it has not
        if is_pickle(path):
            raise UserError(f"{path} is a pickle, not safetensors: {PICKLE}") from None
        raise UserError(f"cannot read {path} as safetensors: {first_line(e)}") from None


def is_pickle(path: Path) -> bool:
    """torch.save writes a zip, older ones a bare pickle."""
    try:
        with open(path, "rb") as file:
            return re.match(rb"PK|\x80", file.read(2)) is not None
    except OSError:
        return False


def read_shards(folder: Path) -> dict[str, Stored]:
    """{name: Stored} of a folder: one file, or several and the index that says what lies where."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.is_file():
        if single.is_file():
            return read_safetensors(single)
        if pickles := [*sorted(folder.glob("*.bin")), *sorted(folder.glob("*.pt*"))]:
            raise UserError(f"{folder} holds {pickles[0].name} and no {single.name}: {PICKLE}")
        raise UserError(f"{folder} holds no {single.name}")
    file_of = read_json(index).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(f, str) for f in file_of.values()):
        raise UserError(f"{index} has no weight_map from tensors to files")
    for file in file_of.values():
        if "\0" in file or Path(file).name != file or file == "..":
            raise UserError(f"{index} points outside its folder: {file!r}")
        if not (folder / file).is_file():
            raise UserError(f"{folder} lacks the shard {file!r}, which {index.name} names")
    tensors: dict[str, Stored] = {}
    for file in dict.fromkeys(file_of.values()):
        shard = read_safetensors(folder / file)
        if wrong := set(shard) ^ {name for name, named in file_of.items() if named == file}:
            raise UserError(f"{folder / file} and {index.name} disagree about {min(wrong)!r}")
        tensors |= shard
    return tensors


def write_safetensors(tensors: dict[str, Tensor], what: object) -> Writer:
    """A writer of {name: tensor} that transformers and peft read. what: for the message."""
    save_file = need("safetensors.torch", "weights", what).save_file
    error = need("safetensors", "weights", what).SafetensorError

    def write(path: Path) -> None:
        whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        try:
            save_file(whole, path, metadata={"format": "pt"})  # transformers insists on it
        except error as e:
            raise OSError(first_line(e)) from None

    return write
