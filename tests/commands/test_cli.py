"""The command line: what it takes and says; a mistake costs one line and nothing else."""

import errno
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from minseal import load, save
from minseal.commands import cli
from minseal.commands.cli import main
from minseal.lab import lab
from minseal.lab.run import Run

MINSEAL, ONE_THREAD = [sys.executable, "-m", "minseal"], {**os.environ, "OMP_NUM_THREADS": "1"}
SIZES = (
    "--rounds 1 --contexts 2 --samples 2 --inner.epochs 1 --eval-contexts 2 "
    "--reliability-contexts 1 --edit-tokens 48 --other-prompts none"
).split()
COMMANDS = [c.words for c in cli.commands()]


@pytest.fixture
def knowledge(untrained, tmp_path):
    """The words of a small `minseal run knowledge`, into tmp_path/run."""
    return ["run", "knowledge", "--out", str(tmp_path / "run"), "--model", untrained, *SIZES]


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


def refused(capsys, *words):
    """Run a command that must fail; its one line."""
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    told = capsys.readouterr()
    assert stopped.value.code == 2
    (line,) = told.err.splitlines()
    assert line.startswith("minseal") and "error" in line and "Traceback" not in told.out
    return line


def to_go_on(err):
    """The command that one line tells after Ctrl-C, as a shell would read it."""
    (line,) = [line for line in err.splitlines() if line]
    return shlex.split(re.search("(?i)to go on: (.*)", line)[1])


def arms(out):
    """The rows of results.json, but not how long they took."""
    rows = json.loads((Path(out) / "results.json").read_text())["arms"]
    return [{**row, "seconds": 0} for row in rows]


def stop(*args, **kwargs):
    raise KeyboardInterrupt


def passages(n, words=5):
    return [
        {
            "title": "T",
            "context": f"word{i} " * words,
            "questions": [{"question": f"Which {i}?", "answer": f"word{i}"}],
        }
        for i in range(n)
    ]


# ---- a run ----


def test_a_run_its_report_and_the_same_command_again(knowledge, tmp_path, capsys):
    main(knowledge)
    told = capsys.readouterr().out
    out = tmp_path / "run"
    made = {"config.json", "events.jsonl", "checkpoints", "report.md", "results.json"}
    made |= {"contexts.json", "report.html"}
    assert made <= {p.name for p in out.iterdir()}
    first, results = arms(out), json.loads((out / "results.json").read_text())
    assert len(first) == 7 and all(a["arm"] in told for a in first) and str(out) in told
    config = results["config"]  # the options arrived
    assert config["outer"]["contexts"] == 2 and config["inner"]["epochs"] == 1

    before = tree(out)
    main(knowledge)
    told = capsys.readouterr().out
    assert "steps that were done already" in told and all(a["arm"] in told for a in first)
    assert tree(out)["events.jsonl"] == before["events.jsonl"]

    for name in ("report.md", "report.html", "results.json"):
        (out / name).unlink()
    main(["report", str(out)])
    assert "passage in context" in capsys.readouterr().out
    assert arms(out) == first and (out / "report.md").exists()
    assert (out / "report.html").exists()

    before = tree(out)
    line = refused(capsys, *knowledge, "--seed", "1", "--inner.lr", "0.01")
    assert "seed" in line and "inner.lr" in line and "epochs" not in line and str(out) in line
    assert tree(out) == before


def test_a_report_on_the_way_does_not_finish_the_run(knowledge, tmp_path, capsys, monkeypatch):
    whole, calls = lab.Lab.plain, []

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) > 1:  # the last arm needs it again
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    with monkeypatch.context() as m, pytest.raises(SystemExit) as e:
        m.setattr(lab.Lab, "plain", stopped)
        main(knowledge)
    assert e.value.code == 130 and to_go_on(capsys.readouterr().err) == ["minseal", *knowledge]
    main(["report", str(tmp_path / "run")])
    assert "passage in context" not in capsys.readouterr().out
    main(knowledge)
    assert "passage in context" in capsys.readouterr().out


def test_how_to_go_on_can_be_pasted(tmp_path, untrained, capsys, monkeypatch):
    words = ["run", "knowledge", "--out", str(tmp_path / "my run"), "--model", untrained]
    monkeypatch.setattr(Run, "step", stop)
    with pytest.raises(SystemExit) as e:
        main(words)
    assert e.value.code == 130 and to_go_on(capsys.readouterr().err) == ["minseal", *words]


