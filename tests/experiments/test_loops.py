"""Outer loops side by side: each M-step against its paper's formula, the sweep, the same again."""

import copy
import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import events, without_seconds
from hypothesis import given
from hypothesis import strategies as st
from kills import stop_at

from minseal import Document, InnerConfig, OuterConfig, People, Trial, UserError, toy_passages
from minseal.experiments import improvers
from minseal.experiments.improvers import (
    DPO,
    GRPO,
    LOOPS,
    BeatPassage,
    Reinforce,
    Written,
    careful,
    left_out,
    normalised,
)
from minseal.experiments.loops import LoopsConfig
from minseal.experiments.loops_report import drift, what_is_written
from minseal.experiments.passages import people
from minseal.inner import losses, pack
from minseal.lab.lab import EXPERIMENTS, Lab, restore_policy, settings_of, walk
from minseal.lab.run import Run
from minseal.lab.table import summarise, text_report
from minseal.lora import LoRAConfig, attach, merge_state
from minseal.rewards import exam
from minseal.selfedit import InvalidSelfEdit, SelfEdit, Task

LOOP = EXPERIMENTS["loops"]
PROMPTED = "own notes, questions"
INNER = InnerConfig(lr=1e-3, epochs=2, batch=3, rank=4, alpha=8.0)
EOT = 47


class Letters(Task):
    """A context is a place in the alphabet, a text is letters: each a token."""

    def prompt(self, context):
        return [context, 5, context, 9]

    def lesson(self, context, text):
        return Document.completion(self.prompt(context), [ord(c) - 97 for c in text] + [EOT])


# (context, [(text, reward)]): one context is alike throughout, one text is empty and invalid.
DRAWN = [
    (30, [("abcd", 0.25), ("xy", 0.75), ("qqqqqqq", 0.0)]),
    (31, [("hello", 0.5), ("there", 0.5)]),
    (32, [("z", 1.0), ("", 0.0), ("longer", 0.5), ("mn", 0.5)]),
]
TRIED = [
    (context, [Trial(str(context), reward, text, seed=3) for text, reward in trials])
    for context, trials in DRAWN
]


# ---- each M-step against a slow loop ----


def token_logs(model, context, text):
    """log p of each token of a text, its end included, one at a time."""
    before = Letters().prompt(context)
    ids = [*before, *(ord(c) - 97 for c in text), EOT]
    logits = model(torch.tensor([ids]))[0]
    return [
        logits[t - 1][ids[t]] - torch.logsumexp(logits[t - 1], 0)
        for t in range(len(before), len(ids))
    ]


def slow_reinforce(model, old):
    """-1/N sum over texts (r - the mean of the others) sum over tokens log p; N tokens."""
    total, tokens = 0.0, 0
    for context, trials in DRAWN:
        for i, (text, reward) in enumerate(trials):
            others = [r for j, (_, r) in enumerate(trials) if j != i]
            advantage = reward - sum(others) / len(others)
            if len({r for _, r in trials}) > 1:
                logs = token_logs(model, context, text)
                total -= advantage * sum(logs)
                tokens += len(logs) if advantage else 0
    return total / tokens


def slow_grpo(model, old, clip=0.2, beta=0.04):
    """Equation 3 of DeepSeekMath, the texts of contexts where all score alike left out."""
    each = []
    for context, trials in DRAWN:
        rewards = np.array([r for _, r in trials])
        for text, reward in trials if rewards.std() else []:
            a, total, logs = (reward - rewards.mean()) / rewards.std(), 0.0, 0
            if not a:
                continue
            logs = token_logs(model, context, text)
            for now, then in zip(logs, old[context, text]):
                ratio = torch.exp(now - then)
                clipped = min(max(ratio, torch.tensor(1 - clip)), torch.tensor(1 + clip))
                kl = torch.exp(then - now) - (then - now) - 1
                total += min(ratio * a, clipped * a) - beta * kl
            each.append(-total / len(logs))
    return sum(each) / len(each)


