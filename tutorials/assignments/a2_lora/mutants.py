"""Wrong versions, each a mistake that students make, and right ones by another route.

(number of the problem, make): make(right function) gives the version.
"""

from collections.abc import Callable

import torch


def merge_first(f):
    def forward(x, W, A, B, alpha):
        merged = f(torch.eye(W.shape[1], dtype=W.dtype), W, A, B, alpha)  # (in, out)
        return x @ merged

    return forward


def in_float64(f):
    def run(*arguments):
        up = lambda t: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
        got = f(*map(up, arguments))
        return tuple(t.float() for t in got) if isinstance(got, tuple) else got.float()

    return run


def one_by_one(f):
    def run(x, W, A, B, alpha):
        groups = x.chunk(len(A))
        return torch.cat([f(g, W, A[k][None], B[k][None], alpha) for k, g in enumerate(groups)])

    return run


def dealt(f):
    """Row i through adapter i % K."""

    def run(x, W, A, B, alpha):
        K, rows = len(A), torch.arange(len(x))
        order = torch.argsort(rows % K, stable=True)
        y = f(x[order], W, A, B, alpha)
        back = torch.empty_like(y)
        back[order] = y
        return back

    return run


def all_meet_all(f):
    """By 0 and 1 in place of groups: 0 times NaN is NaN."""

    def run(x, W, A, B, alpha):
        K, b = len(A), len(x) // len(A)
        mask = torch.eye(K).repeat_interleave(b, 0)[:, :, None, None]  # (K b, K, 1, 1)
        plain = f(x, W, A, torch.zeros_like(B), alpha)
        each = [f(x, W, A[[k] * K], B[[k] * K], alpha) - plain for k in range(K)]
        return plain + (torch.stack(each, 1) * mask).sum(1)

    return run


def counts(targets, K):
    return (targets >= 0).view(K, -1).sum(1)  # (K,)


def rescaled(factor, total=torch.sum):
    """Each loss times factor(targets, weights, K)."""

    def make(f):
        def run(logits, targets, weights, K):
            each = f(logits, targets, weights, K)[0] * factor(targets, weights, K)
            return each, total(each)

        return run

    return make


def heavy(targets, weights, K):
    return weights.where(targets >= 0, 0.0).view(K, -1).sum(1)


def of_all_tokens(f):
    def run(logits, targets, weights, K):
        each, _ = f(logits, targets, weights, K)
        n = counts(targets, K)
        return each, (each * n).sum() / n.sum().clamp(min=1)

    return run


def nan_to_all(f):
    """Logits of tokens without loss are multiplied by 0, not left out."""

    def run(logits, targets, weights, K):
        each, _ = f(logits, targets, weights, K)
        each = each + (0 * logits).view(K, -1).sum(1)
        return each, each.sum()

    return run


def adapter_by_adapter(f):
    def run(logits, targets, weights, K):
        parts = zip(logits.chunk(K), targets.chunk(K), weights.chunk(K))
        each = torch.cat([f(*part, 1)[0] for part in parts])
        return each, each.sum()

    return run


def shifted_logits(f):
    def run(logits, targets, weights, K):
        finite = logits.where((targets >= 0)[..., None], 0.0)
        return f(finite - finite.amax(-1, keepdim=True), targets, weights, K)

    return run


def tokens_backwards(f):
    return lambda logits, targets, weights, K: f(
        logits.flip(1), targets.flip(1), weights.flip(1), K
    )


def adam(change=None, after=None):
    """Adam with its arguments changed, or its results, which see the arguments too."""

    def make(f):
        def run(p, g, m, v, step, lr, beta1, beta2, eps):
            given = dict(p=p, g=g, m=m, v=v, step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps)
            given |= change(given) if change else {}
            got = f(**given)
            return after(got, given) if after else got

        return run

    return make


def rate_along_last(f):
    """p - lr * step, where lr (K,) meets the last dimension, if that has such a size."""

    def run(p, g, m, v, step, lr, *rest):
        one = torch.ones_like(lr)
        if p.shape[-1] not in (1, len(lr)):
            return f(p, g, m, v, step, lr, *rest)
        new, *moments = f(p, g, m, v, step, one, *rest)
        return p + lr * (new - p), *moments

    return run


def eps_in_root(f):
    """v that is larger by eps before the root; the moments as they should be."""

    def run(p, g, m, v, step, lr, beta1, beta2, eps):
        _, new_m, new_v = f(p, g, m, v, step, lr, beta1, beta2, eps)
        more = v + eps * (1 - beta2**step) / beta2
        return f(p, g, m, more, step, lr, beta1, beta2, 1e-30)[0], new_m, new_v

    return run


def elementwise(f):
    """Each number as an adapter of its own."""

    def run(p, g, m, v, step, lr, *rest):
        flat = [t.reshape(-1, 1, 1) for t in (p, g, m, v)]
        each = lr[:, None, None].expand(p.shape).reshape(-1)
        return tuple(t.view(p.shape) for t in f(*flat, step, each, *rest))

    return run


