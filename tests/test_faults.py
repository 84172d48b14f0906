"""Bad days: killed at any moment, stopped, a full disk, no permission. `pytest -m faults`.

Whatever happens, the same command afterwards ends with the result of a run that nothing happened
to, or says in one line what to do.
"""

import itertools
import json
import os
import queue
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fork_server import Ended, Server

from minseal.lab.agent_folder import open_agent

pytestmark = pytest.mark.faults
TINY_DATA = Path(__file__).parent.parent / "tiny_data"
KNOWLEDGE, FEWSHOT = str(TINY_DATA / "knowledge"), str(TINY_DATA / "fewshot")
PROCESSES = min(2, os.cpu_count() or 1)
MOMENTS = int(os.environ.get("FAULTS", 20))  # at random, of each command
NOBODY = 65534
SHARES = (0, 0.3, 0.6, 0.9)  # of the room that a command needs
SIZES = "--rounds 1 --contexts 1 --samples 2 --inner.epochs 1 --inner.rank 2 --eval-contexts 1"
QUICK = f"{SIZES} --reliability-contexts 0 --select random --outer.m-step.epochs 1"
PUZZLES = "--train-puzzles 1 --solvable false"
TTT = f"--eval-contexts 1 --inner.epochs 1 --inner.rank 2 {PUZZLES}"
WRITERS = {  # what makes or changes a folder
    "run knowledge": f"run knowledge --model {KNOWLEDGE} --out out {QUICK} --control false"
    " --other-prompts none",
    "run fewshot": f"run fewshot --model {FEWSHOT} --out out {QUICK} {PUZZLES} --constants 1 "
    "--views 0",
    "run ttt": f"run ttt --model {FEWSHOT} --out out {TTT}",
    "learn": f"learn page.md --model {KNOWLEDGE} --epochs 1 --out out --exam exam.json",
    "learn on": f"learn page.md --model {KNOWLEDGE} --epochs 1 --adapter adapter --out adapter",
    "learn refined": f"learn page.md --model {KNOWLEDGE} --epochs 1 --out out --exam exam.json "
    "--prompts notes --refine 1",
    "convert": "convert theirs out",
    "convert GGUF": "convert theirs.gguf out",
    "export": f"export {KNOWLEDGE} out",
    "export run": "export run out",
    "report": "report run",
    "pretrain": "pretrain fewshot --tokens 1 --batch 1 --row-tokens 32 --out out",
}
ALL = WRITERS | {
    "show": "show 'places 1'",
    "ask": f"ask 'Who?' --model {KNOWLEDGE} --max-tokens 4",
    "chat": f"chat --model {KNOWLEDGE} --max-tokens 4",
    "bench": f"bench inner --model {KNOWLEDGE} --edits 1 --epochs 1 --repeats 1",
    "help": "--help",
}
PAGE = "# Rivers\n\nThe Seine flows through Paris.\n\n# Towns\n\nBern lies on the Aare.\n"
is_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, and be another user")
# What commands need is imported when it is needed, by whoever runs them.
may_import = all(p.stat().st_mode & 1 for p in Path(torch.__file__).resolve().parents)
others_may = pytest.mark.skipif(not may_import, reason="no other user may read the packages here")


