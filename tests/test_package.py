"""The wheel carries all of minseal and its tiny models, and works where no clone is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CARRIED = (".py", ".html")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy of the sources: what older builds left in build/ is not in it."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("minseal", "tiny_data"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "runs")
        )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "."], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("minseal-*.whl")
    return path


def test_the_wheel_holds_every_module_and_the_tiny_models_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    modules = {
        str(p.relative_to(ROOT)) for p in (ROOT / "minseal").rglob("*") if p.suffix in CARRIED
    }
    data = {
        f"minseal/{p.relative_to(ROOT)}"
        for p in (ROOT / "tiny_data").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert inside == modules | data
    assert "minseal/tiny_data/knowledge/weights.pt" in data


def test_the_console_script_is_the_one_that_ends_in_a_line(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
    assert "minseal = minseal.__main__:main" in archive.read(name).decode()


def test_a_run_from_the_wheel_in_an_empty_folder(wheel, tmp_path):
    site, here = tmp_path / "site", tmp_path / "here"
    zipfile.ZipFile(wheel).extractall(site)
    here.mkdir()
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    where = "import minseal; print(minseal.__file__)"
    asked = subprocess.run(
        [sys.executable, "-c", where], cwd=here, env=env, capture_output=True, text=True
    )
    assert Path(asked.stdout.strip()).is_relative_to(site), asked.stderr
    sizes = "--rounds 1 --contexts 2 --samples 2 --eval-contexts 2 --reliability-contexts 0"
    words = f"run knowledge {sizes} --control false --other-prompts none".split()
    done = subprocess.run(
        [sys.executable, "-m", "minseal", *words],
        cwd=here,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("passage in context")]
    assert rows and float(rows[-1].split()[3]) > 0.8  # the pretrained model, not any model
    assert (here / "runs" / "knowledge" / "results.json").is_file()
    assert {p.name for p in here.iterdir()} == {"runs"}


def test_a_name_in_tiny_data_is_never_asked_of_the_hub(tmp_path, monkeypatch):
    import minseal

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it would fail
    monkeypatch.chdir(tmp_path)
    with pytest.raises(minseal.UserError, match="no toy model at tiny_data/nothing"):
        minseal.load("tiny_data/nothing")
    assert minseal.load("tiny_data/knowledge")[1].vocab_size == 512
