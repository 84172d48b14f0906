"""SelfEdit: training documents and directives, and how text becomes one (or is refused)."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """Tokens to train on. `loss` says which of them carry loss (the first never does: nothing predicts it)."""

    ids: tuple
    loss: tuple

    @classmethod
    def of(cls, tokenizer, text, prompt="", carries="all", end=False):
        """prompt + text, encoded apart so that the border between them stays a border between tokens, after what every text begins with.

        carries: 'all' tokens, or only the 'completion' (the text without its prompt). end: an end-of-text token follows.
        """
        before = [*tokenizer.bos, *tokenizer.encode(prompt)]
        after = tokenizer.encode(text) + ([tokenizer.eot] if end else [])
        return cls(tuple(before + after), (carries == "all",) * len(before) + (True,) * len(after))


@dataclass(frozen=True)
class SelfEdit:
    """What the policy wrote, ready for the inner loop. Directives left out (None) fall to the inner loop's own settings."""

    documents: tuple
    lr: float | None = None
    epochs: int | None = None


class InvalidSelfEdit(ValueError):
    """The text is no self-edit; the message is the reason. Such a text has reward 0 and stays in the log."""


MAX_LINES = 30  # training lines taken from one self-edit (the paper's code, second version)
LIMITS = {"lr": (1e-6, 0.1), "epochs": (1, 50)}


def read_directives(text):
    """Optional first lines 'lr: 0.001', 'epochs: 4', 'loss: all | completion' -> ({directive: value}, the other text).

    Raises InvalidSelfEdit if a value is unreadable or outside LIMITS: a self-edit may not ask for a rate of 1e9.
    """
    directives, lines = {}, text.strip("\n").split("\n")
    while lines and (found := re.fullmatch(r"\s*(lr|epochs|loss)\s*[:=]\s*(.*?)\s*", lines[0])):
        name, value = found.groups()
        if name in directives:
            raise InvalidSelfEdit(f"directive {name} twice")
        directives[name] = _read_directive(name, value)
        lines.pop(0)
    return directives, "\n".join(lines)


def _read_directive(name, value):
    if name == "loss":
        if value not in ("all", "completion"):
            raise InvalidSelfEdit(f"loss is {value[:20]!r}; expected all or completion")
        return value
    (low, high), kind = LIMITS[name], {"lr": float, "epochs": int}[name]
    try:
        number = kind(value)
    except ValueError:
        raise InvalidSelfEdit(
            f"{name} is {value[:20]!r}; expected {'a whole number' if kind is int else 'a number'}"
        ) from None
    if not low <= number <= high:  # also refuses NaN
        raise InvalidSelfEdit(f"{name} is {value[:20]}; expected {low:g} to {high:g}")
    return number


def split_lines(text):
    """The paper's way from a text to training lines (its code, n = 1): parts between '---', one line each.

    Blank lines fall away, and so does a first line before a numbered list ('Here are some implications:').
    """
    lines = [line.strip() for part in text.split("---") for line in part.split("\n")]
    lines = [line for line in lines if line]
    if len(lines) > 1 and lines[1].startswith("1."):
        lines = lines[1:]
    return lines[:MAX_LINES]


def split_questions(text):
    """The paper's way for its self-QA prompt: cut before each 'Question n:'."""
    parts = [part.strip() for part in re.split(r"(?=Question \d+:)", text)]
    return [part for part in parts if part][:MAX_LINES]
