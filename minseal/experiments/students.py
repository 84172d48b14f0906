"""How a student gets better at learning from notes, for good: ways to change its weights.

way(student, task, what a round tried, seed)      changes the student in place
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..config import mix_seed
from ..files import UserError
from ..inner import InnerConfig, adapt
from ..model import GPT
from ..outer import ReSTEM, Tried
from ..rewards import ask
from ..selfedit import Document, SelfEdit
from ..tasks.knowledge import Knowledge

Learn = Callable[[GPT, Knowledge, Tried, int], None]
Winner = tuple[Any, str]  # a passage, and the notes on it that taught most


def nothing(*given: object) -> dict:
    """An Improve that changes nothing."""
    return {}


def winners(tried: Tried, seed: int) -> list[Winner]:
    """The best self-edit of each context; none where all score alike."""
    rng = np.random.default_rng(seed)
    return [(c, t.text) for c, trials in tried for t in ReSTEM().choose(trials, rng)]


@dataclass(frozen=True)
class TowardsWinners:
    """A step towards the mean of the winning adapters (Reptile, arXiv 1803.02999)."""

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
    """Expert iteration: what the student answers rightly with the notes in view, it learns.

    in_view: with the notes before the question; otherwise closed book, beside the notes: how an
    answer out of view goes with a note. That also teaches the round's people, for good.
    """

    inner: InnerConfig  # as in an M-step
    in_view: bool
    n: int = 4  # answers to each question; of equal ones one counts

    def __call__(self, student: GPT, task: Knowledge, tried: Tried, seed: int) -> None:
        tokenizer, documents = task.tokenizer, []
        for passage, text in winners(tried, seed):
            asked = [task.asked(passage, question) for question, _ in passage.questions]
            view = [tokenizer.begin(f"{text.strip()}\n{question}") for question in asked]
            (told,) = ask(student, task, [view], self.n, 1.0, mix_seed(seed, passage.id))
            right = {
                (i, answer)
                for answers in zip(*told)
                for i, grade in enumerate(task.grade(passage, list(answers)))
                for answer in [answers[i]]
                if grade == 1
            }
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
