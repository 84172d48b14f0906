"""GGUF files, through the package `gguf`: tensors come out as float32, whatever they lie in."""

import re
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import make_config
from ..files import UserError, first_line, need
from ..model import GPTConfig, rope_frequencies
from .families import FAMILIES, GGUF_KEYS, GGUF_NAMES, Place, Source, Stored, place_of
from .tokenizers import tokenizer_of_gguf

MOST_PARTS = 2**15  # values in a header, an array counted as one; the largest Llama has 10,000
GPT2_NAMES = GGUF_NAMES | {f".attn.{part}": f".attn_qkv[{i}]" for i, part in enumerate("qkv")}


def open_gguf(path: Path) -> Source:
    """A GGUF file of one of our families. Raises UserError."""
    fields, tensors = read_gguf(path)
    kind = str(fields.get("general.architecture"))
    if kind not in FAMILIES:
        raise UserError(f"{path} is a {kind!r:.60}; minseal reads {', '.join(FAMILIES)}")
    about = {key.removeprefix(f"{kind}."): value for key, value in fields.items()}
    scaling = about.get("rope.scaling.type", "none")
    if about.get("expert_count") or about.get("attention.sliding_window") or scaling != "none":
        raise UserError(f"{path} has experts, a sliding window or rope scaling: not minseal's GPT")
    settings = FAMILIES[kind].settings
    rms = "_rms" if settings["norm"] == "rms" else ""
    keys = GGUF_KEYS | {"norm_eps": f"attention.layer_norm{rms}_epsilon"}
    values = {ours: about[theirs] for ours, theirs in keys.items() if theirs in about}
    values |= settings | {"tied": "output.weight" not in tensors}
    if "token_embd.weight" in tensors:
        values["vocab_size"] = tensors["token_embd.weight"].shape[0]
    config = make_config(values, path, keys | {"vocab_size": "token_embd.weight"})
    if about.get("rope.dimension_count", config.head_dim) != config.head_dim:
        raise UserError(f"{path} turns a part of each head by position, minseal's GPT all of it")
    if "rope_freqs.weight" in tensors:
        config = add_rope_scaling(config, tensors.pop("rope_freqs.weight").read(), path)

    def place(ours: str) -> Place:
        found = place_of(ours, GPT2_NAMES if kind == "gpt2" else GGUF_NAMES)
        reordered = re.search(r"attn_([qk])\.", found.name) if kind == "llama" else None
        if reordered is None:
            return found
        return replace(found, heads=config.n_head if reordered[1] == "q" else config.n_kv_head)

    return Source(config, tensors, tokenizer_of_gguf(fields, path), place)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """({key: value}, {name: Stored}) of a GGUF file, which is mapped: read when it is used.

    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    gguf = need("gguf", "weights", what=path)
    tensors = {}
    try:
        reader = _make_reader(gguf)(path, "c")  # copy on write: torch wants writable memory
        fields = {key: field.contents() for key, field in reader.fields.items()}
        for t in reader.tensors:
            shape = tuple(int(n) for n in reversed(t.shape))  # GGUF's fastest dimension is first
            tensors[t.name] = Stored(shape, torch.float32, partial(_dequantise, path, t, shape))
    except Exception as e:  # a damaged file meets whatever NumPy has against it
        raise UserError(f"{path} is damaged, or no GGUF file: {first_line(e)}") from None
    return fields, tensors


def _make_reader(gguf: ModuleType) -> type:
    """The package's reader; no count in a file sends it beyond the end, or on for long."""
    ARRAY, STRING = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING

    class Reader(gguf.GGUFReader):
        left = MOST_PARTS

        def _get(self, offset, dtype, count=1, override_order=None):
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"its header has more than {MOST_PARTS} parts")
            order = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
            return np.frombuffer(self.data, order, int(count), int(offset))

        def _get_field_parts(self, orig_offs, raw_type):
            if raw_type != ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            kind = gguf.GGUFValueType(self._get(orig_offs, np.uint32)[0])
            n, begin, parts = int(self._get(orig_offs + 4, np.uint64)[0]), orig_offs + 12, []
            if kind in self.gguf_scalar_to_np:  # an array of numbers is one part
                parts.append(self._get(begin, self.gguf_scalar_to_np[kind], n))
            elif kind != STRING or n > 2**20:  # the largest vocabularies have a quarter of that
                raise ValueError("it has an array of arrays, or of a million strings")
            size, data = sum(part.nbytes for part in parts), memoryview(self.data)
            length_as = ">Q" if self.byte_order == "S" else "=Q"  # S: swapped
            while kind == STRING and len(parts) < n:
                (length,) = struct.unpack_from(length_as, data, begin + size)
                parts.append(data[begin + size + 8 :][:length])
                size += 8 + length
            return 12 + size, parts, list(range(len(parts))), [ARRAY, kind]

    return Reader


def _dequantise(path: Path, t: Any, shape: tuple[int, ...]) -> Tensor:
    try:
        numbers = need("gguf", "weights").dequantize(t.data, t.tensor_type)
    except (NotImplementedError, ValueError) as e:  # its type, or a shape of nothing
        raise UserError(f"{path}: cannot read {t.name!r}: {first_line(e)}") from None
    return torch.from_numpy(np.asarray(numbers, dtype=np.float32)).view(shape)


def add_rope_scaling(config: GPTConfig, factors: Tensor, path: Path) -> GPTConfig:
    """The settings of Llama 3's rope scaling, which GGUF keeps as divisors of the frequencies."""
    if factors.shape != (config.head_dim // 2,):  # or head_dim may be a number of gigabytes
        raise UserError(f"{path}: rope_freqs.weight does not fit a head_dim of {config.head_dim}")
    plain = rope_frequencies(config)
    for factor in (8.0, 32.0):  # Llama 3.1, Llama 3.2
        scaled = replace(config, rope_scaling=(factor, 1.0, 4.0, 8192))
        found = plain / rope_frequencies(scaled)
        if torch.allclose(found, factors.double(), rtol=1e-4):
            return scaled
    raise UserError(f"{path}: rope_freqs.weight is not the rope scaling of Llama 3.1 or 3.2")
