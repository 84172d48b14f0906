"""Batched sampling with a KV cache, one adapter per group of rows."""

import torch

from .model import KVCache


@torch.no_grad()
def sample(
    model, tokenizer, prompts, n=1, max_tokens=128, temperature=1.0, top_p=1.0, stop=None, seed=0
):
    """Continue each prompt (a list of ids) `n` times: a list of len(prompts) lists of n texts.

    A text ends before the end-of-text token (or any other special one), before the string `stop`, or after `max_tokens` tokens.
    temperature 0 is greedy. top_p keeps the likeliest tokens that together have that probability.

    With K adapters attached to the model, prompts must be K equal groups, in the adapters' order.
    Text i has row i of the random numbers drawn from `seed`: the other prompts do not change it.
    """
    if not prompts:
        return []
    ids, docs = left_padded(prompts)  # (P, T), P prompts
    device = model.wte.weight.device
    ids, docs = ids.to(device), docs.to(device)
    cache = KVCache(model, len(prompts), ids.shape[1] + max_tokens)
    hidden = model.hidden(ids, docs, cache)[:, -1]  # (P, C)
    if n > 1:  # all n texts of a prompt go on from one reading of it
        repeat = torch.arange(len(prompts), device=device).repeat_interleave(n)  # (B,), B = P n
        hidden = hidden[repeat]  # (B, C)
        cache.take(repeat)

    B, written = len(prompts) * n, [[] for _ in range(len(prompts) * n)]
    dice = torch.rand(
        B, max_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(device)  # (B, max_tokens)
    rows = torch.arange(B, device=device)  # (B,), which text each row still there writes
    tails, done = [b""] * B, [False] * B
    may_drop = model.n_adapters is None  # adapters need their groups whole
    for t in range(max_tokens):
        logits = model.head(hidden)[:, : tokenizer.vocab_size]  # (B, V), padded vocabulary cut off
        token = choose(logits, dice[rows, t], temperature, top_p)  # (B,)
        for row, new in zip(rows.tolist(), token.tolist()):
            if not done[row]:
                written[row].append(new)
                if stop:
                    tails[row] = tails[row][-len(stop.encode()) :] + tokenizer.bytes_of(new)
                done[row] = new in tokenizer.ends or (bool(stop) and stop.encode() in tails[row])
        if all(done) or t + 1 == max_tokens:
            break
        alive = torch.tensor([not done[row] for row in rows.tolist()], device=device)  # (B,)
        if (
            may_drop and alive.float().mean() < 0.75
        ):  # finished rows leave, but not one by one: moving the cache costs too
            keep = alive.nonzero()[:, 0]  # (fewer rows,)
            cache.take(keep)
            rows, token = rows[keep], token[keep]
        hidden = model.hidden(token[:, None], cache=cache)[:, -1]  # (B, C)

    texts = [
        cut(tokenizer.decode(w[:-1] if w and w[-1] in tokenizer.ends else w), stop) for w in written
    ]
    return [texts[i : i + n] for i in range(0, B, n)]


def choose(logits, dice, temperature, top_p):
    """logits (B, V), dice (B,) uniform in [0, 1) -> tokens (B,): the inverse of the cumulative distribution."""
    if temperature == 0:
        return logits.argmax(-1)  # (B,)
    probs = torch.softmax(logits.double() / temperature, -1)  # (B, V)
    if top_p < 1:
        ranked, order = probs.topk(min(1024, probs.shape[-1]))  # (B, N), N likeliest tokens
        if (
            ranked.sum(-1) < top_p
        ).any():  # seldom: sorting a large vocabulary at every token costs more than the model
            ranked, order = probs.sort(-1, descending=True)  # (B, V)
        drop = ranked.cumsum(-1) - ranked >= top_p  # (B, N)
        drop[:, 0] = False  # the likeliest token always stays
        ranked[drop] = 0
        probs = torch.zeros_like(probs).scatter(-1, order, ranked)  # (B, V)
    cdf = probs.cumsum(-1)  # (B, V)
    token = torch.searchsorted(cdf, dice[:, None] * cdf[:, -1:], right=True)[:, 0]  # (B,)
    return token.clamp(max=logits.shape[1] - 1)


def left_padded(sequences):
    """Lists of ids -> ids (B, T) that all end in the last column, and their documents (B, T): 0, padding -1."""
    T = max(len(s) for s in sequences)
    ids = torch.tensor([[0] * (T - len(s)) + s for s in sequences])  # (B, T)
    docs = torch.tensor([[-1] * (T - len(s)) + [0] * len(s) for s in sequences])  # (B, T)
    return ids, docs


def cut(text, stop):
    return text.split(stop)[0] if stop else text
