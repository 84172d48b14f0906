"""The checks of problem set 2: by minseal in float64, Adam by torch.optim, over shapes and corners.

Tolerances. LORA 1e-4: float32 sums of at most some dozen terms of size 1 to 10, in any order; a
mistake is 0.01 and more. LOSS 1e-5: means of float32 logarithms. ADAM 1e-5: a step is at most a few
lr, which are 0.5 at most; bias corrections worked out in float32 are good to 1e-4 of a small step.
KEPT 0: what is moved about does not change.
"""

from typing import Any

import torch
from a2_lora import reference
from checks import Call, Luck, Problem, Wrong, brief, close, same, tuple_of
from torch import Tensor

LORA, LOSS, ADAM, KEPT = 1e-4, 1e-5, 1e-5, 0.0
CARRY = "is `carries loss` decided by the targets, -1 or not, and by nothing else?"


def likely(
    got: Any, expected: Tensor, mistakes: dict[str, Tensor], otherwise: str, within: float = 1e-4
) -> str:
    """The cause of a wrong result: the first whose mistake gives just this, and not the right."""
    near = lambda a, b: torch.allclose(a.double(), b.double(), rtol=within, atol=within)
    for cause, wrong in mistakes.items():
        alike = isinstance(got, Tensor) and got.shape == wrong.shape and not got.is_complex()
        right = wrong.shape == expected.shape and near(wrong, expected)
        if alike and near(got, wrong) and not right:
            return cause
    return otherwise


def doubles(*values: Any) -> list[Any]:
    return [value.double() if isinstance(value, Tensor) else value for value in values]


# ---- one adapter ----


def one_adapter(luck: Luck, kind: str) -> tuple[Tensor, Tensor, Tensor, float]:
    """W, A, B, alpha; x W^T and the update are of size 1 to 10."""
    if kind == "docstring":
        W, A, B = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0]])
        return W, A, B, 2.0
    n_in, n_out, R = luck.whole(3, 8), luck.whole(3, 8), luck.whole(2, 4)
    alpha = luck.pick([0.5, 2.0, 3.0, 7.0]) * R
    if kind == "rank 1":
        R, alpha = 1, luck.pick([2.0, 5.0])
    if kind == "whole":  # alpha is no multiple of R, and an int
        R, alpha = luck.pick([(2, 5), (4, 9), (3, 7), (3, 8)])
    if kind == "square":
        n_out = n_in
    if kind == "R > in":
        n_in, R = 2, luck.whole(3, 5)
    W = luck.normal(n_out, n_in) / n_in**0.5
    A, B = luck.normal(R, n_in) / n_in**0.5, luck.normal(n_out, R) / R**0.5
    return W, A, torch.zeros_like(B) if kind == "B = 0" else B, alpha


KINDS = ("docstring", "B = 0", "rank 1", "", "whole", "square", "R > in")


