"""Tables and plots of a run folder. Everything is worked out again from its events."""

import json
import textwrap
from collections import Counter

import numpy as np

from . import evidence
from .errors import UserError
from .tasks.world import KINDS


def summarise(run):
    """A run folder -> the results as a dict, its arms in the order of the ladder (what results.json holds)."""
    rewards = {arm: [t["reward"] for t in run.done[arm]["trials"]] for arm in ladder(run)}
    arms = []
    for arm, values in rewards.items():
        mean, ci = evidence.interval(values)
        trials = run.done[arm]["trials"]
        row = {"arm": arm, "mean": mean, "ci95": ci, "gain": None, "gain_ci95": None, "over": None,
               "seconds": run.done[arm]["seconds"], "n": len(values), "invalid": sum("invalid" in t for t in trials), "mix": mix(trials)}
        if (over := compared_with(arm)) in rewards:
            row["gain"], row["gain_ci95"] = evidence.paired(values, rewards[over])
            row["over"] = over
        arms.append(row)
    results = {"arms": arms, "training": training(run), "seconds": run.seconds(), "config": run.config,
               "reliability": None, "reliability_mean": None, "best_of_k_heldout": None, "best_of_k": None}
    rounds = [arm for arm in rewards if arm.startswith("round")]
    if rounds:
        a = rounds[-1]
        untrained = [arm for arm in rewards if arm.startswith("own notes, ")]  # other prompts
        best = max(untrained, key=lambda arm: np.mean(rewards[arm]), default=None)
        against = ["own notes", best, "passage only" if best else None, a.replace("round", "control")]
        results["comparisons"] = [dict(zip(("gain", "gain_ci95"), evidence.paired(rewards[a], rewards[b])), arm=a, over=b)
                                  for b in against if b in rewards]
    if (scores := repeated_scores(run)) is not None:
        one, of_mean = (None if np.isnan(x) else x for x in evidence.reliability(scores))
        best = evidence.best_of_k(scores)
        results.update(reliability=one, reliability_mean=of_mean, best_of_k_heldout=best["held out"],
                       best_of_k={**best, "k": scores.shape[1], "contexts": scores.shape[0], "runs": scores.shape[2]})
    return results


def ladder(run):
    """The arms that a run has measured, weakest first; controls after the rounds."""
    rounds = range(1, run.config["outer"]["rounds"] + 1)
    styles = [arm for arm in run.done if arm.startswith("own notes, ")]
    order = ["no adaptation", "passage only", *styles, "own notes", *(f"round {r}" for r in rounds), *(f"control {r}" for r in rounds),
             "oracle notes", "passage in context"]
    return [arm for arm in order if arm in run.done]


def compared_with(arm):
    """The arm that an arm's gain is taken over: a round's is the round before, a control's the untrained policy's notes."""
    name, _, r = arm.partition(" ")
    if name == "round":
        return f"round {int(r) - 1}" if r != "1" else "own notes"
    if name == "control":
        return "own notes"
    if name == "own":
        return "passage only"
    return {"passage only": "no adaptation", "oracle notes": "passage only", "passage in context": "no adaptation"}.get(arm)


def mix(trials):
    """Share of each kind of note in all self-edits together; None where no grammar reads them."""
    counts = sum((Counter(t.get("mix")) for t in trials), Counter())
    return {kind: counts[kind] / counts.total() for kind in KINDS} if counts.total() else None


