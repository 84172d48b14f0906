"""The command line: what it takes, what it says, and that a mistake costs one line and nothing else."""

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
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from minseal import GPT, GPTConfig, InnerConfig, OuterConfig, Tokenizer, load, save
from minseal.adapters import load_adapter
from minseal.ask import AskConfig
from minseal.bench import BenchConfig
from minseal.cli import ConvertConfig, ExportConfig, main
from minseal.experiment import KnowledgeConfig
from minseal.learn import LearnConfig
from minseal.pretrain import PretrainConfig
from minseal.runs import Run
from minseal.tasks import world
from minseal.tokenizer import train_ranks

MINSEAL, ONE_THREAD = [sys.executable, "-m", "minseal"], {**os.environ, "OMP_NUM_THREADS": "1"}
SIZES = "--outer.rounds 1 --outer.contexts 2 --outer.samples 2 --inner.epochs 1 --eval-contexts 2 --reliability-contexts 1".split()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The folder of a small model that knows nothing: these tests are about the way and not the scores."""
    folder = tmp_path_factory.mktemp("models") / "untrained"
    rng = np.random.default_rng(0)
    tokenizer = Tokenizer(train_ranks("\n".join(world.document(rng) for _ in range(200)), 400))
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        block_size=1024,
        n_layer=1,
        n_head=2,
        n_kv_head=2,
        n_embd=16,
        head_dim=8,
        mlp_dim=16,
    )
    save(folder, GPT(config).init_weights(torch.Generator().manual_seed(0)).eval(), tokenizer, {})
    return str(folder)


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
    lines = told.err.splitlines()
    assert (
        len(lines) == 1
        and lines[0].startswith("minseal")
        and "error" in lines[0]
        and "Traceback" not in told.out
    )
    return lines[0]


def to_go_on(err):
    """The command that one line tells after Ctrl-C, as a shell would read it."""
    (line,) = [line for line in err.splitlines() if line]
    return shlex.split(re.search("(?i)to go on: (.*)", line)[1])


def passages(n, words=5):
    return [
        {
            "title": "T",
            "context": f"word{i} " * words,
            "questions": [{"question": f"Which {i}?", "answer": f"word{i}"}],
        }
        for i in range(n)
    ]


# ---- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_its_report_and_the_same_command_again(knowledge, tmp_path, capsys):
    main(knowledge)
    told = capsys.readouterr().out
    out = tmp_path / "run"
    assert {"config.json", "events.jsonl", "checkpoints", "report.md", "results.json"} <= {
        p.name for p in out.iterdir()
    }
    results = json.loads((out / "results.json").read_text())
    assert (
        len(results["arms"]) == 7
        and all(a["arm"] in told for a in results["arms"])
        and str(out) in told
    )
    assert (
        results["config"]["outer"]["contexts"] == 2 and results["config"]["inner"]["epochs"] == 1
    )  # the options arrived

    before = tree(out)
    main(knowledge)
    told = capsys.readouterr().out
    assert "finished" in told and all(a["arm"] in told for a in results["arms"])
    assert tree(out)["events.jsonl"] == before["events.jsonl"]

    for name in ("report.md", "results.json"):
        (out / name).unlink()
    main(["report", str(out)])
    assert all(a["arm"] in capsys.readouterr().out for a in results["arms"][:1])
    assert [
        (a["arm"], a["mean"]) for a in json.loads((out / "results.json").read_text())["arms"]
    ] == [(a["arm"], a["mean"]) for a in results["arms"]]
    assert (out / "report.md").exists()

    before = tree(out)
    line = refused(capsys, *knowledge, "--seed", "1", "--inner.lr", "0.01")
    assert (
        "seed" in line
        and "inner.lr" in line
        and "epochs" not in line
        and str(out) in line
        and tree(out) == before
    )


def test_a_report_on_the_way_does_not_finish_the_run(knowledge, tmp_path, capsys, monkeypatch):
    from minseal import experiment

    whole = experiment.exam_score
    calls = []

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) > 1:  # the last arm needs it again
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    with monkeypatch.context() as m, pytest.raises(SystemExit) as e:
        m.setattr(experiment, "exam_score", stopped)
        main(knowledge)
    assert e.value.code == 130 and to_go_on(capsys.readouterr().err) == ["minseal", *knowledge]
    main(["report", str(tmp_path / "run")])
    assert "passage in context" not in capsys.readouterr().out
    main(knowledge)
    assert "passage in context" in capsys.readouterr().out


def test_how_to_go_on_can_be_pasted(tmp_path, untrained, capsys, monkeypatch):
    words = ["run", "knowledge", "--out", str(tmp_path / "my run"), "--model", untrained]

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "remember", stopped)
    with pytest.raises(SystemExit) as e:
        main(words)
    assert e.value.code == 130 and to_go_on(capsys.readouterr().err) == ["minseal", *words]


def test_sigint_ends_soon_and_says_how_to_go_on(tmp_path):
    start = time.time()
    words = [
        "run",
        "knowledge",
        "--out",
        str(tmp_path / "run"),
        "--eval-contexts",
        "8",
        "--outer.contexts",
        "200",
        "--outer.rounds",
        "1",
    ]
    process = subprocess.Popen(
        [*MINSEAL, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ONE_THREAD,
    )
    try:
        assert "run" in process.stdout.readline()
        first_line = time.time() - start
        log = tmp_path / "run" / "events.jsonl"
        while process.poll() is None and not (
            log.exists() and "done" in log.read_text()
        ):  # it is there for a moment before it holds anything
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        start = time.time()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert (
            time.time() - start < 5 and first_line < 15
        )  # promised: 2 and 5 seconds, on a machine that does nothing else
    finally:
        process.kill()
    assert to_go_on(err) == ["minseal", *words]
    assert "no adaptation" in Run(tmp_path / "run").done


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
    whole, killed = (
        json.loads((tmp_path / name / "results.json").read_text())["arms"]
        for name in ("whole", "killed")
    )
    assert [{**a, "seconds": 0} for a in whole] == [{**a, "seconds": 0} for a in killed]


# ---- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_mistake_from_outside(tmp_path):
    words = ["run", "knowledge", "--data", "missing.json", "--out", "run"]
    done = subprocess.run([*MINSEAL, *words], capture_output=True, text=True, cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert (
        done.returncode == 2
        and line.startswith("minseal")
        and "missing.json" in line
        and not list(tmp_path.iterdir())
    )


FILES = {
    "broken.json": json.dumps(passages(9), indent=1).replace('"title"', "title", 1),
    "broken.jsonl": "\n".join(json.dumps(p) for p in passages(9)).replace(
        '"Which 4?"', '"Which 4?'
    ),
    "no text.json": json.dumps(
        [*passages(9), {"title": "x", "context": "", "questions": passages(1)[0]["questions"]}]
    ),
    "no answer.json": json.dumps(
        [*passages(2), {"context": "Text.", "questions": [{"question": "Q?"}]}, *passages(7)]
    ),
    "few.json": json.dumps(passages(3)),
    "long.json": json.dumps(
        [*passages(9), {"context": "long " * 3000, "questions": passages(1)[0]["questions"]}]
    ),
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
        ("--data few.json", ["contexts", "2 ", "to train on", "--eval-contexts"]),
        ("--data long.json", ["passage", "1024"]),
        ("--data empty.json", ["empty.json"]),
        ("--data good.json --eval-data eval.json", ["in the training and in the eval data"]),
        ("--model nowhere", ["nowhere"]),
        ("--model broken.json", ["broken.json"]),
    ],
)
def test_bad_files(knowledge, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    before = tree(tmp_path)
    line = refused(capsys, *knowledge, *[w.replace("*", " ") for w in words.split()])
    assert all(t in line for t in told), line
    # Nothing is left behind: the same command with the right file must not meet 'another configuration'.
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
        ("--prompt note", "notes"),
        ("--prompt implication", "implications"),
        ("--outer.select bst", "best"),
        ("--outer.select randon", "random"),
        ("--inner.decay liner", "linear"),
        ("--outer.m-step.decay nne", "none"),
    ],
)
def test_a_mistyped_value_gets_its_near_match(knowledge, capsys, words, near):
    line = refused(capsys, *knowledge, *words.split())
    assert (
        re.search(rf"did you mean '?{near}\b", line)
        and re.split("[ =]", words)[0] in line
        and re.split("[ =]", words)[1] in line
    )


@pytest.mark.parametrize(
    "words, near",
    [
        ("--outer.ronds 1", "--outer.rounds"),
        ("--outer.ronds=1", "--outer.rounds"),
        ("--sede 1", "--seed"),
        ("--evil-contexts 3", "--eval-contexts"),
        ("--inner.rnak 3", "--inner.rank"),
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
        ("report", "RUN"),
        ("report a b", "b"),
        ("run knowledge --control perhaps", "perhaps"),
        ("run knowledge --inner.lr fast", "fast"),
        ("report nowhere", "nowhere"),
        ("report .", "."),
        ("report file", "file"),
        ("pretrain knowledge --tokens many", "many"),
        ("pretrain knowledge --token-s 3", "--tokens"),
    ],
)
def test_bad_commands(tmp_path, monkeypatch, capsys, words, told):
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
    assert "--out" in refused(capsys, *knowledge) and tree(tmp_path / "run") == {
        "thesis.tex": b"mine"
    }


def test_a_place_where_nothing_can_be_written(knowledge, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert "file" in refused(capsys, *knowledge, "--out", str(tmp_path / "file" / "run"))
    assert "file" in refused(capsys, *knowledge, "--out", str(tmp_path / "file"))
    assert tree(tmp_path) == {"file": b"mine"}


def test_a_disk_that_fills_up_on_the_way(knowledge, tmp_path, capsys, monkeypatch):
    whole, left = os.fsync, [3]

    def full(f):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(f)

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        assert "No space left" in refused(capsys, *knowledge)
    done = list(Run(tmp_path / "run").done)
    assert done[:3] == ["no adaptation", "passage only", "own notes"]
    main(knowledge)  # there is room again
    assert (
        json.loads((tmp_path / "run" / "results.json").read_text())["arms"][-1]["arm"]
        == "passage in context"
    )
    assert list(Run(tmp_path / "run").done)[: len(done)] == done


# ---- open models -------------------------------------------------------------------------------------------------------


def test_a_model_goes_out_and_comes_back(tmp_path, untrained, capsys):
    there, back = str(tmp_path / "hf"), str(tmp_path / "back")
    main(["export", untrained, there])
    assert there in capsys.readouterr().out and {p.name for p in Path(there).iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    main(["convert", there, back])
    assert "M parameters in float32" in capsys.readouterr().out
    (a, mine), (b, again) = load(untrained), load(back)
    assert (
        all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
        and again.ranks == mine.ranks
    )
    before = tree(tmp_path)
    for words in (
        ["convert", there, back],
        ["export", back, there],
        ["convert", str(tmp_path / "no"), str(tmp_path / "out")],
    ):
        line = refused(capsys, *words)
        assert words[2] in line or "no model" in line
    assert tree(tmp_path) == before and not (tmp_path / "out").exists()


def test_a_finished_run_goes_out_with_what_its_outer_loop_taught(
    knowledge, tmp_path, untrained, capsys
):
    main(
        [*knowledge, "--prompt", "none", "--outer.select", "random"]
    )  # there is always someone to learn from
    main(["export", str(tmp_path / "run"), str(tmp_path / "hf")])
    from minseal.outer import MStepConfig, apply

    model, _ = load(untrained)
    apply(model, torch.load(tmp_path / "run" / "checkpoints" / "round-1-M-step.pt"), MStepConfig())
    taught, _ = load(tmp_path / "hf")
    ids = torch.arange(20)[None]
    torch.testing.assert_close(
        taught(ids), model(ids), rtol=0, atol=1e-6
    )  # the same weights, written and read
    assert (taught(ids) - load(untrained)[0](ids)).abs().max() > 1e-4

    # The taught policy writes the notes; the adapter is for the model itself.
    (tmp_path / "rivers.md").write_text("The Seine flows through Paris.")
    (tmp_path / "exam.json").write_text(
        json.dumps([{"question": "What flows through Paris?", "answer": "The Seine"}])
    )
    learn = [
        "learn",
        str(tmp_path / "rivers.md"),
        "--model",
        untrained,
        "--exam",
        str(tmp_path / "exam.json"),
        "--inner.epochs",
        "1",
    ]
    main([*learn, "--out", str(tmp_path / "plain")])
    main([*learn, "--out", str(tmp_path / "adapter"), "--policy", str(tmp_path / "run")])
    assert (tmp_path / "plain" / "notes.md").read_bytes() != (
        tmp_path / "adapter" / "notes.md"
    ).read_bytes()
    load_adapter(tmp_path / "adapter", load(untrained)[0])
    assert "no finished outer loop" in refused(
        capsys, *learn, "--out", str(tmp_path / "new"), "--policy", _begun(tmp_path)
    )
    assert not (tmp_path / "new").exists()


def _begun(tmp_path):
    """A run folder without a finished round."""
    folder = tmp_path / "begun"
    Run(folder, Run(tmp_path / "run").config).remember("no adaptation", lambda: [])
    return str(folder)


def test_learn_and_ask_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rivers.md").write_text("The Seine flows through Paris.")
    (tmp_path / "exam.json").write_text(
        json.dumps([{"question": "What flows through Paris?", "answer": "The Seine"}])
    )
    (tmp_path / "notes.md").write_text(
        "## Section 1: rivers\n\nQuestion: What flows through Paris? Answer: The Seine\n"
    )
    main(
        "learn rivers.md --model tiny_data/knowledge --exam exam.json --notes notes.md --out adapter --inner.lr 5e-3 --inner.epochs 30 --inner.rank 8".split()
    )
    assert "right: 0 of 1 before, 1 of 1 after" in capsys.readouterr().out
    main(
        [
            "ask",
            "What flows through Paris?",
            "--model",
            "tiny_data/knowledge",
            "--adapter",
            "adapter",
        ]
    )
    assert capsys.readouterr().out.strip() == "The Seine"
    before = tree(tmp_path)
    assert "--adapter adapter" in refused(
        capsys, *"learn rivers.md --model tiny_data/knowledge --out adapter".split()
    )
    assert "--model" in refused(capsys, "ask", "What?") and "adapter" in refused(
        capsys, *"ask What? --model tiny_data/knowledge --adapter elsewhere".split()
    )
    assert tree(tmp_path) == before


# ---- help --------------------------------------------------------------------------------------------------------------


def comment_of(cls, name):
    """What stands behind a field in the source; a field may be its base's."""
    cls = next(c for c in cls.__mro__ if name in vars(c).get("__annotations__", {}))
    lines = Path(sys.modules[cls.__module__].__file__).read_text(encoding="utf-8").split("\n")
    body = lines[
        next(i for i, line in enumerate(lines) if line.startswith(f"class {cls.__name__}")) :
    ]
    return next(line for line in body if line.startswith(f"    {name}:")).split("  # ")[1]


