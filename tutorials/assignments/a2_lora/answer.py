"""Problem set 2, LoRA and the inner loop: your answers. The handout says what each has to do."""

import math  # noqa: F401

import numpy as np  # noqa: F401
import torch  # noqa: F401
from torch import Tensor


def lora_forward(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    """A linear layer with one adapter.

    x (..., in), W (out, in), A (R, in), B (out, R) -> y (..., out).

    Example: x = [1, 2], W = [[1, 0]], A = [[0, 1]], B = [[3]], alpha = 2, R = 1: y = [13].
    """
    raise NotImplementedError("Problem 2.1: lora_forward")


def merged(W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    """The one matrix that does what W and the adapter do together.

    W (out, in), A (R, in), B (out, R) -> (out, in), a new tensor.

    Example: with W, A, B, alpha as in 2.1: [[1, 6]].
    """
    raise NotImplementedError("Problem 2.2: merged")


def lora_batch(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    """A linear layer with K adapters: the rows of group k go through adapter k.

    x (K b, T, in), W (out, in), A (K, R, in), B (K, out, R) -> y (K b, T, out).

    Example: K = 2 and x has 6 rows: rows 0, 1, 2 are group 0, rows 3, 4, 5 are group 1.
    """
    raise NotImplementedError("Problem 2.3: lora_batch")


def sum_of_means(logits: Tensor, targets: Tensor, weights: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """The loss of each adapter, and their sum.

    logits (K b, T, V), targets (K b, T) of int64, weights (K b, T) -> losses (K,), total ().

    Example: K = 1, b = 1, T = 3, V = 2, logits [[[0, log 3], [5, 0], [0, 0]]], targets
    [[1, -1, 0]], weights [[2.0, 5.0, 0.5]]. Two tokens carry loss, log(4/3) and log 2:
    losses = [(2 * log(4/3) + 0.5 * log 2) / 2] = [0.4610], total = 0.4610.
    """
    raise NotImplementedError("Problem 2.4: sum_of_means")


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
    """One step of Adam with a learning rate for each adapter.

    p, g, m, v (K, X, Y): parameters, their gradients, Adam's two moments before this step.
    step: 1 in the first step. lr (K,). Returns new p, m, v, each (K, X, Y).

    Example: the first step, K = X = Y = 1, p = 1, g = 2, m = v = 0, lr = [0.1], beta1 = 0.9,
    beta2 = 0.999, eps = 1e-8: p = 0.9, m = 0.2, v = 0.004.
    """
    raise NotImplementedError("Problem 2.5: adam_step")


def let_go(
    params: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    numbers: list[int],
    losses: list[list[float]],
    steps: list[int],
    table: list[list[Tensor] | None],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[int], list[list[Tensor] | None]]:
    """Adapters whose training is over leave the batch; the others close up.

    n adapters are in the batch, of K in all. P tensors belong to each.
    params, m, v: lists of P tensors, each (n, ., .). numbers, losses, steps: lists of length n.
    table: list of length K; None, or the P finished tensors, each (., .), of that adapter.
    Returns new params, m, v, numbers, table.

    Example: K = 3, numbers [0, 2], losses [[0.5], [0.7]], steps [4, 1], table [None, [...], None].
    The adapter at place 1 is over: numbers become [0], table[2] becomes [p[1] for p in params].
    """
    raise NotImplementedError("Problem 2.6: let_go")


def lora_gradients(
    x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float, grad_y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass of lora_batch, by hand.

    x (K b, T, in), W (out, in), A (K, R, in), B (K, out, R), grad_y (K b, T, out)
    -> grad_A (K, R, in), grad_B (K, out, R), grad_x (K b, T, in).

    Example: K = b = T = 1, otherwise as in 2.1, grad_y = [[[1]]]: grad_A = [[[6, 12]]],
    grad_B = [[[4]]], grad_x = [[[1, 6]]].
    """
    raise NotImplementedError("Problem 2.7: lora_gradients")
