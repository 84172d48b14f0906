"""Wrong versions of the reference that the checks must catch, and right ones that must pass."""

import math

import torch


def pack_one_by_one(f):
    """Every document has a row to itself."""
    return lambda documents, row_tokens: f(documents, 1)


def pack_first_fit(f):
    """A document goes into the first row with room for it, also an earlier one."""

    def g(documents, row_tokens):
        rows = []
        for i, d in enumerate(documents):
            used = [sum(len(documents[j]["ids"]) for j in row) for row in rows]
            fits = [r for r, n in enumerate(used) if n + len(d["ids"]) <= row_tokens]
            rows[fits[0]].append(i) if fits else rows.append([i])
        order = [i for row in rows for i in row]
        return rows, *f([documents[i] for i in order], row_tokens)[1:]

    return g


def pack_changed(change):
    """change(rows, ids, docs, positions) of the right result."""
    return lambda f: lambda documents, row_tokens: change(*f(documents, row_tokens))


def docs_of_all(rows, ids, docs, positions):
    """Documents are numbered through all rows."""
    first = torch.tensor([row[0] for row in rows])[:, None]  # (B, 1)
    return rows, ids, torch.where(docs < 0, docs, docs + first), positions


def running(rows, ids, docs, positions):
    return rows, ids, docs, torch.arange(ids.shape[1]).expand_as(ids)


def padded(rows, ids, docs, positions, row_tokens=64):
    """Rows as wide as a fixed number."""
    wide = row_tokens - ids.shape[1]
    pad = lambda x, value: torch.nn.functional.pad(x, (0, wide), value=value)
    return rows, pad(ids, 0), pad(docs, -1), pad(positions, 0)


def label_joined(f):
    """The documents of a row are one: the last token of one predicts the first of the next."""

    def g(documents, rows):
        joined = [
            {key: sum((documents[i][key] for i in row), []) for key in ("ids", "weights")}
            for row in rows
        ]
        return f(joined, [[r] if row else [] for r, row in enumerate(rows)])

    return g


def label_no_shift(f):
    """A place predicts its own token."""

    def g(documents, rows):
        longer = [{key: [d[key][0], *d[key]] for key in d} for d in documents]
        targets, weights = f(longer, rows)
        T = max(sum(len(documents[i]["ids"]) for i in row) for row in rows)
        return targets[:, :T], weights[:, :T]

    return g


def label_weight_here(f):
    """The weight of a place is its own token's, not the predicted one's."""

    def g(documents, rows):
        back = [{"ids": d["ids"], "weights": [0.0, *d["weights"][:-1]]} for d in documents]
        return f(back, rows)

    return g


def label_all(f):
    """Tokens of weight 0 are targets too."""

    def g(documents, rows):
        ones = [{"ids": d["ids"], "weights": [1.0] * len(d["ids"])} for d in documents]
        return f(ones, rows)[0], f(documents, rows)[1]

    return g


def label_positive(f):
    """Negative weights count as none."""

    def g(documents, rows):
        return f(
            [{"ids": d["ids"], "weights": [max(w, 0.0) for w in d["weights"]]} for d in documents],
            rows,
        )

    return g


def scaled(factor):
    """Multiply what comes for student k by factor(targets, weights) of its rows."""

    def make(f):
        def g(logits, targets, weights, K):
            out, b = f(logits, targets, weights, K), len(logits) // K
            for k in range(K):
                rows = slice(k * b, (k + 1) * b)
                by = factor(targets[rows], weights[rows])
                if len(out) == K and out.dim() == 1:
                    out[k] *= by
                else:
                    out[rows] *= by
            return out

        return g

    return make


count = lambda targets: int((targets >= 0).sum())
by_sum = scaled(lambda targets, weights: count(targets) / (float(weights.sum()) or 1.0))
by_places = scaled(lambda targets, weights: count(targets) / targets.numel())
undivided = scaled(lambda targets, weights: max(1, count(targets)))


def unweighted(f):
    return lambda logits, targets, weights, K: f(logits, targets, (weights != 0).double(), K)


def mean_of_means(f):
    """Each row divided by its own count, then the mean over rows."""

    def g(logits, targets, weights, K):
        b = len(logits) // K
        return f(logits, targets, weights, K * b).reshape(K, b).mean(1)

    return g


def masked_by_product(f):
    """All places are computed, then multiplied by 0 where there is no loss: 0 NaN = NaN."""

    def g(logits, targets, weights, K):
        extra = (0 * logits).reshape(K, -1).sum(1)  # (K,)
        out = f(logits, targets, weights, K)
        return (
            out + extra.reshape(K, *[1] * (out.dim() - 1)) if out.dim() == 1 else out + 0 * logits
        )

    return g


