"""What every experiment gets without asking, shown on one that is declared in this file only."""

import importlib.util
import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import events, without_seconds
from kills import stop_at

from minseal import InnerConfig, People, Trial, UserError, exam, load, merge_state, toy_passages
from minseal.commands.cli import main
from minseal.experiments.knowledge import KnowledgeConfig
from minseal.experiments.passages import people
from minseal.lab.lab import EXPERIMENTS, Lab, experiment, settings_of, summarise_round, walk
from minseal.lab.plots import matrix
from minseal.lab.run import Run
from minseal.lab.table import write_report
from minseal.outer import OuterConfig


@dataclass(frozen=True)
class LastingConfig(KnowledgeConfig):
    """What is learnt one after another, and what is forgotten."""

    stages: int = 3  # passages, one after another
    replay: int = 1  # earlier passages that each stage learns again, too


@experiment(
    "lasting",
    LastingConfig,
    open=people,
    pictures=[matrix("one after another", "with replay")],
)
def lasting(lab, config):
    """Passages learnt one after another, for good: what is left of the first in the end?"""
    passages = lab.held_out[: config.stages]
    lab.arm("no adaptation", lambda: lab.plain(passages))
    for name, replay in (("one after another", 0), ("with replay", config.replay)):
        lab.reset()
        notes = []
        for stage, passage in enumerate(passages, 1):
            here = f"{name}, stage {stage}"
            (text,) = lab.write([passage], draw=here)
            notes.append((passage, text))
            lab.learn_for_good(here, notes[-1 - replay :])
            lab.arm(here, lambda: lab.plain(passages), over="no adaptation", series=name, at=stage)


LASTING = EXPERIMENTS.pop("lasting")  # no other test file shall meet it
SERIES = ("one after another", "with replay")
STAGES = [f"{name}, stage {i}" for name in SERIES for i in (1, 2, 3)]
SMALL = LastingConfig(
    eval_contexts=3,
    edit_tokens=48,
    inner=InnerConfig(epochs=2, rank=2),
    outer=OuterConfig(rounds=0),
)
OPTIONS = "--rounds 0 --eval-contexts 3 --edit-tokens 48 --inner.epochs 2 --inner.rank 2".split()


@pytest.fixture(autouse=True)
def declared(monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "lasting", LASTING)


def go(config, folder, on_step=lambda step, new: None):
    run = Run(folder, settings_of(LASTING, config), on_step)
    walk(LASTING, config, run, say=list)
    write_report(run, LASTING)
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, untrained):
    """(settings, folder, results) of a whole run."""
    config, folder = replace(SMALL, model=untrained), tmp_path_factory.mktemp("lab") / "run"
    return config, folder, go(config, folder)


# ---- the command ----