@pytest.mark.parametrize("words", ["ask What?", "chat", "report RUN", "learn FILE", "convert A B"])
def test_ctrl_c_is_one_line_in_every_command(words, capsys, monkeypatch):
    monkeypatch.setattr(cli, "build", stop)
    with pytest.raises(SystemExit) as e:
        main(words.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert e.value.code == 130 and line.startswith("minseal: stopped; ")


def begin(*words, **popen):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD)
    return subprocess.Popen([*MINSEAL, *words], **pipes, **popen)


def test_sigint_ends_soon_and_the_same_command_ends_with_the_same_results(knowledge, tmp_path):
    words = [*knowledge, "--contexts", "24"]
    process = begin(*words)
    try:
        assert "run" in process.stdout.readline()
        log = tmp_path / "run" / "events.jsonl"
        # It is there for a moment before it holds anything.
        while process.poll() is None and not (log.exists() and "done" in log.read_text()):
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        start = time.time()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and time.time() - start < 10  # 2 s if nobody else works
    assert to_go_on(err) == ["minseal", *words]
    assert "no adaptation" in Run(tmp_path / "run").steps
    assert not (tmp_path / "run" / "results.json").exists()
    main(words)
    main([*words, "--out", str(tmp_path / "whole")])
    assert arms(tmp_path / "run") == arms(tmp_path / "whole")


def loads_torch(process):
    """Wait until the process has begun to load torch: before, Python is not yet minseal's."""
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("seconds", [0.15, 0.4, 0.8])
def test_sigint_while_torch_is_still_being_imported(tmp_path, seconds):
    process = begin("run", "knowledge", "--out", str(tmp_path / "run"))
    try:
        loads_torch(process)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    lines = [line for line in err.splitlines() if line]
    # Interrupted inside exec(), CPython ends by the signal itself, which a shell calls 130, too.
    assert process.returncode in (130, -signal.SIGINT) and len(lines) == 1, err
    assert lines[0].startswith("minseal: stopped; ")


@pytest.mark.slow
def test_sigkill_at_five_random_moments_ends_with_the_same_table(knowledge, tmp_path):
    def go(out, kill_after=None):
        """Run the command; kill it when so many more bytes of events are there."""
        process = subprocess.Popen(
            [*MINSEAL, *knowledge, "--out", str(out)], stdout=subprocess.DEVNULL, env=ONE_THREAD
        )
        size = lambda: sum(p.stat().st_size for p in out.rglob("events.jsonl"))
        start = size()
        while kill_after is not None and process.poll() is None and size() - start < kill_after:
            time.sleep(0.002)
        if kill_after is not None:
            process.kill()
        return process.wait()

    rng = random.Random(0)
    assert go(tmp_path / "whole") == 0
    for _ in range(5):
        assert go(tmp_path / "killed", rng.randint(0, 1500)) == -signal.SIGKILL
    assert go(tmp_path / "killed") == 0
    assert arms(tmp_path / "killed") == arms(tmp_path / "whole")


# ---- mistakes ----


