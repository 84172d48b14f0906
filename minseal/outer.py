"""The outer loop: a policy learns to write better self-edits (paper section 3.1, Algorithm 1).

for each round:
    E-step  sample self-edits of each context; adapt the student on each; sit the exam
    M-step  policy <- improve(policy, task, what was tried): ReST-EM, or another
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor
from tqdm import tqdm

from .config import Settings, mix_seed
from .files import UserError
from .inner import InnerConfig, Loss, adapt
from .lora import merge_state
from .memory import side_by_side
from .model import GPT
from .rewards import REWARDS, Reward, exam
from .sample import sample
from .selfedit import InvalidSelfEdit, SelfEdit, Task


@dataclass
class Trial:
    """One self-edit of one context, tried out."""

    context: str  # its id
    reward: float = 0.0
    text: str | None = None  # as the policy wrote it; None: nobody wrote it
    seed: int | None = None  # of the adapter's first weights
    seconds: float = 0.0  # its share of training and exam
    answers: list[str] = field(default_factory=list)
    grades: list[float] = field(default_factory=list)
    invalid: str | None = None  # why it is no self-edit, or why training failed: then reward is 0
    chose: dict[str, Any] = field(default_factory=dict)  # lr, epochs, ...; an experiment's marks


Tried = list[tuple[Any, list[Trial]]]  # each context of a round, with the trials of its self-edits
Edit = str | SelfEdit | Callable[[Any], SelfEdit]
Once = Callable[[str, Callable[[], Any]], Any]
# An M-step: (policy, task, what was tried, seed) -> an Adapters.state() to be merged, or {}.
Improve = Callable[[GPT, Task, Tried, int], dict[str, Tensor]]


@dataclass(frozen=True)
class MStepConfig(InnerConfig):
    """The M-step is the inner loop once more, on the winners, with settings of its own."""

    lr: float = 1e-3  # learning rate of the M-step (paper: 3e-4)
    epochs: int = 4  # passes over the winners (paper: 2); the tiny model is new to it
    batch: int = 8  # winners in one gradient step (paper: 10)
    rank: int = 32  # LoRA rank of the M-step, merged afterwards (paper: 64)
    alpha: float = 64.0  # LoRA scale is alpha / rank (paper: 128)


@dataclass(frozen=True)
class OuterConfig(Settings):
    """The outer loop: sample self-edits, train and examine one adapter on each, learn from them."""

    rounds: int = 3  # how many times E-step and M-step (paper: 2)
    contexts: int = 64  # contexts in a round, each round takes the next ones (paper: 50)
    samples: int = 8  # self-edits of each context (paper: 5)
    temperature: float = 1.0  # of sampling self-edits (paper: 1)
    top_p: float = 1.0  # sample among the likeliest tokens with this much probability (paper: .95)
    reward: Literal["exam", "likelihood"] = "exam"  # share right, or how likely the answers are
    select: Literal["best", "all-best", "random"] = "best"  # which self-edits are learnt from
    at_once: int = 16  # adapters trained side by side; more need more memory
    memory: float = 0.0  # GB that these may take: fewer at once if they need more; 0: no limit
    m_step: MStepConfig = MStepConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(rounds=0, contexts=1, samples=1, temperature=0, top_p=0, at_once=1, memory=0)


def outer_loop(
    policy: GPT,
    task: Task,
    contexts: list[Any],
    config: OuterConfig = OuterConfig(),
    inner: InnerConfig = InnerConfig(),
    *,
    student: GPT | None = None,
    reward: Reward | None = None,
    improve: Improve | None = None,
    seed: int = 0,
    step: Once = lambda name, compute: compute(),
    on_round: Callable[[int, Tried], None] = lambda r, tried: None,
) -> list[Tried]:
    """Teach `policy` (changed in place) to write better self-edits; returns what each round tried.

    student: the model that trains on the self-edits; None is SEAL, where it is the policy itself.
    reward, improve: None takes those that `config` names.
    step(name, compute): returns compute(), or what it returned before a kill (lab/run.py).
    on_round(round, what it tried): called after each M-step.
    """
    student, reward = student or policy, reward or REWARDS[config.reward]
    improve = improve or ReSTEM(config.select, config.m_step)
    n, k = min(config.contexts, len(contexts)), config.samples
    size = max(1, 4 * config.at_once // k)  # contexts in a step: a kill loses no more

    def e_step(part: list[Any], luck: int) -> list[Trial]:
        prompts = [task.prompt(context) for context in part]
        how = dict(temperature=config.temperature, top_p=config.top_p, seed=luck)
        texts = sample(policy, task.tokenizer, prompts, k, task.edit_tokens, **how)
        pairs = [(context, text) for context, written in zip(part, texts) for text in written]
        return try_out(student, task, pairs, inner, reward, seed, config.at_once, config.memory)

    history = []
    for r in range(1, config.rounds + 1):
        batch = [contexts[i % len(contexts)] for i in range((r - 1) * n, r * n)]
        tried: Tried = []
        for i in range(0, n, size):
            part, luck = batch[i : i + size], mix_seed(seed, r, i)
            trials = step(f"{r} contexts {i + 1}-{i + len(part)}", lambda: e_step(part, luck))
            tried += [(c, trials[j * k : (j + 1) * k]) for j, c in enumerate(part)]
        state = step(f"{r} M-step", lambda: improve(policy, task, tried, mix_seed(seed, r)))
        merge_state(policy, state)
        history.append(tried)
        on_round(r, tried)
    return history


def try_out(
    student: GPT,
    task: Task,
    pairs: list[tuple[Any, Edit]],
    inner: InnerConfig = InnerConfig(),
    reward: Reward = exam,
    seed: int = 0,
    at_once: int = 16,
    memory: float = 0.0,
    loss: Loss | None = None,
) -> list[Trial]:
    """Train an adapter on each (context, self-edit) and give it its reward: a Trial each, in order.

    A self-edit is a text of the policy, a SelfEdit, or a function that makes one of the context.
    All adapters start from the weights that `seed` gives, so that luck does not choose among them;
    the same text for the same context trains one. at_once, memory: see OuterConfig; loss: adapt().
    """
    keys = [(c.id, edit if isinstance(edit, str) else id(edit)) for c, edit in pairs]
    trials: dict[tuple, Trial] = {}
    valid: list[tuple[Trial, Any, SelfEdit]] = []
    for key, (context, edit) in zip(keys, pairs):
        if key in trials:
            continue
        text = edit if isinstance(edit, str) else None
        trials[key] = trial = Trial(context.id, text=text, seed=seed)
        try:
            if not isinstance(edit, SelfEdit):
                edit = edit(context) if text is None else task.parse(context, text)
            longest = max((len(d.ids) for d in edit.documents), default=0)
            if not 0 < longest <= student.config.block_size:
                raise InvalidSelfEdit(f"its longest document has {longest} tokens")
            trial.chose = edit.chose
            valid.append((trial, context, edit))
        except InvalidSelfEdit as e:
            trial.invalid = str(e)
    valid.sort(key=lambda v: v[2].length())  # like lengths together: less padding
    groups = side_by_side(student, [edit for *_, edit in valid], inner, at_once, memory)
    for group in tqdm(groups, "adapting", leave=False, disable=None, delay=2):
        start = time.time()
        members, contexts, edits = zip(*(valid[i] for i in group))
        with adapt(student, list(edits), inner, seed, loss=loss) as adapters:
            outcomes = reward(student, task, list(contexts), adapters)
        for k, (trial, outcome) in enumerate(zip(members, outcomes)):
            trial.answers, trial.grades = outcome.answers, outcome.grades
            trial.invalid = adapters.failed.get(k)
            trial.reward = 0.0 if trial.invalid else outcome.reward
            trial.seconds = round((time.time() - start) / len(group), 4)
    return [Trial(**asdict(trials[key])) for key in keys]


@dataclass(frozen=True)
class ReSTEM:
    """ReST-EM (arXiv 2312.06585): fine-tune the policy on the best self-edits of each context.

    select: best: one of each context with its highest reward, ties broken at random. all-best: all
    that have it. random: any one, the control. Invalid self-edits are never among them.
    """

    select: Literal["best", "all-best", "random"] = "best"
    inner: InnerConfig = MStepConfig()

    def __call__(self, policy: GPT, task: Task, tried: Tried, seed: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(seed)
        winners = [(c, t.text) for c, trials in tried for t in self.choose(trials, rng)]
        if not winners:
            return {}
        lessons = SelfEdit(tuple(task.lessons(winners, seed)))
        with adapt(policy, [lessons], self.inner, seed) as adapters:
            if adapters.failed:
                raise UserError(f"M-step: {adapters.failed[0]}; try a lower --outer.m-step.lr")
            return adapters.state()

    def choose(self, trials: list[Trial], rng: np.random.Generator) -> list[Trial]:
        """The winners among the trials of one context.

        Paper: the best, even if all are equal. Here: where all score alike, none: there is
        nothing to learn.
        """
        valid = [t for t in trials if t.invalid is None]
        if self.select == "random":
            best = valid
        elif len({t.reward for t in trials}) > 1:
            best = [t for t in valid if t.reward == max(v.reward for v in valid)]
        else:
            best = []
        if self.select == "all-best":
            return best
        return [best[rng.integers(len(best))]] if best else []
