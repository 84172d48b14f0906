"""The inner loop: K self-edits in, K adapters out (paper section 3.1, `SFT(theta, SE)`)."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from .errors import at_least, one_of
from .lora import LoRAConfig, attach


@dataclass(frozen=True)
class InnerConfig:
    """How one self-edit becomes one adapter; a self-edit's own lr and epochs replace these."""

    lr: float = 3e-3  # learning rate (paper: 1e-3)
    epochs: int = 8  # passes over the self-edit's documents (paper: 10)
    batch: int = 0  # documents in one gradient step; 0: all of them (paper: 1)
    decay: str = "none"  # none | linear: the learning rate over an adapter's steps (paper: linear)
    rank: int = 16  # LoRA rank (paper: 32)
    alpha: float = 32.0  # LoRA scale is alpha / rank (paper: 64)
    row_tokens: int = 256  # documents of a step are packed into rows of about so many tokens
    recompute: bool = False  # gradient checkpointing: less memory, a third more time

    # Paper: every line is padded to 2048 tokens, q and v get LoRA. Here: documents are packed, attention stays inside
    # each, and every linear layer gets LoRA, because padding was 98 % of the work and the MLP learns facts best.

    def __post_init__(self):
        at_least(self, lr=0, epochs=1, batch=0, rank=1, row_tokens=1)
        one_of(self, decay=("none", "linear"))


def adapt(model, edits, config=InnerConfig(), seed=0, start=None, on_step=None):
    """Train one adapter on each of K SelfEdits, all at once; returns the Adapters, attached to the model.

    The loss is the SUM over adapters of each one's own mean over the tokens that carry loss, so no gradient mixes, and
    Adam works element by element: with a learning rate and a number of steps for each adapter, K at once equal K one by
    one. An adapter that has had its steps leaves the batch. One whose loss becomes NaN or infinite is set aside: its
    update is zero and `adapters.failed[k]` gives the reason; the others do not notice.
    `adapters.losses[k]` lists adapter k's loss at every step.
    start: an Adapters.state() to go on from, of one adapter or of K; on_step(step, steps, loss (K,)): called after each.
    Raises ValueError if there is no edit, an empty one, or a document longer than the model can read; RuntimeError if the
    model has adapters already. The model is left plain then.
    """
    if not edits or not all(edit.documents for edit in edits):
        raise ValueError(
            "adapt() needs at least one self-edit, and each needs at least one document"
        )
    plans = [plan(edit, config, seed) for edit in edits]
    lr = [edit.lr if edit.lr is not None else config.lr for edit in edits]
    adapters = attach(model, len(edits), LoRAConfig(config.rank, config.alpha), seed)
    model.recompute = config.recompute
    try:
        if start is not None:
            adapters.load({name: t.expand(len(edits), *t.shape[1:]) for name, t in start.items()})
        train(model, adapters, plans, lr, config.decay, on_step)
    except BaseException:
        adapters.remove()
        raise
    finally:
        model.recompute = False
    return adapters


def train(model, adapters, plans, lr, decay, on_step=None):
    """The steps of adapt(): plans[k] and lr[k] belong to adapter k."""
    adam, ready = Adam(adapters.parameters()), [p.detach().clone() for p in adapters.parameters()]
    adapters.failed, adapters.losses = {}, [[] for _ in plans]
    active = list(range(len(plans)))
    for step in range(max(len(p) for p in plans)):
        leaving = [i for i, k in enumerate(active) if step == len(plans[k]) or k in adapters.failed]
        active = leave(leaving, active, adapters, adam, ready)
        if not active:
            break
        loss = losses(model, [plans[k][step] for k in active])  # (K,), K still active
        gradients = torch.autograd.grad(loss.sum(), adapters.parameters())
        for k, value in zip(active, loss.tolist()):
            adapters.losses[k].append(value)
            if not np.isfinite(value):
                adapters.failed[k] = f"loss became {value} at step {step + 1}"
        fraction = [1 - step / len(plans[k]) if decay == "linear" else 1.0 for k in active]
        adam.step(
            adapters.parameters(),
            gradients,
            torch.tensor([lr[k] * x for k, x in zip(active, fraction)]),
        )
        if on_step:
            on_step(step + 1, max(len(p) for p in plans), loss)
    leave(range(len(active)), active, adapters, adam, ready)
    for k in range(len(plans)):
        if not all(p[k].isfinite().all() for p in ready):
            adapters.failed.setdefault(k, "weights became infinite in the last step")
    for p in ready:
        p[list(adapters.failed)] = 0
    adapters.replace(ready)


