"""The ladder and its controls: which arms, in which order, and what they add up to."""

from dataclasses import dataclass, field, replace

import numpy as np

from .errors import UserError, at_least, one_of
from .inner import InnerConfig
from .outer import REWARDS, OuterConfig, exam_score, mix_seed, parts, rest_em, try_out
from .sample import sample
from .tasks.knowledge import GRADES, PROMPTS, Knowledge, read_contexts, toy_contexts
from .weights import DTYPES, load


@dataclass(frozen=True)
class KnowledgeConfig:
    """SEAL for knowledge: the ladder from no adaptation to the passage in context, the outer loop, and its control."""

    seed: int = 0  # of sampling, of the adapters' first weights, of the split
    world_seed: int = 0  # which people the toy world holds
    data: str = ""  # passages to use instead of the toy world: SQuAD's JSON, a list of {title, context, questions}, or JSONL
    eval_data: str = ""  # held-out passages from a file of their own; otherwise they are split off
    eval_contexts: int = (
        0  # held-out contexts on which every arm is measured; 0: 96, or a third of --data
    )
    reliability_contexts: int = 16  # contexts of round 1 whose inner loops are run twice more, to see how noisy the reward is
    grade: str = (
        "exact"  # exact | contains | f1: how an answer is graded (after SQuAD's normalisation)
    )
    prompt: str = "notes"  # notes | implications | implications-long | implications-very-long | rewrite | self-qa | none: how the policy is asked
    other_prompts: str = "auto"  # prompts, comma between, whose untrained notes are measured beside; auto: none in the toy world, else implications,rewrite,self-qa
    edit_tokens: int = 192  # longest self-edit
    model: str = "tiny_data/knowledge"  # a folder (minseal's own or Hugging Face's), a GGUF file, or a hub id such as owner/name
    device: str = "auto"  # auto | cpu | cuda: auto takes a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16: of the model's weights; auto: as they are stored
    control: bool = True  # run the control: same M-step, winners drawn at random
    inner: InnerConfig = field(default_factory=InnerConfig)
    outer: OuterConfig = field(
        default_factory=lambda: OuterConfig(contexts=0)
    )  # contexts 0: see settle()

    def __post_init__(self):
        at_least(self, seed=0, world_seed=0, edit_tokens=1, eval_contexts=0, reliability_contexts=0)
        one_of(self, grade=GRADES, prompt=PROMPTS, dtype=("auto", *DTYPES))
        if unknown := [p for p in other_styles(self) if p not in PROMPTS]:
            raise UserError(
                f"--other-prompts names {unknown[0]!r}; expected some of {', '.join(PROMPTS)}"
            )


def other_styles(config):
    """The prompt styles of config.other_prompts; settle() puts styles for 'auto'."""
    return [
        p
        for p in dict.fromkeys(config.other_prompts.replace(" ", "").split(","))
        if p not in ("", "auto", config.prompt)
    ]


def settle(config):
    """Put numbers for the zeros and styles for 'auto': 64 contexts a round and 96 to evaluate on, or what --data has of them."""
    n = len(read_contexts(config.data)) if config.data else 0
    apart = (
        len(read_contexts(config.eval_data)) if config.eval_data else n // 3 if config.data else 96
    )
    held_out = config.eval_contexts or max(1, min(96, apart))
    left = n - (0 if config.eval_data else held_out) if config.data else 64
    beside = (
        ("implications,rewrite,self-qa" if config.data else "")
        if config.other_prompts == "auto"
        else config.other_prompts
    )
    return replace(
        config,
        eval_contexts=held_out,
        other_prompts=beside,
        outer=replace(config.outer, contexts=config.outer.contexts or max(1, min(64, left))),
    )


def task_of(config, tokenizer, style):
    task = Knowledge(tokenizer, style, config.grade)
    task.edit_tokens = config.edit_tokens
    return task


def contexts_of(config, task, block_size):
    """(train, eval): disjoint contexts; --data is split by seed, the toy world by world_seed. One too long for the model is refused."""
    needed, held_out = config.outer.contexts, config.eval_contexts
    if config.data:
        pool = read_contexts(config.data)
        np.random.default_rng(config.seed).shuffle(pool)
    else:
        needed *= config.outer.rounds  # people are free: every round has new ones
        pool = toy_contexts(needed + held_out, config.world_seed)
    own = read_contexts(config.eval_data)[:held_out] if config.eval_data else pool[:held_out]
    train = pool if config.eval_data else pool[held_out:]
    if len(own) < held_out or len(train) < needed:
        there = (
            f"{len(train)} to train on and {len(own)} to evaluate on"
            if config.eval_data
            else f"{len(pool)} in all"
        )
        raise UserError(
            f"there are not enough contexts, {there}: {needed} to train on and {held_out} to evaluate on were asked for; "
            "lower --contexts or --eval-contexts"
        )
    both = {c.text for c in train} & {c.text for c in own}
    if both:
        raise UserError(
            f"{len(both)} passages are in the training and in the eval data, the first: {min(both)[:60]!r}"
        )
    ways = [task, *(task_of(config, task.tokenizer, style) for style in other_styles(config))]
    for c in own + train:
        n = max(
            *(len(way.prompt(c)) + way.edit_tokens for way in ways),
            *(len(p) + task.answer_tokens for p in task.exam(c, in_context=True)),
        )
        if n > block_size:
            raise UserError(
                f"passage {c.id!r} needs {n} tokens with what is written after it; the model reads {block_size}: lower --edit-tokens, or leave out long --other-prompts"
            )
    return train, own


