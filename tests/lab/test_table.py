"""The report of a made-up run folder, against numbers worked out by hand."""

import json
import os
import sys
from dataclasses import asdict

import pytest

from minseal import OuterConfig, UserError
from minseal.experiment import KnowledgeConfig
from minseal.report import conclusions, plots, summarise, table, text_report, write_report
from minseal.runs import Run

CONFIG = asdict(
    KnowledgeConfig(
        eval_contexts=4, reliability_contexts=1, outer=OuterConfig(rounds=2, contexts=2, samples=2)
    )
)
# arm, rewards of its four contexts, seconds: every interval below follows by hand from these
ARMS = [
    ("no adaptation", [0, 0, 0, 0], 1),
    ("passage only", [0, 0, 1, 1], 2),
    ("own notes", [0.5, 0.5, 0.5, 0.5], 3),
    ("round 1", [0.75, 0.75, 0.75, 0.75], 4),
    ("round 2", [1, 1, 1, 1], 5),
    ("control 1", [0.5, 0.5, 0.5, 0.5], 6),
    ("control 2", [0, 1, 0, 1], 7),
    ("oracle notes", [1, 1, 1, 1], 8),
    ("passage in context", [1, 1, 1, 1], 9),
]
MIXES = [{"implies": 2, "vague": 2}, {"implies": 1, "wrong": 3}, {}, {"restates": 2}]
THREE = {
    when: [
        {"context": "Tamo Breck", "text": f"Tamo Breck is {when} {i}.\nA second line.", "reward": r}
        for i, r in enumerate((0, 0.25, 0.5))
    ]
    for when in ("before", "after")
}


def trials(rewards):
    return [
        {"context": f"person {i}", "text": "Notes.", "reward": r} for i, r in enumerate(rewards)
    ]


def of(context, rewards):
    """Several self-edits of one context."""
    return [{"context": context, "text": "Notes.", "reward": r} for r in rewards]


def made_up(folder, arms=ARMS, steps=True):
    """A run folder as a run leaves it, written by hand; the arms in an order in which no run does them."""
    done = [(name, s, trials(rewards)) for name, rewards, s in reversed(arms)]
    for name, _, those in done:
        if name == "own notes":
            for trial, mix in zip(those, MIXES):
                trial["description"] = mix
    if steps:
        unread = [
            {"context": "b", "text": "?", "reward": 0.5},
            {"context": "b", "text": "", "reward": 0.0, "invalid": "no words in it"},
        ]
        done += [
            ("round 1 contexts 1-2", 10, of("a", [1, 0]) + unread),
            ("round 1 M-step", 20, []),
            ("round 2 contexts 1-1", 0, of("c", [1, 1])),
            ("round 2 contexts 2-2", 0, of("d", [1, 0])),
            ("control 1 contexts 1-2", 0, of("a", [0.25]) + of("b", [0.75])),
            ("reliability, run 1", 30, of("a", [1, 0])),
            ("reliability, run 2", 40, of("a", [0, 0])),
            ("three self-edits before", 0, THREE["before"]),
            ("three self-edits after", 0, THREE["after"]),
        ]
    events = [
        event
        for name, s, those in done
        for event in [*({"step": name, **t} for t in those), {"done": name, "seconds": s}]
    ]
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return Run(folder)