def naive_exp(f):
    """exp() without the largest logit taken off first."""

    def g(logits, targets, weights, K):
        p = logits.exp() / logits.exp().sum(-1, keepdim=True)  # (K b, T, V)
        return f(torch.where(targets[..., None] >= 0, p.log(), 0.0), targets, weights, K)

    return g


def empty_is_nan(f):
    """0 / 0 for a student without a token that carries loss."""

    def g(logits, targets, weights, K):
        out = f(logits, targets, weights, K)
        none = (targets < 0).reshape(K, -1).all(1)  # (K,)
        if out.dim() == 1:
            return torch.where(none, torch.nan, out)
        b = len(out) // K
        return torch.where(none.repeat_interleave(b)[:, None, None], torch.nan, out)

    return g


def no_one_hot(f):
    """Softmax alone, without taking off 1 at the target."""

    def g(logits, targets, weights, K):
        one_hot = torch.nn.functional.one_hot(targets.clamp(min=0), logits.shape[-1])
        share = one_hot * weights[..., None]  # (K b, T, V)
        b = len(logits) // K
        n = (targets >= 0).reshape(K, -1).sum(1).clamp(min=1).repeat_interleave(b)
        return f(logits, targets, weights, K) + share / n[:, None, None]

    return g


def mean_over_students(f):
    """The gradient of the mean over students, not of the sum."""
    return lambda logits, targets, weights, K: f(logits, targets, weights, K) / K


def train_with(**changes):
    """Other arguments: train_with(scale=lambda scale: 1.0)."""
    names = "documents row_tokens E P W A B scale rates".split()

    def make(f):
        def g(*args):
            given = dict(zip(names, args))
            for name, change in changes.items():
                given[name] = change(given[name])
            return f(*given.values())

        return g

    return make


def joined(documents):
    """All documents as a single one."""
    return [{key: sum((d[key] for d in documents), []) for key in ("ids", "weights")}]


def uncorrected(rates):
    """Adam without bias corrections is Adam with other rates (but for eps)."""
    return [r * (1 - 0.9**s) / math.sqrt(1 - 0.999**s) for s, r in enumerate(rates, 1)]


def train_late_losses(f):
    """Each loss is taken after its step."""

    def g(documents, row_tokens, E, P, W, A, B, scale, rates):
        curve = f(documents, row_tokens, E, P, W, A, B, scale, [*rates, 0.0])[0][1:]
        return curve, *f(documents, row_tokens, E, P, W, A, B, scale, rates)[1:]

    return g


def train_only_B(f):
    """A keeps its start, as if it were frozen (in what is returned)."""
    return lambda *args: (f(*args)[0], args[5], f(*args)[2])


def train_restarting(f):
    """Moments begin anew at each step."""

    def g(documents, row_tokens, E, P, W, A, B, scale, rates):
        curve = []
        for rate in rates:
            (loss,), A, B = f(documents, row_tokens, E, P, W, A, B, scale, [rate])
            curve.append(loss)
        return curve, A, B

    return g


def train_A_then_B(f):
    """A step's B is made with the A of after the step: two losses, two gradients a step."""

    def g(documents, row_tokens, E, P, W, A, B, scale, rates):
        curve = []
        for s, rate in enumerate(rates):
            (loss,), A, _ = f(documents, row_tokens, E, P, W, A, B, scale, [rate])
            _, _, B = f(documents, row_tokens, E, P, W, A, B, scale, [rate])
            curve.append(loss)
        return curve, A, B

    return g


def all_changed(change):
    """change(losses, A, B, failed, A at first, B at first) of the right result."""
    return lambda f: lambda *args: change(*f(*args), *args[5:7])


def all_with(change):
    """Other edits."""
    return lambda f: lambda edits, *args: f(change(edits), *args)


def same_length(edits):
    """All train as long as the longest."""
    most = max(len(e["rates"]) for e in edits)
    longer = lambda rates: [*rates, *[rates[-1] if rates else 0.01] * (most - len(rates))]
    return [{**e, "rates": longer(e["rates"])} for e in edits]


def drifting(f):
    """Those who are through go on, on their momentum; their losses are those of their own steps."""

    def g(edits, *args):
        curves, _, _, failed = f(edits, *args)
        _, A, B, _ = f(same_length(edits), *args)
        return curves, A, B, failed

    return g


