"""The inner loop: K self-edits in, K adapters out (paper section 3.1, `SFT(theta, SE)`)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .config import Settings
from .lora import Adapters, LoRAConfig, attach
from .model import GPT
from .selfedit import Document, SelfEdit

Rows = list[list[Document]]  # the documents of one gradient step, packed into rows
Loss = Callable[[GPT, list[Rows]], Tensor]  # of a gradient step: (K,), each adapter's own
OnStep = Callable[[int, int, Tensor], None]  # (step, steps, loss of the adapters still training)


@dataclass(frozen=True)
class InnerConfig(Settings):
    """How one self-edit becomes one adapter; a self-edit's own lr and epochs replace these.

    Paper: every line is padded to 2048 tokens, LoRA on q and v. Here: documents are packed, LoRA on
    every linear layer, because padding was 98 % of the work and the MLP learns facts best.
    """

    lr: float = 3e-3  # learning rate (paper: 1e-3)
    epochs: int = 8  # passes over the self-edit's documents (paper: 10)
    batch: int = 0  # documents in one gradient step; 0: all of them (paper: 1)
    decay: Literal["none", "linear"] = "none"  # of lr, over an adapter's steps (paper: linear)
    rank: int = 16  # LoRA rank (paper: 32)
    alpha: float = 32.0  # LoRA scale is alpha / rank (paper: 64)
    row_tokens: int = 256  # documents of a step are packed into rows of about so many tokens
    recompute: bool = False  # gradient checkpointing: less memory, a third more time

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(lr=0, epochs=1, batch=0, rank=1, row_tokens=1)


def adapt(
    model: GPT,
    edits: list[SelfEdit],
    config: InnerConfig = InnerConfig(),
    seed: int = 0,
    start: dict[str, Tensor] | None = None,
    on_step: OnStep | None = None,
    loss: Loss | None = None,
) -> Adapters:
    """Train one adapter on each of K self-edits, all at once: `with adapt(...) as adapters`.

    The loss is the SUM over adapters of each one's own mean over the tokens that carry loss, so no
    gradient mixes, and Adam works element by element: K at once equal K one by one. An adapter
    that has had its steps leaves the batch. One whose loss becomes NaN or infinite is set aside:
    its update is zero and `adapters.failed[k]` gives the reason; the others do not notice.
    `adapters.losses[k]` lists adapter k's loss at every step.

    start: an Adapters.state() to go on from, of one adapter or of K. on_step: called after each.
    loss: another one than next-token prediction, losses() below.
    Raises ValueError if there is no edit, an empty one, or a document longer than the model can
    read; RuntimeError if the model has adapters already. The model is left plain then.
    """
    if not edits or not all(edit.documents for edit in edits):
        raise ValueError("adapt() needs self-edits, and each needs at least one document")
    courses = [Course.of(edit, config, seed) for edit in edits]
    adapters = attach(model, len(edits), LoRAConfig(config.rank, config.alpha), seed)
    model.recompute = config.recompute
    try:
        if start:
            adapters.load(start)
        train(model, adapters, courses, config.decay, on_step, loss or losses)
    except BaseException:
        adapters.remove()
        raise
    finally:
        model.recompute = False
    return adapters


@dataclass
class Course:
    """What one adapter has to learn, and what became of it."""

    steps: list[Rows]
    lr: float
    losses: list[float] = field(default_factory=list)
    failed: str = ""
    weights: list[Tensor] = field(default_factory=list)  # in the end: each A (R, in), B (out, R)

    @classmethod
    def of(cls, edit: SelfEdit, config: InnerConfig, seed: int) -> "Course":
        """All gradient steps of one self-edit."""
        lr = config.lr if edit.lr is None else edit.lr
        epochs = config.epochs if edit.epochs is None else edit.epochs
        documents, rng, steps = list(edit.documents), np.random.default_rng(seed), []
        size = config.batch or len(documents)
        for _ in range(epochs):
            if config.batch:  # the order matters only if an epoch has several steps
                documents = [documents[i] for i in rng.permutation(len(documents))]
            for i in range(0, len(documents), size):
                steps.append(pack(documents[i : i + size], config.row_tokens))
        return cls(steps, lr)

    def rate(self, step: int, decay: str) -> float:
        """The learning rate of a step, counted from 0."""
        return self.lr * (1 - step / len(self.steps) if decay == "linear" else 1)

    def note(self, loss: float) -> None:
        self.losses.append(loss)
        if not np.isfinite(loss):
            self.failed = f"loss became {loss} at step {len(self.losses)}"

    def is_over(self) -> bool:
        return bool(self.failed) or len(self.losses) == len(self.steps)

    def end(self, weights: list[Tensor]) -> None:
        """Keep the adapter's last weights; those of one that failed are zero."""
        if not self.failed and not all(w.isfinite().all() for w in weights):
            self.failed = "weights became infinite in the last step"
        self.weights = [torch.zeros_like(w) if self.failed else w.clone() for w in weights]


def train(
    model: GPT,
    adapters: Adapters,
    courses: list[Course],
    decay: str,
    on_step: OnStep | None,
    losses: Loss,
) -> None:
    """The steps of adapt(): courses[k] is adapter k's."""
    cohort, most = Cohort(adapters, courses), max(len(course.steps) for course in courses)
    cohort.let_go()  # those without a step
    for step in range(most):
        loss = losses(model, [course.steps[step] for course in cohort.courses])  # (K,)
        gradients = torch.autograd.grad(loss.sum(), adapters.parameters())
        rates = torch.tensor([course.rate(step, decay) for course in cohort.courses])  # (K,)
        cohort.adam.step(adapters.parameters(), gradients, rates)
        for course, value in zip(cohort.courses, loss.tolist()):
            course.note(value)
        if on_step:
            on_step(step + 1, most, loss)
        cohort.let_go()
        if not cohort.courses:
            break
    adapters.replace(torch.stack(p) for p in zip(*(course.weights for course in courses)))
    adapters.losses = [course.losses for course in courses]
    adapters.failed = {k: course.failed for k, course in enumerate(courses) if course.failed}


