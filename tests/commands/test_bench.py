"""The bench compares like with like. Speed itself is measured by the command, never asserted."""

import sys

import pytest

from minseal import UserError
from minseal.commands.bench import PEERS, BenchConfig, bench_inner


def test_both_sides_train_alike_and_all_contestants_are_in_the_table():
    said = []
    results = bench_inner(BenchConfig(edits=8, epochs=1, repeats=1), say=said.append)
    assert results["loss_difference"] < 1e-5  # float32: the same sums in another order
    rows = results["rows"]
    assert list(rows)[:4] == [*PEERS, "minseal, K = 1", "minseal, K = 8"]
    assert rows[PEERS[0]]["over batch size 1"] == 1  # a thing over itself
    assert all(value > 0 for row in rows.values() for value in row.values())
    assert all(any(name in line for line in said) for name in rows)


@pytest.mark.parametrize("package", ["peft", "transformers"])
def test_without_the_extra_one_line_names_it(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*minseal\[test\]"):
        bench_inner(BenchConfig())
