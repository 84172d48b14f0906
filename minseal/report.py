"""Tables and plots of a run folder. Everything is worked out again from its events."""

import json
import textwrap
from collections import Counter

import numpy as np

from . import evidence, report_fewshot
from .errors import UserError
from .ladders import LADDERS, kind_of
from .tasks.world import KINDS


def summarise(run):
    """A run folder -> the results as a dict, its arms in the order of the ladder (what results.json holds)."""
    kind = kind_of(run.config)
    ladder = LADDERS[kind]
    rewards = {arm: [t["reward"] for t in run.done[arm]["trials"]] for arm in ladder.order(run)}
    arms = []
    for arm, values in rewards.items():
        mean, ci = evidence.interval(values)
        trials = run.done[arm]["trials"]
        row = {
            "arm": arm,
            "mean": mean,
            "ci95": ci,
            "gain": None,
            "gain_ci95": None,
            "over": None,
            "seconds": run.done[arm]["seconds"],
            "n": len(values),
            "invalid": sum("invalid" in t for t in trials),
        }
        if kind == "knowledge":
            row["mix"] = mix(trials)
        if (over := ladder.compared_with(arm)) in rewards:
            row["gain"], row["gain_ci95"] = evidence.paired(values, rewards[over])
            row["over"] = over
        arms.append(row)
    results = {
        "kind": kind,
        "arms": arms,
        "training": training(run),
        "seconds": run.seconds(),
        "config": run.config,
        "reliability": None,
        "reliability_mean": None,
        "best_of_k_heldout": None,
        "best_of_k": None,
    }
    if rounds := [arm for arm in rewards if arm.startswith("round")]:
        last = rounds[-1]
        results["comparisons"] = [
            dict(
                zip(("gain", "gain_ci95"), evidence.paired(rewards[last], rewards[rival])),
                arm=last,
                over=rival,
            )
            for rival in ladder.rivals(
                last, {arm: np.mean(values) for arm, values in rewards.items()}
            )
            if rival in rewards
        ]
    if (scores := repeated_scores(run)) is not None:
        one, of_mean = (None if np.isnan(x) else x for x in evidence.reliability(scores))
        best = evidence.best_of_k(scores)
        results.update(
            reliability=one,
            reliability_mean=of_mean,
            best_of_k_heldout=best["held out"],
            best_of_k={
                **best,
                "k": scores.shape[1],
                "contexts": scores.shape[0],
                "runs": scores.shape[2],
            },
        )
    if kind != "knowledge":
        report_fewshot.add(run, results, rewards)
    return results


def mix(trials):
    """Share of each kind of note in all self-edits together; None where no grammar reads them."""
    counts = sum((Counter(t.get("description")) for t in trials), Counter())
    return {kind: counts[kind] / counts.total() for kind in KINDS} if counts.total() else None


def training(run):
    """What the E-steps saw in each round of SEAL and of the control: mean reward, invalid self-edits, contexts that teach nothing."""
    out = []
    for name in ("round", "control"):
        for r in range(1, run.config.get("outer", {}).get("rounds", 0) + 1):
            trials = [
                t
                for step, d in run.done.items()
                if step.startswith(f"{name} {r} contexts")
                for t in d["trials"]
            ]
            if trials:
                out.append(
                    {
                        "loop": name,
                        "round": r,
                        "reward": float(np.mean([t["reward"] for t in trials])),
                        "self_edits": len(trials),
                        "invalid": sum("invalid" in t for t in trials),
                        "contexts": len({t["context"] for t in trials}),
                        "alike": sum(len(rewards) == 1 for rewards in by_context(trials).values()),
                    }
                )
    return out


def by_context(trials):
    """{context: the different rewards of its self-edits}"""
    out = {}
    for t in trials:
        out.setdefault(t["context"], set()).add(t["reward"])
    return out


def repeated_scores(run):
    """(contexts, self-edits, runs) rewards of the same self-edits under several seeds, or None if they were not measured."""
    again = [d["trials"] for step, d in run.done.items() if step.startswith("reliability")]
    k = run.config.get("outer", {}).get("samples", 0)
    if len(again) < 2 or not again[0] or k < 2:
        return None
    first = [
        t
        for step, d in run.done.items()
        if step.startswith("round 1 contexts")
        for t in d["trials"]
    ][: len(again[0])]
    return np.array([[t["reward"] for t in trials] for trials in (first, *again)]).T.reshape(
        -1, k, 1 + len(again)
    )


