"""Assignment 1: what is checked."""

import math

import torch
import torch.nn.functional as F
from checks import Call, Luck, Problem, Wrong, brief, close, tuple_of
from torch import Tensor

from minseal.model import GPTConfig, positions_in_document, rope_table, rotate, same_document
from minseal.sample import choose

READY_MADE = (
    "scaled_dot_product_attention",
    "multi_head_attention_forward",
    "MultiheadAttention",
    "flex_attention",
)
SAMPLERS = ("multinomial", "distributions")

# Values of size 1 in float32, sums of at most 20 products: rounding is some 1e-6. The mistakes that
# we look for are beyond 1e-3.
TOLERANCE = 1e-5
LAST = 1 - 2.0**-53  # the largest float64 below 1


# ---- what several checks share -------------------------------------------------------------------


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention in float64: q (B, H, T, D), k and v (B, H_kv, S, D), mask (B, 1, T, S)."""
    grouped = q.shape[1] != k.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def attention(q: Tensor, k: Tensor, v: Tensor, docs: Tensor) -> Tensor:
    return masked(q, k, v, same_document(docs, docs))  # (B, H, T, D)


def packed(luck: Luck, B: int, T: int, padding: bool) -> Tensor:
    """docs (B, T): every row has two or three documents of at least two tokens, each row others.

    The numbers of documents are in no order. With padding, it stands in front of the first
    document, between the last two, and sometimes at the end. T is at least 10.
    """
    rows: list[list[int]] = []
    while len(rows) < B:
        n = luck.whole(2, 3)
        numbers = luck.rng.permutation(10)[:n].tolist()
        sizes = [2] * n  # tokens of each document
        before = [0] * (n + 1)  # padding in front of each document, and at the end
        if padding:
            before[0] = before[n - 1] = 1
        while (free := T - sum(sizes) - sum(before)) > 0:
            if padding and luck.whole(0, 3) == 0:
                before[luck.whole(0, n)] += luck.whole(1, free)
            else:
                sizes[luck.whole(0, n - 1)] += 1
        row = []
        for i in range(n):
            row += [-1] * before[i] + [numbers[i]] * sizes[i]
        row += [-1] * before[n]
        starts = [i for i in range(1, T) if row[i] != row[i - 1]]
        if all(starts != [i for i in range(1, T) if r[i] != r[i - 1]] for r in rows):
            rows.append(row)
    return torch.tensor(rows)


def compare(
    got: object,
    expected: Tensor,
    docs: Tensor,
    what: str,
    suspects: dict[str, Tensor],
    cause: str,
) -> None:
    """close() at the real tokens of (B, H, T, D); at padding anything finite is right.

    suspects: cause -> what comes of it, for the message.
    """
    if isinstance(got, Tensor) and got.shape == expected.shape and not got.is_complex():
        real = (docs >= 0)[:, None, :, None]  # (B, 1, T, 1)
        if (got.isfinite() | ~real).all() and not got.isfinite().all():
            b, _, t, _ = (~got.isfinite()).nonzero()[0].tolist()
            raise Wrong(
                f"{what}: NaN or infinite at padding (row {b}, token {t}). It is not compared, but "
                "must be finite. A softmax over keys that are all masked is 0 / 0"
            )
        got = torch.where(real, got.double(), expected)  # (B, H, T, D)
        for suspect, wrong in suspects.items():
            if agree(got, torch.where(real, wrong, expected)):
                cause = suspect
        wrong_tokens = (~((got - expected).abs() <= TOLERANCE * (1 + expected.abs()))).nonzero()
        if len(wrong_tokens):
            t = int(wrong_tokens[:, 2].min())
            first = f"Result tokens before {t} agree in every row and head, token {t} does not"
            cause = f"{cause} ({first if t else 'token 0 of the result is already wrong'})"
    elif isinstance(got, Tensor) and got.shape != expected.shape:
        cause = "The result has the shape of q: rows, heads, tokens, head size"
    close(got, expected, TOLERANCE, what, cause)


def agree(got: Tensor, expected: Tensor) -> bool:
    return bool(((got - expected).abs() <= TOLERANCE * (1 + expected.abs())).all())


# ---- 1.1 and 1.3 ---------------------------------------------------------------------------------


def check_attention(call: Call, luck: Luck) -> None:
    attend(call, luck, lambda: (h := luck.whole(2, 3), h))


def check_grouped(call: Call, luck: Luck) -> None:
    def heads() -> tuple[int, int]:
        H_kv = luck.whole(2, 3)
        return H_kv * luck.whole(2, 3), H_kv

    for H, H_kv, what in ((2, 2, "H = H_kv = 2"), (3, 1, "H = 3, H_kv = 1")):
        q, k, v, docs = draw(luck, 2, H, H_kv, 5, 4, torch.zeros(2, 5, dtype=torch.long))
        expected = attention(q, k, v, docs)
        cause = f"{'Query head h reads head h' if H == H_kv else 'All read head 0'}. Does 1.1 pass?"
        compare(call(q, k, v, docs), expected, docs, what, {}, cause)
    attend(call, luck, heads)


def draw(luck: Luck, B: int, H: int, H_kv: int, T: int, D: int, docs: Tensor) -> tuple[Tensor, ...]:
    q = luck.normal(B, H, T, D)
    return q, luck.normal(B, H_kv, T, D), luck.normal(B, H_kv, T, D), docs


def attend(call: Call, luck: Luck, heads) -> None:
    """The cases of attention, from easy to hard. heads() -> H, H_kv."""
    # One token: it sees itself only, so y = v whatever q and k are.
    H, H_kv = heads()
    q, k, v, docs = draw(luck, 1, H, H_kv, 1, 4, torch.zeros(1, 1, dtype=torch.long))
    suspects = wrong_attention(q, k, v, docs)
    cause = "A single token sees only itself: the result is its v"
    if H != H_kv:
        cause += f", of key-value head h // {H // H_kv} for query head h"
    compare(call(q, k, v, docs), attention(q, k, v, docs), docs, "one token", suspects, cause)

    # One document without padding.
    for B in (1, 2):
        T, D, (H, H_kv) = luck.whole(5, 9), luck.pick((4, 6, 8)), heads()
        docs = torch.full((B, T), luck.whole(0, 5))
        q, k, v, docs = draw(luck, B, H, H_kv, T, D, docs)
        what = f"one document, q {tuple(q.shape)}, k {tuple(k.shape)}"
        cause = "Is the softmax over the keys, does a token see itself, and nobody the future?"
        suspects = wrong_attention(q, k, v, docs)
        compare(call(q, k, v, docs), attention(q, k, v, docs), docs, what, suspects, cause)

    # Several documents in a row, then padding too.
    for padding in (False, True):
        B, T, D, (H, H_kv) = luck.whole(2, 3), luck.whole(11, 14), luck.pick((4, 6, 8)), heads()
        q, k, v, docs = draw(luck, B, H, H_kv, T, D, packed(luck, B, T, padding))
        what = f"documents {docs.tolist()}"
        cause = "One document is right, several are not: which keys does the mask leave?"
        if padding:
            cause = "Documents are right without padding: does a real token see padding before it?"
        suspects = wrong_attention(q, k, v, docs)
        compare(call(q, k, v, docs), attention(q, k, v, docs), docs, what, suspects, cause)

    # Scores up to thousands. Whole numbers and 1 / sqrt(16): the scores are exact in float32, so
    # the tolerance of the other cases holds here too.
    B, T, (H, H_kv) = 2, luck.whole(10, 12), heads()
    q, k, v, docs = draw(luck, B, H, H_kv, T, 16, packed(luck, B, T, True))
    q, k = (q * 10).round(), (k * 10).round()
    q[:, 0, -1], k[:, 0, -1] = 20, 20  # the score of the last token with itself is 1600
    docs[:, -1] = docs.max(1).values + 1
    cause = (
        "Scores are in the thousands here: exp() of them overflows. What may a softmax subtract?"
    )
    compare(call(q, k, v, docs), attention(q, k, v, docs), docs, "large scores", {}, cause)

    # A row of padding only.
    docs[1] = -1
    cause = "Row 1 is padding only, row 0 is as before"
    compare(call(q, k, v, docs), attention(q, k, v, docs), docs, "a row of padding", {}, cause)


def wrong_attention(q: Tensor, k: Tensor, v: Tensor, docs: Tensor) -> dict[str, Tensor]:
    """The usual mistakes, by what they look like."""
    D, H, H_kv, zeros = q.shape[3], q.shape[1], k.shape[1], torch.zeros_like(docs)
    same = docs[:, :, None] == docs[:, None, :]  # (B, T, T)
    past = torch.ones_like(same).tril()
    visible = (same | (docs < 0)[:, None, :]) & past  # (B, T, T)
    wrong = {
        "This is what comes without the factor 1 / sqrt(D)": attention(q * D**0.5, k, v, docs),
        "This is what comes with 1 / D in place of 1 / sqrt(D)": attention(q / D**0.5, k, v, docs),
        "This is what comes when tokens see the future": masked(q, k, v, same[:, None]),
        "This is what comes when the documents are ignored": attention(q, k, v, zeros),
        "Real tokens see padding": masked(q, k, v, visible[:, None]),
        "This is what comes when every row has the documents of row 0": attention(
            q, k, v, docs[:1].expand_as(docs)
        ),
        "k and v have changed places": attention(q, v, k, docs),
    }
    if H != H_kv:
        turn = torch.arange(H).view(H_kv, -1).T.flatten()  # head h reads key-value head h % H_kv
        wrong["Query head h reads key-value head h % H_kv, expected h // G"] = attention(
            q[:, turn], k, v, docs
        )[:, turn.argsort()]
    return wrong


# ---- 1.2 -----------------------------------------------------------------------------------------


def turned(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """minseal's rotary positions, turned in float64 by its table in float32."""
    longest = int(positions.max()) + 1
    config = GPTConfig(head_dim=x.shape[3], rope_theta=theta, block_size=longest)
    cos, sin = (table.double()[positions][:, None] for table in rope_table(config))
    return rotate(x.double(), cos, sin)  # (B, H, T, D)


