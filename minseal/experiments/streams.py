"""Lives of agents in the toy world: what they are told, what they are asked, how often right."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng

from ..lab.agent import Agent, Answers
from ..lab.lab import Lab
from ..outer import Trial
from ..sample import sample
from ..tasks.passages import Passage
from ..tasks.people import ATTRIBUTES, Person, draw_people, probes, question_line, write_passage

EVERY = 4  # interactions for each thing told: it, and three that stand for questions about it all
AGES = {1: 0, 8: 2, 32: 8}  # so many interactions ago -> so many things told since
LONGEST = 8  # tokens of an answer: fewer than task.answer_tokens, and enough for this world's
TOLD = ("passage", "passage", "fact", "correction")  # what is told, one after another


@dataclass(frozen=True)
class Stream(Passage):
    """What one agent is told: [(text, the questions it answers, whether it is a correction)]."""

    tells: list[tuple[str, Answers, bool]] = field(kw_only=True)


def draw_stream(id: str, n: int, seed: int) -> Stream:
    """Passages, single facts, and corrections of what was told: another value, another answer."""
    rng, tells = default_rng(seed), []
    people, known = draw_people(n, rng, strangers=True), []
    for i in range(n):
        kind, about, names = TOLD[i % len(TOLD)], i, list(ATTRIBUTES)
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
        tells.append((text, asked, kind == "correction"))
    now = {q: (a,) for _, asked, _ in tells for q, a in asked.items()}  # the newest answer counts
    text = "\n".join(text for text, *_ in tells)
    return Stream(id, "", text, tuple(now.items()), tells=tells)


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
    facts: dict[str, tuple[str, int]] = {}  # question -> (its answer now, when it was told)
    general = probes(task.tokenizer)["general knowledge"]

    def grades(asked: list[tuple[list[int], str]]) -> list[float]:
        how = dict(max_tokens=LONGEST, temperature=0, stop=task.stop)
        texts = sample(lab.policy, task.tokenizer, [ids for ids, _ in asked], **how)
        return [float(said.strip() == answer) for (said,), (_, answer) in zip(texts, asked)]

    def right(now: int, which: Callable[[int], Any], of: Sequence[Any]) -> list[float | None]:
        """After `now`, for each group the share of right answers, or None if it is empty.

        which(i): the group of what was told i-th; of: the groups.
        """
        view = "".join(f"{text}\n" for text, *_ in tells[: now + 1][-window:] if window)
        asked = [(q, a, which(at)) for q, (a, at) in facts.items() if which(at) in of]
        ids = [(task.tokenizer.begin(view + question_line(q)), a) for q, a, _ in asked]
        graded = list(zip(grades(ids), (group for *_, group in asked)))
        groups = [[grade for grade, group in graded if group == g] for g in of]
        return [float(np.mean(group)) if group else None for group in groups]

    out: dict[str, Any] = {"ages": [], "general": [], "kept": 0, "told": len(tells)}
    learnt = []
    for i, (text, answers, _) in enumerate(tells):
        facts |= {question: (answer, i) for question, answer in answers.items()}
        if agent:
            edit = agent.learn(text)
            out["kept"] += edit.kept
            asked = (f"{question_line(q)} {a}" for q, a in edit.questions.items())
            became = f"({'kept' if edit.kept else 'taken back'}: {edit.why})"
            learnt.append("\n".join([text, *asked, became]))
        out["ages"].append(right(i, lambda at: i - at, [*AGES.values()]))
        if (i + 1) % (len(tells) // 4) == 0:
            out["general"].append(float(np.mean(grades(general))))
    (out["corrected"],) = right(len(tells) - 1, lambda at: tells[at][2], [True])
    out["score"] = last_quarter(out["ages"])[-1]
    return out | {"learnt": "\n\n".join(learnt), "seconds": round(time.time() - start, 1)}


def as_trial(stream: Stream, life: dict[str, Any]) -> Trial:
    """A life as the log has it: all that was learnt is its text."""
    about = {name: value for name, value in life.items() if name != "learnt"}
    told = dict(text=life["learnt"] or None, seconds=life["seconds"], chose=about)
    return Trial(stream.id, life["score"], **told)


def last_quarter(ages: list[list[float | None]]) -> list[float]:
    """The mean share of right answers for each age in the last quarter of a life."""
    return np.nanmean(np.array(ages[-(len(ages) // 4) :], float), 0).tolist()


def over_time(lives: list[dict[str, Any]]) -> dict[int, list[float | None]]:
    """The mean over lives for each age, from the first thing told that is so old."""
    out: dict[int, list[float | None]] = {age: [] for age in AGES}
    for i, of_lives in enumerate(zip(*(life["ages"] for life in lives))):
        for (age, back), of_age in zip(AGES.items(), zip(*of_lives)):
            asked = [share for share in of_age if share is not None]
            if i >= back:
                out[age].append(float(np.mean(asked)) if asked else None)
    return out
