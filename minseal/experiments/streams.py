"""Lives of agents in the toy world: what they are told, what they are asked, how often right."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng

from ..lab.agent import Agent, Answers
from ..lab.lab import Lab
from ..sample import sample
from ..tasks.people import ATTRIBUTES, Person, draw_people, probes, question_line, write_passage

EVERY = 4  # interactions: something is told in the first, three questions are asked in the others
AGES = {1: 0, 8: 2, 32: 8}  # so many interactions ago -> so many things told since
KINDS = ("passage", "passage", "fact", "correction")  # what is told, one after another


@dataclass
class Stream:
    """What one agent is told: [(text, the questions it answers, whether it is a correction)]."""

    id: str
    tells: list[tuple[str, Answers, bool]] = field(default_factory=list)


def draw_stream(name: str, n: int, seed: int) -> Stream:
    """Passages, single facts, and corrections of what was told: another value, another answer."""
    rng, out = default_rng(seed), Stream(name)
    people, known = draw_people(n, rng, strangers=True), []
    for i in range(n):
        kind, about, names = KINDS[i % len(KINDS)], i, list(ATTRIBUTES)
        if kind == "correction":
            about, name = known[rng.integers(len(known))]
            people[about], names = changed(people[about], name, rng), [name]
        elif kind == "fact":
            names = [str(rng.choice(names))]
        words = {name: people[about].words(name) for name in names}
        text = write_passage(people[about], rng)
        if len(names) == 1:
            text = str(rng.choice(ATTRIBUTES[names[0]].facts)).format(**words[names[0]])
        known += [(about, name) for name in names if kind != "correction"]
        asked = {ATTRIBUTES[name].question.format(**w): w["t"] for name, w in words.items()}
        out.tells.append((text, asked, kind == "correction"))
    return out


def changed(person: Person, name: str, rng: Generator) -> Person:
    """The same person with another value of an attribute, which implies something else."""
    implied = ATTRIBUTES[name].implied
    others = [v for v, what in implied.items() if what != implied[person.values[name]]]
    return replace(person, values={**person.values, name: str(rng.choice(others))})


def live(lab: Lab, stream: Stream, agent: Agent | None = None, window: int = 0) -> dict[str, Any]:
    """One life: shares of right answers by age after each thing told, and what was left at last.

    window: so many texts, those told last, stand before every question.
    """
    start, tells, task = time.time(), stream.tells, lab.task
    general = [(ids, answer) for ids, answer in probes(task.tokenizer)["general knowledge"]]
    facts: dict[str, tuple[str, int]] = {}  # question -> (its answer now, when it was told)

    def right(asked: list[tuple[list[int], str]]) -> float:
        how = dict(max_tokens=task.answer_tokens, temperature=0, stop=task.stop)
        texts = sample(lab.policy, task.tokenizer, [ids for ids, _ in asked], **how)
        return float(np.mean([said.strip() == a for (said,), (_, a) in zip(texts, asked)]))

    def about(now: int, which: Callable[[int], bool]) -> list[tuple[list[int], str]]:
        view = "".join(f"{text}\n" for text, *_ in tells[: now + 1][-window:] if window)
        asked = [(q, answer) for q, (answer, at) in facts.items() if which(at)]
        return [(task.tokenizer.begin(view + question_line(q)), a) for q, a in asked]

    ages: dict[str, list[float | None]] = {str(age): [] for age in AGES}
    out: dict[str, Any] = {"ages": ages, "general": [], "kept": 0, "told": len(tells)}
    for i, (text, answers, _) in enumerate(tells):
        facts |= {question: (answer, i) for question, answer in answers.items()}
        out["kept"] += agent.learn(text).kept if agent else 0
        for age, back in AGES.items():
            asked = about(i, lambda at: at == i - back)
            ages[str(age)].append(right(asked) if asked else None)
        if (i + 1) % (len(tells) // 4) == 0:
            out["general"].append(right(general))
    out["corrected"] = right(about(len(tells) - 1, lambda at: tells[at][2]))
    out["score"] = float(np.nanmean(np.array(ages["32"][-(len(tells) // 4) :], float)))
    return out | {"seconds": round(time.time() - start, 1)}
