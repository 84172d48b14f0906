"""Puzzles in the terminal: what stands in the grids is what is shown."""

import json
import re
from pathlib import Path

import pytest

from minseal import UserError
from minseal.commands.cli import main
from minseal.commands.show import ShowConfig, show
from minseal.tasks.arc import from_text, to_json
from minseal.tasks.rules import toy_puzzles

PUZZLE = toy_puzzles(3, 0)[2]
PLAIN = ShowConfig(color="no")


def shown(config, name):
    lines = []
    show(config, name, say=lambda text, coloured=False: lines.append(text))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small `minseal run fewshot`."""
    out = str(tmp_path_factory.mktemp("runs") / "fewshot")
    main(
        f"run fewshot --out {out} --rounds 1 --contexts 2 --samples 2 --eval-contexts 2 "
        "--solvable false --train-puzzles 4 --views 8 --inner.epochs 1 --constants 1 "
        "--reliability-contexts 0".split()
    )
    return out


def test_digits_are_the_grids_row_by_row():
    text = shown(PLAIN, PUZZLE.id)
    found = re.findall(r"^  ((?:\d )+) *(?:->)? *((?:\d ?)+)$", text, re.MULTILINE)
    pairs = (*PUZZLE.demonstrations, *PUZZLE.tests)
    left, right = ([tuple(map(int, row[side].split())) for row in found] for side in (0, 1))
    assert left == [row for p in pairs for row in p.input]
    assert right == [row for p in pairs for row in p.output]
    assert "\033" not in text and f"(rule: {PUZZLE.kind})" in text


def test_colours_come_when_they_are_asked_for_and_end_with_each_row():
    text = shown(ShowConfig(color="yes"), PUZZLE.id)
    assert text.count("\033[48;2;") > 0 and text.count("\033[0m") > 0
    assert all(not row or row.endswith("\033[0m") or "\033" not in row for row in text.split("\n"))


def test_a_file_is_shown_by_its_name_and_by_an_id_in_it(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({PUZZLE.id: to_json(PUZZLE)}))
    by_id = shown(ShowConfig(color="no", data=str(path)), PUZZLE.id)
    assert shown(PLAIN, str(path)) == by_id
    assert by_id.split("\n")[1:] == shown(PLAIN, PUZZLE.id).split("\n")[1:]


def test_a_run_shows_what_each_arm_predicted(run):
    text = shown(ShowConfig(run=run, color="no"), "places 1")
    events = map(json.loads, Path(run, "events.jsonl").read_text().splitlines())
    answers = {
        e["step"]: e["answers"][0]
        for e in events
        if e.get("context") == "places 1" and e.get("answers")
    }
    puzzle = toy_puzzles(1, 0)[0]
    for arm in ("in context", "own self-edits", "round 1", "oracle"):
        _, verdict, rest = re.split(rf"^{arm}: (.*)\n", text, flags=re.MULTILINE)
        drawn = from_text(rest.split("\n\n")[0].replace(" ", ""))
        solved = drawn == puzzle.tests[0].output
        assert drawn == from_text(answers[arm]) and verdict == ("right" if solved else "wrong")
    assert "control" not in text and "demonstration 1" in text


def test_a_run_shows_only_what_it_held_out(run, tmp_path):
    with pytest.raises(UserError, match="no puzzle 'places 9' among 2"):
        show(ShowConfig(run=run), "places 9", say=list)
    with pytest.raises(UserError, match="no run in"):
        show(ShowConfig(run=str(tmp_path)), "places 1", say=list)


def test_an_unknown_puzzle_is_refused():
    with pytest.raises(UserError, match="no puzzle 'nope' among 400, such as 'places 1'"):
        show(ShowConfig(), "nope", say=list)
    with pytest.raises(UserError, match="color"):
        ShowConfig(color="blue")
