"""What `run verify` shows beyond its table: what was invented and kept, and more than one try."""

from collections.abc import Callable, Sequence
from math import comb
from typing import Any

import numpy as np

from ..lab.evidence import interval, paired, told
from ..lab.run import Run, Step
from ..lab.table import aligned
from ..tasks.grammar import implication_of, origin_of, read_person
from ..tasks.people import PersonPassage
from .knowledge import mix, mix_columns, plot_mix

Results = dict[str, Any]


def count(
    lines: Sequence[str],
    names: set[str],
    texts: Sequence[Sequence[str]],
    kept: Sequence[tuple[PersonPassage, list[str]]],
) -> dict[str, int]:
    """What became of a round's inventions (lines) and of the notes (texts) on them."""
    people = [p for line in lines if (p := read_person(line))]
    origins = [origin_of(p.name) for p in people]
    learnt = [(line, passage.person) for passage, some in kept for line in some]
    return {
        "begun": len(lines),
        "read": len(people),
        **{origin: origins.count(origin) for origin in ("pretraining", "stranger", "new")},
        "held out": sum(p.name in names for p in people),
        "people": len({p.name for p in people}),
        "texts": sum(map(len, texts)),
        "lessons": len(kept),
        "lines": len(learnt),
        "right": sum(implication_of(*one) != "" for one in learnt),
    }


def pass_at(k: int, tally: Results) -> list[float]:
    """For each passage the share of implications that k self-edits state rightly between them.

    Expected over all choices of k from those that were written (arXiv 2107.03374, equation 1).
    """
    n = tally["tries"]
    return [
        float(np.mean([1 - comb(n - c, k) / comb(n, k) for c in row])) for row in tally["right"]
    ]


def describe(run: Run, step: Step) -> Results:
    """Kinds of note; the exam of a student who learnt the same notes, and its gain."""
    row, done, start = (
        mix(run, step),
        run.steps.get(f"{step.name}, exam"),
        run.steps.get("start, exam"),
    )
    row |= {"exam": None, "exam_ci95": None, "exam_gain": None, "exam_gain_ci95": None}
    if done and start:
        rewards, before = ([t.reward for t in s.trials] for s in (done, start))
        row["exam"], row["exam_ci95"] = interval(rewards)
        row["exam_gain"], row["exam_gain_ci95"] = paired(rewards, before)
    return row


def columns(results: Results) -> tuple[list[str], Callable]:
    """The exam, and a column for each kind of note."""
    kinds, shares = mix_columns(results)

    def cells(row: Results) -> list[str]:
        exam = ["", ""] if row["exam"] is None else [f"{row['exam']:.2f}", _range(row["exam_ci95"])]
        return [*exam, *shares(row)]

    return ["exam", "95 %", *kinds], cells


def conclude(run: Run, results: Results) -> Results:
    """invented: count() of each round. pass_at_k: {arm: {k: (mean, 95 %)}}, and gains over start.

    worth: {arm: the smallest number of the first policy's self-edits that state as much as one}.
    """
    rounds = [s.labels | s.value for s in run.steps.values() if s.name.endswith(" counted")]
    many = {n.removesuffix(", many"): s.value for n, s in run.steps.items() if n.endswith(", many")}
    out = {"invented": rounds, "pass_at_k": {}, "pass_gain": {}, "worth": {}, "tokens": {}}
    start = many.get("start")
    for name, found in many.items() if start else ():
        ks = [2**i for i in range(found["tries"].bit_length())]
        each = {k: (pass_at(k, found), pass_at(k, start)) for k in ks}
        out["pass_at_k"][name] = {k: interval(mine) for k, (mine, _) in each.items()}
        out["pass_gain"][name] = {k: paired(*both) for k, both in each.items()}
        out["tokens"][name] = found["tokens"]
        first = (np.mean(pass_at(k, start)) for k in range(1, start["tries"] + 1))
        enough = (k for k, share in enumerate(first, 1) if share >= np.mean(each[1][0]))
        out["worth"][name] = next(enough, None)
    return out


def notes(run: Run, results: Results) -> list[str]:
    """What one self-edit of each taught policy is worth in tries of the first, and what it cost."""
    out, n = [], results["arms"][0]["n"]
    for name, worth in results["worth"].items():
        if name == "start":
            continue
        arm = name.rpartition(" ")[0]
        spent = sum(r["begun"] + r["texts"] for r in results["invented"] if r["arm"] == arm)
        more = f"{worth}" if worth else "more than all"
        out.append(
            f"{name}: one self-edit of it states as much as {more} of the first policy between "
            f"them, picked by the checker; the loop sampled {spent} texts, {spent / n:.0f} for each of "
            f"{n} held-out contexts."
        )
        gain, ci95 = results["pass_gain"][name][1]
        out.append(f"{name} against the first policy, one self-edit each: {told(gain, ci95, n)}.")
    return out


def blocks(run: Run, results: Results) -> list[str]:
    """What k self-edits state between them; what was invented; three inventions with notes."""
    out = []
    if results["pass_at_k"]:
        ks = list(results["pass_at_k"]["start"])
        rows = [["k self-edits, the checker picks", *map(str, ks), "tokens of one"]]
        for name, shares in results["pass_at_k"].items():
            cells = [f"{mean:.2f} ({_range(ci95)})" for mean, ci95 in shares.values()]
            rows.append([name, *cells, f"{results['tokens'][name]:.0f}"])
        out.append(aligned(rows))
    if results["invented"]:
        keys = [key for key in results["invented"][0] if key not in ("arm", "at")]
        rows = [["invented", *keys]]
        rows += [
            [f"{r['arm']} {r['at']}", *(str(r[key]) for key in keys)] for r in results["invented"]
        ]
        out.append(aligned(rows))
    return out + examples(run)


def examples(run: Run, n: int = 3) -> list[str]:
    """Passages that the verified arm invented in round 1 and in its last, with a text on each."""
    rounds = [s for s in run.steps.values() if s.labels.get("arm") == "verified"]
    asked = [s for s in rounds if s.name.endswith(" notes")]
    return []


def _range(ci95: tuple[float, float]) -> str:
    return f"{ci95[0]:.2f} {ci95[1]:.2f}"


REPORT = dict(
    score="share of what follows that one self-edit states",
    describe=describe,
    columns=columns,
    conclude=conclude,
    notes=notes,
    blocks=blocks,
    pictures=(plot_mix,),
)
