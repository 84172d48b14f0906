"""Invent, check, learn: what a checker keeps, nobody held out is learnt, the same after a kill."""

from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from conftest import TINY, without_seconds
from hypothesis import given
from hypothesis import strategies as st
from kills import stop_at

from minseal import InnerConfig, OuterConfig, People, UserError, toy_passages
from minseal.experiments import verify as room
from minseal.experiments.checkers import erring, judge, keep, tally
from minseal.experiments.verify import ARMS, VerifyConfig, invent
from minseal.experiments.verify_report import pass_at
from minseal.lab.lab import EXPERIMENTS, Lab, restore_policy, settings_of, walk
from minseal.lab.run import Run
from minseal.lab.table import summarise, text_report, write_report
from minseal.outer import MStepConfig
from minseal.tasks.grammar import implication_of, read_person
from minseal.tasks.people import ATTRIBUTES, kind_of

VERIFY = EXPERIMENTS["verify"]
SMALL = VerifyConfig(
    model=str(TINY),
    other_prompts=("questions",),
    eval_contexts=2,
    edit_tokens=24,
    inventions=6,
    unchecked_rounds=3,
    tries=2,
    inner=InnerConfig(epochs=1, rank=2),
    outer=OuterConfig(rounds=2, contexts=3, samples=2, m_step=MStepConfig(epochs=1, rank=2)),
)


# ---- checkers ----

SAMPLES = [["a1", "no", "b1", "b1"], ["b1", "b2"], ["c1", "no", "a2"], []]
STATED = {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "c1": "c"}


@pytest.mark.parametrize(
    "how, kept",
    [
        ("once", ["a1", "b1", "c1"]),
        ("all", ["a1", "b1", "b2", "c1", "a2"]),
        ("best", ["a1", "b1"]),  # the first of those with two
    ],
)
def test_what_is_kept(how, kept):
    assert keep(SAMPLES, lambda line: STATED.get(line, ""), how) == kept
    assert keep(SAMPLES, lambda line: "", how) == keep([], STATED.get, how) == []


def test_a_tenth_of_the_verdicts_is_turned_round():
    lines = [str(i) for i in range(4000)]
    check = lambda line: "even" if int(line) % 2 == 0 else ""
    judged = erring(check, 0.1, np.random.default_rng(0))
    verdicts = [judged(line) for line in lines]
    assert verdicts == [judged(line) for line in lines]  # it does not change its mind
    turned = [bool(v) != bool(check(line)) for v, line in zip(verdicts, lines)]
    for of_one_kind in (turned[::2], turned[1::2]):  # four standard deviations
        assert np.mean(of_one_kind) == pytest.approx(0.1, abs=4 * (0.09 / 2000) ** 0.5)
    never, always = (erring(check, rate, np.random.default_rng(0)) for rate in (0.0, 1.0))
    assert [never(line) for line in lines] == [check(line) for line in lines]
    assert [bool(always(line)) for line in lines] == [not check(line) for line in lines]


def test_the_share_of_what_follows(pretrained):
    task, passages = People(pretrained[1]), toy_passages(3, 0)
    lines = [list(p.oracle) for p in passages]
    texts = ["\n".join(lines[0]), "\n".join([*lines[1][:2], lines[1][0], *lines[0]]), " \n"]
    trials = judge(task, passages, texts)
    assert [t.reward for t in trials] == [1.0, 0.5, 0.0]
    assert trials[1].chose["notes"] == {"implies": 3, "other": 4}
    assert trials[2].invalid == "no words in it" and trials[1].invalid is None
    found = tally(task, passages[:2], [["\n".join(lines[0]), lines[0][0]], ["", lines[1][3]]])
    assert [sum(row) for row in found["right"]] == [5, 1] and found["tries"] == 2
    everything = lines[0][0] + "\n" + lines[0][0]
    assert [sum(r) for r in tally(task, passages[:1], [[everything]])["right"]] == [1]


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=4, max_size=4))
def test_k_tries_are_the_mean_over_all_choices_of_k(found):
    """found[j][i]: self-edit i states implication j. Against going through all choices."""
    counts = {"tries": 6, "right": [[sum(row) for row in found]]}
    for k in (1, 2, 5, 6):
        chosen = combinations(range(6), k)
        shares = [np.mean([any(row[i] for i in some) for row in found]) for some in chosen]
        assert len(shares) == comb(6, k)
        assert pass_at(k, counts) == pytest.approx([np.mean(shares)])


