"""The checks of problem set 3: against minseal, through reference.py."""

import math
import re

import torch
import torch.nn.functional as F
from a3_inner_loop import reference
from checks import Call, Luck, Problem, Wrong, brief, close, near, same, tuple_of
from torch import Tensor

# ---- what is drawn ----


def document(luck: Luck, length: int, V: int, kind: str = "mixed") -> dict:
    """Random ids. Weights: all 1, the second half 1 and the first 0, mixed ones, or none."""
    weights = {
        "ones": [1.0] * length,
        "completion": [float(t >= length / 2) for t in range(length)],
        "mixed": [luck.pick([0.0, 1.0, 1.0, 0.5, 2.0, -1.0]) for _ in range(length)],
        "none": [0.0] * length,
    }
    return {"ids": [luck.whole(0, V - 1) for _ in range(length)], "weights": weights[kind]}


def documents(luck: Luck, n: int, longest: int, V: int, kind: str = "mixed") -> list[dict]:
    return [document(luck, luck.whole(1, longest), V, kind) for _ in range(n)]


def lengths_of(made: list[dict]) -> list[int]:
    return [len(d["ids"]) for d in made]


def tensor(got: object, what: str) -> Tensor:
    if not isinstance(got, Tensor):
        raise Wrong(f"{what}: expected a tensor, got {brief(got)}")
    return got


# ---- 3.1 ----


def check_pack(call: Call, luck: Luck) -> None:
    a, b = luck.whole(2, 4), luck.whole(5, 7)
    cases = [  # (lengths of documents, row_tokens)
        ([a], a + 2),  # one row, one document: T is its length, not row_tokens
        ([a, b], a + b),  # just full
        ([a, b], a + b - 1),  # one token too many
        ([b, a, 1, b], a + b + 1),
        ([6, 7, 3, 1], 10),  # 3 fits into row 1; into row 0 as well, but that is closed
        ([b + 5, 1, a], b),  # longer than a row, and first
        ([1, b + 5, 1, 1, a, b, b + 3], b),  # longer than a row, and in the middle; and last
        ([1] * 5, 1),
    ]
    for _ in range(4):
        cases.append(([luck.whole(1, 9) for _ in range(luck.whole(3, 12))], luck.whole(4, 12)))
    for lengths, row_tokens in cases:
        made = [document(luck, n, 50) for n in lengths]
        case = f"documents of {lengths} tokens, row_tokens {row_tokens}"
        got = tuple_of(call(made, row_tokens), 4, f"{case}: rows, ids, docs, positions")
        rows, ids, docs, positions = reference.pack(made, row_tokens)
        same(got[0], rows, f"{case}: rows", why_rows(got[0], lengths, row_tokens))
        T = "T is the number of tokens of the longest row"
        close(got[1], ids, 0, f"{case}: ids", f"{T}; padding has id 0")
        cause = "Do numbers begin at 0 in each row? Is padding -1?"
        close(got[2], docs, 0, f"{case}: docs", cause)
        cause = "Do they begin at 0 with each document of a row? Padding has position 0."
        close(got[3], positions, 0, f"{case}: positions", cause)
        for name, value in zip(("ids", "docs", "positions"), got[1:]):
            if tensor(value, f"{case}: {name}").dtype != torch.int64:
                raise Wrong(f"{case}: {name}: expected int64, got {value.dtype}")


