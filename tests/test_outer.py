"""The outer loop: selection against brute force, rewards against one at a time, and a reward whose success can be seen."""

import copy
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minseal import (
    InnerConfig,
    Knowledge,
    OuterConfig,
    SelfEdit,
    adapt,
    exam_score,
    rest_em,
    sample,
    toy_contexts,
    try_out,
)
from minseal.outer import answer_likelihood, select
from minseal.selfedit import split_lines

INNER = InnerConfig(lr=3e-3, epochs=2, rank=2, alpha=4.0)
M_STEP = InnerConfig(lr=1e-3, epochs=2, batch=8, rank=8, alpha=16.0)


class ShortNotes(Knowledge):
    edit_tokens = 24


class AskedFor(Knowledge):
    """The share of questions among the notes, in tenths, is the number of training steps, so the reward can read it off."""

    edit_tokens = 120

    def parse(self, context, text):
        passage = super().parse(context, text).documents[-1]
        return SelfEdit((passage,), epochs=round(10 * share_of_questions(text)))


def share_of_questions(text):
    lines = split_lines(text)
    return np.mean([line.startswith("Question:") for line in lines]) if lines else 0.0


def steps_taken(student, tokenizer, task, contexts, adapters):
    assert student.n_adapters == len(adapters) == len(contexts)
    return [{"reward": float(len(curve))} for curve in adapters.losses]


def any_reward(student, tokenizer, task, contexts, adapters):
    """One that differs among self-edits and has no ties: the sum of the first tensor of each adapter."""
    return [
        {"reward": float(next(iter(adapters.state().values()))[k].sum())}
        for k in range(len(adapters))
    ]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_seconds(history):
    return [
        {
            part: [{k: v for k, v in t.items() if k != "seconds"} for t in trials]
            for part, trials in r.items()
        }
        for r in history
    ]


# ---- select ------------------------------------------------------------------------------------------------------------

one_trial = st.tuples(
    st.sampled_from("abcd"),
    st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    st.sampled_from([0.0, 0.25, 0.5]),
)


def as_trials(drawn):
    """(context, reward or None for an invalid self-edit, the passage's own reward) -> trials."""
    return [
        {
            "context": c,
            "text": str(i),
            "reward": r or 0.0,
            "baseline": base,
            **({"invalid": "no words in it"} if r is None else {}),
        }
        for i, (c, r, base) in enumerate(drawn)
    ]


def allowed(trials, how):
    """Brute force: {context: the trials that may be chosen}."""
    out = {}
    for trial in trials:
        rivals = [t for t in trials if t["context"] == trial["context"]]
        good = "invalid" not in trial
        if how == "best":
            good &= any(t["reward"] != trial["reward"] for t in rivals) and all(
                t["reward"] <= trial["reward"] for t in rivals
            )
        elif how == "positive":
            good &= trial["reward"] > trial["baseline"]
        if good:
            out.setdefault(trial["context"], []).append(trial)
    return out


@given(st.lists(one_trial, max_size=16), st.integers(0, 5))
def test_selection_equals_brute_force(drawn, seed):
    trials = as_trials(drawn)
    for how in ("best", "random"):
        winners, may = select(trials, how, np.random.default_rng(seed)), allowed(trials, how)
        assert Counter(w["context"] for w in winners) == Counter(
            may.keys()
        )  # one of each, none of the others
        assert all(any(w is t for t in may[w["context"]]) for w in winners)
    winners = select(trials, "positive", np.random.default_rng(seed))
    assert sorted(w["text"] for w in winners) == sorted(
        t["text"] for group in allowed(trials, "positive").values() for t in group
    )


