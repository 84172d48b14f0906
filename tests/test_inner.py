"""The inner loop against transformers + peft + torch.optim, one adapter at a time, slow loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minseal import Document, InnerConfig, SelfEdit, adapt, inner
from minseal.files import UserError
from minseal.inner import Adam, Cohort, Course, cross_entropy, losses, pack, to_tensors
from minseal.lora import attach

CONFIG = InnerConfig(lr=5e-3, epochs=4, rank=4, alpha=8.0, row_tokens=24)


def documents(n, seed, shortest=4, longest=14):
    """Random documents; about a third of their tokens carry no loss."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(n):
        length = int(rng.integers(shortest, longest + 1))
        ids = tuple(rng.integers(0, 48, length).tolist())
        out.append(Document(ids, (0.0, 1.0, *(rng.random(length - 2) < 0.65).astype(float))))
    return tuple(out)


def document(*ids):
    """All its tokens carry loss."""
    return Document(ids, (1.0,) * len(ids))


def mixed_edits():
    """Self-edits that differ in everything: number of documents, learning rate, epochs."""
    return [
        SelfEdit(documents(3, 0), lr=1e-3, epochs=5),
        SelfEdit(documents(1, 1), lr=1e-2, epochs=2),
        SelfEdit(documents(6, 2), epochs=3),
        SelfEdit(documents(4, 3), lr=3e-3),
    ]


def trained(model, edits, config=CONFIG, seed=0):
    """adapt() and off again: (state, losses, failed)."""
    with adapt(model, edits, config, seed) as adapters:
        return adapters.state(), adapters.losses, adapters.failed


def without_scale(state):
    return {name: value for name, value in state.items() if name != "scale"}


def all_B(state):
    return [value for name, value in state.items() if name.endswith(".B")]


def distance(state, k, other, j):
    """Adapter k in one state from adapter j in another: the largest difference of two tensors.

    That is the norm of the difference over the norm of the tensor.
    """
    return max(
        ((value[k] - other[name][j]).norm() / other[name][j].norm()).item()
        for name, value in without_scale(state).items()
    )


# ---- K at once ----


@pytest.mark.parametrize("decay", ["none", "linear"])
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize(
    "dtype, close",
    [
        # Exactly equal but for rounding: with a rounding of 1e-16 almost nothing is left.
        (torch.float64, 1e-10),
        # Adam divides a gradient by its own size: where it is nearly 0 its rounding (1e-7) becomes
        # a part of a step.
        (torch.float32, 5e-5),
    ],
    ids=["float64", "float32"],
)
def test_K_at_once_equal_K_one_by_one(make_gpt, dtype, close, batch, decay):
    model, edits = make_gpt().to(dtype), mixed_edits()
    config = InnerConfig(
        lr=5e-3, epochs=4, batch=batch, decay=decay, rank=4, alpha=8.0, row_tokens=24
    )
    state, curves, failed = trained(model, edits, config)
    assert not failed
    for k, edit in enumerate(edits):
        alone, [curve], _ = trained(model, [edit], config)
        assert len(curve) == (edit.epochs or 4) * (
            math.ceil(len(edit.documents) / batch) if batch else 1
        )
        # Losses are float32 in both: 6e-8, and a few roundings more.
        assert curves[k] == pytest.approx(curve, rel=1e-6)
        assert distance(state, k, alone, 0) < close
    # And they do differ.
    assert min(distance(state, k, state, j) for k in range(4) for j in range(k)) > 0.1


def test_an_adapter_that_finishes_early_is_what_it_would_be_alone(make_gpt):
    model, edit = make_gpt().double(), SelfEdit(documents(2, 0), epochs=1)
    alone, _, _ = trained(model, [edit])
    for others in ([8], [2, 3, 8]):
        edits = [SelfEdit(documents(3, 9), epochs=n) for n in others]
        state, curves, _ = trained(model, [*edits, edit])
        assert [len(c) for c in curves] == [*others, 1]
        assert distance(state, len(others), alone, 0) < 1e-10  # as above


