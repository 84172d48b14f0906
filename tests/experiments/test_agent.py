"""Agents over many interactions: what streams hold, and a run that goes on to the same numbers."""

import json

import pytest

from minseal import UserError
from minseal.experiments.agent import AgentRunConfig
from minseal.experiments.streams import TOLD, draw_stream, last_quarter
from minseal.lab.agent import AgentConfig, GentleConfig
from minseal.lab.lab import EXPERIMENTS, settings_of, walk
from minseal.lab.run import Run
from minseal.lab.table import write_report
from minseal.tasks.people import ATTRIBUTES

ARMS = [
    "never edits",
    "context window",
    "edits always",
    "edits always, replay",
    "edits that help",
    "edits that help, replay",
]
QUICK = AgentConfig(samples=1, exam=1, replay=1, inner=GentleConfig(epochs=1, rank=2))


def go(config, folder, on_step=lambda step, new: None):
    run = Run(folder, settings_of(EXPERIMENTS["agent"], config), on_step)
    walk(EXPERIMENTS["agent"], config, run, say=list)
    text = write_report(run, EXPERIMENTS["agent"])
    return json.loads((folder / "results.json").read_text()), text


def test_corrections_contradict_what_was_told_and_questions_follow_from_the_texts():
    for seed in range(5):
        known = {}
        for i, (text, answers, corrects) in enumerate(draw_stream("s", 16, seed).tells):
            assert corrects == (TOLD[i % 4] == "correction")
            assert len(answers) == (4 if TOLD[i % 4] == "passage" else 1)
            for question, answer in answers.items():
                assert (question in known) == corrects
                assert known.get(question) != answer
                assert any(
                    value in text
                    for a in ATTRIBUTES.values()
                    for value, implied in a.implied.items()
                    if implied == answer
                )
            known |= answers
    assert draw_stream("s", 16, 3) == draw_stream("s", 16, 3) != draw_stream("s", 16, 4)


def test_the_last_quarter_leaves_out_what_could_not_be_asked():
    ages = [[1.0, 1.0]] * 6 + [[0.5, None], [0.0, 1.0]]
    assert last_quarter(ages) == [0.25, 1.0]


class Stopped(Exception):
    pass


def test_every_arm_and_the_same_numbers_after_a_stop(untrained, tmp_path):
    config = AgentRunConfig(model=untrained, streams=1, interactions=48, agent=QUICK)
    results, text = go(config, tmp_path / "whole")
    assert [a["arm"] for a in results["arms"]] == ARMS and "corrected" in text
    assert not results["left out"] and results["arms"][2]["kept"] == 12
    assert [len(x) for x in results["arms"][0]["over time"].values()] == [12, 10, 4]

    steps = []

    def stop(step, new):
        steps.append(step.name)
        if len(steps) == 5:
            raise Stopped

    with pytest.raises(Stopped):
        go(config, tmp_path / "stopped", stop)
    again, _ = go(config, tmp_path / "stopped")
    for a, b in zip(results["arms"], again["arms"]):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert again["comparisons"] == results["comparisons"]


@pytest.mark.parametrize("bad", [dict(interactions=47), dict(streams=0), dict(window=0)])
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        AgentRunConfig(**bad)


def test_settings_that_would_change_nothing_are_refused():
    """Lives that cannot be cut into quarters; what the arms set themselves."""
    for bad in (dict(interactions=56), dict(interactions=60)):
        with pytest.raises(UserError, match="multiple of 16"):
            AgentRunConfig(**bad)
    for settings in (AgentConfig(gate=False), AgentConfig(seed=5)):
        with pytest.raises(UserError, match="--agent.gate"):
            AgentRunConfig(agent=settings)