def slow_dpo(model, old, beta=0.1):
    """Equation 7 of the paper: each context's best against its worst."""
    each = []
    for context, trials in DRAWN:
        if len({r for _, r in trials}) > 1:
            best, worst = (f(trials, key=lambda t: t[1])[0] for f in (max, min))
            gains = [
                sum(token_logs(model, context, t)) - sum(old[context, t]) for t in (best, worst)
            ]
            each.append(torch.log(1 + torch.exp(-beta * (gains[0] - gains[1]))))
    return sum(each) / len(each)


LOOPS_AND_FORMULAS = [(Reinforce, slow_reinforce), (GRPO, slow_grpo), (DPO, slow_dpo)]


@pytest.mark.parametrize("moved", [False, True], ids=["first step", "later"])
@pytest.mark.parametrize("improve, formula", LOOPS_AND_FORMULAS)
def test_the_gradient_is_that_of_the_formula(gpt, monkeypatch, improve, formula, moved):
    """At the first step, where all ratios are 1, and at another adapter, where some are clipped."""
    model, found = gpt.double(), []
    with torch.no_grad():
        old = {(c, t): token_logs(model, c, t) for c, trials in DRAWN for t, _ in trials}

    def spy(policy, edits, inner, seed, loss=None):
        (edit,) = edits
        with attach(policy, 1, LoRAConfig(4), seed) as adapters:
            if moved:
                generator = torch.Generator().manual_seed(1)
                adapters.replace(
                    [0.3 * torch.randn(p.shape, generator=generator) for p in adapters.parameters()]
                )
            fast = (loss or losses)(policy, [pack(list(edit.documents), 24)]).sum()
            found.append((fast, torch.autograd.grad(fast, adapters.parameters())))
            slow = formula(policy, old)
            found.append((slow, torch.autograd.grad(slow, adapters.parameters())))
            if moved and improve is GRPO:
                now = {key: token_logs(policy, *key) for key in old}
                gone = [(n - o).exp() for key in old for n, o in zip(now[key], old[key])]
                assert min(gone) < 0.8 and max(gone) > 1.2  # else clipping was not tried
        raise KeyboardInterrupt

    monkeypatch.setattr(improvers, "adapt", spy)
    with pytest.raises(KeyboardInterrupt):
        improve()(model, Letters(), TRIED, 7)
    (fast, gradients), (slow, expected) = found
    assert fast.item() == pytest.approx(slow.item(), rel=1e-4, abs=1e-6)
    assert any(g.abs().max() > 1e-4 for g in expected)
    for g, e in zip(gradients, expected):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-6)  # its logits are float32


@pytest.mark.parametrize("improve", [BeatPassage, DPO, GRPO, Reinforce])
def test_an_m_step_is_a_screen_long(improve):
    assert len(inspect.getsource(improve).splitlines()) <= 40


def likelihoods(model):
    with torch.no_grad():
        return {(c, t): sum(token_logs(model, c, t)).item() for c, ts in DRAWN for t, _ in ts}


@pytest.mark.parametrize("improve", [Reinforce, GRPO, DPO])
def test_the_better_texts_get_likelier_than_the_worse(gpt, improve):
    """And the policy itself is left alone."""
    before, weights = likelihoods(gpt), copy.deepcopy(gpt.state_dict())
    state = improve(replace(INNER, epochs=6))(gpt, Letters(), TRIED, 7)
    assert all(torch.equal(w, gpt.state_dict()[n]) for n, w in weights.items())
    merge_state(gpt, state)
    gained = {key: x - before[key] for key, x in likelihoods(gpt).items()}
    assert gained[30, "xy"] > gained[30, "qqqqqqq"] and gained[32, "z"] > gained[32, ""]


@pytest.mark.parametrize("improve", [Reinforce, GRPO, DPO])
def test_where_all_score_alike_there_is_nothing_to_learn(gpt, improve):
    assert improve(INNER)(gpt, Letters(), TRIED[1:2], 7) == {}


