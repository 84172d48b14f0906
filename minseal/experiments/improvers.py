"""M-steps beside ReST-EM: what a policy learns from the same trials. Each is an Improve (outer.py).

BeatPassage  fine-tuning on every self-edit that taught more than its passage alone
Reinforce    the policy gradient, a baseline taken off the reward (Williams 1992)
GRPO         several passes over the same trials, the ratio to the old policy clipped
DPO          the best of a context against its worst, no reward in the loss

The policy at the beginning of the round is the old policy, and the reference, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import UserError
from ..inner import InnerConfig, Loss, Rows, adapt, pack
from ..lab.proxies import flat, log_probs
from ..model import GPT
from ..outer import Improve, MStepConfig, OuterConfig, ReSTEM, Tried, try_out
from ..rewards import REWARDS, Reward, exam
from ..selfedit import Document, SelfEdit, Task

State = dict[str, Tensor]


@dataclass(frozen=True)
class Written(Document):
    """A self-edit after its prompt: n tokens that carry loss, and how good it was."""

    old: Tensor = field(kw_only=True, compare=False)  # (n,) log-probabilities, the old policy's
    advantage: float = 0.0
    worse: "Written | None" = None  # the one of the same context that it is preferred to


@dataclass(frozen=True)
class BeatPassage:
    """Fine-tune the policy on all self-edits that beat training on the passage alone.

    alone, reward: the inner loop and the reward that the self-edits had, for the passages.
    """

    inner: InnerConfig = MStepConfig()
    alone: InnerConfig = InnerConfig()
    reward: Reward = exam

    def __call__(self, policy: GPT, task: Task, tried: Tried, seed: int) -> State:
        passages = [(context, task.baseline) for context, _ in tried]
        luck = tried[0][1][0].seed or 0  # the first weights that the self-edits had
        bars = try_out(policy, task, passages, self.alone, self.reward, luck)
        found = [
            (context, t.text)
            for (context, trials), bar in zip(tried, bars)
            for t in trials
            if t.invalid is None and t.reward > bar.reward
        ]
        return fit(policy, task.lessons(found, seed) if found else [], self.inner, seed)


@dataclass(frozen=True)
class Reinforce:
    """REINFORCE: the loss is -A log p(text), A the reward less the mean of the context's others.

    One pass, since its gradient is right at the policy that wrote the texts alone. The loss is the
    next token's, each text weighted by A; below 0 it is unlearnt.
    """

    inner: InnerConfig = replace(MStepConfig(), epochs=1)

    def __call__(self, policy: GPT, task: Task, tried: Tried, seed: int) -> State:
        documents = []
        for context, trials in tried:
            for t, advantage in zip(trials, left_out([t.reward for t in trials])):
                if advantage:
                    documents.append(task.lesson(context, t.text).weighted(advantage))
        return fit(policy, documents, self.inner, seed)


@dataclass(frozen=True)
class GRPO:
    """Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300, equation 3).

    Advantages are rewards normalised within a context; no critic. A text's loss is the mean over
    its tokens of -min(ratio A, clipped ratio A) + kl * (the third estimator of KL, equation 4).
    Paper: the reference is the first policy of all, or of an iteration. Here: of the round.
    """

    inner: InnerConfig = replace(MStepConfig(), batch=32)
    clip: float = 0.2  # of the ratio to the old policy
    kl: float = 0.04  # weight of the KL divergence from the reference

    def __call__(self, policy: GPT, task: Task, tried: Tried, seed: int) -> State:
        documents = []
        for context, trials in tried:
            for t, advantage in zip(trials, normalised([t.reward for t in trials])):
                if advantage:
                    lesson = vars(task.lesson(context, t.text))
                    documents.append(Written(**lesson, old=torch.empty(0), advantage=advantage))
        loss = per_text(self.of_text)
        return fit(policy, with_old(policy, documents), self.inner, seed, loss)

    def of_text(self, text: Written, logs: Tensor) -> Tensor:
        """The loss of one text whose n tokens have these log-probabilities (n,) now."""
        ratio, a = (logs - text.old).exp(), text.advantage  # (n,)
        gained = torch.minimum(ratio * a, ratio.clamp(1 - self.clip, 1 + self.clip) * a)  # (n,)
        drift = 1 / ratio - 1 + (logs - text.old)  # (n,)
        return (self.kl * drift - gained).mean()


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation (arXiv 2305.18290, equation 7): each context's best, worst.

    The loss of a pair is -log sigmoid(beta (gain of the best - gain of the worst)), a gain being
    how much likelier the whole text is than under the reference. Ties are broken at random.
    """

    inner: InnerConfig = MStepConfig()
    beta: float = 0.1

    def __call__(self, policy: GPT, task: Task, tried: Tried, seed: int) -> State:
        rng, best, worst = np.random.default_rng(seed), [], []
        for context, trials in tried:
            rewards = [t.reward for t in trials]
            if min(rewards) == max(rewards):
                continue
            for side, wanted in ((best, max(rewards)), (worst, min(rewards))):
                text = rng.choice([t.text for t in trials if t.reward == wanted])
                side.append(Written(**vars(task.lesson(context, str(text))), old=torch.empty(0)))
        pairs = zip(with_old(policy, best), with_old(policy, worst))
        return fit(policy, [replace(b, worse=w) for b, w in pairs], self.inner, seed, self.loss)

    def loss(self, model: GPT, rows: list[Rows]) -> Tensor:
        """Of a gradient step: (K,). The worse ones are read in rows of their own."""
        worse = [[[d.worse for d in row] for row in mine] for mine in rows]
        gains = [
            torch.stack(
                [(logs - d.old).sum() for d, logs in zip(flat(side), log_probs(model, side))]
            )
            for side in (rows, worse)
        ]  # two (N,), N pairs
        return mean_of_each(-F.logsigmoid(self.beta * (gains[0] - gains[1])), rows)


