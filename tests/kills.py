"""Stopped and killed: Ctrl-C as a step is done, SIGKILL at every file operation."""

import subprocess
import sys
from pathlib import Path

KILLER = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import {module} as actions

def child(work):
    if (pid := os.fork()) == 0:
        try:
            work()
            os._exit(0)
        except BaseException as e:
            print(repr(e), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def killed(n, work, folder):
    seen = 0
    def hook(event, args):
        nonlocal seen
        at = os.getcwd() + "/" + str(args[0]) if args else ""
        known = event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
        if known and folder.name in at:
            seen += 1
            if seen > n:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    work()

def tree(folder):
    files = (p for p in Path(folder).rglob("*") if p.is_file() and ".minseal-" not in str(p))
    return {{str(p.relative_to(folder)): actions.content(p) for p in files}}

root, work = Path(sys.argv[3]), actions.work
assert child(lambda: work(root / "whole")) == 0
for n in range(1000):
    out = root / f"killed {{n}}"
    code = child(lambda: killed(n, lambda: work(out), out))
    assert code in (0, -9), code
    again = child(lambda: work(out))
    assert again == 0, (n, again)
    assert tree(out) == tree(root / "whole"), (n, tree(out).keys())
    if code == 0:
        break
print(n)
"""


def kill_everywhere(module, root):
    """SIGKILL at each file operation of `work(folder)` of a test module; the same again is whole.

    Returns at how many. A process of its own does the forking.
    """
    code = KILLER.format(module=module.stem)
    command = [
        sys.executable,
        "-c",
        code,
        str(module.parent),
        str(Path(__file__).parent),
        str(root),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


def stop_at(n):
    """For Run(on_step=): Ctrl-C as the n-th step is done, read back or not."""
    left = n

    def on_step(step, new):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    return on_step
