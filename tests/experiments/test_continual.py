"""Passages learnt one after another: the report, worked out again from the log; going on."""

import json
from dataclasses import replace

import numpy as np
import pytest
from kills import stop_at

from minseal import InnerConfig, UserError
from minseal.experiments import continual as module
from minseal.experiments.continual import ContinualConfig, Way
from minseal.lab.evidence import interval, paired
from minseal.lab.lab import EXPERIMENTS, settings_of, walk
from minseal.lab.run import Run
from minseal.lab.table import text_report, write_report
from minseal.tasks.people import KNOWN_PEOPLE

SMALL = ContinualConfig(orders=2, strangers=2, known=0, inner=InnerConfig(epochs=3))
EXPERIMENT = EXPERIMENTS["continual"]
WAYS = {"sequential": Way(), "replay: notes": Way(notes=True)}


def go(config, folder, on_step=lambda step, new: None):
    """Walk two ways, report; (results.json, run)."""
    run = Run(folder, settings_of(EXPERIMENT, config), on_step)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(module, "WAYS", WAYS)
        walk(EXPERIMENT, config, run, say=list)
    write_report(run, EXPERIMENT)
    return json.loads((folder / "results.json").read_text()), run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return go(SMALL, tmp_path_factory.mktemp("continual") / "run")


def test_the_table_is_what_the_log_says(finished):
    """By hand, from the matrices of scores (1 + stages, stages) of two orders."""
    results, run = finished
    assert [a["arm"] for a in results["arms"]] == ["no adaptation", *WAYS]
    for a in results["arms"][1:]:
        lives = [run.steps[f"{a['arm']}, order {i}"].value for i in (1, 2)]
        scores = np.array([life["scores"] for life in lives])
        assert scores.shape == (2, 3, 2)
        last, base = scores[:, 2].mean(1), scores[:, 0].mean(1)
        assert a["mean"] == pytest.approx(last.mean())
        assert [a["gain"], a["gain_ci95"]] == json.loads(json.dumps(paired(last, base)))
        first = [[life["scores"][j][0] for j in range(3)] for life in lives]
        assert a["earlier"][0] == pytest.approx(np.mean([f[2] for f in first]))
        assert a["earlier_gain"][0] == pytest.approx(np.mean([f[2] - f[0] for f in first]))
        assert a["forgetting"][0] == pytest.approx(np.mean([f[1] - f[2] for f in first]))
        now = [(life["scores"][1][0] + life["scores"][2][1]) / 2 for life in lives]
        assert a["at_once"][0] == pytest.approx(np.mean(now))
        for what, last in (
            ("general", [life["general"][-1] for life in lives]),
            ("kl", [life["kl"] for life in lives]),
        ):
            assert a[what] == json.loads(json.dumps(interval(last)))
    text = text_report(run, EXPERIMENT, results)
    assert "general knowledge" in text and "rank correlation of KL" in text
    assert (run.folder / "matrix.png").exists() and (run.folder / "kl.png").exists()


def test_each_order_begins_with_the_same_model_and_passages_of_its_own(finished):
    _, run = finished
    for i in (1, 2):
        lives = [run.steps[f"{name}, order {i}"].value for name in WAYS]
        assert lives[0]["scores"][0] == lives[1]["scores"][0]
        assert lives[0]["scores"][1] == lives[1]["scores"][1]  # nothing to replay yet
        assert lives[0]["kl"] != lives[1]["kl"]
    firsts = [run.steps[f"sequential, order {i}"].value["kl"] for i in (1, 2)]
    assert len(set(firsts)) == 2


@pytest.mark.parametrize("n", [1, 3])
def test_a_report_on_the_way_shows_what_is_there(tmp_path, n):
    """After the first arm, and in the midst of the second."""
    with pytest.raises(KeyboardInterrupt):
        go(SMALL, tmp_path / "run", stop_at(n))
    run = Run(tmp_path / "run")
    assert "LEFT OUT" not in write_report(run, EXPERIMENT)
    assert not (run.folder / "matrix.png").exists()


def test_stopped_and_resumed_gives_the_same(finished, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        go(SMALL, tmp_path / "run", stop_at(3))
    results, run = go(SMALL, tmp_path / "run")
    values = lambda run: {name: step.value for name, step in run.steps.items() if step.value}
    assert values(run) == values(finished[1])
    for a, b in zip(results["arms"], finished[0]["arms"]):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_one_stage_forgets_nothing_and_is_refused():
    with pytest.raises(UserError, match="strangers"):
        replace(SMALL, strangers=1)


def test_an_order_holds_as_many_strangers_and_known_people_as_asked():
    config = replace(SMALL, orders=3, strangers=3, known=2)
    held_out = module.world(config, Run("nowhere", {})).held_out
    known = {person.name for person in KNOWN_PEOPLE}
    assert len({p.id for p in held_out}) == 15
    there = [[p.id in known for p in held_out[i : i + 5]] for i in (0, 5, 10)]
    assert [sum(order) for order in there] == [2, 2, 2]
    assert len(set(map(tuple, there))) > 1  # at no place of their own
