"""The functions of answer.py by minseal: arguments are rearranged, nothing is worked out here."""

from types import SimpleNamespace

import torch
import torch.nn as nn
from torch import Tensor

from minseal.inner import Adam, Cohort, Course, losses
from minseal.lora import LoRAConfig, LoRALinear
from minseal.selfedit import Document


def lora_forward(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return lora_batch(x, W, A[None], B[None], alpha)  # K = 1


def merged(W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return W + layer(W, A[None], B[None], alpha).delta(0).detach()


def lora_batch(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return layer(W, A, B, alpha)(x).detach()


def sum_of_means(logits: Tensor, targets: Tensor, weights: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """A model whose hidden states are the logits; each row is one document, one token longer."""
    logits = torch.cat([logits, torch.zeros_like(logits[:, :1])], 1)  # (K b, T + 1, V)
    head = nn.Identity()
    head.out_features = logits.shape[-1]
    model = SimpleNamespace(
        hidden=lambda ids, docs: logits, head=head, wte=SimpleNamespace(weight=logits)
    )
    weights = weights.where(targets >= 0, 0.0)
    rows = [
        [Document((0, *ids), (0.0, *ws))]
        for ids, ws in zip(targets.clamp(min=0).tolist(), weights.tolist())
    ]
    b = len(rows) // K
    loss = losses(model, [rows[k * b : (k + 1) * b] for k in range(K)])  # (K,)
    return loss, loss.sum()


def adam_step(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    p, m, v = p.clone(), m.clone(), v.clone()  # minseal's works in place
    adam = Adam([p], (beta1, beta2), eps)
    adam.m, adam.v, adam.steps = [m], [v], step - 1
    adam.step([p], (g,), lr)
    return p, m, v


def let_go(
    params: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    numbers: list[int],
    losses: list[list[float]],
    steps: list[int],
    table: list[list[Tensor] | None],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[int], list[list[Tensor] | None]]:
    courses = [Course([[]] * n, 0.0) for n in steps]
    for course, each in zip(courses, losses):
        for loss in each:
            course.note(loss)
    held = SimpleNamespace(now=list(params))
    held.parameters = lambda: held.now
    held.replace = lambda tensors: setattr(held, "now", list(tensors))
    cohort = Cohort(held, courses)
    cohort.adam.m, cohort.adam.v = list(m), list(v)
    cohort.let_go()
    table, stay = list(table), []
    for number, course in zip(numbers, courses):
        if course.is_over():
            table[number] = course.weights
        else:
            stay.append(number)
    n = len(stay)  # minseal leaves the tensors as they are if nobody stays
    kept = [[t[:n] for t in tensors] for tensors in (held.now, cohort.adam.m, cohort.adam.v)]
    return *kept, stay, table


def lora_gradients(
    x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float, grad_y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x, adapted = x.clone().requires_grad_(), layer(W, A, B, alpha)
    return torch.autograd.grad(adapted(x), (adapted.A, adapted.B, x), grad_y)


def layer(W: Tensor, A: Tensor, B: Tensor, alpha: float) -> LoRALinear:
    """minseal's layer with these weights: W (out, in), A (K, R, in), B (K, out, R)."""
    base = nn.Linear(W.shape[1], W.shape[0], bias=False)
    base.weight = nn.Parameter(W, requires_grad=False)
    adapted = LoRALinear(base, len(A), LoRAConfig(A.shape[1], alpha), torch.Generator())
    adapted.A, adapted.B = nn.Parameter(A), nn.Parameter(B)
    return adapted
