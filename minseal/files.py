"""Tensors on disk: whole files or none, safetensors in and out, GGUF in."""

import json
import math
import os
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PICKLE = "a pickle can run code when it is read, so it is refused; save the model again with transformers, safe_serialization=True"


def write_whole(writers):
    """{path: function(temporary path) that writes it}: all under temporary names, then renamed.

    A kill or a full disk never leaves half a file, and what was there before survives. Raises UserError if it cannot be written.
    """
    temporaries = {path: Path(f"{path}.tmp") for path in writers}
    try:
        for path, temporary in temporaries.items():
            writers[path](temporary)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except (OSError, RuntimeError) as e:  # torch.save turns a full disk into a RuntimeError
        raise UserError(
            f"cannot write {path}: {first_line(e)}; what was there before is untouched"
        ) from None
    finally:
        for temporary in temporaries.values():
            if temporary.exists():  # only after an error
                temporary.unlink()


def write_folder(folder, writers):
    """Like write_whole, {file name: function} into a folder, which is made; if that fails, the folder goes again."""
    folder = Path(folder)
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make the folder {folder}: {e}") from None
    try:
        write_whole({folder / name: writer for name, writer in writers.items()})
    finally:
        if new and not any(folder.iterdir()):
            folder.rmdir()


def write_json(data):
    """A writer for write_whole."""
    return lambda path: Path(path).write_text(
        json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_text(path):
    """A file of UTF-8 text, whole."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # Windows likes to put a mark in front
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected a file") from None
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read {path} as text in UTF-8: {first_line(e)}") from None


def read_json(path, once=False):
    """The JSON object in a file. once: refuse a key that stands twice in an object."""
    data = parse_json(read_text(path), path, once)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def parse_json(text, where, once=False):
    """Any JSON value. once: as in read_json. Raises UserError, in the name of `where`."""
    try:
        return json.loads(text, object_pairs_hook=_object_of if once else None)
    except RecursionError:
        raise UserError(f"cannot read {where} as JSON: nested too deep") from None
    except ValueError as e:  # also a number of thousands of digits
        raise UserError(f"cannot read {where} as JSON: {first_line(e)}") from None


def _object_of(pairs):
    data = {}
    for key, value in pairs:
        if key in data:  # json would keep the last of two without a word
            raise ValueError(f"{key!r} stands in it twice")
        data[key] = value
    return data


def first_line(error):
    """What an error of another package says, fit for one line of ours."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


# ---- torch's own format ----------------------------------------------------------------------------------------------


def save_tensors(path, tensors):
    """Write {name: tensor} to one file."""
    write_whole(
        {
            Path(path): lambda temporary: torch.save(
                {k: v.detach().cpu() for k, v in tensors.items()}, temporary
            )
        }
    )


def load_tensors(path):
    """{name: tensor} from a file, mapped: read when they are used. Never runs code from it (weights_only). Raises UserError if it is damaged."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except Exception as e:  # torch.load knows a dozen errors for a file that is none of its own
        raise UserError(
            f"{path} is damaged or no checkpoint ({type(e).__name__}: {first_line(e)}): make or fetch it again"
        ) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in tensors.items()
    ):
        raise UserError(f"{path} is no checkpoint: expected names with tensors")
    return tensors


# ---- safetensors -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet."""

    shape: tuple
    dtype: torch.dtype
    read: object  # function () -> tensor


def read_safetensors(path):
    """{name: Stored} of a safetensors file: 8 bytes with the header's length, the header as JSON, then the bytes of the tensors.

    Every claim of the header is checked before any tensor is read, since such files come from strangers. Raises UserError.
    https://github.com/huggingface/safetensors#format
    """
    try:
        size = Path(path).stat().st_size
        with open(path, "rb") as f:
            start = f.read(8)
            length = int.from_bytes(start, "little")
            header = f.read(length) if length <= min(size - 8, 100_000_000) else None
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    if len(start) < 8 or header is None:
        if (
            start[:2] == b"PK" or start[:1] == b"\x80"
        ):  # torch.save writes a zip, older ones a bare pickle
            raise UserError(f"{path} is a pickle, not safetensors: {PICKLE}")
        raise UserError(
            f"{path} is no safetensors file, or truncated: its header claims {length} bytes, the file has {size}"
        )
    try:
        claims = sorted(
            _claim(name, told)
            for name, told in json.loads(header).items()
            if name != "__metadata__"
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(
            f"{path} is no safetensors file: its header cannot be read ({type(e).__name__}: {first_line(e)})"
        ) from None
    tensors, here = {}, 0
    for begin, end, name, shape, dtype in claims:
        if dtype not in DTYPES:
            raise UserError(
                f"{path}: {name!r} is of type {dtype!r}; expected one of {', '.join(DTYPES)}"
            )
        if begin != here or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise UserError(
                f"{path}: {name!r} of shape {shape} in {dtype} cannot lie at bytes {begin} to {end}: it overlaps another, leaves a gap, or has another size"
            )
        tensors[name], here = (
            Stored(
                shape, DTYPES[dtype], partial(_read, path, 8 + length + begin, shape, DTYPES[dtype])
            ),
            end,
        )
    if 8 + length + here != size:
        raise UserError(
            f"{path} is truncated or damaged: its header describes {8 + length + here} bytes, the file has {size}"
        )
    return tensors


def _claim(name, told):
    (begin, end), shape = told["data_offsets"], tuple(told["shape"])
    if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
        raise ValueError(f"{name!r} has other sizes than whole numbers from 0")
    return begin, end, name, shape, str(told["dtype"])


def _read(path, offset, shape, dtype):
    """Straight from the file into the tensor's own memory: nothing is held twice."""
    try:
        tensor = torch.empty(shape, dtype=dtype)
        with open(path, "rb") as f:
            f.seek(offset)
            if f.readinto(tensor.view(-1).view(torch.uint8).numpy()) == tensor.nbytes:
                return tensor
        raise OSError("it became shorter while it was read")
    except (OSError, RuntimeError) as e:  # RuntimeError: no room
        raise UserError(f"cannot read {path}: {first_line(e)}") from None


def read_shards(folder):
    """{name: Stored} of a folder with one safetensors file, or several and model.safetensors.index.json, which says what lies where."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if (folder / "model.safetensors").is_file():
            return read_safetensors(folder / "model.safetensors")
        if pickles := sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*")):
            raise UserError(f"{folder} holds {pickles[0].name} and no model.safetensors: {PICKLE}")
        raise UserError(f"{folder} holds no model.safetensors")
    file_of = read_json(index).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(file, str) for file in file_of.values()):
        raise UserError(f"{index} has no weight_map from tensors to files")
    for file in file_of.values():
        if "\0" in file or Path(file).name != file or file == "..":
            raise UserError(f"{index} points outside its folder: {file!r}")
        if not (folder / file).is_file():
            raise UserError(f"{folder} lacks the shard {file!r}, which {index.name} names")
    tensors = {}
    for file in dict.fromkeys(file_of.values()):
        shard = read_safetensors(folder / file)
        if wrong := set(shard) ^ {name for name, named in file_of.items() if named == file}:
            raise UserError(f"{folder / file} and {index.name} disagree about {min(wrong)!r}")
        tensors |= shard
    return tensors


def write_safetensors(tensors):
    """A writer for write_whole: {name: tensor} to a safetensors file that transformers and peft read. Holds one tensor more at a time."""
    names = {dtype: name for name, dtype in DTYPES.items()}

    def write(path):
        header, here = {"__metadata__": {"format": "pt"}}, 0
        for name, t in tensors.items():
            header[name] = {
                "dtype": names[t.dtype],
                "shape": list(t.shape),
                "data_offsets": [here, here + t.nbytes],
            }
            here += t.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
        with open(path, "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for t in tensors.values():
                f.write(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())

    return write


# ---- GGUF ------------------------------------------------------------------------------------------------------------

NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # GGUF's types of values, as codes of struct
STRING, ARRAY = 8, 9


def read_gguf(path):
    """({key: value}, {name: Stored}) of a GGUF file; read() dequantises to float32. The file is mapped, not held. Raises UserError.

    The header is read here: the reader of the package gguf goes on past the end of a truncated file. Its tables and dequantize() serve us.
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    try:
        import gguf
    except ImportError:
        raise UserError(
            "reading GGUF needs the package gguf: pip install 'minseal[weights]'"
        ) from None
    try:
        data, here = (
            np.asarray(np.memmap(path, mode="c")),
            0,
        )  # copy on write: torch wants writable memory

        def take(n):
            nonlocal here
            if n > len(data) - here:
                raise ValueError(f"it ends after {len(data)} bytes, in the midst of its header")
            here += n
            return data[here - n : here].tobytes()

        def number(code):
            return struct.unpack(f"<{code}", take(struct.calcsize(code)))[0]

        def value(kind):
            if kind == STRING:
                return take(number("Q")).decode()
            if kind != ARRAY:
                return number(NUMBERS[kind])
            kind, n = number("I"), number("Q")
            if kind in NUMBERS:
                return list(
                    struct.unpack(f"<{n}{NUMBERS[kind]}", take(n * struct.calcsize(NUMBERS[kind])))
                )
            return [value(kind) for _ in range(n)]

        if take(4) != b"GGUF" or number("I") not in (2, 3):
            raise ValueError("expected version 2 or 3, in little-endian order")
        n_tensors, n_fields = number("Q"), number("Q")
        fields, told, tensors = {}, {}, {}
        for _ in range(n_fields):
            fields.setdefault(value(STRING), value(number("I")))
        for _ in range(n_tensors):
            name, n_dims = value(STRING), number("I")
            shape = tuple(number("Q") for _ in range(n_dims))[
                ::-1
            ]  # GGUF counts the fastest dimension first
            told[name] = shape, gguf.GGMLQuantizationType(number("I")), number("Q")
        align = fields.get("general.alignment", 32)
        if type(align) is not int or align < 1:
            raise ValueError(f"its alignment is {align!r:.60}")
        start = end = -(-here // align) * align
        for name, (shape, kind, offset) in sorted(told.items(), key=lambda item: item[1][2]):
            block, size = gguf.GGML_QUANT_SIZES[kind]  # `block` values lie in `size` bytes
            begin, end_before, end = (
                start + offset,
                end,
                start + offset + math.prod(shape) // block * size,
            )
            if begin < end_before or end > len(data) or min(shape) < 1 or shape[-1] % block:
                raise ValueError(
                    f"{name!r} of shape {shape} cannot lie at bytes {begin} to {end} of {len(data)}"
                )
            tensors[name] = Stored(
                shape,
                torch.float32,
                partial(_dequantise, gguf, path, name, data[begin:end], kind, shape),
            )
        if len(told) < n_tensors or len(fields) < n_fields:
            raise ValueError("a name is there twice")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        ArithmeticError,
        RecursionError,
        struct.error,
    ) as e:
        raise UserError(
            f"{path} is damaged, or no GGUF file ({type(e).__name__}: {first_line(e)})"
        ) from None
    return fields, tensors


def _dequantise(gguf, path, name, data, kind, shape):
    """Bytes -> (shape) float32."""
    try:
        return torch.from_numpy(
            gguf.dequantize(data.reshape(*shape[:-1], -1), kind).astype(np.float32, copy=False)
        ).view(shape)
    except NotImplementedError:
        raise UserError(
            f"{path}: {name!r} is stored as {kind.name}, which the package gguf cannot turn into numbers"
        ) from None
