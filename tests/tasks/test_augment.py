"""Augmentations against numpy's own, inverses against brute force, training without a test."""

import json
from collections import Counter
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minseal.tasks.arc import MAX_SIDE, Pair, Puzzle, to_json
from minseal.tasks.augment import (
    GROUPS,
    VIEWS,
    draw_training_puzzles,
    leave_out,
    permute_colours,
    reorder,
    transform,
    translate,
)

NAMES = {  # as the paper's code has them
    "basic": [
        "rotate 90",
        "rotate 270",
        "rotate 180",
        "flip 0",
        "flip 1",
        "reflect 0 reversed",
        "reflect 1 reversed",
        "reflect 0",
        "reflect 1",
        "translate",
        "transpose",
    ],
    "size": ["resolution 2", "height 2", "width 2"],
    "chain": [
        f"{first}, then resolution 2"
        for first in ("rotate 90", "rotate 270", "rotate 180", "flip 0", "flip 1", "transpose")
    ],
    "repeat": ["repeat 0", "repeat 1", "repeat 2"],
}
NUMPY = {
    "identity": lambda a: a,
    "transpose": lambda a: a.T,
    "flip 0": np.flipud,
    "flip 1": np.fliplr,
    "rotate 90": np.rot90,
    "rotate 180": lambda a: np.rot90(a, 2),
    "rotate 270": lambda a: np.rot90(a, 3),
    "reflect 0": lambda a: np.concatenate([a, np.flip(a, 0)], 0),
    "reflect 0 reversed": lambda a: np.concatenate([np.flip(a, 0), a], 0),
    "reflect 1": lambda a: np.concatenate([a, np.flip(a, 1)], 1),
    "reflect 1 reversed": lambda a: np.concatenate([np.flip(a, 1), a], 1),
    "resolution 2": lambda a: np.kron(a, np.ones((2, 2), int)),
    "height 2": lambda a: np.kron(a, np.ones((2, 1), int)),
    "width 2": lambda a: np.kron(a, np.ones((1, 2), int)),
    "repeat 0": lambda a: np.tile(a, (2, 1)),
    "repeat 1": lambda a: np.tile(a, (1, 2)),
    "repeat 2": lambda a: np.tile(a, (2, 2)),
}
TRANSLATIONS = [
    translate(*shifts) for shifts in ((0, 0), (1, 2), (3, 0), (0, 3), (31, 7), (4, 100))
]
EVERYTHING = [
    maker(np.random.default_rng(0)) for group in GROUPS.values() for maker in group
] + TRANSLATIONS
KEEPING = [
    a
    for a in EVERYTHING
    if len(a.apply(((1, 2, 3),) * 5)) * len(a.apply(((1, 2, 3),) * 5)[0]) == 15
]
GROWING = [a for a in EVERYTHING if a not in KEEPING]
by_name = pytest.mark.parametrize("augmentation", EVERYTHING, ids=lambda a: a.name)


def by_numpy(name, grid):
    """An augmentation, from its name and numpy alone."""
    array = np.array(grid)
    for part in name.split(", then "):
        if part.startswith("translate"):
            array = np.roll(array, tuple(map(int, part.split()[1:])), (0, 1))
        else:
            array = NUMPY[part](array)
    return tuple(map(tuple, array.tolist()))


def random_grid(rng, height, width, colours=10):
    return tuple(map(tuple, rng.integers(colours, size=(height, width)).tolist()))


def grids(n=30, seed=0):
    """Random grids of random sizes, and of the smallest, the longest and the largest."""
    rng = np.random.default_rng(seed)
    sizes = [
        (1, 1),
        (1, 30),
        (30, 1),
        (2, 1),
        (30, 30),
        *rng.integers(1, MAX_SIDE + 1, size=(n, 2)),
    ]
    return [random_grid(rng, *size) for size in sizes]


def random_puzzle(rng, demonstrations=4, low=1, high=15, colours=9):
    """Demonstrations without colour 9, all their grids different, and a test that is full of it."""

    def grid():
        return random_grid(rng, *rng.integers(low, high + 1, size=2), colours)

    nines = ((9,) * int(high),) * int(high)
    pairs = tuple(Pair(grid(), grid()) for _ in range(demonstrations))
    return Puzzle("t", pairs, (Pair(nines, nines), Pair(nines, None)), "a kind")


def all_pairs(puzzle):
    return puzzle.demonstrations + puzzle.tests


