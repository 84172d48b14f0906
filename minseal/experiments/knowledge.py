"""`minseal run knowledge`: the paper's ladder on passages, the outer loop and its control."""

import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..files import UserError
from ..inner import InnerConfig
from ..lab.lab import CONTROL, SEAL, Lab, experiment
from ..lab.run import Run, Step
from ..open_models.load import load
from ..outer import OuterConfig, Trial
from ..selfedit import SelfEdit
from ..tasks.grading import Grading
from ..tasks.knowledge import PROMPTS, Knowledge
from ..tasks.passages import Passage, read_passages
from ..tasks.people import KINDS, People, toy_passages
from ..tokenizer import Tokenizer


@dataclass(frozen=True)
class PassageConfig(ModelConfig):
    """Which passages, which model, and how it is asked: what people() opens a Lab from."""

    model: str = "tiny_data/knowledge"  # a folder (minseal's own or Hugging Face's), GGUF, hub id
    seed: int = 0  # of sampling, of the adapters' first weights, of the split
    world_seed: int = 0  # which people the toy world holds
    data: str = ""  # passages instead of the toy world: SQuAD's JSON, a flat list of it, or JSONL
    eval_data: str = ""  # held-out passages from a file of their own; otherwise they are split off
    eval_contexts: int | None = None  # held-out contexts; None: 96, or a third of --data
    grade: Grading = "exact"  # after SQuAD's normalisation
    prompt: str = "notes"  # how the policy is asked: a prompt of tasks/knowledge.py
    edit_tokens: int = 192  # longest self-edit
    inner: InnerConfig = InnerConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(seed=0, world_seed=0, edit_tokens=1, eval_contexts=1)
        if self.eval_data and not self.data:
            raise UserError("--eval-data needs --data: the toy world holds out people of its own")
        if unknown := [p for p in (self.prompt, *other_styles(self)) if p not in PROMPTS]:
            raise UserError(f"no prompt {unknown[0]!r}; expected some of {', '.join(PROMPTS)}")


@dataclass(frozen=True)
class KnowledgeConfig(PassageConfig):
    """SEAL for knowledge: from no adaptation to the passage in context, outer loop, control."""

    reliability_contexts: int = 16  # contexts of round 1 that are run twice more: is it luck?
    other_prompts: tuple[str, ...] | None = None  # measured untrained, too; "none" or the usual
    control: bool = True  # run the control: same M-step, winners drawn at random
    outer: OuterConfig = OuterConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(reliability_contexts=0)


def other_styles(config: PassageConfig) -> list[str]:
    """The prompts beside config.prompt whose untrained notes are measured."""
    usual = ("implications", "rewrite", "self-qa") if config.data else ()
    given = getattr(config, "other_prompts", ())
    names = usual if given is None else given
    return [style for style in dict.fromkeys(names) if style != config.prompt]


def task_of(config: PassageConfig, tokenizer: Tokenizer, style: str) -> Knowledge:
    """The task in one prompt style: the toy world's people, or any passages."""
    task = (Knowledge if config.data else People)(tokenizer, style, config.grade)
    task.edit_tokens = config.edit_tokens
    return task


def people(config: PassageConfig, run: Run) -> Lab:
    """The model, and passages: disjoint ones to train on and to hold out."""
    policy, tokenizer = load(config.model, config.device, config.dtype)
    task = task_of(config, tokenizer, config.prompt)
    train, held_out = split(config)
    ways = [task, *(task_of(config, tokenizer, style) for style in other_styles(config))]
    for passage in train + held_out:
        exams = [len(q) + task.answer_tokens for q in task.exam(passage, in_context=True)]
        n = max(*(len(way.prompt(passage)) + way.edit_tokens for way in ways), *exams)
        if n > (reads := policy.config.block_size):
            told = f"passage {passage.id!r} needs {n} tokens with what is written after it"
            raise UserError(f"{told}; the model reads {reads}: lower --edit-tokens")
    outer = getattr(config, "outer", OuterConfig())
    return Lab(policy, task, train, held_out, run, config.inner, outer, config.seed)


