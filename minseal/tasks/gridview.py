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
CODES = "000000 0074d9 ff4136 2ecc40 ffdc00 aaaaaa f012be ff851b 7fdbff 870c25"
COLOURS = [tuple(bytes.fromhex(code)) for code in CODES.split()]

# A grid (None: there is none), and whether it is right, which is said below it (None: nothing).
Cell = tuple[Grid | None, bool | None]
Row = tuple[str, Sequence[Cell]]  # a label and its cells


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


def plot_puzzles(figure: "Figure", rows: Sequence[Row], headings: Sequence[str]) -> None:
    """A table of grids in a figure, the headings above its first row."""
    table = figure.subplots(len(rows), len(headings), squeeze=False)
    for axes, heading in zip(table[0], headings):
        axes.set_title(heading, fontsize=8)
    for line, (label, cells) in zip(table, rows):
        _write(line[0], -0.1, 0.5, label, ha="right", va="center")
        for axes, (grid, right) in zip(line, cells):
            axes.set_axis_off()
            if grid is None:
                _write(axes, 0.5, 0.5, "no grid", ha="center", va="center")
                continue
            axes.imshow(np.array([[COLOURS[cell] for cell in row] for row in grid], dtype=np.uint8))
            for y in range(1, len(grid)):
                axes.axhline(y - 0.5, color="white", linewidth=0.5)
            for x in range(1, len(grid[0])):
                axes.axvline(x - 0.5, color="white", linewidth=0.5)
            if right is not None:
                word, ink = ("right", "black") if right else ("wrong", "tab:red")
                _write(axes, 0.5, -0.04, word, ha="center", va="top", color=ink)


def _write(axes: "Axes", x: float, y: float, text: str, **how: str) -> None:
    axes.text(x, y, text, transform=axes.transAxes, fontsize=8, **how)