def test_all_that_beat_the_passage_are_learnt(pretrained, monkeypatch):
    """Under the first weights that the self-edits had; ties with the passage are not enough."""
    model, tokenizer = pretrained
    lab = Lab(model, People(tokenizer), [], [], run=None)
    passages, seen = toy_passages(3, 0), []
    bars = [0.25, 0.0, 1.0]
    rewards = [[0.25, 0.5, 0.75], [0.0, 0.25, 0.0], [1.0, 0.5, 0.0]]
    tried = [
        (p, [Trial(p.id, r, f"note {r}", seed=5) for r in mine])
        for p, mine in zip(passages, rewards)
    ]
    tried[0][1][2].invalid = "training failed"

    def alone(student, task, pairs, inner, reward, seed):
        assert [c for c, _ in pairs] == passages and (inner, reward, seed) == (lab.inner, exam, 5)
        assert all(edit(c) == task.baseline(c) for c, edit in pairs)
        return [Trial(c.id, bar) for (c, _), bar in zip(pairs, bars)]

    def adapt(policy, edits, inner, seed, loss=None):
        seen.append(edits)
        raise KeyboardInterrupt

    monkeypatch.setattr(improvers, "try_out", alone)
    monkeypatch.setattr(improvers, "adapt", adapt)
    with pytest.raises(KeyboardInterrupt):
        BeatPassage(INNER, lab.inner)(model, lab.task, tried, 0)
    lessons = lab.task.lesson(passages[0], "note 0.5"), lab.task.lesson(passages[1], "note 0.25")
    assert seen == [[SelfEdit(lessons)]]
    bars[0] = bars[1] = 1.0
    assert BeatPassage(INNER, lab.inner)(model, lab.task, tried, 0) == {}


# ---- advantages and clipping ----


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=8))
def test_advantages_sum_to_zero_and_keep_the_order(rewards):
    for advantages in (left_out(rewards), normalised(rewards)):
        assert sum(advantages) == pytest.approx(0, abs=1e-9)
        pairs = list(zip(advantages, rewards))
        assert all((a > b) == (r > s) for a, r in pairs for b, s in pairs)
    if len(set(rewards)) > 1:
        assert np.mean(np.square(normalised(rewards))) == pytest.approx(1)


@pytest.mark.parametrize("advantage, clipped", [(1.5, [0, 0, 0, 1]), (-0.5, [1, 0, 0, 0])])
def test_clipped_tokens_give_no_gradient(advantage, clipped):
    """A good text's tokens that are likelier by more than a fifth; a bad one's, less likely."""
    ratios = torch.tensor([0.7, 0.9, 1.1, 1.3], dtype=torch.float64)
    old = torch.tensor([-1.0, -2.0, -3.0, -0.5], dtype=torch.float64)
    text = Written((0,) * 5, (0.0,) + (1.0,) * 4, old=old, advantage=advantage)
    logs = (old + ratios.log()).requires_grad_()
    GRPO(kl=0.0).of_text(text, logs).backward()
    expected = torch.where(torch.tensor(clipped) == 1, 0.0, -advantage * ratios / 4)
    torch.testing.assert_close(logs.grad, expected)


def test_a_failed_m_step_changes_nothing_and_says_why(gpt):
    told = careful(GRPO(replace(INNER, lr=1e18)))(gpt, Letters(), TRIED, 0)
    assert "M-step: " in told["failed"]
    before = copy.deepcopy(gpt.state_dict())
    merge_state(gpt, told)
    assert all(torch.equal(w, before[n]) for n, w in gpt.state_dict().items())


# ---- what the policies write ----


def test_drift_is_the_divergence_token_by_token(make_gpt):
    policy, first = make_gpt(0).double(), make_gpt(1).double()
    document = Letters().lesson(30, "abcd")
    total = 0.0
    for t in range(4, len(document.ids)):
        p, q = (m(torch.tensor([document.ids[:t]]))[0, -1].softmax(-1) for m in (policy, first))
        total += sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist()))
    assert drift(policy, first, document) == pytest.approx(total, rel=1e-6) and total > 0.1
    assert drift(policy, policy, document) == 0