def failed_keep_start(curves, A, B, failed, A0, B0):
    for k, reason in enumerate(failed):
        if reason:
            A[k], B[k] = A0, B0
    return curves, A, B, failed


def spreading(curves, A, B, failed, A0, B0):
    """One student's NaN reaches all."""
    if any(failed):
        A, B = A * math.nan, B * math.nan
    return curves, A, B, failed


def from_zero(curves, A, B, failed, A0, B0):
    """Steps are counted from 0."""
    failed = [reason and f"failed at step {len(c) - 1}" for reason, c in zip(failed, curves)]
    return curves, A, B, failed


def without_reason(curves, A, B, failed, A0, B0):
    return curves, A, B, ["the loss is not finite" if reason else "" for reason in failed]


def good_losses(curves, A, B, failed, A0, B0):
    """The loss that was NaN is not listed."""
    return [[x for x in c if math.isfinite(x)] for c in curves], A, B, failed


def last_step_unseen(curves, A, B, failed, A0, B0):
    """Weights are not looked at after the last step."""
    for k, curve in enumerate(curves):
        if failed[k] and all(map(math.isfinite, curve)):
            failed[k], A[k], B[k] = "", A[k] + math.nan, B[k] + math.nan
    return curves, A, B, failed


def giving_up(f):
    """All students stop when one fails."""

    def g(edits, *args):
        curves, A, B, failed = f(edits, *args)
        stops = [len(c) for c, reason in zip(curves, failed) if reason]
        if not stops:
            return curves, A, B, failed
        return f([{**e, "rates": e["rates"][: min(stops)]} for e in edits], *args)

    return g


MUTANTS = {
    "a row takes one token too many": ("3.1", lambda f: lambda d, n: f(d, n + 1)),
    "a full row counts as too full": ("3.1", lambda f: lambda d, n: f(d, max(1, n - 1))),
    "a document a row": ("3.1", pack_one_by_one),
    "first fit": ("3.1", pack_first_fit),
    "positions run on through a row": ("3.1", pack_changed(running)),
    "documents numbered through all rows": ("3.1", pack_changed(docs_of_all)),
    "rows of a fixed width": ("3.1", pack_changed(padded)),
    "padding is document 0": (
        "3.1",
        pack_changed(lambda rows, ids, docs, positions: (rows, ids, docs.clamp(min=0), positions)),
    ),
    "the next document's first token is a target": ("3.2", label_joined),
    "no shift": ("3.2", label_no_shift),
    "the weight of the wrong token": ("3.2", label_weight_here),
    "targets of weight 0": ("3.2", label_all),
    "negative weights are dropped": ("3.2", label_positive),
    "divided by the sum of weights": ("3.3", by_sum),
    "divided by all places": ("3.3", by_places),
    "not divided": ("3.3", undivided),
    "weights are not in the loss": ("3.3", unweighted),
    "mean of the rows' means": ("3.3", mean_of_means),
    "0 times NaN": ("3.3", masked_by_product),
    "exp overflows": ("3.3", naive_exp),
    "0 / 0": ("3.3", empty_is_nan),
    "gradient: not divided": ("3.4", undivided),
    "gradient: divided by the sum of weights": ("3.4", by_sum),
    "gradient: without weights": ("3.4", unweighted),
    "gradient: without one-hot": ("3.4", no_one_hot),
    "gradient: of the mean over students": ("3.4", mean_over_students),
    "gradient: wrong sign": ("3.4", lambda f: lambda *args: -f(*args)),
    "gradient: 0 times NaN": ("3.4", masked_by_product),
    "gradient: 0 / 0": ("3.4", empty_is_nan),
    "scale forgotten": ("3.5", train_with(scale=lambda scale: 1.0)),
    "positions forgotten": ("3.5", train_with(P=lambda P: P[:1].expand_as(P).contiguous())),
    "documents run into each other": ("3.5", train_with(documents=joined)),
    "no bias corrections": ("3.5", train_with(rates=uncorrected)),
    "losses after the step": ("3.5", train_late_losses),
    "A is not trained": ("3.5", train_only_B),
    "Adam forgets": ("3.5", train_restarting),
    "A first, then B": ("3.5", train_A_then_B),
    "one step less": ("3.5", train_with(rates=lambda rates: rates[:-1])),
    "all train as long as the longest": ("3.6", all_with(same_length)),
    "momentum goes on after the last step": ("3.6", drifting),
    "one learning rate for all": (
        "3.6",
        all_with(lambda edits: [{**e, "rates": [0.03 + 0 * r for r in e["rates"]]} for e in edits]),
    ),
    "one who failed keeps where it started": ("3.6", all_changed(failed_keep_start)),
    "NaN spreads": ("3.6", all_changed(spreading)),
    "steps from 0": ("3.6", all_changed(from_zero)),
    "a reason without the step": ("3.6", all_changed(without_reason)),
    "the bad loss is left out": ("3.6", all_changed(good_losses)),
    "the weights after the last step": ("3.6", all_changed(last_step_unseen)),
    "all stop when one fails": ("3.6", giving_up),
}


