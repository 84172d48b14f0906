"""Augmentations of grid tasks: training tasks made of one task's demonstrations, and the views an answer is voted over.

They are the ones of the paper's code, which has them from test-time training for ARC (arXiv 2411.07279, github.com/ekinakyurek/marc).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

from .arc import MOST, Grid, Pair


@dataclass(frozen=True)
class Augmentation:
    """One change, made alike to every grid of a task, and the way back: inverse(apply(grid)) == grid."""

    name: str
    apply: Callable[[Grid], Grid]
    inverse: Callable[
        [Grid], Grid | None
    ]  # None of a grid that apply makes of no grid: an odd number of rows is never 'height 2'


def training_tasks(task, groups, colours, n, rng, palette=range(10), most=MOST):
    """n tasks to train on, made of the demonstrations alone: task.tests is never looked at. -> [GridTask, ...]

    Each is drawn on its own: one of the leave-one-out and leave-two-out tasks, its demonstrations in random order; identity or one of the
    augmentations of `groups` (names out of GROUPS), all equally likely; if `colours` is True, colours of the palette permuted. What
    outgrows most x most is drawn again. rng: a numpy Generator. ValueError: an unknown group, fewer than 2 demonstrations, one larger than that.

    Paper: its code lists every augmentation of every leave-n-out task, adds each once more with demonstrations and (if there is any
    augmentation) colours permuted, and keeps at most 250 at random. Here: n are drawn, repeats allowed, and colours have a switch of their
    own; because so every self-edit costs the same per epoch, and a self-edit can tell a rule about colours from one about places.
    """
    if unknown := sorted(set(groups) - set(GROUPS)):
        raise ValueError(
            f"{unknown[0]!r} is no group of augmentations; expected some of {', '.join(GROUPS)}"
        )
    if len(task.demonstrations) < 2:
        raise ValueError(
            f"task {task.id} has {len(task.demonstrations)} demonstrations; expected at least 2, one to ask for and one to show"
        )
    pool = leave_out(task, 1) + leave_out(task, 2)
    if transform(pool[0], IDENTITY, most) is None:  # would be drawn again for ever
        raise ValueError(
            f"task {task.id} has a demonstration with a grid larger than {most} x {most}"
        )
    makers = [
        *_fixed(IDENTITY),
        *(maker for name in GROUPS if name in groups for maker in GROUPS[name]),
    ]
    which, how = rng.spawn(
        2
    )  # two streams of luck: which demonstrations are drawn does not depend on the augmentations
    out = []
    for _ in range(n):
        drawn = reorder(pool[which.integers(len(pool))], which)
        while (made := transform(drawn, makers[how.integers(len(makers))](how), most)) is None:
            pass
        out.append(permute_colours(made, how, palette) if colours else made)
    return out


# ---- from a task to a task -------------------------------------------------------------------------------------------


def leave_out(task, n):
    """Each demonstration in turn becomes the test of the others, of which n - 1 more are left away, in every way. -> [GridTask, ...]

    N demonstrations give N tasks for n = 1, N (N - 1) for n = 2, and none where no demonstration would remain (there the paper's code
    makes a task without any). task.tests appears in none of them.
    """
    pairs, out = task.demonstrations, []
    for i, test in enumerate(pairs if len(pairs) > n else ()):
        others = pairs[:i] + pairs[i + 1 :]
        out += [
            replace(task, demonstrations=kept, tests=(test,))
            for kept in combinations(others, len(pairs) - n)
        ]
    return out


def transform(task, augmentation, most=MOST):
    """The task with every grid augmented (an output of None stays None), or None if one of them outgrows most x most."""
    new = _with_grids(task, augmentation.apply)
    grids = [
        grid
        for pair in new.demonstrations + new.tests
        for grid in (pair.input, pair.output)
        if grid is not None
    ]
    return new if all(len(grid) <= most and len(grid[0]) <= most for grid in grids) else None


def reorder(task, rng):
    """The task with its demonstrations in random order."""
    return replace(
        task,
        demonstrations=tuple(
            task.demonstrations[i] for i in rng.permutation(len(task.demonstrations))
        ),
    )


def permute_colours(task, rng, palette=range(10)):
    """The task with the colours of the palette permuted, alike in every grid; other colours stay."""
    mapping = draw_mapping(rng, palette)
    return _with_grids(task, lambda grid: recolour(grid, mapping))


def draw_mapping(rng, palette=range(10)):
    """A permutation of the palette's colours, all equally likely. -> 10 numbers: what each colour becomes

    Paper: its code keeps 0 (black), and a colour becomes one that the task has not, while there are such. Here: every permutation of the
    palette, and range(1, 10) keeps black; because which colours may change places depends on the tasks, not on the augmentation.
    """
    palette, mapping = sorted(set(palette)), list(range(10))
    for old, new in zip(palette, rng.permutation(palette)):
        mapping[old] = int(new)
    return tuple(mapping)


def recolour(grid, mapping):
    """mapping: 10 numbers, what each colour becomes."""
    return tuple(tuple(mapping[cell] for cell in row) for row in grid)


def inverse_mapping(mapping):
    """recolour(recolour(grid, mapping), inverse_mapping(mapping)) == grid"""
    return tuple(mapping.index(colour) for colour in range(10))


def _with_grids(task, change):
    def pairs(old):
        return tuple(
            Pair(change(pair.input), None if pair.output is None else change(pair.output))
            for pair in old
        )

    return replace(task, demonstrations=pairs(task.demonstrations), tests=pairs(task.tests))


# ---- the augmentations -----------------------------------------------------------------------------------------------
# A grid is a tuple of rows, so each is told for rows, axis 0. Along axis 1 it is the same between two transpositions.


def _transpose(grid):
    return tuple(zip(*grid))


def _along(axis, rows):
    """A function of the rows -> the same of the rows (axis 0) or the columns (axis 1)."""
    return rows if axis == 0 else lambda grid: _transpose(rows(_transpose(grid)))


def _chain(*parts, name=None):
    """One augmentation after the other, as one."""

    def apply(grid):
        for part in parts:
            grid = part.apply(grid)
        return grid

    def inverse(grid):
        for part in reversed(parts):
            grid = None if grid is None else part.inverse(grid)
        return grid

    return Augmentation(name or ", then ".join(part.name for part in parts), apply, inverse)


def _growing(name, axis, grow, shrink):
    """shrink: rows that grow made -> those it made them of; of others anything, for the inverse looks whether they grow back."""
    grow, shrink = _along(axis, grow), _along(axis, shrink)

    def inverse(grid):
        small = shrink(grid)
        return small if grow(small) == grid else None

    return Augmentation(name, grow, inverse)


def _first_half(rows):
    return rows[: len(rows) // 2]


def translate(down, right):
    """Everything moved down and to the right; what leaves on one side comes in on the other. Shifts count modulo a grid's sides."""

    def rolled(axis, by):
        return _along(axis, lambda rows: rows[-by % len(rows) :] + rows[: -by % len(rows)])

    return _chain(
        *(
            Augmentation("", rolled(axis, by), rolled(axis, -by))
            for axis, by in enumerate((down, right))
        ),
        name=f"translate {down} {right}",
    )