def steps_of(config):
    """How many steps a run has, for the progress bar."""
    return (
        9
        + len(other_styles(config))
        + loop_steps(config.outer)
        + (loop_steps(control_of(config.outer)) if config.control else 0)
    )


def loop_steps(outer):
    """How many steps an outer loop has: the parts of its E-steps, baselines, M-steps, and an arm after each round."""
    return outer.rounds * (
        len(parts(range(outer.contexts), outer)) + (outer.select == "positive") + 2
    )


def control_of(outer):
    """The control's settings. One self-edit drawn at random from several is one self-edit: it samples no more."""
    return replace(outer, select="random", samples=1)


class Lab:
    """What every arm of a ladder is made of: one model and task, and the run folder that every step goes through."""

    def __init__(self, config, run, policy, tokenizer, task, outer=None):
        self.config, self.run, self.policy, self.tokenizer, self.task, self.outer = (
            config,
            run,
            policy,
            tokenizer,
            task,
            outer or config.outer,
        )
        self.original = {k: v.clone() for k, v in policy.state_dict().items()}

    def reset(self):
        """The policy as it was before any outer loop."""
        self.policy.load_state_dict(self.original)

    def write(self, contexts, n, *draw, task=None):
        """n self-edits of each context: lists of texts. draw: numbers that make it another draw."""
        task = task or self.task
        return sample(
            self.policy,
            self.tokenizer,
            [task.prompt(x) for x in contexts],
            n,
            task.edit_tokens,
            self.outer.temperature,
            self.outer.top_p,
            seed=mix_seed(self.config.seed, *draw),
        )

    def train_and_examine(self, contexts, edits, seed=None, task=None, reward=exam_score):
        """A trial for each context with its self-edit (a text or a SelfEdit)."""
        return try_out(
            self.policy,
            self.tokenizer,
            task or self.task,
            list(zip(contexts, edits)),
            self.config.inner,
            self.outer.at_once,
            reward,
            self.config.seed if seed is None else seed,
            self.outer.memory,
        )

    def own_edits(self, contexts, task=None):
        """The policy's own self-edits, one of each context."""
        return self.train_and_examine(
            contexts, [text for (text,) in self.write(contexts, 1, 99, task=task)], task=task
        )

    def without_training(self, contexts, in_context):
        """The plain model's exams."""
        k = self.outer.at_once
        return [
            {"context": c.id, **result}
            for i in range(0, len(contexts), k)
            for c, result in zip(
                contexts[i:],
                exam_score(
                    self.policy,
                    self.tokenizer,
                    self.task,
                    contexts[i : i + k],
                    in_context=in_context,
                ),
            )
        ]

    def outer_loop(self, name, settings, train, held_out):
        """rest_em with every step in the run folder; after each round the policy's own self-edits of the held-out contexts."""
        return rest_em(
            self.policy,
            self.tokenizer,
            self.task,
            train,
            settings,
            self.config.inner,
            seed=self.config.seed,
            keep=lambda step, compute: self.run.keep(f"{name} {step}", compute),
            remember=lambda step, compute: self.run.remember(f"{name} {step}", compute),
            on_round=lambda r, record: self.run.remember(
                f"{name} {r}", lambda: self.own_edits(held_out)
            ),
        )

    def reliability(self, history, train, n):
        """The self-edits of n contexts of round 1 under other first weights of the adapters: how much of the reward is luck?"""
        some = {c.id: c for c in train[:n]}
        trials = [t for t in history[0]["trials"] if t["context"] in some] if history else []
        for i in (1, 2):
            self.run.remember(
                f"reliability, run {i}",
                lambda: self.train_and_examine(
                    [some[t["context"]] for t in trials],
                    [t["text"] for t in trials],
                    self.config.seed + i,
                    reward=REWARDS[self.outer.reward],
                ),
            )


def run_knowledge(config, run, say=print):
    """Walk the ladder. Every step goes through `run` (runs.py), so a killed run goes on where it was; `run` holds the results."""
    policy, tokenizer = load(config.model, config.device, config.dtype)
    task = task_of(config, tokenizer, config.prompt)
    train, held_out = contexts_of(config, task, policy.config.block_size)
    say(
        f"{sum(p.numel() for p in policy.parameters()) / 1e6:.2f} M parameters, {len(train)} contexts to train on, {len(held_out)} held out"
    )
    lab = Lab(config, run, policy, tokenizer, task)

    def three_of_one():  # for people to look at
        return lab.train_and_examine(held_out[:1] * 3, lab.write(held_out[:1], 3, 98)[0])

    run.remember("no adaptation", lambda: lab.without_training(held_out, False))
    run.remember(
        "passage only",
        lambda: lab.train_and_examine(held_out, [task.baseline(c) for c in held_out]),
    )
    for style in other_styles(config):  # RL is compared with the best prompt, not with the worst
        run.remember(
            f"own notes, {style}",
            lambda: lab.own_edits(held_out, task_of(config, tokenizer, style)),
        )
    run.remember("own notes", lambda: lab.own_edits(held_out))
    run.remember("three self-edits before", three_of_one)
    history = lab.outer_loop("round", config.outer, train, held_out)
    run.remember("three self-edits after", three_of_one)

    lab.reset()
    lab.reliability(history, train, config.reliability_contexts)
    if config.control:
        lab.outer_loop("control", control_of(config.outer), train, held_out)
        lab.reset()
    run.remember(
        "oracle notes", lambda: lab.train_and_examine(held_out, [task.oracle(c) for c in held_out])
    )
    run.remember("passage in context", lambda: lab.without_training(held_out, True))
