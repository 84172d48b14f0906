"""The outer loop: winners against brute force, trials one by one, a reward seen at work."""

import copy
import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minseal import (
    Document,
    InnerConfig,
    Outcome,
    OuterConfig,
    People,
    ReSTEM,
    SelfEdit,
    Trial,
    adapt,
    outer,
    outer_loop,
    toy_passages,
    try_out,
)
from minseal.files import UserError
from minseal.sample import sample
from minseal.tasks.knowledge import split_lines

INNER = InnerConfig(lr=3e-3, epochs=2, rank=2, alpha=4.0)
M_STEP = InnerConfig(lr=1e-3, epochs=2, batch=8, rank=8, alpha=16.0)


def short_notes(tokenizer):
    return People(tokenizer, edit_tokens=24)


class AskedFor(People):
    """The share of questions among the notes, in tenths, is the number of training steps.

    So the reward can read it off.
    """

    def parse(self, context, text):
        passage = super().parse(context, text).documents[-1]
        return SelfEdit((passage,), epochs=round(10 * share_of_questions(text)))


def share_of_questions(text):
    lines = split_lines(text)
    return np.mean([line.startswith("Question:") for line in lines]) if lines else 0.0


def steps_taken(student, task, contexts, adapters):
    assert student.n_adapters == len(adapters) == len(contexts)
    return [Outcome(float(len(curve))) for curve in adapters.losses]


def any_reward(student, task, contexts, adapters):
    """One that differs among self-edits, without ties: the sum of each adapter's first tensor."""
    first = next(iter(adapters.state().values()))
    return [Outcome(float(value.sum())) for value in first]


def same_for_all(student, task, contexts, adapters):
    return [Outcome(0.5) for _ in contexts]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_seconds(trials):
    return [replace(trial, seconds=0.0) for trial in trials]


def all_trials(history):
    return [trial for tried in history for _, trials in tried for trial in trials]


# ---- who wins ----

# A reward, or None for an invalid self-edit.
rewards = st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]))


def as_trials(drawn):
    """Trials of one context, whose texts number them."""
    return [
        Trial("a", reward or 0.0, str(i), invalid="no words in it" if reward is None else None)
        for i, reward in enumerate(drawn)
    ]


def allowed(trials, select):
    """Brute force: the trials that may be chosen."""
    valid = [t for t in trials if t.invalid is None]
    if select == "random":
        return valid
    if all(a.reward == b.reward for a in trials for b in trials):
        return []
    return [t for t in valid if not any(rival.reward > t.reward for rival in valid)]


@given(st.lists(rewards, max_size=8), st.integers(0, 5))
def test_the_winners_equal_brute_force(drawn, seed):
    trials = as_trials(drawn)
    for select in ("best", "random"):
        winners = ReSTEM(select).choose(trials, np.random.default_rng(seed))
        may = allowed(trials, select)
        assert len(winners) == min(1, len(may)) and all(w in may for w in winners)
    assert ReSTEM("all-best").choose(trials, np.random.default_rng(seed)) == allowed(trials, "best")


@pytest.mark.parametrize("select, chosen", [("best", [1, 3, 4]), ("random", [0, 1, 3, 4, 6])])
def test_ties_are_broken_at_random(select, chosen):
    """Each as often as the others, within four standard errors of 6000 draws."""
    trials = as_trials([0.5, 1.0, None, 1.0, 1.0, None, 0.25])
    rng, improve = np.random.default_rng(0), ReSTEM(select)
    counts = Counter(int(improve.choose(trials, rng)[0].text) for _ in range(6000))
    p = 1 / len(chosen)
    assert sorted(counts) == chosen
    assert all(abs(counts[i] / 6000 - p) < 4 * (p * (1 - p) / 6000) ** 0.5 for i in chosen)


@pytest.mark.parametrize("drawn", [[0.5, 0.5], [0.0, None], [None, None], [1.0], []], ids=str)
@pytest.mark.parametrize("select", ["best", "all-best"])
def test_a_context_whose_self_edits_score_alike_is_skipped(drawn, select):
    assert ReSTEM(select).choose(as_trials(drawn), np.random.default_rng(0)) == []