@pytest.mark.parametrize("how, chosen", [("best", [1, 3, 4]), ("random", [0, 1, 3, 4, 6])])
def test_ties_are_broken_at_random(how, chosen):
    """Each as often as the others, within four standard errors of 6000 draws."""
    trials = as_trials(
        [
            ("a", 0.5, 0),
            ("a", 1.0, 0),
            ("a", None, 0),
            ("a", 1.0, 0),
            ("a", 1.0, 0),
            ("a", None, 0),
            ("a", 0.25, 0),
        ]
    )
    rng = np.random.default_rng(0)
    counts = Counter(int(select(trials, how, rng)[0]["text"]) for _ in range(6000))
    p = 1 / len(chosen)
    assert sorted(counts) == chosen
    assert all(abs(counts[i] / 6000 - p) < 4 * (p * (1 - p) / 6000) ** 0.5 for i in chosen)


def test_a_context_whose_candidates_score_alike_is_skipped():
    alike = as_trials(
        [
            ("a", 0.5, 0),
            ("a", 0.5, 0),
            ("b", 0.0, 0),
            ("b", None, 0),
            ("c", None, 0),
            ("c", None, 0),
            ("d", 1.0, 0),
        ]
    )
    assert select(alike, "best", np.random.default_rng(0)) == []


# ---- try_out and the exam ------------------------------------------------------------------------------------------------


def test_rewards_come_back_in_order_though_lengths_are_sorted_inside(pretrained):
    """The directive `epochs` numbers the texts, and the reward reads it off."""
    model, tokenizer = pretrained
    task, contexts = Knowledge(tokenizer), toy_contexts(7, 3)
    numbers = [3, 1, 7, 2, 6, 4, 5]
    pairs = [
        (c, f"epochs: {n}\n" + "A note.\n" * ((5 * n) % 8 + 1)) for c, n in zip(contexts, numbers)
    ]
    trials = try_out(model, tokenizer, task, pairs, INNER, at_once=3, reward=steps_taken, seed=5)
    assert [t["reward"] for t in trials] == numbers
    assert [(t["context"], t["text"]) for t in trials] == [(c.id, text) for c, text in pairs]
    assert all(t["seed"] == 5 and "invalid" not in t for t in trials)
    assert model.n_adapters is None


def test_an_invalid_text_has_reward_zero_and_a_reason_and_keeps_its_place(pretrained):
    model, tokenizer = pretrained
    (context,) = toy_contexts(1, 0)
    texts = [
        "",
        "epochs: 3\nA note.",
        "\n---\n",
        "lr: 1e9\nA note.",
        "epochs: many\nA note.",
        "epochs: 2\nA note.",
        "!?",
    ]
    trials = try_out(
        model,
        tokenizer,
        Knowledge(tokenizer),
        [(context, text) for text in texts],
        INNER,
        8,
        reward=steps_taken,
    )
    assert [t["text"] for t in trials] == texts
    assert [t["reward"] for t in trials] == [0, 3, 0, 0, 0, 2, 0]
    assert [bool(t.get("invalid")) for t in trials] == [True, False, True, True, True, False, True]
    assert "lr" in trials[3]["invalid"] and "epochs" in trials[4]["invalid"]


def test_only_invalid_texts_and_no_texts_at_all_are_no_error(pretrained):
    model, tokenizer = pretrained
    task, (context,) = Knowledge(tokenizer), toy_contexts(1, 0)
    assert [
        t["reward"]
        for t in try_out(model, tokenizer, task, [(context, ""), (context, "...")], INNER, 8)
    ] == [0, 0]
    assert try_out(model, tokenizer, task, [], INNER, 8) == []


def test_a_self_edit_on_which_training_breaks_has_reward_zero_and_a_reason(pretrained):
    model, tokenizer = pretrained
    task, contexts = Knowledge(tokenizer), toy_contexts(2, 0)
    broken = replace(task.baseline(contexts[0]), lr=1e30, epochs=4)
    trials = try_out(
        model,
        tokenizer,
        task,
        [(contexts[0], broken), (contexts[1], task.baseline(contexts[1]))],
        INNER,
        8,
        reward=lambda student, tokenizer, task, contexts, adapters: (
            [{"reward": 1.0}] * len(contexts)
        ),
    )
    assert [t["reward"] for t in trials] == [0.0, 1.0]
    assert trials[0]["invalid"] and "invalid" not in trials[1]


