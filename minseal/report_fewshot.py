"""What only the report of grid tasks has: directives by kind of rule, whose doing the gain is, and pictures of tasks."""

import re
from collections import Counter

import numpy as np

from . import evidence
from .errors import UserError
from .tasks.arc import read_tasks
from .tasks.fewshot import SWITCHES, FewShot

# The colours in which ARC's grids are usually shown.
PALETTE = (
    "#000000",
    "#0074d9",
    "#ff4136",
    "#2ecc40",
    "#ffdc00",
    "#aaaaaa",
    "#f012be",
    "#ff851b",
    "#7fdbff",
    "#870c25",
)


def add(run, results, rewards):
    """Add to the results what only grid tasks have."""
    tasks = tasks_of(run)
    for row in results["arms"]:
        trials = run.done[row["arm"]]["trials"]
        row["by_kind"] = {
            kind: float(np.mean([t["reward"] for t in trials if tasks[t["context"]].kind == kind]))
            for kind in kinds(tasks)
        }
        row["unreadable"] = sum("description" not in t for t in trials)
        row["directives"] = (
            directives(trials)
            if row["arm"] == "own self-edits"
            or row["arm"].startswith(("round", "control", "best", "oracle", "policy, adapter"))
            else None
        )
        if run.config["vote"]:
            row["pass1"], row["pass2"] = (
                float(np.mean([solved(run, tasks[t["context"]], t, n) for t in trials]))
                for n in (1, 2)
            )
    results["attribution"] = attribution(rewards)
    if "solvable" in run.done:
        solved_ones = [t for t in run.done["solvable"]["trials"] if t["reward"] == 1]
        results["solvable"] = {
            "tried": len(run.done["solvable"]["trials"]),
            "solved": len(solved_ones),
            "kept": len(tasks),
        }
    written = [
        step
        for step in run.done
        if " contexts " in step
        or step in ("own self-edits", "policy, adapter on")
        or re.fullmatch(r"(round|control) \d+", step)
    ]
    edits = [t for step in written for t in run.done[step]["trials"]]
    results["unreadable"] = {
        "self_edits": len(edits),
        "unreadable": sum("description" not in t for t in edits),
    }


def tasks_of(run):
    """The held-out tasks of a run, {id: GridTask}."""
    path = run.folder / "tasks.json"
    try:
        return {task.id: task for task in read_tasks(path)}
    except UserError as e:
        raise UserError(f"{run.folder} is damaged, or no run on grid tasks: {e}") from None


def kinds(tasks):
    return list(dict.fromkeys(task.kind for task in tasks.values() if task.kind))


def predictions(run, task, trial):
    """The predicted grids of a trial, test by test, most votes first. They are in its answers; no model is needed."""
    return (
        FewShot(None, vote=run.config["vote"]).predictions(task, trial["answers"])
        if trial.get("answers")
        else [[] for _ in task.tests]
    )


def solved(run, task, trial, attempts):
    return all(
        test.output in grids[:attempts]
        for test, grids in zip(task.tests, predictions(run, task, trial))
    )


def directives(trials):
    """{kind of rule: {directive: share of the readable self-edits that choose it}}"""
    out = {}
    read = [t["description"] for t in trials if t.get("description")]
    for kind in dict.fromkeys(d["kind"] for d in read):
        those = [d for d in read if d["kind"] == kind]
        shares = {
            name: sum(name in d["augmentations"] for d in those) / len(those) for name in SWITCHES
        }
        shares["outputs"] = sum(d["loss"] == "outputs" for d in those) / len(those)
        for name in ("lr", "epochs"):
            shares |= {
                f"{name} {value:g}": n / len(those)
                for value, n in sorted(Counter(d[name] for d in those).items())
            }
        out[kind or "all"] = shares
    return out