# ---- right ones ----


def pack_in_parts(f):
    """The rows from the result of another route: each row packed again by itself."""

    def g(documents, row_tokens):
        rows, ids, docs, positions = f(documents, row_tokens)
        for r, row in enumerate(rows):
            _, *alone = f([documents[i] for i in row], 10**6)
            for whole, part in zip((ids, docs, positions), alone):
                whole[r, : part.shape[1]] = part[0]
        return rows, ids, docs, positions

    return g


def label_row_by_row(f):
    def g(documents, rows):
        made = [f(documents, [row]) for row in rows if row]
        T = max(targets.shape[1] for targets, _ in made)
        out = torch.full((len(rows), T), -1), torch.zeros(len(rows), T, dtype=torch.float64)
        for i, (targets, weights) in zip([i for i, row in enumerate(rows) if row], made):
            out[0][i, : targets.shape[1]], out[1][i, : targets.shape[1]] = targets[0], weights[0]
        return out

    return g


def student_by_student(f):
    def g(logits, targets, weights, K):
        parts = zip(*(x.chunk(K) for x in (logits, targets, weights)))
        return torch.cat([f(*part, 1) for part in parts])

    return g


def in_float32(f):
    """Tensors of float64 become float32 on the way in, and results float64 again."""
    narrow = lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
    wide = lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    def g(*args):
        out = f(*map(narrow, args))
        return wide(out) if isinstance(out, torch.Tensor) else tuple(map(wide, out))

    return g


def rows_reversed(f):
    """The rows of each student in another order; the result in the old one."""

    def g(logits, targets, weights, K):
        b = len(logits) // K
        turn = lambda x: x.unflatten(0, (K, b)).flip(1).flatten(0, 1)
        out = f(turn(logits), turn(targets), turn(weights), K)
        return out if out.dim() == 1 else turn(out)

    return g


def moved(f):
    """The same number taken off all logits of a place changes nothing."""

    def g(logits, targets, weights, K):
        top = logits.max(-1, keepdim=True).values
        return f(logits - top, targets, weights, K)

    return g


def other_words(f):
    """The vocabulary in another order, and B's rows back in the old one."""

    def g(documents, row_tokens, E, P, W, A, B, scale, rates):
        order = torch.arange(len(E)).flip(0)
        renamed = [{**d, "ids": [len(E) - 1 - i for i in d["ids"]]} for d in documents]
        curve, A, B = f(renamed, row_tokens, E[order], P, W[order], A, B[order], scale, rates)
        return curve, A, B[order]

    return g


def one_by_one(f):
    def g(edits, *args):
        parts = [f([edit], *args) for edit in edits]
        curves, A, B, failed = zip(*parts)
        return sum(curves, []), torch.cat(A), torch.cat(B), sum(failed, [])

    return g


def in_reverse(f):
    def g(edits, *args):
        curves, A, B, failed = f(edits[::-1], *args)
        return curves[::-1], A.flip(0), B.flip(0), failed[::-1]

    return g


VARIANTS = {
    "packed row by row": ("3.1", pack_in_parts),
    "labelled row by row, weights in float64": ("3.2", label_row_by_row),
    "losses: student by student": ("3.3", student_by_student),
    "losses: rows in another order": ("3.3", rows_reversed),
    "losses: the largest logit taken off": ("3.3", moved),
    "losses: float32": ("3.3", in_float32),
    "gradient: student by student": ("3.4", student_by_student),
    "gradient: rows in another order": ("3.4", rows_reversed),
    "gradient: the largest logit taken off": ("3.4", moved),
    "gradient: float32": ("3.4", in_float32),
    "one document a row": ("3.5", train_with(row_tokens=lambda n: 1)),
    "documents in another order": ("3.5", train_with(documents=lambda d: d[::-1])),
    "another order of the vocabulary": ("3.5", other_words),
    "other rows": ("3.6", lambda f: lambda edits, n, *args: f(edits, 2 * n, *args)),
    "one by one": ("3.6", one_by_one),
    "in reverse": ("3.6", in_reverse),
}