def why_rows(rows: object, lengths: list[int], row_tokens: int) -> str:
    """What is wrong with these rows, in words."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        return "rows is a list of lists of document indices."
    flat = [i for row in rows for i in row]
    if sorted(map(str, flat)) != sorted(map(str, range(len(lengths)))):
        return "Each document is in one row, once."
    if flat != list(range(len(lengths))):
        return "Documents stay in order: once a document opens a new row, the old ones are closed."
    if not all(rows):
        return "A row is empty: does a long document leave an empty row before it?"
    for i, row in enumerate(rows):
        tokens = sum(lengths[d] for d in row)
        if len(row) > 1 and tokens > row_tokens:
            return f"Row {i} holds {len(row)} documents with {tokens} tokens in all."
        if i + 1 < len(rows) and tokens + lengths[rows[i + 1][0]] <= row_tokens:
            return f"Document {rows[i + 1][0]} had room in row {i}: that row was not full."
    return ""


# ---- 3.2 ----


def check_label(call: Call, luck: Luck) -> None:
    V = 50
    one, kinds = [document(luck, luck.whole(4, 7), V, "ones")], ("ones", "completion", "mixed")
    cases = [(one, [[0]])]  # one document, all of it carries loss
    cases.append(([document(luck, luck.whole(4, 7), V, "completion")], [[0]]))
    two = [document(luck, luck.whole(3, 5), V, "ones") for _ in range(2)]
    cases += [(two, [[0, 1]]), (two, [[0], [1]]), (two, [[0, 1], []]), (two, [[1], [], [0]])]
    cases.append(([document(luck, 1, V, "ones"), *two], [[0, 1], [2]]))
    cases.append(([document(luck, 3, V, "none"), *two], [[1, 0, 2]]))
    for kind in kinds * 2:
        made = documents(luck, luck.whole(4, 9), 7, V, kind)
        rows, _, _, _ = reference.pack(made, luck.whole(6, 12))
        cases.append((made, [*rows, []] if luck.whole(0, 1) else rows))
    for made, rows in cases:
        targets, weights = reference.label(made, rows)  # each (B, T)
        case = f"documents of {lengths_of(made)} tokens in rows {rows}"
        got = tuple_of(call(made, rows), 2, f"{case}: targets, weights")
        close(got[0], targets, 0, f"{case}: targets", why_targets(got[0], targets, made, rows))
        if tensor(got[0], case).dtype != torch.int64:
            raise Wrong(f"{case}: targets: expected int64, got {got[0].dtype}")
        cause = "A place has the weight of the token that it predicts, 0 where nothing is predicted"
        close(got[1], weights, 1e-6, f"{case}: weights", cause)  # float32 would do
        if not tensor(got[1], case).is_floating_point():
            raise Wrong(f"{case}: weights: expected floating point, got {got[1].dtype}")


def why_targets(got: object, targets: Tensor, made: list[dict], rows: list[list[int]]) -> str:
    """The first place where the targets differ, in words."""
    if not isinstance(got, Tensor) or got.shape != targets.shape:
        return "T is the number of tokens of the longest row."
    wrong = (got != targets).nonzero()
    if not len(wrong):
        return ""
    row, t = wrong[0].tolist()
    places = [(d, s) for d in rows[row] for s in range(len(made[d]["ids"]))]
    if t >= len(places):
        return f"Row {row}, place {t} is padding."
    d, s = places[t]
    where = f"Row {row}, place {t} is token {s} of document {d}"
    if s == len(made[d]["ids"]) - 1:
        return f"{where}, its last one: nothing is left to predict there."
    after = made[d]["weights"][s + 1]
    return f"{where}; the token after it is {made[d]['ids'][s + 1]}, with weight {after:g}."


# ---- 3.3 and 3.4 ----


def batch(luck: Luck, K: int, b: int, T: int, V: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """logits (K b, T, V) float64, targets and weights (K b, T); at least one target a student.

    kind: ones, mixed (weights, and places without loss).
    """
    logits = 2 * luck.normal(K * b, T, V).double()  # (K b, T, V); float32 holds them exactly
    targets = torch.tensor([[luck.whole(0, V - 1) for _ in range(T)] for _ in range(K * b)])
    weights = torch.ones(K * b, T, dtype=torch.float64)
    if kind == "mixed":
        for i in range(K * b):
            for t in range(T):
                some = [0.0, 0.0, 1.0, 0.5, 2.0, -1.0]
                weights[i, t] = 1.5 if i % b == 0 and t == 0 else luck.pick(some)
    targets[weights == 0] = -1
    return logits, targets, weights


def batches(luck: Luck) -> list[tuple[str, str, float, tuple[Tensor, Tensor, Tensor, int]]]:
    """(what is special, what goes wrong there, tolerance, arguments), easy ones first."""
    cases, few = [], 1e-5  # float32 and a few hundred terms: 1e-6. Mistakes are beyond 1e-2.
    for what, K, b, kind in (
        ("one student, one row, all tokens carry loss with weight 1", 1, 1, "ones"),
        ("one student, one row", 1, 1, "mixed"),
        ("one student, three rows", 1, 3, "mixed"),
        ("two students, one row each", 2, 1, "mixed"),
        ("three students, two rows each", 3, 2, "mixed"),
    ):
        made = batch(luck, K, b, luck.whole(4, 7), luck.whole(3, 6), kind)
        cases.append((what, "", few, (*made, K)))
    # A student without a token that carries loss.
    logits, targets, weights = batch(luck, 3, 2, 5, 4, "mixed")
    targets[2:4], weights[2:4] = -1, 0.0
    what, why = "student 1 of 3 has no token that carries loss", "Is that 0 / 0? It is 0 here."
    cases.append((what, why, few, (logits, targets, weights, 3)))
    # Logits around 1000 and -1000: exp() would overflow. Float32 holds them to 6e-5.
    logits, targets, weights = batch(luck, 2, 1, 6, 5, "mixed")
    logits = (logits.float() + torch.tensor([1000.0, -1000.0])[:, None, None]).double()
    what, why = "logits near 1000 and near -1000", "exp(1000) is infinite, exp(-1000) is 0."
    cases.append((what, why, 5e-4, (logits, targets, weights, 2)))
    # NaN where no loss is.
    logits, targets, weights = batch(luck, 2, 2, 6, 5, "mixed")
    targets[1, 2:4], weights[1, 2:4] = -1, 0.0
    logits[targets < 0] = luck.pick([math.nan, math.inf])
    what, why = "logits are NaN or infinite where targets is -1", "0 times NaN is NaN."
    cases.append((what, why, few, (logits, targets, weights, 2)))
    return cases


def check_losses(call: Call, luck: Luck) -> None:
    for what, why, tolerance, (logits, targets, weights, K) in batches(luck):
        expected = reference.losses(logits, targets, weights, K)  # (K,)
        got = call(logits, targets, weights, K)
        cause = guess(got, expected, loss_guesses(expected, logits, targets, weights, K))
        close(got, expected, tolerance, f"losses, {what}", cause or why)
    # One student's NaN is its own.
    logits, targets, weights = batch(luck, 3, 2, 5, 4, "mixed")
    logits[2:4] = math.nan
    expected = reference.losses(logits, targets, weights, 3)  # (K,)
    got, what = call(logits, targets, weights, 3), "losses, student 1 of 3 has NaN for logits"
    if not isinstance(got, Tensor) or got.shape != (3,):
        raise Wrong(f"{what}: expected a tensor (3,), got {brief(got)}")
    if got[1].isfinite():
        raise Wrong(f"{what}: expected NaN for student 1, got {got[1]:.6g}")
    close(got[::2], expected[::2], 1e-5, f"{what}; the others", "Is one student's sum in another?")


def loss_guesses(expected, logits, targets, weights, K) -> dict[str, Tensor]:
    """What came of a usual mistake -> its value."""
    carries = (targets >= 0).reshape(K, -1)  # (K, b T)
    n, total = carries.sum(1), weights.reshape(K, -1).sum(1)  # each (K,)
    plain = reference.losses(logits, targets, (weights != 0).double(), K)  # (K,)
    b = len(logits) // K
    each_row = reference.losses(logits, targets, weights, K * b).reshape(K, b)  # (K, b)
    return {
        "This is the sum, not yet divided.": expected * n,
        "It is divided by all places, also those without loss.": expected * n / carries.shape[1],
        "It is divided by the sum of the weights, not by how many tokens carry loss.": expected
        * n
        / total,
        "The weights are not in it.": plain,
        "This is a mean of the rows' means: a student's rows are one sum over one count.": (
            each_row.mean(1)
        ),
        "It is divided by the tokens of all students together.": expected * n / n.sum(),
        "The sign is wrong.": -expected,
    }


def guess(got: object, expected: Tensor, guesses: dict[str, Tensor]) -> str:
    """The first of the guesses that `got` agrees with; "" if none does."""
    if not isinstance(got, Tensor) or got.shape != expected.shape or got.is_complex():
        return ""
    for text, value in guesses.items():
        if torch.allclose(got.double(), value.double(), rtol=1e-4, atol=1e-5):
            return text
    return ""


def check_gradient(call: Call, luck: Luck) -> None:
    # Finite differences in float64 for the easy case, against torch's own loss.
    logits, targets, weights = batch(luck, 1, 1, luck.whole(2, 4), luck.whole(3, 5), "ones")
    loss = lambda x: F.cross_entropy(x[0], targets[0])
    h, expected = 1e-5, torch.zeros_like(logits)
    for place in torch.ones_like(logits).nonzero().tolist():
        step = torch.zeros_like(logits)
        step[tuple(place)] = h
        expected[tuple(place)] = (loss(logits + step) - loss(logits - step)) / (2 * h)
    what = "gradient, one row, weights 1, by differences of the loss"
    # Differences are good to 1e-10; float32 to 1e-6.
    got = call(logits, targets, weights, 1)
    cause = guess(got, expected, gradient_guesses(expected, logits, targets, weights, 1))
    close(got, expected, 1e-5, what, cause)
    for what, why, tolerance, (logits, targets, weights, K) in batches(luck):
        expected = reference.gradient(logits, targets, weights, K)  # (K b, T, V)
        got = call(logits, targets, weights, K)
        cause = guess(got, expected, gradient_guesses(expected, logits, targets, weights, K))
        close(got, expected, tolerance, f"gradient, {what}", cause or why)


def gradient_guesses(expected, logits, targets, weights, K) -> dict[str, Tensor]:
    b = len(logits) // K
    n = (targets >= 0).reshape(K, -1).sum(1).repeat_interleave(b)[:, None, None]  # (K b, 1, 1)
    total = weights.reshape(K, -1).sum(1).repeat_interleave(b)[:, None, None]  # (K b, 1, 1)
    plain = reference.gradient(logits, targets, (weights != 0).double(), K)  # (K b, T, V)
    one_hot = F.one_hot(targets.clamp(min=0), logits.shape[-1]) * weights[..., None]  # (K b, T, V)
    return {
        "The sign is wrong.": -expected,
        "It is not divided by how many tokens carry loss.": expected * n,
        "It is divided by all places, also those without loss.": expected
        * n
        / (b * targets.shape[1]),
        "It is divided by the sum of the weights.": expected * n / total,
        "It is divided by the tokens of all students together.": expected * n / n[::b].sum(),
        "The weights are not in it.": plain,
        "The target's own share is missing.": expected + one_hot / n.clamp(min=1),
    }


# ---- 3.5 and 3.6 ----


def model(luck: Luck, longest: int, B_is_zero: bool = False) -> dict:
    """A frozen model and an adapter to start from: E, P, W, A, B, scale; all float64."""
    V, C, R = luck.whole(5, 9), luck.whole(3, 5), luck.whole(1, 3)
    tensors = dict(E=(V, C), P=(longest, C), W=(V, C), A=(R, C), B=(V, R))
    made = {name: luck.normal(*shape, dtype=torch.float64) for name, shape in tensors.items()}
    made["A"] /= math.sqrt(C)
    made["B"] *= 0.0 if B_is_zero else 0.3
    return {**made, "scale": luck.pick([0.5, 1.5, 2.0])}


def rates(luck: Luck, n: int) -> list[float]:
    """n learning rates from 0.01 to 0.1, falling linearly or all the same."""
    lr = luck.pick([0.01, 0.03, 0.1])
    return [lr * (1 - s / n) for s in range(n)] if luck.whole(0, 1) else [lr] * n


# The reference's loss is float32 (6e-8). Adam divides a gradient by its own size, so the rounding
# of one that is nearly 0 becomes a part of a step, which is at most 0.1: 1e-6 is usual, 1e-4 rare.
# Mistakes change a step, hence more than 1e-2.
FEW = 5e-4


def check_train(call: Call, luck: Luck) -> None:
    for what, steps, kind, longest, row_tokens, zero in (
        ("B = 0, no step", 0, "ones", 4, 20, True),
        ("B = 0, one step, one row", 1, "ones", 4, 40, True),
        ("one step, one row", 1, "mixed", 5, 40, False),
        ("one step, several rows", 1, "mixed", 5, 8, False),
        ("two steps", 2, "mixed", 5, 8, False),
        ("six steps, documents longer than a row", 6, "mixed", 7, 5, True),
        ("eight steps", luck.whole(7, 9), "completion", 6, luck.whole(6, 12), False),
        ("three steps, no token carries loss", 3, "none", 4, 8, False),
    ):
        made = documents(luck, luck.whole(3, 5), longest, 5, kind)
        if kind != "none":
            made.append(document(luck, longest, 5, "ones"))
        m, lrs = model(luck, 40, zero), rates(luck, steps)
        args = made, row_tokens, *m.values(), lrs
        got = tuple_of(call(*args), 3, f"{what}: losses, A, B")
        curve, A, B = reference.train(*args)
        check_curve(got[0], curve, what)
        why = "The losses agree, so look at the step: gradient, moments, bias corrections, rate."
        if not steps:
            why = "Without a step A and B stay what they were."
        elif kind == "none":
            why = "Where the gradient is 0 Adam stays where it is."
        close(got[2], B, FEW, f"{what}: B", step_of(got[2], m["B"], lrs) or why)
        close(got[1], A, FEW, f"{what}: A", step_of(got[1], m["A"], lrs) or why)


def step_of(got: object, before: Tensor, lrs: list[float]) -> str:
    """How far the first step went, if that is all there was and it is too far or too short."""
    if len(lrs) != 1 or not isinstance(got, Tensor) or got.shape != before.shape:
        return ""
    moved = (got.double() - before).abs().max().item()
    if abs(moved - lrs[0]) < 0.01 * lrs[0] or moved == 0:
        return ""
    return f"Adam's first step moves each number by the rate, {lrs[0]:g}; here by {moved:.3g}."


def check_curve(got: object, expected: list[float], what: str) -> None:
    """The losses of one student; one that is NaN or infinite may be either."""
    if isinstance(got, Tensor) and got.dim() == 1:
        got = got.tolist()
    if not isinstance(got, list):
        raise Wrong(f"{what}: losses: expected a list of numbers, got {brief(got)}")
    if len(got) != len(expected):
        late = "One for each step, taken before the step; the bad one of a student that fails too."
        raise Wrong(f"{what}: expected {len(expected)} losses, got {len(got)}. {late}")
    for step, (mine, right) in enumerate(zip(got, expected), 1):
        causes = {
            1: "No step was taken yet: look at rows, targets, positions, scale, and 3.3.",
            2: "The first agrees: look at the gradient and at Adam's first step.",
        }
        cause = causes.get(step, "The first two agree: look at Adam's moments and its step number.")
        if math.isfinite(right):
            near(mine, right, FEW, f"{what}: loss at step {step}", cause)
        else:
            if not is_bad(mine):
                raise Wrong(f"{what}: loss at step {step}: expected {right}, got {brief(mine)}")


def is_bad(value: object) -> bool:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return isinstance(value, float) and not math.isfinite(value)


def check_train_all(call: Call, luck: Luck) -> None:
    def edit(steps: int, n: int = 0, kind: str = "mixed") -> dict:
        made = documents(luck, n or luck.whole(2, 4), 5, 5, kind)
        if kind != "none":
            made.append(document(luck, luck.whole(4, 5), 5, "ones"))
        return {"documents": made, "rates": rates(luck, steps)}

    def bad_rate(steps: int, at: int) -> dict:
        """A step, counted from 1, at an infinite rate: the loss after it is NaN."""
        made = edit(steps)
        made["rates"][at - 1] = luck.pick([math.inf, math.nan])
        return made

    def bad_weight(steps: int) -> dict:
        """The loss is NaN or infinite from the beginning."""
        made = edit(steps)
        made["documents"][-1]["weights"][luck.whole(1, 3)] = luck.pick([math.inf, math.nan])
        return made

    cases = [
        ("one student", [edit(3)]),
        ("three students, three steps each", [edit(3) for _ in range(3)]),
        ("students with 4, 1, 0 and 3 steps", [edit(4, 1), edit(1, 6), edit(0), edit(3)]),
        ("student 1 has no token that carries loss", [edit(3), edit(2, kind="none"), edit(3)]),
        ("student 1 has a weight of NaN or infinity", [edit(4), bad_weight(4), edit(5)]),
        ("student 1 has a rate of NaN or infinity at step 2", [edit(5), bad_rate(5, 2), edit(3)]),
        ("student 0 has a bad rate at its last step", [bad_rate(3, 3), edit(5)]),
        (
            "several fail",
            [bad_rate(4, 1), edit(6), bad_weight(3), edit(2), bad_rate(6, 4), edit(3)],
        ),
    ]
    for what, edits in cases:
        m, row_tokens = model(luck, 40, luck.whole(0, 1) == 1), luck.whole(5, 12)
        args = row_tokens, *m.values()
        got = tuple_of(call(edits, *args), 4, f"{what}: losses, A, B, failed")
        expected = reference.train_all(edits, *args)
        for name, value in ("losses", got[0]), ("failed", got[3]):
            if not isinstance(value, list) or len(value) != len(edits):
                n = len(edits)
                raise Wrong(f"{what}: {name}: expected a list of {n}, got {brief(value)}")
        for k, (reason, right) in enumerate(zip(got[3], expected[3])):
            check_reason(reason, right, f"{what}: failed[{k}]")
        for k in range(len(edits)):
            check_curve(got[0][k], expected[0][k], f"{what}: student {k}")
        for name, mine, right in ("A", got[1], expected[1]), ("B", got[2], expected[2]):
            start = m[name].expand_as(right)
            check_weights(mine, right, start, expected[3], f"{what}: {name}")
        # The others get what they get alone. Equal but for rounding, 1e-16; where a gradient is
        # nearly 0 Adam makes more of it. Float32 would be near 1e-6.
        for k in [k for k, reason in enumerate(expected[3]) if not reason][:2]:
            alone = tuple_of(call([edits[k]], *args), 4, f"{what}: student {k} alone")
            for name, mine, by_itself in ("A", got[1], alone[1]), ("B", got[2], alone[2]):
                if not isinstance(by_itself, Tensor) or by_itself.shape != (1, *mine.shape[1:]):
                    raise Wrong(f"{what}: {name} of student {k} alone: got {brief(by_itself)}")
                cause = "It is not what this student gets alone: do the others reach into it?"
                close(mine[k], by_itself[0].double(), 1e-5, f"{what}: {name}[{k}]", cause)


def check_reason(got: object, right: str, what: str) -> None:
    """ "" for a student who did not fail, else a text with the step."""
    if not isinstance(got, str):
        raise Wrong(f"{what}: expected a text, got {brief(got)}")
    if not right:
        if got:
            raise Wrong(f"{what}: expected '', got {got!r}. This student did not fail.")
        return
    step = re.findall(r"step (\d+)", right)[-1]
    if not got:
        raise Wrong(f"{what}: expected a text with 'step {step}', got ''. This student failed.")
    if f"step {step}" not in re.findall(r"step \d+", got):
        cause = "Steps count from 1; a loss belongs to the step that it is taken before."
        raise Wrong(f"{what}: expected a text with 'step {step}', got {brief(got)}. {cause}")


def check_weights(got: object, right: Tensor, start: Tensor, failed: list[str], what: str) -> None:
    """A or B of all students: which are wrong, and who they are."""
    if tensor(got, what).shape != right.shape:
        close(got, right, FEW, what)
    for k, reason in enumerate(failed):
        cause = "Does it stop after its own last step?"
        if reason:
            cause = "This student failed: its A and B are 0."
        elif not bool(got[k].isfinite().all()):
            cause = "This student is well: does another one's NaN reach it?"
        elif torch.equal(got[k].double(), start[k]):
            cause = "This is where it started: does it train?"
        close(got[k], right[k], FEW, f"{what}[{k}]", cause)


NO_READY_LOSS = (
    "cross_entropy nll_loss log_softmax softmax logsumexp CrossEntropyLoss NLLLoss LogSoftmax "
    "Softmax logaddexp gaussian_nll_loss softmin Softmin special distributions"
)
NO_AUTOGRAD = "autograd backward requires_grad requires_grad_ func"
PROBLEMS = [
    Problem("3.1", "Documents into rows", "pack", 2, 0.1, check_pack),
    Problem("3.2", "Targets and weights", "label", 2, 0.1, check_label),
    Problem(
        "3.3", "The loss of each student", "losses", 4, 0.1, check_losses, (*NO_READY_LOSS.split(),)
    ),
    Problem(
        "3.4",
        "The gradient of the loss, by hand",
        "gradient",
        4,
        0.2,
        check_gradient,
        (*NO_READY_LOSS.split(), *NO_AUTOGRAD.split()),
    ),
    Problem("3.5", "One self-edit, one adapter", "train", 4, 0.3, check_train, ("optim",)),
    Problem(
        "3.6", "K students, some of which fail", "train_all", 4, 0.5, check_train_all, ("optim",)
    ),
]
