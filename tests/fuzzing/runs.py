"""Readers of run folders that somebody edited."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fuzzing.targets import JSONL, PEOPLE, PUZZLES, Target, json_file, keys_of, make_model
from fuzzing.tensors import in_zip, other_tensors

import minseal.lab.table
from minseal import OuterConfig
from minseal.commands import cli
from minseal.commands.show import ShowConfig, show
from minseal.experiments.puzzle_report import FIRST, LAST
from minseal.files import load_tensors, save_tensors
from minseal.lab.lab import EXPERIMENTS, restore_policy, settings_of
from minseal.lab.run import Run
from minseal.lora import LoRAConfig, attach
from minseal.tasks.arc import to_json, to_text
from minseal.tasks.rules import ORACLE


def run_readers(folder: Path) -> list[Target]:
    """Run folders that somebody edited: the report, what `show` shows, the policy, going on."""
    out = []
    for kind, make in (("knowledge", knowledge_run), ("fewshot", fewshot_run)):
        place = folder / kind
        config = make(place)
        report = partial(cli.report, cli.ReportConfig(), str(place))
        plain = partial(without_plots, report)
        kinds = {
            "report": plain,
            "report with pictures": report,
            "going on": partial(Run, place, config),
        }
        if kind == "knowledge":
            model = make_model()
            kinds["policy"] = partial(restore_policy, model, str(place))
        else:
            settings = ShowConfig(run=str(place), color="no")
            kinds["show"] = partial(show, settings, PUZZLES[0].id)
        shares = {
            "report": 1.0,
            "report with pictures": 0.01,
            "going on": 1,
            "policy": 1,
            "show": 1,
        }
        log = place / "events.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        words = tuple(dict.fromkeys(keys_of(rows)))[:60]
        for what, read in kinds.items():
            name, share = f"{kind} run, {what}", shares[what]
            file, log_name, data = f"{name}, config.json", f"{name}, events.jsonl", log.read_bytes()
            out.append(json_file(file, place / "config.json", read, share))
            out.append(Target(log_name, [data], read, 2 * share, words, JSONL, log))
            if "pictures" in what:  # five of them, drawn by another package
                out[-1].seconds = out[-2].seconds = 15.0
            if kind == "fewshot" and what in ("report", "show"):
                out.append(json_file(f"{name}, puzzles.json", place / "puzzles.json", read, share))
            if kind == "knowledge" and what == "report":
                about = place / "contexts.json"
                out.append(json_file(f"{name}, contexts.json", about, read, share))
        if kind == "knowledge":
            path = place / "checkpoints" / "round-1-M-step.pt"
            data, tensors = [path.read_bytes()], load_tensors(path)
            tensors = {name: t.clone() for name, t in tensors.items()}
            read, mutate = kinds["policy"], partial(other_tensors, tensors, True)
            out.append(Target(f"{kind} run, a checkpoint", data, read, 0.5, (), in_zip, path))
            out.append(Target(f"{kind} run, tensors", data, read, 0.5, (), mutate, path))
    return out


def without_plots(call: Callable) -> None:
    drawn, minseal.lab.table.plots = minseal.lab.table.plots, lambda *args: []
    try:
        call()
    finally:
        minseal.lab.table.plots = drawn


def write_run(folder: Path, config: dict, arms: dict, more: list) -> dict:
    """A run folder, its log written by hand: arms {name: (trials, fields of Arm)}."""
    events = []
    for name, (trials, declared) in arms.items():
        events += [{"step": name, **trial} for trial in trials]
        events.append({"done": name, "seconds": 1.5, "arm": {"name": name, **declared}})
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    lines = [json.dumps(event) + "\n" for event in events + more]
    (folder / "events.jsonl").write_text("".join(lines))
    return config


def ladder(trials: Callable) -> dict:
    """Four arms of a short outer loop. trials(i): those of the i-th."""
    control = "control: random winners"
    return {
        "no adaptation": (trials(0), {}),
        "own notes": (trials(1), {"over": "no adaptation", "series": ["SEAL", control], "at": 0}),
        "round 1": (trials(2), {"over": "own notes", "series": ["SEAL"], "at": 1}),
        "control 1": (
            trials(3),
            {"over": "own notes", "series": [control], "at": 1, "rival": True},
        ),
    }


IN_TRAINING = {
    "done": "round 1 in training",
    "seconds": 0,
    "value": {"reward": 0.5, "self_edits": 4, "invalid": 1, "contexts": 2, "alike": 1},
    "labels": {"loop": "round", "round": 1},
}


def small(kind: str, **settings: Any) -> dict:
    experiment = EXPERIMENTS[kind]
    outer = OuterConfig(rounds=1, contexts=2, samples=2)
    return settings_of(experiment, experiment.settings(eval_contexts=2, outer=outer, **settings))


def knowledge_run(folder: Path) -> dict:
    def trials(i):
        chose = {"notes": {"implies": 2, "vague": 1}, "lr": 0.001}
        more = {"seed": 0, "seconds": 0.5, "answers": ["Lyon", ""], "grades": [1.0, 0.0]}
        return [
            {
                "context": p.id,
                "text": "Notes.\nMore.",
                "reward": (i + j) % 3 / 2,
                "chose": chose,
                **more,
            }
            for j, p in enumerate(PEOPLE[:2])
        ]

    three = [
        event
        for when in ("before", "after")
        for event in (
            *(
                {"step": f"three self-edits {when}", "context": "a", "text": "x\ny", "reward": r}
                for r in (0, 1, 0)
            ),
            {"done": f"three self-edits {when}", "seconds": 0},
        )
    ]
    more = [
        IN_TRAINING,
        {
            "done": "round 1 M-step",
            "seconds": 9,
            "checkpoint": "round-1-M-step.pt",
            "labels": {"loop": "round"},
        },
        {"done": "reliability", "seconds": 0, "value": [[[1, 1, 0], [0, 0, 0]]]},
        *three,
        {"step": "late", "context": "a", "text": "unfinished", "reward": 0, "invalid": "no words"},
    ]
    config = write_run(folder, small("knowledge"), ladder(trials), more)
    contexts = {p.id: {"text": p.text, "exam": p.questions} for p in PEOPLE[:2]}
    (folder / "contexts.json").write_text(json.dumps(contexts))
    model = make_model()
    adapters = attach(model, 1, LoRAConfig(2, 4.0))
    save_tensors(folder / "checkpoints" / "round-1-M-step.pt", adapters.state())
    adapters.remove()
    return config


def fewshot_run(folder: Path) -> dict:
    held_out = PUZZLES[:2]

    def trials(i):
        out = []
        for j, p in enumerate(held_out):
            directives = ORACLE[p.kind]
            chose = {"kind": p.kind, **directives.to_chosen()}
            grids = [to_text(p.tests[0].output), to_text(p.tests[0].input), "0", "12\n34", "", "x"]
            about = {
                "text": directives.to_json(),
                "chose": chose,
                "answers": grids,
                "grades": [1.0],
            }
            out.append({"context": p.id, "reward": float((i + j) % 2), **about})
        return out

    arms = ladder(trials) | {
        FIRST: (trials(1), {"over": "own notes"}),
        LAST: (trials(2), {"over": "own notes"}),
    }
    arms = {"in context": (trials(0), {}), **arms}
    solvable = [{"step": "solvable", **trial} for trial in trials(0)]
    more = [IN_TRAINING, *solvable, {"done": "solvable", "seconds": 1}]
    config = write_run(folder, small("fewshot", vote=1), arms, more)
    puzzles = {p.id: to_json(p) for p in held_out}
    (folder / "puzzles.json").write_text(json.dumps(puzzles))
    return config