LOOPS = ("ReST-EM", "beats-passage", "GRPO", "DPO", "REINFORCE", "random")


def improve_of(name: str, outer: OuterConfig, inner: InnerConfig, clip: float = 0.2) -> Improve:
    """The M-step of that name with the settings of an outer loop and its inner loop; GRPO's clip.

    All but `beats-passage`, which has more to learn, take about as many gradient steps: REINFORCE
    makes one pass over all texts, GRPO several over larger steps.
    """
    m_step = outer.m_step
    return {
        "ReST-EM": ReSTEM("best", m_step),
        "beats-passage": BeatPassage(m_step, inner, REWARDS[outer.reward]),
        "GRPO": GRPO(replace(m_step, batch=4 * m_step.batch), clip),
        "DPO": DPO(m_step),
        "REINFORCE": Reinforce(replace(m_step, epochs=1)),
        "random": ReSTEM("random", m_step),
    }[name]


def careful(improve: Improve) -> Improve:
    """The same; where its training fails the policy stays as it is, and the log says why."""

    def attempt(policy: GPT, task: Task, tried: Tried, seed: int) -> dict[str, Any]:
        try:
            return improve(policy, task, tried, seed)
        except UserError as e:
            return {"failed": str(e)}  # merges nothing

    return attempt


def left_out(rewards: Sequence[float]) -> list[float]:
    """Each reward less the mean of the others: what it says of itself alone. Their sum is 0."""
    n, total = len(rewards), sum(rewards)
    if n < 2 or min(rewards) == max(rewards):
        return [0.0] * n
    return [(n * r - total) / (n - 1) for r in rewards]


def normalised(rewards: Sequence[float]) -> list[float]:
    """(reward - mean) / standard deviation, as in GRPO; 0 where all are alike. Their sum is 0."""
    if min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    return ((np.array(rewards) - np.mean(rewards)) / np.std(rewards)).tolist()


def per_text(of_text: Callable[[Written, Tensor], Tensor]) -> Loss:
    """The loss that is the mean over an adapter's texts of of_text(text, its log-probabilities)."""

    def loss(model: GPT, rows: list[Rows]) -> Tensor:
        each = [of_text(text, logs) for text, logs in zip(flat(rows), log_probs(model, rows))]
        return mean_of_each(torch.stack(each), rows)

    return loss


def with_old(policy: GPT, documents: list[Written]) -> list[Written]:
    """The same documents with the log-probabilities that the policy gives them now."""
    out: list[Written] = []
    with torch.no_grad():
        for row in pack(documents, row_tokens=1024):
            out += [replace(d, old=logs) for d, logs in zip(row, log_probs(policy, [[row]]))]
    return out


def mean_of_each(values: Tensor, rows: list[Rows]) -> Tensor:
    """values (N,), one a document -> (K,): the mean of each adapter's."""
    return torch.stack([part.mean() for part in values.split([sum(map(len, m)) for m in rows])])


def fit(
    policy: GPT,
    documents: Sequence[Document],
    inner: InnerConfig,
    seed: int,
    loss: Loss | None = None,
) -> State:
    """Train one adapter on them: its state, or {} if there are none. UserError if that fails."""
    if not documents:
        return {}
    with adapt(policy, [SelfEdit(tuple(documents))], inner, seed, loss=loss) as adapters:
        if adapters.failed:
            raise UserError(f"M-step: {adapters.failed[0]}; try a lower --outer.m-step.lr")
        return adapters.state()