def test_trying_many_at_once_equals_trying_one_by_one(pretrained):
    """The whole trial, answers included: greedy answers hide the rounding that differs."""
    model, tokenizer = pretrained
    task, contexts = Knowledge(tokenizer), toy_contexts(4, 1)
    pairs = [
        (c, task.oracle(c) if i % 2 else "\n".join(c.oracle[: i + 1]))
        for i, c in enumerate(contexts)
    ]
    config = InnerConfig(epochs=6, rank=4, alpha=8.0)
    together = try_out(model, tokenizer, task, pairs, config, 4, seed=1)
    alone = [
        trial
        for pair in pairs
        for trial in try_out(model, tokenizer, task, [pair], config, 1, seed=1)
    ]
    assert without_seconds([{"trials": together}]) == without_seconds([{"trials": alone}])
    assert sum(t["reward"] for t in together) > 0 and all(len(t["answers"]) == 4 for t in together)


def test_the_exam_asks_each_adapter_its_own_questions(pretrained):
    """Against weights merged one adapter at a time and questions asked one at a time; exams of different lengths."""
    model, tokenizer = pretrained
    task = Knowledge(tokenizer)
    contexts = [replace(c, questions=c.questions[i:]) for i, c in enumerate(toy_contexts(3, 2))]
    adapters = adapt(
        model, [task.oracle(c) for c in contexts], InnerConfig(epochs=6, rank=4, alpha=8.0)
    )
    results = exam_score(model, tokenizer, task, contexts, adapters)
    for k, (context, result) in enumerate(zip(contexts, results)):
        adapters.merge(k)
        answers = [
            sample(
                model,
                tokenizer,
                [tokenizer.encode(f"Question: {q} Answer:")],
                max_tokens=24,
                temperature=0,
                stop="\n",
            )[0][0].strip()
            for q, _ in context.questions
        ]
        adapters.unmerge()
        assert result["answers"] == answers
        assert result["reward"] == np.mean(
            [a == gold for a, (_, (gold,)) in zip(answers, context.questions)]
        )
    assert [len(r["grades"]) for r in results] == [4, 3, 2] and sum(
        r["reward"] for r in results
    ) > 0


# ---- the whole loop ------------------------------------------------------------------------------------------------------


def test_what_is_rewarded_is_written_more_often_and_without_the_reward_it_is_not(pretrained):
    """Reward: the share of questions among the notes, seen in 192 texts before (standard error 0.01) and 128 after (0.015).

    The 32 winners of the random control have a share of their own, 0.03 to either side: the policy may move so far too.
    """
    model, tokenizer = pretrained
    task, rise = AskedFor(tokenizer), {}
    for how in ("best", "random"):
        policy = copy.deepcopy(model)
        config = OuterConfig(
            rounds=1, contexts=32, samples=6, select=how, m_step=replace(M_STEP, epochs=6)
        )
        (record,) = rest_em(
            policy, tokenizer, task, toy_contexts(32, 0), config, INNER, reward=steps_taken
        )
        texts = sample(
            policy, tokenizer, [task.prompt(c) for c in toy_contexts(32, 1)], 4, task.edit_tokens
        )  # about other people
        assert len(record["winners"]) > 25
        rise[how] = np.mean(
            [share_of_questions(text) for written in texts for text in written]
        ) - np.mean([share_of_questions(t["text"]) for t in record["trials"]])
    assert rise["best"] > 0.1 and rise["best"] - rise["random"] > 0.1


