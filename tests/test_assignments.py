"""The autograder: hostile answers, results.json, many answers, the zip, its self-test.

Each problem is a process that imports torch, so all of it has the marker `tutorials`.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "tutorials" / "assignments"
sys.path.insert(0, str(FOLDER))
import checks  # noqa: E402
import grade  # noqa: E402
import marks as marking  # noqa: E402
import sandbox  # noqa: E402
import worker  # noqa: E402

pytestmark = pytest.mark.tutorials
SETS = ["a1", "a2", "a3", "a4", "a5"]


def check_double(call, luck):
    for _ in range(2):
        x = luck.normal(luck.whole(2, 4), 3)
        checks.close(call(x), 2 * x, 1e-6, "double", "added once?")


def check_half(call, luck):
    x = luck.normal(4)
    checks.close(call(x), x / 2, 1e-6, "half")


@pytest.fixture
def small(tmp_path):
    """A set of two problems, whose answers the tests write."""
    folder = tmp_path / "a0_small"
    folder.mkdir()
    problems = [
        checks.Problem("0.1", "double", "double", 4, 0.2, check_double, ("clone",)),
        checks.Problem("0.2", "half", "half", 2, 0.2, check_half),
    ]
    return marking.Set(folder, problems)


HALF = "def half(x):\n    return x / 2\n"
DOUBLE = "import torch\n\n\ndef double(x):\n    return torch.add(x, x)\n"


def points(small, source, secret="s"):
    """{problem: points}, and the messages of what failed."""
    marks = marking.grade(small, source, {False: "public", True: secret})
    got = {p.number: sum(m.points for m in marks if m.problem is p) for p in small.problems}
    return got, [m.message for m in marks if m.message]


def test_a_right_answer_gets_everything(small):
    assert points(small, DOUBLE + HALF) == ({"0.1": 4, "0.2": 2}, [])


HOSTILE = {
    "endless loop": "    while True: pass",
    "forks that stay": """
    for _ in range(4):
        if torch.os.fork() == 0:
            torch.os.setsid()
            while True: pass
    return 3 * x""",
    "memory": "    return torch.zeros(10**11)",
    "exit": "    raise SystemExit",
    "hard exit": "    torch.os._exit(0)",
    "signals its parent": "    torch.os.kill(torch.os.getppid(), 9)",
    "deletes files": """
    torch.os.system(f"rm -rf {torch.os.getcwd()}/* FOLDER/* HOME_OF_TEST/*")""",
    "reads the checks": """
    torch.os.stat("SECRET")
    return [line for line in torch.os.popen("cat SECRET")]""",
    "patches torch": """
    torch.allclose = torch.equal = torch.Tensor.all = lambda *a, **k: True
    torch.Tensor.__le__ = lambda a, b: torch.ones_like(a).bool()
    return 3 * x""",
    "writes results itself": """
    for number in range(3, 20):
        try:
            torch.os.write(number, b'{"value": 1}\\n' * 3)
        except OSError:
            pass
    return 3 * x""",
    "prints a gigabyte": "    print('x' * 10**9)",
    "returns a pickle bomb": """
    class Bomb:
        def __reduce__(self): return (print, ("boom",))
    return Bomb()""",
    "changes time": """
    torch.random.time = lambda: 0
    torch.os.times = lambda: 0
    return 3 * x""",
    "returns a huge result": "    return torch.zeros(10**8)",
    "returns a nest": """
    nest = []
    for _ in range(10**5): nest = [nest]
    return nest""",
    "a tensor that lies": "    return x.expand(10**6, *x.shape)",
    "control characters": "    raise ValueError('\\x1b[2J\\x07')",
    "sleeps": "    torch.os.system('sleep 1000')",
}


@pytest.fixture(autouse=True)
def adopted():
    sandbox.adopt()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_costs_its_own_problem_and_leaves_nothing(small, name, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "kept.txt").write_text("kept")
    (mine / "kept.txt").chmod(0o600)
    mine.chmod(0o700)
    body = HOSTILE[name].replace("FOLDER", str(small.folder)).replace("SECRET", __file__)
    body = body.replace("HOME_OF_TEST", str(mine))
    source = f"import torch\n\n\ndef double(x):\n{body}\n\n\n{HALF}"
    got, messages = points(small, source)
    assert got == {"0.1": 0, "0.2": 2}, messages
    assert (mine / "kept.txt").read_text() == "kept"
    assert list(sandbox._children()) == []
    assert all(marking.plain(m).isprintable() for m in messages)


@pytest.mark.parametrize(
    "line",
    [
        "import minseal",
        "from minseal.model import rotate",
        "import os",
        "import importlib",
        "x.clone()",
        "dict(clone=1)",
        "__import__('os')",
        "eval('1')",
        "open('answer.py')",
        "x.__class__",
        "getattr(x, 'clo' + 'ne')()",
    ],
)
def test_what_is_forbidden_loses_its_problem_and_names_the_line(small, line):
    got, messages = points(small, f"def double(x):\n    {line}\n    return 2 * x\n\n\n{HALF}")
    assert got == {"0.1": 0, "0.2": 2}
    assert all("line 2 " in m and "not allow" in m for m in messages)


@pytest.mark.parametrize(
    "extra",
    [
        "x = open('debug.txt')  # a name that is the function's own argument",
        "import os\nprint(os.getcwd())",
        "import torch\ntorch.save(double, 'x.pt')",
        "if __name__ == '__main__':\n    import minseal\n    print(double(1))",
        "for x in range(3):\n    print(nothing)",
        "PAGE = 'one\x0ctwo\u2028three\x85four'\n",
        "\ufeff# as editors on Windows begin a file",
        '"""A text\nof lines."""',
    ],
)
def test_what_stands_beside_a_right_answer_does_not_fail_it(small, extra, tmp_path):
    path = tmp_path / "answer.py"
    path.write_text(f"{extra}\n{DOUBLE}{HALF}", encoding="utf-8")
    source = grade.read_answer(path)
    assert points(small, source) == ({"0.1": 4, "0.2": 2}, [])


@pytest.mark.parametrize(
    "table",
    [
        "TABLE = {}\nfor i in range(3):\n    TABLE[i] = i",
        "TABLE = {}\nTABLE.update({2: 2})",
        "try:\n    import nowhere\nexcept ImportError:\n    TABLE = [0, 1, 2]",
        "if True:\n    def make():\n        return [0, 1, 2]\nTABLE = make()",
        "TABLE = [0, 1, 0]\nTABLE[2] += 2",
        "TABLE: list = [i for i in range(3)]",
        "(TABLE, rest) = ([0, 1, 2], None)",
    ],
)
def test_what_a_function_needs_comes_with_it(small, table):
    source = f"{table}\n\n\ndef double(x):\n    return TABLE[2] * x\n\n\n{HALF}"
    got, messages = points(small, source)
    if "nowhere" in table:
        assert got == {"0.1": 0, "0.2": 2} and "imports nowhere" in messages[0]
    else:
        assert got == {"0.1": 4, "0.2": 2}, messages


def test_a_problem_gets_its_function_with_its_helpers_and_no_other_line(small):
    source = f"""
