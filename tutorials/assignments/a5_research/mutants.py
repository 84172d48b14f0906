"""Answers that must not pass: {name: (problem, text of answer.py)}."""

from pathlib import Path

_REFERENCE = (Path(__file__).parent / "reference.py").read_text(encoding="utf-8")
_WORST = "        for trial in trials:\n            trial.reward = -trial.reward\n"
_HEAD = "def practise(policy, task, passages, try_out, seed):\n"


def _changed(old: str, new: str) -> str:
    assert _REFERENCE.count(old) == 1
    return _REFERENCE.replace(old, new)


MUTANTS = {
    "teaches nothing": ("5.1", _HEAD + "    try_out([])\n"),
    "learns from the worst": (
        "5.1",
        _changed("        tried = ", f"{_WORST}        tried = "),
    ),
    "more trials than the budget": (
        "5.1",
        _HEAD + "    while True:\n        try_out([(passages[0], 'A note.')] * 50)\n",
    ),
    "weights that are NaN": (
        "5.1",
        _HEAD + "    policy.wte.weight.data[0, 0] = float('nan')\n",
    ),
    "another model": ("5.1", _HEAD + "    policy.blocks = policy.blocks[:2]\n"),
    "an adapter left on": (
        "5.1",
        "import minseal\n\n\n" + _HEAD + "    minseal.attach(policy, 1)\n",
    ),
}