def sizes(puzzle):
    return {
        (len(grid), len(grid[0]))
        for pair in all_pairs(puzzle)
        for grid in (pair.input, pair.output)
        if grid is not None
    }


def obeys(puzzle, rule):
    """Does the rule make every output of its input? rule: array -> array"""
    return all(
        np.array_equal(rule(np.array(pair.input)), pair.output) for pair in all_pairs(puzzle)
    )


def ruled(inputs, rule):
    pairs = tuple(Pair(grid, tuple(map(tuple, rule(np.array(grid)).tolist()))) for grid in inputs)
    return Puzzle("ruled", pairs[1:], pairs[:1])


# ---- one augmentation ----


def test_groups_hold_what_the_papers_code_has():
    rng = np.random.default_rng(0)
    found = {group: [maker(rng).name for maker in makers] for group, makers in GROUPS.items()}
    found["basic"] = [
        "translate" if name.startswith("translate") else name for name in found["basic"]
    ]
    assert found == NAMES
    assert [view.name for view in VIEWS] == [
        "identity",
        "transpose",
        "flip 0",
        "flip 1",
        "rotate 90",
        "rotate 180",
    ]


def test_directions_on_paper():
    grid, found = ((1, 2, 3), (4, 5, 6)), {a.name: a.apply for a in EVERYTHING}
    assert found["rotate 90"](grid) == ((3, 6), (2, 5), (1, 4))
    assert found["rotate 270"](grid) == ((4, 1), (5, 2), (6, 3))
    assert found["flip 0"](grid) == ((4, 5, 6), (1, 2, 3))
    assert found["translate 1 2"](grid) == ((5, 6, 4), (2, 3, 1))
    assert found["reflect 1 reversed"](grid) == ((3, 2, 1, 1, 2, 3), (6, 5, 4, 4, 5, 6))
    assert found["flip 1, then resolution 2"](((1, 2),)) == ((2, 2, 1, 1),) * 2


@by_name
def test_equals_numpys_and_goes_back(augmentation):
    for grid in grids():
        grown = augmentation.apply(grid)
        assert grown == by_numpy(augmentation.name, grid)
        assert augmentation.inverse(grown) == grid


@pytest.mark.parametrize("augmentation", KEEPING, ids=lambda a: a.name)
def test_one_that_keeps_the_size_is_undone_from_both_sides(augmentation):
    for grid in grids():
        assert augmentation.apply(augmentation.inverse(grid)) == grid
        if augmentation.name in ("flip 0", "flip 1", "transpose", "rotate 180", "translate 0 0"):
            assert augmentation.apply(augmentation.apply(grid)) == grid
        elif augmentation.name == "rotate 90":
            assert augmentation.inverse(grid) == by_numpy("rotate 270", grid)


def test_views_show_a_grid_and_bring_it_back():
    for grid in grids():
        for view in VIEWS:
            assert (
                view.apply(grid) == by_numpy(view.name, grid)
                and view.inverse(view.apply(grid)) == grid
            )


SMALL = [
    tuple(zip(*[iter(cells)] * width))
    for height, width in product(range(1, 9), repeat=2)
    if height * width <= 8
    for cells in product((0, 1), repeat=height * width)
]


@by_name
def test_the_inverse_refuses_what_is_no_image(augmentation):
    """Of all grids of at most 8 cells in two colours those go back that have an origin."""
    origin = {
        by_numpy(augmentation.name, grid): grid
        for grid in SMALL
        if len(grid) * len(grid[0]) <= (8 if augmentation in KEEPING else 4)
    }
    for grid in SMALL:
        assert augmentation.inverse(grid) == origin.get(grid)


@pytest.mark.parametrize("augmentation", GROWING, ids=lambda a: a.name)
def test_the_inverse_refuses_an_image_with_one_wrong_cell(augmentation):
    rng = np.random.default_rng(1)
    for grid in grids():
        grown = np.array(augmentation.apply(grid))  # every cell stands in it at least twice
        grown[tuple(rng.integers(grown.shape))] += 1
        assert augmentation.inverse(tuple(map(tuple, grown.tolist()))) is None


def test_translations_are_drawn_as_small_shifts_of_both_axes():
    (maker,) = [
        m for m in GROUPS["basic"] if m(np.random.default_rng(0)).name.startswith("translate")
    ]
    rng = np.random.default_rng(0)
    names = {maker(rng).name for _ in range(300)}  # one missing: 16 * (15/16)**300 < 1e-7
    assert names == {f"translate {i} {j}" for i in range(4) for j in range(4)}