def attribution(rewards):
    """Is the gain in what the policy writes, or in the weights that train on it? Both ways, each paired over the tasks.

    edits: the last round's self-edits on the first weights; weights: the first policy's self-edits on the last weights; each minus the first
    policy's self-edits on the first weights. shares: of the whole gain.
    """
    rounds = [arm for arm in rewards if arm.startswith("round")]
    arms = {
        "all": rounds[-1:] and rounds[-1],
        "edits": "last self-edits, first weights",
        "weights": "first self-edits, last weights",
    }
    if not rounds or not all(arm in rewards for arm in arms.values()):
        return None
    out = {
        name: dict(zip(("gain", "ci95"), evidence.paired(rewards[arm], rewards["own self-edits"])))
        for name, arm in arms.items()
    }
    whole = out["all"]["gain"]
    return out | {
        "shares": {
            name: out[name]["gain"] / whole if whole > 0 else None for name in ("edits", "weights")
        }
    }


# ---- text --------------------------------------------------------------------------------------------------------------


def columns(results):
    """Further columns of the table: header, and what stands in it for an arm."""
    names = list(results["arms"][0]["by_kind"])
    voted = "pass1" in results["arms"][0]
    return (
        [*names, *(["pass@1", "pass@2"] if voted else []), "unreadable"],
        lambda a: [
            *(f"{a['by_kind'][k]:.2f}" for k in names),
            *([f"{a['pass1']:.2f}", f"{a['pass2']:.2f}"] if voted else []),
            str(a["unreadable"]) if a["directives"] else "",
        ],
    )


def lines(results):
    """Sentences below the table."""
    out = []
    if s := results.get("solvable"):
        out.append(
            f"held out: {s['kept']} tasks; of {s['tried']} tried the oracle's self-edit (with other first weights) solved {s['solved']}, {s['tried'] - s['solved']} were dropped."
        )
    if (a := results["attribution"]) is not None:

        def told(name):
            share = a["shares"][name]
            return (
                f"{a[name]['gain']:+.2f} (95 % {a[name]['ci95'][0]:+.2f} to {a[name]['ci95'][1]:+.2f}"
                + (f", {share:.0%} of the gain)" if share is not None else ")")
            )

        out.append(
            f"whose doing: the last self-edits on the first weights {told('edits')}; the first self-edits on the last weights {told('weights')}."
        )
    u = results["unreadable"]
    if u["self_edits"]:
        out.append(
            f"of {u['self_edits']} self-edits {u['unreadable']} were unreadable ({u['unreadable'] / max(1, u['self_edits']):.1%}): each scored 0."
        )
    return out


def chosen(results, aligned):
    """The directives that each arm's self-edits choose, a table for each kind of rule. aligned: as in report.py."""
    arms = [a for a in results["arms"] if a["directives"]]
    out = [
        "What the self-edits choose: share with each augmentation, with loss on outputs only, and the two most frequent numbers."
    ]
    for kind in dict.fromkeys(kind for a in arms for kind in a["directives"]):
        header = [
            "rule: " + kind if kind != "all" else "all tasks",
            *SWITCHES,
            "outputs",
            "learning rate",
            "epochs",
        ]
        rows = [
            [
                a["arm"],
                *(f"{d[name]:.0%}" for name in (*SWITCHES, "outputs")),
                *(favourites(d, name) for name in ("lr", "epochs")),
            ]
            for a in arms
            if (d := a["directives"].get(kind))
        ]
        out.append(aligned(header, rows, left=(0, len(header) - 2, len(header) - 1)))
    return "\n\n".join(out) if len(out) > 1 else ""


def favourites(shares, name):
    best = sorted(
        ((share, key.split()[1]) for key, share in shares.items() if key.startswith(f"{name} ")),
        reverse=True,
    )[:2]
    return ", ".join(f"{value} {share:.0%}" for share, value in best)


# ---- pictures ----------------------------------------------------------------------------------------------------------