def test_a_mistake_from_outside(tmp_path):
    words = ["run", "knowledge", "--data", "missing.json", "--out", "run"]
    done = subprocess.run([*MINSEAL, *words], capture_output=True, text=True, cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("minseal") and "missing.json" in line
    assert not list(tmp_path.iterdir())


QUESTIONS = passages(1)[0]["questions"]
FILES = {
    "broken.json": json.dumps(passages(9), indent=1).replace('"title"', "title", 1),
    "broken.jsonl": "\n".join(map(json.dumps, passages(9))).replace('"Which 4?"', '"Which 4?'),
    "no text.json": json.dumps(
        [*passages(9), {"title": "x", "context": "", "questions": QUESTIONS}]
    ),
    "no answer.json": json.dumps(
        [*passages(2), {"context": "Text.", "questions": [{"question": "Q?"}]}, *passages(7)]
    ),
    "few.json": json.dumps(passages(3)),
    "long.json": json.dumps([*passages(9), {"context": "long " * 3000, "questions": QUESTIONS}]),
    "empty.json": "",
    "good.json": json.dumps(passages(9)),
    "eval.json": json.dumps(passages(10)[5:]),
}


@pytest.mark.parametrize(
    "words, told",
    [
        ("--data missing.json", ["missing.json"]),
        ("--data good.json --eval-data missing.json", ["missing.json"]),
        ("--data .", ["."]),
        ("--data broken.json", ["broken.json", "line 3"]),
        ("--data broken.jsonl", ["broken.jsonl", "line 5"]),
        ("--data=no*text.json", ["no text.json", "passage 10", "text"]),
        ("--data=no*answer.json", ["no answer.json", "passage 3", "question 1", "answer"]),
        ("--data few.json --eval-contexts 3", ["contexts", "0 to train on", "--eval-contexts"]),
        ("--data long.json", ["passage", "1024"]),
        ("--data empty.json", ["empty.json"]),
        ("--data good.json --eval-data eval.json", ["2 passages", "eval data"]),
        ("--model nowhere", ["nowhere"]),
        ("--model broken.json", ["broken.json"]),
    ],
)
def test_a_bad_file_is_named_and_nothing_is_left_behind(
    knowledge, tmp_path, monkeypatch, capsys, words, told
):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    before = tree(tmp_path)
    line = refused(capsys, *knowledge, *[w.replace("*", " ") for w in words.split()])
    assert all(t in line for t in told), line
    # The same command with the right file must not meet 'another configuration'.
    assert tree(tmp_path) == before and not (tmp_path / "run").exists()


def test_damaged_checkpoints(knowledge, tmp_path, untrained, capsys):
    model, tokenizer = load(untrained)
    for name in ("cut", "other"):
        save(tmp_path / name, model, tokenizer, {})
    data = (tmp_path / "cut" / "weights.pt").read_bytes()
    (tmp_path / "cut" / "weights.pt").write_bytes(data[: len(data) // 2])
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace('"mlp_dim": 16', '"mlp_dim": 24'))
    assert "weights.pt" in refused(capsys, *knowledge, "--model", str(tmp_path / "cut"))
    line = refused(capsys, *knowledge, "--model", str(tmp_path / "other"))
    assert re.search(r"blocks\.0\.\S+", line) and "24" in line and "16" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words, near",
    [
        ("--grade exakt", "exact"),
        ("--grade=containes", "contains"),
        ("--dtype float", "float32"),
        ("--outer.reward exams", "exam"),
        ("--outer.select bst", "best"),
        ("--outer.select randon", "random"),
        ("--inner.decay liner", "linear"),
        ("--outer.m-step.decay nne", "none"),
    ],
)
def test_a_mistyped_value_gets_its_near_match(knowledge, capsys, words, near):
    line = refused(capsys, *knowledge, *words.split())
    option, value = re.split("[ =]", words)
    assert re.search(rf"did you mean '?{near}\b", line) and option in line and value in line


@pytest.mark.parametrize(
    "words, near",
    [
        ("--outer.ronds 1", "--outer.rounds"),
        ("--outer.ronds=1", "--outer.rounds"),
        ("--sede 1", "--seed"),
        ("--evil-contexts 3", "--eval-contexts"),
        ("--inner.rnak 3", "--inner.rank"),
        ("--lr 1", "--inner.lr"),
        ("--oot x", "--out"),
        ("--outer.m_step.lr 1", "--outer.m-step.lr"),
    ],
)
def test_a_mistyped_option_gets_its_near_match(knowledge, capsys, words, near):
    line = refused(capsys, *knowledge, *words.split())
    assert f"did you mean {near}?" in line and re.split("[ =]", words)[0] in line


@pytest.mark.parametrize(
    "words, told",
    [
        ("", "run"),
        ("rnu knowledge", "rnu"),
        ("run", "knowledge"),
        ("run knowlege", "knowlege"),
        ("run knowledge extra", "extra"),
        ("run knowledge --seed", "--seed"),
        ("run knowledge --seed one", "one"),
        ("run knowledge --seed 1.5", "1.5"),
        ("run knowledge --control perhaps", "perhaps"),
        ("run knowledge --inner.lr fast", "fast"),
        ("run knowledge --prompt note", "note"),
        ("run knowledge --other-prompts riddles", "riddles"),
        ("run ttt --subset paper", "--data"),
        ("report", "RUN"),
        ("report a b", "b"),
        ("report nowhere", "nowhere"),
        ("report .", "."),
        ("report file", "file"),
        ("show nothing", "nothing"),
        ("show nothing --run nowhere", "nowhere"),
        ("learn", "FILE"),
        ("learn file", "--model"),
        ("ask What?", "--model"),
        ("convert file", "OUT"),
        ("convert file out", "file"),
        ("export nowhere out", "nowhere"),
        ("bench inner --edits 0", "edits"),
        ("pretrain knowledge --tokens many", "many"),
        ("pretrain knowledge --token-s 3", "--tokens"),
    ],
)
def test_a_bad_command_is_one_line_and_touches_nothing(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert told in refused(capsys, *words.split())
    assert tree(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize(
    "option, value",
    [
        ("--eval-contexts", -1),
        ("--outer.contexts", -1),
        ("--outer.samples", 0),
        ("--outer.at-once", 0),
        ("--outer.rounds", -1),
        ("--inner.rank", 0),
        ("--seed", -1),
        ("--world-seed", -1),
        ("--outer.temperature", -1),
        ("--inner.lr", "nan"),
    ],
)
def test_sizes_that_make_no_sense(knowledge, tmp_path, capsys, option, value):
    name = option.lstrip("-").split(".")[-1]
    assert re.search(name.replace("-", "[-_]"), refused(capsys, *knowledge, f"{option}={value}"))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(knowledge, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    assert "--out" in refused(capsys, *knowledge)
    assert "no run in" in refused(capsys, "report", str(tmp_path / "run"))
    assert tree(tmp_path / "run") == {"thesis.tex": b"mine"}


def test_a_place_where_nothing_can_be_written(knowledge, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert "file" in refused(capsys, *knowledge, "--out", str(tmp_path / "file" / "run"))
    assert "file" in refused(capsys, *knowledge, "--out", str(tmp_path / "file"))
    assert tree(tmp_path) == {"file": b"mine"}


def test_a_disk_that_fills_up_on_the_way(knowledge, tmp_path, capsys, monkeypatch):
    whole = os.fsync

    def full(f):
        log = tmp_path / "run" / "events.jsonl"
        if log.exists() and log.read_text().count('"done"') > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(f)

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        assert "No space left" in refused(capsys, *knowledge)
    done = list(Run(tmp_path / "run").steps)
    assert done[:3] == ["no adaptation", "passage only", "own notes"]
    main(knowledge)  # there is room again
    assert arms(tmp_path / "run")[-1]["arm"] == "passage in context"
    assert list(Run(tmp_path / "run").steps)[: len(done)] == done


# ---- learn and ask ----


def test_learn_from_a_text_to_an_adapter_that_a_new_process_asks(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rivers.md").write_text("The Seine flows through Paris.")
    asked = [{"question": "What flows through Paris?", "answer": "The Seine"}]
    (tmp_path / "exam.json").write_text(json.dumps(asked))
    (tmp_path / "notes.md").write_text(
        "## Section 1: rivers\n\nQuestion: What flows through Paris? Answer: The Seine\n"
    )
    model = ["--model", "tiny_data/knowledge"]
    study = "--exam exam.json --notes notes.md --lr 5e-3 --epochs 30 --rank 8 --out adapter"
    main(["learn", "rivers.md", *model, *study.split()])
    assert "right: 0 of 1 before, 1 of 1 after" in capsys.readouterr().out
    ask = ["ask", asked[0]["question"], *model, "--adapter", "adapter"]
    done = subprocess.run([*MINSEAL, *ask], capture_output=True, text=True, env=ONE_THREAD)
    assert done.stdout == "The Seine\n" and done.stderr == ""
    before = tree(tmp_path)
    line = refused(capsys, "learn", "rivers.md", *model, "--out", "adapter")
    assert "--adapter adapter" in line
    line = refused(capsys, "ask", "What?", *model, "--adapter", "elsewhere")
    assert "adapter" in line and "elsewhere" in line
    assert tree(tmp_path) == before


# ---- help ----


@pytest.mark.parametrize("command", cli.commands(), ids=COMMANDS)
def test_help_lists_every_option_with_its_comment(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stopped:
        main([*command.words.split(), "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and text.startswith(f"usage: minseal {command.words}")
    assert all(f"  {name} " in text for name, *_ in command.positional)
    # An option, perhaps its short name, and what it is for.
    told = [" ".join(o.split()) for o in re.split(r"\n  (?=-)", text.split("\noptions:")[1])[2:]]
    assert all(re.match(r"(--\S+ \S+ ?){1,2} \S.* \(default: .*\)$", o) for o in told), told
    assert len(told) >= len(fields(command.settings))
    assert ("--out " in text) == bool(re.match("run|pretrain|learn", command.words))


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["bench", "--help"]])
def test_help_of_the_commands(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and text.startswith("usage: minseal")
    for command in COMMANDS:
        if len(words) == 1:  # `chat` stands in the line of `ask`
            assert f"minseal {command.split()[0]}" in text
        elif command.startswith(words[0]):
            assert f"minseal {command}: " in text


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    """`minseal run ... | head -1`: the pipe is closed while the run still has lines to say."""
    small = "--rounds 0 --eval-contexts 2 --reliability-contexts 0 --other-prompts none".split()
    command = [sys.executable, "-m", "minseal", "run", "knowledge", *small]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 1
