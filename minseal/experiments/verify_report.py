"""What `run verify` shows beyond its table: what was invented and kept, and more than one try."""

import textwrap
from collections.abc import Callable, Sequence
from itertools import zip_longest
from math import comb
from typing import Any

import numpy as np

from ..files import UserError
from ..lab.evidence import interval, paired, told
from ..lab.lab import Lab
from ..lab.plots import plain_axes
from ..lab.run import Run, Step
from ..lab.table import aligned
from ..tasks.grammar import implication_of, origin_of, read_person
from ..tasks.people import PersonPassage
from .knowledge import mix, mix_columns
from .passages import prompts_tried

Results = dict[str, Any]
Texts = list[tuple[PersonPassage, list[str]]]  # passages, each with texts or lines on it
MOST_TRIES = 1000  # more would take long to count
WIDTH = 58  # of one of two columns


def count(
    lines: Sequence[str],
    names: set[str],
    texts: Sequence[Sequence[str]],
    kept: Texts,
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


def write_again(lab: Lab, some: Texts) -> list[list[str]]:
    """[the passage, the first text on it, what the policy writes on it now], of each."""
    now = lab.write([passage for passage, _ in some], "after")
    return [[passage.text, then[0], text] for (passage, then), text in zip(some, now)]


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
    rounds = [
        {"arm": s.labels["loop"], "at": s.labels["at"], **s.value}
        for s in run.steps.values()
        if s.name.endswith(" counted")
    ]
    many = {n.removesuffix(", many"): s.value for n, s in run.steps.items() if n.endswith(", many")}
    out = {"invented": rounds, "pass_at_k": {}, "pass_gain": {}, "worth": {}, "tokens": {}}
    out["tries"] = many["start"]["tries"] if "start" in many else 0
    start = many.get("start")
    if any(found["tries"] > MOST_TRIES for found in many.values()):
        raise UserError(f"expected at most {MOST_TRIES} tries")
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
    """What one self-edit of a taught policy is worth in those of the first, and what it cost."""
    out, n, tries = [], results["arms"][0]["n"], results["tries"]
    for name, worth in results["worth"].items():
        if name == "start":
            continue
        (gain, ci95), (arm, _, r) = results["pass_gain"][name][1], name.rpartition(" ")
        verdict = told(gain, ci95, n)
        out.append(f"{name} against start, the mean of {tries} self-edits of each: {verdict}.")
        mine = [i for i in results["invented"] if i["arm"] == arm and i["at"] <= int(r)]
        spent = sum(i["begun"] + i["texts"] for i in mine)
        if worth == 1:
            continue
        equal = f"as much as {worth}" if worth else f"more than {tries}"
        tale = f"{name}: one self-edit states {equal} of the start, of which the checker must pick"
        cost = f"the loop sampled {spent} texts, {spent / n:.0f} for each held-out context"
        if worth:
            cost += f"; for {spent // (worth - 1) + 1} contexts or more the start would need more"
        out.append(f"{tale}; {cost}.")
    return [*out, *prompts_tried(run, results)]


def blocks(run: Run, results: Results) -> list[str]:
    """What k self-edits state between them; what was invented; three inventions with notes."""
    out = []
    if results["pass_at_k"]:
        ks = list(results["pass_at_k"]["start"])
        rows = [["k self-edits, the checker picks", *map(str, ks), "tokens of one"]]
        for name, shares in results["pass_at_k"].items():
            cells = [f"{mean:.2f} ({_range(ci95)})" for mean, ci95 in shares.values()]
            rows.append([name, *cells, f"{results['tokens'][name]:.0f}"])
            if name.startswith("verified"):
                gains = results["pass_gain"][name].values()
                over = [f"{gain:+.2f} ({_range(ci95, '+.2f')})" for gain, ci95 in gains]
                rows.append(["  over start", *over, ""])
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
    """Passages that the verified arm invented in round 1, a text on each then, and by its end."""
    step = run.steps.get("before and after")
    if not step or not step.value:
        return []
    out = ["Invented in round 1, with notes of the first policy and of the last verified one:"]
    for passage, before, after in step.value[:n]:
        out += ["", *wrap(passage, 2 * WIDTH), ""]
        pairs = zip_longest(*(wrap(text, WIDTH - 2) for text in (before, after)), fillvalue="")
        out += [f"  {left:<{WIDTH}}{right}".rstrip() for left, right in pairs]
    return ["\n".join(out)]


def wrap(text: str, width: int) -> list[str]:
    """Its lines, none longer than this."""
    return [part for line in text.split("\n") for part in textwrap.wrap(line, width)]


def plot_tries(run: Run, results: Results, save: Callable) -> None:
    """tries.png: what k self-edits state between them, of each policy."""
    if not results["pass_at_k"]:
        return

    def draw(figure: Any) -> None:
        axes = plain_axes(figure)
        for name, shares in results["pass_at_k"].items():
            means, intervals = zip(*shares.values())
            axes.plot(list(shares), means, marker="o", label=name)
            axes.fill_between(list(shares), *zip(*intervals), alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(shares), [str(k) for k in shares])
        axes.set(ylim=(0, 1.02), xlabel="self-edits of a context, the checker picks")
        axes.set_ylabel(f"{results['score']}, held out")
        axes.legend(frameon=False)

    save("tries.png", draw, (6, 3.6))


def _range(ci95: tuple[float, float], form: str = ".2f") -> str:
    return f"{ci95[0]:{form}} {ci95[1]:{form}}"


REPORT = dict(
    score="share of implications stated",
    describe=describe,
    columns=columns,
    conclude=conclude,
    notes=notes,
    blocks=blocks,
    pictures=(plot_tries,),
)
