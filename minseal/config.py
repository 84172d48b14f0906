"""Settings: frozen dataclasses whose types and comments become options and --help.

    @dataclass(frozen=True)
    class LongerConfig(Settings):
        most: int = 64  # epochs of the longest arm

gives `--most N`, with the comment as its help. A dataclass inside another one gives
`--outer.rounds`, and `--rounds` too while no other field is called so.
"""

import argparse
import difflib
import inspect
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from .files import UserError
from .terminal import complain

LARGEST = 2**63  # of a setting: beyond, torch takes no seed, and no number counts anything


@dataclass(frozen=True)
class Settings:
    """The base of all settings: the words of a Literal type only, and numbers within reason."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, expected = getattr(self, name), ""
            if get_origin(kind) is Literal and value not in get_args(kind):
                expected = f"one of {', '.join(get_args(kind))}"
            if isinstance(value, (int, float)) and not abs(value) < LARGEST:  # NaN is not, either
                expected = f"a number below {LARGEST:.0e}"
            if expected:
                told = f"{type(self).__name__}.{name} is {value!r:.60}"
                raise UserError(f"{told}; expected {expected}")

    def at_least(self, **bounds: float) -> None:
        """Refuse settings whose fields are below these bounds, or NaN; None says nothing."""
        for name, low in bounds.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                told = f"{type(self).__name__}.{name} is {value}"
                raise UserError(f"{told}; expected at least {low}")


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Which model, and where it runs."""

    model: str = ""  # a folder (minseal's own or Hugging Face's), a GGUF file, or a hub id
    device: str = "auto"  # auto, cpu or cuda; auto takes a GPU if there is one
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: as stored, if fast


def mix_seed(*parts: int | str) -> int:
    """One seed from several numbers and names, so that each step draws its own luck."""
    numbers = [zlib.crc32(p.encode()) if isinstance(p, str) else p for p in parts]
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def add_options(parser: argparse.ArgumentParser, settings: type) -> None:
    """An option for each field of a settings dataclass, and of those inside it."""
    options = list(_options(settings))
    last = [name.split(".")[-1] for name, *_ in options]
    for name, kind, default, comment in options:
        short = name.split(".")[-1]
        names = [name, short] if last.count(short) == 1 else [name]
        told = (",".join(default) or "none") if isinstance(default, tuple) else default
        words = " | ".join(get_args(kind)) + "; " if get_origin(kind) is Literal else ""
        parser.add_argument(
            *(f"--{n.replace('_', '-')}" for n in dict.fromkeys(names)),
            dest=name,
            type=_reader(kind),
            default=default,
            metavar=short.upper(),
            help=f"{words}{comment} (default: {told})".replace("%", "%%"),
        )


def build(settings: type, values: dict[str, Any], prefix: str = "") -> Any:
    """The dataclass from flat option values {'outer.rounds': 3, ...}."""
    try:
        given = {}
        for f in fields(settings):
            inside, name = type(_default(f)), prefix + f.name
            given[f.name] = (
                build(inside, values, f"{name}.") if is_dataclass(inside) else values[name]
            )
        return settings(**given)
    except ValueError as e:
        raise UserError(str(e)) from None


def from_json(kind: type, data: Any, where: object) -> Any:
    """A dataclass from what JSON holds of it; fields with a default may be left out.

    Raises UserError, in the name of `where`, for any other field and for a value of another type.
    """
    kinds, given = get_type_hints(kind), {}
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected a JSON object, got {data!r:.40}")
    for name, value in data.items():
        if name not in kinds:
            raise UserError(f"{where}: {name!r:.60} is unknown{did_you_mean(name, list(kinds))}")
        inside = [k for k in (kinds[name], *get_args(kinds[name])) if is_dataclass(k)]
        if inside and isinstance(value, dict):
            given[name] = from_json(inside[0], value, f"{where}, {name}")
        elif not _fits(value, kinds[name]):
            expected = getattr(kinds[name], "__name__", kinds[name])
            raise UserError(f"{where}: {name} is {value!r:.60}; expected {expected}")
        else:
            tuples = tuple in map(get_origin, (kinds[name], *get_args(kinds[name])))
            given[name] = tuple(value) if tuples and isinstance(value, list) else value
    if lacking := [f.name for f in fields(kind) if _is_needed(f) and f.name not in given]:
        raise UserError(f"{where}: there is no {lacking[0]}")
    try:
        return kind(**given)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None


def _is_needed(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of this type; numbers are finite, texts can be written."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in inside
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(v, inside[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, inside[1]) for v in value.values())
    if inside:  # int | None
        return any(_fits(value, k) for k in inside)
    if kind in (int, float):
        return type(value) in (int, kind) and abs(value) < LARGEST
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return False
    return kind is Any or type(value) is kind


def _options(
    settings: type, prefix: str = "", values: Any = None
) -> Iterator[tuple[str, Any, Any, str]]:
    """(dotted name, type, default, the comment on it) of each field, those inside it included."""
    kinds, comments = get_type_hints(settings), _comments(settings)
    for f in fields(settings):
        default = _default(f) if values is None else getattr(values, f.name)
        if is_dataclass(default):
            yield from _options(type(default), f"{prefix}{f.name}.", default)
        else:
            yield prefix + f.name, kinds[f.name], default, comments.get(f.name, "")


def _default(field: Field) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()


@cache  # Python parses a class's whole file to find it
def _comments(settings: type) -> dict[str, str]:
    """{field: the comment on its line}, or on the line that ends a long default."""
    pattern = r"^    (\w+): (?:[^#\n]*\(\n(?:     .*\n)*    \))?[^#\n]*  # (.*)$"
    inherited = (_comments(base) for base in reversed(settings.__bases__) if is_dataclass(base))
    own = dict(re.findall(pattern, inspect.getsource(settings), re.MULTILINE))
    return {name: told for part in (*inherited, own) for name, told in part.items()}


def _reader(kind: Any) -> Callable[[str], Any]:
    """What reads an option's text as a value of this type."""
    if get_origin(kind) is Literal:
        return lambda text: _one_of(text, get_args(kind))
    if kind is bool:
        return lambda text: _one_of(text.lower(), ("true", "false")) == "true"
    if get_origin(kind) is tuple:  # tuple[str, ...]: words with commas between
        return lambda text: tuple(
            w for w in text.replace(" ", "").split(",") if w not in ("", "none")
        )
    if type(None) in get_args(kind):  # int | None
        inside = next(k for k in get_args(kind) if k is not type(None))
        read = _reader(inside)
        if get_origin(inside) is tuple:  # "none" is no word at all
            return read
        return lambda text: None if text.lower() == "none" else read(text)
    return kind


def _one_of(text: str, words: tuple[str, ...]) -> str:
    if text not in words:
        near = did_you_mean(text, words)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(words)}{near}")
    return text


def did_you_mean(word: str, words: Sequence[str]) -> str:
    """'; did you mean --outer.lr?', or nothing."""
    inside = [w for w in words if "." in w and w.split(".")[-1] == word.lstrip("-")][:1]
    found = inside or difflib.get_close_matches(word, words, 1)
    return f"; did you mean {found[0]}?" if found else ""


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line."""

    def error(self, message: str) -> None:
        complain(f"{self.prog}: error: {message}")
        sys.exit(2)