# ---- text --------------------------------------------------------------------------------------------------------------


def text_report(run, results):
    """The table and what stands below it, as printed at the end of a run."""
    c = run.config
    toy = f"toy world {c.get('world_seed', c.get('rules_seed'))}"
    measured = f"{c['data'] or toy}, seed {c['seed']}, model {c['model']}" + (
        f", graded by {c['grade']}" if "grade" in c else ""
    )
    parts = [table(results), measured + "\n" + conclusions(results)]
    if results["kind"] == "fewshot":
        parts.append(report_fewshot.chosen(results, aligned))
    if "three self-edits before" in run.done and "three self-edits after" in run.done:
        parts.append(side_by_side(run))
    return "\n\n".join(parts) + "\n"


def table(results):
    if results["kind"] == "knowledge":
        further = KINDS if any(a["mix"] for a in results["arms"]) else ()
        cells = lambda a: [f"{a['mix'][k]:.0%}" if a["mix"] else "" for k in further]
    else:
        further, cells = report_fewshot.columns(results)
    header = ["arm", "score", "95 %", "gain", "95 %", "over", "s", *further]
    rows = [
        [
            a["arm"],
            f"{a['mean']:.2f}",
            _ci(a["ci95"]),
            *(
                (f"{a['gain']:+.2f}", _ci(a["gain_ci95"], "+.2f"), a["over"])
                if a["over"]
                else ("",) * 3
            ),
            f"{a['seconds']:.0f}",
            *cells(a),
        ]
        for a in results["arms"]
    ]
    return aligned(header, rows, left=(0, 5))


