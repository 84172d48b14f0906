"""Grids in the terminal and in figures: what stands in the grid is what is shown."""

import re

import numpy as np
import pytest

from minseal.tasks.gridview import COLOURS, blocks, plot_puzzles

WIDE, HIGH = ((0, 9, 4), (3, 3, 1)), ((5,), (6,), (7,))


def test_blocks_have_the_colours_of_the_cells_and_end_each_row_plain():
    for line, row in zip(blocks([WIDE], True).split("\n"), WIDE, strict=True):
        found = re.findall(r"\033\[48;2;(\d+);(\d+);(\d+)m  ", line)
        assert [tuple(map(int, rgb)) for rgb in found] == [COLOURS[cell] for cell in row]
        assert line.endswith("\033[0m")


def test_grids_of_different_heights_stand_side_by_side():
    assert blocks([((1, 2),), ((3,), (4,))], False) == "  1 2   ->  3\n" + " " * 12 + "4"


def test_ten_colours_and_black_is_none():
    assert len(set(COLOURS)) == 10 and COLOURS[0] == (0, 0, 0)


@pytest.mark.parametrize("n", [1, 3])
def test_a_figure_shows_every_grid_with_its_verdict(n):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    cells = [(WIDE, None), (HIGH, True), (None, None), (HIGH, False), (None, False)]
    headings = ["input", "first", "", "second", "third"]
    plot_puzzles(figure, [(f"puzzle {i}", cells) for i in range(n)], headings)
    table = np.reshape(figure.axes, (n, len(cells)))
    assert [axes.get_title() for axes in table[0]] == headings
    assert not any(axes.get_title() for axes in table[1:].ravel())
    for i, line in enumerate(table):
        words = [[text.get_text() for text in axes.texts] for axes in line]
        assert words == [[f"puzzle {i}"], ["right"], ["no grid"], ["wrong"], ["no grid"]]
        for axes, (grid, _) in zip(line, cells):
            colours = [image.get_array().tolist() for image in axes.images]
            expected = [] if grid is None else [[[*COLOURS[c]] for c in row] for row in grid]
            assert colours == ([expected] if expected else [])
    figure.canvas.draw()  # nothing of it fails