def wrong_turns(x: Tensor, positions: Tensor, theta: float) -> dict[str, Tensor]:
    B, H, T, D = x.shape
    order = torch.arange(D).view(D // 2, 2).T.flatten()  # 0, 2, 4, ..., 1, 3, 5, ...
    other = torch.arange(D).roll(D // 2)
    given = torch.arange(T).expand(B, T)
    return {
        "The pairs are (0, 1), (2, 3), ...; expected (i, i + D/2)": turned(
            x[..., order], positions, theta
        )[..., order.argsort()],
        "It is turned the other way: check the sign of the sine": turned(
            x[..., other], positions, theta
        )[..., other],
        "The exponent is -i / D; expected -2 i / D": turned(x, positions, theta**0.5),
        "This is theta = 10000; use the argument": turned(x, positions, 10_000.0),
        "These are the positions 0, 1, 2, ...; use the argument": turned(x, given, theta),
        "Every row is turned by the positions of row 0": turned(
            x, positions[:1].expand_as(positions), theta
        ),
        "All positions are one too large": turned(x, positions + 1, theta),
    }


def check_rotary(call: Call, luck: Luck) -> None:
    def case(what: str, x: Tensor, positions: Tensor, theta: float, cause: str) -> None:
        got, expected = call(x, positions, theta), turned(x, positions, theta)
        if isinstance(got, Tensor) and got.shape == expected.shape and not got.is_complex():
            for suspect, wrong in wrong_turns(x, positions, theta).items():
                if agree(got.double(), wrong):
                    cause = suspect
        # Sines from float64 angles, stored in float32: 1e-7. In float32 an angle of 50000 / 10 is
        # off by 3e-4.
        close(got, expected, TOLERANCE, what, cause)

    x = luck.normal(2, 2, 3, 4)
    zeros = torch.zeros(2, 3, dtype=torch.long)
    case("position 0", x, zeros, 10_000.0, "At position 0 nothing is turned")

    x = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    case("x = [1, 0], D = 2, position 1", x, zeros[:1, :1] + 1, 100.0, "Expected [cos 1, sin 1]")

    cause = "D = 4: pair 0 turns by position, pair 1 by position / sqrt(theta)"
    x, positions = luck.normal(1, 1, 4, 4), torch.arange(4)[None]
    case("D = 4, theta 100", x, positions, 100.0, cause)

    for _ in range(2):
        B, H, T, D = 2, luck.whole(1, 3), luck.whole(4, 7), luck.pick((6, 8, 10, 16))
        positions = torch.tensor(luck.rng.integers(0, 300, (B, T)))
        theta = luck.pick((50.0, 1_000.0, 500_000.0))
        cause = "One row, D = 4 and small positions are right: see the exponent, rows and dtypes"
        what = f"x {(B, H, T, D)}, theta {theta:g}, positions {positions.tolist()}"
        case(what, luck.normal(B, H, T, D), positions, theta, cause)

    B, H, T, D = 2, 2, 6, luck.pick((6, 8))
    positions = torch.tensor(luck.rng.integers(20_000, 50_001, (B, T))) | 1
    cause = "Small positions are right, large ones are not: how exact is the angle, in which dtype?"
    case(f"positions {positions.tolist()}", luck.normal(B, H, T, D), positions, 10_000.0, cause)


# ---- 1.4 -----------------------------------------------------------------------------------------


def check_decode(call: Call, luck: Luck) -> None:
    def case(what: str, H: int, H_kv: int, docs: Tensor, steps: list[int], cause: str) -> None:
        """All tokens in several steps; the first step has an empty cache."""
        (B, T), D = docs.shape, luck.pick((4, 6, 8))
        q, k, v, docs = draw(luck, B, H, H_kv, T, D, docs)
        expected = attention(q, k, v, docs)  # (B, H, T, D), the full pass
        cache = [k[:, :, :0], v[:, :, :0], docs[:, :0]]
        a = 0
        for n in steps:
            b = a + n
            new = [x[:, :, a:b] for x in (q, k, v)] + [docs[:, a:b]]
            where = f"{what}: {n} new tokens, {a} in the cache"
            y, *cache = tuple_of(call(*new, *cache), 4, where)
            suspects = wrong_steps(q, k, v, docs, a, b)
            compare(y, expected[:, :, a:b], docs[:, a:b], f"{where}: y", suspects, cause)
            for name, got, whole in zip(("new_k", "new_v"), cache, (k, v)):
                whole, grown = whole[:, :, :b], "The cache is the old tokens, then the new ones"
                if H != H_kv:
                    grown += ", with H_kv heads"
                close(got, whole, 1e-6, f"{where}: {name}", grown)  # copies: nothing is rounded
            grown = "The cached ones, then the new ones"
            close(cache[2], docs[:, :b], 0, f"{where}: new_docs", grown)
            cache[2] = docs[:, :b]  # whole numbers, if they came as floats
            a = b

    def zeros(B: int, T: int) -> Tensor:
        return torch.zeros(B, T, dtype=torch.long)

    T = luck.whole(3, 6)
    what = "All at once"
    cause = "An empty cache: this is grouped attention over the new tokens"
    case(what, 2, 2, zeros(1, T), [T], cause)
    what, cause = "One by one", "A new token sees the whole cache and itself"
    case(what, 2, 2, zeros(2, T), [1] * T, cause)
    what = "Some at once"
    cause = "New token n of N sees the whole cache, new tokens 0 to n, and no later ones"
    case(what, 2, 2, zeros(2, 8), [luck.whole(2, 3), 1, luck.whole(2, 3), 1], cause)
    what, cause = "Grouped heads", "As before, but H_kv < H: query head h reads head h // G"
    case(what, 4, 2, zeros(2, 6), [2, 3, 1], cause)

    # Left-padded prompts of different lengths, as when sampling.
    long, short = luck.whole(5, 6), luck.whole(2, 3)
    docs = zeros(3, 9)
    docs[1, : long - short], docs[2, : long - 2 * short + 1] = -1, -1
    what, cause = f"Left-padded {docs.tolist()}", "Padding in the cache is seen by no real token"
    case(what, 4, 2, docs, [long, 1, 2], cause)

    # Packed rows: a step may end anywhere in a document.
    docs = packed(luck, 2, 12, True)
    what = f"Packed {docs.tolist()}"
    cause = "A new token sees the cached tokens of its own document only"
    H_kv = luck.whole(1, 3)
    case(what, 2 * H_kv, H_kv, docs, [luck.whole(2, 5), 1, 3, luck.whole(1, 3)], cause)
    case(what, 2 * H_kv, H_kv, docs, [3] + [1] * 9, cause)


def wrong_steps(q: Tensor, k: Tensor, v: Tensor, docs: Tensor, a: int, b: int) -> dict[str, Tensor]:
    """The usual mistakes of tokens a to b - 1."""
    q, k, v, new, docs = q[:, :, a:b], k[:, :, :b], v[:, :, :b], docs[:, a:b], docs[:, :b]
    same = (new[:, :, None] == docs[:, None, :])[:, None]  # (B, 1, N, S + N)
    corner = same & torch.ones_like(same).tril()
    wrong = {
        "The new tokens see later new ones": masked(q, k, v, same),
        "The new tokens do not see the cache": attention(q, k[:, :, a:], v[:, :, a:], new),
        "The mask's diagonal starts at key 0; the first new token is key S": masked(
            q, k, v, corner
        ),
        "Padding in the cache is seen, or other documents": masked(
            q, k, v, torch.ones_like(same).tril(a)
        ),
    }
    return {cause: y.nan_to_num() for cause, y in wrong.items()}


# ---- 1.5 -----------------------------------------------------------------------------------------


def check_choose(call: Call, luck: Luck) -> None:
    def case(
        what: str, logits: Tensor, dice: Tensor, temperature: float, top_p: float, cause: str
    ) -> None:
        got, expected = (
            call(logits, dice, temperature, top_p),
            choose(logits, dice, temperature, top_p),
        )
        what = f"{what}, temperature {temperature:g}, top_p {top_p:g}"
        if not isinstance(got, Tensor) or got.shape != expected.shape:
            raise Wrong(f"{what}: expected a tensor ({len(dice)},) of tokens, got {brief(got)}")
        for suspect, wrong in wrong_choices(logits, dice, temperature, top_p).items():
            if got.tolist() == wrong.tolist():
                cause = suspect
        for b, (mine, yours) in enumerate(zip(expected.tolist(), got.tolist())):
            if mine != yours:
                right = int((got == expected).sum())
                row = f"row {b}, dice {dice[b]:.17g}: expected token {mine}, got {yours}"
                raise Wrong(f"{what}: {row}; {right} of {len(dice)} rows agree. {cause}")

    def rows(B: int, V: int, spread: float = 1.5) -> Tensor:
        return luck.normal(B, V) * spread  # float32, as a model's

    # Greedy; of equal logits the first.
    logits, dice = rows(5, 9), luck.uniform(5)
    case("greedy", logits, dice, 0.0, 1.0, "temperature 0 is the argmax, whatever the dice")
    case("greedy", logits, dice, 0.0, 0.5, "temperature 0 is the argmax, whatever top_p is")
    tied = torch.tensor([[0.0, 2.0, 1.0, 2.0]])
    case("greedy, a tie", tied, dice[:1], 0.0, 1.0, "Of equal logits the lowest token is chosen")

    # The border: equal probabilities that are exact in float64 (and float32).
    V = luck.pick((4, 8))
    dice = torch.arange(V).double() / V
    cause = f"All tokens have probability 1/{V}: dice j/{V} gives token j. F(t) > dice, or >=?"
    case("equal logits", torch.zeros(V, V), dice, 1.0, 1.0, cause)
    case("one token only", torch.zeros(2, 1), luck.uniform(2), 1.0, 0.9, "It can be token 0 only")

    # The distribution function, then temperature, then top_p.
    for _ in range(2):
        logits = rows(12, luck.whole(5, 12))
        dice = settled(luck, logits, 1.0, 1.0)
        cause = "The smallest token t whose F(t), the sum of p[0] to p[t], is above dice"
        case("dice", logits, dice, 1.0, 1.0, cause)
    for temperature in (luck.pick((0.4, 0.6)), luck.pick((1.7, 2.5))):
        dice = settled(luck, logits, temperature, 1.0)
        cause = "temperature 1 is right: the logits are divided by the temperature"
        case("dice", logits, dice, temperature, 1.0, cause)
    probs = torch.tensor([[0.1, 0.5, 0.1, 0.3]]).expand(4, 4)
    dice = torch.tensor([0.05, 0.6, 0.65, 0.95], dtype=torch.float64)
    cause = (
        "Tokens 1 and 3 stay: nothing likelier is before token 1, 0.5 < 0.7 before token 3, and "
        "0.8 before the others. Then F is 0, 0.5, 0.5, 0.8: the first that is above dice * 0.8"
    )
    case("probabilities [0.1, 0.5, 0.1, 0.3]", probs.log(), dice, 1.0, 0.7, cause)
    for top_p in (0.7, 0.5, 0.9, 0.3):
        logits = rows(24, luck.whole(6, 12), 1.0)
        dice = settled(luck, logits, 1.0, top_p)
        cause = "The example of the handout is right: is each row on its own? Which tokens stay?"
        case("dice", logits, dice, 1.0, top_p, cause)
    for temperature in (2.5, 0.5):
        logits = rows(24, 8, 1.0)
        dice = settled(luck, logits, temperature, 0.6)
        cause = "Temperature first: top_p looks at the probabilities that it gives"
        case("dice", logits, dice, temperature, 0.6, cause)
    dice = luck.uniform(24)
    case("dice", logits, dice, 1.0, 0.0, "top_p 0 keeps the likeliest token")

    # The ends: the first and the last tokens are unlikely, top_p drops them.
    logits = rows(6, 8, 0.3)
    logits[:, :2] -= 5
    logits[:, -2:] -= 5
    for end in (0.0, LAST):
        dice = torch.full((6,), end, dtype=torch.float64)
        cause = (
            "Tokens 0, 1 and the last two are dropped. They never come, even at the ends of dice"
        )
        case(f"dice {end:.17g}", logits, dice, 1.0, 0.9, cause)
        cause = "Nothing is dropped: dice 0 gives token 0, the largest dice the last token"
        case(f"dice {end:.17g}", logits, dice, 1.0, 1.0, cause)

    # Impossible tokens, and a temperature that makes exp() overflow.
    logits = rows(12, 9)
    logits[:, 0] = logits[:, 4] = logits[:, -1] = -math.inf
    cause = "A logit of -inf is probability 0: it never comes, not even at the ends of dice"
    for top_p in (1.0, 0.8):
        dice = settled(luck, logits, 1.0, top_p)
        dice[0], dice[1] = 0.0, LAST
        case("logits of -inf", logits, dice, 1.0, top_p, cause)
    logits = rows(12, 9) * 0.02 + 40
    dice = settled(luck, logits, 0.02, 0.9)
    cause = "Logits / temperature are 2000 here: exp() of them overflows"
    case("large logits", logits, dice, 0.02, 0.9, cause)

    # A flat distribution over many tokens.
    logits = rows(3, 1500, 0.05)
    dice = settled(luck, logits, 1.0, 0.9)
    case("1500 tokens", logits, dice, 1.0, 0.9, "Few tokens are right: do all 1500 take part?")


def settled(luck: Luck, logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """dice (B,) that give the same token a little above and below, in dice and in top_p."""
    # Above float32's rounding, so that nobody passes or fails by luck.
    margin = 1e-3 if logits.shape[1] < 1000 else 1e-5
    dice = luck.uniform(len(logits))
    for _ in range(100):
        found = [
            choose(logits, (dice + d).clamp(0, LAST), temperature, top_p + p if top_p < 1 else 1.0)
            for d in (-margin, margin)
            for p in (-margin, margin)
        ]
        bad = (torch.stack(found) != found[0]).any(0)  # (B,)
        if not bad.any():
            break
        dice = torch.where(bad, luck.uniform(len(logits)), dice)
    return dice


def wrong_choices(
    logits: Tensor, dice: Tensor, temperature: float, top_p: float
) -> dict[str, Tensor]:
    ranked, order = logits.sort(-1, descending=True)  # (B, V)
    rank = choose(ranked, dice, temperature, top_p)  # (B,)
    wrong = {
        "This is F over the tokens from likely to unlikely; expected by token number": order.gather(
            1, rank[:, None]
        )[:, 0],
        "This is what comes when top_p is ignored": choose(logits, dice, temperature, 1.0),
        "These are ranks, not tokens": rank,
        "This is the argmax: do too few tokens stay?": logits.argmax(-1),
    }
    if temperature not in (0, 1):
        wrong["This is what comes at temperature 1. Or does top_p come before it?"] = choose(
            logits, dice, 1.0, top_p
        )
        wrong["The logits are multiplied by the temperature; expected divided"] = choose(
            logits, dice, 1 / temperature, top_p
        )
    return wrong


# ---- 1.6 -----------------------------------------------------------------------------------------


def check_positions(call: Call, luck: Luck) -> None:
    def case(docs: Tensor, cause: str) -> None:
        expected = positions_in_document(docs).masked_fill(docs < 0, 0)  # (B, T)
        got = call(docs)
        if isinstance(got, Tensor) and got.shape == expected.shape:
            if got.tolist() == positions_in_document(docs).tolist():
                cause = "The positions of padding are counted; expected 0"
            if got.tolist() == torch.arange(docs.shape[1]).expand_as(docs).tolist():
                cause = "These are the columns: the positions do not restart"
        close(got, expected, 0, f"docs {docs.tolist()}", cause)  # whole numbers: no tolerance

    case(torch.full((1, luck.whole(2, 6)), 3), "One document: 0, 1, 2, ...")
    case(torch.tensor([[0, 0, 0, 1, 1]]), "A new document starts at column 3")
    case(torch.tensor([[5, 5, 2, 9, 9, 9, 0]]), "Document numbers are in no order, some are 0")
    case(torch.tensor([[-1, -1, 0, 0, 0]]), "The first real token has position 0, as padding has")
    case(
        packed(luck, 2, luck.whole(10, 14), False), "One row is right: does each row have its own?"
    )
    case(packed(luck, 3, luck.whole(12, 20), True), "Padding between documents is position 0")
    docs = packed(luck, 2, 12, True)
    docs[luck.whole(0, 1)] = -1
    case(docs, "A row of padding only is all zeros")


PROBLEMS = [
    Problem(
        "1.1", "Attention inside documents", "causal_attention", 4, 0.2, check_attention, READY_MADE
    ),
    Problem("1.2", "Rotary positions", "rotary", 4, 0.2, check_rotary),
    Problem("1.3", "Grouped heads", "grouped_attention", 2, 0.2, check_grouped, READY_MADE),
    Problem("1.4", "Key-value cache", "decode_step", 4, 0.3, check_decode, READY_MADE),
    Problem("1.5", "Top-p sampling", "choose", 4, 0.3, check_choose, SAMPLERS),
    Problem("1.6", "Positions in documents", "document_positions", 2, 0.1, check_positions),
]