def leaving(after):
    """let_go with results changed: after(results, arguments)."""

    def make(f):
        def run(*arguments):
            return after(list(f(*arguments)), arguments)

        return run

    return make


def by_place(got, arguments):
    """Finished tensors go where the place in the batch says."""
    _, _, _, numbers, _, _, table = arguments
    fresh, table = got[4], list(table)
    for place, k in enumerate(numbers):
        if fresh[k] is not None:
            table[place] = fresh[k]
    return *got[:4], table


def first_moments(got, arguments):
    n = len(got[3])
    return got[0], [t[:n] for t in arguments[1]], [t[:n] for t in arguments[2]], *got[3:]


def failed_kept(got, arguments):
    """The weights of one that failed are kept as they are."""
    params, _, _, numbers, *_ = arguments
    table = list(got[4])
    for place, k in enumerate(numbers):
        if k not in got[3]:
            table[k] = [t[place] for t in params]
    return *got[:4], table


def last_fills(got, arguments):
    """The last one takes the free place, as one removes from an unordered list."""
    numbers = arguments[3]
    order = [i for i, k in enumerate(numbers) if k in got[3]][::-1]
    tensors = [[t[order] for t in group] for group in arguments[:3]]
    return *tensors, [numbers[i] for i in order], got[4]


def table_anew(got, arguments):
    """The table forgets who left before."""
    return *got[:4], [row if k in arguments[3] else None for k, row in enumerate(got[4])]


def runs_on(f):
    """One whose loss is NaN trains on while it has steps left."""

    def run(params, m, v, numbers, losses, steps, table):
        calm = [[1.0] * len(curve) if len(curve) < n else curve for curve, n in zip(losses, steps)]
        return f(params, m, v, numbers, calm, steps, table)

    return run


def one_leaves_after_another(f):
    """A call for each that is over, beginning with the last."""

    def run(params, m, v, numbers, losses, steps, table):
        state = [params, m, v, numbers, table]
        for i in range(len(numbers))[::-1]:
            many = [9 if j != i else steps[i] for j in range(len(state[3]))]
            calm = [losses[i] if j == i else [] for j in range(len(state[3]))]
            state = list(f(*state[:4], calm, many, state[4]))
        return state

    return run


def with_lists_of_rows(f):
    """Out of lists of single rows, as lists and not as a tuple."""

    def run(params, m, v, *rest):
        again = [[torch.stack([*t]) for t in group] for group in (params, m, v)]
        return list(f(*again, *rest))

    return run


def gradients(after):
    """lora_gradients with results changed: after(grad_A, grad_B, grad_x, scale, run)."""

    def make(f):
        def run(x, W, A, B, alpha, grad_y):
            got = f(x, W, A, B, alpha, grad_y)
            return after(*got, alpha / A.shape[1], lambda W: f(x, W, A, B, alpha, grad_y))

        return run

    return make


def tokens_apart(f):
    """Token by token, then summed; grad_x put together."""

    def run(x, W, A, B, alpha, grad_y):
        parts = [
            f(x[:, t : t + 1], W, A, B, alpha, grad_y[:, t : t + 1]) for t in range(x.shape[1])
        ]
        a, b, c = zip(*parts)
        return sum(a), sum(b), torch.cat(c, 1)

    return run


def mixed(f):
    """Every adapter gets what the rows of all groups say."""

    def run(*arguments):
        a, b, c = f(*arguments)
        return a.sum(0).expand_as(a), b.sum(0).expand_as(b), c

    return run


def first_group_only(f):
    """The first row of each group alone reaches A and B."""

    def run(x, W, A, B, alpha, grad_y):
        b = len(x) // len(A)
        a, g, _ = f(x[::b], W, A, B, alpha, grad_y[::b])
        return a, g, f(x, W, A, B, alpha, grad_y)[2]

    return run


def moments_stay(f: Callable) -> Callable:
    """Only the parameters close up."""

    def let_go(params, m, v, *rest):
        out = f(params, m, v, *rest)
        return [out[0], m, v, *out[3:]]

    return let_go


def minus_infinity_is_fine(f: Callable) -> Callable:
    def let_go(params, m, v, numbers, losses, *rest):
        finite = [[0.0 if x == float("-inf") else x for x in curve] for curve in losses]
        return f(params, m, v, numbers, finite, *rest)

    return let_go


