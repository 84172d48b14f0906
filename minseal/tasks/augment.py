"""Augmentations: training puzzles out of one puzzle's demonstrations, and views to vote over.

They are the ones of the paper's code, which has them from test-time training for ARC
(arXiv 2411.07279, github.com/ekinakyurek/marc).
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from itertools import combinations

from numpy.random import Generator

from .arc import MAX_SIDE, Grid, Pair, Puzzle


@dataclass(frozen=True)
class Augmentation:
    """One change, made alike to every grid of a puzzle, and the way back.

    inverse(apply(grid)) == grid; None of a grid that apply makes of no grid: an odd number of
    rows is never 'height 2'.
    """

    name: str
    apply: Callable[[Grid], Grid]
    inverse: Callable[[Grid], Grid | None]


def draw_training_puzzles(
    puzzle: Puzzle,
    groups: Collection[str],
    colours: bool,
    n: int,
    rng: Generator,
    palette: Iterable[int] = range(10),
    max_side: int = MAX_SIDE,
) -> list[Puzzle]:
    """n puzzles to train on, made of the demonstrations alone: the tests are never looked at.

    Each is drawn on its own: a leave-one-out or leave-two-out puzzle, demonstrations in random
    order; identity or an augmentation of `groups` (names out of GROUPS), all equally likely; with
    `colours`, the palette permuted. What outgrows max_side x max_side is drawn again.
    Raises ValueError: an unknown group, fewer than 2 demonstrations, one too large.

    Paper: its code lists every augmentation of every leave-n-out puzzle, adds each once more
    with demonstrations and (if there is any augmentation) colours permuted, and keeps at most
    250 at random. Here: n are drawn, repeats allowed, and colours have a switch of their own;
    because so every self-edit costs the same per epoch, and can tell colours from places.
    """
    if unknown := sorted(set(groups) - set(GROUPS)):
        raise ValueError(f"{unknown[0]!r} is no group; expected some of {', '.join(GROUPS)}")
    if (given := len(puzzle.demonstrations)) < 2:
        raise ValueError(f"puzzle {puzzle.id} has {given} demonstrations; expected at least 2")
    pool = leave_out(puzzle, 1) + leave_out(puzzle, 2)
    if transform(pool[0], IDENTITY, max_side) is None:  # would be drawn again for ever
        raise ValueError(f"puzzle {puzzle.id} has a grid larger than {max_side} x {max_side}")
    makers = [*_always(IDENTITY)]
    makers += [maker for name in GROUPS if name in groups for maker in GROUPS[name]]
    # Two streams of luck: which demonstrations are drawn does not depend on the augmentations.
    which, how = rng.spawn(2)
    out = []
    for _ in range(n):
        plain, new = reorder(pool[which.integers(len(pool))], which), None
        while new is None:
            new = transform(plain, makers[how.integers(len(makers))](how), max_side)
        out.append(permute_colours(new, how, palette) if colours else new)
    return out


def leave_out(puzzle: Puzzle, n: int) -> list[Puzzle]:
    """Each demonstration in turn becomes the test of the others, n - 1 of which are left away.

    No puzzle where no demonstration would remain; there the paper's code makes one without any.
    """
    pairs, out = puzzle.demonstrations, []
    for i, test in enumerate(pairs if len(pairs) > n else ()):
        for kept in combinations(pairs[:i] + pairs[i + 1 :], len(pairs) - n):
            out.append(replace(puzzle, demonstrations=kept, tests=(test,)))
    return out


def transform(puzzle: Puzzle, change: Augmentation, max_side: int = MAX_SIDE) -> Puzzle | None:
    """The puzzle with every grid augmented, or None if a grid outgrows max_side x max_side."""
    new = _change_grids(puzzle, change.apply)
    for pair in new.demonstrations + new.tests:
        for grid in (pair.input, pair.output):
            if grid is not None and max(len(grid), len(grid[0])) > max_side:
                return None
    return new


def reorder(puzzle: Puzzle, rng: Generator) -> Puzzle:
    """The puzzle with its demonstrations in random order."""
    order = rng.permutation(len(puzzle.demonstrations))
    return replace(puzzle, demonstrations=tuple(puzzle.demonstrations[i] for i in order))


def permute_colours(puzzle: Puzzle, rng: Generator, palette: Iterable[int] = range(10)) -> Puzzle:
    """The puzzle with the palette's colours permuted, alike in every grid; other colours stay.

    Paper: its code keeps 0 (black), and a colour becomes one that the puzzle has not, while
    there are such. Here: every permutation of the palette, and range(1, 10) keeps black; because
    which colours may change places depends on the puzzles, not on the augmentation.
    """
    old, becomes = sorted(set(palette)), list(range(10))
    for colour, new in zip(old, rng.permutation(old).tolist()):
        becomes[colour] = int(new)
    return _change_grids(puzzle, lambda grid: tuple(tuple(becomes[c] for c in row) for row in grid))


def _change_grids(puzzle: Puzzle, change: Callable[[Grid], Grid]) -> Puzzle:
    def pairs(old: tuple[Pair, ...]) -> tuple[Pair, ...]:
        return tuple(Pair(change(pair.input), pair.output and change(pair.output)) for pair in old)

    return replace(puzzle, demonstrations=pairs(puzzle.demonstrations), tests=pairs(puzzle.tests))


# ---- the augmentations ----
# A grid is a tuple of rows, so each is said for rows, axis 0. Along axis 1 it is the same between
# two transpositions.

Change = Callable[[Grid], Grid]
Maker = Callable[[Generator], Augmentation]  # draws what is random about it


def _transpose(grid: Grid) -> Grid:
    return tuple(zip(*grid))


def _flip(rows: Grid) -> Grid:
    return rows[::-1]


def _double(rows: Grid) -> Grid:
    return tuple(row for row in rows for _ in range(2))


def _half(rows: Grid) -> Grid:
    return rows[: len(rows) // 2]


def _along(axis: int, change: Change) -> Change:
    """A function of the rows -> the same of the rows (axis 0) or the columns (axis 1)."""
    return change if axis == 0 else lambda grid: _transpose(change(_transpose(grid)))


def _chain(*parts: Augmentation, name: str = "") -> Augmentation:
    """One augmentation after the other, as one."""

    def apply(grid: Grid) -> Grid:
        for part in parts:
            grid = part.apply(grid)
        return grid

    def inverse(grid: Grid | None) -> Grid | None:
        for part in reversed(parts):
            grid = None if grid is None else part.inverse(grid)
        return grid

    return Augmentation(name or ", then ".join(part.name for part in parts), apply, inverse)


def _enlarge(name: str, axis: int, grow: Change, shrink: Change) -> Augmentation:
    """shrink: rows that grow made -> those it made them of; of other rows anything."""
    grow, shrink = _along(axis, grow), _along(axis, shrink)

    def inverse(grid: Grid) -> Grid | None:
        small = shrink(grid)
        return small if grow(small) == grid else None

    return Augmentation(name, grow, inverse)


def translate(down: int, right: int) -> Augmentation:
    """Everything moved, modulo the grid's sides: what leaves on one side comes in on the other."""

    def roll(axis: int, by: int) -> Change:
        return _along(axis, lambda rows: rows[-by % len(rows) :] + rows[: -by % len(rows)])

    moves = [Augmentation("", roll(i, by), roll(i, -by)) for i, by in enumerate((down, right))]
    return _chain(*moves, name=f"translate {down} {right}")