def test_same_seed_same_adapters_other_seed_others(gpt):
    first, again, other = (trained(gpt, mixed_edits()[:1], CONFIG, seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert distance(first, 0, other, 0) > 0.1


# ---- transformers + peft + torch.optim ----


@pytest.mark.parametrize("decay", ["none", "linear"])
def test_one_adapter_equals_transformers_peft_and_adamw(twins, decay):
    """Documents padded in one batch there, packed here; the same first A.

    Adam turns the rounding of a nearly vanishing gradient into a part of a step (lr = 5e-3), hence
    1e-3 of the tensor's norm for weights; losses, which do not notice such weights, 1e-5.
    """
    import peft

    theirs, mine = twins()
    edit, steps = SelfEdit(documents(5, 4), lr=5e-3, epochs=8), 8
    first, _, _ = trained(mine, [SelfEdit(edit.documents, epochs=0)])
    theirs = peft.get_peft_model(
        theirs,
        peft.LoraConfig(
            r=4,
            lora_alpha=8.0,
            target_modules=[f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")],
        ),
    )

    def their_site(path):
        _, i, part, name = path.split(".")
        return theirs.base_model.model.model.layers[int(i)].get_submodule(
            f"{'self_attn' if part == 'attn' else 'mlp'}.{name}_proj"
        )

    paths = [name[:-2] for name in first if name.endswith(".A")]
    for path in paths:
        their_site(path).lora_A["default"].weight.data.copy_(first[f"{path}.A"][0])
    T = max(len(d.ids) for d in edit.documents)
    ids = torch.tensor([[*d.ids] + [0] * (T - len(d.ids)) for d in edit.documents])
    attention = torch.tensor([[1] * len(d.ids) + [0] * (T - len(d.ids)) for d in edit.documents])
    labels = torch.tensor(
        [
            [i if weight else -100 for i, weight in zip(d.ids, d.weights)]
            + [-100] * (T - len(d.ids))
            for d in edit.documents
        ]
    )
    optimizer = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.requires_grad], lr=5e-3, weight_decay=0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 - step / steps if decay == "linear" else 1.0
    )
    expected = []
    for _ in range(steps):
        loss = theirs(input_ids=ids, attention_mask=attention, labels=labels).loss
        expected.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    state, [curve], _ = trained(
        mine, [edit], InnerConfig(decay=decay, rank=4, alpha=8.0, row_tokens=24)
    )
    assert curve == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0] - 0.5
    for path in paths:
        for ab in "AB":
            want = getattr(their_site(path), f"lora_{ab}")["default"].weight.detach()
            assert (state[f"{path}.{ab}"][0] - want).norm() < 1e-3 * want.norm(), path
            # A hundred times as far from the start.
            assert (want - first[f"{path}.{ab}"][0]).norm() > 1e-2 * want.norm(), path


def test_adam_equals_torch_adam_with_a_learning_rate_for_each_adapter():
    """30 steps of size up to 0.1; gradients from 1e-9 (where eps counts) to 1e3.

    Float32 against float32: 1e-6, a few roundings, of what a parameter has moved at most.
    """
    generator, lr = torch.Generator().manual_seed(0), [1e-4, 1e-2, 0.1]
    mine = [torch.randn(3, 4, 5, generator=generator), torch.randn(3, 6, 4, generator=generator)]
    theirs = [[p[k].clone().requires_grad_() for p in mine] for k in range(3)]
    optimizers = [torch.optim.Adam(params, lr=rate) for params, rate in zip(theirs, lr)]
    adam = Adam(mine)
    for _ in range(30):
        gradients = [
            torch.randn(p.shape, generator=generator)
            * 10 ** (12 * torch.rand(p.shape, generator=generator) - 9)
            for p in mine
        ]
        adam.step(mine, gradients, torch.tensor(lr))
        for k, (params, optimizer) in enumerate(zip(theirs, optimizers)):
            for p, g in zip(params, gradients):
                p.grad = g[k].clone()
            optimizer.step()
    for k, params in enumerate(theirs):
        for p, q in zip(mine, params):
            assert (p[k] - q.detach()).abs().max() < 1e-6 * (1 + 30 * lr[k])


# ---- the loss ----