# ---- puzzles ----


@by_name
def test_transform_changes_every_grid_alike(augmentation):
    puzzle = random_puzzle(np.random.default_rng(2))
    new = transform(puzzle, augmentation)
    for part in ("demonstrations", "tests"):
        assert [(p.input, p.output) for p in getattr(new, part)] == [
            tuple(g if g is None else by_numpy(augmentation.name, g) for g in (p.input, p.output))
            for p in getattr(puzzle, part)
        ]
    assert (new.id, new.kind, new.tests[1].output) == ("t", "a kind", None)


@by_name
def test_transform_refuses_what_outgrows_the_most(augmentation):
    rng, small = np.random.default_rng(3), Pair(((1,),), ((2,),))
    for height, width in [(15, 15), (16, 15), (15, 16), (16, 16), (30, 15), (15, 30), (30, 30)]:
        grid = random_grid(rng, height, width)
        fits = max(np.array(by_numpy(augmentation.name, grid)).shape) <= MAX_SIDE
        for place in (Pair(grid, ((1,),)), Pair(((1,),), grid)):
            for puzzle in (
                Puzzle("t", (small, place), (small,)),
                Puzzle("t", (small,), (small, place)),
            ):
                assert (transform(puzzle, augmentation) is not None) == fits


MAPPINGS = st.permutations(range(10)).map(tuple)


@given(MAPPINGS, st.integers(0, 99))
@settings(max_examples=50)
def test_a_recolouring_rule_is_kept_by_all_that_moves_cells(mapping, seed):
    rng = np.random.default_rng(seed)
    puzzle = ruled(
        [random_grid(rng, *rng.integers(1, 6, size=2)) for _ in range(3)],
        lambda a: np.array(mapping)[a],
    )
    for augmentation in EVERYTHING:
        assert obeys(transform(puzzle, augmentation), lambda a: np.array(mapping)[a])


@given(
    st.sampled_from([np.rot90, np.flipud, np.transpose, lambda a: np.roll(a, 1, 0)]),
    st.sets(st.integers(0, 9), min_size=1),
    st.integers(0, 99),
)
@settings(max_examples=50)
def test_a_rule_that_moves_cells_is_kept_by_permuted_colours(rule, palette, seed):
    rng = np.random.default_rng(seed)
    puzzle = ruled([random_grid(rng, *rng.integers(1, 6, size=2)) for _ in range(3)], rule)
    assert obeys(permute_colours(puzzle, rng, palette), rule)


@pytest.mark.parametrize(
    "name, before, after",
    [
        ("flip 0", "rotate 180", "rotate 180"),
        ("flip 1", "rotate 180", "rotate 180"),
        ("transpose", "rotate 180", "rotate 180"),
        ("rotate 90", "rotate 180", "rotate 180"),
        ("rotate 270", "rotate 90", "rotate 90"),
        ("flip 0", "flip 1", "flip 1"),
        ("flip 0", "rotate 90", "rotate 270"),
        ("rotate 90", "flip 0", "flip 1"),
        ("transpose", "flip 1", "flip 0"),  # the rule turns into another
        ("transpose", "rotate 90", "rotate 270"),
        ("resolution 2", "rotate 90", "rotate 90"),
        ("repeat 2", "transpose", "transpose"),
        ("reflect 0", "flip 1", "flip 1"),
    ],
)
def test_a_rule_that_moves_cells_is_kept_where_it_commutes_and_contradicted_where_not(
    name, before, after
):
    (augmentation,) = [a for a in EVERYTHING if a.name == name]
    rng = np.random.default_rng(4)
    new = transform(ruled([random_grid(rng, 5, 4) for _ in range(3)], NUMPY[before]), augmentation)
    assert obeys(new, NUMPY[after])
    assert obeys(new, NUMPY[before]) == (before == after)


def test_a_recolouring_rule_is_contradicted_by_permuted_colours():
    rng = np.random.default_rng(5)

    def swap(a):
        return np.array([0, 2, 1, 3, 4, 5, 6, 7, 8, 9])[a]

    # 192 cells: every colour is there.
    puzzle = ruled([random_grid(rng, 8, 8) for _ in range(3)], swap)
    kept = [
        obeys(permute_colours(puzzle, np.random.default_rng(seed)), swap) for seed in range(100)
    ]
    assert sum(kept) < 20  # by chance the two swapped colours stay the swapped ones once in 45
    assert all(
        obeys(permute_colours(puzzle, np.random.default_rng(seed), range(3, 10)), swap)
        for seed in range(20)
    )