class Campaign:
    """Trials of commands, each in a folder of its own, some at once."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp())
        self.folder.chmod(0o755)  # another user shall come in
        self.start, self.trials = self.folder / "start", 0
        self.start.mkdir()
        self.servers, self.whole = queue.Queue(), {}
        for i in range(PROCESSES):
            (self.folder / f"server {i}").mkdir()
            self.servers.put(Server(self.folder / f"server {i}"))

    def close(self):
        while not self.servers.empty():
            self.servers.get().close()
        shutil.rmtree(self.folder)

    def run(self, command, cwd, **how) -> Ended:
        """A command, by its name above or by its words."""
        words = shlex.split(ALL[command]) if isinstance(command, str) else command
        server = self.servers.get()
        try:
            return server.run(words, cwd, **how)
        finally:
            self.servers.put(server)

    def fresh(self, command, prepare=lambda cwd: None) -> Path:
        """A folder with what the command reads."""
        self.trials += 1
        cwd = self.folder / f"trial {self.trials}"
        cwd.mkdir()
        prepare(cwd)
        for name in {*shlex.split(ALL[command])[1:]} & set(os.listdir(self.start)):
            copy = shutil.copytree if (self.start / name).is_dir() else shutil.copy
            copy(self.start / name, cwd / name)
        return cwd

    def undisturbed(self, command) -> tuple[Ended, dict]:
        """How the command ends on a good day, and what is in the folder then."""
        if command not in self.whole:
            cwd = self.fresh(command)
            ended = self.run(command, cwd)
            assert ended.code == 0, ended
            self.whole[command] = ended, contents(cwd)
        return self.whole[command]

    def trial(self, command, *bad_days) -> str:
        """Bad days one after another, then a good one; what is wrong then, or nothing."""
        cwd, told = self.fresh(command), f"{command}, {bad_days}: "
        before = contents(cwd)
        for how in bad_days:
            ended = self.run(command, cwd, **how)
            if complaint := indecent(ended):
                return told + complaint
            if "nothing" in ended.err and "nothing that was finished" not in ended.err:
                if found := differences(contents(cwd), before):
                    return told + f"{ended.err} But: {found}"
        complaint = self.good_day(command, cwd)
        shutil.rmtree(cwd)
        return complaint and told + complaint

    def good_day(self, command, cwd, **how) -> str:
        """The same command again: what is wrong with how it ends, and with what is there."""
        ended, (_, whole) = self.run(command, cwd, **how), self.undisturbed(command)
        found = differences(contents(cwd), whole)
        if ended.code and not (ended.code == 2 and not indecent(ended) and not found):
            return f"then {ended.code}: {ended.err.strip()}; {found}"
        return found

    def try_all(self, command, days, trial=None):
        """Each of the trials, some at once; fails with all complaints."""
        self.undisturbed(command)
        trial = trial or (lambda day: self.trial(command, *day))
        with ThreadPoolExecutor(PROCESSES) as pool:
            days = list(days)
            found = [told for told in pool.map(trial, days) if told]
        assert not found, "\n".join([f"{len(found)} of {len(days)} trials:", *found[:12]])


def indecent(ended: Ended) -> str:
    """What is wrong: it was killed, or done, or says one line, and its exit code says so, too."""
    lines = [line for line in ended.err.splitlines() if line.strip()]
    if ended.code in (0, -signal.SIGKILL):
        fine = not lines
    else:
        begins = {130: "minseal: stopped", 143: "minseal: stopped", 2: "minseal"}.get(ended.code)
        fine = begins is not None and len(lines) == 1 and lines[0].startswith(begins)
    return "" if fine else f"exit code {ended.code}, {ended.err or 'not a word'}"


def contents(folder) -> dict:
    """{name: what is in it, without what differs from run to run}."""
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: content(path) for name, path in files.items()}


def content(path):
    if path.suffix == ".pt":  # the name that a file had when it was written is in it
        tensors = torch.load(path, weights_only=True)
        return {name: (str(t.dtype), t.shape, t.numpy().tobytes()) for name, t in tensors.items()}
    if path.suffix == ".json":
        return steady(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [steady(json.loads(line)) for line in path.read_text().splitlines()]
    return path.name in ("report.md", "report.html") or path.read_bytes()  # they have seconds, too


def steady(x):
    """JSON without how long something took."""
    if isinstance(x, dict):
        times = ("seconds", "training seconds", "minutes")
        return {key: steady(value) for key, value in x.items() if key not in times}
    return [steady(value) for value in x] if isinstance(x, list) else x


def differences(there, whole) -> str:
    told = [f"no {name}" for name in whole if name not in there]
    told += [f"{name} is left" for name in there if name not in whole]
    told += [f"another {name}" for name in whole if name in there and there[name] != whole[name]]
    return ", ".join(told)


@pytest.fixture(scope="module")
def campaign():
    from open_models.test_gguf import write as write_gguf
    from their_models import write_theirs

    campaign = Campaign()
    start = campaign.start
    write_theirs(start / "theirs", "llama")
    write_gguf(start / "theirs.gguf", "llama")
    (start / "page.md").write_text(PAGE)
    exam = [{"question": "What flows through Paris?", "answer": "The Seine"}]
    (start / "exam.json").write_text(json.dumps(exam))
    for command, name in (("learn", "adapter"), ("run knowledge", "run")):
        cwd = campaign.fresh(command)
        assert campaign.run(command, cwd).code == 0
        shutil.copytree(cwd / "out", start / name)
    yield campaign
    campaign.close()


# ---- killed ----


@pytest.mark.parametrize("command", WRITERS)
def test_killed_at_every_file_operation(campaign, command):
    """Before each that changes something, and in the middle of those that write."""
    operations = campaign.undisturbed(command)[0].operations
    days = [
        [{"at": n, "torn": operation.startswith("write")}]
        for n, operation in enumerate(operations, 1)
        if not operation.startswith("fsync")
    ]
    assert len(days) > 3
    campaign.try_all(command, days)


@pytest.mark.parametrize("command", WRITERS)
def test_the_power_fails_while_something_is_not_on_the_disk(campaign, command):
    """A file of which not all was flushed is cut to what was: at the last moment of each such."""
    operations = campaign.undisturbed(command)[0].operations
    unsafe = [operation.partition(" unsafe: ")[2] for operation in operations]
    days = [
        [{"at": n, "power": True}]
        for n, (now, then) in enumerate(zip(unsafe, [*unsafe[1:], ""]), 1)
        if now.replace("out/.minseal-lock", "") and now != then
    ]
    campaign.try_all(command, days)


@pytest.mark.parametrize("command", WRITERS)
def test_killed_at_random_moments(campaign, command):
    """By the clock; every fourth time it is killed again, at a file operation, as it goes on."""
    (whole, _), rng = campaign.undisturbed(command), random.Random(command)
    killed = {"signal": signal.SIGKILL}
    days = [[{"after": rng.uniform(0, whole.seconds), **killed}] for _ in range(MOMENTS)]
    for day in days[::4]:
        day.append({"at": rng.randint(1, len(whole.operations)), "torn": True})
    campaign.try_all(command, days)


def test_an_agent_killed_at_random_moments(campaign):
    """While it learns and takes back: the weights before or after an edit, never between."""
    lines = ["/learn Mamo Satov keeps a goose.", "/learn Mamo Satov works as a cook.", "/undo"]
    lines += ["/learn Pari Tribek owns a rabbit.", "Where does Mamo Satov work?"]
    words = ["chat", "--agent", "out", "--model", KNOWLEDGE]

    def talk(n, **how):
        cwd = campaign.fresh("chat")
        (cwd / "lines").write_text("\n".join(lines[:n]) + "\n")
        return cwd / "out", campaign.run(words, cwd, stdin=str(cwd / "lines"), **how)

    def weights(folder):
        agent = open_agent(folder, KNOWLEDGE)
        agent.lock.release()
        return b"".join(t.numpy().tobytes() for t in agent.model.state_dict().values())

    whole = [talk(n) for n in range(len(lines) + 1)]
    assert all(ended.code == 0 and not ended.err for _, ended in whole)
    allowed, rng = {weights(folder) for folder, _ in whole}, random.Random("agent")
    assert len(allowed) >= 3  # an edit may be rejected
    for _ in range(MOMENTS):
        after = rng.uniform(0.3, 1) * whole[-1][1].seconds
        folder, ended = talk(len(lines), after=after, signal=signal.SIGKILL)
        assert not indecent(ended) and weights(folder) in allowed, (after, ended)


# ---- stopped ----


@pytest.mark.parametrize("command", WRITERS)
def test_stopped_at_random_moments_nothing_is_lost(campaign, command):
    """Ctrl-C and SIGTERM in turn, at moments after the imports."""
    (whole, _), rng = campaign.undisturbed(command), random.Random(command)
    signals = [signal.SIGINT, signal.SIGTERM] * (MOMENTS // 6)
    days = [[{"after": rng.uniform(0, whole.seconds), "signal": s}] for s in signals]
    campaign.try_all(command, days)


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_stopped_from_the_first_moment_on(campaign, name, code):
    """A process of its own, 20 moments from 0.1 s on: torch is still being imported at most.

    2 s: of computing, since on a busy machine it waits for its turn.
    """
    whole = stop("run knowledge", campaign.fresh("run knowledge"), 1e9)[2]
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import argparse"])  # on a busy machine that takes longer
    first = max(0.1, 3 * (time.monotonic() - start))
    moments = [first + (i / MOMENTS) ** 2 * (whole - first) for i in range(MOMENTS)]
    wrong = []
    for i, moment in enumerate(moments):
        cwd = campaign.fresh("run knowledge")
        ended, cpu, _ = stop("run knowledge", cwd, moment, getattr(signal, name), 1 + i % 2)
        told = f"{name} after {moment:.2f} s: "
        if ended.code == -getattr(signal, name) and ended.err:  # the second, after Python's end
            ended = replace(ended, code=code)
        if ended.code not in (0, code):
            wrong.append(told + f"exit code {ended.code}, {ended.err[-300:]}")
        elif complaint := indecent(ended):
            wrong.append(told + complaint)
        elif cpu > 2:
            wrong.append(told + f"it took {cpu:.1f} s of computing to end")
        elif i % 4 == 0 and (complaint := campaign.good_day("run knowledge", cwd)):
            wrong.append(told + complaint)
        shutil.rmtree(cwd)
    assert not wrong, "\n".join([f"{len(wrong)} of {len(moments)} moments:", *wrong])


def stop(command, cwd, after, number=0, times=1) -> tuple[Ended, float, float]:
    """Start the command, stop it; how it ended, the CPU time that took, and how long in all."""
    words, environment = shlex.split(ALL[command]), {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(TINY_DATA.parent)
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "minseal", *words],
        cwd=cwd,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        used = 0.0
        try:
            process.wait(min(after, 300))
        except subprocess.TimeoutExpired:
            used = cpu_time(process.pid)
            for _ in range(times):  # the impatient press it twice
                process.send_signal(number)
                time.sleep(0.05)
        before = os.times()
        _, err = process.communicate(timeout=100)
        after_it = os.times()
    finally:
        process.kill()
    cpu = after_it.children_user + after_it.children_system
    cpu -= before.children_user + before.children_system + used
    return Ended(process.returncode, "", err, [], 0), cpu, time.monotonic() - start


def cpu_time(pid) -> float:
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- no room, no permission ----


def mounted(options="size=64m"):
    """A function that mounts a small disk on a folder; skips where that is not possible."""

    def mount(folder):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mount does not work here")

    return mount


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@is_root
@pytest.mark.parametrize("command", WRITERS)
def test_the_disk_is_full(campaign, command):
    """Room for less and less of what the command writes; then there is room, and it goes on."""
    needs, page = room(campaign, command), os.sysconf("SC_PAGE_SIZE")

    def trial(day):
        what, share = day
        cwd = campaign.fresh(command, mounted())
        try:
            now = in_use(cwd)[what]
            limit = max(1, now + int(share * max(0, needs[what] - now)))  # 0 is without limit
            remount(cwd, f"{what}={limit * page if what == 'size' else limit}")
            ended = campaign.run(command, cwd)
            remount(cwd, "size=64m,nr_inodes=10000")
            complaint = indecent(ended) or campaign.good_day(command, cwd)
            return complaint and f"{what} {limit}: {complaint}"
        finally:
            subprocess.run(["umount", str(cwd)], check=True)

    campaign.try_all(command, itertools.product(("size", "nr_inodes"), SHARES), trial)


def in_use(folder) -> dict:
    """Pages and inodes of a disk."""
    disk = os.statvfs(folder)
    return {"size": disk.f_blocks - disk.f_bfree, "nr_inodes": disk.f_files - disk.f_ffree}


def room(campaign, command) -> dict:
    """What is in use when the command is done."""
    cwd = campaign.fresh(command, mounted())
    try:
        campaign.run(command, cwd)
        return in_use(cwd)
    finally:
        subprocess.run(["umount", str(cwd)], check=True)


@is_root
@others_may
@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_may_not_be_written(campaign, command):
    """A read-only disk; another user's folder, from the start and half-way: one line, no change."""
    cwd = campaign.fresh(command, mounted())
    try:
        before = contents(cwd)
        remount(cwd, "ro")
        ended = campaign.run(command, cwd)
        assert ended.code == 2 and not indecent(ended), ended
        assert contents(cwd) == before
        remount(cwd, "rw")
        assert campaign.good_day(command, cwd) == ""
    finally:
        subprocess.run(["umount", str(cwd)], check=True)

    n = len(campaign.undisturbed(command)[0].operations)
    for done in (0, n // 2, n - 1):
        cwd = campaign.fresh(command)
        if done:
            campaign.run(command, cwd, at=done)
        before = contents(cwd)
        ended = campaign.run(command, cwd, uid=NOBODY)
        assert ended.code == 2 and not indecent(ended), (done, ended)
        assert contents(cwd) == before
        assert campaign.good_day(command, cwd) == ""


@is_root
@others_may
@pytest.mark.parametrize("command", sorted(ALL.keys() - {"bench"}))  # root's peft
def test_an_input_that_may_not_be_read(campaign, command):
    """Each file and folder that the command is given, one after another."""
    words = shlex.split(ALL[command])
    words = [{KNOWLEDGE: "model", FEWSHOT: "puzzles"}.get(word, word) for word in words]
    cwd = campaign.fresh(command)
    cwd.chmod(0o777)
    shutil.copytree(KNOWLEDGE, cwd / "model")
    shutil.copytree(FEWSHOT, cwd / "puzzles")
    given = [cwd / word for word in words[1:] if (cwd / word).exists()]
    inside = [p for path in given if path.is_dir() for p in path.rglob("*")]
    wrong = []
    for path in [*given, *inside]:
        mode = path.stat().st_mode
        path.chmod(0)
        ended = campaign.run(words, cwd, uid=NOBODY)
        path.chmod(mode)
        shutil.rmtree(cwd / "out", ignore_errors=True)
        named = any(part in ended.err for part in path.relative_to(cwd).parts)
        if (path in given or ended.code) and not (ended.code == 2 and named) or indecent(ended):
            wrong.append(f"{path.relative_to(cwd)}: {ended.code} {ended.err[-300:]}")
    assert not wrong, "\n".join(wrong)


# ---- streams, names, encodings -------------------------------------------------------------------

STREAMS = {
    "nobody reads the output": {"out": "nobody reads"},
    "output onto a full disk": {"out": "/dev/full"},
    "output closed": {"out": "closed"},
    "errors closed": {"err": "closed"},
    "errors onto a full disk": {"err": "/dev/full"},
    "both closed": {"out": "closed", "err": "closed"},
    "input closed": {"stdin": "closed"},
    "all closed": {"stdin": "closed", "out": "closed", "err": "closed"},
    "a code page": {"encoding": "cp1252"},
    "ASCII": {"encoding": "ascii"},
    "no home": {"env": {"HOME": None, "USER": None, "LANG": None}},
    "no home there": {"env": {"HOME": "/nowhere"}},
}
LETTERS = "# Flüsse 🦭\n\nДунай течёт в Чёрное море. 長江は中国を流れる。\n"


@pytest.mark.parametrize("command", ALL)
def test_streams_that_are_closed_full_or_of_few_letters(campaign, command):
    """The work is done all the same; at most one line says that nobody could be told."""

    def trial(name):
        cwd, how = campaign.fresh(command), STREAMS[name]
        ended = campaign.run(command, cwd, **how)
        lines = ended.err.splitlines()
        fine = ended.code in ((0, 1, 2) if "out" in how else (0,)) and len(lines) <= 1
        if not fine or lines and not lines[0].startswith("minseal"):
            return f"{name}: {ended.code} {ended.err[-300:]}"
        complaint = campaign.good_day(command, cwd) if command in WRITERS else ""
        return complaint and f"{name}: {complaint}"

    slow = command.startswith(("run", "pretrain", "bench"))
    campaign.try_all(command, list(STREAMS)[:: 3 if slow else 1], trial)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_letters_that_the_output_has_not(campaign, encoding):
    """In what is read, in names of files, in what the model is asked: nothing ends with them."""
    cwd = campaign.fresh("learn")
    (cwd / "Flüsse 🦭.md").write_text(LETTERS)
    (cwd / "exam.json").write_text(json.dumps([{"question": "長江?", "answer": "中国"}]))
    learn = ["learn", "Flüsse 🦭.md", "--model", KNOWLEDGE, "--epochs", "1", "--exam", "exam.json"]
    made = [*learn, "--out", "Ähre 🦭"]
    for words in (
        made,
        ["ask", "長江 🦭?", "--model", KNOWLEDGE, "--adapter", "Ähre 🦭"],
        ["export", KNOWLEDGE, "🦭"],
        ["convert", "🦭", "長江"],
    ):
        ended = campaign.run(words, cwd, encoding=encoding)
        assert ended.code == 0 and not ended.err, (words, ended)
    for words in (["show", "🦭 1"], ["report", "長江 2"], ["ask", "?", "--model", "🦭 3"]):
        ended = campaign.run(words, cwd, encoding=encoding)
        assert ended.code == 2 and not indecent(ended), ended
    ended = campaign.run(["chat", "--model", KNOWLEDGE], cwd, encoding=encoding, stdin="page.md")
    assert ended.code == 0 and not ended.err, ended


def bad_names(cwd):
    """What may stand where a path is expected."""
    (cwd / "a file").write_text("mine")
    (cwd / "dangling").symlink_to("nowhere")
    (cwd / "loop").symlink_to("loop")
    (cwd / "empty").mkdir()
    os.mkfifo(cwd / "fifo")
    deep = "/".join(["d" * 200] * 25)
    return ["x" * 300, deep, "a\0b", "a file/below", "a file", "dangling", "loop", "/dev/null", ""]


@pytest.mark.parametrize("command", ALL)
def test_names_that_are_no_names(campaign, command):
    """In the place of each path, one after another: one line that says so, and no change."""
    words = shlex.split(ALL[command])
    cwd = campaign.fresh(command)
    names = bad_names(cwd)
    before, wrong = contents(cwd), []
    places = {
        i for i, word in enumerate(words) if word == "out" or (campaign.start / word).exists()
    }
    places |= {i for i, word in enumerate(words) if word in (KNOWLEDGE, FEWSHOT)}
    places |= {i for i, word in enumerate(words) if word in ("places 1", "Who?")}
    for place in sorted(places):
        for name in [*names, *["fifo"] * (words[place] in ("out", "adapter"))]:
            if words[place] == "Who?" and name != "a\0b":
                continue  # a question may be anything
            given = [*words[:place], name, *words[place + 1 :]]
            ended = campaign.run(given, cwd, limit=60)
            if indecent(ended) or ended.code == -signal.SIGKILL:
                wrong.append(f"{given[place - 1]} {name[:20]!r}: {ended.code} {ended.err[-300:]}")
            found = differences(contents(cwd), before)
            if ended.code and found:
                wrong.append(f"{given[place - 1]} {name[:20]!r}: {found}")
            before = contents(cwd) if found else before  # the name of a text is a good one to learn
            for made in set(os.listdir(cwd)) - {name.split("/")[0] for name in before}:
                if made in ("out", "nowhere") or len(made) > 100:
                    shutil.rmtree(cwd / made)
    assert not wrong, "\n".join([f"{len(wrong)}:", *wrong[:12]])


# ---- two processes in one folder -----------------------------------------------------------------


@pytest.mark.parametrize("command", WRITERS)
def test_two_processes_in_one_folder(campaign, command):
    """The second is refused in one line, the first is not disturbed; reports may be made twice."""
    operations = campaign.undisturbed(command)[0].operations
    if campaign.servers.qsize() < 2:
        pytest.skip("needs two processes")
    for at in (len(operations) // 2, len(operations) - 1):
        cwd, go = campaign.fresh(command), campaign.folder / f"go {campaign.trials}"
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(campaign.run, command, cwd, at=at, wait=str(go))
            while not go.with_name(go.name + " there").exists() and not first.done():
                time.sleep(0.01)
            second = campaign.run(command, cwd)
            go.write_text("")
        if command != "report" or second.code:
            assert second.code == 2 and not indecent(second), second
            new_model = command.startswith(("convert", "export", "pretrain"))
            assert "in use by process" in second.err or new_model, second
        assert first.result().code == 0 and not first.result().err, first.result()
        assert not differences(contents(cwd), campaign.undisturbed(command)[1])
