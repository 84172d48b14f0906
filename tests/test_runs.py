"""The run folder: every step once, whatever happens in between."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minseal import UserError
from minseal.runs import Run

CONFIG = {"seed": 1, "data": "x", "inner": {"lr": 0.1, "epochs": 2}, "shape": (1, 2)}


def trials(step, n=2):
    """What a step 'finds out': texts as models write them."""
    rng = random.Random(step)
    return [{"text": f'{step}\n"é \u2028\x85\\ {i}', "reward": rng.random()} for i in range(n)]


def never():
    raise AssertionError("computed again")


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


def test_a_step_is_computed_once(tmp_path):
    run, said = Run(tmp_path / "r", CONFIG, lambda step, t: said.append((step, len(t)))), []
    assert run.remember("a", lambda: trials("a")) == trials("a") == run.remember("a", never)
    again = Run(tmp_path / "r", CONFIG, lambda step, t: said.append((step, len(t))))
    assert again.remember("a", never) == trials("a")
    assert again.remember("b", list) == [] == again.remember("b", never)
    assert Run(tmp_path / "r").done.keys() == {"a", "b"} and Run(
        tmp_path / "r"
    ).config == json.loads(json.dumps(CONFIG))
    assert (
        said == [("a", 2)] * 3 + [("b", 0)] * 2
    )  # a progress bar hears of every step, remembered or not


def test_tensors_are_computed_once(tmp_path):
    tensors = {"A": torch.randn(2, 3), "B": torch.arange(3)}
    first = Run(tmp_path / "r", CONFIG).keep("round 1 M-step", lambda: tensors)
    again = Run(tmp_path / "r", CONFIG).keep("round 1 M-step", never)
    for got in (first, again):
        assert set(got) == set(tensors) and all(torch.equal(got[k], tensors[k]) for k in tensors)


def test_a_lost_checkpoint_is_computed_again(tmp_path):
    Run(tmp_path / "r", CONFIG).keep("m", lambda: {"x": torch.ones(1)})
    (lost,) = (tmp_path / "r" / "checkpoints").iterdir()
    lost.unlink()
    assert Run(tmp_path / "r", CONFIG).keep("m", lambda: {"x": torch.zeros(1)})["x"].item() == 0


def test_killed_between_saving_tensors_and_logging_them(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    Run(tmp_path / "r", CONFIG).remember("a", list)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Run, "_append", killed)
        Run(tmp_path / "r", CONFIG).keep("m", lambda: {"x": torch.ones(1)})
    assert Run(tmp_path / "r", CONFIG).keep("m", lambda: {"x": torch.ones(1)})["x"].item() == 1
    assert list(Run(tmp_path / "r").done) == ["a", "m"]


def test_seconds_count_each_step_once(tmp_path):
    run = Run(tmp_path / "r", CONFIG)
    run.remember("a 1", lambda: time.sleep(0.05) or [])
    run.remember("a 2", list)
    assert (
        0.05 <= run.seconds() < 5
        and 0.05 <= run.seconds("a 1") <= run.seconds("a")
        and run.seconds("z") == 0
    )
    assert Run(tmp_path / "r").seconds() == run.seconds()  # the report made again says the same


def test_a_step_that_fails_leaves_nothing_of_itself(tmp_path):
    run = Run(tmp_path / "r", CONFIG)
    run.remember("a", lambda: trials("a"))
    before = tree(tmp_path / "r")
    with pytest.raises(ZeroDivisionError):
        run.remember("b", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.keep("c", lambda: 1 / 0)
    assert tree(tmp_path / "r") == before


# ---- kills -------------------------------------------------------------------------------------------------------------

STEPS = ["a", "b 1", "b 2"]


def test_wherever_the_log_ends_the_run_goes_on_to_the_same(tmp_path):
    """A kill or a full disk may cut the log at any byte."""
    whole = Run(tmp_path / "whole", CONFIG)
    for step in STEPS:
        whole.remember(step, lambda: trials(step))
    log = (tmp_path / "whole" / "events.jsonl").read_bytes()
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    for end in range(len(log) + 1):
        (tmp_path / "r" / "events.jsonl").write_bytes(log[:end])
        for _ in range(2):  # the second time finds everything done
            run = Run(tmp_path / "r", CONFIG)
            assert [run.remember(step, lambda: trials(step)) for step in STEPS] == [
                trials(step) for step in STEPS
            ], end
        events = [
            json.loads(line) for line in (tmp_path / "r" / "events.jsonl").read_text().splitlines()
        ]
        assert [e.get("done", e.get("step")) for e in events] == [
            step for step in STEPS for _ in range(3)
        ], end


def test_reading_alone_repairs_nothing(tmp_path):
    Run(tmp_path / "r", CONFIG).remember("a", lambda: trials("a"))
    with open(tmp_path / "r" / "events.jsonl", "a") as f:
        f.write('{"step": "b", "reward": 1}\n{"step": "b", "rew')
    before = tree(tmp_path / "r")
    assert Run(tmp_path / "r").done.keys() == {"a"}
    assert tree(tmp_path / "r") == before


@pytest.mark.parametrize(
    "moment", ["minseal.runs.Run.write", "os.replace", "minseal.runs.Run._append"]
)
def test_killed_before_the_first_step_is_as_if_never_begun(tmp_path, monkeypatch, moment):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(moment, killed)
        Run(tmp_path / "r", CONFIG).remember("a", lambda: trials("a"))
    assert Run(tmp_path / "r", CONFIG).remember("b", list) == []


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_runs import slow_steps
folder, rng = Path(sys.argv[2]), random.Random(0)
size = lambda: sum(p.stat().st_size for p in folder.rglob("*.jsonl"))
for _ in range(5):
    before, child = size(), os.fork()
    if child == 0:
        slow_steps(folder)
        os._exit(0)
    while size() <= before:  # at least one more step
        time.sleep(.001)
    time.sleep(rng.uniform(0, .025))
    os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1])
"""


