"""The outer loop of two models, and ways in which the student gets better at learning from notes.

way(student, task, what a round tried, seed)      changes the student in place, for good
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..config import mix_seed
from ..files import UserError
from ..inner import InnerConfig, adapt
from ..lab.lab import Lab, summarise_round
from ..model import GPT
from ..outer import Improve, ReSTEM, Tried, outer_loop
from ..rewards import ask
from ..selfedit import Document, SelfEdit
from ..tasks.knowledge import Knowledge

Learn = Callable[[GPT, Knowledge, Tried, int], None]
Winner = tuple[Any, str]  # a passage, and the notes on it that taught most


def loop(
    lab: Lab, name: str, pair: str, teach: Improve | None = None, learn: Learn | None = None
) -> Lab:
    """The outer loop of a teacher and a student, on copies; returns the lab with those it made.

    teach: what the policy makes of a round's trials (None: ReST-EM). learn: what the student does,
    for good; None: its adapters come and go. pair: whose first trials these are.
    """
    lab = lab.but(policy=copy.deepcopy(lab.policy), student=copy.deepcopy(lab.student))
    run, student = lab.run.under(name, loop=name), lab.student

    def step(what: str, compute: Callable[[], Any]) -> Any:
        first = what.startswith("1 contexts")  # before anybody has learnt anything
        return (lab.run.under(pair, loop=pair) if first else run).step(what, compute)

    def after(r: int, tried: Tried) -> None:
        here = lab.run.under(f"{name} {r}", loop=name, round=r)
        here.step("in training", lambda: summarise_round(tried))
        if learn:

            def weights() -> dict[str, Tensor]:
                learn(student, lab.task, tried, mix_seed(lab.seed, r))
                return student.state_dict()

            student.load_state_dict(run.step(f"{r} student", weights))
        own, arm = lambda: lab.study_own(lab.held_out), dict(series=name, at=r)
        lab.arm(f"{name} {r}", own, over=f"{pair} 0", **(arm if name == pair else {}))

    how = dict(student=student, improve=teach, seed=lab.seed, step=step, on_round=after)
    outer_loop(lab.policy, lab.task, lab.train, lab.outer, lab.inner, **how)
    return lab


def nothing(*given: object) -> dict:
    """An Improve that changes nothing."""
    return {}


def winners(tried: Tried, seed: int) -> list[Winner]:
    """The best self-edit of each context; none where all score alike."""
    rng = np.random.default_rng(seed)
    return [(c, t.text) for c, trials in tried for t in ReSTEM().choose(trials, rng)]


@dataclass(frozen=True)
class TowardsWinners:
    """A step towards the mean of the winning adapters (Reptile, arXiv 1803.02999).

    One whose training fails has no update: it counts as zero.
    """

    inner: InnerConfig  # what they are trained with
    share: float = 1.0  # of the way
    at_once: int = 16

    def __call__(self, student: GPT, task: Knowledge, tried: Tried, seed: int) -> None:
        edits = [task.parse(*winner) for winner in winners(tried, seed)]
        means: dict[str, Tensor | float] = {}
        for i in range(0, len(edits), self.at_once):
            with adapt(student, edits[i : i + self.at_once], self.inner, seed) as adapters:
                for name, layer in adapters.layers.items():
                    total = sum(layer.delta(k) for k in range(len(adapters)))  # (out, in)
                    means[name] = means.get(name, 0.0) + total.detach() / len(edits)
        for name, mean in means.items():
            student.get_submodule(name).weight.data += self.share * mean


@dataclass(frozen=True)
class Answers:
    """Expert iteration: what it answers rightly with passage and notes in view, the student learns.

    in_view: with these before the question; otherwise closed book, beside the notes: how an answer
    out of view goes with a note. That also teaches the round's people, for good.
    """

    inner: InnerConfig  # as in an M-step
    in_view: bool
    n: int = 4  # answers to each question; of equal ones one counts

    def __call__(self, student: GPT, task: Knowledge, tried: Tried, seed: int) -> None:
        tokenizer, documents = task.tokenizer, []
        for passage, text in winners(tried, seed):
            asked = [task.asked(passage, question) for question, _ in passage.questions]
            read = f"{passage.text}\n{text.strip()}\n"  # the notes alone look like no text it knows
            view = [tokenizer.begin(read + question) for question in asked]
            (told,) = ask(student, task, [view], self.n, 1.0, mix_seed(seed, passage.id))
            right = set()
            for answers in zip(*told):  # one to each question
                grades = task.grade(passage, list(answers))
                right |= {(i, answers[i]) for i, grade in enumerate(grades) if grade == 1}
            before = view if self.in_view else task.exam(passage)
            for i, answer in sorted(right):
                after = tokenizer.encode(f" {answer}\n")
                documents.append(Document.completion(before[i], after))
            documents += () if self.in_view else task.parse(passage, text).documents
        if documents:
            with adapt(student, [SelfEdit(tuple(documents))], self.inner, seed) as adapters:
                if adapters.failed:
                    told = f"the student's loop: {adapters.failed[0]}"
                    raise UserError(f"{told}; try a lower --student-step.lr")
                adapters.merge()