def slow_loss(model, docs):
    """One document, one token at a time: the weighted mean of -log p over those that carry loss."""
    terms = []
    for d in docs:
        logits = model(torch.tensor([d.ids]))[0]
        for t in range(1, len(d.ids)):
            if d.weights[t]:
                loss = logits[t - 1].logsumexp(0) - logits[t - 1, d.ids[t]]
                terms.append(d.weights[t] * loss)
    return sum(terms) / len(terms) if terms else torch.tensor(0.0)


@torch.no_grad()
def test_losses_equal_a_slow_loop(gpt):
    groups = [documents(5, 0), documents(1, 1), documents(9, 2)]
    got = losses(gpt, [pack(docs, 24) for docs in groups])
    expected = [slow_loss(gpt, docs).item() for docs in groups]
    # A mean of some twenty float32 numbers of size 5.
    assert got.tolist() == pytest.approx(expected, rel=1e-6)


def weighted_groups():
    """Documents of three adapters with weights of both signs, also within a document, and 0."""
    rng = np.random.default_rng(0)
    groups = [documents(5, 0), documents(1, 1), documents(9, 2)]
    return [
        [replace(d, weights=tuple(rng.normal(size=len(d.ids)) * d.weights)) for d in docs]
        for docs in groups
    ]


def test_weighted_losses_and_their_gradient_equal_a_slow_loop(make_gpt):
    """In float64 but for the loss of a token and its weight, which are float32.

    So the loss is off by 1e-7 of the size of its terms, 10, and a gradient by 1e-7 of its norm:
    1e-5 and 1e-5 leave room for cancellation; a wrong weight is off by 1e-1 and more.
    """
    model, groups = make_gpt().double(), weighted_groups()
    assert min(w for g in groups for d in g for w in d.weights) < -1
    parameters = [p for p in model.parameters() if p.dim() == 2]
    got = losses(model, [pack(docs, 24) for docs in groups])
    expected = torch.stack([slow_loss(model, docs) for docs in groups])
    assert (got - expected).abs().max() < 1e-5
    for k in range(3):  # each adapter's own
        gradients = torch.autograd.grad(got[k], parameters, retain_graph=True)
        wanted = torch.autograd.grad(expected[k], parameters, retain_graph=True)
        for a, b in zip(gradients, wanted):
            assert (a - b).norm() < 1e-5 * b.norm() and b.norm() > 1e-3


def plain_losses(model, rows):
    """The loss of a model that knows no weights: tokens carry it, or do not."""
    ids, docs, targets, _ = to_tensors(rows)
    hidden, carries = model.hidden(ids, docs), targets >= 0
    each = torch.nn.functional.cross_entropy(
        model.head(hidden[carries]), targets[carries], reduction="none"
    )
    owner = carries.view(len(rows), -1).nonzero()[:, 0]
    return torch.zeros(len(rows)).index_add(0, owner, each) / owner.bincount()


def test_weights_of_0_and_1_are_the_ordinary_loss_to_the_bit(gpt):
    rows = [pack(docs, 24) for docs in (documents(5, 0), documents(1, 1), documents(9, 2))]
    parameters = list(gpt.parameters())
    got, expected = losses(gpt, rows), plain_losses(gpt, rows)
    assert torch.equal(got, expected)
    pairs = zip(*(torch.autograd.grad(x.sum(), parameters) for x in (got, expected)))
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("zero", [0, -0.0])
def test_a_document_weighted_0_carries_no_loss_and_counts_for_none(gpt, zero):
    """1e-6: a few roundings, since rows of another shape are multiplied in another order."""
    docs, silent = [*documents(3, 0)], [d.weighted(zero) for d in documents(2, 1)]
    assert (to_tensors([[silent]])[2] == -1).all()
    parameters = list(gpt.parameters())
    with_them, without = losses(gpt, [[docs + silent]]), losses(gpt, [[docs]])
    assert with_them.item() == pytest.approx(without.item(), rel=1e-6)
    for a, b in zip(*(torch.autograd.grad(x.sum(), parameters) for x in (with_them, without))):
        assert (a - b).norm() < 1e-6 * b.norm()
    alone = losses(gpt, [[silent]])
    assert alone.item() == 0
    assert all((g == 0).all() for g in torch.autograd.grad(alone.sum(), parameters))


