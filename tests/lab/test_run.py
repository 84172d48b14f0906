"""The run folder: every step once, whatever happens in between."""

import contextlib
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
from minseal.lab.run import Arm, Run
from minseal.outer import Trial

CONFIG = {"seed": 1, "data": "x", "inner": {"lr": 0.1, "epochs": 2}, "shape": (1, 2)}


def trials(step, n=2):
    """What a step finds out: texts as models write them, the empty one among them."""
    rng = random.Random(step)
    texts = [f'{step}\n"é \u2028\x85\\ {i}' for i in range(n - 1)] + [""]
    return [
        Trial(str(i), rng.random(), text, i, rng.random(), ["a", ""], [1.0, 0.0], None, {"lr": 0.1})
        for i, text in enumerate(texts)
    ]


def never():
    raise AssertionError("computed again")


def events(folder):
    """The log without the times that the steps took."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


def test_a_step_is_computed_once(tmp_path):
    def tell(step, new):
        told.append((step.name, new, len(step.trials)))

    run, told = Run(tmp_path / "r", CONFIG, tell), []
    assert run.step("a", lambda: trials("a")) == trials("a") == run.step("a", never)
    again = Run(tmp_path / "r", CONFIG, tell)
    assert again.step("a", never) == trials("a")
    assert again.step("b", list) == [] == again.step("b", never)
    assert list(Run(tmp_path / "r").steps) == ["a", "b"]
    assert Run(tmp_path / "r").config == json.loads(json.dumps(CONFIG))
    # Every step is told, computed or read back.
    a, b = ("a", True, 2), ("b", True, 0)
    assert told == [a, ("a", False, 2), ("a", False, 2), b, ("b", False, 0)]


@pytest.mark.parametrize("value", [0, None, "é\n\u2028", [], {}, [[0.1], []], {"a": {"b": [1]}}])
def test_what_json_can_hold_is_computed_once(tmp_path, value):
    assert Run(tmp_path / "r", CONFIG).step("a", lambda: value) == value
    assert Run(tmp_path / "r", CONFIG).step("a", never) == value


def test_tensors_are_computed_once(tmp_path):
    tensors = {"A": torch.randn(2, 3), "B": torch.arange(3)}
    first = Run(tmp_path / "r", CONFIG).step("round 1 M-step", lambda: tensors)
    again = Run(tmp_path / "r", CONFIG).step("round 1 M-step", never)
    for got in (first, again):
        assert set(got) == set(tensors)
        assert all(torch.equal(got[k], tensors[k]) for k in tensors)


def test_a_file_may_be_written_before_the_first_step(tmp_path):
    run = Run(tmp_path / "r", CONFIG)
    run.write("puzzles.json", "{}")
    assert run.step("a", list) == [] and (tmp_path / "r" / "puzzles.json").read_text() == "{}"
    assert list(Run(tmp_path / "r", CONFIG).steps) == ["a"]


def test_arms_are_read_back_as_they_were_declared_in_the_order_of_measurement(tmp_path):
    run = Run(tmp_path / "r", CONFIG)
    arms = [
        Arm("z"),
        Arm("y 1", over="z", series="y", at=1, rival=True),
        Arm("a", "z", ("y", "q"), 0),
    ]
    for arm in arms:
        run.step(arm.name, lambda: trials(arm.name), arm)
        run.step(f"after {arm.name}", list)
    for there in (run, Run(tmp_path / "r")):
        assert [step.arm for step in there.arms()] == arms
        assert [step.trials for step in there.arms()] == [trials(arm.name) for arm in arms]


def test_steps_under_a_prefix_keep_its_labels(tmp_path):
    run = Run(tmp_path / "r", CONFIG)
    loop = run.under("round", loop="round")
    loop.step("1 M-step", list)
    loop.under("1", round=1).step("in training", lambda: {"reward": 0.5})
    run.step("round", list)
    for there in (run, Run(tmp_path / "r")):
        assert {step.name: step.labels for step in there.steps.values()} == {
            "round 1 M-step": {"loop": "round"},
            "round 1 in training": {"loop": "round", "round": 1},
            "round": {},
        }


def test_a_lost_checkpoint_is_computed_again(tmp_path):
    Run(tmp_path / "r", CONFIG).step("m", lambda: {"x": torch.ones(1)})
    (lost,) = (tmp_path / "r" / "checkpoints").iterdir()
    lost.unlink()
    assert Run(tmp_path / "r", CONFIG).step("m", lambda: {"x": torch.zeros(1)})["x"].item() == 0
    assert Run(tmp_path / "r", CONFIG).step("m", never)["x"].item() == 0


def test_killed_between_saving_tensors_and_logging_them(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    Run(tmp_path / "r", CONFIG).step("a", list)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Run, "_log", killed)
        Run(tmp_path / "r", CONFIG).step("m", lambda: {"x": torch.ones(1)})
    assert Run(tmp_path / "r", CONFIG).step("m", lambda: {"x": torch.ones(1)})["x"].item() == 1
    assert list(Run(tmp_path / "r").steps) == ["a", "m"]


def test_seconds_count_each_step_once(tmp_path):
    run = Run(tmp_path / "r", CONFIG)
    run.step("a 1", lambda: time.sleep(0.05) or [])
    run.step("a 2", list)
    run.step("a 1", never)
    assert 0.05 <= run.seconds() < 5
    assert run.seconds() == sum(step.seconds for step in run.steps.values())
    assert Run(tmp_path / "r").seconds() == run.seconds()  # the report made again says the same


def test_a_step_that_fails_leaves_nothing_of_itself(tmp_path):
    run = Run(tmp_path / "r", CONFIG)
    run.step("a", lambda: trials("a"))
    before = tree(tmp_path / "r")
    with pytest.raises(ZeroDivisionError):
        run.step("b", lambda: 1 / 0)
    assert tree(tmp_path / "r") == before and list(run.steps) == ["a"]


# ---- kills ----

STEPS = ["a", "b 1", "b 2"]


def test_wherever_the_log_ends_the_run_goes_on_to_the_same(tmp_path):
    """A kill or a full disk may cut the log at any byte: here each seventh, and line ends."""
    whole = Run(tmp_path / "whole", CONFIG)
    for step in STEPS:
        whole.step(step, lambda: trials(step))
    log = (tmp_path / "whole" / "events.jsonl").read_bytes()
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    line_ends = [i for i in range(len(log) + 1) if b"\n" in log[max(0, i - 2) : i + 1]]
    for end in sorted({*range(0, len(log), 7), *line_ends, len(log)}):
        (tmp_path / "r" / "events.jsonl").write_bytes(log[:end])
        for _ in range(2):  # the second time finds everything done
            run = Run(tmp_path / "r", CONFIG)
            got = [run.step(step, lambda: trials(step)) for step in STEPS]
            assert got == [trials(step) for step in STEPS], end
        names = [e.get("done", e.get("step")) for e in events(tmp_path / "r")]
        assert names == [step for step in STEPS for _ in range(3)], end


def test_reading_alone_repairs_nothing(tmp_path):
    Run(tmp_path / "r", CONFIG).step("a", lambda: trials("a"))
    with open(tmp_path / "r" / "events.jsonl", "a") as f:
        f.write('{"step": "b", "reward": 1}\n{"step": "b", "rew')
    before = tree(tmp_path / "r")
    assert Run(tmp_path / "r").steps.keys() == {"a"}
    assert tree(tmp_path / "r") == before


@pytest.mark.parametrize(
    "moment", ["minseal.lab.run.write_folder", "os.replace", "minseal.lab.run.Run._log"]
)
def test_killed_before_the_first_step_is_as_if_never_begun(tmp_path, monkeypatch, moment):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(moment, killed)
        Run(tmp_path / "r", CONFIG).step("a", lambda: trials("a"))
    assert Run(tmp_path / "r", CONFIG).step("b", list) == []


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_run import slow_steps
folder, rng = Path(sys.argv[2]), random.Random(0)
size = lambda: os.path.getsize(log) if (log := folder / "events.jsonl").exists() else 0
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
            state = run.step(f"step {i}", lambda: work({"x": torch.full((50,), float(i))}))
            out.append(state["x"].tolist())
        else:
            out.append(run.step(f"step {i}", lambda: work(trials(i))))
    return out


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sigkill_at_random_moments(tmp_path):
    # A process of its own does the forking: one that has run parallel tensor work must not.
    command = [sys.executable, "-c", KILLER, str(Path(__file__).parent), str(tmp_path / "r")]
    killer = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert killer.stdout.split() == ["9"] * 5, killer.stderr  # all five died of it
    assert slow_steps(tmp_path / "r") == slow_steps(tmp_path / "whole")
    assert events(tmp_path / "r") == events(tmp_path / "whole")
    # A kill may leave something behind whose name says so, and nothing else.
    left = [p for p in tree(tmp_path / "r") if ".minseal-" not in p]
    assert left == list(tree(tmp_path / "whole"))


# ---- another configuration, another folder ----


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
    Run(tmp_path / "r", CONFIG).step("a", lambda: trials("a"))
    before = tree(tmp_path / "r")
    with pytest.raises(UserError) as e:
        Run(tmp_path / "r", {**CONFIG, **changes})
    assert len(str(e.value).splitlines()) == 1 and all(t in str(e.value) for t in told)
    assert not any(f"{u} is" in str(e.value) for u in untold)
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
        Run(tmp_path / "file" / "below", CONFIG).step("a", lambda: trials("a"))
    with pytest.raises(UserError, match="missing"):
        Run(tmp_path / "missing")
    assert tree(tmp_path) == before and not (tmp_path / "missing").exists()


def test_an_empty_folder_is_taken(tmp_path):
    assert Run(tmp_path, CONFIG).step("a", lambda: trials("a")) == trials("a")


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


@pytest.mark.parametrize(
    "lines",
    [
        '{"done": "a", "seconds": 1, "mood": "good"}',
        '{"done": "a"}',
        '{"step": "a", "mood": 1}\n{"done": "a", "seconds": 1}',
        '[1]\n{"done": "a", "seconds": 1}',
        "3",
        '{"done": "a", "seconds": 1, "arm": {"name": "a", "mood": 1}}',
    ],
    ids=["odd key", "no seconds", "odd trial", "list", "number", "odd arm"],
)
def test_a_log_that_no_run_wrote_is_refused_by_name_and_kept(tmp_path, lines):
    Run(tmp_path / "r", CONFIG).step("z", list)
    path = tmp_path / "r" / "events.jsonl"
    path.write_text(lines + "\n")
    with pytest.raises(UserError, match="events.jsonl, line [12](, arm)?: ") as e:
        Run(tmp_path / "r", CONFIG)
    assert len(str(e.value).splitlines()) == 1
    told = Run(tmp_path / "r").complaints
    assert told and told[0] in str(e.value)
    assert path.read_text() == lines + "\n"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="events.jsonl"):
        Run(tmp_path / "r", CONFIG)


# ---- failing writes ----


@pytest.mark.parametrize("broken", ["open", "os.fsync", "os.replace", "write_text", "torch.save"])
def test_a_full_disk_is_told_and_loses_no_earlier_step(tmp_path, monkeypatch, broken):
    run = Run(tmp_path / "r", CONFIG)
    run.step("a", lambda: trials("a"))
    run.step("m", lambda: {"x": torch.ones(3)})
    run.write("report.md", "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where = {"open": "builtins.open", "write_text": "pathlib.Path.write_text"}.get(broken, broken)
    with monkeypatch.context() as m:
        m.setattr(where, full)
        actions = {
            "log": lambda: run.step("b", lambda: trials("b")),
            "tensors": lambda: run.step("n", lambda: {"x": torch.zeros(3)}),
            "text": lambda: run.write("report.md", "new"),
        }
        failed = []
        for name, action in actions.items():
            try:
                action()
            except UserError as e:
                failed.append(name)
                assert "No space left" in str(e) and str(tmp_path) in str(e)
                assert len(str(e).splitlines()) == 1
    hit = {"open": "log", "os.fsync": "log", "torch.save": "tensors"}.get(broken, "text")
    assert hit in failed
    assert not list((tmp_path / "r").rglob(".minseal-*.*"))
    again = Run(tmp_path / "r", CONFIG)
    assert again.step("a", never) == trials("a")
    assert again.step("m", never)["x"].tolist() == [1, 1, 1]
    assert again.step("b", lambda: trials("b")) == trials("b")
    assert again.step("n", lambda: {"x": torch.zeros(3)})["x"].tolist() == [0, 0, 0]
    assert (tmp_path / "r" / "report.md").read_text() == ("old" if "text" in failed else "new")


# ---- damage, strangers, other processes ----


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "a pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        whole = path.read_bytes()
        middle = len(whole) // 2
        changed = bytes([whole[middle] ^ 1])
        flipped = whole[:middle] + changed + whole[middle + 1 :]
        path.write_bytes({"empty": b"", "half": whole[:middle], "one bit": flipped}[how])


@pytest.mark.parametrize("how", ["empty", "half", "one bit", "missing", "a pipe"])
def test_a_damaged_checkpoint_is_told_and_made_again(tmp_path, how):
    """Kind: power was lost, or the disk is bad. Torch alone would not notice one wrong bit."""
    state, told = {"x": torch.arange(1000.0)}, []
    Run(tmp_path / "r", CONFIG).step("m", lambda: state)
    damage(tmp_path / "r" / "checkpoints" / "m.pt", how)
    with pytest.raises(UserError, match="m.pt"):
        Run(tmp_path / "r").result("m")
    run = Run(tmp_path / "r", CONFIG, lambda step, new: told.append((step.lost, new)))
    assert torch.equal(run.step("m", lambda: state)["x"], state["x"])
    assert "m.pt" in told[0][0] and told[0][1]
    assert torch.equal(Run(tmp_path / "r", CONFIG).step("m", never)["x"], state["x"])


def test_the_checkpoint_is_on_the_disk_before_the_log_says_so(tmp_path, monkeypatch):
    done, fsync = [], os.fsync
    name_of = lambda file: Path(os.readlink(f"/proc/self/fd/{file}")).name
    monkeypatch.setattr(os, "fsync", lambda file: done.append(name_of(file)) or fsync(file))
    Run(tmp_path / "r", CONFIG).step("m", lambda: {"x": torch.ones(1)})
    assert done.index("m.pt") < done.index("checkpoints") < done.index("events.jsonl")
    assert done[-2:] == ["events.jsonl", "r"]


@pytest.mark.parametrize("name", ["../m.pt", "/etc/passwd", "other.pt", "a/../m.pt", 5])
def test_a_checkpoint_elsewhere_is_refused(tmp_path, name):
    """Kind: a path that leads out of the folder."""
    Run(tmp_path / "r", CONFIG).step("m", lambda: {"x": torch.ones(1)})
    log = tmp_path / "r" / "events.jsonl"
    log.write_text(log.read_text().replace('"m.pt"', json.dumps(name)))
    with pytest.raises(UserError, match="events.jsonl, line 1: .*checkpoint"):
        Run(tmp_path / "r", CONFIG)
    assert "m" not in (run := Run(tmp_path / "r")).steps and len(run.complaints) == 1


@pytest.mark.parametrize("name", ["checkpoints", "events.jsonl", "config.json", "results.json"])
def test_a_link_in_a_run_folder_is_never_written_through(tmp_path, name):
    Run(tmp_path / "r", CONFIG).step("a", lambda: trials("a"))
    path, mine = tmp_path / "r" / name, tmp_path / "mine"
    mine.mkdir() if name == "checkpoints" else mine.write_text("[]")
    path.unlink(missing_ok=True)
    path.symlink_to(mine)
    for action in (
        lambda: Run(tmp_path / "r", CONFIG).step("m", lambda: {"x": torch.ones(1)}),
        lambda: Run(tmp_path / "r").write("results.json", "new"),
    ):
        with contextlib.suppress(UserError):
            action()
    assert mine.is_dir() and not any(mine.iterdir()) if mine.is_dir() else mine.read_text() == "[]"


@pytest.mark.parametrize("name", ["config.json", "events.jsonl"])
@pytest.mark.parametrize("config", [CONFIG, None], ids=["run", "report"])
def test_a_pipe_in_a_run_folder_does_not_hang(tmp_path, name, config):
    Run(tmp_path / "r", CONFIG).step("a", lambda: trials("a"))
    (tmp_path / "r" / name).unlink()
    os.mkfifo(tmp_path / "r" / name)
    with pytest.raises(UserError, match=str(tmp_path)):
        Run(tmp_path / "r", config)


def test_half_a_line_is_a_kill_at_the_end_only(tmp_path):
    """Within the log it is damage: a run does not go on, a report shows what is whole."""
    run = Run(tmp_path / "r", CONFIG)
    for step in "abc":
        run.step(step, lambda: trials(step))
    log = tmp_path / "r" / "events.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*lines[:4], lines[4][:9] + "\n", *lines[5:]]))
    with pytest.raises(UserError, match="events.jsonl, line 5"):
        Run(tmp_path / "r", CONFIG)
    there = Run(tmp_path / "r")
    assert list(there.steps) == ["a", "c"] and "line 5" in there.complaints[0]
    log.write_text("".join([*lines[:7], lines[7][:9] + "\n", lines[8]]))  # pages that were lost
    assert list(Run(tmp_path / "r", CONFIG).steps) == ["a", "b"]


def test_one_process_at_a_time_owns_a_run_folder_and_a_report_may_look(tmp_path):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import test_run\n"
        "run = test_run.Run(sys.argv[2], test_run.CONFIG); run.step('a', list)\n"
        "print('begun', flush=True); time.sleep(100)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "r")]
    early = Run(tmp_path / "r", CONFIG)  # found nothing there
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for begin in (lambda: Run(tmp_path / "r", CONFIG), lambda: early.step("a", never)):
            with pytest.raises(UserError, match=f"process {other.pid} "):
                begin()
        Run(tmp_path / "r").write("report.md", "as far as it is")
        other.kill()
    with pytest.raises(UserError, match="another process began"):
        early.step("a", never)
    assert Run(tmp_path / "r", CONFIG).step("a", never) == []
