"""Rewards against slow loops; a new reward and a new M-step are one short function each."""

import copy
import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from minseal import (
    Document,
    InnerConfig,
    Outcome,
    OuterConfig,
    People,
    SelfEdit,
    adapt,
    attach,
    exam,
    likelihood,
    merge_state,
    outer_loop,
    toy_passages,
    try_out,
)
from minseal.inner import losses
from minseal.sample import sample

INNER = InnerConfig(lr=3e-3, epochs=2, rank=2, alpha=4.0)
LONGER = InnerConfig(epochs=6, rank=4, alpha=8.0)
M_STEP = InnerConfig(lr=1e-3, epochs=4, rank=8, alpha=16.0)


def passages(seed):
    """Three, whose exams have 4, 3 and 2 questions."""
    return [replace(c, questions=c.questions[i:]) for i, c in enumerate(toy_passages(3, seed))]


def one_by_one(model, adapters):
    """A plain model for each adapter, which is merged into it. The adapters are taken off."""
    state = adapters.state()
    adapters.remove()
    models = [copy.deepcopy(model) for _ in range(len(adapters))]
    for k, alone in enumerate(models):
        merge_state(alone, {n: t[k : k + 1] if t.dim() else t for n, t in state.items()})
    return models


def slow_answers(model, tokenizer, questions):
    """One question at a time."""
    how = dict(max_tokens=24, temperature=0, stop="\n")
    return [sample(model, tokenizer, [q], **how)[0][0].strip() for q in questions]


@torch.no_grad()
def slow_log_probabilities(model, ids, after):
    """Of each token of `after` following `ids`, all read anew for each token."""
    logs = []
    for token in after:
        logs.append(model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token].item())
        ids = [*ids, token]
    return logs


# ---- exam ----


def test_the_exam_asks_each_adapter_its_own_questions(pretrained):
    """Against weights merged one adapter at a time, asked one question at a time."""
    model, tokenizer = pretrained
    task, contexts = People(tokenizer), passages(2)
    adapters = adapt(model, [task.oracle(c) for c in contexts], LONGER)
    outcomes = exam(model, task, contexts, adapters)
    for context, outcome, alone in zip(contexts, outcomes, one_by_one(model, adapters)):
        questions = [tokenizer.encode(f"Question: {q} Answer:") for q, _ in context.questions]
        answers = slow_answers(alone, tokenizer, questions)
        right = [float(a == gold) for a, (_, (gold,)) in zip(answers, context.questions)]
        assert outcome == Outcome(np.mean(right), answers, right)
    assert [len(o.grades) for o in outcomes] == [4, 3, 2]
    assert sum(o.reward for o in outcomes) > 0


def test_the_exam_of_a_plain_student_closed_book_and_with_the_passage_in_view(pretrained):
    """The tiny model reads answers off a passage and does not know them without it."""
    model, tokenizer = pretrained
    task, contexts = People(tokenizer), toy_passages(8, 1)
    closed, reading = (exam(model, task, contexts, in_context=view) for view in (False, True))
    for outcomes, view in ((closed, False), (reading, True)):
        answers = slow_answers(model, tokenizer, task.exam(contexts[3], in_context=view))
        assert outcomes[3].answers == answers
        assert outcomes[3].grades == task.grade(contexts[3], answers)
    assert np.mean([o.reward for o in reading]) > np.mean([o.reward for o in closed]) + 0.3


def test_a_question_has_the_same_answer_in_a_longer_exam(pretrained):
    """Shorter exams are filled up; the filling is neither graded nor returned."""
    model, tokenizer = pretrained
    task, contexts = People(tokenizer), passages(3)
    together = exam(model, task, contexts)
    assert together == [exam(model, task, [context])[0] for context in contexts]


# ---- likelihood ----


def test_likelihood_equals_a_slow_loop(pretrained):
    """The geometric mean over all tokens of the right answers, one question and adapter at a time.

    1e-4: float32, other batches, and an adapter that is merged there.
    """
    model, tokenizer = pretrained
    task, contexts = People(tokenizer), passages(5)
    adapters = adapt(model, [task.oracle(c) for c in contexts], INNER)
    outcomes = likelihood(model, task, contexts, adapters)
    for context, outcome, alone in zip(contexts, outcomes, one_by_one(model, adapters)):
        logs = []
        for question, (_, (answer,)) in zip(task.exam(context), context.questions):
            logs += slow_log_probabilities(alone, question, tokenizer.encode(f" {answer}\n"))
        assert outcome.reward == pytest.approx(np.exp(np.mean(logs)), abs=1e-4)
    assert max(o.reward for o in outcomes) > min(o.reward for o in outcomes) + 0.01


def test_likelihood_teaches_the_policy_too(pretrained):
    """Hardly any ties: each context has a winner, and a policy that learns."""
    model, tokenizer = pretrained
    before, task = copy.deepcopy(model), People(tokenizer, edit_tokens=60)
    config = OuterConfig(1, 4, 3, reward="likelihood", m_step=M_STEP)
    (tried,) = outer_loop(model, task, toy_passages(4, 6), config, INNER)
    for _, trials in tried:
        assert len({t.reward for t in trials}) == len({t.text for t in trials})
        assert all(0 < t.reward < 1 for t in trials if t.invalid is None)
    for margin_before, margin in zip(margins(before, task, tried), margins(model, task, tried)):
        assert margin > margin_before


