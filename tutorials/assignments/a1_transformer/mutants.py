"""Assignment 1: typical mistakes, which the checks must catch, and other right ways, which pass."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Make = Callable[[Callable], Callable]


# ---- attention: f(q, k, v, docs) -----------------------------------------------------------------


def sees_future(f: Callable) -> Callable:
    def wrong(q, k, v, docs):
        columns = []
        for t in range(docs.shape[1]):  # token t comes last, so it sees all the others
            order = [i for i in range(docs.shape[1]) if i != t] + [t]
            moved = [x[:, :, order] for x in (q, k, v)]
            columns.append(f(*moved, docs[:, order])[:, :, -1:])  # (B, H, 1, D)
        return torch.cat(columns, 2)  # (B, H, T, D)

    return wrong


def not_itself(f: Callable) -> Callable:
    def wrong(q, k, v, docs):
        if docs.shape[1] == 1:
            return torch.zeros_like(q)
        y = f(q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], docs[:, :-1])  # (B, H, T - 1, D)
        return torch.cat([torch.zeros_like(q[:, :, :1]), y], 2)  # (B, H, T, D)

    return wrong


def padding_is_seen(f: Callable) -> Callable:
    def wrong(q, k, v, docs):
        docs = docs.clone()
        for t in range(docs.shape[1] - 2, -1, -1):  # padding joins the document behind it
            docs[:, t] = torch.where(docs[:, t] < 0, docs[:, t + 1], docs[:, t])
        return f(q, k, v, docs)

    return wrong


def nan_at_padding(f: Callable) -> Callable:
    return lambda q, k, v, docs: f(q, k, v, docs).masked_fill(
        (docs < 0)[:, None, :, None], math.nan
    )


def overflows(f: Callable) -> Callable:
    def wrong(q, k, v, docs):
        k_all = k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # (B, H, T, D)
        size = (q * k_all).sum(-1, keepdim=True) / q.shape[-1] ** 0.5  # (B, H, T, 1)
        return f(q, k, v, docs).masked_fill(size > 88, math.nan)

    return wrong


def by_turns(f: Callable) -> Callable:
    """Query head h reads key-value head h % H_kv."""

    def wrong(q, k, v, docs):
        H_kv = k.shape[1]
        order = torch.arange(q.shape[1]).view(H_kv, -1).T.flatten()
        return f(q[:, order], k, v, docs)[:, order.argsort()]

    return wrong


def right_in_k_wrong_in_v(f: Callable) -> Callable:
    return lambda q, k, v, docs: f(q, k, v.flip(1), docs)


# ---- rotary: f(x, positions, theta) --------------------------------------------------------------


def neighbours(f: Callable) -> Callable:
    def wrong(x, positions, theta):
        order = torch.arange(x.shape[-1]).view(-1, 2).T.flatten()
        return f(x[..., order], positions, theta)[..., order.argsort()]

    return wrong


def other_way(f: Callable) -> Callable:
    def wrong(x, positions, theta):
        half = x.shape[-1] // 2
        return f(x.roll(half, -1), positions, theta).roll(half, -1)

    return wrong


# ---- decode_step: f(q, k, v, docs, cached_k, cached_v, cached_docs) ------------------------------


def top_left(f: Callable) -> Callable:
    """New token n sees the first n + 1 keys."""

    def wrong(q, k, v, docs, ck, cv, cd):
        y, *cache = f(q, k, v, docs, ck, cv, cd)
        N = q.shape[2]
        first = [x[:, :, :N] for x in cache[:2]] + [cache[2][:, :N]]
        empty = (ck[:, :, :0], cv[:, :, :0], cd[:, :0])
        return f(q, *first, *empty)[0], *cache

    return wrong


def sees_later_new(f: Callable) -> Callable:
    def wrong(q, k, v, docs, ck, cv, cd):
        _, *cache = f(q, k, v, docs, ck, cv, cd)
        columns = []
        for t in range(q.shape[2]):
            order = [i for i in range(q.shape[2]) if i != t] + [t]
            new = [x[:, :, order] for x in (q, k, v)] + [docs[:, order]]
            columns.append(f(*new, ck, cv, cd)[0][:, :, -1:])
        return torch.cat(columns, 2), *cache

    return wrong


def cache_ignored(f: Callable) -> Callable:
    def wrong(q, k, v, docs, ck, cv, cd):
        empty = (ck[:, :, :0], cv[:, :, :0], cd[:, :0])
        return f(q, k, v, docs, *empty)[0], *f(q, k, v, docs, ck, cv, cd)[1:]

    return wrong


def new_in_front(f: Callable) -> Callable:
    def wrong(q, k, v, docs, ck, cv, cd):
        y = f(q, k, v, docs, ck, cv, cd)[0]
        return y, torch.cat([k, ck], 2), torch.cat([v, cv], 2), torch.cat([docs, cd], 1)

    return wrong


def cache_not_grown(f: Callable) -> Callable:
    return lambda q, k, v, docs, *cache: (f(q, k, v, docs, *cache)[0], *cache)


def heads_repeated_in_cache(f: Callable) -> Callable:
    def wrong(q, k, v, docs, *cache):
        y, k_all, v_all, docs_all = f(q, k, v, docs, *cache)
        G = q.shape[1] // k.shape[1]
        return y, k_all.repeat_interleave(G, 1), v_all.repeat_interleave(G, 1), docs_all

    return wrong


def padded_cache_seen(f: Callable) -> Callable:
    def wrong(q, k, v, docs, ck, cv, cd):
        _, *cache = f(q, k, v, docs, ck, cv, cd)
        return f(q, k, v, docs, ck, cv, torch.where(cd < 0, docs[:, :1], cd))[0], *cache

    return wrong


def documents_of_cache_ignored(f: Callable) -> Callable:
    def wrong(q, k, v, docs, ck, cv, cd):
        _, *cache = f(q, k, v, docs, ck, cv, cd)
        same = torch.where(cd >= 0, docs[:, :1], cd)
        return f(q, k, v, docs, ck, cv, same)[0], *cache

    return wrong


# ---- choose: f(logits, dice, temperature, top_p) -------------------------------------------------


def kept(f: Callable, logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """(B, V), the tokens that come at some of 400 dice."""
    stay = torch.zeros_like(logits, dtype=torch.bool)
    for number in torch.linspace(0, 1 - 2.0**-53, 400, dtype=torch.float64):
        token = f(logits, number.expand(len(logits)).contiguous(), temperature, top_p)  # (B,)
        stay[torch.arange(len(logits)), token] = True
    return stay


def only(logits: Tensor, stay: Tensor) -> Tensor:
    return logits.masked_fill(~stay, -math.inf)


def ranks(f: Callable) -> Callable:
    def wrong(logits, dice, temperature, top_p):
        ranked, order = logits.sort(-1, descending=True)  # (B, V)
        return order.gather(1, f(ranked, dice, temperature, top_p)[:, None])[:, 0]

    return wrong


def crossing_dropped(f: Callable) -> Callable:
    def wrong(logits, dice, temperature, top_p):
        if temperature == 0 or top_p >= 1:
            return f(logits, dice, temperature, top_p)
        stay = kept(f, logits, temperature, top_p)
        last = only(-logits, stay).argmax(-1)  # (B,), the least likely that stays
        stay[torch.arange(len(logits)), last] &= stay.sum(-1) == 1
        return f(only(logits, stay), dice, temperature, 1.0)

    return wrong


def not_renormalised(f: Callable) -> Callable:
    def wrong(logits, dice, temperature, top_p):
        if temperature == 0 or top_p >= 1:
            return f(logits, dice, temperature, top_p)
        stay = kept(f, logits, temperature, top_p)
        probs = torch.softmax(logits.double() / temperature, -1)  # (B, V)
        dice = dice / (probs * stay).sum(-1)  # (B,)
        token = f(only(logits, stay), dice.clamp(max=1 - 2.0**-53), temperature, 1.0)
        return torch.where(dice < 1, token, logits.shape[1] - 1)

    return wrong


def top_p_first(f: Callable) -> Callable:
    def wrong(logits, dice, temperature, top_p):
        if temperature == 0 or top_p >= 1:
            return f(logits, dice, temperature, top_p)
        return f(only(logits, kept(f, logits, 1.0, top_p)), dice, temperature, 1.0)

    return wrong


def at_least(f: Callable) -> Callable:
    """The first F(t) >= dice in place of > dice."""

    def wrong(logits, dice, temperature, top_p):
        token = f(logits, (dice - 1e-12).clamp(min=0), temperature, top_p)
        return token if temperature == 0 else torch.where(dice == 0, 0, token)

    return wrong


def overflowing_exp(f: Callable) -> Callable:
    def wrong(logits, dice, temperature, top_p):
        token = f(logits, dice, temperature, top_p)
        if temperature == 0:
            return token
        return torch.where((logits / temperature).amax(-1) > 709, 0, token)

    return wrong


def first_row_decides(f: Callable) -> Callable:
    def wrong(logits, dice, temperature, top_p):
        if temperature == 0 or top_p >= 1:
            return f(logits, dice, temperature, top_p)
        stay = kept(f, logits[:1], temperature, top_p)  # (1, V)
        return f(only(logits, stay.expand_as(logits)), dice, temperature, 1.0)

    return wrong


MUTANTS: dict[str, tuple[str, Make]] = {
    "no 1/sqrt(D)": ("1.1", lambda f: lambda q, k, v, docs: f(q * q.shape[-1] ** 0.5, k, v, docs)),
    "1/D": ("1.1", lambda f: lambda q, k, v, docs: f(q / q.shape[-1] ** 0.5, k, v, docs)),
    "tokens see the future": ("1.1", sees_future),
    "a token does not see itself": ("1.1", not_itself),
    "documents ignored": (
        "1.1",
        lambda f: lambda q, k, v, docs: f(q, k, v, torch.zeros_like(docs)),
    ),
    "padding is seen": ("1.1", padding_is_seen),
    "all rows have row 0's documents": (
        "1.1",
        lambda f: lambda q, k, v, docs: f(q, k, v, docs[:1].expand_as(docs)),
    ),
    "NaN at padding": ("1.1", nan_at_padding),
    "exp overflows": ("1.1", overflows),
    "tokens before heads": ("1.1", lambda f: lambda *a: f(*a).transpose(1, 2)),
    "neighbours are pairs": ("1.2", neighbours),
    "turned the other way": ("1.2", other_way),
    "theta is always 10000": ("1.2", lambda f: lambda x, positions, theta: f(x, positions, 1e4)),
    "exponent -i/D": ("1.2", lambda f: lambda x, positions, theta: f(x, positions, theta**0.5)),
    "positions ignored": (
        "1.2",
        lambda f: lambda x, p, theta: f(x, torch.arange(p.shape[1]).expand_as(p), theta),
    ),
    "one row's positions": ("1.2", lambda f: lambda x, p, theta: f(x, p[:1].expand_as(p), theta)),
    "positions from 1": ("1.2", lambda f: lambda x, p, theta: f(x, p + 1, theta)),
    "positions in bfloat16": (
        "1.2",
        lambda f: lambda x, p, theta: f(x, p.bfloat16().long(), theta),
    ),
    "heads by turns": ("1.3", by_turns),
    "v's heads in another order": ("1.3", right_in_k_wrong_in_v),
    "only the first key-value head": (
        "1.3",
        lambda f: lambda q, k, v, docs: f(q, k[:, :1], v[:, :1], docs),
    ),
    "the mean of the key-value heads": (
        "1.3",
        lambda f: lambda q, k, v, docs: f(q, k.mean(1, True), v.mean(1, True), docs),
    ),
    "H_kv heads come out": ("1.3", lambda f: lambda q, k, *a: f(q, k, *a)[:, : k.shape[1]]),
    "diagonal at the top left": ("1.4", top_left),
    "new tokens see later ones": ("1.4", sees_later_new),
    "cache ignored": ("1.4", cache_ignored),
    "new tokens in front": ("1.4", new_in_front),
    "cache not grown": ("1.4", cache_not_grown),
    "repeated heads in the cache": ("1.4", heads_repeated_in_cache),
    "padding in the cache is seen": ("1.4", padded_cache_seen),
    "the cache's documents ignored": ("1.4", documents_of_cache_ignored),
    "only y": ("1.4", lambda f: lambda *a: f(*a)[0]),
    "cumulated by rank": ("1.5", ranks),
    "the crossing token is dropped": ("1.5", crossing_dropped),
    "not renormalised": ("1.5", not_renormalised),
    "top_p before temperature": ("1.5", top_p_first),
    "F(t) >= dice": ("1.5", at_least),
    "multiplied by temperature": (
        "1.5",
        lambda f: lambda logits, dice, t, p: f(logits, dice, 1 / t if t else 0.0, p),
    ),
    "temperature 0 is 1": ("1.5", lambda f: lambda x, dice, t, p: f(x, dice, t or 1.0, p)),
    "top_p ignored": ("1.5", lambda f: lambda x, dice, t, p: f(x, dice, t, 1.0)),
    "exp overflows in sampling": ("1.5", overflowing_exp),
    "row 0's nucleus": ("1.5", first_row_decides),
    "no restart": ("1.6", lambda f: lambda docs: torch.arange(docs.shape[1]).expand_as(docs)),
    "padding is counted": (
        "1.6",
        lambda f: lambda docs: f(torch.where(docs < 0, docs.max() + 1, docs)),
    ),
    "padding is a gap": (
        "1.6",
        lambda f: lambda docs: f(torch.zeros_like(docs)).masked_fill(docs < 0, 0),
    ),
    "row 0's positions": ("1.6", lambda f: lambda docs: f(docs[:1]).expand_as(docs)),
    "from 1": ("1.6", lambda f: lambda docs: f(docs) + (docs >= 0)),
}


# ---- right versions ------------------------------------------------------------------------------


def heads_one_by_one(f: Callable) -> Callable:
    return lambda q, k, v, docs: torch.cat(
        [
            f(q[:, h : h + 1], k[:, j : j + 1], v[:, j : j + 1], docs)
            for h in range(q.shape[1])
            for j in [h * k.shape[1] // q.shape[1]]
        ],
        1,
    )


def repeated_heads(f: Callable) -> Callable:
    def right(q, k, v, docs):
        G = q.shape[1] // k.shape[1]
        return f(q, k.repeat_interleave(G, 1), v.repeat_interleave(G, 1), docs)

    return right


def zero_at_padding(f: Callable) -> Callable:
    return lambda q, k, v, docs: f(q, k, v, docs).masked_fill((docs < 0)[:, None, :, None], 0)


def in_float64(f: Callable) -> Callable:
    return lambda q, k, v, docs: f(q.double(), k.double(), v.double(), docs).float()


def rows_backwards(f: Callable) -> Callable:
    return lambda *a: f(*(x.flip(0) if isinstance(x, Tensor) else x for x in a)).flip(0)


def token_by_token(f: Callable) -> Callable:
    def right(q, k, v, docs, *cache):
        columns = []
        for t in range(q.shape[2]):
            new = [x[:, :, t : t + 1] for x in (q, k, v)] + [docs[:, t : t + 1]]
            y, *cache = f(*new, *cache)
            columns.append(y)
        return [torch.cat(columns, 2), *cache]

    return right


def all_anew(f: Callable) -> Callable:
    """Run everything again from an empty cache, keep the last N."""

    def right(q, k, v, docs, ck, cv, cd):
        q = torch.cat([torch.zeros_like(q[:, :, :1]).expand(-1, -1, ck.shape[2], -1), q], 2)
        empty = (ck[:, :, :0], cv[:, :, :0], cd[:, :0])
        new = (torch.cat([ck, k], 2), torch.cat([cv, v], 2), torch.cat([cd, docs], 1))
        y, *cache = f(q, *new, *empty)
        return y[:, :, ck.shape[2] :], *cache

    return right


def turned_twice(f: Callable) -> Callable:
    def right(x, positions, theta):
        half = positions // 2
        return f(f(x.double(), half, theta), positions - half, theta).float()

    return right


def one_by_one(f: Callable) -> Callable:
    return lambda logits, dice, temperature, top_p: torch.cat(
        [f(x[None], d[None], temperature, top_p) for x, d in zip(logits, dice)]
    )


def backwards(f: Callable) -> Callable:
    """The distribution function from the other end."""

    def right(logits, dice, temperature, top_p):
        if temperature == 0:
            return f(logits, dice, temperature, top_p)
        exact = dice * 8 == (dice * 8).round()  # at a border the other end is on the other side
        other = f(logits.flip(1), (1 - dice).clamp(max=1 - 2.0**-53), temperature, top_p)
        token = f(logits, dice, temperature, top_p)
        return torch.where(exact, token, logits.shape[1] - 1 - other)

    return right


VARIANTS: dict[str, tuple[str, Make]] = {
    "heads one by one": ("1.1", heads_one_by_one),
    "zero at padding": ("1.1", zero_at_padding),
    "float64 and back": ("1.1", in_float64),
    "rows backwards": ("1.1", rows_backwards),
    "half the angle twice": ("1.2", turned_twice),
    "rows of x backwards": ("1.2", rows_backwards),
    "key-value heads repeated": ("1.3", repeated_heads),
    "query heads one by one": ("1.3", heads_one_by_one),
    "new tokens one by one": ("1.4", token_by_token),
    "all anew": ("1.4", all_anew),
    "logits in rows": ("1.5", one_by_one),
    "logits shifted": ("1.5", lambda f: lambda x, dice, t, p: f(x.double() - 3, dice, t, p)),
    "divided first": (
        "1.5",
        lambda f: lambda x, dice, t, p: f(x.double() / t, dice, 1.0, p) if t else f(x, dice, t, p),
    ),
    "from the other end": ("1.5", backwards),
    "other numbers of documents": (
        "1.6",
        lambda f: lambda docs: f(torch.where(docs < 0, docs, 20 - docs)),
    ),
    "positions as floats": ("1.6", lambda f: lambda docs: f(docs).double()),
}
