"""The bench compares like with like. Speed itself is measured by the command, never asserted."""

import builtins
import json

import pytest

from minseal import UserError
from minseal.bench import BenchConfig, bench_inner


def test_both_sides_train_alike_and_the_numbers_are_written(tmp_path):
    results = bench_inner(
        BenchConfig(edits=8, epochs=2, repeats=1, json=str(tmp_path / "bench.json")), say=list
    )
    assert results["loss_difference"] < 1e-5  # float32: the same sums in another order
    assert json.loads((tmp_path / "bench.json").read_text()) == results
    assert results["rows"]["peft, batch size 1"]["over batch size 1"] == 1  # a thing over itself


def test_without_the_extra_one_line_names_it(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "peft":
            raise ImportError("No module named 'peft'", name="peft")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"peft.*minseal\[test\]"):
        bench_inner(BenchConfig())