def test_the_record_holds_every_trial_context_by_context(pretrained):
    model, tokenizer = pretrained
    contexts, seen = toy_contexts(5, 0), []
    config = OuterConfig(rounds=2, contexts=3, samples=4, at_once=4, m_step=M_STEP)
    history = rest_em(
        model,
        tokenizer,
        ShortNotes(tokenizer),
        contexts,
        config,
        INNER,
        reward=any_reward,
        on_round=lambda r, record: seen.append((r, record, weights(model))),
    )
    assert [[t["context"] for t in r["trials"]] for r in history] == [
        [contexts[i].id for i in group for _ in range(4)] for group in ([0, 1, 2], [3, 4, 0])
    ]  # each round takes the next ones
    assert [r for r, _, _ in seen] == [1, 2] and [record for _, record, _ in seen] == history
    assert all(any(w is t for t in r["trials"]) for r in history for w in r["winners"])
    assert not same(seen[0][2], seen[1][2]) and same(
        seen[1][2], weights(model)
    )  # called after the M-step
    assert model.n_adapters is None and all(p.requires_grad for p in model.parameters())


def test_same_seed_same_history_and_weights_whatever_the_global_random_state(pretrained):
    model, tokenizer = pretrained
    results = []
    for seed, world in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(world)
        np.random.seed(world)
        policy = copy.deepcopy(model)
        history = rest_em(
            policy,
            tokenizer,
            ShortNotes(tokenizer),
            toy_contexts(4, 0),
            OuterConfig(rounds=2, contexts=2, samples=3, select="random", m_step=M_STEP),
            INNER,
            reward=any_reward,
            seed=seed,
        )
        results.append((without_seconds(history), weights(policy)))
    assert results[0][0] == results[1][0] and same(results[0][1], results[1][1])
    assert results[0][0] != results[2][0] and not same(results[0][1], results[2][1])


def test_killed_anywhere_and_started_again_it_ends_with_the_same_weights(pretrained):
    """What was remembered went through JSON, as in a run folder, and is not computed again."""
    model, tokenizer = pretrained

    def run(memory, kill_at=None):
        computed = []

        def recall(step, compute, pack=lambda value: value, unpack=lambda value: value):
            if step not in memory:
                if len(computed) == kill_at:
                    raise KeyboardInterrupt
                computed.append(step)
                memory[step] = pack(compute())
            return unpack(memory[step])

        policy = copy.deepcopy(model)
        history = rest_em(
            policy,
            tokenizer,
            ShortNotes(tokenizer),
            toy_contexts(4, 0),
            OuterConfig(rounds=2, contexts=2, samples=3, at_once=1, m_step=M_STEP),
            INNER,
            reward=any_reward,
            keep=recall,
            remember=lambda step, compute: recall(step, compute, json.dumps, json.loads),
        )
        return without_seconds(history), weights(policy), computed

    history, expected, steps = run({})
    assert len(steps) == len(set(steps)) >= 4  # an E-step and an M-step a round
    for kill_at in range(len(steps)):
        memory = {}
        with pytest.raises(KeyboardInterrupt):
            run(memory, kill_at)
        again, end, computed = run(memory)
        assert again == history and same(end, expected)
        assert computed == steps[kill_at:]


def test_a_separate_student_stays_as_it_is_and_the_policy_learns(pretrained, make_gpt):
    """The student has another width; it is the one that trains and sits the exam."""
    policy, tokenizer = pretrained
    student = make_gpt(vocab_size=tokenizer.vocab_size, block_size=512)
    before, student_before, examined = weights(policy), weights(student), []

    def reward(examinee, *rest):
        examined.append(examinee)
        return any_reward(examinee, *rest)

    rest_em(
        policy,
        tokenizer,
        ShortNotes(tokenizer),
        toy_contexts(3, 0),
        OuterConfig(rounds=1, contexts=3, samples=3, m_step=M_STEP),
        INNER,
        student=student,
        reward=reward,
    )
    assert examined and all(e is student for e in examined)
    assert same(weights(student), student_before) and student.n_adapters is None
    after = weights(policy)
    assert after.keys() == before.keys() and not same(after, before)
    assert all(
        torch.equal(after[name], before[name]) for name in after if "blocks." not in name
    )  # only what adapters touch


