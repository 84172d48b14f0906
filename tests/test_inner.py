"""The inner loop against transformers + peft + torch.optim, against itself one adapter at a time, and against slow loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minseal import (
    GPT,
    Document,
    GPTConfig,
    InnerConfig,
    LoRAConfig,
    SelfEdit,
    adapt,
    attach,
    inner,
)
from minseal.inner import (
    Adam,
    cross_entropy,
    footprint,
    losses,
    pack,
    plan,
    side_by_side,
    to_tensors,
)

CONFIG = InnerConfig(lr=5e-3, epochs=4, rank=4, alpha=8.0, row_tokens=24)


def documents(n, seed, shortest=4, longest=14):
    """Random documents; about a third of their tokens carry no loss."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(n):
        length = int(rng.integers(shortest, longest + 1))
        out.append(
            Document(
                tuple(rng.integers(0, 48, length).tolist()),
                (False, True, *(rng.random(length - 2) < 0.65).tolist()),
            )
        )
    return tuple(out)


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
    adapters = adapt(model, edits, config, seed)
    state = adapters.state()
    adapters.remove()
    return state, adapters.losses, adapters.failed


def distance(state, k, other, j):
    """Of adapter k in one state from adapter j in another: the largest norm of a difference over the norm of the tensor."""
    return max(
        ((state[name][k] - other[name][j]).norm() / other[name][j].norm()).item() for name in state
    )