def settings(cls, prefix="--"):
    """(option, comment) of each field, those of settings within settings too."""
    for f in fields(cls):
        value, option = getattr(cls(), f.name), prefix + f.name.replace("_", "-")
        if is_dataclass(value):
            yield from settings(type(value), f"{option}.")
        else:
            yield option, comment_of(cls, f.name)


@pytest.mark.parametrize(
    "command, cls",
    [
        ("run knowledge", KnowledgeConfig),
        ("pretrain knowledge", PretrainConfig),
        ("bench inner", BenchConfig),
        ("learn", LearnConfig),
        ("ask", AskConfig),
        ("chat", AskConfig),
        ("convert", ConvertConfig),
        ("export", ExportConfig),
    ],
)
def test_help_lists_every_setting_with_its_comment(capsys, monkeypatch, command, cls):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    expected = list(settings(cls))
    assert len(expected) >= len(fields(cls)) and all(comment for _, comment in expected)
    for option, comment in expected:
        assert re.search(rf"{re.escape(option)} \S+ (--\S+ \S+ )?{re.escape(comment)}", text), (
            option
        )
    if command == "run knowledge":
        assert len(expected) == len(fields(KnowledgeConfig)) - 2 + len(
            fields(OuterConfig)
        ) - 1 + 2 * len(fields(InnerConfig))
        assert "--out " in text


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["report", "--help"], ["bench", "--help"]]
)
def test_help_of_the_commands(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and text.startswith("usage: minseal")
    assert len(words) > 1 or all(
        f"minseal {c}" in text
        for c in (
            "run knowledge",
            "report RUN",
            "pretrain knowledge",
            "bench inner",
            "learn FILE",
            "ask QUESTION",
            "chat",
            "convert SOURCE OUT",
            "export SOURCE OUT",
        )
    )
