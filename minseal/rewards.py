"""Rewards: what the outer loop sees of one self-edit. A reward is a function.

    reward(student, task, contexts, adapters) -> an Outcome for each context

adapters[k] was trained on a self-edit of contexts[k]; they are attached to the student already, for
rewards that look at them. None: the student has none.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .inner import losses
from .lora import Adapters
from .model import GPT
from .sample import sample
from .selfedit import Task


@dataclass
class Outcome:
    """What came of one adapter."""

    reward: float
    answers: list[str] = field(default_factory=list)
    grades: list[float] = field(default_factory=list)


Reward = Callable[[GPT, Task, list[Any], Adapters | None], list[Outcome]]


def exam(
    student: GPT,
    task: Task,
    contexts: list[Any],
    adapters: Adapters | None = None,
    in_context: bool = False,
) -> list[Outcome]:
    """The paper's reward: the share of the exam that is answered right, the context out of sight.

    in_context: the context in front of each question, for the upper end of the ladder.
    """
    exams = [task.exam(context, in_context) for context in contexts]
    outcomes = []
    for context, given in zip(contexts, ask(student, task, exams)):
        answers = [answer for (answer,) in given]
        grades = task.grade(context, answers)
        outcomes.append(Outcome(float(np.mean(grades)), answers, grades))
    return outcomes


def ask(
    student: GPT,
    task: Task,
    exams: list[list[list[int]]],
    n: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[list[str]]]:
    """n answers to each question of each exam; if there are adapters, exams[k] is that of k."""
    if student.n_adapters not in (None, len(exams)):
        raise ValueError(f"{student.n_adapters} adapters cannot sit {len(exams)} exams")
    most = max(len(questions) for questions in exams)
    # Adapters need equal groups of rows: a shorter exam is filled up with its last question.
    prompts = [
        q for questions in exams for q in questions + questions[-1:] * (most - len(questions))
    ]
    how = dict(temperature=temperature, stop=task.stop, seed=seed)
    texts = sample(student, task.tokenizer, prompts, n, task.answer_tokens, **how)
    answers = [[text.strip() for text in of_one] for of_one in texts]
    return [answers[i * most : i * most + len(exam)] for i, exam in enumerate(exams)]


@torch.no_grad()
def likelihood(
    student: GPT, task: Task, contexts: list[Any], adapters: Adapters | None = None
) -> list[Outcome]:
    """The geometric mean of the probabilities of the right answers' tokens, context out of sight.

    Paper: the share of right answers. Here, if asked for, a finer reward: with five questions, of
    which a small model answers one, most self-edits of a context have the same share.
    """
    loss = losses(
        student, [[[d] for d in task.right_answers(context)] for context in contexts]
    )  # (K,)
    return [Outcome(value) for value in torch.exp(-loss).tolist()]


REWARDS: dict[str, Reward] = {"exam": exam, "likelihood": likelihood}