import math
import minseal  # nobody uses it
FACTOR = 2.0
raise SystemExit("at the top level")
while True: pass


def helper(x):
    return FACTOR * x


class Other:
    def broken(self): return nothing


def double(x):
    return helper(x)


{HALF}"""
    assert points(small, source)[0] == {"0.1": 4, "0.2": 2}
    part = sandbox.part_of(source, small.problems[0])
    assert "half" not in part and "minseal" not in part and "while" not in part
    assert part.splitlines().index("def double(x):") == source.splitlines().index("def double(x):")


@pytest.mark.parametrize(
    "source, told",
    [
        ("def double(x:\n", "no Python"),
        ("\x00", "no Python"),
        ("", "defines no double"),
        (f"def double(x):\n    return x\n{HALF}", "added once?"),
        (f"def double(x):\n    return 2 * x[:1]\n{HALF}", "expected shape"),
        (f"def double(x):\n    return 'x'\n{HALF}", "expected a tensor"),
        (f"def double(x):\n    return 1 / 0\n{HALF}", "ZeroDivisionError"),
        (f"def double(x):\n    return 2 * x * float('nan')\n{HALF}", "NaN"),
        (f"def double(x, y):\n    return 2 * x\n{HALF}", "TypeError"),
    ],
)
def test_what_is_wrong_is_told(small, source, told):
    got, messages = points(small, source)
    assert got["0.1"] == 0 and any(told in m for m in messages)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_agree_with_themselves_only(odd):
    expected = torch.tensor([1.0, odd])
    checks.close(expected.clone(), expected, 0.0, "it")
    for wrong in (1.0, float("nan"), float("inf"), -float("inf")):
        if not torch.tensor(wrong).equal(torch.tensor(odd)) and not (odd != odd and wrong != wrong):
            with pytest.raises(checks.Wrong):
                checks.close(torch.tensor([1.0, wrong]), expected, 0.0, "it")


def test_a_check_that_breaks_costs_its_problem(small):
    def check_broken(call, luck):
        call(luck.normal(2)) + torch.zeros(3)

    broken = checks.Problem("0.3", "broken", "double", 2, 0.2, check_broken)
    some = marking.Set(small.folder, [broken, *small.problems])
    marks = marking.grade(some, DOUBLE + HALF, {False: "public"})
    assert [m.points for m in marks] == [0, 2, 1] and "cannot compare" in marks[0].message


def test_half_of_the_points_need_the_secret(small):
    """An answer that knows the public results by heart."""
    table = []

    def call(x):
        table.append(x)
        return 2 * x

    check_double(call, checks.Luck("public", "0.1"))
    known = [(x.tolist(), (2 * x).tolist()) for x in table]
    source = f"""
