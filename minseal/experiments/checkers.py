"""What `run verify` lets judge: checkers of one line, exact or erring, and what they keep."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from ..outer import Trial
from ..selfedit import InvalidSelfEdit
from ..tasks.grammar import implication_of
from ..tasks.people import ATTRIBUTES, People, Person, PersonPassage, kind_of

Check = Callable[[str], str]  # a line -> what it states, rightly; "" if nothing


def exact(person: Person) -> Check:
    """The toy world's grammar."""
    return lambda line: implication_of(line, person)


def erring(check: Check, rate: float, rng: np.random.Generator) -> Check:
    """A checker that turns this share of the verdicts round; the same line has the same one."""

    @cache
    def verdict(line: str) -> str:
        wrong, stated = rng.random() < rate, check(line)
        return ("" if stated else line) if wrong else stated

    return verdict


def keep(samples: Sequence[Sequence[str]], check: Check, how: str) -> list[str]:
    """Of the lines of a passage's samples those that shall be learnt, as `how` says.

    once: one line for each thing that is stated rightly in any sample. all: every such line.
    best: such lines of the sample that has most of them, no other's.
    """
    if how == "best":
        samples = [max(samples, key=lambda lines: len({*filter(check, lines)}), default=())]
    found: dict[str, str] = {}
    for line in (line for lines in samples for line in lines):
        if stated := check(line):
            found.setdefault(stated if how == "once" else line, line)
    return list(found.values())


def judge(task: People, passages: list[PersonPassage], texts: list[str]) -> list[Trial]:
    """A trial of each self-edit; reward: the share of implications that it states, rightly."""
    trials = []
    for passage, text in zip(passages, texts, strict=True):
        trials.append(trial := Trial(passage.id, text=text))
        try:
            lines = [note.text for note in task.read(text)[0]]
        except InvalidSelfEdit as e:
            trial.invalid = str(e)
            continue
        trial.reward = len(implied(lines, passage.person)) / len(ATTRIBUTES)
        trial.chose = {"notes": dict(Counter(kind_of(line, passage.person) for line in lines))}
    return trials


def lines_of(task: People, text: str) -> list[str]:
    """The notes of a self-edit; none if it is no self-edit."""
    try:
        return [note.text for note in task.read(text)[0]]
    except InvalidSelfEdit:
        return []


def implied(lines: list[str], person: Person) -> set[str]:
    """The attributes whose implication is among the lines."""
    return {*map(exact(person), lines)} - {""}


def tally(task: People, passages: list[PersonPassage], texts: list[list[str]]) -> dict[str, Any]:
    """right[i][j]: how many of passage i's self-edits state implication j. tokens: of one, mean."""
    right = []
    for passage, some in zip(passages, texts):
        found = [implied(lines_of(task, text), passage.person) for text in some]
        right.append([sum(name in one for one in found) for name in ATTRIBUTES])
    sizes = [len(task.tokenizer.encode(text)) for some in texts for text in some]
    return {"right": right, "tries": len(texts[0]), "tokens": float(np.mean(sizes))}