def draw_mapping(rng, palette=range(10)):
    """What each of the ten colours becomes in one draw."""
    rainbow = Puzzle("t", (Pair((tuple(range(10)),), None),), ())
    return permute_colours(rainbow, rng, palette).demonstrations[0].input[0]


def recolour(grid, mapping):
    return tuple(map(tuple, np.array(mapping)[np.array(grid)].tolist()))


@given(st.integers(0, 99))
@settings(max_examples=30)
def test_recolouring_equals_numpys_indexing(seed):
    puzzle, mapping = (
        random_puzzle(np.random.default_rng(seed)),
        draw_mapping(np.random.default_rng(seed)),
    )
    for old, new in zip(
        all_pairs(puzzle), all_pairs(permute_colours(puzzle, np.random.default_rng(seed)))
    ):
        assert new.input == recolour(old.input, mapping)
        assert new.output == (old.output and recolour(old.output, mapping))


@pytest.mark.parametrize("palette", [range(10), range(1, 10), (2, 3, 5, 7), (4,), ()])
def test_mappings_permute_the_palette_and_nothing_else(palette):
    rng = np.random.default_rng(6)
    mappings = [draw_mapping(rng, palette) for _ in range(400)]
    for colour in range(10):  # one of 10 colours missing among 400 draws: 0.9**400 < 1e-18
        assert {m[colour] for m in mappings} == (set(palette) if colour in palette else {colour})
    assert all(sorted(m) == list(range(10)) for m in mappings)


def test_all_permutations_of_a_palette_are_equally_likely():
    rng = np.random.default_rng(7)
    counts = Counter(draw_mapping(rng, (0, 4, 9)) for _ in range(6000))
    # 5 standard deviations of 29.
    assert len(counts) == 6 and all(abs(c - 1000) < 150 for c in counts.values())


def test_colours_are_permuted_alike_in_every_grid():
    puzzle = random_puzzle(np.random.default_rng(8))
    new = permute_colours(puzzle, np.random.default_rng(9))
    mapping = {}
    for old, fresh in zip(all_pairs(puzzle), all_pairs(new)):
        for a, b in ((old.input, fresh.input), (old.output, fresh.output)):
            assert (a is None) == (b is None)
            for x, y in zip(() if a is None else np.ravel(a), np.ravel(b)):
                assert mapping.setdefault(x, y) == y
    assert len(set(mapping.values())) == len(mapping) == 10 and any(
        x != y for x, y in mapping.items()
    )


def test_reorder_reaches_every_order_and_changes_nothing_else():
    puzzle, rng = random_puzzle(np.random.default_rng(10), 3), np.random.default_rng(11)
    new = [reorder(puzzle, rng) for _ in range(600)]
    counts = Counter(n.demonstrations for n in new)
    # Of 100 each, standard deviation 9.
    assert set(counts) == set(permutations(puzzle.demonstrations)) and min(counts.values()) > 50
    assert all(replace(n, demonstrations=puzzle.demonstrations) == puzzle for n in new)


@pytest.mark.parametrize("demonstrations", range(7))
@pytest.mark.parametrize("n", [1, 2, 3])
def test_leave_out_makes_every_choice_once(demonstrations, n):
    # A look at a test would raise.
    puzzle = replace(random_puzzle(np.random.default_rng(12), demonstrations, high=5), tests=None)
    made, pairs = leave_out(puzzle, n), puzzle.demonstrations
    expected = []
    for kept in product((True, False), repeat=demonstrations):
        shown = tuple(pair for pair, keep in zip(pairs, kept) if keep)
        if shown and len(pairs) - len(shown) == n:
            expected += [(shown, (test,)) for test in pairs if test not in shown]
    assert len(made) == len(expected) and {(t.demonstrations, t.tests) for t in made} == set(
        expected
    )
    assert {(t.id, t.kind) for t in made} <= {("t", "a kind")}
    if demonstrations > n:
        assert len(made) == {1: demonstrations, 2: demonstrations * (demonstrations - 1)}.get(
            n, len(made)
        )


# ---- puzzles to train on ----

