"""Damage to files of weights: torch's zip of a pickle and numbers, and safetensors."""

import contextlib
import io
import re
import zipfile
from random import Random

import safetensors.torch
import torch
from fuzzing.mutations import as_bytes, mutate_bytes, mutate_json


def in_zip(rng: Random, data: bytes, words: tuple, others: list) -> bytes:
    """torch's file is a zip of a pickle and numbers: one of them is damaged, the checksums fit."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        pickles = [name for name in names if name.endswith(".pkl")]
        hit = rng.choice(pickles if rng.random() < 0.85 else names)
        for name in names:
            member = old.read(name)
            if name == hit and rng.random() < 0.6 and name in pickles:
                member = other_opcodes(rng, member)
            elif name == hit:
                member = mutate_bytes(rng, member)
            new.writestr(name, member)
    return out.getvalue()


def other_opcodes(rng: Random, pickle: bytes) -> bytes:
    """A pickle with other small numbers, names and types in it."""
    pairs = [
        (b"K\x10", b"K\xff"),
        (b"K\x10", b"J\xff\xff\xff\x7f"),
        (b"K\x08", b"K\x00"),
        (b"K\x01", b"K\x00"),
        (b"K\x00", b"J\xff\xff\xff\xff"),
        (b"K\x01", b"\x8a\x08" + b"\xff" * 7 + b"\x7f"),
        (b"FloatStorage", b"LongStorage"),
        (b"FloatStorage", b"ByteStorage"),
        (b"FloatStorage", b"UntypedStorage"),
        (b"_rebuild_tensor_v2", b"_rebuild_parameter"),
        (b"cpu", b"cud"),
        (b"\x89", b"\x88"),
        (b"}", b"]"),
        (b"s", b"0"),
    ]
    for _ in range(rng.choice((1, 1, 2))):
        old, new = rng.choice(pairs)
        places = [found.start() for found in re.finditer(re.escape(old), pickle)]
        if places:
            i = rng.choice(places)
            pickle = pickle[:i] + new + pickle[i + len(old) :]
    return pickle


def other_tensors(
    tensors: dict, by_torch: bool, rng: Random, data: bytes, words: tuple, others: list
) -> bytes:
    """A checkpoint that is whole, and whose tensors are others, or no tensors."""
    tensors = dict(tensors)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(tensors) or ["x"])
        old = tensors.get(name, torch.ones(2))
        if not isinstance(old, torch.Tensor):
            continue
        dtype = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool)
        ways = [
            lambda: old * float("nan"),
            lambda: old * float("inf"),
            lambda: old[None],
            lambda: old.flatten(),
            lambda: old[:0],
            lambda: torch.ones(()),
            lambda: torch.empty(0),
            lambda: old.to(rng.choice(dtype)),
            lambda: torch.ones((1,) * rng.choice((5, 64, 70))),
            lambda: old[..., :1].clone(),
        ]
        if by_torch:
            sizes = rng.choice(((10**5, 10**5), (2**40,), old.shape, (300, 10**7)))
            ways += [
                lambda: torch.ones(1).expand(*sizes),
                lambda: torch.ones((1,) * max(old.dim(), 1)).expand(old.shape or (1,)),
                lambda: torch.empty(sizes, device="meta"),
                lambda: old.to(torch.complex64),
                lambda: old.to_sparse(),
                lambda: torch.quantize_per_tensor(old.float(), 0.1, 0, torch.qint8),
                lambda: torch.nn.Parameter(old.float()),
                lambda: rng.choice((None, 5, "x", [old], {"a": old})),
                lambda: torch.as_strided(torch.ones(4), (2, 2), (0, 1)),
            ]
        with contextlib.suppress(RuntimeError, IndexError):
            tensors[name] = rng.choice(ways)()
        luck = rng.random()
        if luck < 0.1:
            tensors.pop(name, None)
        elif luck < 0.2:
            tensors[
                rng.choice([*map(str.upper, filter(lambda n: isinstance(n, str), tensors)), ""])
            ] = old
        elif luck < 0.25 and by_torch:
            tensors[5] = old
    out = io.BytesIO()
    if not by_torch:
        return safetensors.torch.save({n: t.contiguous().clone() for n, t in tensors.items()})
    try:
        torch.save(tensors if rng.random() < 0.97 else list(tensors.values()), out)
    except Exception:  # what cannot be saved cannot be met
        return data
    return out.getvalue()


def in_header(rng: Random, data: bytes, words: tuple, others: list) -> bytes:
    """Safetensors: the JSON in front is another one, and its length fits; or bytes are others."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, data)
    n = int.from_bytes(data[:8], "little")
    header = as_bytes(mutate_json(rng, data[8 : 8 + n].decode(), words))
    return len(header).to_bytes(8, "little") + header + data[8 + n :]