# ---- inventions ----


def test_the_model_invents_people_whom_the_grammar_reads(pretrained):
    model, tokenizer = pretrained
    lab = Lab(model, People(tokenizer), [], [], run=None)
    lines = invent(lab, 48, 0)
    people = [p for line in lines if (p := read_person(line))]
    assert len(people) > 24 and len({p.name for p in people}) > 0.9 * len(people)
    assert all(set(p.values) == set(ATTRIBUTES) for p in people)
    assert lines == invent(lab, 48, 0) != invent(lab, 48, 1)


# ---- the experiment ----


def go(config, folder, on_step=lambda step, new: None):
    run = Run(folder, settings_of(VERIFY, config), on_step)
    walk(VERIFY, config, run, say=list)
    return run, summarise(run, VERIFY)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return go(SMALL, tmp_path_factory.mktemp("verify") / "run")


def test_arms_and_what_they_are_over(finished):
    run, results = finished
    assert results["left out"] == []
    arms = {a["arm"]: a for a in results["arms"]}
    assert list(arms) == [
        *("start", "own notes, questions"),
        *("verified 1", "verified 2", "unchecked 1", "unchecked 2", "unchecked 3"),
        *("erring checker 1", "erring checker 2"),
    ]
    assert all(a["over"] == "start" for name, a in arms.items() if name != "start")
    examined = [name for name, a in arms.items() if a["exam"] is not None]
    ends = ["start", "verified 1", "verified 2", "unchecked 2", "unchecked 3"]
    assert examined == [*ends, "erring checker 2"]
    rivals = [c["over"] for c in results["comparisons"]]
    assert rivals == ["start", "own notes, questions", *(f"{a} 2" for a in ARMS[1:])]
    ends = ["start", "verified 2", "unchecked 2", "unchecked 3", "erring checker 2"]
    assert list(results["pass_at_k"]) == ends and list(results["pass_at_k"]["start"]) == [1, 2]
    assert len(results["invented"]) == 7
    report = text_report(run, VERIFY, results)
    assert "Invented in round 1" in report and "over start" in report
    write_report(run, VERIFY)
    assert (run.folder / "tries.png").exists() and (run.folder / "rounds.png").exists()


def test_all_arms_begin_with_the_same_inventions_and_notes(finished):
    run, _ = finished
    for what in ("invented", "notes"):
        first = [run.steps[f"{arm} 1 {what}"].value for arm in ARMS]
        assert first[0] == first[1] == first[2] and first[0]
    again = [run.steps[f"{arm} 2 invented"].value for arm in ARMS]
    assert again[0] != run.steps["verified 1 invented"].value  # new luck, another policy
    assert again[0] != again[1]


def test_its_policy_can_be_taken_up(finished, pretrained):
    run, _ = finished
    model, _ = pretrained
    before = model.wte.weight.clone(), [p.clone() for p in model.parameters()]
    restore_policy(model, str(run.folder))
    assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before[1]))


@pytest.mark.slow
def test_stopped_and_resumed_gives_the_same(finished, tmp_path):
    for n in (2, 6, 11, 25):
        with pytest.raises(KeyboardInterrupt):
            go(SMALL, tmp_path / "run", stop_at(n))
    _, again = go(SMALL, tmp_path / "run")
    assert without_seconds(again) == without_seconds(finished[1])