class Cohort:
    """The adapters that still train, side by side: courses[i] is that of row group i."""

    def __init__(self, adapters: Adapters, courses: list[Course]) -> None:
        self.adapters, self.courses = adapters, list(courses)
        self.adam = Adam(adapters.parameters())

    @torch.no_grad()
    def let_go(self) -> None:
        """Adapters whose course is over leave the batch; the others close up."""
        stay = [i for i, course in enumerate(self.courses) if not course.is_over()]
        if len(stay) == len(self.courses):
            return
        for i, course in enumerate(self.courses):
            if course.is_over():
                course.end([p[i] for p in self.adapters.parameters()])
        self.courses = [self.courses[i] for i in stay]
        if stay:
            self.adapters.replace([p[stay] for p in self.adapters.parameters()])
            self.adam.m = [m[stay] for m in self.adam.m]  # each (fewer K, ., .)
            self.adam.v = [v[stay] for v in self.adam.v]


class Adam:
    """Adam (arXiv 1412.6980) whose learning rate is a vector: one for each adapter."""

    def __init__(
        self, params: list[nn.Parameter], betas: tuple = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.m, self.v = ([torch.zeros_like(p) for p in params] for _ in range(2))
        self.betas, self.eps, self.steps = betas, eps, 0

    @torch.no_grad()
    def step(self, params: list[nn.Parameter], gradients: tuple[Tensor, ...], lr: Tensor) -> None:
        """params and gradients: lists of (K, ., .); lr: (K,)."""
        self.steps += 1
        b1, b2 = self.betas
        scale = (1 - b2**self.steps) ** 0.5  # both bias corrections are folded into rate and eps
        rate = (-lr * scale / (1 - b1**self.steps)).to(params[0])[:, None, None]  # (K, 1, 1)
        for p, g, m, v in zip(params, gradients, self.m, self.v):
            m.lerp_(g, 1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            p.addcmul_(m / v.sqrt().add_(self.eps * scale), rate)


def losses(model: GPT, rows: list[Rows]) -> Tensor:
    """rows[k]: the packed rows of adapter k. Returns (K,): each one's loss.

    That is the weighted sum over its tokens that carry loss, divided by how many they are.
    """
    device = model.wte.weight.device
    ids, docs, targets, weights = (x.to(device) for x in to_tensors(rows))  # each (K b, T)
    hidden = model.hidden(ids, docs)  # (K b, T, C)
    carries = targets >= 0  # (K b, T), b rows an adapter
    each = cross_entropy(model.head, hidden[carries], targets[carries])  # (N,), N carrying tokens
    owner = carries.view(len(rows), -1).nonzero()[:, 0]  # (N,)
    total = each.new_zeros(len(rows)).index_add(0, owner, each * weights[carries])  # (K,)
    return total / owner.bincount(minlength=len(rows)).clamp(min=1)  # (K,)


def cross_entropy(head: nn.Linear, hidden: Tensor, targets: Tensor, most: int = 2**24) -> Tensor:
    """The loss (N,) at hidden (N, C), targets (N,), with at most `most` logits held at once.

    An open model has 50,000 to 150,000 logits a token: kept for the backward pass, they would
    outweigh all else.
    """

    def part(h: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(head(h).float(), t, reduction="none")  # (size,)

    size = max(1, most // head.out_features)
    if len(hidden) <= size:
        return part(hidden, targets)  # (N,)
    parts = zip(hidden.split(size), targets.split(size))
    return torch.cat([checkpoint(part, h, t, use_reentrant=False) for h, t in parts])  # (N,)


def pack(documents: list[Document], row_tokens: int) -> Rows:
    """Fill rows of at most `row_tokens` tokens in order; a longer document has one to itself."""
    rows, room = [], 0
    for document in documents:
        if len(document.ids) > room or not rows:
            rows.append([])
            room = row_tokens
        rows[-1].append(document)
        room -= len(document.ids)
    return rows


def to_tensors(rows: list[Rows]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rows[k]: packed rows of adapter k -> ids, docs, targets, weights, each (K b, T).

    b and T are the largest, the rest is padding. docs numbers the documents of a row, -1 is padding
    (model.py). targets[t] is the token to predict at t, or -1 where there is none: at a document's
    end, at padding, and before a token that carries no loss. weights[t] is the weight of its loss.
    """
    b = max(len(r) for r in rows)
    flat = [row for r in rows for row in r + [[]] * (b - len(r))]  # K b rows
    shape = len(flat), max(sum(len(d.ids) for d in row) for row in flat)  # (K b, T)
    ids, docs, targets = np.zeros(shape, np.int64), np.full(shape, -1), np.full(shape, -1)
    weights = np.zeros(shape, np.float32)
    for i, row in enumerate(flat):
        t = 0
        for number, d in enumerate(row):
            end = t + len(d.ids)
            ids[i, t:end], docs[i, t:end] = d.ids, number
            weights[i, t : end - 1] = d.weights[1:]
            targets[i, t : end - 1] = np.where(weights[i, t : end - 1] != 0, d.ids[1:], -1)
            t = end
    ids, docs, targets, weights = map(torch.from_numpy, (ids, docs, targets, weights))
    return ids, docs, targets, weights  # each (K b, T)