@torch.no_grad()
def test_a_factor_on_every_document_is_a_factor_of_the_loss(gpt):
    """1e-6: a few roundings of float32."""
    docs = documents(4, 0)
    plain = losses(gpt, [[list(docs)]]).item()
    for factor in (2.0, 0.3, -1.0):
        got = losses(gpt, [[[d.weighted(factor) for d in docs]]]).item()
        assert got == pytest.approx(factor * plain, rel=1e-6)


def test_a_negative_weight_makes_a_document_less_likely(gpt):
    docs = documents(2, 0)
    with torch.no_grad():
        before = losses(gpt, [[list(docs)]]).item()
    for factor, sign in ((1.0, -1), (-1.0, 1)):
        edit = SelfEdit(tuple(d.weighted(factor) for d in docs))
        with adapt(gpt, [edit], CONFIG), torch.no_grad():
            assert sign * (losses(gpt, [[list(docs)]]).item() - before) > 0.1


def test_another_loss_is_what_is_trained(gpt):
    """Minus the loss is the loss with every weight times -1, to the bit: signs do not round."""
    edits = mixed_edits()
    minus = [
        replace(edit, documents=tuple(d.weighted(-1.0) for d in edit.documents)) for edit in edits
    ]
    state, values, _ = trained(gpt, minus)
    with adapt(gpt, edits, CONFIG, loss=lambda model, rows: -losses(model, rows)) as adapters:
        assert adapters.losses == values
        assert all(torch.equal(t, state[name]) for name, t in adapters.state().items())


@torch.no_grad()
def test_every_token_counts_alike_whatever_document_it_is_in(gpt):
    """One mean over all tokens, not a mean of the documents' means."""
    long, short = document(*range(1, 31)), document(3, 4)
    got = losses(gpt, [[[long, short]]]).item()
    a, b = slow_loss(gpt, [long]).item(), slow_loss(gpt, [short]).item()
    assert got == pytest.approx((29 * a + b) / 30, rel=1e-6)
    assert abs(got - (a + b) / 2) > 1e-3


@torch.no_grad()
def test_a_last_token_without_loss_may_be_anything(gpt):
    """Nothing is predicted after it and it is no target, so no bit changes."""

    def loss(last, weight):
        docs = Document((5, 6, 7, last), (1.0, 1.0, 1.0, weight)), document(9, 8, 9)
        return losses(gpt, [pack(docs, 24)]).item()

    assert len({loss(last, 0.0) for last in range(48)}) == 1
    assert len({loss(last, 1.0) for last in range(48)}) > 20


@torch.no_grad()
def test_the_first_token_is_never_a_target(gpt):
    docs = [Document((5, 6, 7), (first, 1.0, 1.0)) for first in (0.0, 1.0, -3.0)]
    one, *others = (losses(gpt, [[[document(1, 2), d]]]) for d in docs)
    assert all(torch.equal(one, other) for other in others)


def test_an_adapter_without_a_token_to_learn_stays_as_it_is(gpt):
    silent = SelfEdit((Document((1, 2, 3), (0.0,) * 3), document(4)))
    edits = [silent, SelfEdit(documents(3, 0))]
    state, curves, failed = trained(gpt, edits)
    alone, _, _ = trained(gpt, edits[1:])
    assert not failed and curves[0] == [0.0] * 4
    assert all((b[0] == 0).all() for b in all_B(state))
    assert distance(state, 1, alone, 0) < 5e-5  # float32, as above


# ---- documents into rows ----

lengths = st.lists(st.integers(1, 40), max_size=30)


@given(lengths, st.integers(1, 60))
def test_packing_keeps_every_document_in_order_and_rows_short(lengths, row_tokens):
    docs = [document(*[i] * n) for i, n in enumerate(lengths)]
    rows = pack(docs, row_tokens)
    assert [d for row in rows for d in row] == docs
    assert all(row for row in rows)
    assert all(len(row) == 1 or sum(len(d.ids) for d in row) <= row_tokens for row in rows)
    for row, following in zip(rows, rows[1:]):  # no row ends early
        assert sum(len(d.ids) for d in row) + len(following[0].ids) > row_tokens


