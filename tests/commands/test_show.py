"""Grid tasks in the terminal: what stands in the grid is what is shown."""

import json
import re

import pytest

from minseal import UserError
from minseal.show import ShowConfig, show
from minseal.tasks import grids
from minseal.tasks.arc import to_json

TASK = grids.toy_tasks(3, 0)[2]


def shown(config, name):
    lines = []
    show(config, name, say=lines.append)
    return "\n".join(lines)


def test_digits_are_the_grids_row_by_row():
    text = shown(ShowConfig(color="no"), TASK.id)
    rows = re.findall(r"^  ((?:\d )+) *(?:->)? *((?:\d ?)+)$", text, re.MULTILINE)
    assert [tuple(map(int, left.split())) for left, _ in rows] == [
        row for p in (*TASK.demonstrations, *TASK.tests) for row in p.input
    ]
    assert [tuple(map(int, right.split())) for _, right in rows] == [
        row for p in (*TASK.demonstrations, *TASK.tests) for row in p.output
    ]
    assert "\033" not in text


def test_a_file_is_shown_and_an_unknown_task_is_refused(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({TASK.id: to_json(TASK)}))
    assert shown(ShowConfig(color="no"), str(path)) == shown(ShowConfig(color="no"), TASK.id)
    with pytest.raises(UserError, match="no task 'nope' among 300, such as 'places 1'"):
        show(ShowConfig(), "nope", say=list)
    with pytest.raises(UserError, match="color"):
        ShowConfig(color="blue")