import torch
KNOWN = {known}


def double(x):
    for given, result in KNOWN:
        if torch.tensor(given).equal(x):
            return torch.tensor(result)


{HALF}"""
    assert points(small, source)[0] == {"0.1": 2, "0.2": 2}


# What Gradescope's documentation says of results.json ("Autograder Specifications").
TOP = dict(
    score=(int, float),
    execution_time=(int, float),
    output=str,
    visibility=str,
    stdout_visibility=str,
    extra_data=dict,
    tests=list,
    leaderboard=list,
)
TEST = dict(
    score=(int, float),
    max_score=(int, float),
    status=str,
    name=str,
    number=str,
    output=str,
    tags=list,
    visibility=str,
    extra_data=dict,
)
VISIBILITY = {"hidden", "after_due_date", "after_published", "visible"}


def test_results_json_is_what_gradescope_documents(small):
    marks = marking.grade(small, "def double(x): return x", {False: "public", True: "s"})
    marks[0].value = 0.5
    result = json.loads(json.dumps(marking.results(marks)))
    assert result["score"] == 0 and {"tests", "leaderboard"} <= set(result)
    for entry, keys in [(result, TOP), *((test, TEST) for test in result["tests"])]:
        assert set(entry) <= set(keys)
        assert all(isinstance(value, keys[key]) for key, value in entry.items())
        assert {entry[k] for k in entry if "visibility" in k} <= VISIBILITY
    assert {test["status"] for test in result["tests"]} == {"failed"}
    assert sum(test["max_score"] for test in result["tests"]) == 6
    assert set(result["leaderboard"][0]) == {"name", "value", "order"}


def test_values_survive_the_pipe():
    values = [
        torch.tensor([[1.5, float("nan")], [float("inf"), -0.0]], dtype=torch.float64),
        torch.zeros(0, 3),
        torch.tensor(3),
        torch.tensor([True, False]),
        torch.randn(3, 2).bfloat16(),
    ]
    for value in values:
        back = worker.decode(json.loads(json.dumps(worker.encode(value))))
        assert back.dtype == value.dtype and back.shape == value.shape
        assert torch.equal(back.nan_to_num(), value.nan_to_num())
    plain = {"a": [1, 2.5, None, "x", [True]], 3: (1, 2)}
    assert worker.decode(json.loads(json.dumps(worker.encode(plain)))) == {
        "a": [1, 2.5, None, "x", [True]],
        3: [1, 2],
    }


def run(*arguments, **how):
    return subprocess.run(
        [sys.executable, FOLDER / "grade.py", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        **how,
    )


def test_many_answers_are_graded_and_go_on_where_they_were(tmp_path):
    stubs = (FOLDER / "a4_outer_loop" / "answer.py").read_text(encoding="utf-8")
    for student in ("ann", "ben"):
        (tmp_path / "in" / student).mkdir(parents=True)
        (tmp_path / "in" / student / "answer.py").write_text(stubs, encoding="utf-8")
    (tmp_path / "in" / "cleo.py").write_text("no python here", encoding="utf-8")
    (tmp_path / "in" / "dan").mkdir()
    (tmp_path / "in" / "dan" / "Answers.py").write_text(stubs, encoding="utf-8")
    arguments = ["a4", tmp_path / "in", "--secret", "s", "--out", tmp_path / "out"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "out" / "grades.csv").read_text(encoding="utf-8").splitlines()
    marks = dict(row.split(",")[:2] for row in rows[1:])
    assert marks == {"ann": "0.0", "ben": "0.0", "cleo": "0.0", "dan": "no answer.py"}
    (tmp_path / "out" / "ben.json").unlink()
    again = run(*arguments).stdout
    assert again.count("ben") == 1 and "ann" not in again and "cleo" not in again
    assert (tmp_path / "out" / "grades.csv").read_text(encoding="utf-8").splitlines() == rows
    (tmp_path / "in" / "cleo.py").write_text("still none", encoding="utf-8")  # another answer
    assert run(*arguments).stdout.count("cleo") == 1
    (tmp_path / "in" / "ann.py").write_text(stubs, encoding="utf-8")
    assert "two answers of ann" in run(*arguments).stderr


NO_FOLDER = ["a4", str(FOLDER / "a4_outer_loop" / "answer.py"), "--json", "nowhere/r.json"]
NONE = ["a4", str(FOLDER), "--secret", "s", "--at-once", "0"]


def test_many_need_a_secret_and_errors_are_a_line(tmp_path):
    for arguments in (
        ["a4", str(tmp_path)],
        ["a9"],
        [],
        ["a4", "nowhere.py"],
        ["a4", "--zip", "z"],
    ):
        done = run(*arguments, env={k: v for k, v in os.environ.items() if k != "GRADE_SECRET"})
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_the_zip_grades_by_itself(tmp_path):
    path = tmp_path / "a4.zip"
    assert run("a4", "--secret", "hush", "--zip", path).returncode == 0
    with zipfile.ZipFile(path) as archive:
        assert {"setup.sh", "run_autograder", "secret.txt"} <= set(archive.namelist())
        assert archive.getinfo("run_autograder").external_attr >> 16 & 0o111
        archive.extractall(tmp_path / "source")
    grader = tmp_path / "source" / "tutorials" / "assignments" / "grade.py"
    stubs = FOLDER / "a4_outer_loop" / "answer.py"
    command = [sys.executable, grader, "a4", stubs, "--json", tmp_path / "results.json"]
    subprocess.run(
        command, check=True, capture_output=True, env={**os.environ, "GRADE_SECRET": "x"}
    )
    assert json.loads((tmp_path / "results.json").read_text())["score"] == 0


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_complete(name):
    chosen = marking.sets()[name]
    assert sum(problem.points for problem in chosen.problems) == 20
    assert all(problem.points % 2 == 0 for problem in chosen.problems)
    handout = (chosen.folder / "handout.md").read_text(encoding="utf-8")
    stubs = (chosen.folder / "answer.py").read_text(encoding="utf-8")
    for problem in chosen.problems:
        assert problem.number in handout and f"def {problem.function}(" in stubs
    words = " ".join(handout.lower().split())
    for word in ("you may use", "hand in", "hours", "one core"):
        assert word in words, word
    assert max(len(line) for line in handout.splitlines()) <= 100


def test_there_are_forty_mutants_and_five_variants_a_set():
    found = {name: chosen.module("mutants") for name, chosen in marking.sets().items()}
    assert sum(len(module.MUTANTS) for module in found.values()) >= 40
    assert all(len(found[name].VARIANTS) >= 5 for name in SETS[:4])


@pytest.mark.parametrize("name", SETS)
def test_the_grader_is_right(name):
    done = run("--self-test", name)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