def pictures(run, results, save):
    """directives.png and tasks.png; save(name, draw, size) as in report.py."""
    arms = [
        a
        for a in results["arms"]
        if a["directives"] and (a["arm"] == "own self-edits" or a["arm"].startswith("round"))
    ]
    names = list(dict.fromkeys(kind for a in arms for kind in a["directives"]))
    if len(arms) > 1 and names:
        save(
            "directives.png",
            lambda figure: draw_directives(figure, arms, names),
            (3.2 * len(names) + 2, 4.6),
        )
    save("tasks.png", lambda figure: draw_tasks(figure, run, results), (9, 6.4))


def draw_directives(figure, arms, names):
    """For each kind of rule, round by round: the share of self-edits with each augmentation, learning rate and number of epochs."""

    def values(name):
        return sorted(
            {
                key
                for a in arms
                for kind in names
                for key in a["directives"].get(kind, {})
                if key.startswith(name + " ")
            },
            key=lambda k: float(k.split()[1]),
        )

    rows = [
        *SWITCHES,
        "outputs",
        *(
            key
            for name in ("lr", "epochs")
            for key in values(name)
            if max(a["directives"].get(kind, {}).get(key, 0) for a in arms for kind in names)
            >= 0.05
        ),
    ]
    for i, (axes, kind) in enumerate(
        zip(np.atleast_1d(figure.subplots(1, len(names), sharey=True)), names)
    ):
        shares = np.array(
            [[a["directives"].get(kind, {}).get(row, 0) for a in arms] for row in rows]
        )
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for y, x in np.ndindex(shares.shape):
            axes.text(
                x,
                y,
                f"{100 * shares[y, x]:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if shares[y, x] > 0.6 else "black",
            )
        axes.set_xticks(
            range(len(arms)),
            [a["arm"].replace("own self-edits", "no RL") for a in arms],
            fontsize=8,
        )
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.set_title(
            f"rule: {kind}, % of self-edits" if kind != "all" else "% of self-edits", fontsize=9
        )
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)


def draw_tasks(figure, run, results, most=6):
    """Some held-out tasks: a demonstration, the test, its prediction in context and after training on the last self-edit, the truth."""
    last = next(
        (a["arm"] for a in reversed(results["arms"]) if a["arm"].startswith(("round", "own"))), None
    )
    tasks, arms = tasks_of(run), ["in context", last] if last else ["before", "adapter on"]
    by_arm = {
        arm: {t["context"]: t for t in run.done[arm]["trials"]} for arm in arms if arm in run.done
    }
    some = list(tasks.values())[:most]
    headings = ["demonstration", "", "test", *by_arm, "truth"]
    for row, (task, line) in enumerate(
        zip(some, np.atleast_2d(figure.subplots(len(some), len(headings))))
    ):
        guesses = [
            (predictions(run, task, of.get(task.id, {}))[0] or [None])[0] for of in by_arm.values()
        ]
        grids = [
            task.demonstrations[0].input,
            task.demonstrations[0].output,
            task.tests[0].input,
            *guesses,
            task.tests[0].output,
        ]
        for axes, grid, heading in zip(line, grids, headings):
            axes.set_axis_off()
            if row == 0:
                axes.set_title(heading, fontsize=8)
            if grid is None:
                axes.text(0.5, 0.5, "no grid", ha="center", va="center", fontsize=8)
                continue
            axes.imshow(
                np.array(
                    [
                        [[int(PALETTE[c][i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in cells]
                        for cells in grid
                    ]
                )
            )
            for y in range(1, len(grid)):
                axes.axhline(y - 0.5, color="white", linewidth=0.5)
            for x in range(1, len(grid[0])):
                axes.axvline(x - 0.5, color="white", linewidth=0.5)
            if heading in by_arm:
                right = (
                    task.tests[0].output
                    in predictions(run, task, by_arm[heading][task.id])[0][: run.config["attempts"]]
                )
                axes.text(
                    0.5,
                    -0.04,
                    "right" if right else "wrong",
                    transform=axes.transAxes,
                    ha="center",
                    va="top",
                    fontsize=8,
                    color="black" if right else "tab:red",
                )
        line[0].text(
            -0.1, 0.5, task.id, transform=line[0].transAxes, ha="right", va="center", fontsize=8
        )
