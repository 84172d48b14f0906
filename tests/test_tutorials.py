"""The tutorials tell the truth: form, claims, notebooks; with the marker `tutorials`, they run.

pytest -m tutorials     # every source in a fresh process; what it claims fails if it is broken
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.py"))
ids = dict(ids=lambda path: path.stem)


def cells_of(source):
    """(markdown, code, answers): each a list of the cells' texts."""
    cells = jupytext.read(source).cells
    answers = [c.source for c in cells if "answer" in c.metadata.get("tags", [])]
    assert all(
        c.metadata["jupyter"] == {"source_hidden": True} for c in cells if c.metadata.get("tags")
    )
    markdown, code = ([c.source for c in cells if c.cell_type == t] for t in ("markdown", "code"))
    return markdown, code, answers


def test_there_are_eight():
    assert [path.name[:2] for path in SOURCES] == [f"{n:02}" for n in range(1, 9)]


@pytest.mark.parametrize("source", SOURCES, **ids)
def test_a_tutorial_has_its_form(source):
    text, number = source.read_text(encoding="utf-8"), int(source.name[:2])
    markdown, code, answers = cells_of(source)
    words = "\n".join(markdown)
    assert len(text.splitlines()) <= 250
    assert words.startswith(f"# {number}. ")
    for heading in ("**You need**", "**It takes**", "**You will see**", "**In the code", "paper"):
        assert heading in markdown[0], heading
    assert re.search(r"about \d+ s of computing on one core", markdown[0])
    assert len(re.findall(r"\*\*Predict,\s+then\s+run\.\*\*", words)) >= 2
    kinds = (r"Fill\s+in", r"Change\s+a\s+setting\s+and\s+explain", r"Find\s+the\s+mistake")
    assert all(len(re.findall(kind, words)) == 1 for kind in kinds)
    assert len(answers) == 3 and all("assert" in a or "check_1(" in a for a in answers)
    assert "plt.show()" in text


@pytest.mark.parametrize("source", SOURCES, **ids)
def test_each_claim_is_asserted_below_it_or_above(source):
    markdown, code, _ = cells_of(source)
    claimed = re.findall(r"\*\*Claim\s+(\d\.\d)\.\*\*", "\n".join(markdown))
    asserted = re.findall(r'"claim (\d\.\d)', "\n".join(code))
    number = source.name[1]
    assert claimed == [f"{number}.{i}" for i in range(1, len(claimed) + 1)]
    assert 4 <= len(claimed) <= 8 and set(claimed) == set(asserted)


@pytest.mark.parametrize("source", [*SOURCES, ROOT / "tutorials" / "README.md"], **ids)
def test_what_a_tutorial_links_exists(source):
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".py":
        text = "\n".join(cells_of(source)[0])  # code has brackets of its own
    links = re.findall(r"\]\((?!http)([^)#\s]+)", text)
    assert links
    for link in links:
        assert (source.parent / link).exists(), link


@pytest.mark.parametrize("source", SOURCES, **ids)
def test_the_notebook_is_the_source_with_outputs(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    ours = [(c.cell_type, c.source) for c in jupytext.read(source).cells]
    assert [(c.cell_type, c.source) for c in notebook.cells] == ours, "run tutorials/build.py"
    ran = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in ran] == list(range(1, len(ran) + 1))
    outputs = [output for c in ran for output in c.outputs]
    # No error, no warning; neither would be of the reader's making.
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert len([c for c in ran if c.outputs]) >= len(ran) / 2


def run(source, folder, **environment):
    """The tutorial in a fresh process, one thread, without a display, in another folder."""
    quiet = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONWARNINGS": "error::UserWarning"}
    return subprocess.run(
        [sys.executable, source],
        cwd=folder,
        env={**os.environ, **quiet, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.tutorials
@pytest.mark.parametrize("source", SOURCES, **ids)
def test_a_tutorial_runs(source, tmp_path):
    done = run(source, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == "" and list(tmp_path.iterdir()) == []  # no warning, nothing left behind


@pytest.mark.tutorials
def test_what_the_index_tells_to_change_runs(tmp_path):
    text = (ROOT / "tutorials" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    done = run("mine.py", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    passed, trials, invalid = map(float, re.findall(r"[\d.]+", done.stdout))
    assert 0 < passed < trials - invalid < trials == 64


MUTATIONS = {
    "no 1 / sqrt(D)": ("01", "model.py", "enable_gqa=grouped", "enable_gqa=grouped, scale=1.0"),
    "B is not zero": (
        "02",
        "lora.py",
        "A.new_zeros(K, base.out_features, config.rank)",
        "A.new_full((K, base.out_features, config.rank), 0.01)",
    ),
    "loss on the prompt": ("03", "selfedit.py", '(1.0 if loss == "all" else 0.0,)', "(1.0,)"),
    "positions do not restart": (
        "03",
        "model.py",
        "return index - torch.where(starts, index, 0).cummax(dim=1).values",
        "return index",
    ),
    "winners at random": (
        "05",
        "outer.py",
        "[t for t in valid if t.reward == max(v.reward for v in valid)]",
        "valid",
    ),
    "the M-step is not merged": ("08", "outer.py", "        merge_state(policy, state)\n", ""),
}


@pytest.mark.tutorials
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_tutorial_fails_if_what_it_is_about_is_broken(name, tmp_path):
    number, room, right, wrong = MUTATIONS[name]
    package = tmp_path / "minseal"
    shutil.copytree(ROOT / "minseal", package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tiny_data").symlink_to(ROOT / "tiny_data")
    text = (package / room).read_text(encoding="utf-8")
    assert text.count(right) == 1
    (package / room).write_text(text.replace(right, wrong), encoding="utf-8")
    (source,) = [path for path in SOURCES if path.name.startswith(number)]
    broken = run(source, tmp_path, PYTHONPATH=str(tmp_path))
    last = broken.stderr.strip().splitlines()[-1]
    assert broken.returncode == 1 and last.startswith(f"AssertionError: claim {number[1]}."), last