def test_the_policy_learns_the_lessons_of_the_winners_and_no_others(pretrained):
    """The same adapter as training on these documents gives, to the bit."""
    model, tokenizer = pretrained
    task, (one, other, third) = short_notes(tokenizer), toy_passages(3, 0)
    tried = [
        (one, [Trial(one.id, 0.0, "worse"), Trial(one.id, 1.0, "better")]),
        (other, [Trial(other.id, 0.5, "alike"), Trial(other.id, 0.5, "as much")]),
        (third, [Trial(third.id, 0.2, "good"), Trial(third.id, 0.0, "", invalid="no words")]),
    ]
    before, state = weights(model), ReSTEM("best", M_STEP)(model, task, tried, 7)
    assert model.n_adapters is None and same(weights(model), before)
    lessons = SelfEdit((task.lesson(one, "better"), task.lesson(third, "good")))
    with adapt(model, [lessons], M_STEP, 7) as adapters:
        assert same(state, adapters.state())
    assert ReSTEM("best", M_STEP)(model, task, tried[1:2], 7) == {}


def test_an_m_step_that_breaks_says_what_to_do_and_leaves_the_policy_as_it_is(pretrained):
    model, tokenizer = pretrained
    before, config = weights(model), OuterConfig(1, 2, 3, m_step=replace(M_STEP, lr=1e18))
    with pytest.raises(UserError, match="m-step.lr"):
        task = short_notes(tokenizer)
        outer_loop(model, task, toy_passages(2, 0), config, INNER, reward=any_reward)
    assert model.n_adapters is None and same(weights(model), before)


# ---- trials ----


def test_rewards_come_back_in_order_though_lengths_are_sorted_inside(pretrained):
    """The directive `epochs` numbers the texts, and the reward reads it off."""
    model, tokenizer = pretrained
    contexts, numbers = toy_passages(7, 3), [3, 1, 7, 2, 6, 4, 5]
    pairs = [
        (c, f"epochs: {n}\n" + "A note.\n" * ((5 * n) % 8 + 1)) for c, n in zip(contexts, numbers)
    ]
    trials = try_out(model, People(tokenizer), pairs, INNER, steps_taken, seed=5, at_once=3)
    assert [t.reward for t in trials] == numbers == [t.chose["epochs"] for t in trials]
    assert [(t.context, t.text) for t in trials] == [(c.id, text) for c, text in pairs]
    assert all(t.seed == 5 and t.invalid is None for t in trials)
    assert model.n_adapters is None


def test_an_invalid_text_has_reward_zero_and_a_reason_and_keeps_its_place(pretrained):
    model, tokenizer = pretrained
    (context,) = toy_passages(1, 0)
    texts = ["", "epochs: 3\nA note.", "\n---\n", "lr: 1e9\nA note.", "epochs: many\nA note."]
    texts += ["epochs: 2\nA note.", "!?"]
    pairs = [(context, text) for text in texts]
    trials = try_out(model, People(tokenizer), pairs, INNER, steps_taken)
    assert [t.text for t in trials] == texts
    assert [t.reward for t in trials] == [0, 3, 0, 0, 0, 2, 0]
    assert [bool(t.invalid) for t in trials] == [True, False, True, True, True, False, True]
    assert "lr" in trials[3].invalid and "epochs" in trials[4].invalid


def test_only_invalid_texts_and_no_texts_at_all_are_no_error(pretrained):
    model, tokenizer = pretrained
    task, (context,) = People(tokenizer), toy_passages(1, 0)
    trials = try_out(model, task, [(context, ""), (context, "...")], INNER)
    assert [t.reward for t in trials] == [0, 0]
    assert try_out(model, task, [], INNER) == []


def test_a_self_edit_on_which_training_breaks_has_reward_zero_and_a_reason(pretrained):
    model, tokenizer = pretrained
    task, contexts = People(tokenizer), toy_passages(2, 0)
    broken = replace(task.baseline(contexts[0]), lr=1e18, epochs=4)
    pairs = [(contexts[0], broken), (contexts[1], task.baseline(contexts[1]))]
    trials = try_out(model, task, pairs, INNER, same_for_all)
    assert [t.reward for t in trials] == [0.0, 0.5]
    assert trials[0].invalid and trials[1].invalid is None