def slow_steps(folder):
    """Twenty steps of 10 ms, each third one with tensors."""

    def work(result):
        time.sleep(0.01)
        return result

    run, out = Run(folder, CONFIG), []
    for i in range(20):
        if i % 3 == 2:
            out.append(
                run.keep(f"step {i}", lambda: work({"x": torch.full((50,), float(i))}))[
                    "x"
                ].tolist()
            )
        else:
            out.append(run.remember(f"step {i}", lambda: work(trials(i))))
    return out


def log(folder):
    """The events without the times they took."""
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"}
        for line in (folder / "events.jsonl").read_text().splitlines()
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sigkill_at_random_moments(tmp_path):
    # A process of its own does the forking: one that has run parallel tensor work must not.
    command = [sys.executable, "-c", KILLER, str(Path(__file__).parent), str(tmp_path / "r")]
    killer = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert killer.stdout.split() == ["9"] * 5, killer.stderr  # all five died of it
    assert slow_steps(tmp_path / "r") == slow_steps(tmp_path / "whole")
    assert log(tmp_path / "r") == log(tmp_path / "whole")
    # A kill may leave a temporary file behind, and nothing else.
    assert [p for p in tree(tmp_path / "r") if not p.endswith(".tmp")] == list(
        tree(tmp_path / "whole")
    )


# ---- another configuration, another folder -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, told, untold",
    [
        ({"seed": 2}, ["seed is 1 there, 2 here"], ["data", "lr"]),
        (
            {"seed": 2, "data": "y"},
            ["seed is 1 there, 2 here", "data is 'x' there, 'y' here"],
            ["lr"],
        ),
        (
            {"inner": {"lr": 0.2, "epochs": 2}},
            ["inner.lr is 0.1 there, 0.2 here"],
            ["epochs", "seed"],
        ),
        (
            {"inner": {"lr": 0.1, "epochs": 2, "rank": 4}},
            ["inner.rank", "4 here"],
            ["epochs", "lr"],
        ),
        ({"new": None, "seed": 3}, ["seed is 1 there, 3 here"], ["data"]),
        ({"shape": (1, 3)}, ["shape is [1, 2] there, [1, 3] here"], ["seed"]),
    ],
)
def test_another_configuration_is_refused_and_changes_nothing(tmp_path, changes, told, untold):
    Run(tmp_path / "r", CONFIG).remember("a", lambda: trials("a"))
    before = tree(tmp_path / "r")
    with pytest.raises(UserError) as e:
        Run(tmp_path / "r", {**CONFIG, **changes})
    assert (
        len(str(e.value).splitlines()) == 1
        and all(t in str(e.value) for t in told)
        and not any(f"{u} is" in str(e.value) for u in untold)
    )
    assert tree(tmp_path / "r") == before


def test_a_foreign_folder_and_a_file_are_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for name in ("photos", "file"):
        for config in (CONFIG, None):
            with pytest.raises(UserError, match=name):
                Run(tmp_path / name, config)
    with pytest.raises(UserError, match="file"):
        Run(tmp_path / "file" / "below", CONFIG).remember("a", lambda: trials("a"))
    with pytest.raises(UserError, match="missing"):
        Run(tmp_path / "missing")
    assert tree(tmp_path) == before and not (tmp_path / "missing").exists()


def test_an_empty_folder_is_taken(tmp_path):
    assert Run(tmp_path, CONFIG).remember("a", lambda: trials("a")) == trials("a")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"3", b"null", bytes(range(256))],
    ids=["empty", "half", "list", "number", "null", "binary"],
)
@pytest.mark.parametrize("config", [CONFIG, None], ids=["run", "report"])
def test_a_damaged_config_is_refused(tmp_path, content, config):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json") as e:
        Run(tmp_path, config)
    assert len(str(e.value).splitlines()) == 1
    assert tree(tmp_path) == {"config.json": content}


# ---- failing writes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["open", "os.fsync", "os.replace", "write_text", "torch.save"])
def test_a_full_disk_is_told_and_loses_no_earlier_step(tmp_path, monkeypatch, broken):
    run = Run(tmp_path / "r", CONFIG)
    run.remember("a", lambda: trials("a"))
    run.keep("m", lambda: {"x": torch.ones(3)})
    run.write("report.md", "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(
            {"open": "builtins.open", "write_text": "pathlib.Path.write_text"}.get(broken, broken),
            full,
        )
        actions = {
            "log": lambda: run.remember("b", lambda: trials("b")),
            "tensors": lambda: run.keep("n", lambda: {"x": torch.zeros(3)}),
            "text": lambda: run.write("report.md", "new"),
        }
        failed = []
        for name, action in actions.items():
            try:
                action()
            except UserError as e:
                failed.append(name)
                assert (
                    "No space left" in str(e)
                    and str(tmp_path) in str(e)
                    and len(str(e).splitlines()) == 1
                )
    assert {
        "open": "log",
        "os.fsync": "log",
        "os.replace": "text",
        "write_text": "text",
        "torch.save": "tensors",
    }[broken] in failed
    assert not list((tmp_path / "r").rglob("*.tmp"))
    again = Run(tmp_path / "r", CONFIG)
    assert again.remember("a", never) == trials("a") and again.keep("m", never)["x"].tolist() == [
        1,
        1,
        1,
    ]
    assert again.remember("b", lambda: trials("b")) == trials("b")
    assert again.keep("n", lambda: {"x": torch.zeros(3)})["x"].tolist() == [0, 0, 0]
    assert (tmp_path / "r" / "report.md").read_text() == ("old" if "text" in failed else "new")
