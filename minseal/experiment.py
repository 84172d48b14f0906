"""The ladder and its controls: which arms, in which order, and what they add up to."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from . import evidence
from .errors import UserError
from .inner import InnerConfig
from .outer import OuterConfig, exam_score, mix_seed, rest_em, try_out
from .sample import sample
from .tasks.knowledge import GRADES, PROMPTS, Knowledge, read_contexts, toy_contexts
from .weights import load

TINY = Path(__file__).parent.parent / "tiny_data" / "knowledge"


@dataclass(frozen=True)
class KnowledgeConfig:
    """SEAL for knowledge: the ladder from no adaptation to the passage in context, the outer loop, and its control."""
    seed: int = 0                 # of sampling, of the adapters' first weights, of the split
    world_seed: int = 0           # which people the toy world holds
    data: str = ""                # passages to use instead of the toy world: SQuAD's JSON, a list of {title, context, questions}, or JSONL
    eval_data: str = ""           # held-out passages from a file of their own; otherwise they are split off
    eval_contexts: int = 96       # held-out contexts on which every arm is measured
    reliability_contexts: int = 16  # contexts of round 1 whose inner loops are run twice more, to see how noisy the reward is
    grade: str = "exact"          # exact | contains | f1: how an answer is graded (after SQuAD's normalisation)
    prompt: str = "notes"         # how the policy is asked: notes | implications | implications-long | implications-very-long | rewrite | self-qa | none
    model: str = str(TINY)        # folder of the checkpoint
    control: bool = True          # run the control: same M-step, winners drawn at random
    inner: InnerConfig = field(default_factory=InnerConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)

    def __post_init__(self):
        for name, allowed in (("grade", GRADES), ("prompt", tuple(PROMPTS))):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} {getattr(self, name)!r}: expected one of {', '.join(allowed)}")


def contexts_of(config, task, block_size):
    """(train, eval): disjoint contexts, split by seed; those too long for the model are refused."""
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
        raise UserError(f"{len(own) + len(train)} contexts there, but {needed} to train on and {held_out} to evaluate on were asked for: "
                        f"lower --outer.contexts or --eval-contexts")
    both = {c.text for c in train} & {c.text for c in own}
    if both:
        raise UserError(f"{len(both)} passages are in the training and in the eval data, the first: {min(both)[:60]!r}")
    for c in own + train:
        n = max(len(p) for p in [task.prompt(c), *task.exam(c, in_context=True)]) + task.edit_tokens
        if n > block_size:
            raise UserError(f"passage {c.id!r} needs {n} tokens with its prompt and the self-edit; the model reads {block_size}")
    return train, own


def run_knowledge(config, run, say=print):
    """Walk the ladder. Every step goes through `run` (runs.py), so a killed run goes on where it was. Returns the results."""
    policy, tokenizer = load(config.model)
    task = Knowledge(tokenizer, config.prompt, config.grade)
    train, held_out = contexts_of(config, task, policy.config.block_size)
    say(f"{sum(p.numel() for p in policy.parameters()) / 1e6:.2f} M parameters, {len(train)} contexts to train on, {len(held_out)} held out")
    outer, inner, seed, arms = config.outer, config.inner, config.seed, {}
    original = {k: v.clone() for k, v in policy.state_dict().items()}

    def write(contexts, n, seed):
        return sample(policy, tokenizer, [task.prompt(c) for c in contexts], n, task.edit_tokens, outer.temperature, outer.top_p, seed=seed)

    def examine(contexts, edits, seed=seed):
        return try_out(policy, tokenizer, task, list(zip(contexts, edits)), inner, outer.at_once, seed=seed)

    def arm(name, compute):
        arms[name] = run.remember(name, compute)

    def own_notes():
        return examine(held_out, [text for (text,) in write(held_out, 1, mix_seed(seed, 99))])

    def without_training(in_context):
        return [{"context": c.id, **result} for i in range(0, len(held_out), outer.at_once)
                for c, result in zip(held_out[i:], exam_score(policy, tokenizer, task, held_out[i:i + outer.at_once], in_context=in_context))]

    def three_of_one():  # for people to look at
        return examine(held_out[:1] * 3, write(held_out[:1], 3, mix_seed(seed, 98))[0])

    def outer_loop(name, settings):
        return rest_em(policy, tokenizer, task, train, settings, inner, seed=seed, keep=lambda step, compute: run.keep(f"{name} {step}", compute),
                       remember=lambda step, compute: run.remember(f"{name} {step}", compute), on_round=lambda r, record: arm(f"{name} {r}", own_notes))

    arm("no adaptation", lambda: without_training(False))
    arm("passage only", lambda: examine(held_out, [task.passage_only(c) for c in held_out]))
    arm("own notes", own_notes)
    before = run.remember("three self-edits before", three_of_one)
    history = outer_loop("round", outer)
    after = run.remember("three self-edits after", three_of_one)

    policy.load_state_dict(original)
    # The reward of the same self-edits under other first weights of the adapters: how much of it is luck?
    some = {c.id: c for c in train[:config.reliability_contexts]}
    trials = [t for t in history[0]["trials"] if t["context"] in some] if history else []
    again = [run.remember(f"reliability, run {i}", lambda: examine([some[t["context"]] for t in trials], [t["text"] for t in trials], seed + i)) for i in (1, 2)]
    if config.control:
        # One self-edit drawn at random from several is one self-edit: the control samples no more.
        outer_loop("control", replace(outer, select="random", samples=1))
        policy.load_state_dict(original)
    arm("oracle notes", lambda: examine(held_out, [task.oracle(c) for c in held_out]))
    arm("passage in context", lambda: without_training(True))
    return {k: np.mean([t["reward"] for t in v]) for k, v in arms.items()}
