"""Batched sampling with a key-value cache, one adapter per group of rows."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .model import GPT, same_document
from .tokenizer import Tokenizer


@dataclass
class Row:
    """One text as it is written."""

    ids: list[int] = field(default_factory=list)
    done: bool = False


@torch.no_grad()
def sample(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    n: int = 1,
    max_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: str | None = None,
    seed: int = 0,
) -> list[list[str]]:
    """Continue each prompt (a list of ids) `n` times: len(prompts) lists of n texts.

    A text ends before a special token, before the string `stop`, or after `max_tokens` tokens.
    temperature 0 is greedy. top_p keeps the likeliest tokens that together have that probability.

    With K adapters attached, prompts must be K equal groups, in the adapters' order.
    Text i has row i of the random numbers drawn from `seed`: the other prompts do not change it.
    """
    if not prompts:
        return []
    device = model.wte.weight.device
    ids, docs = (x.to(device) for x in left_padded(prompts))  # each (P, T), P prompts
    cache = KVCache(model, len(prompts), ids.shape[1] + max_tokens)
    hidden = model.hidden(ids, docs, cache)[:, -1]  # (P, C)
    if n > 1:  # all n texts of a prompt go on from one reading of it
        repeat = torch.arange(len(prompts), device=device).repeat_interleave(n)  # (B,), B = P n
        hidden = hidden[repeat]  # (B, C)
        cache.take(repeat)

    generator = torch.Generator().manual_seed(seed)
    B = len(prompts) * n
    dice = torch.rand(B, max_tokens, generator=generator, dtype=torch.float64)  # (B, max_tokens)
    dice = dice.to(device)
    rows = active = [Row() for _ in range(B)]
    for t in range(max_tokens):
        # A padded vocabulary has rows without a token: they are cut off.
        logits = model.head(hidden)[:, : tokenizer.vocab_size]  # (B, V)
        token = choose(logits, dice[:, t], temperature, top_p)  # (B,)
        for row, new in zip(active, token.tolist()):
            if not row.done:
                row.ids.append(new)
                ends = new in tokenizer.ends
                row.done = ends or bool(stop) and stop in tokenizer.decode(row.ids)
        waiting = [i for i, row in enumerate(active) if not row.done]
        if not waiting or t + 1 == max_tokens:
            break
        # Finished rows leave, not one by one: moving the cache costs. Adapters need whole groups.
        if model.n_adapters is None and len(waiting) < 0.75 * len(active):
            keep = torch.tensor(waiting, device=device)  # (fewer B,)
            cache.take(keep)
            active, token, dice = [active[i] for i in waiting], token[keep], dice[keep]
        hidden = model.hidden(token[:, None], cache=cache)[:, -1]  # (B, C)

    written = [tokenizer.decode(row.ids) for row in rows]  # special tokens leave no trace
    written = [text.split(stop)[0] if stop else text for text in written]
    return [written[i : i + n] for i in range(0, B, n)]


def choose(logits: Tensor, dice: Tensor, temperature: float, top_p: float) -> Tensor:
    """logits (B, V), dice (B,) in [0, 1) -> tokens (B,), by the cumulative distribution."""
    if temperature < 1e-6:  # 0, or what would divide to infinity
        return logits.argmax(-1)  # (B,)
    probs = torch.softmax(logits.double() / temperature, -1)  # (B, V)
    if top_p < 1:
        ranked, order = probs.topk(min(1024, probs.shape[-1]))  # (B, N), N likeliest tokens
        if (ranked.sum(-1) < top_p).any():  # seldom; sorting a large vocabulary is slow
            ranked, order = probs.sort(-1, descending=True)  # (B, V)
        drop = ranked.cumsum(-1) - ranked >= top_p  # (B, N)
        drop[:, 0] = False  # the likeliest token always stays
        ranked[drop] = 0
        probs = torch.zeros_like(probs).scatter(-1, order, ranked)  # (B, V)
    cdf = probs.cumsum(-1)  # (B, V)
    token = torch.searchsorted(cdf, dice[:, None] * cdf[:, -1:], right=True)[:, 0]  # (B,)
    return token.clamp(max=logits.shape[1] - 1)


def left_padded(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Lists of ids -> ids (B, T) that end in the last column, documents (B, T): 0, padding -1."""
    T = max(len(s) for s in sequences)
    ids = torch.tensor([[0] * (T - len(s)) + s for s in sequences])  # (B, T)
    docs = torch.tensor([[-1] * (T - len(s)) + [0] * len(s) for s in sequences])  # (B, T)
    return ids, docs


class KVCache:
    """Keys and values of the tokens read so far, room for `size` a row; one document a row."""

    def __init__(self, model: GPT, B: int, size: int) -> None:
        c, weight = model.config, model.wte.weight
        shape = (B, c.n_kv_head, size, c.head_dim)
        self.k = [weight.new_zeros(shape) for _ in range(c.n_layer)]  # each (B, H_kv, size, D)
        self.v = [torch.zeros_like(k) for k in self.k]
        self.docs = torch.full((B, size), -1, device=weight.device)  # (B, size)
        self.next = torch.zeros(B, dtype=torch.long, device=weight.device)  # (B,), next position
        self.length = 0

    def extend(self, ids: Tensor, docs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Make room for `ids` (B, T): their positions (B, T), what they may see (B, 1, T, S)."""
        T = ids.shape[1]
        docs = torch.zeros_like(ids) if docs is None else docs  # (B, T)
        self.docs[:, self.length : self.length + T] = docs
        self.length += T
        real = (docs >= 0).long()  # (B, T)
        positions = (self.next[:, None] + real.cumsum(1) - 1).clamp(min=0)  # (B, T)
        self.next = self.next + real.sum(1)  # (B,)
        return positions, same_document(docs, self.docs[:, : self.length])

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (B, H_kv, T, D) of one layer; returns all it holds, (B, H_kv, S, D)."""
        S, T = self.length, k.shape[2]
        self.k[layer][:, :, S - T : S] = k
        self.v[layer][:, :, S - T : S] = v
        return self.k[layer][:, :, :S], self.v[layer][:, :, :S]  # (B, H_kv, S, D)

    def take(self, rows: Tensor) -> None:
        """Keep (or repeat) only these rows (N,), in this order."""
        self.k = [k[rows] for k in self.k]  # each (N, H_kv, size, D)
        self.v = [v[rows] for v in self.v]
        self.docs, self.next = self.docs[rows], self.next[rows]  # (N, size), (N,)