def test_a_self_edit_is_a_text_or_a_value_or_a_function_of_its_context(pretrained):
    """What a function gives is what its value gives; only a text has a text."""
    model, tokenizer = pretrained
    task, contexts, calls = People(tokenizer), toy_passages(2, 4), []

    def oracle(context):
        calls.append(context)
        return task.oracle(context)

    notes = "\n".join(contexts[0].oracle)
    pairs = [(contexts[0], notes), (contexts[0], oracle), (contexts[1], oracle)]
    pairs += [(contexts[0], task.oracle(contexts[0])), (contexts[0], task.baseline)]
    trials = without_seconds(try_out(model, task, pairs, INNER, any_reward))
    assert calls == contexts
    assert [t.text for t in trials] == [notes, None, None, None, None]
    assert trials[1] == trials[3] and trials[1].reward == trials[0].reward
    assert trials[0].chose == {"notes": {"implies": 4}} and trials[1].chose == {}
    assert len({t.reward for t in trials}) == 3


def test_the_same_text_for_the_same_context_trains_one_adapter(pretrained, monkeypatch):
    """And has as many trials of its own; for another context it is another self-edit."""
    model, tokenizer = pretrained
    (a, b), sizes = toy_passages(2, 0), count_adapters(monkeypatch)
    pairs = [(a, "A note."), (b, "A note."), (a, "A note."), (a, "Another one.")]
    trials = try_out(model, People(tokenizer), pairs, INNER, any_reward)
    assert sizes == [3] and len({t.reward for t in trials}) == 3
    assert trials[0] == trials[2] and trials[0] is not trials[2]
    assert trials[0].chose is not trials[2].chose


def test_trying_many_at_once_equals_trying_one_by_one(pretrained):
    """The whole trial, answers included: greedy answers hide the rounding that differs."""
    model, tokenizer = pretrained
    task, contexts = People(tokenizer), toy_passages(4, 1)
    pairs = [
        (c, task.oracle(c) if i % 2 else "\n".join(c.oracle[: i + 1]))
        for i, c in enumerate(contexts)
    ]
    config = InnerConfig(epochs=6, rank=4, alpha=8.0)
    together = try_out(model, task, pairs, config, seed=1, at_once=4)
    alone = [trial for pair in pairs for trial in try_out(model, task, [pair], config, seed=1)]
    assert without_seconds(together) == without_seconds(alone)
    assert sum(t.reward for t in together) > 0 and all(len(t.answers) == 4 for t in together)
    assert all(t.reward == np.mean(t.grades) for t in together)


def count_adapters(monkeypatch):
    """A list that will hold the number of adapters of every later inner loop."""
    sizes, real = [], outer.adapt

    def counting(model, edits, *rest, **more):
        sizes.append(len(edits))
        return real(model, edits, *rest, **more)

    monkeypatch.setattr(outer, "adapt", counting)
    return sizes


def test_a_memory_limit_changes_the_groups_and_not_the_rewards(pretrained, monkeypatch):
    model, tokenizer = pretrained
    task, sizes = People(tokenizer), count_adapters(monkeypatch)
    pairs = [(c, task.oracle) for c in toy_passages(4, 9)]
    free, tight = (
        [t.reward for t in try_out(model, task, pairs, INNER, at_once=8, memory=memory)]
        for memory in (0.0, 1e-6)
    )
    assert sizes == [4, 1, 1, 1, 1] and tight == free


# ---- the whole loop ----


def test_what_is_rewarded_is_written_more_often_and_without_the_reward_it_is_not(pretrained):
    """Reward: the share of questions among the notes.

    Seen in 192 texts before (standard error 0.01) and 128 after (0.015). The 32 winners of the
    random control have a share of their own, 0.03 to either side: the policy may move so far too.
    """
    model, tokenizer = pretrained
    task, rise, kept = AskedFor(tokenizer, edit_tokens=60), {}, {}

    def step(name, compute):
        """Both ways to choose are shown the same texts."""
        if "M-step" in name:
            return compute()
        if name not in kept:
            kept[name] = compute()
        return kept[name]

    for select in ("best", "random"):
        policy, m_step = copy.deepcopy(model), replace(M_STEP, epochs=6)
        config = OuterConfig(1, 32, 6, select=select, m_step=m_step)
        contexts = toy_passages(32, 0)
        history = outer_loop(policy, task, contexts, config, INNER, reward=steps_taken, step=step)
        prompts = [task.prompt(c) for c in toy_passages(32, 1)]  # about other people
        texts = sample(policy, tokenizer, prompts, 4, task.edit_tokens)
        after = [share_of_questions(text) for written in texts for text in written]
        before = [share_of_questions(t.text) for t in all_trials(history)]
        rise[select] = np.mean(after) - np.mean(before)
    assert rise["best"] > 0.1 and rise["best"] - rise["random"] > 0.1


