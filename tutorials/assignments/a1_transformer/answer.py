"""Assignment 1: the transformer. Fill in the functions; add helper functions as you like.

Shape letters: B rows, T tokens, H heads, H_kv key-value heads, D head size, V vocabulary,
N new tokens, S tokens in the cache.
"""

import math  # noqa: F401

import numpy as np  # noqa: F401
import torch  # noqa: F401
from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor, docs: Tensor) -> Tensor:
    """q, k, v (B, H, T, D) floats, docs (B, T) integers -> (B, H, T, D).

    Token i attends to the tokens j <= i of its own document: docs[b, j] == docs[b, i].
    docs == -1 is padding: what is returned there is not compared, but must be finite.

    With docs = [[4, 4, 7, 7, -1]], token 0 sees 0; token 1 sees 0, 1; 2 sees 2; 3 sees 2, 3.
    """
    raise NotImplementedError("Problem 1.1: attention inside documents")


def rotary(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x (B, H, T, D) floats, D even, positions (B, T) integers >= 0 -> (B, H, T, D).

    Turns every pair (x[..., i], x[..., i + D/2]) by the angle position * theta ** (-2 i / D).

    With D = 2 and position 1, the vector [1, 0] becomes [cos 1, sin 1] = [0.5403, 0.8415].
    """
    raise NotImplementedError("Problem 1.2: rotary positions")


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, docs: Tensor) -> Tensor:
    """q (B, H, T, D), k and v (B, H_kv, T, D), docs (B, T) -> (B, H, T, D).

    H is a multiple of H_kv. With G = H / H_kv, query head h reads key-value head h // G.
    Otherwise as causal_attention.

    With H = 6 and H_kv = 2, heads 0, 1, 2 read key-value head 0 and heads 3, 4, 5 read head 1.
    """
    raise NotImplementedError("Problem 1.3: grouped heads")


def decode_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    docs: Tensor,
    cached_k: Tensor,
    cached_v: Tensor,
    cached_docs: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """N new tokens after the S tokens of the cache. Returns y and the cache for the next step.

    q (B, H, N, D), k and v (B, H_kv, N, D), docs (B, N): of the new tokens. N >= 1.
    cached_k and cached_v (B, H_kv, S, D), cached_docs (B, S): of all tokens before. S may be 0.
    Returns (y, new_k, new_v, new_docs):
        y (B, H, N, D), what the new tokens get from the tokens that they see;
        new_k and new_v (B, H_kv, S + N, D), new_docs (B, S + N): the cache, then the new tokens.

    With S = 3, N = 2 and one document, the first new token sees tokens 0 to 3, the second 0 to 4.
    """
    raise NotImplementedError("Problem 1.4: decoding with a key-value cache")


def choose(logits: Tensor, dice: Tensor, temperature: float, top_p: float) -> Tensor:
    """logits (B, V), dice (B,) float64 in [0, 1) -> the chosen tokens (B,), integers.

    temperature 0: the token with the largest logit. Otherwise the inverse distribution function
    of the tokens that top_p keeps; the handout says exactly which.

    With the probabilities [0.1, 0.5, 0.1, 0.3] and top_p 0.7, tokens 1 and 3 stay.
    Then dice 0.6 gives token 1, dice 0.65 gives token 3.
    """
    raise NotImplementedError("Problem 1.5: top-p sampling")


def document_positions(docs: Tensor) -> Tensor:
    """docs (B, T) integers -> (B, T) integers: positions that restart with each document.

    Padding (docs == -1) has position 0.

    [[-1, 4, 4, 4, 2, 2, -1]] gives [[0, 0, 1, 2, 0, 1, 0]].
    """
    raise NotImplementedError("Problem 1.6: positions in documents")
