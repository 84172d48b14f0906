"""The report of a made-up run folder, against numbers worked out by hand."""

import json
import os
import sys
from dataclasses import replace

import pytest

from minseal import OuterConfig, UserError
from minseal.experiments.knowledge import KnowledgeConfig
from minseal.lab.lab import EXPERIMENTS, settings_of
from minseal.lab.plots import plots
from minseal.lab.run import Run
from minseal.lab.table import (
    LEFT,
    aligned,
    conclusions,
    summarise,
    table_rows,
    text_report,
    write_report,
)

KNOWLEDGE = EXPERIMENTS["knowledge"]
CONFIG = settings_of(
    KNOWLEDGE,
    KnowledgeConfig(
        eval_contexts=4, reliability_contexts=1, outer=OuterConfig(rounds=2, contexts=2, samples=2)
    ),
)
SEAL, CONTROL = "SEAL", "control: random winners"
# Rewards of four contexts, seconds, what is declared: every interval below follows by hand.
ARMS = {
    "no adaptation": ([0, 0, 0, 0], 1, {}),
    "passage only": ([0, 0, 1, 1], 2, {"over": "no adaptation"}),
    "own notes": (
        [0.5, 0.5, 0.5, 0.5],
        3,
        {"over": "passage only", "series": [SEAL, CONTROL], "at": 0, "rival": True},
    ),
    "round 1": ([0.75, 0.75, 0.75, 0.75], 4, {"over": "own notes", "series": [SEAL], "at": 1}),
    "round 2": ([1, 1, 1, 1], 5, {"over": "round 1", "series": [SEAL], "at": 2}),
    "control 1": ([0.5, 0.5, 0.5, 0.5], 6, {"over": "own notes", "series": [CONTROL], "at": 1}),
    "control 2": (
        [0, 1, 0, 1],
        7,
        {"over": "own notes", "series": [CONTROL], "at": 2, "rival": True},
    ),
    "oracle notes": ([1, 1, 1, 1], 8, {"over": "passage only"}),
    "passage in context": ([1, 1, 1, 1], 9, {"over": "no adaptation"}),
}
NOTES = [{"implies": 2, "vague": 2}, {"implies": 1, "wrong": 3}, {}, {"restates": 2}]
TRAINING = [  # loop, round, mean reward, self-edits, invalid, contexts, those that score alike
    ("round", 1, 0.375, 4, 1, 2, 0),
    ("round", 2, 0.75, 4, 0, 2, 1),
    ("control", 1, 0.5, 2, 0, 2, 2),  # one self-edit of each context: nothing to be alike
]


def trials(rewards):
    return [
        {"context": f"person {i}", "text": "Notes.", "reward": r} for i, r in enumerate(rewards)
    ]


def three(when):
    texts = [f"Tamo Breck is {when} {i}.\nA second line." for i in range(3)]
    return [
        {"context": "Tamo Breck", "text": text, "reward": r}
        for text, r in zip(texts, (0, 0.25, 0.5))
    ]


def made_up(folder, arms=ARMS, steps=True):
    """A run folder as a run leaves it, its log written by hand."""
    events = []

    def done(name, seconds, those=(), **more):
        events.extend({"step": name, **trial} for trial in those)
        events.append({"done": name, "seconds": seconds, **more})

    for name, (rewards, seconds, declared) in arms.items():
        those = trials(rewards)
        if name == "own notes":
            those = [t | ({"chose": {"notes": n}} if n else {}) for t, n in zip(those, NOTES)]
        done(name, seconds, those, arm={"name": name, **declared})
    if steps:
        for loop, r, *rest in TRAINING:
            keys = ("reward", "self_edits", "invalid", "contexts", "alike")
            value, labels = dict(zip(keys, rest)), {"loop": loop, "round": r}
            done(f"{loop} {r} in training", 0, value=value, labels=labels)
        done("round 1 M-step", 100)
        done("reliability", 0, value=[[[1, 1, 0], [0, 0, 0]]])
        for when in ("before", "after"):
            done(f"three self-edits {when}", 0, three(when))
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return Run(folder)