def strictly(text):
    """JSON as every reader takes it: NaN and Infinity are none."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_arms_in_the_order_of_the_ladder_with_their_means_and_intervals(tmp_path):
    results = summarise(made_up(tmp_path / "r"))
    assert [a["arm"] for a in results["arms"]] == [name for name, _, _ in ARMS]
    got = {a["arm"]: (a["mean"], list(a["ci95"]), a["seconds"], a["n"]) for a in results["arms"]}
    # Resampling four contexts of which two score 1: all four draws agree with probability 1/16 each way, more than 2.5 %,
    # so the interval reaches from 0 to 1. Where all contexts score alike the interval is a point.
    assert got == {name: (sum(r) / 4, [min(r), max(r)], s, 4) for name, r, s in ARMS}


def test_gains_are_paired_with_the_arm_below(tmp_path):
    got = {
        a["arm"]: (a["over"], a["gain"], a["gain_ci95"] and list(a["gain_ci95"]))
        for a in summarise(made_up(tmp_path / "r"))["arms"]
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


def test_comparisons_training_seconds_and_mix(tmp_path):
    results = summarise(made_up(tmp_path / "r"))
    assert [
        (c["arm"], c["over"], c["gain"], list(c["gain_ci95"])) for c in results["comparisons"]
    ] == [("round 2", "own notes", 0.5, [0.5, 0.5]), ("round 2", "control 2", 0.5, [0, 1])]
    assert [
        (t["loop"], t["round"], t["reward"], t["self_edits"], t["invalid"])
        for t in results["training"]
    ] == [("round", 1, 0.375, 4, 1), ("round", 2, 0.75, 4, 0), ("control", 1, 0.5, 2, 0)]
    assert results["seconds"] == 45 + 100 and results["config"] == json.loads(json.dumps(CONFIG))
    mixes = {a["arm"]: a["mix"] for a in results["arms"]}
    # ten notes in all four self-edits: 3 imply, 2 are vague, 3 wrong, 2 restate
    assert mixes.pop("own notes") == {
        "restates": 0.2,
        "implies": 0.3,
        "asks": 0,
        "vague": 0.2,
        "wrong": 0.3,
        "other": 0,
    }
    assert set(mixes.values()) == {None}


def test_reliability_and_held_out_best_of_k(tmp_path):
    """One context, two self-edits, three runs: scores 1 1 0 and 0 0 0.

    Between self-edits: means 2/3 and 0, so 3 * 2 (1/3)^2 / 1 = 2/3. Within: (1/9 + 1/9 + 4/9) / 4 = 1/6. True variance
    (2/3 - 1/6) / 3 = 1/6: half of what one run shows; of the mean of three 1/6 / (1/6 + 1/18) = 3/4.
    The best in runs 1 and 2 scores (1 + 0) / 2 in the others; in run 3 both tie, so (1 + 0) / 2 again.
    """
    results = summarise(made_up(tmp_path / "r"))
    assert results["reliability"] == pytest.approx(1 / 2, abs=1e-12)  # rounding of a few additions
    assert results["reliability_mean"] == pytest.approx(3 / 4, abs=1e-12)
    assert results["best_of_k_heldout"] == pytest.approx(1 / 2, abs=1e-12)
    best = results["best_of_k"]
    assert best["in sample"] == pytest.approx(2 / 3, abs=1e-12) and best["mean"] == pytest.approx(
        1 / 3, abs=1e-12
    )
    assert (best["contexts"], best["k"], best["runs"]) == (1, 2, 3)


def test_unfinished_runs_are_summed_up_as_far_as_they_go(tmp_path):
    for n in range(1, 4):
        results = summarise(made_up(tmp_path / str(n), ARMS[:n], steps=False))
        assert [a["arm"] for a in results["arms"]] == [name for name, _, _ in ARMS[:n]]
        assert results["reliability"] is results["best_of_k_heldout"] is None
        assert all(name in text_report(Run(tmp_path / str(n)), results) for name, _, _ in ARMS[:n])


# ---- text --------------------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_every_arm(tmp_path):
    results = summarise(made_up(tmp_path / "r"))
    lines = table(results).splitlines()
    assert len(lines) == 2 + len(ARMS) and len({len(line) for line in lines[:2]}) == 1
    for line, arm in zip(lines[2:], results["arms"]):
        assert (
            line.startswith(arm["arm"])
            and line.split(arm["arm"], 1)[1].split()[0] == f"{arm['mean']:.2f}"
        )
        assert arm["over"] is None or f"{arm['gain']:+.2f}" in line and arm["over"] in line
    assert "implies" in lines[0] and "30%" in next(
        line for line in lines if line.startswith("own notes")
    )
    for arm in results["arms"]:
        arm["mix"] = None
    assert "implies" not in table(results)  # real passages: nothing can tell the kinds of note


def test_no_arm_is_called_better_unless_its_interval_is_clear_of_nought(tmp_path):
    lines = conclusions(summarise(made_up(tmp_path / "r"))).splitlines()
    (own,), (control,) = (
        [line for line in lines if line.startswith(f"round 2 against {name}")]
        for name in ("own notes", "control 2")
    )
    assert (
        own.endswith(": better.") and "better" not in control
    )  # gains of .5 both, but the second interval begins at 0
    worse = [(name, [0, 0, 0, 0] if name == "round 2" else r, s) for name, r, s in ARMS]
    text = conclusions(summarise(made_up(tmp_path / "worse", worse)))
    assert "round 2 against own notes: -0.50 (95 % -0.50 to -0.50): worse." in text


def test_conclusions_tell_reliability_what_could_not_be_read_and_what_taught_nothing(tmp_path):
    text = conclusions(summarise(made_up(tmp_path / "r")))
    assert "0.50 for one inner loop, 0.75 for the mean of 3" in text
    assert "0.67 in the run that chose it, 0.50 in other runs" in text
    (unread,) = [line for line in text.splitlines() if "could not be read" in line]
    assert "round 1: 1 of 4" in unread and "round 2" not in unread
    (alike,) = [line for line in text.splitlines() if "alike" in line]
    assert (
        "round 2: 1 of 2" in alike and "round 1" not in alike
    )  # the two of context c score 1 and 1
    assert "4 held-out contexts" in text


def test_three_self_edits_stand_side_by_side_with_their_rewards(tmp_path):
    run = made_up(tmp_path / "r")
    text = text_report(run, summarise(run))
    assert all(
        f"Tamo Breck is {when} {i}." in text for when in ("before", "after") for i in range(3)
    )
    assert (
        all(f"reward {r:.2f}" in text for r in (0, 0.25, 0.5)) and text.count("A second line.") == 6
    )
    (line,) = [line for line in text.splitlines() if "before 0." in line]
    assert "after 0." in line


def test_the_report_says_what_was_measured(tmp_path):
    run = made_up(tmp_path / "r")
    (tmp_path / "r" / "config.json").write_text(
        json.dumps({**CONFIG, "data": "some/passages.json", "grade": "f1"})
    )
    write_report(Run(run.folder), say=list)
    report = (tmp_path / "r" / "report.md").read_text()
    assert "passages.json" in report and "f1" in report.lower()


# ---- files -------------------------------------------------------------------------------------------------------------


def test_results_json_is_the_summary(tmp_path):
    run = made_up(tmp_path / "r")
    returned = write_report(run, say=list)
    results = strictly((tmp_path / "r" / "results.json").read_text())
    assert results == json.loads(json.dumps(summarise(run))) == json.loads(json.dumps(returned))
    assert {"arms", "reliability", "best_of_k_heldout", "seconds", "config"} <= set(results)
    assert all(
        {"arm", "mean", "ci95", "gain", "gain_ci95", "seconds", "n"} <= set(a)
        for a in results["arms"]
    )


def test_results_json_is_json_where_all_scores_are_alike(tmp_path):
    run = made_up(tmp_path / "r")
    for step in run.done.values():
        for t in step["trials"]:
            t["reward"] = 0.0
    write_report(run, say=list)
    results = strictly((tmp_path / "r" / "results.json").read_text())
    assert results["reliability"] is None and results["best_of_k_heldout"] == 0
    assert "nan" not in (tmp_path / "r" / "report.md").read_text().lower()


def test_report_and_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    run, said = made_up(tmp_path / "r"), []
    write_report(run, said.append)
    report = (tmp_path / "r" / "report.md").read_text()
    assert all(name in report for name, _, _ in ARMS) and text_report(run, summarise(run)) in report
    for name in ("ladder.png", "rounds.png", "mix.png"):
        picture = (tmp_path / "r" / name).read_bytes()
        assert f"]({name})" in report and picture.startswith(b"\x89PNG") and len(picture) > 5000
    assert not said and not list((tmp_path / "r").glob("*.tmp"))
    before = (tmp_path / "r" / "results.json").read_text(), report
    write_report(Run(tmp_path / "r"), said.append)  # made again: the same
    assert before == (
        (tmp_path / "r" / "results.json").read_text(),
        (tmp_path / "r" / "report.md").read_text(),
    )


def test_pictures_of_an_unfinished_run(tmp_path):
    pytest.importorskip("matplotlib")
    run = made_up(tmp_path / "r", ARMS[:2], steps=False)
    assert plots(run, summarise(run)) == ["ladder.png"]


def test_without_matplotlib_a_line_names_the_extra_and_all_else_is_made(tmp_path, monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"] + [
        "matplotlib",
        "matplotlib.figure",
    ]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    said = []
    write_report(made_up(tmp_path / "r"), said.append)
    assert len(said) == 1 and "minseal[plots]" in said[0] and len(said[0].splitlines()) == 1
    assert (
        all(name in (tmp_path / "r" / "report.md").read_text() for name, _, _ in ARMS)
        and "![" not in (tmp_path / "r" / "report.md").read_text()
    )
    assert (tmp_path / "r" / "results.json").exists() and not list((tmp_path / "r").glob("*.png"))


@pytest.mark.parametrize("name", ["results.json", "report.md", "ladder.png"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, name):
    if name.endswith("png"):
        pytest.importorskip("matplotlib")
    run = made_up(tmp_path / "r")
    os.mkdir(tmp_path / "r" / name)  # a folder in its place
    with pytest.raises(UserError, match=str(tmp_path)) as e:
        write_report(run, say=list)
    assert len(str(e.value).splitlines()) == 1
    assert Run(tmp_path / "r").done.keys() == run.done.keys()