def test_it_has_a_command_whose_help_says_its_settings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as e:
        main(["run", "lasting", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert e.value.code == 0 and "What is learnt one after another, and what is forgotten." in told
    assert "--stages STAGES passages, one after another (default: 3)" in told
    assert "each stage learns again, too (default: 1)" in told
    assert "--inner.lr" in told and "--temperature" in told and "runs/lasting" in told


def test_it_stands_among_the_others(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    told = capsys.readouterr().out
    assert "minseal run lasting: What is learnt one after another" in told
    assert "minseal run knowledge: " in told


def test_a_mistyped_option_and_a_value_that_is_none_are_one_line(capsys, tmp_path):
    for words, told in ((["--replai", "2"], "--replay"), (["--stages", "few"], "few")):
        with pytest.raises(SystemExit) as e:
            main(["run", "lasting", "--out", str(tmp_path / "run"), *words])
        err = capsys.readouterr().err
        assert e.value.code == 2 and told in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_command_tells_each_step_and_ends_with_the_table(untrained, tmp_path, capsys):
    folder = tmp_path / "run"
    main(["run", "lasting", "--model", untrained, "--out", str(folder), *OPTIONS])
    out = capsys.readouterr().out
    # A line for each step that took some time.
    progress = re.findall(r"^ +\d+ s  (.*?)(?: +reward [\d.]+)?$", out, re.MULTILINE)
    done = [e for e in events(folder) if "done" in e]
    assert progress == [e["done"] for e in done if e["seconds"] >= 0.01]
    rows = [line for line in out.splitlines() if line.startswith(("no adaptation", *SERIES))]
    assert len(rows) == 7 and all("no adaptation" in row for row in rows)
    assert "3 held-out contexts" in out and str(folder) in out
    # The same command again finds everything done, and `minseal report` says the same.
    table = out[out.index("\narm ") :]
    main(["run", "lasting", "--model", untrained, "--out", str(folder), *OPTIONS])
    again = capsys.readouterr().out
    assert f"going on after {len(done)} steps that were done already" in again
    assert again[again.index("\narm ") :] == table
    main(["report", str(folder)])
    told, last = capsys.readouterr().out.strip().rsplit("\n", 1)
    assert told.strip() in table and last.startswith(f"{len(done)} steps done")


# ---- the results ----


def test_results_have_a_row_for_each_arm_as_declared(finished):
    config, folder, results = finished
    assert [a["arm"] for a in results["arms"]] == ["no adaptation", *STAGES]
    assert results["kind"] == "lasting" and results["config"]["replay"] == 1
    rows = [(a["over"], a["series"], a["at"], a["n"]) for a in results["arms"][1:]]
    expected = [("no adaptation", [name], at, 3) for name in SERIES for at in (1, 2, 3)]
    assert rows == expected and results["arms"][0]["over"] is None
    assert results["comparisons"] == results["training"] == []  # no rival, no outer loop
    assert results["reliability"] is None


def test_pictures_are_drawn(finished):
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("needs matplotlib")
    _, folder, _ = finished
    report = (folder / "report.md").read_text()
    for name in ("ladder.png", "rounds.png", "matrix.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG") and f"]({name})" in report


def test_the_matrix_has_a_row_for_each_place_and_a_column_for_each_context(finished):
    """As text: in percent, one number for each stage and passage."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    _, folder, results = finished
    run = Run(folder)
    for i, name in enumerate(STAGES):
        for j, trial in enumerate(run.steps[name].trials):
            trial.reward = (i + 10 * j) / 100
    matrix(*SERIES, "no such series")(run, results, lambda name, draw, size: draw(figure))
    shown = [[int(text.get_text()) for text in axes.texts] for axes in figure.axes]
    by_hand = [[i + 10 * j for i in stages for j in range(3)] for stages in (range(3), range(3, 6))]
    assert shown == by_hand
    assert [axes.get_title() for axes in figure.axes] == list(SERIES)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["1", "2", "3"]


@pytest.mark.parametrize("stops", [(1,), (2, 2, 2), (3, 6), (8, 9), (12,), (13,)], ids=str)
def test_stopped_and_resumed_gives_the_same(finished, tmp_path, stops):
    """Ctrl-C as the n-th step is done, read back or not; at even n it has learnt, not asked."""
    config, folder, results = finished

    for n in stops:
        with pytest.raises(KeyboardInterrupt):
            go(config, tmp_path / "run", stop_at(n))
    assert without_seconds(go(config, tmp_path / "run")) == without_seconds(results)
    assert without_seconds(events(tmp_path / "run")) == without_seconds(events(folder))


def test_what_is_learnt_for_good_is_what_was_kept(tmp_path):
    """The arms again by hand: the kept adapters merged one by one, each series from the start."""
    config = replace(SMALL, stages=2, eval_contexts=2, inner=InnerConfig(epochs=8))
    go(config, tmp_path / "run")
    run, answers = Run(tmp_path / "run"), []
    lab = people(config, run)
    for name in SERIES:
        model, _ = load(config.model)
        for stage in (1, 2):
            merge_state(model, run.result(f"{name}, stage {stage}, learnt"))
            outcomes = exam(model, lab.task, lab.held_out)
            trials = run.steps[f"{name}, stage {stage}"].trials
            assert [t.answers for t in trials] == [o.answers for o in outcomes]
            assert [t.reward for t in trials] == [o.reward for o in outcomes]
            answers.append([o.answers for o in outcomes])
    assert answers[0] != answers[1] and answers[1] != answers[3]  # it did learn, and otherwise


# ---- what arms are made of ----


@pytest.fixture
def lab(tmp_path):
    """A lab with the pretrained model and two people to learn about."""
    config = replace(SMALL, eval_contexts=2, outer=OuterConfig(rounds=1, contexts=2, samples=2))
    return people(config, Run(tmp_path / "run", {}))


def weights(lab):
    return {name: tensor.clone() for name, tensor in lab.policy.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_draw_names_its_luck(lab):
    one = lab.write(lab.held_out, draw="a")
    assert one == lab.write(lab.held_out, draw="a") != lab.write(lab.held_out, draw="b")
    assert lab.write(lab.held_out) == lab.write(lab.held_out) != one
    assert lab.write(lab.held_out, draw=(1, "a")) != lab.write(lab.held_out, draw=(2, "a"))


def test_studying_and_asking_leave_the_policy_as_it_was(lab):
    before = weights(lab)
    trials = lab.study(lab.held_out, lab.task.oracle)
    assert [t.context for t in trials] == [p.id for p in lab.held_out]
    assert lab.study_own(lab.held_out) and lab.plain(lab.held_out, in_context=True)
    assert same(before, weights(lab))


def test_contexts_are_asked_alike_however_many_at_once(lab):
    five = toy_passages(5, 1)
    together = lab.plain(five)
    lab.outer = replace(lab.outer, at_once=2)
    assert lab.plain(five) == together and len(together) == 5


def test_reset_brings_the_first_policy_back(lab):
    before = weights(lab)
    lab.learn_for_good("one", [(lab.held_out[0], lab.task.oracle(lab.held_out[0]))])
    assert not same(before, weights(lab))
    lab.reset()
    assert same(before, weights(lab))


def test_training_that_fails_says_what_to_lower_and_leaves_the_policy_plain(lab):
    lab.inner, before = InnerConfig(lr=1e18, epochs=3), weights(lab)
    with pytest.raises(UserError, match="lower --inner.lr"):
        lab.learn_for_good("one", [(p, lab.task.oracle(p)) for p in lab.held_out])
    assert same(before, weights(lab)) and not lab.run.steps


def test_a_text_that_is_no_self_edit_teaches_nothing(lab):
    """A weak policy writes such texts; the passages beside it are learnt all the same."""
    first, second = lab.held_out
    before = weights(lab)
    lab.learn_for_good("nothing", [(first, "...")])
    assert same(before, weights(lab))
    kept = lab.learn_for_good("one of two", [(first, "..."), (second, "A note.")])
    assert not same(before, weights(lab))
    lab.reset()
    alone = lab.learn_for_good("one of one", [(second, "A note.")])
    assert all(torch.equal(kept[name], alone[name]) for name in alone)


def test_an_outer_loop_is_a_series_of_arms(lab):
    first = lab.arm("own", lambda: lab.study_own(lab.held_out), series="SEAL", at=0)
    history = lab.outer_loop(
        "round", select="random", rounds=2, series="SEAL", over="own", follow=True, rival=True
    )
    assert len(history) == 2 and len(first) == 2
    arms = [step.arm for step in lab.run.arms()]
    assert [(a.name, a.over, a.series, a.at, a.rival) for a in arms] == [
        ("own", "", ("SEAL",), 0, False),
        ("round 1", "own", ("SEAL",), 1, False),
        ("round 2", "round 1", ("SEAL",), 2, True),
    ]
    assert lab.run.steps["round 2 in training"].value == summarise_round(history[1])


def test_an_improvement_and_a_reward_are_arguments(lab):
    """An M-step that learns nothing, and a reward by length: the loop asks them and no others."""
    seen = []

    def improve(policy, task, tried, seed):
        seen.append([trial.reward for _, trials in tried for trial in trials])
        return {}

    def reward(student, task, contexts, adapters):
        outcomes = exam(student, task, contexts, adapters)
        return [replace(outcome, reward=0.125) for outcome in outcomes]

    before = weights(lab)
    lab.outer_loop("mine", improve=improve, reward=reward)
    assert seen == [[0.125] * 4] and same(before, weights(lab))
    assert [a.arm.name for a in lab.run.arms()] == ["mine 1"]


def test_a_round_is_summed_up_by_hand():
    tried = [
        ("a", [Trial("a", 1.0), Trial("a", 0.5)]),
        ("b", [Trial("b", 0.0, invalid="no words in it"), Trial("b", 0.0)]),
    ]
    expected = {"reward": 0.375, "self_edits": 4, "invalid": 1, "contexts": 2, "alike": 1}
    assert summarise_round(tried) == expected


def test_reliability_keeps_the_rewards_of_each_self_edit_together(lab):
    """(contexts, self-edits, runs): the first is the E-step's own, the others' seeds differ."""
    history = lab.outer_loop("round")
    lab.reset()
    lab.reliability(history, 1)
    scores = np.array(lab.run.steps["reliability"].value)
    assert scores.shape == (1, 2, 3)
    ((context, trials), *_) = history[0]
    assert scores[0, :, 0].tolist() == [t.reward for t in trials]
    for i in (1, 2):
        again = lab.study([context] * 2, [t.text for t in trials], lab.seed + i)
        assert scores[0, :, i].tolist() == [t.reward for t in again]
    lab.reliability([], 1)  # no rounds: nothing to measure


def test_arms_have_names_of_their_own_and_are_over_arms_that_were_measured(lab):
    """Else a second arm would be read back from the first, and a gain be left out in silence."""
    lab.arm("before", lambda: lab.plain(lab.held_out))
    with pytest.raises(ValueError, match="two arms of the name 'before'"):
        lab.arm("before", lambda: lab.plain(lab.held_out))
    with pytest.raises(ValueError, match="over 'befroe', which was not measured"):
        lab.arm("after", lambda: lab.plain(lab.held_out), over="befroe")


def test_a_model_that_computes_no_numbers_is_refused_before_anything_is_measured(
    untrained, tmp_path
):
    """Each of its weights is a number, so loading sees nothing; every score would be 0."""
    model, tokenizer = load(untrained)
    model.norm.weight.data.fill_(3e38)
    run = Run(tmp_path / "run", {"kind": "test"})
    with pytest.raises(UserError, match="NaN or infinite"):
        Lab(model, People(tokenizer), [], toy_passages(1, 0), run)
    assert not (tmp_path / "run").exists()