CANDIDATES = [*EVERYTHING, *VIEWS[:1], *(translate(i, j) for i in range(4) for j in range(4))]


def origin(made, puzzle):
    """All (demonstrations away, augmentation) that make this training puzzle, by search."""
    out = []
    for augmentation in CANDIDATES:
        pairs = [
            Pair(augmentation.inverse(p.input), augmentation.inverse(p.output))
            for p in all_pairs(made)
        ]
        if set(pairs) <= set(puzzle.demonstrations) and len(set(pairs)) == len(pairs):
            out.append((len(puzzle.demonstrations) - len(made.demonstrations), augmentation.name))
    return out


@pytest.mark.parametrize(
    "groups",
    [(), ("basic",), {"size", "chain"}, ("repeat", "size"), tuple(GROUPS)],
    ids=lambda groups: " ".join(sorted(groups)) or "none",
)
def test_draw_training_puzzles_are_augmented_demonstrations_and_never_the_test(groups):
    puzzle = random_puzzle(np.random.default_rng(13))
    made = draw_training_puzzles(puzzle, groups, False, 60, np.random.default_rng(14))
    names = {name for group in groups for name in NAMES[group]} | {"identity"}
    assert len(made) == 60
    for new in made:
        ways = origin(new, puzzle)
        assert any(
            away in (1, 2) and ("translate" if name.startswith("translate") else name) in names
            for away, name in ways
        )
        assert len(new.tests) == 1 and 9 not in {
            cell for p in all_pairs(new) for g in (p.input, p.output) for row in g for cell in row
        }
    blind = draw_training_puzzles(
        replace(puzzle, tests=None), groups, False, 60, np.random.default_rng(14)
    )
    assert blind == made  # tests of None cannot have been looked at


def test_permuted_colours_are_a_renaming_of_what_is_made_without():
    """Colours get names in the order they come in: no permutation of colours changes that."""

    def named(new):
        names = {}
        return [
            [
                [names.setdefault(cell, len(names)) for cell in np.ravel(g)]
                for g in (p.input, p.output)
            ]
            for p in all_pairs(new)
        ]

    puzzle = random_puzzle(np.random.default_rng(15))
    plain = {
        str(named(reordered))
        for new in leave_out(puzzle, 1) + leave_out(puzzle, 2)
        for order in permutations(new.demonstrations)
        for reordered in [replace(new, demonstrations=order)]
    }
    made = draw_training_puzzles(puzzle, (), True, 100, np.random.default_rng(16))
    assert all(str(named(new)) in plain for new in made)
    # None kept all 9 of its colours by chance.
    assert sum(bool(origin(new, puzzle)) for new in made) == 0
    untouched = draw_training_puzzles(
        puzzle, (), True, 100, np.random.default_rng(16), palette=(9,)
    )
    assert all(origin(new, puzzle) for new in untouched)

    def blank(new):  # colours 0-2 cannot be told apart
        return replace(
            new,
            **{
                part: tuple(
                    Pair(recolour(p.input, few), recolour(p.output, few))
                    for p in getattr(new, part)
                )
                for part in ("demonstrations", "tests")
            },
        )

    few, unseen = (0, 0, 0, *range(3, 10)), replace(puzzle, tests=())
    made = draw_training_puzzles(
        unseen, (), True, 100, np.random.default_rng(16), palette=(0, 1, 2)
    )
    assert all(origin(blank(new), blank(unseen)) for new in made)
    # One in 6 permutations of three is none.
    assert 0 < sum(bool(origin(new, puzzle)) for new in made) < 50


def test_the_draws_are_even():
    """24 choices by the size they make of 5 x 4; 9 leave-n-outs of 3; both orders of two."""
    puzzle = Puzzle(
        "t",
        tuple(
            Pair(random_grid(rng, 5, 4), random_grid(rng, 5, 4))
            for rng in map(np.random.default_rng, range(3))
        ),
        (),
    )
    n = 2400
    made = draw_training_puzzles(puzzle, GROUPS, False, n, np.random.default_rng(17))
    shapes = Counter(sizes(new).pop() for new in made)
    expected = {(5, 4): 5, (4, 5): 3, (10, 4): 4, (5, 8): 4, (10, 8): 5, (8, 10): 3}
    assert set(shapes) == set(expected)
    for shape, ways in expected.items():  # 5 standard deviations of a binomial, below 22 each
        assert abs(shapes[shape] - n * ways / 24) < 5 * np.sqrt(n * ways / 24)
    plain = draw_training_puzzles(puzzle, (), False, n, np.random.default_rng(18))
    kinds = Counter((len(new.demonstrations), new.tests) for new in plain)
    assert len(kinds) == 6
    for (left, _), count in kinds.items():  # one way to show both others, two to show one
        assert abs(count - n * (1 if left == 2 else 2) / 9) < 5 * np.sqrt(n * 2 / 9)
    orders = Counter(new.demonstrations for new in plain if len(new.demonstrations) == 2)
    assert len(orders) == 6 and all(abs(c - n / 18) < 5 * np.sqrt(n / 18) for c in orders.values())


