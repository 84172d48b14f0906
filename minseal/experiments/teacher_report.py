"""The report of `minseal run teacher`: who writes x who learns, and who is better than whom."""

from collections.abc import Callable
from typing import Any

from ..lab.evidence import told
from ..lab.plots import plain_axes
from ..lab.run import Run
from ..lab.table import aligned, gain

Results = dict[str, Any]
PAIRS = ("big", "small"), ("big", "big"), ("small", "small"), ("small", "big")  # writer, learner
TAUGHT = PAIRS[:3]
OTHER = {"big": "small", "small": "big"}
LOOPS = {"big for small": "teacher's loop", "student's loop": "", "both loops": ""}
# Sentences: the first arm against the second; {r} is the last round.
QUESTIONS = {
    "small learns, taught by big against by itself": ("big for small {r}", "small for small {r}"),
    "small learns, big taught on small against on big": (
        "big for small {r}",
        "big for big {r}, small learns",
    ),
    "big learns, big taught on small against on big": (
        "big for small {r}, big learns",
        "big for big {r}",
    ),
    "both loops against the teacher's": ("both loops {r}", "big for small {r}"),
    "both loops against the student's": ("both loops {r}", "student's loop {r}"),
}


def cells(rounds: int) -> list[tuple[str, dict[str, str]]]:
    """The matrix: each writer, untaught or taught, with the arm in which each model learns."""
    out = [
        (f"{writer}, untaught", {who: f"{writer} for {who} 0" for who in OTHER}) for writer in OTHER
    ]
    for writer, learner in TAUGHT:
        arm = f"{writer} for {learner} {rounds}"
        how = "itself" if writer == learner else learner
        arms = {learner: arm, OTHER[learner]: f"{arm}, {OTHER[learner]} learns"}
        out.append((f"{writer}, taught on {how}", arms))
    return out


def conclude(run: Run, results: Results) -> Results:
    """questions: {what: [gain, interval]}; knows: {arm: share of general knowledge}."""
    steps, rounds = {s.name: s for s in run.arms()}, results["config"]["outer"]["rounds"]
    asked = {}
    for what, pair in QUESTIONS.items():
        one, other = (steps.get(name.format(r=rounds)) for name in pair)
        if one and other:
            asked[what] = gain(one, other)
    knows = {n: s.value for n, s in run.steps.items() if n.endswith(", knows")}
    return {"questions": asked, "knows": {n.removesuffix(", knows"): v for n, v in knows.items()}}


def blocks(run: Run, results: Results) -> list[str]:
    """The matrix with intervals; the questions; what each student still knows."""
    arms = {a["arm"]: a for a in results["arms"]}
    rows = [["who writes", "small learns", "95 %", "big learns", "95 %"]]
    for writer, of in cells(results["config"]["outer"]["rounds"]):
        row = [writer]
        for who in ("small", "big"):
            a = arms.get(of[who])
            low, high = a["ci95"] if a else (0, 0)
            row += [f"{a['mean']:.2f}", f"{low:.2f} {high:.2f}"] if a else ["", ""]
        rows.append(row)
    n = results["arms"][0]["n"]
    asked = [f"{what}: {told(*pair, n)}." for what, pair in results["questions"].items()]
    knew = [f"{name} {value:.2f}" for name, value in results["knows"].items()]
    known = [f"General knowledge of the student: {'; '.join(knew)}."] if knew else []
    return [aligned(rows), *(["\n".join(asked)] if asked else []), *known]


def plot_loops(run: Run, results: Results, save: Callable) -> None:
    """loops.png: the student's exam by round, as teacher, student, or both are taught."""
    arms = {a["arm"]: a for a in results["arms"]}
    rounds = range(results["config"]["outer"]["rounds"] + 1)

    def draw(figure: Any) -> None:
        axes = plain_axes(figure)
        for loop in LOOPS:
            names = [f"{loop} {r}" if r else "big for small 0" for r in rounds]
            points = [(r, arms[name]) for r, name in zip(rounds, names) if name in arms]
            x, y = [r for r, _ in points], [a["mean"] for _, a in points]
            axes.plot(x, y, marker="o", label=LOOPS[loop] or loop)
            axes.fill_between(x, *zip(*(a["ci95"] for _, a in points)), alpha=0.15, linewidth=0)
        axes.set(ylim=(0, 1), xticks=list(rounds), xlabel="round", ylabel="exam, held out")
        axes.legend(frameon=False)

    if "both loops 1" in arms:
        save("loops.png", draw, (6, 3.6))


REPORT = dict(conclude=conclude, blocks=blocks, pictures=(plot_loops,))
