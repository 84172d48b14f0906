"""The README tells the truth: its library snippet runs, its commands exist, its files are there."""

import re
from pathlib import Path

import pytest

from minseal.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_library_snippet_runs_and_the_adapted_model_scores_higher(monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parent.parent)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert (
        len([line for line in snippet.splitlines() if line.strip()]) <= 18
    )  # "about fifteen lines"
    names = {}
    exec(snippet, names)
    before, after = (float(x) for x in re.findall(r"\d\.\d+", capsys.readouterr().out)[:2])
    assert after > before  # two rounds on 16 passages


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"^    minseal ([a-z]+(?: [a-z]+)?)", README, re.MULTILINE)))
)
def test_every_command_in_the_readme_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0 and len(capsys.readouterr().out) > 100


def test_files_that_the_readme_names_exist():
    root = Path(__file__).parent.parent
    for path in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (root / path).exists(), path