def losses(model, rows):
    """rows[k]: the packed rows of adapter k. Returns (K,): each adapter's mean loss over its loss-carrying tokens."""
    ids, docs, targets = (x.to(model.wte.weight.device) for x in to_tensors(rows))  # each (K b, T)
    hidden = model.hidden(ids, docs)  # (K b, T, C)
    carries = targets >= 0  # (K b, T), b rows an adapter
    each = cross_entropy(model.head, hidden[carries], targets[carries])  # (N,), N carrying tokens
    owner = carries.view(len(rows), -1).nonzero()[:, 0]  # (N,)
    total = each.new_zeros(len(rows)).index_add(0, owner, each)  # (K,)
    return total / owner.bincount(minlength=len(rows)).clamp(min=1)  # (K,)


def cross_entropy(head, hidden, targets, most_logits=2**24):
    """The loss (N,) at hidden (N, C), targets (N,). Not more than about `most_logits` numbers are held at once.

    An open model has 50,000 to 150,000 logits a token: kept for the backward pass, they would outweigh all else.
    """
    size = max(1, most_logits // head.out_features)
    if len(hidden) <= size:
        return F.cross_entropy(head(hidden).float(), targets, reduction="none")  # (N,)

    def part(h, t):
        return F.cross_entropy(head(h).float(), t, reduction="none")  # (size,)

    return torch.cat(
        [
            checkpoint(part, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(size), targets.split(size))
        ]
    )  # (N,)


class Adam:
    """Adam (arXiv 1412.6980) whose learning rate is a vector: one for each adapter."""

    def __init__(self, params, betas=(0.9, 0.999), eps=1e-8):
        self.m, self.v = (
            [torch.zeros_like(p) for p in params],
            [torch.zeros_like(p) for p in params],
        )
        self.betas, self.eps, self.steps = betas, eps, 0

    @torch.no_grad()
    def step(self, params, gradients, lr):
        """params and gradients: lists of (K, ., .); lr: (K,)."""
        self.steps += 1
        (b1, b2), scale = self.betas, (1 - self.betas[1] ** self.steps) ** 0.5
        rate = (-lr * scale / (1 - b1**self.steps)).to(params[0])[
            :, None, None
        ]  # (K, 1, 1), bias corrections folded in
        for p, g, m, v in zip(params, gradients, self.m, self.v):
            m.lerp_(g, 1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            p.addcmul_(m / v.sqrt().add_(self.eps * scale), rate)


@torch.no_grad()
def leave(leaving, active, adapters, adam, ready):
    """Store the adapters at positions `leaving` of the batch in `ready` and close the gap; returns who is still active."""
    leaving = list(leaving)
    if not leaving:
        return active
    gone, stay = (
        [active[i] for i in leaving],
        [i for i in range(len(active)) if i not in set(leaving)],
    )
    for final, p in zip(ready, adapters.parameters()):
        final[gone] = p[leaving]
    if stay:
        adapters.replace([p[stay] for p in adapters.parameters()])  # each (fewer K, ., .)
        adam.m, adam.v = [m[stay] for m in adam.m], [v[stay] for v in adam.v]  # likewise
    return [active[i] for i in stay]


# ---- memory ------------------------------------------------------------------------------------------------------------


def side_by_side(model, edits, config, at_most, memory=0.0):
    """Cut the edits into groups that train at once: as many as fit into `memory` GB (0: no limit), at most `at_most`, at least one: [[index, ...], ...]"""
    sizes = [footprint(model, edit, config) if memory else 0 for edit in edits]
    groups = []
    for i in range(len(edits)):
        with_it = (groups[-1] if groups else []) + [i]
        too_much = (
            len(with_it) * max(sizes[j] for j in with_it) > memory * 1e9
        )  # the largest counts: the others are padded to it
        if not groups or len(with_it) > at_most or too_much:
            groups.append([i])
        else:
            groups[-1].append(i)
    return groups


def footprint(model, edit, config):
    """About how many bytes one adapter takes while it trains on this edit."""
    c, bytes_of = model.config, model.wte.weight.element_size()
    heads, kv = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
    widths = (
        2 * (heads + c.n_embd) + 2 * (kv + c.n_embd) + 3 * (c.mlp_dim + c.n_embd)
    )  # in + out of q and o, k and v, the MLP
    lora = (
        c.n_layer * widths * config.rank * 4 * 6
    )  # float32: A and B, their gradients, two moments of Adam, two copies while adapters come and go
    tokens = max(
        sum(len(d.ids) for row in rows for d in row)
        for rows in plan(edit, replace(config, epochs=1), 0)
    )
    # Kept by a block for the backward pass, per token (counted; a quarter more for what comes and goes).
    block = (
        1.25
        * bytes_of
        * (
            4 * c.n_embd
            + (4 if c.qk_norm else 3) * heads
            + 2 * kv
            + (4 if c.mlp == "swiglu" else 2) * c.mlp_dim
            + 7 * config.rank
        )
    )
    return lora + tokens * (
        block + c.n_layer * c.n_embd * bytes_of if config.recompute else c.n_layer * block
    )


# ---- documents into rows ---------------------------------------------------------------------------------------------


def plan(edit, config, seed):
    """All gradient steps of one self-edit: [step][row] = the documents packed into that row."""
    epochs = edit.epochs if edit.epochs is not None else config.epochs
    documents, rng, steps = list(edit.documents), np.random.default_rng(seed), []
    size = config.batch or len(documents)
    for _ in range(epochs):
        if config.batch:  # the order matters only if an epoch has several steps
            documents = [documents[i] for i in rng.permutation(len(documents))]
        steps += [
            pack(documents[i : i + size], config.row_tokens) for i in range(0, len(documents), size)
        ]
    return steps


def pack(documents, row_tokens):
    """Fill rows of at most `row_tokens` tokens in order; a longer document has a row to itself."""
    rows, room = [], 0
    for document in documents:
        if len(document.ids) > room or not rows:
            rows.append([])
            room = row_tokens
        rows[-1].append(document)
        room -= len(document.ids)
    return rows


def to_tensors(rows):
    """rows[k]: packed rows of adapter k -> ids, docs, targets, each (K b, T): b and T of the largest, the rest padding.

    docs numbers the documents of a row, -1 is padding (model.py). targets[t] is the token to predict at t, or -1 where
    nothing is: at a document's end, at padding, and before a token that carries no loss.
    """
    b = max(len(r) for r in rows)
    flat = [row for r in rows for row in r + [[]] * (b - len(r))]  # K b rows
    T = max(sum(len(d.ids) for d in row) for row in flat)
    ids, docs, targets = (
        np.zeros((len(flat), T), np.int64),
        np.full((len(flat), T), -1),
        np.full((len(flat), T), -1),
    )  # each (K b, T)
    for i, row in enumerate(flat):
        t = 0
        for number, d in enumerate(row):
            end = t + len(d.ids)
            ids[i, t:end], docs[i, t:end] = d.ids, number
            targets[i, t : end - 1] = np.where(d.loss[1:], d.ids[1:], -1)
            t = end
    return torch.from_numpy(ids), torch.from_numpy(docs), torch.from_numpy(targets)  # each (K b, T)