@given(st.lists(lengths.filter(bool), min_size=1, max_size=4), st.integers(1, 60))
def test_tensors_hold_every_document_once_with_its_targets_and_weights(groups, row_tokens):
    """Read back, token by token; everything else is padding without a target."""
    groups = [
        [
            Document(tuple(range(100 * i, 100 * i + n)), tuple((t % 3 - 1) / 2 for t in range(n)))
            for i, n in enumerate(g)
        ]
        for g in groups
    ]
    rows = [pack(g, row_tokens) for g in groups]
    tensors = [x.view(len(groups), -1, x.shape[1]).tolist() for x in to_tensors(rows)]
    assert len(tensors[0][0]) == max(len(r) for r in rows)
    for k in range(len(groups)):
        for r in range(len(tensors[0][k])):
            expected = []
            for number, d in enumerate(rows[k][r] if r < len(rows[k]) else []):
                for t, token in enumerate(d.ids):
                    weight = d.weights[t + 1] if t + 1 < len(d.ids) else 0.0
                    target = d.ids[t + 1] if weight else -1
                    expected.append((token, number, target, weight))
            got = list(zip(*(x[k][r] for x in tensors)))
            assert got[: len(expected)] == expected
            assert all(rest[1:] == (-1, -1, 0) for rest in got[len(expected) :])


@given(st.integers(1, 9), st.integers(0, 5), st.integers(1, 4), st.integers(0, 3))
def test_every_epoch_reads_every_document_once(n, batch, epochs, seed):
    docs = tuple(document(i, i) for i in range(n))
    steps = Course.of(SelfEdit(docs), InnerConfig(batch=batch, epochs=epochs), seed).steps
    in_epoch = math.ceil(n / batch) if batch else 1
    assert len(steps) == epochs * in_epoch
    for e in range(epochs):
        read = [
            [d for row in step for d in row] for step in steps[e * in_epoch : (e + 1) * in_epoch]
        ]
        assert sorted((d for step in read for d in step), key=lambda d: d.ids) == list(docs)
        assert not batch or all(len(step) == batch for step in read[:-1])


def test_steps_of_single_documents_come_in_an_order_of_their_own_each_epoch():
    edit, config = SelfEdit(tuple(document(i, i) for i in range(8))), InnerConfig(batch=1, epochs=3)
    orders = set()
    for seed in (0, 1):
        steps = Course.of(edit, config, seed).steps
        read = [step[0][0].ids[0] for step in steps]
        orders |= {tuple(read[8 * e : 8 * e + 8]) for e in range(3)}
    assert len(orders) == 6  # 8! orders: two alike would be no accident


@pytest.mark.parametrize("decay", ["none", "linear"])
def test_the_rate_of_a_course_falls_over_its_own_steps(decay):
    course = Course.of(SelfEdit(documents(3, 0), lr=0.5), InnerConfig(batch=1, epochs=2), 0)
    rates = [course.rate(step, decay) for step in range(6)]
    falling = [0.5 * (6 - step) / 6 for step in range(6)]
    assert rates == pytest.approx(falling if decay == "linear" else [0.5] * 6, rel=1e-12)


def test_a_cohort_closes_up_and_each_adapter_keeps_its_moments(gpt):
    adapters = attach(gpt, 3)
    courses = [Course([[]] * n, 0.1) for n in (2, 1, 2)]
    cohort = Cohort(adapters, courses)
    for p, m, v in zip(adapters.parameters(), cohort.adam.m, cohort.adam.v):
        for k in range(3):
            p.data[k], m[k], v[k] = k + 1, k + 11, k + 21
    cohort.let_go()
    assert cohort.courses == courses and len(adapters) == 3  # nobody is over yet
    for course in courses:
        course.note(1.0)
    cohort.let_go()
    assert cohort.courses == [courses[0], courses[2]] and len(adapters) == gpt.n_adapters == 2
    for p, m, v in zip(adapters.parameters(), cohort.adam.m, cohort.adam.v):
        assert [x.flatten(1)[:, 0].tolist() for x in (p, m, v)] == [[1, 3], [11, 13], [21, 23]]
    assert all((w == 2).all() for w in courses[1].weights) and not courses[0].weights


def test_directives_of_the_self_edit_go_before_the_settings(gpt):
    _, [own, settings], _ = trained(
        gpt, [SelfEdit(documents(2, 0), lr=1e-6, epochs=2), SelfEdit(documents(2, 0))]
    )
    assert (len(own), len(settings)) == (2, 4)
    assert own[0] - own[1] < 1e-3 < settings[0] - settings[1]  # it hardly learns at 1e-6