# ---- K at once -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", ["none", "linear"])
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize(
    "dtype, close",
    [
        # Exactly equal but for rounding: with a rounding of 1e-16 almost nothing is left.
        (torch.float64, 1e-10),
        # Adam divides a gradient by its own size, so where it is nearly 0 its rounding (1e-7) becomes a part of a step.
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
        assert curves[k] == pytest.approx(
            curve, rel=1e-6
        )  # losses are float32 in both: 6e-8, and a few roundings more
        assert distance(state, k, alone, 0) < close
    assert (
        min(distance(state, k, state, j) for k in range(4) for j in range(k)) > 0.1
    )  # and they do differ


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


# ---- transformers + peft + torch.optim ----------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", ["none", "linear"])
def test_one_adapter_equals_transformers_peft_and_adamw(twins, decay):
    """Documents padded in one batch there, packed here; the same first A.

    Adam turns the rounding of a nearly vanishing gradient into a part of a step (lr = 5e-3), hence 1e-3 of the tensor's
    norm for weights; losses, which do not notice such weights, 1e-5.
    """
    import peft

    theirs, mine = twins()
    edit, steps = SelfEdit(documents(5, 4), lr=5e-3, epochs=8), 8
    adapters = adapt(mine, [SelfEdit(edit.documents, epochs=0)], CONFIG)
    first = adapters.state()
    adapters.remove()
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
            [i if carries else -100 for i, carries in zip(d.ids, d.loss)]
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
            assert (want - first[f"{path}.{ab}"][0]).norm() > 1e-2 * want.norm(), (
                path
            )  # a hundred times as far from the start


def test_adam_equals_torch_adam_with_a_learning_rate_for_each_adapter():
    """Float32 against float32, 30 steps of size up to 0.1; gradients from 1e-9 (where eps counts) to 1e3."""
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


# ---- the loss -----------------------------------------------------------------------------------------------------------


def slow_loss(model, docs):
    """One document at a time, one token at a time: the mean of -log p over the tokens that carry loss."""
    terms = []
    for document in docs:
        logits = model(torch.tensor([document.ids]))[0]
        for t in range(1, len(document.ids)):
            if document.loss[t]:
                terms.append(logits[t - 1].logsumexp(0) - logits[t - 1, document.ids[t]])
    return (sum(terms) / len(terms)).item() if terms else 0.0


@torch.no_grad()
def test_losses_equal_a_slow_loop(gpt):
    groups = [documents(5, 0), documents(1, 1), documents(9, 2)]
    got = losses(gpt, [pack(docs, 24) for docs in groups])
    # A mean of some twenty float32 numbers of size 5.
    assert got.tolist() == pytest.approx([slow_loss(gpt, docs) for docs in groups], rel=1e-6)


@torch.no_grad()
def test_every_token_counts_alike_whatever_document_it_is_in(gpt):
    """One mean over all tokens, not a mean of the documents' means."""
    long, short = Document(tuple(range(1, 31)), (True,) * 30), Document((3, 4), (True,) * 2)
    got = losses(gpt, [[[long, short]]]).item()
    assert got == pytest.approx(
        (29 * slow_loss(gpt, [long]) + slow_loss(gpt, [short])) / 30, rel=1e-6
    )
    assert abs(got - (slow_loss(gpt, [long]) + slow_loss(gpt, [short])) / 2) > 1e-3


@torch.no_grad()
def test_a_last_token_without_loss_may_be_anything(gpt):
    """Nothing is predicted after it and it is no target, so no bit changes."""

    def loss(last, carries):
        docs = (
            Document((5, 6, 7, last), (True, True, True, carries)),
            Document((9, 8, 9), (True,) * 3),
        )
        return losses(gpt, [pack(docs, 24)]).item()

    assert len({loss(last, False) for last in range(48)}) == 1
    assert len({loss(last, True) for last in range(48)}) > 20


@torch.no_grad()
def test_the_first_token_is_never_a_target(gpt):
    documents_ = [Document((5, 6, 7), (first, True, True)) for first in (False, True)]
    assert torch.equal(*(losses(gpt, [[[Document((1, 2), (True, True)), d]]]) for d in documents_))


def test_an_adapter_without_a_token_to_learn_stays_as_it_is(gpt):
    silent = SelfEdit((Document((1, 2, 3), (False,) * 3),))
    edits = [silent, SelfEdit(documents(3, 0))]
    state, curves, failed = trained(gpt, edits)
    alone, _, _ = trained(gpt, edits[1:])
    assert not failed and curves[0] == [0.0] * 4
    assert all((state[name][0] == 0).all() for name in state if name.endswith(".B"))
    assert distance(state, 1, alone, 0) < 5e-5  # float32, as above


# ---- documents into rows ------------------------------------------------------------------------------------------------

lengths = st.lists(st.integers(1, 40), max_size=30)


@given(lengths, st.integers(1, 60))
def test_packing_keeps_every_document_in_order_and_rows_short(lengths, row_tokens):
    docs = [Document((i,) * n, (True,) * n) for i, n in enumerate(lengths)]
    rows = pack(docs, row_tokens)
    assert [d for row in rows for d in row] == docs
    assert all(row for row in rows)
    assert all(len(row) == 1 or sum(len(d.ids) for d in row) <= row_tokens for row in rows)
    for row, following in zip(rows, rows[1:]):  # no row ends early
        assert sum(len(d.ids) for d in row) + len(following[0].ids) > row_tokens


@given(st.lists(lengths.filter(bool), min_size=1, max_size=4), st.integers(1, 60))
def test_tensors_hold_every_document_once_with_its_targets(groups, row_tokens):
    """Read back, token by token; everything else is padding without a target."""
    groups = [
        [
            Document(tuple(range(100 * i, 100 * i + n)), tuple(t % 3 != 1 for t in range(n)))
            for i, n in enumerate(g)
        ]
        for g in groups
    ]
    rows = [pack(g, row_tokens) for g in groups]
    ids, docs, targets = (x.view(len(groups), -1, x.shape[1]).tolist() for x in to_tensors(rows))
    assert len(ids[0]) == max(len(r) for r in rows)
    for k in range(len(groups)):
        for r in range(len(ids[k])):
            expected = []
            for number, d in enumerate(rows[k][r] if r < len(rows[k]) else []):
                for t, token in enumerate(d.ids):
                    learns = t + 1 < len(d.ids) and d.loss[t + 1]
                    expected.append((token, number, d.ids[t + 1] if learns else -1))
            got = list(zip(ids[k][r], docs[k][r], targets[k][r]))
            assert got[: len(expected)] == expected
            assert all(doc == target == -1 for _, doc, target in got[len(expected) :])


@given(st.integers(1, 9), st.integers(0, 5), st.integers(1, 4), st.integers(0, 3))
def test_every_epoch_reads_every_document_once(n, batch, epochs, seed):
    docs = tuple(Document((i, i), (True, True)) for i in range(n))
    steps = plan(SelfEdit(docs), InnerConfig(batch=batch, epochs=epochs), seed)
    in_epoch = math.ceil(n / batch) if batch else 1
    assert len(steps) == epochs * in_epoch
    for e in range(epochs):
        read = [
            [d for row in step for d in row] for step in steps[e * in_epoch : (e + 1) * in_epoch]
        ]
        assert sorted((d for step in read for d in step), key=lambda d: d.ids) == list(docs)
        assert not batch or all(len(step) == batch for step in read[:-1])


def test_steps_of_single_documents_come_in_an_order_of_their_own_each_epoch():
    docs = tuple(Document((i, i), (True, True)) for i in range(8))
    orders = {
        tuple(
            step[0][0].ids[0]
            for step in plan(SelfEdit(docs), InnerConfig(batch=1, epochs=3), seed)[
                8 * e : 8 * e + 8
            ]
        )
        for seed in (0, 1)
        for e in range(3)
    }
    assert len(orders) == 6  # 8! orders: two alike would be no accident


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
    other, other_curves, _ = trained(
        model, edits, InnerConfig(lr=5e-3, epochs=4, rank=4, alpha=8.0, row_tokens=row_tokens)
    )
    for k in range(len(edits)):
        assert curves[k] == pytest.approx(other_curves[k], rel=1e-5)
        assert distance(state, k, other, k) < 1e-5


def test_what_stands_in_the_padding_changes_no_bit(gpt, monkeypatch):
    edits = [SelfEdit(documents(n, n)) for n in (1, 7, 3)]
    clean, _, _ = trained(gpt, edits)
    filled = []

    def garbage(rows):
        ids, docs, targets = to_tensors(rows)
        filled.append((docs < 0).sum().item())
        return (
            torch.where(
                docs < 0,
                torch.randint(48, ids.shape, generator=torch.Generator().manual_seed(0)),
                ids,
            ),
            docs,
            targets,
        )

    monkeypatch.setattr(inner, "to_tensors", garbage)
    dirty, _, _ = trained(gpt, edits)
    assert min(filled) > 20
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)


# ---- what can go wrong ---------------------------------------------------------------------------------------------------


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
    assert all((state[name][1] == 0).all() for name in state if name.endswith(".B"))
    assert all(value.isfinite().all() for value in state.values())
    for k, j in ((0, 0), (2, 1)):
        assert distance(state, k, expected, j) < close
        assert curves[k] == pytest.approx(expected_curves[j], rel=1e-6)


def test_an_adapter_that_breaks_in_its_last_step_is_set_aside_too(gpt):
    """No loss follows that could show it."""
    state, curves, failed = trained(
        gpt,
        [SelfEdit(documents(2, 0)), SelfEdit(documents(2, 1), lr=float("inf"))],
        InnerConfig(epochs=1, rank=4),
    )
    assert list(failed) == [1] and failed[1] and len(curves[1]) == 1
    assert all(
        (state[name][1] == 0).all() and (state[name][0] != 0).any()
        for name in state
        if name.endswith(".B")
    )


def test_nothing_fails_without_a_reason(gpt):
    assert trained(gpt, mixed_edits())[2] == {}


def test_no_epochs_and_no_update(gpt):
    state, curves, failed = trained(
        gpt, [SelfEdit(documents(2, 0), epochs=0), SelfEdit(documents(2, 0), epochs=1)]
    )
    assert curves[0] == [] and not failed
    assert all(
        (state[name][0] == 0).all() and (state[name][1] != 0).any()
        for name in state
        if name.endswith(".B")
    )


def test_the_base_keeps_every_bit(gpt):
    before, wanted = (
        {name: p.detach().clone() for name, p in gpt.named_parameters()},
        [p.requires_grad for p in gpt.parameters()],
    )
    trained(gpt, mixed_edits())
    assert {name for name, _ in gpt.named_parameters()} == before.keys()
    assert all(
        torch.equal(p, before[name]) and p.grad is None for name, p in gpt.named_parameters()
    )
    assert [p.requires_grad for p in gpt.parameters()] == wanted


def test_adapters_come_back_attached_and_in_order(gpt):
    """The loss that each adapter reaches on its own documents is far below what the neighbour's adapter gives there."""
    edits = [SelfEdit(documents(2, seed), lr=1e-2, epochs=20) for seed in (0, 1)]
    adapters = adapt(gpt, edits, CONFIG)
    rows = [pack(edit.documents, 24) for edit in edits]
    with torch.no_grad():
        own, swapped = losses(gpt, rows), losses(gpt, rows[::-1]).flip(0)
    assert len(adapters) == gpt.n_adapters == 2
    assert (own < swapped - 0.5).all()


# ---- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_the_loss_in_parts_is_the_loss_and_so_is_its_gradient(rows):
    """Against torch's in one piece, in float64: only the order of sums differs."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(12, 50, bias=False, dtype=torch.float64)
    hidden = torch.randn(100, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (100,), generator=generator)
    weights = torch.randn(100, generator=generator)
    wanted = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="none")
    got = cross_entropy(head, hidden, targets, most_logits=50 * rows)
    torch.testing.assert_close(
        got.double(), wanted, rtol=0, atol=1e-6
    )  # the loss itself is taken in float32
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


def kept_for_backward(model, edit, config):
    """Bytes of all that one step keeps for its backward pass, but for the model's own weights."""
    own, seen = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack_hook(t):
        seen[t.untyped_storage().data_ptr()] = t  # held, so that no two have one address
        return t

    adapters = attach(model, 1, LoRAConfig(config.rank, config.alpha))
    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda t: t):
        losses(model, [plan(edit, config, 0)[0]])
    adapters.remove()
    return sum(t.untyped_storage().nbytes() for pointer, t in seen.items() if pointer not in own)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(qk_norm=True),
        dict(norm="layer", position="learned", mlp="gelu", bias=True, qkv_bias=True),
    ],
    ids=["llama", "qwen3", "gpt2"],
)
def test_the_footprint_is_near_what_autograd_keeps(make_gpt, settings):
    model = make_gpt(n_embd=96, head_dim=24, mlp_dim=192, n_layer=6, block_size=512, **settings)
    edit, config = (
        SelfEdit((Document((1,) * 300, (True,) * 300),)),
        InnerConfig(row_tokens=512, rank=4),
    )
    kept = kept_for_backward(model, edit, config)
    adapters = attach(model, 1, LoRAConfig(4, 8.0))
    weights = 6 * 4 * sum(p.numel() for p in adapters.parameters())
    adapters.remove()
    assert (
        0.7 < (footprint(model, edit, config) - weights) / kept < 1.6
    )  # an estimate, and rather too much than too little
    assert (
        footprint(model, edit, replace(config, recompute=True)) < footprint(model, edit, config) / 2
    )