def training(run):
    """What the E-steps saw in each round of SEAL and of the control: mean reward, invalid self-edits, contexts that teach nothing."""
    out = []
    for name in ("round", "control"):
        for r in range(1, run.config["outer"]["rounds"] + 1):
            trials = [t for step, d in run.done.items() if step.startswith(f"{name} {r} contexts") for t in d["trials"]]
            if trials:
                out.append({"loop": name, "round": r, "reward": float(np.mean([t["reward"] for t in trials])), "self_edits": len(trials),
                            "invalid": sum("invalid" in t for t in trials), "contexts": len({t["context"] for t in trials}),
                            "alike": sum(len(rewards) == 1 for rewards in by_context(trials).values())})
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
    k = run.config["outer"]["samples"]
    if len(again) < 2 or not again[0] or k < 2:
        return None
    first = [t for step, d in run.done.items() if step.startswith("round 1 contexts") for t in d["trials"]][:len(again[0])]
    return np.array([[t["reward"] for t in trials] for trials in (first, *again)]).T.reshape(-1, k, 1 + len(again))


# ---- text --------------------------------------------------------------------------------------------------------------

def text_report(run, results):
    """The table and what stands below it, as printed at the end of a run."""
    c = run.config
    measured = f"{c['data'] or 'toy world ' + str(c['world_seed'])}, seed {c['seed']}, model {c['model']}, graded by {c['grade']}"
    parts = [table(results), measured + "\n" + conclusions(results)]
    if "three self-edits before" in run.done and "three self-edits after" in run.done:
        parts.append(side_by_side(run))
    return "\n\n".join(parts) + "\n"


def table(results):
    kinds = KINDS if any(a["mix"] for a in results["arms"]) else ()
    header = ["arm", "score", "95 %", "gain", "95 %", "over", "s", *kinds]
    rows = [[a["arm"], f"{a['mean']:.2f}", _ci(a["ci95"]), *((f"{a['gain']:+.2f}", _ci(a["gain_ci95"], "+.2f"), a["over"]) if a["over"] else ("",) * 3),
             f"{a['seconds']:.0f}", *(f"{a['mix'][k]:.0%}" if a["mix"] else "" for k in kinds)] for a in results["arms"]]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) if i in (0, 5) else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in [header, *rows]]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _ci(ci, form=".2f"):
    return f"{ci[0]:{form}} {ci[1]:{form}}"


def conclusions(results):
    n, lines = results["arms"][0]["n"], []
    lines.append(f"score: share of the exam, mean over {n} held-out contexts; gain: paired over the same contexts, bootstrap intervals.")
    for c in results.get("comparisons", []):
        low, high = c["gain_ci95"]
        verdict = "better" if low > 0 else "worse" if high < 0 else "no difference that this run could tell"
        lines.append(f"{c['arm']} against {c['over']}: {c['gain']:+.2f} (95 % {low:+.2f} to {high:+.2f}): {verdict}.")
    if (b := results["best_of_k"]) is not None:
        one, of_mean = ("unknown" if x is None else f"{x:.2f}" for x in (results["reliability"], results["reliability_mean"]))
        lines.append(f"reliability of the reward: {one} for one inner loop, {of_mean} for the mean of {b['runs']} "
                     f"({b['contexts']} contexts x {b['k']} self-edits x {b['runs']} seeds).")
        lines.append(f"best of {b['k']} self-edits: {b['in sample']:.2f} in the run that chose it, {b['held out']:.2f} in other runs, {b['mean']:.2f} for all of them.")
    invalid = [f"{t['loop']} {t['round']}: {t['invalid']} of {t['self_edits']}" for t in results["training"] if t["invalid"]]
    lines.append("self-edits that could not be read: " + ("; ".join(invalid) or "none") + ".")
    if results["config"]["outer"]["select"] == "best":
        alike = [f"round {t['round']}: {t['alike']} of {t['contexts']}" for t in results["training"] if t["loop"] == "round" and t["alike"]]
        lines.append("contexts skipped because all their self-edits scored alike: " + ("; ".join(alike) or "none") + ".")
    return "\n".join(lines)