@torch.no_grad()
def margins(policy, task, tried):
    """For each context, how much likelier its best self-edit is than its worst, per token."""
    out = []
    for context, trials in tried:
        trials = sorted((t for t in trials if t.invalid is None), key=lambda t: t.reward)
        worst, best = (task.lesson(context, trials[i].text) for i in (0, -1))
        loss = losses(policy, [[[worst]], [[best]]])
        out.append((loss[0] - loss[1]).item())
    return out


# ---- a new reward: the student's own confidence ----


@torch.no_grad()
def confidence(student, task, contexts, adapters=None):
    """The mean log-probability of the student's own greedy answers: no right answer is needed."""
    outcomes = exam(student, task, contexts, adapters)
    rows = [
        [
            [Document.completion(question, task.tokenizer.encode(f" {answer}\n"))]
            for question, answer in zip(task.exam(context), outcome.answers)
        ]
        for context, outcome in zip(contexts, outcomes)
    ]
    loss = losses(student, rows).tolist()
    return [replace(outcome, reward=-value) for outcome, value in zip(outcomes, loss)]


def length_of(function):
    return len(inspect.getsource(function).splitlines())


def test_a_new_reward_is_one_function_of_under_25_lines():
    assert length_of(confidence) < 25


def test_confidence_equals_a_slow_loop(pretrained):
    """1e-4: float32, other batches, and an adapter that is merged there."""
    model, tokenizer = pretrained
    task, contexts = People(tokenizer), passages(4)
    adapters = adapt(model, [task.oracle(c) for c in contexts], LONGER)
    outcomes = confidence(model, task, contexts, adapters)
    for context, outcome, alone in zip(contexts, outcomes, one_by_one(model, adapters)):
        questions, logs = task.exam(context), []
        for question, answer in zip(questions, slow_answers(alone, tokenizer, questions)):
            logs += slow_log_probabilities(alone, question, tokenizer.encode(f" {answer}\n"))
        assert outcome.reward == pytest.approx(np.mean(logs), abs=1e-4)


def test_the_outer_loop_takes_a_new_reward_as_an_argument(pretrained):
    """The trials have its rewards, and the policy comes to prefer what they reward."""
    model, tokenizer = pretrained
    before, task = copy.deepcopy(model), People(tokenizer, edit_tokens=60)
    config = OuterConfig(1, 4, 3, m_step=M_STEP)
    (tried,) = outer_loop(model, task, toy_passages(4, 6), config, INNER, reward=confidence)
    context, trials = tried[0]
    pairs = [(context, t.text) for t in trials]
    again = try_out(before, task, pairs, INNER, confidence)
    # 1e-5: float32, other groups of adapters.
    assert [t.reward for t in again] == pytest.approx([t.reward for t in trials], abs=1e-5)
    assert all(t.reward < 0 for _, trials in tried for t in trials if t.invalid is None)
    for margin_before, margin in zip(margins(before, task, tried), margins(model, task, tried)):
        assert margin > margin_before


# ---- a new M-step: GRPO ----


def grpo(policy, task, tried, seed):
    """One step of GRPO (arXiv 2402.03300) a round: each self-edit weighs its advantage."""
    lessons = []
    for context, trials in tried:
        rewards = np.array([trial.reward for trial in trials])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        for trial, advantage in zip(trials, advantages.tolist()):
            lessons.append(task.lesson(context, trial.text).weighted(advantage))
    with adapt(policy, [SelfEdit(tuple(lessons))], M_STEP, seed) as adapters:
        return adapters.state()


def test_a_new_m_step_is_one_function_of_under_25_lines():
    assert length_of(grpo) < 25


def test_grpo_makes_better_self_edits_likelier_and_worse_ones_less_likely(pretrained):
    model, tokenizer = pretrained
    before, task = copy.deepcopy(model), People(tokenizer, edit_tokens=60)
    config = OuterConfig(1, 4, 4, reward="likelihood")
    (tried,) = outer_loop(model, task, toy_passages(4, 6), config, INNER, improve=grpo)
    rises = np.array(margins(model, task, tried)) - margins(before, task, tried)
    assert (rises > 0).all() and rises.mean() > 0.05
    # As against ReST-EM, which knows only what is good: what is bad is unlearnt.
    worst = [min(trials, key=lambda t: t.reward) for _, trials in tried]
    rows = [[[task.lesson(c, trial.text)]] for (c, _), trial in zip(tried, worst)]
    with torch.no_grad():
        assert (losses(model, rows) > losses(before, rows)).all()


def test_grpo_learns_nothing_where_all_score_alike(pretrained):
    model, tokenizer = pretrained
    before, task = copy.deepcopy(model), People(tokenizer, edit_tokens=24)

    def alike(student, task, contexts, adapters):
        return [Outcome(0.0) for _ in contexts]

    config = OuterConfig(1, 2, 3)
    outer_loop(model, task, toy_passages(2, 0), config, INNER, reward=alike, improve=grpo)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters()))


def test_adapters_and_contexts_of_different_numbers_are_no_exam(pretrained):
    """Four adapters and three exams of four questions: the rows would be shared out wrongly."""
    (student, tokenizer), passages = pretrained, toy_passages(3, 0)
    with attach(student, 4) as adapters, pytest.raises(ValueError, match="4 adapters"):
        exam(student, People(tokenizer), passages, adapters)