@pytest.mark.parametrize("row_tokens", [1, 60, 1000])
def test_the_length_of_rows_changes_nothing(make_gpt, row_tokens):
    """In float64, where only rounding can differ; losses in float32, as they come."""
    model, edits = make_gpt().double(), mixed_edits()
    state, curves, _ = trained(model, edits)
    other, other_curves, _ = trained(model, edits, replace(CONFIG, row_tokens=row_tokens))
    for k in range(len(edits)):
        assert curves[k] == pytest.approx(other_curves[k], rel=1e-5)
        assert distance(state, k, other, k) < 1e-5


def test_what_stands_in_the_padding_changes_no_bit(gpt, monkeypatch):
    edits = [SelfEdit(documents(n, n)) for n in (1, 7, 3)]
    clean, _, _ = trained(gpt, edits)
    filled = []

    def garbage(rows):
        ids, docs, *rest = to_tensors(rows)
        filled.append((docs < 0).sum().item())
        noise = torch.randint(48, ids.shape, generator=torch.Generator().manual_seed(0))
        return torch.where(docs < 0, noise, ids), docs, *rest

    monkeypatch.setattr(inner, "to_tensors", garbage)
    dirty, _, _ = trained(gpt, edits)
    assert min(filled) > 20
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)


# ---- what can go wrong ----


@pytest.mark.parametrize("epochs", [2, 3, 6])
@pytest.mark.parametrize(
    "dtype, close, lr",
    [
        (torch.float64, 1e-10, float("inf")),
        (torch.float64, 1e-10, float("nan")),
        (torch.float32, 5e-5, 1e30),
        (torch.float32, 5e-5, 1e38),
    ],
    ids=str,
)
def test_an_adapter_that_breaks_is_set_aside_and_the_others_do_not_notice(
    make_gpt, dtype, close, lr, epochs
):
    """Tolerances as for K at once."""
    model = make_gpt().to(dtype)
    good = [SelfEdit(documents(3, 0)), SelfEdit(documents(2, 1), epochs=6)]
    state, curves, failed = trained(
        model, [good[0], SelfEdit(documents(2, 2), lr=lr, epochs=epochs), good[1]]
    )
    expected, expected_curves, _ = trained(model, good)
    assert list(failed) == [1] and failed[1]
    assert all(math.isfinite(loss) for loss in curves[1][:-1])  # it stopped when it broke
    assert all((b[1] == 0).all() for b in all_B(state))
    assert all(value.isfinite().all() for value in state.values())
    for k, j in ((0, 0), (2, 1)):
        assert distance(state, k, expected, j) < close
        assert curves[k] == pytest.approx(expected_curves[j], rel=1e-6)


def test_an_adapter_that_breaks_in_its_last_step_is_set_aside_too(gpt):
    """No loss follows that could show it."""
    edits = [SelfEdit(documents(2, 0)), SelfEdit(documents(2, 1), lr=float("inf"))]
    state, curves, failed = trained(gpt, edits, InnerConfig(epochs=1, rank=4))
    assert list(failed) == [1] and failed[1] and len(curves[1]) == 1
    assert all((b[1] == 0).all() and (b[0] != 0).any() for b in all_B(state))


def test_nothing_fails_without_a_reason(gpt):
    assert trained(gpt, mixed_edits())[2] == {}


def test_no_epochs_and_no_update(gpt):
    edits = [SelfEdit(documents(2, 0), epochs=epochs) for epochs in (0, 1)]
    state, curves, failed = trained(gpt, edits)
    assert curves[0] == [] and not failed
    assert all((b[0] == 0).all() and (b[1] != 0).any() for b in all_B(state))


@pytest.mark.parametrize("edits", [[], [SelfEdit(())], [SelfEdit(documents(1, 0)), SelfEdit(())]])
def test_nothing_to_train_on_is_refused_and_leaves_the_model_plain(gpt, edits):
    with pytest.raises(ValueError, match="at least one document"):
        adapt(gpt, edits, CONFIG)
    assert gpt.n_adapters is None


