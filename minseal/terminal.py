"""The terminal: everything that minseal prints goes through say() and complain()."""

import os
import re
import sys
from contextlib import suppress

# What steers a terminal or turns the order of letters round: control characters but line breaks
# and tabs, line separators, halves of characters, Unicode's embeddings and overrides.
STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, one_line: bool = False) -> str:
    """The text with such characters spelt out: titles, ids and answers come from anywhere."""
    text = STEERING.sub(_spell, text)
    return re.sub(r"[\n\t]", _spell, text) if one_line else text


def say(text: object = "", coloured: bool = False) -> None:
    """Print, at once. coloured: the text is ours, and its colours are meant."""
    print(text if coloured else printable(str(text)), flush=True)


def complain(text: str, apart: bool = False) -> None:
    """One line to stderr; if nobody can read it, none. apart: below what a terminal shows."""
    line = printable(text, one_line=True)
    with suppress(OSError):
        line = "\n" + line if apart and sys.stderr.isatty() else line
        print(line, file=sys.stderr, flush=True)


def prepare() -> None:
    """Before anything is printed: what a stream cannot hold is spelt out, no run fails at it."""
    for name, mode, errors in (
        ("stdin", "r", "replace"),
        ("stdout", "w", "backslashreplace"),
        ("stderr", "w", "backslashreplace"),
    ):
        if getattr(sys, name) is None:  # it was closed: the next file would get its number
            setattr(sys, name, open(os.devnull, mode))
        getattr(sys, name).reconfigure(errors=errors)


def hang_up() -> None:
    """All is printed. What a closed pipe or a full disk did not take goes nowhere."""
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _spell(found: re.Match) -> str:
    return found[0].encode("unicode_escape").decode()