@given(st.lists(st.integers(2, 60), min_size=1, max_size=12), st.integers(1, 5), st.floats(0, 3))
def test_groups_fit_into_memory_and_lose_nobody(lengths, at_most, share):
    model = GPT(
        GPTConfig(vocab_size=8, n_layer=1, n_embd=8, n_head=1, n_kv_head=1, head_dim=8, mlp_dim=8)
    )
    edits = [SelfEdit((Document((1,) * n, (True,) * n),)) for n in sorted(lengths)]
    sizes = [footprint(model, e, CONFIG) for e in edits]
    memory = share * max(sizes) / 1e9
    groups = side_by_side(model, edits, CONFIG, at_most, memory)
    assert [i for group in groups for i in group] == list(range(len(edits)))
    for group in groups:
        assert len(group) <= at_most
        assert (
            len(group) == 1
            or memory == 0
            or len(group) * max(sizes[i] for i in group) <= memory * 1e9
        )


def test_training_goes_on_from_a_state(gpt):
    first = adapt(gpt, [SelfEdit(documents(3, 0))], CONFIG)
    state = first.state()
    first.remove()
    told = []
    again = adapt(
        gpt,
        [SelfEdit(documents(3, 0))] * 2,
        CONFIG,
        start=state,
        on_step=lambda step, steps, loss: told.append((step, steps, loss.tolist())),
    )
    assert again.losses[0] == again.losses[1] and again.losses[0][0] < first.losses[0][-1]
    assert [t[:2] for t in told] == [(i + 1, 4) for i in range(4)] and [t[2] for t in told] == [
        list(x) for x in zip(*again.losses)
    ]