@pytest.mark.parametrize("low, high", [(16, 30), (15, 16), (30, 30)])
def test_draw_training_puzzles_stay_within_the_most(low, high):
    puzzle = random_puzzle(np.random.default_rng(19), low=low, high=high)
    made = draw_training_puzzles(puzzle, tuple(GROUPS), True, 40, np.random.default_rng(20))
    assert len(made) == 40 and all(max(map(max, sizes(new))) <= MAX_SIDE for new in made)


def test_one_axis_may_still_grow_where_the_other_may_not():
    rng = np.random.default_rng(21)
    puzzle = Puzzle(
        "t", tuple(Pair(random_grid(rng, 15, 16), random_grid(rng, 15, 30)) for _ in range(3)), ()
    )
    made = draw_training_puzzles(puzzle, tuple(GROUPS), False, 100, rng)
    assert {frozenset(sizes(new)) for new in made} == {
        frozenset(s) for s in ({(15, 16), (15, 30)}, {(16, 15), (30, 15)}, {(30, 16), (30, 30)})
    }


def test_same_seed_same_puzzles_and_no_global_state():
    puzzle = random_puzzle(np.random.default_rng(22))
    before = str(np.random.get_state())
    first = draw_training_puzzles(puzzle, ["basic", "repeat"], True, 30, np.random.default_rng(23))
    # A set's order changes from run to run.
    for groups in (
        ["repeat", "basic"],
        {"repeat", "basic"},
    ):
        assert draw_training_puzzles(puzzle, groups, True, 30, np.random.default_rng(23)) == first
    assert (
        draw_training_puzzles(puzzle, ["basic", "repeat"], True, 30, np.random.default_rng(24))
        != first
    )
    assert str(np.random.get_state()) == before
    rng = np.random.default_rng(23)
    assert (
        draw_training_puzzles(puzzle, ["basic", "repeat"], True, 30, rng)
        == first
        != draw_training_puzzles(puzzle, ["basic", "repeat"], True, 30, rng)
    )
    assert draw_training_puzzles(puzzle, ["basic"], True, 0, rng) == []


def test_draw_training_puzzles_are_plain_puzzles():
    for new in draw_training_puzzles(
        random_puzzle(np.random.default_rng(25)), tuple(GROUPS), True, 30, np.random.default_rng(26)
    ):
        assert (new.id, new.kind) == ("t", "a kind") and len({new, new}) == 1
        json.dumps(to_json(new))  # numpy's numbers would raise
        assert {
            type(cell)
            for p in all_pairs(new)
            for g in (p.input, p.output)
            for row in g
            for cell in row
        } == {int}


def test_two_demonstrations_are_enough():
    puzzle = random_puzzle(np.random.default_rng(27), 2)
    assert all(
        len(new.demonstrations) == len(new.tests) == 1
        for new in draw_training_puzzles(puzzle, ("basic",), False, 20, np.random.default_rng(28))
    )


@pytest.mark.parametrize(
    "demonstrations, size, groups, told",
    [
        (0, 3, (), "puzzle t has 0 demonstrations; expected at least 2"),
        (1, 3, ("basic",), "puzzle t has 1 demonstrations; expected at least 2"),
        (
            3,
            3,
            ("basic", "colour"),
            "'colour' is no group; expected some of basic, size, chain, repeat",
        ),
        (3, 3, "basic", "'a' is no group"),
        (3, 31, (), "puzzle t has a grid larger than 30 x 30"),
    ],
)
def test_what_cannot_be_drawn_is_refused(demonstrations, size, groups, told):
    puzzle = random_puzzle(np.random.default_rng(29), demonstrations, low=size, high=size)
    with pytest.raises(ValueError, match=told):
        draw_training_puzzles(puzzle, groups, False, 5, np.random.default_rng(30))
