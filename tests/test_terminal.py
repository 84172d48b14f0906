"""Output: what comes from outside steers no terminal, and no stream makes a run fail."""

import io
import json
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minseal.commands import cli
from minseal.commands.ask import ChatConfig, chat
from minseal.commands.cli import main
from minseal.tasks.arc import to_json
from minseal.tasks.rules import toy_puzzles
from minseal.terminal import prepare, printable

MINSEAL = [sys.executable, "-m", "minseal"]
TITLE = "\x1b]0;owned\x07\x1b[2J\x9b31mred\r\u202eevil\u2028"  # window title, clear, colour, turn
SAFE = "\\x1b]0;owned\\x07\\x1b[2J\\x9b31mred\\r\\u202eevil\\u2028"


@given(st.text(st.characters(exclude_categories=[])))
def test_what_is_printed_holds_no_control_character_and_can_be_encoded(text):
    """The oracle is Unicode's own table: Cc but line breaks and tabs, Cs, Zl, Zp, bidi controls."""
    safe = printable(text)
    safe.encode("utf-8")
    for c in safe:
        assert unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") or c in "\n\t"
        assert unicodedata.bidirectional(c) not in ("LRE", "RLE", "LRO", "RLO", "PDF")
        assert unicodedata.bidirectional(c) not in ("LRI", "RLI", "FSI", "PDI")
    if text.isprintable():
        assert safe == text  # letters of every script stay as they are
    assert len(printable(text, one_line=True).splitlines()) <= 1


def passages(title):
    exam = [{"question": f"Who? {title}", "answer": f"Ada {title}"}]
    return json.dumps([{"title": title, "context": "Ada. " * 3, "questions": exam}] * 4)


def test_titles_rules_names_and_errors_reach_the_terminal_spelt_out(tmp_path, capsys, monkeypatch):
    """Every command that shows something from a file: none hands on a control character."""
    monkeypatch.chdir(tmp_path)
    Path("p.json").write_text(passages(TITLE))
    puzzle = {**to_json(toy_puzzles(1, 0)[0]), "kind": TITLE}
    Path("q.json").write_text(json.dumps({"a": puzzle}))
    Path("bad.json").write_text(json.dumps([{"title": TITLE, "context": 5}]))
    Path("t.md").write_text(f"# {TITLE}\n\nThe Seine flows through Paris. {TITLE}\n")
    Path("e.json").write_text(json.dumps([{"question": f"Who? {TITLE}", "answer": TITLE}]))
    heading = TITLE.split("\r")[0]  # there the line ends
    notes = f"## Section 1: {heading}\n\nQuestion: What? {TITLE} Answer: The Seine {TITLE}\n"
    Path("n.md").write_text(notes.replace("\r", "").replace("\u2028", ""))
    small = "--rounds 0 --eval-contexts 2 --reliability-contexts 0 --control false --edit-tokens 8"
    model, texts = "--model tiny_data/knowledge", []
    for words in (
        f"run knowledge --data p.json --out run --inner.epochs 1 {small}",
        "report run",
        "show a --data q.json --color no",
        "show missing --data bad.json",
        "run knowledge --data bad.json",
        f"learn t.md {model} --exam e.json --notes n.md --epochs 1 --out adapter",
        f"run knowledge --model {TITLE.replace(' ', '')}",
        f"--{TITLE}",
    ):
        try:
            main(words.split(" "))
        except SystemExit:
            pass
        out, err = capsys.readouterr()
        texts.append(out + err)
        assert "Traceback" not in err
        assert not [c for c in out + err if c in "\x1b\x07\x9b\r\u202e\u2028"], words
    assert SAFE in "".join(texts)


def test_an_answer_of_a_model_is_spelt_out_in_ask_and_chat(monkeypatch, capsys):
    monkeypatch.setattr("minseal.commands.ask.sample", lambda *a, **k: [[f"A {TITLE} B"]])
    main(["ask", "What?", "--model", "tiny_data/knowledge"])
    lines = iter(["Hello?", ""])
    chat(ChatConfig("tiny_data/knowledge"), read=lambda prompt: next(lines))
    out = capsys.readouterr().out
    assert out.count(f"A {SAFE} B") == 2 and "\x1b" not in out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-16"])
def test_letters_that_a_stream_does_not_have_are_spelt_out(monkeypatch, encoding):
    """A pipe on Windows takes a few letters only: the oracle is Python's own backslashreplace."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    prepare()
    print("It was built by 李明, the café’s owner.", flush=True)
    expected = "It was built by 李明, the café’s owner.\n".encode(encoding, "backslashreplace")
    assert raw.getvalue() == expected
    assert sys.stdin.readline() == "caf\ufffd\n"  # and what is typed in another encoding is read


def test_streams_that_were_closed_are_replaced(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    prepare()
    print("nobody reads this", flush=True)
    assert sys.stdin.read() == ""


@pytest.mark.parametrize(
    "words, closed",
    [
        pytest.param(words, closed, marks=[] if first else pytest.mark.faults)
        for words in (["show", "colours 1"], ["--help"], ["ask"], ["show", "nothing"])
        for closed in (">&- 2>&- <&-", "2>&1 | true", "| true", ">&-", "2>&-")
        for first in [words[0] == "show" and words[1] == "colours 1" and len(closed) > 8]
    ],
)
def test_a_stream_that_is_closed_or_goes_away_is_no_traceback(words, closed, tmp_path):
    command = " ".join(map(repr, [*MINSEAL, *words]))
    done = subprocess.run(f"{command} {closed}", shell=True, capture_output=True, text=True)
    assert len(done.stderr.splitlines()) <= 1 and "Traceback" not in done.stdout + done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_onto_a_full_disk_is_one_line():
    done = subprocess.run(
        [*MINSEAL, "show", "colours 1"], stdout=open("/dev/full", "w"), stderr=-1, text=True
    )
    assert done.stderr == "minseal: error: [Errno 28] No space left on device\n"
    assert done.returncode == 2


@pytest.mark.parametrize("command", cli.commands(), ids=lambda c: c.words)
def test_any_error_of_the_system_is_one_line(command, monkeypatch, capsys):
    """No permission, a name too long, a full disk: whichever call meets it, in every command."""

    def refuse(*args):
        raise PermissionError(13, "Permission denied", f"some{TITLE}where")

    monkeypatch.setattr(cli, "build", refuse)
    with pytest.raises(SystemExit) as stopped:
        main([*command.words.split(), *("x" for _ in command.positional)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"minseal: error: some{SAFE}where: Permission denied\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_packages_are_imported_is_one_line(number, tmp_path):
    """The rest of this kind, at many moments and in every command: tests/test_faults.py."""
    process = subprocess.Popen(
        [*MINSEAL, "run", "knowledge"], cwd=tmp_path, stdout=-1, stderr=-1, text=True
    )
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None and not caught(status):
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "")
    assert err == "minseal: stopped; nothing had begun\n" and not list(tmp_path.iterdir())


def caught(status):
    """Whether the process looks after SIGTERM by now (Python itself looks after SIGINT)."""
    (mask,) = [line.split()[1] for line in status.read_text().splitlines() if "SigCgt" in line]
    return int(mask, 16) >> (signal.SIGTERM - 1) & 1