def test_what_is_written_is_counted(pretrained, monkeypatch):
    model, tokenizer = pretrained
    lab = Lab(model, People(tokenizer), [], [], run=None)
    one, other = toy_passages(2, 0)
    right = one.oracle[0]
    texts = [[f"{right}\nblah blah", right, right, ""], ["a", "b", "c", "d"]]
    monkeypatch.setattr(Lab, "write_many", lambda lab, contexts, n, draw: texts)
    looked = what_is_written(lab, model, [one, other])
    with pytest.raises(InvalidSelfEdit):
        lab.task.parse(one, "")
    assert looked["kl"] == 0
    assert looked["unreadable"] == pytest.approx((0.5 + 0 + 0 + 1 + 4) / 8)
    assert looked["distinct"] == pytest.approx((2 / 4 + 4 / 4) / 2)
    with torch.no_grad():
        model.wte.weight.fill_(math.nan)
    assert what_is_written(lab, model, [one, other])["kl"] is None


# ---- the experiment ----

SMALL = LoopsConfig(
    other_prompts=("questions",),
    loops=("ReST-EM", "random"),
    rates=("1e-3", "1e-1"),
    sweep_contexts=3,
    look_contexts=1,
    eval_contexts=2,
    edit_tokens=12,
    inner=InnerConfig(epochs=1, rank=2),
    outer=OuterConfig(rounds=2, contexts=2, samples=3, reward="likelihood"),
)


def go(config, folder, on_step=lambda step, new: None, change=lambda lab: None):
    """Walk; what results.json will hold."""
    run = Run(folder, settings_of(LOOP, config), on_step)

    def opened(config, run):
        lab = people(config, run)
        change(lab)
        return lab

    walk(replace(LOOP, open=opened), config, run, say=list)
    return summarise(run, LOOP)


@pytest.fixture(scope="module")
def config(untrained):
    return replace(SMALL, model=untrained)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loops") / "run"
    return folder, go(config, folder)


def test_every_loop_has_its_curve_and_its_rates(finished):
    folder, results = finished
    assert results["left out"] == []
    arms = {a["arm"]: a for a in results["arms"]}
    assert list(arms) == ["no adaptation", "passage only", PROMPTED, "own notes"] + [
        f"{loop} {r}" for loop in SMALL.loops for r in (1, 2)
    ]
    assert arms["own notes"]["series"] == list(SMALL.loops) and arms["own notes"]["kl"] == 0
    assert [(a["loop"], a["rate"]) for a in results["sweep"]] == [
        (loop, rate) for loop in SMALL.loops for rate in SMALL.rates
    ]
    for loop in SMALL.loops:
        mine = [a for a in results["sweep"] if a["loop"] == loop]
        assert [a["reward"] for a in mine if a["best"]] == [max(a["reward"] for a in mine)]
    rivals = {c["over"] for c in results["comparisons"]} - {PROMPTED}
    assert rivals == {f"{loop} 2" for loop in SMALL.loops[1:]}
    report = text_report(Run(folder), LOOP, results)
    assert "unreadable" in report and "Each loop at each learning rate" in report


def test_the_first_e_step_is_made_once(finished):
    folder, _ = finished
    steps = [e["done"] for e in events(folder) if "done" in e]
    assert len(steps) == len(set(steps))
    first = [name for name in steps if "1 contexts" in name]
    # The control samples no more than it learns from.
    assert first == ["1 contexts 1-2", "random 1 contexts 1-2"]