def side_by_side(run, width=58):
    """Three self-edits of one held-out passage before the outer loop, and three after it, with their rewards."""
    before, after = (run.done[f"three self-edits {when}"]["trials"] for when in ("before", "after"))
    out = [f"Self-edits of one held-out passage ({before[0]['context']}), before and after the outer loop:"]
    for b, a in zip(before, after):
        left, right = ([f"reward {t['reward']:.2f}"] + [w for line in t["text"].strip().split("\n") for w in textwrap.wrap(line, width - 2) or [""]] for t in (b, a))
        n = max(len(left), len(right))
        out += [""] + [f"  {x:<{width}}{y}".rstrip() for x, y in zip(left + [""] * n, right + [""] * n)][:n]
    return "\n".join(out)


def write_report(run, say=print):
    """Write results.json, report.md and, if matplotlib is there, the plots; returns the results."""
    results = summarise(run)
    run.write("results.json", json.dumps(results, indent=1) + "\n")
    pictures = plots(run, results)
    run.write("report.md", f"# {run.folder.name}\n\n```text\n{text_report(run, results)}```\n\n" + "\n".join(f"![{p}]({p})" for p in pictures) + "\n")
    if not pictures:
        say("no plots: they need the extra 'plots' (pip install 'minseal[plots]'), then `minseal report " + str(run.folder) + "`")
    return results


# ---- plots -------------------------------------------------------------------------------------------------------------

def plots(run, results):
    """ladder.png, rounds.png, mix.png in the run folder; the names of those made, none without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    arms, made = results["arms"], []

    def save(name, draw, size):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(run.folder / name, dpi=120)
        made.append(name)

    def draw_ladder(axes):
        colours = {"round": "tab:red", "control": "tab:gray"}
        for y, a in enumerate(arms):
            axes.barh(y, a["mean"], color=colours.get(a["arm"].split()[0], "tab:blue"), alpha=.8)
            axes.plot(a["ci95"], [y, y], color="black", linewidth=1.2)
        axes.set_yticks(range(len(arms)), [a["arm"] for a in arms])
        axes.invert_yaxis()
        axes.set(xlim=(0, 1.02), xlabel=f"exam score on {arms[0]['n']} held-out contexts, 95 % interval")

    def draw_rounds(axes):
        for name, colour in (("round", "tab:red"), ("control", "tab:gray")):
            points = [(0, a) for a in arms if a["arm"] == "own notes"] + [(int(a["arm"].split()[1]), a) for a in arms if a["arm"].startswith(name + " ")]
            if len(points) < 2:
                continue
            x, y = [p[0] for p in points], [p[1]["mean"] for p in points]
            axes.plot(x, y, marker="o", color=colour, label="SEAL" if name == "round" else "control: random winners")
            axes.fill_between(x, [p[1]["ci95"][0] for p in points], [p[1]["ci95"][1] for p in points], color=colour, alpha=.15, linewidth=0)
        axes.set(xlabel="round", ylabel="exam score, held out", ylim=(0, 1), xticks=range(run.config["outer"]["rounds"] + 1))
        axes.legend(frameon=False)

    def draw_mix(axes):
        shown = [a for a in arms if a["mix"]]
        left = np.zeros(len(shown))
        for kind, colour in zip(KINDS, ("tab:blue", "tab:green", "tab:olive", "lightgray", "tab:red", "tab:purple")):
            share = np.array([a["mix"][kind] for a in shown])
            axes.barh(range(len(shown)), share, left=left, label=kind, color=colour)
            left += share
        axes.set_yticks(range(len(shown)), [a["arm"] for a in shown])
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="share of the notes")
        axes.legend(frameon=False, ncols=6, loc="lower center", bbox_to_anchor=(.5, 1), fontsize=8, columnspacing=1, handlelength=1)

    try:
        save("ladder.png", draw_ladder, (7, .35 * len(arms) + .8))
        if any(a["arm"] == "round 1" for a in arms):
            save("rounds.png", draw_rounds, (6, 3.6))
        if any(a["mix"] for a in arms):
            save("mix.png", draw_mix, (7, .35 * sum(bool(a["mix"]) for a in arms) + 1))
    except OSError as e:
        raise UserError(f"cannot write plots into {run.folder}: {e}") from None
    return made
