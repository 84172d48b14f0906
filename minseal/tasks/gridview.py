"""Grids to look at: coloured blocks in the terminal, and rows of a figure."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from .arc import Grid

if TYPE_CHECKING:  # an extra; a figure is handed in by those who have it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours 0-9 in which ARC's grids are usually shown, as red, green and blue from 0 to 255.
COLOURS = [
    tuple(bytes.fromhex(code))
    for code in ("000000 0074d9 ff4136 2ecc40 ffdc00 aaaaaa f012be ff851b 7fdbff 870c25".split())
]

Cell = tuple[Grid | None, bool | None]  # a grid (None: there is none), and whether it is right


def blocks(grids: Sequence[Grid], colour: bool) -> str:
    """Grids side by side, an arrow between two: two columns a cell, in colour or as digits."""

    def paint(cell: int) -> str:
        red, green, blue = COLOURS[cell]
        return f"\033[48;2;{red};{green};{blue}m  " if colour else f"{cell} "

    def line(cells: tuple[int, ...] | None, width: int) -> str:
        if cells is None:  # a grid that is less high than another
            return "  " * width
        return "".join(map(paint, cells)) + ("\033[0m" if colour else "")

    lines = []
    for y, rows in enumerate(zip_longest(*grids)):
        gap = "  ->  " if y == 0 and len(grids) > 1 else "      "
        text = gap.join(line(cells, len(grid[0])) for cells, grid in zip(rows, grids))
        lines.append(f"  {text}".rstrip())
    return "\n".join(lines)


def draw_puzzles(
    figure: "Figure", rows: Sequence[tuple[str, Sequence[Cell]]], headings: Sequence[str]
) -> None:
    """A table of grids: rows are (label, cells), the headings stand above the first of them.

    A cell whose second half is True or False says `right` or `wrong` below its grid.
    """
    table = figure.subplots(len(rows), len(headings), squeeze=False)
    for axes, heading in zip(table[0], headings):
        axes.set_title(heading, fontsize=8)
    for line, (label, cells) in zip(table, rows):
        for axes, (grid, right) in zip(line, cells):
            axes.set_axis_off()
            if grid is None:
                axes.text(0.5, 0.5, "no grid", ha="center", va="center", fontsize=8)
            else:
                _draw_grid(axes, grid)
            if grid is not None and right is not None:
                place = dict(transform=axes.transAxes, ha="center", va="top", fontsize=8)
                word, ink = ("right", "black") if right else ("wrong", "tab:red")
                axes.text(0.5, -0.04, word, color=ink, **place)
        place = dict(transform=line[0].transAxes, ha="right", va="center", fontsize=8)
        line[0].text(-0.1, 0.5, label, **place)


def _draw_grid(axes: "Axes", grid: Grid) -> None:
    axes.imshow(np.array([[COLOURS[cell] for cell in row] for row in grid], dtype=np.uint8))
    for y in range(1, len(grid)):
        axes.axhline(y - 0.5, color="white", linewidth=0.5)
    for x in range(1, len(grid[0])):
        axes.axvline(x - 0.5, color="white", linewidth=0.5)
