"""`minseal run verify`: no passages, no exam. The model invents, a checker says what is right.

for each round:
    the model invents people, writes a passage on each, and notes on every passage
    a checker keeps the lines that state, rightly, what follows from the passage
    the model learns to write such passages and, after them, these lines
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..config import mix_seed
from ..files import UserError
from ..lab.lab import Lab, experiment
from ..lora import merge_state
from ..outer import OuterConfig
from ..sample import sample
from ..selfedit import Document
from ..tasks.grammar import read_passages
from ..tasks.people import FIRST, PersonPassage
from .checkers import erring, exact, judge, keep, lines_of, tally
from .improvers import fit
from .passages import PassageConfig, people, try_prompts
from .verify_report import MOST_TRIES, REPORT, Texts, count, write_again

ARMS = CHECKED, UNCHECKED, ERRING = "verified", "unchecked", "erring checker"


@dataclass(frozen=True)
class VerifyConfig(PassageConfig):
    """Invent, write notes, check, learn; beside it without a checker, and with one that errs."""

    eval_contexts: int | None = 48  # held-out contexts
    other_prompts: tuple[str, ...] | None = None  # measured untrained, too; "none" or the usual
    inventions: int = 64  # passages that the model begins in a round; some cannot be read
    keep: Literal["once", "all", "best"] = "once"  # which right lines: see experiments/checkers.py
    errors: float = 0.1  # share of its verdicts that the erring checker turns round
    unchecked_rounds: int = 10  # of the unchecked arm, if these are more: it falls slowly
    tries: int = 32  # self-edits of each held-out passage: what do 1, 2, 4, ... of them state?
    outer: OuterConfig = OuterConfig(rounds=4, contexts=32, samples=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(inventions=1, errors=0, tries=1, unchecked_rounds=0)
        self.outer.at_least(rounds=1)
        for name, most in ("tries", MOST_TRIES), ("errors", 1):
            if not (value := getattr(self, name)) <= most:
                raise UserError(f"{name} is {value:g}; expected at most {most}")
        if self.data or self.prompt != "notes":
            raise UserError("run verify has no --data, and no --prompt but notes: the toy world's")


def invent(lab: Lab, n: int, seed: int) -> list[str]:
    """The first lines of n texts. Nothing predicts a text's first letter: a capital is drawn."""
    tokenizer, rng = lab.task.tokenizer, np.random.default_rng(seed)
    capitals = [str(c) for c in rng.choice(sorted({name[0] for name in FIRST}), size=n)]
    how = dict(max_tokens=80, temperature=lab.outer.temperature, stop="\n", seed=seed)
    texts = sample(lab.policy, tokenizer, [tokenizer.begin(c) for c in capitals], **how)
    return [capital + text for capital, (text,) in zip(capitals, texts)]


def lesson(lab: Lab, passage: PersonPassage, lines: list[str]) -> Document:
    """The passage, too, carries loss: where the notes alone do, the model forgets to invent."""
    learnt = lab.task.lesson(passage, "\n".join(lines) + "\n")
    return replace(learnt, weights=(1.0,) * len(learnt.ids))


def teach(lab: Lab, config: VerifyConfig, arm: str, r: int) -> Texts:
    """One round of an arm: what was invented, with the texts on it. All arms have the same luck."""
    run, seed, outer = lab.run.under(f"{arm} {r}", loop=arm, at=r), mix_seed(lab.seed, r), lab.outer
    names, rng = {passage.id for passage in lab.held_out}, np.random.default_rng(seed)
    lines = run.step("invented", lambda: invent(lab, config.inventions, seed))
    passages = read_passages(lines, names)[: outer.contexts]
    texts = run.step("notes", lambda: lab.write_many(passages, outer.samples, (r, "notes")))
    written, kept = list(zip(passages, texts)), []
    for passage, some in written:
        samples = [lines_of(lab.task, text) for text in some]
        check = exact(passage.person)
        check = erring(check, config.errors, rng) if arm == ERRING else check
        learnt = keep(samples, check, config.keep)
        if arm == UNCHECKED:  # nobody says which text is good
            learnt = samples[rng.integers(len(samples))]
        if learnt and not any(name in line for line in learnt for name in names):
            kept.append((passage, learnt))
    run.step("counted", lambda: count(lines, names, texts, kept))
    lessons = [lesson(lab, *one) for one in kept]
    state = run.step("M-step", lambda: fit(lab.policy, lessons, outer.m_step, seed))
    merge_state(lab.policy, state)
    return written


@experiment("verify", VerifyConfig, open=people, **REPORT)
def verify(lab: Lab, config: VerifyConfig) -> None:
    """People that the model invents, notes that a grammar checks: does it teach itself?"""
    held_out, task, last = lab.held_out, lab.task, lab.outer.rounds
    stated = lambda one, contexts: judge(one.task, contexts, one.write(contexts))

    def measure(name: str, ends: bool, **declared: Any) -> None:
        trials = lab.arm(name, lambda: stated(lab, held_out), **declared)
        if ends or name.startswith(CHECKED):
            lab.step(f"{name}, exam", lambda: lab.study(held_out, [t.text for t in trials]))
        if ends:
            many = lambda: tally(task, held_out, lab.write_many(held_out, config.tries, "many"))
            lab.step(f"{name}, many", many)

    some: Texts = []  # of the verified arm's first round
    measure("start", True, series=ARMS, at=0, rival=True)
    try_prompts(lab, config, "start", stated)
    for arm in ARMS:
        lab.reset()
        rounds = max(last, config.unchecked_rounds) if arm == UNCHECKED else last
        for r in range(1, rounds + 1):
            written = teach(lab, config, arm, r)
            some = some or written[:3]
            arms = dict(over="start", series=arm, at=r, rival=r == last)
            measure(f"{arm} {r}", r in (last, rounds), **arms)
        if arm == CHECKED:
            lab.step("before and after", lambda: write_again(lab, some))
