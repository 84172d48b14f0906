"""The README tells the truth: its library snippet runs, its commands and its files are there."""

import re
import shlex
from pathlib import Path

import pytest

from minseal.commands import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands_in_readme():
    """What begins with `minseal` in code, indented or fenced; lines joined where `\\` ends them."""
    code = [line for _, block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
    code += re.findall(r"^    (.*)$", README.replace("\\\n", " "), re.MULTILINE)
    found = [m[1] for line in code if (m := re.match(r"(?:\$ |.*&& )?(minseal [a-z].*)", line))]
    return [re.split(r"  +[a-z#]|\s#\s", line)[0].strip() for line in found]


@pytest.mark.tutorials  # it is one, and takes a round of the outer loop
def test_the_library_snippet_runs_and_the_outer_loop_helps(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)  # it needs no clone
    (snippet,) = [code for language, code in BLOCKS if language == "python"]
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 25
    exec(compile(snippet, "README.md", "exec"), {})
    told = capsys.readouterr().out
    before, after = (
        float(re.search(rf"{word}: *(-?\d*\.?\d+)", told)[1]) for word in ("before", "after")
    )
    assert after > before  # a few rounds on a few passages


def test_the_readme_shows_commands():
    assert len(commands_in_readme()) >= 3
    assert any(c.startswith("minseal run knowledge") for c in commands_in_readme())


@pytest.mark.parametrize("line", sorted(set(commands_in_readme())))
def test_every_command_and_option_in_the_readme_exists(line, capsys):
    words = shlex.split(line.replace("...", ""))[1:]
    options = [w.split("=")[0] for w in words if re.match("--[a-z]", w)]
    firsts = {c.words.split()[0] for c in cli.commands() if " " in c.words}
    command = words[: 2 if words[0] in firsts else 1]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    for option in options:
        assert re.search(rf"{re.escape(option)}[ ,]", text), (line, option)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http)([^)#\s]+)", README))))
def test_every_file_that_the_readme_links_exists(path):
    assert (ROOT / path).exists()


def test_the_readme_is_short_and_narrow():
    """185: half of it is the tree."""
    lines = README.splitlines()
    assert len(lines) <= 185
    outside = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE).splitlines()
    wide = [
        line
        for line in outside
        if len(line) > 100 and not line.startswith(("|", "    ", "![", "[!["))
    ]
    assert not wide


def test_the_tree_names_every_file_once_with_its_length():
    """Lengths are within a tenth (and three lines): a tree that lies sends readers astray."""
    (tree,) = [code for language, code in BLOCKS if language == "text" and "model.py" in code]
    folder, lengths = "", {}
    for line in tree.splitlines():
        if found := re.match(r"  (\w+)/ ", line):
            folder = f"{found[1]}/"
        elif found := re.match(r"( +)(\w+\.py) +(\d+) ", line):
            name = (folder if len(found[1]) > 2 else "") + found[2]
            assert name not in lengths
            lengths[name] = int(found[3])
    package = ROOT / "minseal"
    files = {p.relative_to(package).as_posix(): p for p in package.rglob("[!_]*.py")}
    assert lengths.keys() == files.keys()
    for name, path in files.items():
        n = len(path.read_text(encoding="utf-8").splitlines())
        assert abs(n - lengths[name]) <= 3 + n / 10, (name, n, lengths[name])