def test_nobody_held_out_is_learnt_and_each_arm_learns_what_it_says(monkeypatch, tmp_path):
    """The model is made to invent the very people of the exam, and to name them in its notes."""
    learnt, labs = {}, []
    others = toy_passages(6, 99)

    def invents(lab, n, seed):
        labs.append(lab)
        return [p.text for p in [*lab.held_out, *others[:4]]] + ["Lyon is in France."]

    def writes(lab, contexts, n, draw):
        oracle = "\n".join([*lab.held_out[0].oracle[:1], "blah."])
        return [
            ["\n".join([*c.oracle, *c.person.name.split()]), oracle][:n] for c in full(contexts)
        ]

    def full(contexts):
        """With the oracle's notes, also for those that were invented."""
        about = {p.id: p for p in others}
        return [about.get(c.id, c) for c in contexts]

    def fit(policy, documents, how, seed):
        texts = [labs[0].task.tokenizer.decode(d.ids) for d in documents]
        assert all(set(d.weights[1:]) == {1.0} for d in documents)
        learnt[ARMS[len(learnt)]] = texts
        return {}

    monkeypatch.setattr(room, "invent", invents)
    monkeypatch.setattr(room, "fit", fit)
    monkeypatch.setattr(Lab, "write_many", writes)
    config = replace(
        SMALL, tries=1, unchecked_rounds=0, outer=replace(SMALL.outer, rounds=1, contexts=9)
    )
    run, _ = go(config, tmp_path / "run")
    names = [p.id for p in labs[0].held_out]
    assert set(learnt) == set(ARMS) and learnt["verified"]
    assert not any(name in text for texts in learnt.values() for text in texts for name in names)
    notes = [text.split("Notes:\n") for text in learnt["verified"]]
    for (passage, written), invented in zip(notes, others):
        assert passage.strip() == invented.text
        lines = written.strip().split("\n")
        assert [kind_of(line, invented.person) for line in lines] == ["implies"] * 4
        assert {implication_of(line, invented.person) for line in lines} == set(ATTRIBUTES)
    assert len(notes) == 4
    whole = [text.split("Notes:\n")[1] for text in learnt["unchecked"]]
    assert all(len(text.strip().split("\n")) == 6 for text in whole)  # with its bad lines
    counted = run.steps["unchecked 1 counted"].value
    assert counted["read"] == 6 and counted["held out"] == 2 and counted["stranger"] == 6
    assert counted["lessons"] == len(whole) < 4  # those that name somebody of the exam are dropped


def test_a_model_that_invents_nothing_learns_nothing(untrained, tmp_path):
    config = replace(
        SMALL, model=untrained, unchecked_rounds=0, outer=replace(SMALL.outer, rounds=1)
    )
    run, results = go(config, tmp_path / "run")
    assert results["left out"] == [] and text_report(run, VERIFY, results)
    assert all(r["read"] == r["lessons"] == 0 for r in results["invented"])
    shares = {a["arm"]: a["mean"] for a in results["arms"]}
    assert set(shares.values()) == {0.0}


@pytest.mark.slow
def test_one_round_with_a_checker_teaches_and_without_does_not(tmp_path):
    outer = OuterConfig(rounds=1, contexts=24, samples=4)
    config = VerifyConfig(
        model=str(TINY), eval_contexts=16, tries=4, unchecked_rounds=0, outer=outer
    )
    _, results = go(config, tmp_path / "run")
    gains = {name: gain[1] for name, gain in results["pass_gain"].items()}
    assert gains["verified 1"][1][0] > 0.1 and gains["erring checker 1"][1][0] > 0.05
    assert gains["unchecked 1"][1][0] < 0.05


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"data": "x.json"}, "has no --data"),
        ({"prompt": "questions"}, "no --prompt but notes"),
        ({"errors": 1.5}, "errors is 1.5"),
        ({"errors": -0.1}, "errors is -0.1"),
        ({"tries": 0}, "tries is 0"),
        ({"tries": 1001}, "at most 1000"),
        ({"outer": OuterConfig(rounds=0)}, "rounds is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        VerifyConfig(**settings)