def test_when_all_score_alike_the_policy_learns_nothing(pretrained):
    model, tokenizer = pretrained
    before = weights(model)
    (record,) = rest_em(
        model,
        tokenizer,
        ShortNotes(tokenizer),
        toy_contexts(3, 0),
        OuterConfig(rounds=1, contexts=3, samples=3, m_step=M_STEP),
        INNER,
        reward=lambda student, tokenizer, task, contexts, adapters: (
            [{"reward": 0.5}] * len(contexts)
        ),
    )
    assert record["winners"] == [] and len(record["trials"]) == 9 and same(weights(model), before)


def test_positive_selection_learns_from_all_that_beat_the_passage_alone(pretrained):
    """The passage alone is a self-edit with fewer documents; here the reward counts training steps, one a document."""
    model, tokenizer = pretrained
    inner = replace(INNER, batch=1, epochs=1)
    config = OuterConfig(rounds=1, contexts=3, samples=4, select="positive", m_step=M_STEP)
    (record,) = rest_em(
        model,
        tokenizer,
        ShortNotes(tokenizer),
        toy_contexts(3, 0),
        config,
        inner,
        reward=steps_taken,
    )
    assert {t["baseline"] for t in record["trials"]} == {1.0}
    valid = [t for t in record["trials"] if "invalid" not in t]
    assert all(t["reward"] == 1 + len(split_lines(t["text"])) for t in valid)
    assert record["winners"] == valid and len(valid) > 3


def test_likelihood_equals_a_slow_loop(pretrained):
    """The geometric mean over all tokens of the right answers, asked one question at a time with one adapter at a time."""
    model, tokenizer = pretrained
    task, contexts = Knowledge(tokenizer), toy_contexts(3, 5)
    contexts[1] = replace(
        contexts[1], questions=contexts[1].questions[:1]
    )  # exams of different lengths
    edits = [task.oracle(c) for c in contexts]
    adapters = adapt(model, edits, INNER)
    got = [r["reward"] for r in answer_likelihood(model, tokenizer, task, contexts, adapters)]
    state = adapters.state()
    adapters.remove()
    for k, (context, edit) in enumerate(zip(contexts, edits)):
        alone = adapt(model, [edit], INNER)
        alone.load({name: t[k : k + 1] for name, t in state.items()})
        logs = []
        for question, (answer,) in context.questions:
            ids = task.exam(replace(context, questions=((question, (answer,)),)))[0]
            for token in tokenizer.encode(f" {answer}\n"):
                logs.append(torch.log_softmax(model(torch.tensor([ids]))[0, -1], -1)[token].item())
                ids = ids + [token]
        alone.remove()
        assert abs(got[k] - np.exp(np.mean(logs))) < 1e-4  # float32, other batches


def test_likelihood_teaches_the_policy_too(pretrained):
    model, tokenizer = pretrained
    task, contexts = Knowledge(tokenizer), toy_contexts(4, 6)
    config = OuterConfig(rounds=1, contexts=4, samples=3, reward="likelihood", m_step=M_STEP)
    (record,) = rest_em(model, tokenizer, task, contexts, config, INNER)
    assert len(record["winners"]) == 4  # hardly any ties
    for w in record["winners"]:
        assert (
            w["reward"]
            == max(t["reward"] for t in record["trials"] if t["context"] == w["context"])
            and 0 < w["reward"] < 1
        )


def test_a_memory_limit_changes_the_groups_and_not_the_rewards(pretrained, monkeypatch):
    from minseal import outer

    model, tokenizer = pretrained
    task, contexts = Knowledge(tokenizer), toy_contexts(4, 9)
    pairs = [(c, task.oracle(c)) for c in contexts]
    sizes = []
    real = outer.adapt
    monkeypatch.setattr(
        outer,
        "adapt",
        lambda model, edits, *rest: sizes.append(len(edits)) or real(model, edits, *rest),
    )
    free = [t["reward"] for t in try_out(model, tokenizer, task, pairs, INNER, 8)]
    tight = [t["reward"] for t in try_out(model, tokenizer, task, pairs, INNER, 8, memory=1e-6)]
    assert sizes == [4, 1, 1, 1, 1] and tight == free
