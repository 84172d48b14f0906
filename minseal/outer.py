"""The outer loop: ReST-EM over self-edits (paper section 3.1, Algorithm 1)."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from .errors import UserError, at_least, one_of
from .inner import InnerConfig, adapt, losses, side_by_side
from .lora import LoRAConfig, attach
from .sample import sample
from .selfedit import InvalidSelfEdit, SelfEdit


@dataclass(frozen=True)
class MStepConfig(InnerConfig):
    """The M-step is the inner loop once more, on the winners, with settings of its own."""

    lr: float = 1e-3  # learning rate of the M-step (paper: 3e-4)
    epochs: int = (
        4  # passes over the winners (paper: 2); more, because the tiny model is small and new to it
    )
    batch: int = 8  # winners in one gradient step (paper: 10)
    rank: int = 32  # LoRA rank of the M-step, merged afterwards (paper: 64)
    alpha: float = 64.0  # LoRA scale is alpha / rank (paper: 128)


@dataclass(frozen=True)
class OuterConfig:
    """ReST-EM: sample self-edits, train and examine one adapter on each, learn from the best."""

    rounds: int = 3  # how many times E-step and M-step (paper: 2)
    contexts: int = 64  # contexts in a round, each round takes the next ones; 0: 64, or all if there are fewer (paper: 50)
    samples: int = 8  # self-edits of each context (paper: 5)
    temperature: float = 1.0  # of sampling self-edits (paper: 1)
    top_p: float = 1.0  # sample among the likeliest tokens with this much probability (paper: 0.95)
    reward: str = "exam"  # exam | likelihood: share of the exam answered right, or how likely its answers are to the adapted student (finer: hardly any ties)
    select: str = "best"  # best | all-best | positive | random: which self-edits of a context the policy learns from
    at_once: int = 16  # adapters trained side by side; more need more memory
    memory: float = 0.0  # GB that adapters trained side by side may take: fewer at once if they need more; 0: no limit
    m_step: MStepConfig = field(default_factory=MStepConfig)

    def __post_init__(self):
        at_least(self, rounds=0, contexts=0, samples=1, temperature=0, top_p=0, at_once=1, memory=0)
        one_of(
            self, reward=("exam", "likelihood"), select=("best", "all-best", "positive", "random")
        )


def forgetful(step, compute):
    """The simplest memory: none. A run folder (runs.py) has one that outlives a kill."""
    return compute()


def rest_em(
    policy,
    tokenizer,
    task,
    contexts,
    config=OuterConfig(),
    inner=InnerConfig(),
    student=None,
    reward=None,
    seed=0,
    remember=forgetful,
    keep=forgetful,
    on_round=None,
):
    """Teach `policy` (changed in place) to write better self-edits; returns [{'trials': ..., 'winners': ...}] by round.

    task: has prompt, parse, baseline, lessons, exam, answers, grade, describe, edit_tokens, answer_tokens, stop (tasks/knowledge.py is one).
    student: the model that trains on the self-edits; None is SEAL, where it is the policy itself.
    reward: function(student, tokenizer, task, contexts, adapters) -> one dict with a 'reward' for each adapter; None: config.reward.
    remember(step, compute), keep(step, compute): return compute() or, after a kill, what it returned before it; remember
        holds trials, keep holds tensors.
    on_round(round, record): called after each M-step.
    """
    history = []
    for r in range(1, config.rounds + 1):
        n = min(config.contexts or 64, len(contexts))
        batch = [contexts[i % len(contexts)] for i in range((r - 1) * n, r * n)]
        trials = e_step(
            policy,
            tokenizer,
            task,
            batch,
            config,
            inner,
            student or policy,
            reward or REWARDS[config.reward],
            seed,
            r,
            lambda step, compute: remember(f"{r} {step}", compute),
        )
        winners = select(trials, config.select, np.random.default_rng(mix_seed(seed, r)))
        m_step(
            policy,
            task,
            batch,
            winners,
            config,
            mix_seed(seed, r),
            lambda compute: keep(f"{r} M-step", compute),
        )
        history.append({"trials": trials, "winners": winners})
        if on_round:
            on_round(r, history[-1])
    return history


def e_step(
    policy,
    tokenizer,
    task,
    contexts,
    config,
    inner,
    student,
    reward,
    seed=0,
    r=1,
    remember=forgetful,
):
    """Sample self-edits of each context, adapt, examine: a list of trials (see try_out), context by context.

    All adapters start from the weights that `seed` gives, so that luck does not choose among self-edits; texts are
    drawn anew in each round r.
    """
    trials = []
    for i, part in parts(contexts, config):

        def explore():
            texts = sample(
                policy,
                tokenizer,
                [task.prompt(c) for c in part],
                config.samples,
                task.edit_tokens,
                config.temperature,
                config.top_p,
                seed=mix_seed(seed, r, i),
            )
            pairs = [(c, text) for c, written in zip(part, texts) for text in written]
            return try_out(
                student, tokenizer, task, pairs, inner, config.at_once, reward, seed, config.memory
            )

        trials += remember(f"contexts {i + 1}-{i + len(part)}", explore)
    if (
        config.select == "positive"
    ):  # needs to know what training gives that no policy had a hand in
        baseline = remember(
            "baseline",
            lambda: try_out(
                student,
                tokenizer,
                task,
                [(c, task.baseline(c)) for c in contexts],
                inner,
                config.at_once,
                reward,
                seed,
                config.memory,
            ),
        )
        for trial, base in zip(trials, [b for b in baseline for _ in range(config.samples)]):
            trial["baseline"] = base["reward"]
    return trials


def parts(contexts, config):
    """The E-step in parts of a few batches each: a kill loses one part at most. [(index of the first, contexts)]"""
    size = max(1, 4 * config.at_once // config.samples)
    return [(i, contexts[i : i + size]) for i in range(0, len(contexts), size)]


def try_out(student, tokenizer, task, pairs, inner, at_once, reward=None, seed=0, memory=0.0):
    """The reward of each (context, self-edit): train an adapter on it, sit the exam.

    A self-edit is a text of the policy, or a SelfEdit. Returns a trial for each pair, in order: a dict with 'context'
    (its id), 'text', 'reward', 'seed', 'seconds', and 'invalid' (the reason) if the text is no self-edit or training
    on it failed: then the reward is 0.
    """
    reward, valid = reward or exam_score, []
    once = {
        (context.id, edit): (context, edit) for context, edit in pairs
    }  # the same text for the same context trains one adapter
    trials = {
        key: {
            "context": key[0],
            "text": key[1] if isinstance(key[1], str) else None,
            "reward": 0.0,
            "seed": seed,
            "seconds": 0.0,
        }
        for key in once
    }
    for key, (context, edit) in once.items():
        try:
            valid.append(
                (trials[key], context, task.parse(context, edit) if isinstance(edit, str) else edit)
            )
        except InvalidSelfEdit as e:
            trials[key]["invalid"] = str(e)
        if isinstance(edit, str) and (description := task.describe(context, edit)) is not None:
            trials[key]["description"] = description
    valid.sort(
        key=lambda v: sum(len(d.ids) for d in v[2].documents)
    )  # like lengths together: less padding
    for indices in side_by_side(student, [edit for _, _, edit in valid], inner, at_once, memory):
        group, start = [valid[i] for i in indices], time.time()
        adapters = adapt(student, [edit for _, _, edit in group], inner, seed)
        try:
            results = reward(
                student, tokenizer, task, [context for _, context, _ in group], adapters
            )
        finally:
            adapters.remove()
        for k, ((trial, _, _), result) in enumerate(zip(group, results)):
            trial.update(result, seconds=round((time.time() - start) / len(group), 4))
            if k in adapters.failed:
                trial.update(reward=0.0, invalid=adapters.failed[k])
    return [dict(trials[context.id, edit]) for context, edit in pairs]


def exam_score(student, tokenizer, task, contexts, adapters=None, in_context=False):
    """The reward of the paper: the share of the exam that the adapted student gets right, the context out of sight.

    adapters: one for each context, attached to the student already; not looked at here, other rewards may. None: the
    plain student. in_context: the context in front of each question.
    """
    exams = [task.exam(c, in_context) for c in contexts]
    most = max(len(exam) for exam in exams)
    # Adapters need equal groups of rows: a shorter exam is filled up with its last question.
    prompts = [p for exam in exams for p in exam + (exam[-1:] * (most - len(exam)))]
    texts = [
        text
        for (text,) in sample(
            student,
            tokenizer,
            prompts,
            max_tokens=task.answer_tokens,
            temperature=0,
            stop=task.stop,
        )
    ]
    results = []
    for i, (context, exam) in enumerate(zip(contexts, exams)):
        answers = [text.strip() for text in texts[i * most : i * most + len(exam)]]
        grades = task.grade(context, answers)
        results.append({"reward": float(np.mean(grades)), "answers": answers, "grades": grades})
    return results


@torch.no_grad()
def answer_likelihood(student, tokenizer, task, contexts, adapters=None):
    """A finer reward, for models that fail most exams: the geometric mean of the probabilities that the adapted student gives
    to the tokens of the right answers, the context out of sight.

    Paper: the share of right answers. Here, if asked for: with five questions, of which a small model answers one, most
    self-edits of a context have the same share, and there is nothing to choose.
    """
    loss = losses(student, [[[d] for d in task.answers(c)] for c in contexts])  # (K,)
    return [{"reward": value} for value in torch.exp(-loss).tolist()]


REWARDS = {"exam": exam_score, "likelihood": answer_likelihood}


def select(trials, how, rng):
    """Which trials the policy learns from; an invalid self-edit is never one of them.

    best: one of each context, with its highest reward, ties broken at random. all-best: all that have its highest reward.
    In both, a context whose self-edits all score alike teaches nothing and is skipped. positive: all above the baseline.
    random: any one of each context, the control.
    """
    winners = []
    for context in dict.fromkeys(t["context"] for t in trials):
        all_of_it = [t for t in trials if t["context"] == context]
        valid = [t for t in all_of_it if "invalid" not in t]
        if how == "random":
            best = valid
        elif how == "positive":
            winners += [t for t in valid if t["reward"] > t["baseline"]]
            continue
        elif len({t["reward"] for t in all_of_it}) > 1:
            best = [t for t in valid if t["reward"] == max(v["reward"] for v in valid)]
        else:
            best = []
        if how == "all-best":
            winners += best
        elif best:
            winners.append(best[rng.integers(len(best))])
    return winners


def m_step(policy, task, contexts, winners, config, seed, keep=lambda compute: compute()):
    """Fine-tune the policy on the winners: the inner loop once more, on prompts and the self-edits they should give."""
    if not winners:
        return
    by_id = {c.id: c for c in contexts}

    def train():
        documents = task.lessons([(by_id[w["context"]], w["text"]) for w in winners], seed)
        adapters = adapt(policy, [SelfEdit(tuple(documents))], config.m_step, seed)
        state = adapters.state()
        adapters.remove()
        if adapters.failed:
            raise UserError(
                f"the M-step failed ({adapters.failed[0]}): try a lower --outer.m-step.lr"
            )
        return state

    apply(
        policy, keep(train), config.m_step
    )  # from the saved tensors, so that a run that goes on after a kill does the same


def apply(policy, state, config):
    """Merge one trained adapter into the policy's weights."""
    adapters = attach(policy, 1, LoRAConfig(config.rank, config.alpha))
    adapters.load(state)
    adapters.merge()
    adapters.remove()


def mix_seed(*numbers):
    """One seed from several, so that rounds and batches draw different numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