def test_the_sweep_never_looks_at_what_is_held_out(finished, config, tmp_path):
    """Other people held out: the same sweep."""
    folder, results = finished
    others = lambda lab: setattr(lab, "held_out", toy_passages(9, 77)[:2])
    other = go(replace(config, loops=("ReST-EM",)), tmp_path / "run", change=others)
    assert other["sweep"] == results["sweep"][: len(SMALL.rates)]
    seen = {}
    for run in (folder, tmp_path / "run"):
        for e in events(run):
            if "context" in e:
                seen.setdefault((run, e["step"]), set()).add(e["context"])
    held_out = seen[folder, "no adaptation"]
    assert held_out.isdisjoint(seen[tmp_path / "run", "no adaptation"])
    rest = [where for (run, step), where in seen.items() if "rate" in step or "contexts" in step]
    assert rest and all(where.isdisjoint(held_out) for where in rest)


def test_rest_em_is_the_outer_loop_of_every_other_experiment(finished, config, tmp_path):
    folder, results = finished
    (rate,) = [a["rate"] for a in results["sweep"] if a["loop"] == "ReST-EM" and a["best"]]
    m_step = replace(config.outer.m_step, lr=float(rate))
    lab = people(replace(config, outer=replace(config.outer, m_step=m_step)), Run(tmp_path, {}))
    lab.arm("own notes", lambda: lab.study_own(lab.held_out))
    lab.outer_loop("ReST-EM")
    there, here = Run(folder), Run(tmp_path)
    for name in ("ReST-EM 1", "ReST-EM 2 contexts 1-2", "ReST-EM 2"):
        pair = [[(t.text, t.reward) for t in run.steps[name].trials] for run in (there, here)]
        assert pair[0] == pair[1]
    after = copy.deepcopy(lab.policy.state_dict())
    lab.reset()
    restore_policy(lab.policy, folder)  # as the experiments that have a --policy do
    assert all(torch.equal(w, after[n]) for n, w in lab.policy.state_dict().items())


def test_stopped_and_resumed_gives_the_same(finished, config, tmp_path):
    for n in (5, 12, 25):
        with pytest.raises(KeyboardInterrupt):
            go(config, tmp_path / "run", stop_at(n))
        assert summarise(Run(tmp_path / "run"), LOOP)["left out"] == []
    again = go(config, tmp_path / "run")
    assert without_seconds(again) == without_seconds(finished[1])


def test_all_six_loops_run(config, tmp_path):
    outer = replace(config.outer, rounds=1)
    results = go(replace(config, loops=LOOPS, rates=("1e-3",), outer=outer), tmp_path / "run")
    for name in LOOPS:
        assert Run(tmp_path / "run").result(f"{name} 1 M-step")  # there was something to learn
    assert [a["loop"] for a in results["sweep"]] == list(LOOPS) and results["left out"] == []


def test_divergence_is_reported(config, tmp_path):
    outer = replace(config.outer, rounds=1)
    one = replace(config, loops=("GRPO",), rates=("1e18",), outer=outer)
    results = go(one, tmp_path / "run")
    assert list(results["failed"]) == ["GRPO, rate 1e18, 1 M-step", "GRPO 1 M-step"]
    arms = {a["arm"]: a["mean"] for a in results["arms"]}
    assert arms["GRPO 1"] == arms["own notes"]  # the policy stayed as it was
    report = text_report(Run(tmp_path / "run"), LOOP, results)
    assert "GRPO 1 M-step failed and changed nothing: M-step: loss became" in report


def test_harm_is_reported(finished):
    folder, results = finished
    results["sweep"][0]["gain"] = (-0.2, (-0.3, -0.1))
    assert "ReST-EM falls below the untrained policy at 1e-3." in LOOP.notes(Run(folder), results)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"rates": ("fast",)}, "'fast'"),
        ({"rates": ("-1",)}, "'-1'"),
        ({"rates": ("nan",)}, "'nan'"),
        ({"rates": ()}, "at least"),
        ({"loops": ("PPO",)}, "'PPO'"),
        ({"outer": OuterConfig(rounds=0)}, "at least"),
        ({"look_contexts": 0}, "look_contexts is 0"),
        ({"clip": -0.1}, "clip is -0.1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        LoopsConfig(**settings)
