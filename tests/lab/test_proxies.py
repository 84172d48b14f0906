"""Rewards without an answer key: against slow loops, and blind to the key."""

import copy
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_rewards import one_by_one, passages

from minseal import (
    InnerConfig,
    Outcome,
    OuterConfig,
    People,
    adapt,
    exam,
    outer_loop,
    toy_passages,
)
from minseal.lab.proxies import agreement, certainty, own_exam, self_certainty
from minseal.outer import MStepConfig

INNER = InnerConfig(lr=8e-3, epochs=2, rank=2, alpha=4.0)
M_STEP = MStepConfig(epochs=1, rank=2)


@torch.no_grad()
def logits(model, ids):
    """After the last of the ids, all read anew."""
    return model(torch.tensor([ids]))[0, -1]


def slow_answer(model, tokenizer, ids, choose=lambda t, row: row.argmax().item()):
    """One token after another, no cache."""
    written = []
    for t in range(24):
        written.append(choose(t, logits(model, [*ids, *written])))
        if written[-1] in tokenizer.ends or "\n" in tokenizer.decode(written):
            break
    return tokenizer.decode(written).split("\n")[0].strip()


def at_answers(model, tokenizer, context):
    """A list for each question: (log-probabilities (V,) in float64, token) of the answer's."""
    out = []
    for question, _ in context.questions:
        ids, rows = tokenizer.encode(f"Question: {question} Answer:"), []
        for token in tokenizer.encode(f" {slow_answer(model, tokenizer, ids)}\n"):
            rows.append(
                (logits(model, ids)[: tokenizer.vocab_size].double().log_softmax(-1), token)
            )
            ids = [*ids, token]
        out.append(rows)
    return out


def mean_probability(answers):
    return np.mean(
        [math.prod(logs.exp()[token].item() for logs, token in rows) for rows in answers]
    )


def kl_from_uniform(answers):
    V, tokens = len(answers[0][0][0]), [logs.tolist() for rows in answers for logs, _ in rows]
    return np.mean([sum((1 / V) * (math.log(1 / V) - x) for x in logs) for logs in tokens])


def students(pretrained, reward):
    """(a context, the outcome, the student with its adapter merged), exams of 4, 3 and 2."""
    (model, tokenizer), contexts = pretrained, passages(4)
    task = People(tokenizer)
    adapters = adapt(model, [task.oracle(c) for c in contexts], INNER)
    outcomes = reward(model, task, contexts, adapters)
    truth = exam(model, task, contexts, adapters)
    assert [(o.answers, o.grades) for o in outcomes] == [(o.answers, o.grades) for o in truth]
    return list(zip(contexts, outcomes, one_by_one(model, adapters)))


@pytest.mark.parametrize(
    "reward, slow", [(certainty, mean_probability), (self_certainty, kl_from_uniform)]
)
def test_certainties_equal_a_slow_loop(pretrained, reward, slow):
    """1e-4 of it: float32, other batches, and an adapter that is merged there."""
    _, tokenizer = pretrained
    for context, outcome, alone in students(pretrained, reward):
        answers = at_answers(alone, tokenizer, context)
        assert outcome.reward == pytest.approx(slow(answers), rel=1e-4)


def test_agreement_equals_a_slow_loop(pretrained):
    """Token by token from the cumulative distribution, with the same dice."""
    (_, tokenizer), n = pretrained, 3
    dice = torch.rand(
        3 * 4 * n, 24, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )
    shares = []
    for k, (context, outcome, alone) in enumerate(students(pretrained, agreement(n, seed=7))):
        of_one = []
        for q, (question, _) in enumerate(context.questions):
            ids = tokenizer.encode(f"Question: {question} Answer:")
            answers = []
            for row in dice[(4 * k + q) * n : (4 * k + q + 1) * n]:
                pick = lambda t, x: (x.double().softmax(-1).cumsum(-1) <= row[t]).sum().item()
                answers.append(slow_answer(alone, tokenizer, ids, pick))
            of_one.append(max(Counter(answers).values()) / n)
        assert outcome.reward == pytest.approx(np.mean(of_one), abs=1e-12)
        shares += of_one
    assert 1 in shares and min(shares) < 1


def test_an_own_exam_asks_its_own_questions_and_believes_its_own_answers(pretrained):
    """Two right answers, one wrong; a context about which nothing was asked has 0."""
    _, tokenizer = pretrained
    first, second, third = passages(4)
    (asked, (gold,)), *_ = first.questions
    exams = {
        first.id: ((asked, (gold,)), (asked, ("nowhere",)), second.questions[0]),
        second.id: second.questions[:1],
        third.id: (),
    }
    for context, outcome, alone in students(pretrained, own_exam(exams)):
        right = []
        for question, (gold,) in exams[context.id]:
            ids = tokenizer.encode(f"Question: {question} Answer:")
            right.append(slow_answer(alone, tokenizer, ids) == gold)
        assert outcome.reward == pytest.approx(np.mean(right) if right else 0)


def without_key(contexts):
    """The same, but no answer is right, and none is known."""
    return [replace(c, questions=tuple((q, ("?",)) for q, _ in c.questions)) for c in contexts]


REWARDS = {
    "certainty": lambda exams: certainty,
    "self-certainty": lambda exams: self_certainty,
    "agreement": lambda exams: agreement(4),
    "own exam": own_exam,
    "answer key": lambda exams: exam,
}


@pytest.mark.parametrize("name", REWARDS)
def test_the_answer_key_changes_nothing_that_is_chosen(pretrained, name):
    """Rewards and policy to the bit; the key's own reward shows that the test can tell."""
    first, tokenizer = pretrained
    task, contexts = People(tokenizer, edit_tokens=24), toy_passages(3, 2)
    reward = REWARDS[name]({c.id: c.questions for c in contexts})
    config, seen = OuterConfig(1, 3, 2, m_step=M_STEP), []
    for known in (contexts, without_key(contexts)):
        policy = copy.deepcopy(first)
        (tried,) = outer_loop(policy, task, known, config, INNER, reward=reward)
        rewards = [(t.text, t.reward) for _, trials in tried for t in trials]
        seen.append((rewards, [p.tolist() for p in policy.parameters()]))
        right = sum(sum(t.grades) for _, trials in tried for t in trials)
        assert right == 0 if known is not contexts else right > 0
    assert (seen[0] == seen[1]) == (name != "answer key")
    assert len({r for _, r in seen[0][0]}) > 1


def test_a_student_without_questions_of_its_own_answers_none(pretrained):
    model, tokenizer = pretrained
    contexts = toy_passages(2, 0)
    reward = own_exam({c.id: () for c in contexts})
    outcomes = reward(model, People(tokenizer), contexts, None)
    assert outcomes == [
        Outcome(0.0, o.answers, o.grades) for o in exam(model, People(tokenizer), contexts)
    ]