def test_the_history_holds_every_trial_context_by_context(pretrained):
    model, tokenizer = pretrained
    contexts, calls = toy_passages(5, 0), []
    config = OuterConfig(rounds=2, contexts=3, samples=4, at_once=4, m_step=M_STEP)
    history = outer_loop(
        model,
        short_notes(tokenizer),
        contexts,
        config,
        INNER,
        reward=any_reward,
        on_round=lambda r, tried: calls.append((r, tried, weights(model))),
    )
    # Each round takes the next ones.
    assert [[c for c, _ in tried] for tried in history] == [
        [contexts[i] for i in group] for group in ([0, 1, 2], [3, 4, 0])
    ]
    for context, trials in (pair for tried in history for pair in tried):
        assert [t.context for t in trials] == [context.id] * 4
        assert len({t.text for t in trials}) > 1
    assert [r for r, _, _ in calls] == [1, 2] and [tried for _, tried, _ in calls] == history
    # Called after the M-step.
    assert not same(calls[0][2], calls[1][2]) and same(calls[1][2], weights(model))
    assert model.n_adapters is None and all(p.requires_grad for p in model.parameters())


def test_each_round_and_each_part_of_it_draws_its_own_luck(pretrained):
    """The same passage four times: twice in a round, in parts of its own, in two rounds."""
    model, tokenizer = pretrained
    (context,), task = toy_passages(1, 0), short_notes(tokenizer)
    config = OuterConfig(rounds=2, contexts=2, samples=4, at_once=1)
    history = outer_loop(
        model, task, [context] * 2, config, INNER, reward=same_for_all
    )  # so the policy stays as it is
    texts = [tuple(t.text for t in trials) for tried in history for _, trials in tried]
    assert len(set(texts)) == 4


def test_no_rounds_and_no_change(pretrained):
    model, tokenizer = pretrained
    before = weights(model)
    config = OuterConfig(rounds=0)
    assert outer_loop(model, short_notes(tokenizer), toy_passages(2, 0), config, INNER) == []
    assert same(weights(model), before)


def test_same_seed_same_history_and_weights_whatever_the_global_random_state(pretrained):
    model, tokenizer = pretrained
    config, results = OuterConfig(2, 2, 3, select="random", m_step=M_STEP), []
    for seed, world in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(world)
        np.random.seed(world)
        policy, task = copy.deepcopy(model), short_notes(tokenizer)
        history = outer_loop(
            policy, task, toy_passages(4, 0), config, INNER, reward=any_reward, seed=seed
        )
        results.append((without_seconds(all_trials(history)), weights(policy)))
    first, again, other = results
    assert first[0] == again[0] and same(first[1], again[1])
    assert first[0] != other[0] and not same(first[1], other[1])


def as_kept(value):
    """What a run folder makes of a step's value: trials go through JSON, tensors stay."""
    if isinstance(value, list):
        return [Trial(**trial) for trial in json.loads(json.dumps([asdict(t) for t in value]))]
    return {name: tensor.clone() for name, tensor in value.items()}


def test_killed_anywhere_and_started_again_it_ends_with_the_same_weights(pretrained):
    """What was kept is not computed again."""
    model, tokenizer = pretrained
    config = OuterConfig(rounds=2, contexts=2, samples=3, at_once=1, m_step=M_STEP)

    def run(kept, kill_at=None):
        computed = []

        def step(name, compute):
            if name not in kept:
                if len(computed) == kill_at:
                    raise KeyboardInterrupt
                computed.append(name)
                kept[name] = as_kept(compute())
            return kept[name]

        policy, task = copy.deepcopy(model), short_notes(tokenizer)
        history = outer_loop(
            policy, task, toy_passages(4, 0), config, INNER, reward=any_reward, step=step
        )
        return without_seconds(all_trials(history)), weights(policy), computed

    history, expected, names = run({})
    assert len(names) == len(set(names)) == 6  # a round: two parts of an E-step, an M-step
    for kill_at in range(len(names)):
        kept = {}
        with pytest.raises(KeyboardInterrupt):
            run(kept, kill_at)
        again, end, computed = run(kept)
        assert again == history and same(end, expected)
        assert computed == names[kill_at:]