def _random_translation(rng: Generator) -> Augmentation:
    # Paper: its code draws 0-3 rows and 0-3 columns (fewer in smaller grids), for an input and
    # its output apart. Here: one shift for both; because a second one would change the rule.
    return translate(*map(int, rng.integers(4, size=2)))


def _always(*augmentations: Augmentation) -> tuple[Maker, ...]:
    """Makers of augmentations about which nothing is random."""
    return tuple(lambda rng, augmentation=a: augmentation for a in augmentations)


IDENTITY = Augmentation("identity", lambda grid: grid, lambda grid: grid)
TRANSPOSE = Augmentation("transpose", _transpose, _transpose)
FLIPS = [Augmentation(f"flip {i}", _along(i, _flip), _along(i, _flip)) for i in (0, 1)]
ROTATE_90 = _chain(TRANSPOSE, FLIPS[0], name="rotate 90")  # counter-clockwise, as numpy counts
ROTATE_180 = _chain(*FLIPS, name="rotate 180")
ROTATE_270 = _chain(FLIPS[0], TRANSPOSE, name="rotate 270")
TURNS = (ROTATE_90, ROTATE_270, ROTATE_180, *FLIPS)
# A mirror image beside the grid, behind it or before it.
REFLECTS = [_enlarge(f"reflect {i}", i, lambda rows: rows + rows[::-1], _half) for i in (0, 1)]
REVERSED = [_chain(f, r, name=f"{r.name} reversed") for f, r in zip(FLIPS, REFLECTS)]
REPEATS = [_enlarge(f"repeat {i}", i, lambda rows: rows + rows, _half) for i in (0, 1)]
TALLER = _enlarge("height 2", 0, _double, lambda rows: rows[::2])
WIDER = _enlarge("width 2", 1, _double, lambda rows: rows[::2])
RESOLUTION = _chain(TALLER, WIDER, name="resolution 2")  # every cell becomes 2 x 2

# The groups that a self-edit switches on or off.
GROUPS: dict[str, tuple[Maker, ...]] = {
    "basic": (*_always(*TURNS, *REVERSED, *REFLECTS), _random_translation, *_always(TRANSPOSE)),
    "size": _always(RESOLUTION, TALLER, WIDER),
    "chain": _always(*(_chain(turn, RESOLUTION) for turn in (*TURNS, TRANSPOSE))),
    "repeat": _always(*REPEATS, _chain(*REPEATS, name="repeat 2")),
}
# What the paper's code shows a test in; their inverses bring the answers back.
VIEWS = (IDENTITY, TRANSPOSE, *FLIPS, ROTATE_90, ROTATE_180)
