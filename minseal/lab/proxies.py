"""Rewards without an answer key: what can be seen of a student that answers, closed book.

The answers and grades of an Outcome are the true exam's, for the log; no reward here reads grades.
"""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..inner import Rows, cross_entropy, to_tensors
from ..lora import Adapters
from ..model import GPT
from ..rewards import Outcome, Reward, ask, exam
from ..selfedit import Document, Task
from ..tasks.passages import Exam


@torch.no_grad()
def certainty(
    student: GPT, task: Task, contexts: list[Any], adapters: Adapters | None = None
) -> list[Outcome]:
    """How probable the student finds its own greedy answers, each as a whole: the mean over them.

    The mean of log-probabilities of tokens, which is usual, ranks self-edits worse: one answer that
    the student has no idea of outweighs all that it is sure of.
    """
    outcomes = exam(student, task, contexts, adapters)
    rows = answered(task, contexts, outcomes)
    each = iter([math.exp(logs.sum().item()) for logs in log_probs(student, rows)])
    means = [float(np.mean([next(each) for _ in of_one])) for of_one in rows]
    return [replace(outcome, reward=mean) for outcome, mean in zip(outcomes, means)]


@torch.no_grad()
def self_certainty(
    student: GPT, task: Task, contexts: list[Any], adapters: Adapters | None = None
) -> list[Outcome]:
    """KL(uniform, student) in nats, the mean over the tokens of its own greedy answers.

    Paper: Intuitor (arXiv 2505.19590), over a chain of thought. Here: over answers of some tokens.
    """
    outcomes = exam(student, task, contexts, adapters)
    kl = from_uniform(student, answered(task, contexts, outcomes), task.tokenizer.vocab_size)
    return [replace(outcome, reward=nats) for outcome, nats in zip(outcomes, kl.tolist())]


def agreement(n: int, seed: int = 0) -> Reward:
    """The share of n sampled answers that give the commonest one, the mean over questions."""

    def reward(
        student: GPT, task: Task, contexts: list[Any], adapters: Adapters | None = None
    ) -> list[Outcome]:
        outcomes, exams = exam(student, task, contexts, adapters), map(task.exam, contexts)
        given = ask(student, task, list(exams), n, temperature=1.0, seed=seed)
        return [
            replace(outcome, reward=float(np.mean([majority(answers) for answers in of_one])))
            for outcome, of_one in zip(outcomes, given)
        ]

    return reward


def own_exam(exams: dict[str, Exam]) -> Reward:
    """The share of an exam that the model wrote itself. exams: of each context's id.

    A context about which it asked nothing has reward 0.
    """

    def reward(
        student: GPT, task: Task, contexts: list[Any], adapters: Adapters | None = None
    ) -> list[Outcome]:
        own = [replace(c, questions=exams[c.id] or c.questions) for c in contexts]
        scores = [outcome.reward for outcome in exam(student, task, own, adapters)]
        scores = [score if exams[c.id] else 0.0 for c, score in zip(contexts, scores)]
        outcomes = exam(student, task, contexts, adapters)
        return [replace(outcome, reward=score) for outcome, score in zip(outcomes, scores)]

    return reward


def answered(task: Task, contexts: list[Any], outcomes: list[Outcome]) -> list[Rows]:
    """For each context its exam with the student's answers, which alone carry loss."""
    encode = task.tokenizer.encode
    return [
        [
            [Document.completion(question, encode(f" {answer}\n"))]
            for question, answer in zip(task.exam(context), outcome.answers)
        ]
        for context, outcome in zip(contexts, outcomes)
    ]


def log_probs(model: GPT, rows: list[Rows]) -> list[Tensor]:
    """For each document, in order, the log-probabilities (n,) of its n tokens that carry loss."""
    ids, docs, targets, _ = (x.to(model.wte.weight.device) for x in to_tensors(rows))
    carries = targets >= 0  # (K b, T), b rows an adapter
    logs = -cross_entropy(model.head, model.hidden(ids, docs)[carries], targets[carries])  # (N,)
    return list(logs.split([sum(w != 0 for w in d.weights[1:]) for d in flat(rows)]))


def flat(rows: list[Rows]) -> list[Document]:
    """The documents of all adapters in the order in which to_tensors() lays them out."""
    return [document for mine in rows for row in mine for document in row]


def from_uniform(model: GPT, rows: list[Rows], V: int) -> Tensor:
    """KL(uniform, model) at the tokens that carry loss, in nats: (K,), each adapter's mean."""
    ids, docs, targets, _ = (x.to(model.wte.weight.device) for x in to_tensors(rows))  # (K b, T)
    carries = targets >= 0  # (K b, T), b rows an adapter
    # A padded vocabulary has rows without a token: they are cut off.
    logits = model.head(model.hidden(ids, docs)[carries])[:, :V].float()  # (N, V)
    each = -logits.log_softmax(-1).mean(-1) - math.log(V)  # (N,)
    owner = carries.view(len(rows), -1).nonzero()[:, 0]  # (N,)
    total = each.new_zeros(len(rows)).index_add(0, owner, each)  # (K,)
    return total / owner.bincount(minlength=len(rows)).clamp(min=1)  # (K,)


def majority(answers: list[str]) -> float:
    """The share of the commonest answer."""
    return Counter(answers).most_common(1)[0][1] / len(answers)