def test_a_separate_student_stays_as_it_is_and_the_policy_learns(pretrained, make_gpt):
    """The student has another width; it is the one that trains and sits the exam."""
    policy, tokenizer = pretrained
    student = make_gpt(vocab_size=tokenizer.vocab_size, block_size=512)
    before, student_before, examined = weights(policy), weights(student), []

    def reward(examinee, *rest):
        examined.append(examinee)
        return any_reward(examinee, *rest)

    task, config = short_notes(tokenizer), OuterConfig(1, 3, 3, m_step=M_STEP)
    outer_loop(policy, task, toy_passages(3, 0), config, INNER, student=student, reward=reward)
    assert examined and all(e is student for e in examined)
    assert same(weights(student), student_before) and student.n_adapters is None
    after = weights(policy)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert after.keys() == before.keys() and changed
    assert all(name.startswith("blocks.") for name in changed)  # only what adapters touch


def test_a_student_that_is_not_a_number_teaches_nothing_and_every_trial_says_so(pretrained):
    policy, tokenizer = pretrained
    student, before = copy.deepcopy(policy), weights(policy)
    with torch.no_grad():
        student.blocks[0].attn.q.weight.fill_(float("nan"))
    task, config = short_notes(tokenizer), OuterConfig(1, 2, 3, m_step=M_STEP)
    history = outer_loop(policy, task, toy_passages(2, 0), config, INNER, student=student)
    assert all(t.reward == 0 and "nan" in t.invalid for t in all_trials(history))
    assert same(weights(policy), before)


def test_when_all_score_alike_the_policy_learns_nothing(pretrained):
    model, tokenizer = pretrained
    before, config = weights(model), OuterConfig(1, 3, 3, m_step=M_STEP)
    task = short_notes(tokenizer)
    history = outer_loop(model, task, toy_passages(3, 0), config, INNER, reward=same_for_all)
    assert len(all_trials(history)) == 9 and same(weights(model), before)


def test_the_m_step_is_an_argument_and_what_it_returns_is_merged(pretrained):
    """It is given what the round tried, and a seed of its own each round."""
    model, tokenizer = pretrained
    task, before, calls = short_notes(tokenizer), weights(model), []
    names = [f"blocks.{i}.attn.v" for i in range(model.config.n_layer)]

    def improve(policy, its_task, tried, seed):
        assert policy is model and its_task is task and policy.n_adapters is None
        calls.append((tried, seed))
        if len(calls) == 2:
            return {}
        state = {"scale": torch.tensor(0.25)}
        for name in names:
            rows, columns = before[f"{name}.weight"].shape
            state[f"{name}.A"] = torch.ones(1, 1, columns)
            state[f"{name}.B"] = torch.ones(1, rows, 1)
        return state

    config = OuterConfig(rounds=2, contexts=2, samples=2)
    history = outer_loop(
        model, task, toy_passages(4, 0), config, INNER, reward=same_for_all, improve=improve
    )
    assert [tried for tried, _ in calls] == history and calls[0][1] != calls[1][1]
    for name in names:
        before[f"{name}.weight"] += 0.25
    assert same(weights(model), before)


def test_settings_that_leave_nothing_to_do_are_refused_by_name():
    for settings in (dict(samples=0), dict(contexts=0), dict(at_once=0), dict(select="positive")):
        with pytest.raises(UserError, match=f"OuterConfig.{next(iter(settings))} is"):
            OuterConfig(**settings)


@pytest.mark.parametrize("n", [0, 2049])
def test_a_self_edit_that_cannot_be_trained_on_is_an_invalid_trial_and_loses_no_other(
    pretrained, n
):
    """No document at all, or one longer than the model reads."""
    (student, tokenizer), passage = pretrained, toy_passages(1, 0)[0]
    task = People(tokenizer)
    odd = SelfEdit((Document.completion([], [5] * n),) if n else ())
    bad, good = try_out(student, task, [(passage, odd), (passage, task.oracle)])
    assert bad.reward == 0 and f"{n} tokens" in bad.invalid
    assert good.invalid is None and good.reward > 0
