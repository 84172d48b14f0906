"""Passages, opened for the experiments on them: settings, the model, what is held out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..files import UserError
from ..inner import InnerConfig
from ..lab.lab import Lab
from ..lab.run import Run, Step
from ..open_models.load import load
from ..outer import OuterConfig, Trial
from ..selfedit import SelfEdit
from ..tasks.grading import Grading
from ..tasks.knowledge import PROMPTS, Knowledge
from ..tasks.passages import Passage, read_passages
from ..tasks.people import People, toy_passages
from ..tokenizer import Tokenizer

PROMPT_CONTEXTS = 24  # training contexts on which the best prompt is chosen


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
    # No types here, so no options: a subclass that names their types makes options of them.
    outer = OuterConfig(rounds=0)
    other_prompts = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(seed=0, world_seed=0, edit_tokens=1, eval_contexts=1)
        if self.eval_data and not self.data:
            raise UserError("--eval-data needs --data: the toy world holds out people of its own")
        if unknown := [p for p in (self.prompt, *other_styles(self)) if p not in PROMPTS]:
            raise UserError(f"no prompt {unknown[0]!r}; expected some of {', '.join(PROMPTS)}")


def other_styles(config: PassageConfig) -> list[str]:
    """The prompts beside config.prompt whose untrained notes are measured."""
    usual = ("implications", *(("rewrite", "self-qa") if config.data else ("questions",)))
    names = usual if config.other_prompts is None else config.other_prompts
    return [style for style in dict.fromkeys(names) if style != config.prompt]


def try_prompts(
    lab: Lab,
    config: PassageConfig,
    over: str = "passage only",
    measure: Callable[[Lab, list[Any]], list[Trial]] = Lab.study_own,
) -> None:
    """An arm for the untrained notes of each other prompt, over another arm.

    The prompt that teaches most about some training contexts is a rival: a policy that was taught
    is compared with the best prompt there is, and not with the one that it was taught on alone.
    """
    if not (styles := other_styles(config)):
        return
    some, scores = lab.train[:PROMPT_CONTEXTS], {}
    asking = {s: lab.but(task=task_of(config, lab.task.tokenizer, s)) for s in styles}
    for style, other in {config.prompt: lab, **asking}.items():
        step = lab.run.under(f"prompt {style},", prompt=style).step
        trials = step("tried out", partial(measure, other, some)) if some else []
        scores[style] = sum(t.reward for t in trials)
    best = max(scores, key=scores.__getitem__)
    for style, other in asking.items():
        arm = dict(over=over, rival=style == best)
        lab.arm(f"own notes, {style}", partial(measure, other, lab.held_out), **arm)


def prompts_tried(run: Run, results: dict[str, Any]) -> list[str]:
    """The sentence that says which prompt is best, and where that was seen."""
    tried = [step for step in run.steps.values() if "prompt" in step.labels and step.trials]
    if len(tried) < 2:
        return []
    means = {s.labels["prompt"]: np.mean([t.reward for t in s.trials]) for s in tried}
    told = ", ".join(f"{style} {mean:.2f}" for style, mean in means.items())
    n, best = len(tried[0].trials), max(means, key=means.__getitem__)
    return [f"prompts, untrained, on {n} contexts not held out: {told}; the best is {best}."]


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
    return Lab(policy, task, train, held_out, run, config.inner, config.outer, config.seed)


def split(config: PassageConfig) -> tuple[list[Passage], list[Passage]]:
    """(to train on, held out): --data is split by seed, the toy world by world_seed."""
    outer, n = config.outer, config.eval_contexts or 96
    if config.data:
        pool = read_passages(config.data)
        np.random.default_rng(config.seed).shuffle(pool)
        n = config.eval_contexts or max(1, min(96, len(pool) // 3))
    else:  # people are free: every round has new ones
        pool = toy_passages(outer.rounds * outer.contexts + n, config.world_seed)
    train, held_out = pool[n:], pool[:n]
    if config.eval_data:
        train, held_out = pool, read_passages(config.eval_data)[: config.eval_contexts or 96]
    if len(held_out) < (config.eval_contexts or 1) or (outer.rounds and not train):
        there = f"{len(train)} to train on, {len(held_out)} to hold out"
        do = "lower --eval-contexts" if config.eval_contexts else "--data needs more"
        raise UserError(f"there are not enough contexts: {there}; {do}")
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
    """The table's column of tokens()."""
    return ["tokens"], lambda a: [f"{a['tokens']:.0f}" if a["tokens"] else ""]