def _random_translation(rng):
    # Paper: its code draws 0-3 rows and 0-3 columns (fewer in smaller grids), for an input and its output apart. Here: one shift for both;
    # because a second one would change the rule itself.
    return translate(*map(int, rng.integers(4, size=2)))


def _fixed(*augmentations):
    """Augmentations -> makers of them, for which there is nothing to draw."""
    return tuple(
        lambda rng, augmentation=augmentation: augmentation for augmentation in augmentations
    )


IDENTITY = Augmentation("identity", lambda grid: grid, lambda grid: grid)
TRANSPOSE = Augmentation("transpose", _transpose, _transpose)
FLIPS = [
    Augmentation(f"flip {axis}", flip, flip)
    for axis in (0, 1)
    for flip in [_along(axis, lambda rows: rows[::-1])]
]
ROTATE_90 = _chain(TRANSPOSE, FLIPS[0], name="rotate 90")  # counter-clockwise, as numpy counts
ROTATE_180 = _chain(*FLIPS, name="rotate 180")
ROTATE_270 = _chain(FLIPS[0], TRANSPOSE, name="rotate 270")
REFLECTS = [
    _growing(f"reflect {axis}", axis, lambda rows: rows + rows[::-1], _first_half)
    for axis in (0, 1)
]  # the mirror image beside the grid
REVERSED = [
    _chain(flip, reflect, name=f"{reflect.name} reversed") for flip, reflect in zip(FLIPS, REFLECTS)
]  # the image first
REPEATS = [
    _growing(f"repeat {axis}", axis, lambda rows: rows + rows, _first_half) for axis in (0, 1)
]
HEIGHT, WIDTH = (
    _growing(
        f"{side} 2",
        axis,
        lambda rows: tuple(row for row in rows for _ in range(2)),
        lambda rows: rows[::2],
    )
    for axis, side in enumerate(("height", "width"))
)
RESOLUTION = _chain(HEIGHT, WIDTH, name="resolution 2")  # every cell becomes 2 x 2

# The groups a self-edit switches on or off. Each holds makers, rng -> Augmentation: what is random about one is drawn once for a task.
GROUPS = {
    "basic": (
        *_fixed(ROTATE_90, ROTATE_270, ROTATE_180, *FLIPS, *REVERSED, *REFLECTS),
        _random_translation,
        *_fixed(TRANSPOSE),
    ),
    "size": _fixed(RESOLUTION, HEIGHT, WIDTH),
    "chain": _fixed(
        *(
            _chain(first, RESOLUTION)
            for first in (ROTATE_90, ROTATE_270, ROTATE_180, *FLIPS, TRANSPOSE)
        )
    ),
    "repeat": _fixed(*REPEATS, _chain(*REPEATS, name="repeat 2")),
}
VIEWS = (
    IDENTITY,
    TRANSPOSE,
    *FLIPS,
    ROTATE_90,
    ROTATE_180,
)  # what the paper's code shows a test in; their inverses bring the answers back
