"""What problems are written with: luck that a secret decides, comparisons that explain, Problem."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Wrong(Exception):
    """An answer is wrong. The message says what was expected, what came, and the usual cause."""


class Luck:
    """Draws shapes, numbers and tensors: the same for the same secret and problem, else others.

    Public checks have the secret "public". Hidden ones are the same checks at a secret of the
    instructor's: there is nothing to be read in the repository.
    """

    def __init__(self, secret: str, number: str) -> None:
        digest = hashlib.sha256(f"{secret}, problem {number}".encode()).digest()
        self.rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, choices: Sequence[Any]) -> Any:
        """One of them."""
        return choices[int(self.rng.integers(len(choices)))]

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers."""
        return torch.tensor(self.rng.standard_normal(shape), dtype=dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Numbers in [0, 1)."""
        return torch.tensor(self.rng.random(shape), dtype=dtype)


# A check calls the student's function (which runs in a process of its own) as often as it likes,
# and raises Wrong. It returns None, or a number for the leaderboard.
Call = Callable[..., Any]
Check = Callable[[Call, Luck], float | None]


@dataclass(frozen=True)
class Problem:
    """One function to be filled in."""

    number: str  # "2.3"
    title: str
    function: str  # its name in answer.py
    points: int  # half of them for the public check, half for the hidden one: an even number
    seconds: float  # of computing on one core, as the handout says
    check: Check
    forbidden: tuple[str, ...] = ()  # names that may not be used, beyond those of every problem
    allowed: tuple[str, ...] = ()  # modules that may be imported, beyond those of every problem
    driver: str = (
        ""  # a module of the set whose drive(function, *args) calls it, with minseal there
    )

    @property
    def limit(self) -> float:
        """Seconds after which a check gives up."""
        return 10 + 10 * self.seconds


def close(got: Any, expected: Tensor, tolerance: float, what: str, cause: str = "") -> None:
    """Raise Wrong unless `got` is a tensor of this shape, within tolerance * (1 + |expected|).

    what: the result's name for the student. cause: the usual one of a wrong value.
    """
    if isinstance(got, np.ndarray):
        got = torch.tensor(got)
    if not isinstance(got, Tensor):
        raise Wrong(f"{what}: expected a tensor {tuple(expected.shape)}, got {brief(got)}")
    if got.shape != expected.shape:
        shapes = f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
        raise Wrong(f"{what}: {shapes}. {cause}".rstrip())
    if got.is_complex():
        raise Wrong(f"{what}: expected real numbers, got {got.dtype}")
    got, expected = got.double(), expected.double()
    if not got.isfinite().all() and expected.isfinite().all():
        places = (~got.isfinite()).nonzero()
        raise Wrong(
            f"{what}: NaN or infinite at {_index(places[0])}, {len(places)} in all. {cause}"
        )
    off = (got - expected).abs() / (1 + expected.abs())
    alike = (got == expected) | (got.isnan() & expected.isnan())
    off = torch.where(alike, torch.zeros_like(off), off.nan_to_num(torch.inf, torch.inf))
    if bool((off <= tolerance).all()):
        return
    worst = torch.nonzero(off == off.max())[0]
    there = f"expected {expected[tuple(worst)]:.6g}, got {got[tuple(worst)]:.6g}"
    message = f"{what}: off by more than {tolerance:g}: at {_index(worst)} {there}"
    if expected.dim() and len(expected) > 1:
        bad = (off > tolerance).reshape(len(off), -1).any(1)  # by the first dimension
        rows = [i for i, wrong in enumerate(bad.tolist()) if wrong]
        right = len(bad) - len(rows)
        listed = ", ".join(map(str, rows[:6])) + (", ..." if len(rows) > 6 else "")
        message += f"; along the first dimension {right} of {len(bad)} agree, not {listed}"
    raise Wrong(f"{message}. {cause}".rstrip())


def same(got: Any, expected: Any, what: str, cause: str = "") -> None:
    """Raise Wrong unless got == expected (numbers, texts, lists, dicts; tuples count as lists)."""
    if _plain(got) != _plain(expected):
        raise Wrong(f"{what}: expected {brief(expected)}, got {brief(got)}. {cause}".rstrip())


def near(got: Any, expected: float, tolerance: float, what: str, cause: str = "") -> None:
    """Raise Wrong unless `got` is a number within tolerance * (1 + |expected|); NaN meets NaN."""
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        raise Wrong(f"{what}: expected a number, got {brief(got)}")
    if expected != expected:
        right = got != got
    else:
        right = abs(got - expected) <= tolerance * (1 + abs(expected))
    if not right:
        raise Wrong(f"{what}: expected {expected:.6g}, got {got:.6g}. {cause}".rstrip())


def tuple_of(got: Any, n: int, what: str) -> list[Any]:
    """`got` as a list of n results, or Wrong."""
    if not isinstance(got, (list, tuple)) or len(got) != n:
        raise Wrong(f"{what}: expected {n} results, got {brief(got)}")
    return list(got)


def brief(value: Any) -> str:
    """A value, fit for one line."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(value: Any) -> Any:
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return value


def _index(place: Tensor) -> str:
    return str(place.tolist())