def concluded(folder, **changed):
    """The sentences below the table, the rewards of some arms changed."""
    arms = {n: (changed.get(n.replace(" ", "_"), arm[0]), *arm[1:]) for n, arm in ARMS.items()}
    return conclusions(KNOWLEDGE, summarise(made_up(folder, arms), KNOWLEDGE))


def strictly(text):
    """JSON as every reader takes it: NaN and Infinity are none."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_arms_in_the_order_of_measurement_with_their_means_and_intervals(tmp_path):
    results = summarise(made_up(tmp_path / "r"), KNOWLEDGE)
    assert [a["arm"] for a in results["arms"]] == list(ARMS) and results["kind"] == "knowledge"
    got = {a["arm"]: (a["mean"], list(a["ci95"]), a["seconds"], a["n"]) for a in results["arms"]}
    # Resampling four contexts of which two score 1: all four draws agree with probability 1/16
    # each way, more than 2.5 %, so the interval reaches from 0 to 1. Where all contexts score alike
    # the interval is a point.
    assert got == {name: (sum(r) / 4, [min(r), max(r)], s, 4) for name, (r, s, _) in ARMS.items()}


def test_gains_are_paired_with_the_arm_that_each_names(tmp_path):
    got = {
        a["arm"]: (a["over"], a["gain"], a["gain_ci95"] and list(a["gain_ci95"]))
        for a in summarise(made_up(tmp_path / "r"), KNOWLEDGE)["arms"]
    }
    assert got == {
        "no adaptation": (None, None, None),
        "passage only": ("no adaptation", 0.5, [0, 1]),
        "own notes": ("passage only", 0, [-0.5, 0.5]),  # +.5 twice, -.5 twice
        "round 1": ("own notes", 0.25, [0.25, 0.25]),
        "round 2": ("round 1", 0.25, [0.25, 0.25]),
        "control 1": ("own notes", 0, [0, 0]),
        "control 2": ("own notes", 0, [-0.5, 0.5]),
        "oracle notes": ("passage only", 0.5, [0, 1]),
        "passage in context": ("no adaptation", 1, [1, 1]),
    }


def test_the_last_round_is_compared_with_each_rival(tmp_path):
    results = summarise(made_up(tmp_path / "r"), KNOWLEDGE)
    got = [(c["arm"], c["over"], c["gain"], *c["gain_ci95"]) for c in results["comparisons"]]
    assert got == [
        ("round 2", "own notes", 0.5, 0.5, 0.5),
        ("round 2", "control 2", 0.5, 0, 1),
    ]
    assert (
        summarise(made_up(tmp_path / "r", dict(list(ARMS.items())[:3])), KNOWLEDGE)["comparisons"]
        == []
    )  # one arm of a series is no line


def test_training_seconds_settings_and_kinds_of_note(tmp_path):
    results = summarise(made_up(tmp_path / "r"), KNOWLEDGE)
    keys = ("loop", "round", "reward", "self_edits", "invalid", "contexts", "alike")
    assert results["training"] == [dict(zip(keys, row)) for row in TRAINING]
    assert results["seconds"] == 45 + 100
    assert results["config"] == json.loads(json.dumps(CONFIG))
    mixes = {a["arm"]: a["mix"] for a in results["arms"]}
    # Ten notes in all four self-edits: 3 imply, 2 are vague, 3 wrong, 2 restate.
    shares = {"restates": 0.2, "implies": 0.3, "asks": 0, "vague": 0.2, "wrong": 0.3, "other": 0}
    assert mixes.pop("own notes") == shares and set(mixes.values()) == {None}


def test_reliability_and_held_out_best_of_k(tmp_path):
    """One context, two self-edits, three runs: scores 1 1 0 and 0 0 0.

    Between self-edits: means 2/3 and 0, so 3 * 2 (1/3)^2 / 1 = 2/3. Within: (1/9 + 1/9 + 4/9) / 4
    = 1/6. True variance (2/3 - 1/6) / 3 = 1/6: half of what one run shows; of the mean of three
    1/6 / (1/6 + 1/18) = 3/4. The best in runs 1 and 2 scores (1 + 0) / 2 in the others; in run 3
    both tie, so (1 + 0) / 2 again.
    """
    results = summarise(made_up(tmp_path / "r"), KNOWLEDGE)
    assert results["reliability"] == pytest.approx(1 / 2, abs=1e-12)  # rounding of a few additions
    assert results["reliability_mean"] == pytest.approx(3 / 4, abs=1e-12)
    assert results["best_of_k_heldout"] == pytest.approx(1 / 2, abs=1e-12)
    best = results["best_of_k"]
    assert best["in sample"] == pytest.approx(2 / 3, abs=1e-12)
    assert best["mean"] == pytest.approx(1 / 3, abs=1e-12)
    assert (best["contexts"], best["k"], best["runs"]) == (1, 2, 3)


def test_unfinished_runs_are_summed_up_as_far_as_they_go(tmp_path):
    for n in range(1, 4):
        run = made_up(tmp_path / str(n), dict(list(ARMS.items())[:n]), steps=False)
        results = summarise(run, KNOWLEDGE)
        assert [a["arm"] for a in results["arms"]] == list(ARMS)[:n]
        assert results["reliability"] is results["best_of_k_heldout"] is None
        text = text_report(run, KNOWLEDGE, results)
        assert all(name in text for name in list(ARMS)[:n])


# ---- text ----


def test_the_table_has_a_line_for_every_arm(tmp_path):
    results = summarise(made_up(tmp_path / "r"), KNOWLEDGE)
    lines = aligned(table_rows(KNOWLEDGE, results), left=LEFT).splitlines()
    assert len(lines) == 2 + len(ARMS) and len({len(line) for line in lines[:2]}) == 1
    for line, arm in zip(lines[2:], results["arms"]):
        assert line.startswith(arm["arm"])
        assert line.removeprefix(arm["arm"]).split()[0] == f"{arm['mean']:.2f}"
        assert arm["over"] is None or f"{arm['gain']:+.2f}" in line and arm["over"] in line
    (own,) = [line for line in lines if line.startswith("own notes")]
    assert "implies" in lines[0] and "30%" in own
    for arm in results["arms"]:
        arm["mix"] = None  # real passages: nothing can tell the kinds of note
    assert "implies" not in table_rows(KNOWLEDGE, results)[0]


def test_no_arm_is_called_better_unless_its_interval_is_clear_of_nought(tmp_path):
    def against(name, lines):
        (line,) = [line for line in lines if line.startswith(f"round 2 against {name}")]
        return line

    lines = concluded(tmp_path / "r")
    # Gains of 0.5 both, but the second interval begins at 0.
    assert against("own notes", lines).endswith(": better.")
    assert against("control 2", lines).endswith(": no difference that this run could tell.")
    worse = against("own notes", concluded(tmp_path / "worse", round_2=[0, 0, 0, 0]))
    assert worse == "round 2 against own notes: -0.50 (95 % -0.50 to -0.50): worse."


def test_conclusions_tell_reliability_what_could_not_be_read_and_what_taught_nothing(tmp_path):
    lines = concluded(tmp_path / "r")
    text = "\n".join(lines)
    assert "0.50 for one inner loop, 0.75 for the mean of 3" in text
    assert "0.67 in the run that chose it, 0.50 in other runs" in text
    (unread,) = [line for line in lines if "could not be read" in line]
    assert unread.endswith(": round 1: 1 of 4.")
    (alike,) = [line for line in lines if "alike" in line]
    assert alike.endswith(": round 2: 1 of 2.")
    assert "4 held-out contexts" in text


def test_three_self_edits_stand_side_by_side_with_their_rewards(tmp_path):
    run = made_up(tmp_path / "r")
    text = text_report(run, KNOWLEDGE, summarise(run, KNOWLEDGE))
    for i in range(3):
        assert f"Tamo Breck is before {i}." in text and f"Tamo Breck is after {i}." in text
    assert all(f"reward {r:.2f}" in text for r in (0, 0.25, 0.5))
    assert text.count("A second line.") == 6
    (line,) = [line for line in text.splitlines() if "before 0." in line]
    assert "after 0." in line


def test_the_report_says_what_was_measured(tmp_path):
    run = made_up(tmp_path / "r")
    changed = {**CONFIG, "data": "some/passages.json", "grade": "f1"}
    (tmp_path / "r" / "config.json").write_text(json.dumps(changed))
    write_report(Run(run.folder), KNOWLEDGE)
    report = (tmp_path / "r" / "report.md").read_text()
    assert "some/passages.json" in report and "f1" in report.lower()


# ---- files ----


def test_results_json_is_the_summary(tmp_path):
    run = made_up(tmp_path / "r")
    write_report(run, KNOWLEDGE)
    results = strictly((tmp_path / "r" / "results.json").read_text())
    assert results == json.loads(json.dumps(summarise(run, KNOWLEDGE)))
    # Who reads results.json relies on these names.
    assert set(results) >= {"kind", "arms", "training", "seconds", "config", "comparisons"}
    assert set(results) >= {"reliability", "reliability_mean", "best_of_k_heldout", "best_of_k"}
    of_arm = {"arm", "mean", "ci95", "gain", "gain_ci95", "over", "seconds", "n", "invalid", "mix"}
    assert all(set(a) >= of_arm for a in results["arms"])


def test_results_json_is_json_where_all_scores_are_alike(tmp_path):
    run = made_up(tmp_path / "r")
    for step in run.steps.values():
        for t in step.trials:
            t.reward = 0.0
    run.steps["reliability"].value = [[[0, 0, 0], [0, 0, 0]]]
    write_report(run, KNOWLEDGE)
    results = strictly((tmp_path / "r" / "results.json").read_text())
    assert results["reliability"] is None and results["best_of_k_heldout"] == 0
    assert "nan" not in (tmp_path / "r" / "report.md").read_text().lower()


def test_report_and_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    run = made_up(tmp_path / "r")
    text = write_report(run, KNOWLEDGE)
    report = (tmp_path / "r" / "report.md").read_text()
    assert all(name in report for name in ARMS) and text in report
    assert text == text_report(run, KNOWLEDGE, summarise(run, KNOWLEDGE))
    for name in ("ladder.png", "rounds.png", "mix.png"):
        picture = (tmp_path / "r" / name).read_bytes()
        assert f"]({name})" in report and picture.startswith(b"\x89PNG") and len(picture) > 5000
    assert not list((tmp_path / "r").glob("*.tmp"))
    texts = lambda: [(tmp_path / "r" / n).read_text() for n in ("results.json", "report.md")]
    before = texts()
    assert write_report(Run(tmp_path / "r"), KNOWLEDGE) == text  # made again: the same
    assert texts() == before


def test_pictures_of_an_unfinished_run(tmp_path):
    pytest.importorskip("matplotlib")
    run = made_up(tmp_path / "r", dict(list(ARMS.items())[:2]), steps=False)
    assert plots(run, KNOWLEDGE, summarise(run, KNOWLEDGE)) == ["ladder.png"]


def test_without_matplotlib_a_line_names_the_extra_and_all_else_is_made(tmp_path, monkeypatch):
    loaded = [m for m in sys.modules if m.split(".")[0] == "matplotlib"]
    for name in [*loaded, "matplotlib", "matplotlib.figure"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    text = write_report(made_up(tmp_path / "r"), KNOWLEDGE)
    (line,) = [line for line in text.splitlines() if "minseal[plots]" in line]
    assert f"minseal report {tmp_path / 'r'}" in line
    report = (tmp_path / "r" / "report.md").read_text()
    assert all(name in report for name in ARMS) and "![" not in report
    assert (tmp_path / "r" / "results.json").exists() and not list((tmp_path / "r").glob("*.png"))


@pytest.mark.parametrize("name", ["results.json", "report.md", "report.html", "ladder.png"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, name):
    if name.endswith("png"):
        pytest.importorskip("matplotlib")
    run = made_up(tmp_path / "r")
    os.mkdir(tmp_path / "r" / name)  # a folder in its place
    with pytest.raises(UserError, match=str(tmp_path)) as e:
        write_report(run, KNOWLEDGE)
    assert len(str(e.value).splitlines()) == 1
    assert Run(tmp_path / "r").steps.keys() == run.steps.keys()


def test_arms_on_different_contexts_are_not_paired(tmp_path):
    run = made_up(tmp_path / "run")
    run.steps["round 1"].trials.reverse()
    results = summarise(run, EXPERIMENTS["knowledge"])
    told = [line for line in results["left out"] if "measured on different contexts" in line]
    assert [line.split(":")[0] for line in told] == ["gain of 'round 1'", "gain of 'round 2'"]
    gains = {a["arm"]: a["gain"] for a in results["arms"]}
    assert gains["round 1"] is gains["round 2"] is None and gains["control 1"] == 0


def test_an_arm_whose_students_failed_does_not_print_as_a_score(tmp_path):
    run = made_up(tmp_path / "r")
    for i, trial in enumerate(run.steps["round 1"].trials):
        trial.invalid = "loss became nan at step 1" if i else None
    run.steps["control 1"].trials[0].invalid = "no words in it"
    text = text_report(run, KNOWLEDGE, summarise(run, KNOWLEDGE))
    failed = "self-edits could not be read or trained on and count as 0"
    loud = "ATTENTION, the score says little: round 1: 3 of 4"
    assert f"\n{loud} {failed} (loss became nan at step 1).\n" in text
    assert f"\ncontrol 1: 1 of 4 {failed} (no words in it).\n" in text
    assert text.count(failed) == 2


@pytest.mark.parametrize(
    "step, change, told, without",
    [
        ("round 1", {"trials": []}, "arm 'round 1': it has no trials", ["round 1"]),
        ("oracle notes", {"reward": 7}, "rewards from 0 to 1, got 1 to 7", ["oracle notes"]),
        ("oracle notes", {"over": "nothing"}, "gain of 'oracle notes': KeyError", []),
        ("reliability", {"value": [[1], [2, 3]]}, "reliability: ", []),
        ("reliability", {"value": "x"}, "reliability: ", []),
        ("round 1 in training", {"value": {"reward": 1}}, "there is no self_edits", []),
        ("control 1", {"chose": {"notes": 5}}, "arm 'control 1': TypeError", ["control 1"]),
    ],
)
def test_what_makes_no_sense_is_left_out_by_name_and_the_rest_is_shown(
    tmp_path, step, change, told, without
):
    run = made_up(tmp_path / "r")
    there, (key, value) = run.steps[step], *change.items()
    if key == "over":
        there.arm = replace(there.arm, over=value)
    elif key in ("reward", "chose"):
        setattr(there.trials[0], key, value)
    else:
        setattr(there, key, value)
    text = write_report(run, KNOWLEDGE)
    results = strictly((tmp_path / "r" / "results.json").read_text())
    assert [a["arm"] for a in results["arms"]] == [n for n in ARMS if n not in without]
    assert any(told in line for line in results["left out"])
    assert "LEFT OUT" in text and all(line in text for line in results["left out"])


def test_a_whole_run_leaves_nothing_out(tmp_path):
    run = made_up(tmp_path / "r")
    assert "LEFT OUT" not in write_report(run, KNOWLEDGE)
    assert summarise(run, KNOWLEDGE)["left out"] == []