def test_an_error_while_training_leaves_the_model_plain(make_gpt):
    """A document too long to read, an interruption, an adapter of another model to start from."""
    model = make_gpt(block_size=16)
    before = [p.detach().clone() for p in model.parameters()]

    def interrupt(*_):
        raise KeyboardInterrupt

    good, recompute = SelfEdit(documents(2, 0)), replace(CONFIG, recompute=True)
    with pytest.raises(ValueError, match=r"\b20\b.*\b16\b"):
        adapt(model, [good, SelfEdit((document(*range(20)),))], recompute)
    with pytest.raises(KeyboardInterrupt):
        adapt(model, [good], recompute, on_step=interrupt)
    with pytest.raises(ValueError, match="another model"):
        adapt(model, [good], recompute, start={"blocks.0.attn.q.A": torch.zeros(1, 4, 32)})
    assert model.n_adapters is None and not model.recompute
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "settings", [dict(lr=-1), dict(lr=math.nan), dict(epochs=0), dict(rank=0), dict(decay="cosine")]
)
def test_settings_that_train_nothing_are_refused_by_name(settings):
    with pytest.raises(UserError, match=f"InnerConfig.{next(iter(settings))} is"):
        InnerConfig(**settings)


def test_the_base_keeps_every_bit(gpt):
    before = {name: p.detach().clone() for name, p in gpt.named_parameters()}
    wanted = [p.requires_grad for p in gpt.parameters()]
    trained(gpt, mixed_edits())
    assert {name for name, _ in gpt.named_parameters()} == before.keys()
    for name, p in gpt.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None, name
    assert [p.requires_grad for p in gpt.parameters()] == wanted


def test_adapters_come_back_attached_and_in_order(gpt):
    """On its own documents each has a loss far below that of its neighbour's adapter."""
    edits = [SelfEdit(documents(2, seed), lr=1e-2, epochs=20) for seed in (0, 1)]
    rows = [pack(edit.documents, 24) for edit in edits]
    with adapt(gpt, edits, CONFIG) as adapters, torch.no_grad():
        assert len(adapters) == gpt.n_adapters == 2
        own, swapped = losses(gpt, rows), losses(gpt, rows[::-1]).flip(0)
    assert (own < swapped - 0.5).all()


# ---- less memory ----


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_the_loss_in_parts_is_the_loss_and_so_is_its_gradient(rows):
    """Against torch's in one piece: 1e-6 and 1e-5 are a few roundings of a loss in float32."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(12, 50, bias=False, dtype=torch.float64)
    hidden = torch.randn(100, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (100,), generator=generator)
    weights = torch.randn(100, generator=generator)
    wanted = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="none")
    got = cross_entropy(head, hidden, targets, most=50 * rows)
    # The loss itself is taken in float32.
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-6)
    for parameter in (hidden, head.weight):
        a, b = (
            torch.autograd.grad((weights * x).sum(), parameter, retain_graph=True)[0]
            for x in (got, wanted)
        )
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_gradient_checkpointing_changes_nothing_but_memory(make_gpt):
    """The same sums in the same order, done twice: equal to the bit."""
    states = [
        trained(make_gpt(), mixed_edits(), replace(CONFIG, recompute=recompute))[0]
        for recompute in (False, True)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_training_goes_on_from_a_state(gpt):
    first, [curve], _ = trained(gpt, [SelfEdit(documents(3, 0))])
    steps = []
    again = adapt(
        gpt,
        [SelfEdit(documents(3, 0))] * 2,
        CONFIG,
        start=first,
        on_step=lambda step, of, loss: steps.append((step, of, loss.tolist())),
    )
    assert again.losses[0] == again.losses[1] and again.losses[0][0] < curve[-1]
    assert [step[:2] for step in steps] == [(i + 1, 4) for i in range(4)]
    assert [step[2] for step in steps] == [list(both) for both in zip(*again.losses)]


def test_each_adapter_goes_on_from_its_own_state(gpt):
    first, curves, _ = trained(gpt, mixed_edits())
    edits = [replace(edit, epochs=1) for edit in mixed_edits()]
    with adapt(gpt, edits, CONFIG, start=first) as adapters:
        assert all(adapters.losses[k][0] < curves[k][-1] for k in range(4))