def check_forward(call: Call, luck: Luck) -> None:
    for kind in KINDS:
        W, A, B, alpha = one_adapter(luck, kind)
        for shape in ((luck.whole(2, 5),), (luck.whole(2, 3), luck.whole(2, 4)), ()):
            x, R = luck.normal(*shape, W.shape[1]), len(A)
            if kind == "docstring":
                x = torch.tensor([1.0, 2.0])
            expected = reference.lora_forward(*doubles(x, W, A, B, alpha))
            plain = reference.lora_forward(*doubles(x, W, A, 0 * B, alpha))
            update = expected - plain
            got = call(x, W, A, B, alpha)
            mistakes = {
                "This is x W^T alone: where is the update?": plain,
                "This is the update alone: W is still there, frozen.": update,
                "The update is scaled by alpha, not by alpha / R.": plain + update * R,
                "The update is not scaled by alpha / R.": plain + update * R / alpha,
                "The update is scaled by R / alpha.": plain + update * (R / alpha) ** 2,
                "alpha / R was rounded to a whole number.": plain
                + update * R / alpha * (alpha // R),
                "The update was subtracted.": plain - update,
            }
            other = "Is B 0 here? Then y is x W^T exactly." if kind == "B = 0" else ""
            cause = likely(
                got, expected, mistakes, other or "Which transposes does the formula have?"
            )
            named = f"x {tuple(x.shape)}, W {tuple(W.shape)}, R = {R}, alpha = {alpha}"
            named += " (the docstring's example)" * (kind == "docstring")
            close(got, expected, LORA, f"y for {named}", cause)


def check_merged(call: Call, luck: Luck) -> None:
    for kind in KINDS:
        W, A, B, alpha = one_adapter(luck, kind)
        R = len(A)
        expected = reference.merged(*doubles(W, A, B, alpha))
        update = expected - W
        got = call(W, A, B, alpha)
        mistakes = {
            "This is W unchanged: where is the update?": W,
            "This is the update alone: it is added to W.": update,
            "The update is scaled by alpha, not by alpha / R.": W + update * R,
            "The update is not scaled by alpha / R.": W + update * R / alpha,
            "alpha / R was rounded to a whole number.": W + update * R / alpha * (alpha // R),
            "The update was subtracted.": W - update,
            "The result is transposed: it takes the place of W.": expected.T,
        }
        if kind == "square":
            mistakes["The update is transposed: W is (out, in)."] = W + update.T
        cause = likely(got, expected, mistakes, "Is the product B A, (out, R) times (R, in)?")
        named = f"W {tuple(W.shape)}, R = {R}, alpha = {alpha}"
        named += " (the docstring's example)" * (kind == "docstring")
        close(got, expected, LORA, f"the merged matrix for {named}", cause)


# ---- K adapters ----


def many_adapters(luck: Luck, K: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """W (out, in), A (K, R, in), B (K, out, R), alpha."""
    n_in, n_out, R = luck.whole(3, 7), luck.whole(3, 7), luck.whole(2, 4)
    W = luck.normal(n_out, n_in) / n_in**0.5
    A, B = luck.normal(K, R, n_in) / n_in**0.5, luck.normal(K, n_out, R) / R**0.5
    return W, A, B, luck.pick([0.5, 2.0, 3.0]) * R


def sizes(luck: Luck) -> list[tuple[int, int, int]]:
    """K, b, T: easy ones first."""
    K = luck.whole(2, 3)
    return [
        (1, luck.whole(1, 3), luck.whole(2, 4)),
        (K, 1, luck.whole(2, 4)),
        (K, K, luck.whole(2, 4)),
        (luck.whole(2, 4), luck.whole(2, 3), luck.whole(1, 5)),
    ]


def check_batch(call: Call, luck: Luck) -> None:
    for K, b, T in sizes(luck):
        W, A, B, alpha = many_adapters(luck, K)
        R = A.shape[1]
        x = luck.normal(K * b, T, W.shape[1])
        run = lambda A, B, alpha=alpha: reference.lora_batch(*doubles(x, W, A, B, alpha))
        expected, got = run(A, B), call(x, W, A, B, alpha)
        # Row i through adapter i % K: as K b adapters of one row each.
        dealt = run(A.repeat(b, 1, 1), B.repeat(b, 1, 1), alpha)
        mistakes = {
            "Row i goes through adapter i % K: groups are b rows that follow each other.": dealt,
            "All rows go through adapter 0.": run(A[:1].expand_as(A), B[:1].expand_as(B)),
            "Groups meet adapters in reverse order.": run(A.flip(0), B.flip(0)),
            "Each row goes through all adapters, which are summed.": sum(
                run(A[k : k + 1].expand_as(A), B[k : k + 1].expand_as(B)) for k in range(K)
            )
            - (K - 1) * run(A, 0 * B),
            "The update is scaled by alpha, not by alpha / R.": run(A, B, alpha * R),
            "The update is not scaled by alpha / R.": run(A, B, R),
            "This is x W^T alone.": run(A, 0 * B),
        }
        cause = likely(
            got, expected, mistakes, f"Does each group of {b} rows meet its own A and B?"
        )
        named = f"K = {K}, b = {b}, T = {T}, R = {R}, alpha = {alpha}"
        close(got, expected, LORA, f"y for {named}", cause)
    # An adapter that has come to nothing does not touch the rows of others.
    K, b = 3, luck.whole(1, 2)
    W, A, B, alpha = many_adapters(luck, K)
    x, ill = luck.normal(K * b, 2, W.shape[1]), luck.whole(0, K - 1)
    expected = reference.lora_batch(*doubles(x, W, A, B, alpha))
    A, B = A.clone(), B.clone()
    A[ill], B[ill] = float("nan"), float("inf")
    got = call(x, W, A, B, alpha)
    others = [i for i in range(K * b) if i // b != ill]
    if isinstance(got, Tensor) and got.shape == expected.shape:
        got, expected = got[others], expected[others]
    cause = (
        f"Adapter {ill} of {K} is NaN: 0 times NaN is NaN, so its product may not meet other rows."
    )
    close(got, expected, LORA, f"y of the other adapters' rows (rows {others} of {K * b})", cause)


def check_gradients(call: Call, luck: Luck) -> None:
    cases = [((1, 1, 1), "docstring")] + [(size, "") for size in sizes(luck)]
    cases += [(sizes(luck)[-1], "B = 0"), (sizes(luck)[-1], "one group's grad_y = 0")]
    for (K, b, T), kind in cases:
        W, A, B, alpha = many_adapters(luck, K)
        x, grad_y = luck.normal(K * b, T, W.shape[1]), luck.normal(K * b, T, len(W))
        if kind == "docstring":
            W, A, B, alpha = one_adapter(luck, kind)
            A, B = A[None], B[None]
            x, grad_y = torch.tensor([[[1.0, 2.0]]]), torch.ones(1, 1, 1)
        R = A.shape[1]
        if kind == "B = 0":
            B = torch.zeros_like(B)
        if kind.startswith("one"):
            k = luck.whole(0, K - 1)
            grad_y[k * b : (k + 1) * b] = 0
        run = lambda W: reference.lora_gradients(*doubles(x, W, A, B, alpha, grad_y))
        got = tuple_of(call(x, W, A, B, alpha, grad_y), 3, "lora_gradients")
        expected, update = run(W), run(0 * W)[2]
        named = f"for K = {K}, b = {b}, T = {T}, R = {R}, alpha = {alpha}"
        named += {"": "", "docstring": " (the docstring's example)"}.get(kind, f", {kind}")
        for i, name in enumerate(("grad_A", "grad_B")):
            e = expected[i]
            mistakes = {
                "alpha / R is missing.": e * R / alpha,
                "It is scaled by alpha, not by alpha / R.": e * R,
                "This is a mean over tokens: gradients of a sum add up.": e / T,
                "This is a mean over rows: gradients of a sum add up.": e / b,
                "This is a mean over rows and tokens: gradients of a sum add up.": e / (b * T),
                "The sign is wrong.": -e,
                "All adapters got the sum over adapters.": e.sum(0, keepdim=True).expand_as(e),
                "The gradients of A and of B changed places.": expected[1 - i],
            }
            ask = "Is it summed over the rows and tokens of its own group, and of no other?"
            close(got[i], e, LORA, f"{name} {named}", likely(got[i], e, mistakes, ask))
        e = expected[2]
        mistakes = {
            "This is the part through A and B: x also goes through W.": update,
            "This is the part through W: x also goes through A and B.": e - update,
            "The part through A and B is not scaled.": e - update + update * R / alpha,
            "The part through A and B is scaled by alpha.": e - update + update * R,
        }
        cause = likely(got[2], e, mistakes, "Do both ways from x to y count, each once?")
        close(got[2], e, LORA, f"grad_x {named}", cause)


# ---- the sum of means ----


def check_means(call: Call, luck: Luck) -> None:
    for kind in ("docstring", "all", "weights", "some", "one none", "garbage", "nobody", "large"):
        K, b, T, V = luck.whole(2, 4), luck.whole(2, 3), luck.whole(2, 5), luck.whole(3, 6)
        if kind == "all":
            K, b = 1, luck.whole(1, 2)
        logits = 2 * luck.normal(K * b, T, V)
        targets = torch.tensor(luck.rng.integers(0, V, (K * b, T)))
        weights = torch.ones(K * b, T)
        if kind in ("some", "one none", "garbage", "large"):
            draw = luck.uniform(K * b, T)
            draw[::b, 0], draw[b - 1 :: b, -1] = 0.0, 1.0  # each adapter has a token, and lacks one
            targets[draw > 0.6] = -1
            k = luck.whole(1, K - 1)
            targets[(k - 1) * b, :2] = 0  # numbers of tokens differ
            targets[k * b, 1:] = -1
        if kind in ("one none", "garbage"):
            k = luck.whole(0, K - 1)
            targets[k * b : (k + 1) * b] = -1
        if kind == "nobody":
            targets[:] = -1
        if kind == "docstring":
            K, b, T, V = 1, 1, 3, 2
            logits = torch.tensor([[[0.0, 1.0986123], [5.0, 0.0], [0.0, 0.0]]])  # log 3
            targets, weights = torch.tensor([[1, -1, 0]]), torch.tensor([[2.0, 5.0, 0.5]])
        carries = targets >= 0
        if kind in ("weights", "one none", "garbage"):
            weights = luck.normal(K * b, T)
            weights += 0.1 * weights.sign()  # not 0
        if kind == "garbage":
            logits[~carries] = luck.pick([float("nan"), float("inf")])
        elif kind != "docstring":
            weights = weights.where(carries, 0.0)
        if kind == "large":
            logits = 100 * logits
        expected, _ = (t.double() for t in reference.sum_of_means(logits, targets, weights, K))
        got = tuple_of(call(logits, targets, weights, K), 2, "sum_of_means")
        count = carries.view(K, -1).sum(1)
        heavy = weights.where(carries, 0.0).view(K, -1).sum(1)
        each_row, _ = reference.sum_of_means(logits, targets, weights, K * b)
        dealt, _ = reference.sum_of_means(
            *(t.view(K, b, *t.shape[1:]).transpose(0, 1).flatten(0, 1) for t in (logits, targets)),
            weights.view(K, b, T).transpose(0, 1).flatten(0, 1),
            K,
        )
        later, _ = reference.sum_of_means(logits[:, :-1], targets[:, 1:], weights[:, 1:], K)
        unweighted, _ = reference.sum_of_means(logits, targets, carries.float(), K)
        mistakes = {
            "These are sums, not means.": expected * count,
            "Divided by all tokens, not by those that carry loss.": expected * count / (b * T),
            "Divided by the sum of weights, not by how many tokens carry loss.": torch.where(
                count > 0, expected * count / torch.where(count > 0, heavy, 1.0), 0.0
            ),
            "Divided by the tokens of all adapters: each has its own number.": expected
            * count
            / max(1, int(count.sum())),
            "This is the mean of the rows' means.": each_row.view(K, b).mean(1),
            "The weights do not count.": unweighted,
            "Rows are dealt to adapters in turn: groups are rows that follow each other.": dealt,
            "Targets were shifted: targets[i, t] belongs to logits[i, t].": later,
            "The sign is wrong.": -expected,
        }
        none = [k for k in range(K) if not count[k]]
        otherwise = f"Tokens that carry loss: {count.tolist()}; {CARRY}"
        if kind == "garbage":
            otherwise += (
                " Logits are NaN or infinite where the target is -1, and 0 times NaN is NaN."
            )
        elif none:
            otherwise += f" Adapters {none} have no such token: their loss is 0."
        if kind == "large":
            otherwise = (
                "Logits reach several hundred: exp of that is infinite. Subtract the largest first."
            )
        cause = likely(got[0], expected, mistakes, otherwise)
        named = f"for K = {K}, b = {b}, T = {T}, V = {V}"
        named += " (the docstring's example)" * (kind == "docstring")
        close(got[0], expected, LOSS, f"losses {named}", cause)
        total = expected.sum()
        mistakes = {
            "This is the mean over adapters: their losses are summed.": total / K,
            "This is the mean over all tokens: an adapter with many would outweigh the others.": (
                (expected * count).sum() / max(1, int(count.sum()))
            ),
        }
        close(got[1], total, LOSS, f"total {named}", likely(got[1], total, mistakes, ""))


# ---- Adam ----


def adam_of_torch(
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
    """The same step by torch.optim.Adam in float64, a parameter group for each adapter."""
    ps = [t.clone().requires_grad_() for t in p.double()]
    groups = [{"params": [t], "lr": float(rate)} for t, rate in zip(ps, lr.double())]
    adam = torch.optim.Adam(groups, betas=(beta1, beta2), eps=eps, foreach=False)
    for t, each, first, second in zip(ps, g.double(), m.double(), v.double()):
        t.grad = each.clone()
        adam.state[t] = {
            "step": torch.tensor(float(step - 1)),
            "exp_avg": first.clone(),
            "exp_avg_sq": second.clone(),
        }
    adam.step()
    states = [adam.state[t] for t in ps]
    moments = (torch.stack([s[key] for s in states]) for key in ("exp_avg", "exp_avg_sq"))
    return torch.stack([t.detach() for t in ps]), *moments


def check_adam(call: Call, luck: Luck) -> None:
    one = torch.ones(1, 1, 1)
    zero, example = 0 * one, "This is the docstring's example."
    compare_adam(call, example, one, 2 * one, zero, zero, 1, one[0, 0] / 10, 0.9, 0.999, 1e-8)
    K = luck.whole(2, 4)
    shapes = [(1, 2, 3), (K, luck.whole(1, 4), luck.whole(5, 6)), (K, K, K), (K, 2, 1)]
    for shape in shapes:
        betas = luck.pick([(0.9, 0.999), (0.8, 0.95), (0.9, 0.99)])
        p, m, v = luck.normal(*shape), torch.zeros(shape), torch.zeros(shape)
        lr = (0.02 + 0.4 * luck.uniform(shape[0])).float()
        for step in range(1, 5):  # from 0 moments on
            g = 3 * luck.normal(*shape)
            p, m, v = compare_adam(call, "", p, g, m, v, step, lr, *betas, 1e-8)
        step = luck.whole(50, 2000)  # in the middle of training
        m, v = luck.normal(*shape), 2 * luck.uniform(*shape).float() + 0.1
        compare_adam(call, "", p, g, m, v, step, lr, *betas, 1e-8)
    p, zero = luck.normal(K, 2, 3), torch.zeros(K, 2, 3)
    lr = (0.1 + 0.4 * luck.uniform(K)).float()
    small = 10 ** -(7 + 2 * luck.uniform(K, 2, 3)).float()  # 1e-9 to 1e-7
    why = "Gradients are about as small as eps: it is added to the root of the corrected v."
    compare_adam(call, why, p, small, zero, zero, 1, lr, 0.9, 0.999, 1e-8)
    why = "eps is 0.1: it is added to the root of the corrected v, outside the root."
    compare_adam(call, why, p, luck.normal(K, 2, 3), zero, zero, 1, lr, 0.9, 0.999, 0.1)
    why = "Gradients and moments are 0: nothing moves."
    compare_adam(call, why, p, zero, zero, zero, 1, lr, 0.9, 0.999, 1e-8)
    lr[luck.whole(0, K - 1)] = 0.0
    why = "One lr is 0: that adapter stays, its moments do not."
    compare_adam(call, why, p, luck.normal(K, 2, 3), zero, zero, 1, lr, 0.9, 0.999, 1e-8)
    why = "beta1 is 0: m is the gradient."
    compare_adam(call, why, p, luck.normal(K, 2, 3), zero, zero, 1, lr, 0.0, 0.9, 1e-8)


def compare_adam(
    call: Call,
    why: str,
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
    """One step, judged; the right new p, m, v, in float32."""
    expected = adam_of_torch(p, g, m, v, step, lr, beta1, beta2, eps)
    got = call(p.clone(), g.clone(), m.clone(), v.clone(), step, lr.clone(), beta1, beta2, eps)
    got = tuple_of(got, 3, "adam_step")
    named = f"at step {step}, K, X, Y = {tuple(p.shape)}, lr {[round(x, 3) for x in lr.tolist()]}, "
    named += f"betas {beta1}, {beta2}, eps {eps:g}"
    new_p, new_m, new_v = expected
    mistakes = {
        "This is the corrected m: the new m is returned without correction.": new_m
        / (1 - beta1**step),
        "beta1 and 1 - beta1 changed places.": (1 - beta1) * m + beta1 * g,
        "This is the new v.": new_v,
        "This is the old m.": m,
    }
    close(got[1], new_m, ADAM, f"m {named}", likely(got[1], new_m, mistakes, why))
    mistakes = {
        "This is the corrected v: the new v is returned without correction.": new_v
        / (1 - beta2**step),
        "v decays with beta1.": beta1 * v + (1 - beta1) * g * g,
        "v averages squares of gradients, not gradients.": beta2 * v + (1 - beta2) * g,
        "This is the new m.": new_m,
        "This is the old v.": v,
    }
    close(got[2], new_v, ADAM, f"v {named}", likely(got[2], new_v, mistakes, why))
    other = lambda **changed: adam_of_torch(
        **{
            **dict(p=p, g=g, m=m, v=v, step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps),
            **changed,
        }
    )[0]
    mistakes = {
        "The bias corrections are missing.": other(step=10**9),
        "The bias corrections count from 0: the first step is step 1.": other(step=step + 1),
        "All adapters have the first one's rate.": other(lr=lr[:1].expand_as(lr)),
        "All adapters have the mean rate.": other(lr=lr.mean().expand_as(lr)),
        "It climbs: the step is subtracted.": 2 * p - new_p,
        "eps is added before the bias correction of v.": other(eps=eps / (1 - beta2**step) ** 0.5),
        "eps is added inside the root: it belongs outside.": other(
            v=v + eps * (1 - beta2**step) / beta2, eps=1e-30
        ),
        "Nothing moved.": p,
        "The moments used are those before this step.": other(g=0 * g, m=m / beta1, v=v / beta2)
        if beta1
        else p,
    }
    if p.shape[0] == p.shape[-1] > 1 and bool((lr > 0).all()):
        along = p + (new_p - p) / lr[:, None, None] * lr
        mistakes["lr was spread over the last dimension: it belongs to the first."] = along
    cause = likely(got[0], new_p, mistakes, why or "Does each adapter have its own rate?", ADAM)
    close(got[0], new_p, ADAM, f"p {named}", cause)
    return tuple(t.float() for t in expected)


# ---- leaving ----

ROLES = ("goes on", "done", "without a step", "failed", "infinite weights")
REASONS = {
    "goes on": "it has steps left",
    "done": "it has had all its steps",
    "without a step": "it has 0 steps to do",
    "failed": "its last loss is not finite: its finished tensors are 0",
    "infinite, goes on": "it has steps left, whatever its tensors are",
    "infinite weights": "it is over and its tensors are not finite: its finished tensors are 0",
}


def check_leaving(call: Call, luck: Luck) -> None:
    (stay, done, nothing, failed, infinite), still = ROLES, "infinite, goes on"
    cases = [
        [stay] * luck.whole(2, 3),
        [stay, done, stay],
        [done, stay, stay, done, stay],
        [stay, nothing, stay],
        [stay, failed, stay],
        [stay, infinite],
        [stay, stay, *ROLES],
        [done, failed, done],
    ]
    for loss in (float("nan"), float("inf"), float("-inf")):
        for finite in (False, True):
            compare_leaving(call, luck, [stay, failed, stay], loss, finite)
    compare_leaving(call, luck, [stay, still, stay])
    for roles in cases:
        if len(roles) > 5:
            roles = [roles[i] for i in luck.rng.permutation(len(roles))]
        compare_leaving(call, luck, roles)


def compare_leaving(
    call: Call, luck: Luck, roles: list[str], loss: float | None = None, finite: bool = False
) -> None:
    """loss: of those that failed, drawn if it is None; finite: their tensors still are."""
    n, gone = len(roles), luck.whole(1, 3)  # so many left earlier
    K = n + gone
    numbers = sorted(luck.rng.permutation(K)[:n].tolist())
    if numbers == list(range(n)):
        numbers = list(range(gone, K))  # not the places in the batch
    R, shapes = 2, []
    for _ in range(luck.whole(1, 2)):
        shapes += [(R, luck.whole(2, 4)), (luck.whole(2, 4), R)]  # A, B, A, B
    params, m, v = ([luck.normal(n, *shape) for shape in shapes] for _ in range(3))
    table: list[Any] = [None] * K
    for k in set(range(K)) - set(numbers):
        table[k] = [luck.normal(*shape) for shape in shapes]
    losses, steps = [], []
    for i, role in enumerate(roles):
        had, left = luck.whole(1, 3), luck.whole(1, 3)
        curve = [round(float(x), 3) for x in 1 + luck.uniform(had)]
        if role == "failed":
            curve[-1] = luck.pick([float("nan"), float("inf"), float("-inf")])
            curve[-1] = curve[-1] if loss is None else loss
            left = luck.whole(1 if len(roles) == 3 and roles[0] == "goes on" else 0, 2)
            for t in () if finite else (*params, *m, *v):
                t[i].fill_(float("nan"))
        if role in ("infinite weights", "infinite, goes on"):
            params[-1][i, 0, 0] = luck.pick([float("inf"), float("nan")])
        if role == "without a step":
            curve, had = [], 0
        losses.append(curve)
        steps.append(had + left * (role in ("goes on", "failed", "infinite, goes on")))
    arguments = params, m, v, numbers, losses, steps, table
    expected = reference.let_go(*arguments)
    got = tuple_of(call(*arguments), 5, "let_go")
    story = "; ".join(f"adapter {k}: {REASONS[role]}" for k, role in zip(numbers, roles))
    why = f"In the batch were {story}."
    same(got[3], expected[3], f"numbers (before: {numbers})", why)
    for name, mine, right, before in zip(("params", "m", "v"), got, expected, (params, m, v)):
        for i, t in enumerate(tuple_of(mine, len(shapes), name)):
            mistakes = {
                "These are the adapters that leave.": before[i][
                    [j for j, role in enumerate(roles) if "goes on" not in role]
                ],
                "These are the first ones of the batch, not those that stay.": before[i][
                    : len(right[i])
                ],
                "These are those that stay, in reverse order.": right[i].flip(0),
                "Nothing was taken out.": before[i],
            }
            cause = likely(t, right[i], {c: w.nan_to_num() for c, w in mistakes.items()}, why)
            close(t, right[i], KEPT, f"{name}[{i}]", cause)
    rows = tuple_of(got[4], K, "table")
    for k, (row, right) in enumerate(zip(rows, expected[4])):
        what, here = f"table[{k}]", k in numbers
        cause = why if here else f"Adapter {k} left before: its finished tensors stay as they were."
        if right is None:
            if row is not None:
                raise Wrong(f"{what}: expected None, got {brief(row)}. {why}")
            continue
        if row is None:
            raise Wrong(f"{what}: expected {len(right)} tensors, got None. {cause}")
        for i, (t, e) in enumerate(zip(tuple_of(row, len(right), what), right)):
            close(t, e, KEPT, f"{what}[{i}]", cause)


DIFFERENTIATING = ("autograd", "backward", "requires_grad", "requires_grad_", "enable_grad")
DIFFERENTIATING += ("vjp", "jvp", "jacrev", "jacfwd", "functional_call", "func")

PROBLEMS: list[Problem] = [
    Problem("2.1", "LoRA forward", "lora_forward", 2, 0.2, check_forward),
    Problem("2.2", "Merging", "merged", 2, 0.2, check_merged),
    Problem("2.3", "K adapters as one batch", "lora_batch", 2, 0.2, check_batch),
    Problem("2.4", "The sum of means", "sum_of_means", 4, 0.2, check_means),
    Problem("2.5", "Adam, a rate for each", "adam_step", 4, 0.2, check_adam, ("optim",)),
    Problem("2.6", "Leaving the batch", "let_go", 2, 0.2, check_leaving),
    Problem(
        "2.7", "The gradient by hand", "lora_gradients", 4, 0.2, check_gradients, DIFFERENTIATING
    ),
]