def aligned(header, rows, left):
    """A table as text; the columns `left` begin at the left, the others end at the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _ci(ci, form=".2f"):
    return f"{ci[0]:{form}} {ci[1]:{form}}"


def conclusions(results):
    n, lines = results["arms"][0]["n"], []
    lines.append(
        f"score: {LADDERS[results['kind']].score}, mean over {n} held-out contexts; gain: paired over the same contexts, bootstrap intervals."
    )
    for c in results.get("comparisons", []):
        low, high = c["gain_ci95"]
        verdict = (
            "better"
            if low > 0
            else "worse"
            if high < 0
            else "no difference that this run could tell"
        )
        lines.append(
            f"{c['arm']} against {c['over']}: {c['gain']:+.2f} (95 % {low:+.2f} to {high:+.2f}): {verdict}."
        )
    if (b := results["best_of_k"]) is not None:
        one, of_mean = (
            "unknown" if x is None else f"{x:.2f}"
            for x in (results["reliability"], results["reliability_mean"])
        )
        lines.append(
            f"reliability of the reward: {one} for one inner loop, {of_mean} for the mean of {b['runs']} "
            f"({b['contexts']} contexts x {b['k']} self-edits x {b['runs']} seeds)."
        )
        lines.append(
            f"best of {b['k']} self-edits: {b['in sample']:.2f} in the run that chose it, {b['held out']:.2f} in other runs, {b['mean']:.2f} for all of them."
        )
    if results["kind"] != "knowledge":
        lines += report_fewshot.lines(results)
    if not results["training"]:
        return "\n".join(lines)
    if results["kind"] == "knowledge":
        invalid = [
            f"{t['loop']} {t['round']}: {t['invalid']} of {t['self_edits']}"
            for t in results["training"]
            if t["invalid"]
        ]
        lines.append("self-edits that could not be read: " + ("; ".join(invalid) or "none") + ".")
    if results["config"]["outer"]["select"] in ("best", "all-best"):
        alike = [
            f"round {t['round']}: {t['alike']} of {t['contexts']}"
            for t in results["training"]
            if t["loop"] == "round" and t["alike"]
        ]
        lines.append(
            "contexts skipped because all their self-edits scored alike: "
            + ("; ".join(alike) or "none")
            + "."
        )
    return "\n".join(lines)


def side_by_side(run, width=58):
    """Three self-edits of one held-out passage before the outer loop, and three after it, with their rewards."""
    before, after = (run.done[f"three self-edits {when}"]["trials"] for when in ("before", "after"))
    out = [
        f"Self-edits of one held-out passage ({before[0]['context']}), before and after the outer loop:"
    ]
    for b, a in zip(before, after):
        left, right = (
            [f"reward {t['reward']:.2f}"]
            + [
                w
                for line in t["text"].strip().split("\n")
                for w in textwrap.wrap(line, width - 2) or [""]
            ]
            for t in (b, a)
        )
        n = max(len(left), len(right))
        out += [""] + [
            f"  {x:<{width}}{y}".rstrip() for x, y in zip(left + [""] * n, right + [""] * n)
        ][:n]
    return "\n".join(out)


def write_report(run, say=print):
    """Write results.json, report.md and, if matplotlib is there, the plots; returns the results."""
    results = summarise(run)
    run.write("results.json", json.dumps(results, indent=1) + "\n")
    pictures = plots(run, results)
    run.write(
        "report.md",
        f"# {run.folder.name}\n\n```text\n{text_report(run, results)}```\n\n"
        + "\n".join(f"![{p}]({p})" for p in pictures)
        + "\n",
    )
    if not pictures:
        say(
            "no plots: they need the extra 'plots' (pip install 'minseal[plots]'), then `minseal report "
            + str(run.folder)
            + "`"
        )
    return results


# ---- plots -------------------------------------------------------------------------------------------------------------


def plots(run, results):
    """ladder.png, rounds.png and, by the kind of run, mix.png or directives.png and tasks.png in the run folder; the names of those made, none without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    arms, made, own = results["arms"], [], LADDERS[results["kind"]].own

    def save(name, draw, size):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(run.folder / name, dpi=120)
        made.append(name)

    def with_axes(draw):
        def drawn(figure):
            axes = figure.subplots()
            draw(axes)
            axes.spines[["top", "right"]].set_visible(False)

        return drawn

    def draw_ladder(axes):
        colours = {"round": "tab:red", "control": "tab:gray"}
        for y, a in enumerate(arms):
            axes.barh(y, a["mean"], color=colours.get(a["arm"].split()[0], "tab:blue"), alpha=0.8)
            axes.plot(a["ci95"], [y, y], color="black", linewidth=1.2)
        axes.set_yticks(range(len(arms)), [a["arm"] for a in arms])
        axes.invert_yaxis()
        axes.set(
            xlim=(0, 1.02),
            xlabel=f"{LADDERS[results['kind']].score}, {arms[0]['n']} held-out contexts, 95 % interval",
        )

    def draw_rounds(axes):
        for name, colour in (("round", "tab:red"), ("control", "tab:gray")):
            points = [(0, a) for a in arms if a["arm"] == own] + [
                (int(a["arm"].split()[1]), a) for a in arms if a["arm"].startswith(name + " ")
            ]
            if len(points) < 2:
                continue
            x, y = [p[0] for p in points], [p[1]["mean"] for p in points]
            axes.plot(
                x,
                y,
                marker="o",
                color=colour,
                label="SEAL" if name == "round" else "control: random winners",
            )
            axes.fill_between(
                x,
                [p[1]["ci95"][0] for p in points],
                [p[1]["ci95"][1] for p in points],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        axes.set(
            xlabel="round",
            ylabel=f"{LADDERS[results['kind']].score}, held out",
            ylim=(0, 1),
            xticks=range(run.config["outer"]["rounds"] + 1),
        )
        axes.legend(frameon=False)

    def draw_mix(axes):
        shown = [a for a in arms if a["mix"]]
        left = np.zeros(len(shown))
        for kind, colour in zip(
            KINDS, ("tab:blue", "tab:green", "tab:olive", "lightgray", "tab:red", "tab:purple")
        ):
            share = np.array([a["mix"][kind] for a in shown])
            axes.barh(range(len(shown)), share, left=left, label=kind, color=colour)
            left += share
        axes.set_yticks(range(len(shown)), [a["arm"] for a in shown])
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="share of the notes")
        axes.legend(
            frameon=False,
            ncols=6,
            loc="lower center",
            bbox_to_anchor=(0.5, 1),
            fontsize=8,
            columnspacing=1,
            handlelength=1,
        )

    try:
        save("ladder.png", with_axes(draw_ladder), (7, 0.35 * len(arms) + 0.8))
        if any(a["arm"] == "round 1" for a in arms):
            save("rounds.png", with_axes(draw_rounds), (6, 3.6))
        if any(a.get("mix") for a in arms):
            save("mix.png", with_axes(draw_mix), (7, 0.35 * sum(bool(a["mix"]) for a in arms) + 1))
        if results["kind"] != "knowledge":
            report_fewshot.pictures(run, results, save)
    except OSError as e:
        raise UserError(f"cannot write plots into {run.folder}: {e}") from None
    return made
