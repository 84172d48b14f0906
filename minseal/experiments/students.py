"""How a student gets better at learning from notes: each is an Improve of the student.

(student, task, what a round tried, seed) -> an adapter's state, to be merged into the student.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..files import UserError
from ..inner import InnerConfig, adapt
from ..model import GPT
from ..outer import ReSTEM, Tried
from ..rewards import ask
from ..selfedit import Document, SelfEdit, Task

State = dict[str, Tensor]


def winners(tried: Tried, seed: int) -> list[tuple[Any, str]]:
    """The best self-edit of each context, (context, text); none where all score alike."""
    rng = np.random.default_rng(seed)
    return [(c, t.text) for c, trials in tried for t in ReSTEM().choose(trials, rng)]


@dataclass(frozen=True)
class TowardsWinners:
    """Reptile (arXiv 1803.02999) over adapters: towards the mean of what the winners taught.

    Weights from which an inner loop has less far to go; what is about one person averages out.
    """

    inner: InnerConfig  # what the winning adapters were trained with
    share: float = 0.5  # of the way
    most: int = 16  # winners

    def __call__(self, student: GPT, task: Task, tried: Tried, seed: int) -> State:
        edits = [task.parse(*winner) for winner in winners(tried, seed)[: self.most]]
        if not edits:
            return {}
        with adapt(student, edits, self.inner, seed) as adapters:
            return mean_of(adapters.state(), self.share)


def mean_of(state: State, share: float = 1.0) -> State:
    """The state of one adapter whose update is the mean of those of K: their ranks add up."""
    out = {"scale": share * state["scale"]}
    for name, t in state.items():
        if name.endswith(".A"):
            out[name] = t.flatten(0, 1)[None] / len(t)  # (1, K R, in)
        elif name.endswith(".B"):
            out[name] = t.transpose(0, 1).flatten(1)[None]  # (1, out, K R)
    return out


@dataclass(frozen=True)
class Answers:
    """Expert iteration: the student's own answers with the notes in view, those that are right.

    in_view: they are learnt with the notes before them; otherwise closed book, beside the notes.
    """

    inner: InnerConfig  # of the M-step
    in_view: bool = True
    n: int = 4  # answers to each question

    def __call__(self, student: GPT, task: Any, tried: Tried, seed: int) -> State:
        tokenizer, documents = task.tokenizer, []
        for passage, text in winners(tried, seed):
            asked = [task.asked(passage, question) for question, _ in passage.questions]
            seen = [tokenizer.begin(f"{text.strip()}\n{question}") for question in asked]
            closed = seen if self.in_view else task.exam(passage)
            (given,) = ask(student, task, [seen], self.n, 1.0, seed)
            grades = [
                task.grade(passage, list(answers)) for answers in zip(*given)
            ]  # (n, questions)
            for i, (ids, answers) in enumerate(zip(closed, given)):
                right = {a for a, graded in zip(answers, grades) if graded[i] == 1}
                for answer in sorted(right):
                    documents.append(Document.completion(ids, tokenizer.encode(f" {answer}\n")))
            documents += () if self.in_view else task.parse(passage, text).documents
        if not documents:
            return {}
        with adapt(student, [SelfEdit(tuple(documents))], self.inner, seed) as adapters:
            if adapters.failed:
                raise UserError(f"student: {adapters.failed[0]}; try a lower --outer.m-step.lr")
            return adapters.state()
