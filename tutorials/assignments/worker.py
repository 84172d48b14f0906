"""One function of one answer, in a process of its own that nothing can leave.

    python worker.py FILE FUNCTION [--driver DRIVER] [--trusted]

Requests come on standard input, a JSON line each: {"args": [...]}; answers go to standard output:
{"value": ...} or {"error": "..."}. Nothing is unpickled, on neither side. What the answer prints
goes to printed.txt. grade.py starts this in a folder that holds copies, and ends it.
"""

import base64

# All that an answer may import is imported while this process may still read it: nobody, whose
# rights it will have, may not read an interpreter that lies in somebody's home.
import collections
import copy
import ctypes
import dataclasses
import functools
import importlib
import itertools
import json
import math
import os
import random
import resource
import sys
import traceback
import typing
from typing import Any

import numpy as np
import torch
import torch.nn.functional

PRELOADED = collections, copy, dataclasses, functools, itertools, math, random, typing
for name in ("utf-8-sig", "latin-1", "ascii", "idna"):
    "".encode(name)
torch.set_num_threads(1)
NOBODY = 65534
DEEPEST = 20  # of nested lists
DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
    + (torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
}


def encode(value: Any, depth: int = 0) -> Any:
    """Plain data and tensors -> JSON values. Raises TypeError for anything else."""
    if depth > DEEPEST:
        raise TypeError(f"results nested more than {DEEPEST} deep")
    if type(value) in (bool, int, float, str, type(None)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"array": encode(torch.from_numpy(np.ascontiguousarray(value)))["tensor"]}
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        name = str(value.dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise TypeError(f"a tensor of {value.dtype}")
        raw = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        return {"tensor": [name, list(value.shape), base64.b64encode(raw).decode()]}
    if isinstance(value, (list, tuple)):
        return [encode(v, depth + 1) for v in value]
    if isinstance(value, dict):
        pairs = [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]
        return {"dict": pairs}
    raise TypeError(f"a {type(value).__name__}: expected tensors, numbers, texts, lists or dicts")


def decode(value: Any) -> Any:
    """encode() backwards. Raises ValueError, TypeError or KeyError if that made no such thing."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {decode(k): decode(v) for k, v in content}
    name, shape, raw = content
    flat = torch.frombuffer(bytearray(base64.b64decode(raw)) or bytearray(1), dtype=torch.uint8)
    count, size = int(np.prod(shape, dtype=object)), DTYPES[name].itemsize
    if min(shape, default=0) < 0 or (count * size != len(flat) and count):
        raise ValueError(f"a tensor of shape {shape} with {len(flat)} bytes")
    tensor = (flat if count else flat[:0]).view(DTYPES[name]).reshape(shape)
    return tensor.numpy() if kind == "array" else tensor


def isolate(seconds: int, memory: int) -> None:
    """From here on: no network, little memory, nobody's rights. What the system does not offer,
    a computer without Linux say, is left out (README.md, What students can cheat with)."""
    here = os.getpid()
    try:
        used = int(open(f"/proc/{here}/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    except (OSError, ValueError):
        pass
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if hasattr(ctypes.CDLL(None), "unshare"):
        network, user = 0x40000000, 0x10000000
        libc = ctypes.CDLL(None, use_errno=True)
        libc.unshare(network if os.getuid() == 0 else network | user)
    if os.getuid() == 0:
        resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def explain(error: BaseException, file: str) -> str:
    """The error in a line, with the last line of the answer that it came through."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    text = " ".join(str(error).split())[:300]
    where = f" (answer.py, line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def main() -> None:
    file, function, *options = sys.argv[1:]
    driver = options[options.index("--driver") + 1] if "--driver" in options else ""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    printed = os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for number in (1, 2):
        os.dup2(printed, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()

    drive = importlib.import_module(driver).drive if driver else None
    if "--trusted" not in options:
        answer({"ready": True})
        isolate(*json.loads(requests.readline()))
    else:
        answer({"ready": True})
        requests.readline()
    try:
        names: dict[str, Any] = {"__name__": "answer", "__file__": file}
        with open(file, encoding="utf-8") as source:
            exec(compile(source.read(), file, "exec"), names)
        f = names[function]
    except BaseException as error:  # SystemExit too
        problem = explain(error, file)

        def f(*args: Any) -> None:
            raise RuntimeError(f"answer.py does not load: {problem}")

    for line in requests:
        try:
            args = decode(json.loads(line)["args"])
            answer({"value": encode(drive(f, *args) if drive else f(*args))})
        except BaseException as error:
            answer({"error": explain(error, file)})


if __name__ == "__main__":
    main()