def split(config: PassageConfig) -> tuple[list[Passage], list[Passage]]:
    """(to train on, held out): --data is split by seed, the toy world by world_seed."""
    outer = getattr(config, "outer", OuterConfig(rounds=0))
    rounds, n = outer.rounds, config.eval_contexts or 96
    if config.data:
        pool = read_passages(config.data)
        np.random.default_rng(config.seed).shuffle(pool)
        n = config.eval_contexts or max(1, min(96, len(pool) // 3))
    else:  # people are free: every round has new ones
        pool = toy_passages(rounds * outer.contexts + n, config.world_seed)
    train, held_out = pool[n:], pool[:n]
    if config.eval_data:
        train, held_out = pool, read_passages(config.eval_data)[: config.eval_contexts or 96]
    if len(held_out) < (config.eval_contexts or 1) or (rounds and not train):
        there = f"{len(train)} to train on, {len(held_out)} to hold out"
        raise UserError(f"there are not enough contexts: {there}; lower --eval-contexts")
    if both := {p.text for p in train} & {p.text for p in held_out}:
        first = min(both)[:60]
        raise UserError(f"{len(both)} passages are in training and eval data, such as {first!r}")
    return train, held_out


def count_tokens(edit: SelfEdit, inner: InnerConfig) -> SelfEdit:
    """The same self-edit, its tokens that carry loss counted over all epochs: for tokens()."""
    n = sum(w != 0 for document in edit.documents for w in document.weights[1:])
    return replace(edit, chose={**edit.chose, "tokens": n * (edit.epochs or inner.epochs)})


def tokens(run: Run, step: Step) -> dict[str, Any]:
    """Tokens that each context of an arm was trained on: the mean, where they were counted."""
    counts = [t.chose["tokens"] for t in step.trials if "tokens" in t.chose]
    return {"tokens": sum(counts) / len(counts) if counts else None}


def tokens_column(results: dict[str, Any]) -> tuple[list[str], Callable]:
    """The column for them."""
    return ["tokens"], lambda a: [f"{a['tokens']:.0f}" if a["tokens"] else ""]


def mix(run: Run, step: Step) -> dict[str, Any]:
    """Share of each kind of note in all self-edits of an arm together."""
    counts = sum((Counter(t.chose.get("notes")) for t in step.trials), Counter())
    total = counts.total()
    return {"mix": {kind: counts[kind] / total for kind in KINDS} if total else None}


def mix_columns(results: dict[str, Any]) -> tuple[list[str], Callable]:
    """A column for each kind of note, where a grammar reads them."""
    kinds = KINDS if any(a["mix"] for a in results["arms"]) else ()
    return list(kinds), lambda a: [f"{a['mix'][k]:.0%}" if a["mix"] else "" for k in kinds]


def plot_mix(run: Run, results: dict[str, Any], save: Any) -> None:
    """mix.png: a bar for each arm, divided into kinds of note."""
    arms = [a for a in results["arms"] if a["mix"]]
    if not arms:
        return
    colours = ("tab:blue", "tab:green", "tab:olive", "lightgray", "tab:red", "tab:purple")

    def draw(figure: Any) -> None:
        axes, left = figure.subplots(), np.zeros(len(arms))
        for kind, colour in zip(KINDS, colours):
            share = np.array([a["mix"][kind] for a in arms])
            axes.barh(range(len(arms)), share, left=left, label=kind, color=colour)
            left += share
        axes.set_yticks(range(len(arms)), [a["arm"] for a in arms])
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlim=(0, 1), xlabel="share of the notes")
        where = dict(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=6, columnspacing=1)
        axes.legend(frameon=False, fontsize=8, handlelength=1, **where)

    save("mix.png", draw, (7, 0.35 * len(arms) + 1))


def before_and_after(run: Run, results: dict[str, Any], width: int = 58) -> list[str]:
    """Three self-edits of one held-out passage before the outer loop, and three after it."""
    steps = [run.steps.get(f"three self-edits {when}") for when in ("before", "after")]
    if None in steps:
        return []
    before, after = (step.trials for step in steps)
    out = [f"Self-edits of {before[0].context}'s passage, before and after the outer loop:"]
    for pair in zip(before, after):
        left, right = (_wrapped(trial, width - 2) for trial in pair)
        n = max(len(left), len(right))
        rows = zip(left + [""] * (n - len(left)), right + [""] * (n - len(right)))
        out += ["", *(f"  {a:<{width}}{b}".rstrip() for a, b in rows)]
    return ["\n".join(out)]


def _wrapped(trial: Trial, width: int) -> list[str]:
    lines = [
        w for line in trial.text.strip().split("\n") for w in textwrap.wrap(line, width) or [""]
    ]
    return [f"reward {trial.reward:.2f}", *lines]


@experiment(
    "knowledge",
    KnowledgeConfig,
    open=people,
    describe=mix,
    columns=mix_columns,
    blocks=before_and_after,
    pictures=(plot_mix,),
)
def knowledge(lab: Lab, config: KnowledgeConfig) -> None:
    """Notes that a policy writes about a passage: do they teach more than the passage does?"""
    task, held_out, styles = lab.task, lab.held_out, other_styles(config)

    lab.arm("no adaptation", lambda: lab.plain(held_out))
    passage_only = lambda: lab.study(held_out, task.baseline)
    lab.arm("passage only", passage_only, over="no adaptation", rival=bool(styles))
    for style in styles:  # RL is compared with the best prompt, not with the worst
        other = lab.asking(task_of(config, task.tokenizer, style))
        measure = lambda: other.study_own(held_out)
        lab.arm(f"own notes, {style}", measure, over="passage only", rival=True)
    own = lambda: lab.study_own(held_out)
    lab.arm("own notes", own, over="passage only", series=(SEAL, CONTROL), at=0, rival=True)

    one = held_out[:1]
    three = lambda: lab.study(one * 3, lab.write_many(one, 3, 98)[0])
    lab.step("three self-edits before", three)
    history = lab.outer_loop("round", series=SEAL, over="own notes", follow=True)
    lab.step("three self-edits after", three)

    lab.reset()
    lab.reliability(history, config.reliability_contexts)
    if config.control:
        # One drawn at random from several is one: the control samples no more.
        control = dict(select="random", samples=1, series=CONTROL, over="own notes", rival=True)
        lab.outer_loop("control", **control)
        lab.reset()
    lab.arm("oracle notes", lambda: lab.study(held_out, task.oracle), over="passage only")
    in_context = lambda: lab.plain(held_out, in_context=True)
    lab.arm("passage in context", in_context, over="no adaptation")
