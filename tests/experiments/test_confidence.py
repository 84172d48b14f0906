"""Rewards without an answer key, in the outer loop: calibration, arms, stop and resume."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import without_seconds
from kills import stop_at

from minseal import (
    InnerConfig,
    OuterConfig,
    People,
    UserError,
    adapt,
    exam,
    toy_passages,
)
from minseal.experiments.confidence import ConfidenceConfig, own_exams, wrong_prior
from minseal.experiments.confidence_report import calibrate
from minseal.lab.evidence import auroc, rank_correlation
from minseal.lab.lab import EXPERIMENTS, Lab, settings_of, walk
from minseal.lab.proxies import certainty
from minseal.lab.run import Run
from minseal.lab.table import summarise, text_report, write_report
from minseal.outer import MStepConfig, Trial

CONFIDENCE = EXPERIMENTS["confidence"]
SMALL = ConfidenceConfig(
    other_prompts=("questions",),
    eval_contexts=2,
    edit_tokens=16,
    fewer=1,
    answers=2,
    questions=2,
    every=2,
    mislead=4,
    inner=InnerConfig(epochs=1, rank=2),
    outer=OuterConfig(rounds=2, contexts=2, samples=2, m_step=MStepConfig(epochs=1, rank=2)),
)


def trials(*scores, invalid=0):
    """Of one context: (proxy, grades) each, and so many that nobody could read."""
    tried = [Trial("c", reward=proxy, grades=list(grades)) for proxy, grades in scores]
    return "c", tried + [Trial("c", invalid="no words in it")] * invalid


def test_calibration_is_within_contexts_and_leaves_out_where_the_truth_is_alike():
    tried = [
        trials((0.9, (1, 0)), (0.5, (1, 1)), (0.4, (0, 0)), invalid=1),
        trials((3.0, (1, 0)), (9.0, (0, 1))),  # equally good
        trials((2.0, (1, 1)), (2.0, (0, 0))),  # the proxy cannot tell
    ]
    got = calibrate(tried)
    assert got["proxy"] == pytest.approx([1.8 / 4, 6.0, 2.0])
    assert got["truth"] == pytest.approx([1.5 / 4, 0.5, 0.5])
    assert got["rank"] == pytest.approx([rank_correlation([3, 2, 1], [2, 3, 1]), 0])
    assert got["auroc"] == pytest.approx([auroc([3, 2, 1], [2, 3, 1]), 0.5])
    assert got["best"] == pytest.approx([0.0, 0.0])


def test_the_model_sets_itself_an_exam_that_the_passage_answers(pretrained):
    model, tokenizer = pretrained
    passages = toy_passages(5, 3)
    exams = own_exams(Lab(model, People(tokenizer), [], [], run=None), passages, 4)
    assert list(exams) == [p.id for p in passages]
    right = [pair in p.questions for p in passages for pair in exams[p.id]]
    assert len(right) > 10 and np.mean(right) > 0.9


def test_a_wrong_prior_is_sure_still_reads_and_can_be_taught(pretrained):
    """Closed book it has one answer to each question, and is sure of it."""
    model, tokenizer = pretrained
    task, passages = People(tokenizer), toy_passages(8, 4)
    knew = certainty(model, task, passages)
    how = InnerConfig(lr=1e-3, epochs=1, batch=32, rank=32, alpha=64.0)
    with adapt(model, [wrong_prior(task, 32, 0)], how) as adapters:
        adapters.merge()
    believes = certainty(model, task, passages)
    reads = exam(model, task, passages, in_context=True)
    assert np.mean([o.reward for o in believes]) > np.mean([o.reward for o in knew]) + 0.3
    usual = ("France", "hospital", "feathers", "bakery")
    said = [answer == same for o in believes for answer, same in zip(o.answers, usual)]
    assert np.mean(said) > 0.8
    assert np.mean([o.reward for o in reads]) > 0.8
    with adapt(model, [task.oracle(p) for p in passages], ConfidenceConfig().inner) as adapters:
        taught = exam(model, task, passages, adapters)
    assert np.mean([o.reward for o in taught]) > 0.5


# ---- the experiment ----


def go(config, folder, on_step=lambda step, new: None):
    run = Run(folder, settings_of(CONFIDENCE, config), on_step)
    walk(CONFIDENCE, config, run, say=list)
    return run, summarise(run, CONFIDENCE)


@pytest.fixture(scope="module")
def finished(untrained, tmp_path_factory):
    config = replace(SMALL, model=untrained)
    return config, *go(config, tmp_path_factory.mktemp("confidence") / "run")


def test_arms_and_curves(finished):
    _, run, results = finished
    arms = {a["arm"]: a for a in results["arms"]}
    few = ["self-certainty", "agreement", "answer key", "random winners"]
    few += ["wrong prior, certainty", "wrong prior, answer key"]
    long = {"certainty": 2, "own exam": 2}
    loops = {**long, **dict.fromkeys(few, 1)}
    rounds = {f"{name} {n}" for name, n in loops.items()}  # held out: the last alone
    first = {"no adaptation", "passage only", "own notes", "wrong prior, own notes"}
    assert set(arms) == first | rounds | {"own notes, questions"}
    for name in rounds:
        wrong = name.startswith("wrong prior")
        assert arms[name]["over"] == ("wrong prior, own notes" if wrong else "own notes")
    assert {name: len(curve) for name, curve in results["curves"].items()} == loops
    assert "proxy" in text_report(run, CONFIDENCE, results)
    assert results["left out"] == []


def test_all_rewards_start_from_the_same_policy_and_self_edits(finished):
    """And the misled ones from another."""
    _, run, _ = finished
    wrote = {
        name: [t.text for t in run.steps[f"{name} 1 contexts 1-2"].trials]
        for name in ("certainty", "self-certainty", "agreement", "own exam", "answer key")
    }
    assert len({tuple(texts) for texts in wrote.values()}) == 1
    wrong = [t.text for t in run.steps["wrong prior, certainty 1 contexts 1-2"].trials]
    assert wrong == [t.text for t in run.steps["wrong prior, answer key 1 contexts 1-2"].trials]
    assert wrong != wrote["certainty"]


def test_the_report_draws_proxies_and_truths(finished):
    _, run, _ = finished
    write_report(run, CONFIDENCE)
    assert (run.folder / "proxies.png").exists() and (run.folder / "rounds.png").exists()


@pytest.mark.slow
def test_stopped_and_resumed_gives_the_same(finished, tmp_path):
    config, _, results = finished
    for n in (3, 9, 14, 22, 40):
        with pytest.raises(KeyboardInterrupt):
            go(config, tmp_path / "run", stop_at(n))
    _, again = go(config, tmp_path / "run")
    assert without_seconds(again) == without_seconds(results)


@pytest.mark.slow
def test_any_passages_will_do_and_have_no_wrong_prior(untrained, tmp_path):
    data = [
        {
            "context": f"City {i} has a tower. It was built in 19{i}0.",
            "questions": [{"question": "When was it built?", "answer": f"19{i}0"}],
        }
        for i in range(6)
    ]
    (tmp_path / "data.json").write_text(json.dumps(data))
    config = replace(SMALL, model=untrained, data=str(tmp_path / "data.json"))
    _, results = go(config, tmp_path / "run")
    arms = [a["arm"] for a in results["arms"]]
    assert "certainty 2" in arms and not any(arm.startswith("wrong prior") for arm in arms)
    assert results["left out"] == []


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="answers is 0; expected at least 1"):
        ConfidenceConfig(answers=0)
    with pytest.raises(UserError, match="rounds is 0; expected at least 1"):
        ConfidenceConfig(outer=OuterConfig(rounds=0))