MUTANTS: dict[str, tuple[str, Callable]] = {
    "moments of those that left stay": ("2.6", moments_stay),
    "-infinity is no failure": ("2.6", minus_infinity_is_fine),
    "alpha, not alpha / R": (
        "2.1",
        lambda f: lambda x, W, A, B, alpha: f(x, W, A, B, alpha * len(A)),
    ),
    "alpha // R": (
        "2.1",
        lambda f: lambda x, W, A, B, alpha: f(x, W, A, B, alpha // len(A) * len(A)),
    ),
    "the update alone": ("2.1", lambda f: lambda x, W, *rest: f(x, W, *rest) - x @ W.T),
    "merged with alpha": ("2.2", lambda f: lambda W, A, B, a: f(W, A, B, a * len(A))),
    "merged without scale": ("2.2", lambda f: lambda W, A, B, a: f(W, A, B, len(A))),
    "merged and transposed": ("2.2", lambda f: lambda *arguments: f(*arguments).T),
    "the merged update alone": ("2.2", lambda f: lambda W, *rest: f(W, *rest) - W),
    "rows are dealt in turn": ("2.3", dealt),
    "adapter 0 for all": (
        "2.3",
        lambda f: lambda x, W, A, B, a: f(x, W, A[:1].expand_as(A), B[:1].expand_as(B), a),
    ),
    "0 times NaN": ("2.3", all_meet_all),
    "sums, not means": ("2.4", rescaled(lambda t, w, K: counts(t, K))),
    "divided by all tokens": (
        "2.4",
        rescaled(lambda t, w, K: counts(t, K) / (t.numel() // K)),
    ),
    "divided by the weights": (
        "2.4",
        rescaled(lambda t, w, K: counts(t, K) / heavy(t, w, K)),
    ),
    "divided by the tokens of all": (
        "2.4",
        rescaled(lambda t, w, K: counts(t, K) / counts(t, K).sum().clamp(min=1)),
    ),
    "NaN without tokens": (
        "2.4",
        rescaled(lambda t, w, K: counts(t, K) / counts(t, K)),
    ),
    "mean over adapters": ("2.4", rescaled(lambda t, w, K: 1.0, torch.mean)),
    "mean over all tokens": ("2.4", of_all_tokens),
    "logits without loss times 0": ("2.4", nan_to_all),
    "weights ignored": (
        "2.4",
        lambda f: lambda x, t, w, K: f(x, t, torch.ones_like(w), K),
    ),
    "targets shifted once more": (
        "2.4",
        lambda f: lambda x, t, w, K: f(x[:, :-1], t[:, 1:], w[:, 1:], K),
    ),
    "no bias correction": ("2.5", adam(lambda given: dict(step=10**9))),
    "steps from 0": ("2.5", adam(lambda given: dict(step=given["step"] + 1))),
    "one rate for all": (
        "2.5",
        adam(lambda given: dict(lr=given["lr"][:1].expand_as(given["lr"]))),
    ),
    "rates along the last dimension": ("2.5", rate_along_last),
    "eps inside the root": ("2.5", eps_in_root),
    "eps before the correction": (
        "2.5",
        adam(lambda g: dict(eps=g["eps"] / (1 - g["beta2"] ** g["step"]) ** 0.5)),
    ),
    "betas swapped": (
        "2.5",
        adam(lambda given: dict(beta1=given["beta2"], beta2=given["beta1"])),
    ),
    "corrected moments returned": (
        "2.5",
        adam(
            after=lambda got, given: (
                got[0],
                got[1] / (1 - given["beta1"] ** given["step"]),
                got[2] / (1 - given["beta2"] ** given["step"]),
            )
        ),
    ),
    "up, not down": ("2.5", adam(after=lambda got, g: (2 * g["p"] - got[0], *got[1:]))),
    "table by place": ("2.6", leaving(by_place)),
    "moments of the first ones": ("2.6", leaving(first_moments)),
    "moments start anew": (
        "2.6",
        leaving(lambda got, _: (got[0], *([0 * t for t in g] for g in got[1:3]), *got[3:])),
    ),
    "failed weights kept": ("2.6", leaving(failed_kept)),
    "order lost": ("2.6", leaving(last_fills)),
    "table anew": ("2.6", leaving(table_anew)),
    "NaN trains on": ("2.6", runs_on),
    "numbers not cut": ("2.6", leaving(lambda got, given: (*got[:3], given[3], got[4]))),
    "gradients without scale": ("2.7", gradients(lambda a, b, c, s, run: (a / s, b / s, c))),
    "x through A and B alone": (
        "2.7",
        lambda f: lambda x, W, *rest: f(x, torch.zeros_like(W), *rest),
    ),
    "adapters mixed": ("2.7", mixed),
    "first row alone": ("2.7", first_group_only),
}

VARIANTS: dict[str, tuple[str, Callable]] = {
    "merge first, multiply then": ("2.1", merge_first),
    "float64 and back, 2.1": ("2.1", in_float64),
    "float64 and back, 2.2": ("2.2", in_float64),
    "rank by rank": (
        "2.2",
        lambda f: (
            lambda W, A, B, alpha: (
                W
                + sum(f(0 * W, A[r][None], B[:, r][:, None], alpha / len(A)) for r in range(len(A)))
            )
        ),
    ),
    "adapter by adapter": ("2.3", one_by_one),
    "float64 and back, 2.3": ("2.3", in_float64),
    "losses adapter by adapter": ("2.4", adapter_by_adapter),
    "largest logit 0": ("2.4", shifted_logits),
    "tokens backwards": ("2.4", tokens_backwards),
    "each number on its own": ("2.5", elementwise),
    "Adam in float64": ("2.5", in_float64),
    "one after another": ("2.6", one_leaves_after_another),
    "rows apart and together": ("2.6", with_lists_of_rows),
    "token by token": ("2.7", tokens_apart),
    "gradients in float64": ("2.7", in_float64),
}
