"""Safetensors files, through the package `safetensors`."""

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
MOST_TENSORS = 2**15


def read_shards(folder: Path) -> dict[str, Stored]:
    """{name: Stored} of a folder: of model.safetensors, or of the shards that it was cut into.

    A whole file comes first, then the shards in the index beside them, as in transformers; without
    an index all shards. match() in load.py finds what is missing or too much.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    files = sorted(folder.glob("model-*.safetensors"))
    if single.is_file():
        files = [single]
    elif index.is_file():
        file_of = read_json(index).get("weight_map")
        names = list(file_of.values()) if isinstance(file_of, dict) else []
        if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
            raise UserError(f"{index}: expected a weight_map from tensors to files beside it")
        files = sorted(folder / name for name in set(names))
    if not files:
        how = "pickles can run code and are refused; save it with safe_serialization=True"
        raise UserError(f"{folder} has no {single.name} ({how})")
    tensors: dict[str, Stored] = {}
    for file in files:
        shard = read_safetensors(file)
        if twice := sorted(tensors.keys() & shard.keys()):
            raise UserError(f"{file} holds {twice[0]!r}, which another shard has")
        tensors |= shard
    return tensors


def read_safetensors(path: Path) -> dict[str, Stored]:
    """{name: Stored} of one file; nothing is read but its header."""
    tensors = {}
    with open_safely(path) as file:
        names = file.keys()
        if len(names) > MOST_TENSORS:
            raise ValueError(f"{len(names)} tensors are more than any model has")
        for name in names:
            there = file.get_slice(name)
            dtype, shape = there.get_dtype(), tuple(there.get_shape())
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
    except Exception as e:  # SafetensorError, OSError, and torch's own for numbers it has not
        raise UserError(f"cannot read {path} as safetensors: {first_line(e)}") from None


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
