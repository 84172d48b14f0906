"""GPT against transformers, itself one document at a time, and finite differences."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minseal import GPT, GPTConfig
from minseal.model import positions_in_document, same_document
from minseal.sample import KVCache

# float32 rounding of two orders of summation, logits of size about 5; a wrong formula is off by
# 1e-2 and more.
CLOSE = 1e-5

FAMILIES = {
    "llama, grouped-query, head_dim of its own, untied": ("llama", {}),
    "llama, tied": ("llama", dict(tied=True)),
    "llama, a key for every head": ("llama", dict(n_kv_head=4)),
    "llama, one key for all heads, other theta and eps": (
        "llama",
        dict(n_kv_head=1, rope_theta=500.0, norm_eps=1e-2),
    ),
    # Wavelengths here are 6, 29, 135, ... tokens: kept (below 64 / 4), blended, stretched (above
    # 64 / 1).
    "llama 3 rope scaling": ("llama", dict(rope_scaling=(8.0, 1.0, 4.0, 64))),
    "gpt2": (
        "gpt2",
        dict(
            norm="layer",
            position="learned",
            qkv_bias=True,
            bias=True,
            mlp="gelu",
            tied=True,
            n_kv_head=4,
            head_dim=8,
        ),
    ),
    "qwen2": ("qwen2", dict(qkv_bias=True, tied=True)),
    "qwen3": ("qwen3", dict(qk_norm=True, head_dim=16)),
}
ROPE_AND_LEARNED = pytest.mark.parametrize(
    "settings", [{}, dict(position="learned", norm="layer", mlp="gelu")], ids=["rope", "learned"]
)


def random_ids(*shape, seed=0, vocab=48):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family, settings", FAMILIES.values(), ids=FAMILIES)
def test_logits_equal_those_of_transformers(twins, family, settings):
    theirs, mine = twins(family, **settings)
    ids = random_ids(3, 100)
    with torch.no_grad():
        expected, got = theirs(ids).logits, mine(ids)
    assert expected.std() > 0.5  # else 1e-5 would say little
    assert (got - expected).abs().max() < CLOSE


@ROPE_AND_LEARNED
def test_packed_documents_equal_documents_one_by_one(make_gpt, settings):
    model, lengths = make_gpt(**settings), [[5, 1, 9], [3, 12], [15]]
    rows = [
        [random_ids(n, seed=10 * i + j) for j, n in enumerate(row)] for i, row in enumerate(lengths)
    ]
    ids = torch.stack([torch.cat(row) for row in rows])
    docs = torch.tensor([[j for j, n in enumerate(row) for _ in range(n)] for row in lengths])
    with torch.no_grad():
        packed = model(ids, docs)
        for logits, row in zip(packed, rows):
            alone = torch.cat([model(document[None])[0] for document in row])
            assert (logits - alone).abs().max() < CLOSE


@ROPE_AND_LEARNED
def test_padding_on_the_left_and_on_the_right_changes_nothing(make_gpt, settings):
    model, document = make_gpt(**settings), random_ids(9, seed=1)
    for left, right in ((4, 0), (0, 3), (2, 5)):
        for seed in (2, 3):  # whatever stands in the padding
            ids = torch.cat([random_ids(left, seed=seed), document, random_ids(right, seed=seed)])
            docs = torch.tensor([-1] * left + [0] * 9 + [-1] * right)
            with torch.no_grad():
                difference = (
                    model(ids[None], docs[None])[0, left : left + 9] - model(document[None])[0]
                )
            assert difference.abs().max() < CLOSE


def test_a_token_changes_nothing_before_it(gpt):
    ids = random_ids(2, 20)
    changed = ids.clone()
    changed[:, 12] = (ids[:, 12] + 1) % 48
    with torch.no_grad():
        before, after = gpt(ids), gpt(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert (before[:, 12:] - after[:, 12:]).abs().amax(-1).min() > 1e-3  # and everything from it on


runs_of_documents = st.lists(
    st.tuples(st.integers(-1, 3), st.integers(1, 5)), min_size=1, max_size=6
)


@given(runs_of_documents)
def test_positions_restart_with_each_document(runs):
    # Neighbours differ.
    runs = [run for i, run in enumerate(runs) if i == 0 or run[0] != runs[i - 1][0]]
    docs = torch.tensor([[number for number, n in runs for _ in range(n)]])
    assert positions_in_document(docs)[0].tolist() == [
        position for _, n in runs for position in range(n)
    ]


@given(runs_of_documents, st.integers(1, 30))
def test_a_token_sees_its_own_document_up_to_itself(runs, T):
    keys = [number for number, n in runs for _ in range(n)]
    queries = keys[-T:]
    mask = same_document(torch.tensor([queries]), torch.tensor([keys]))[0, 0]
    for i, query in enumerate(queries):
        for j, key in enumerate(keys):
            assert mask[i, j] == (query == key and j <= len(keys) - len(queries) + i)


@ROPE_AND_LEARNED
def test_cache_token_by_token_and_in_pieces_equals_one_pass(make_gpt, settings):
    model, ids = make_gpt(**settings), random_ids(3, 20)
    with torch.no_grad():
        expected = model(ids)
        for pieces in ([1] * 20, [7, 1, 1, 11], [20]):
            cache = KVCache(model, 3, 20)
            got = torch.cat(
                [model(piece, cache=cache) for piece in ids.split(pieces, dim=1)], dim=1
            )
            assert (got - expected).abs().max() < CLOSE


@ROPE_AND_LEARNED
def test_cache_after_left_padding_equals_each_row_alone(make_gpt, settings):
    model, rows = make_gpt(**settings), [random_ids(n, seed=n) for n in (9, 4, 1)]
    ids = torch.stack([torch.cat([random_ids(9 - len(row), seed=7), row]) for row in rows])
    docs = torch.tensor([[-1] * (9 - len(row)) + [0] * len(row) for row in rows])
    more = random_ids(3, 5, seed=8)
    cache = KVCache(model, 3, 14)
    with torch.no_grad():
        model(ids, docs, cache)
        got = torch.cat([model(more[:, t : t + 1], cache=cache) for t in range(5)], dim=1)
        for i, row in enumerate(rows):
            alone = model(torch.cat([row, more[i]])[None])[0, -5:]
            assert (got[i] - alone).abs().max() < CLOSE


def test_cache_take_keeps_repeats_and_reorders_rows(gpt):
    ids, more = random_ids(3, 6), random_ids(4, 3, seed=1)
    docs = torch.zeros_like(ids)
    docs[1, :2] = -1
    rows, cache = torch.tensor([2, 1, 1, 0]), KVCache(gpt, 3, 9)
    with torch.no_grad():
        gpt(ids, docs, cache)
        cache.take(rows)
        got = gpt(more, cache=cache)
        fresh = KVCache(gpt, 4, 9)
        gpt(ids[rows], docs[rows], fresh)
        assert (got - gpt(more, cache=fresh)).abs().max() < CLOSE


def test_a_document_longer_than_the_model_reads_is_refused_with_both_numbers(make_gpt):
    model = make_gpt(block_size=10)
    with pytest.raises(ValueError, match=r"\b11\b.*\b10\b"):
        model(random_ids(1, 11))
    with pytest.raises(ValueError, match=r"\b12\b.*\b10\b"):
        model(random_ids(1, 14), torch.tensor([[0] * 2 + [1] * 12]))
    cache = KVCache(model, 1, 20)
    model(random_ids(1, 10), cache=cache)
    with pytest.raises(ValueError, match=r"\b11\b.*\b10\b"):
        model(random_ids(1, 1), cache=cache)


@ROPE_AND_LEARNED
@torch.no_grad()
def test_a_row_may_be_longer_than_the_model_reads_if_no_document_in_it_is(make_gpt, settings):
    model, ids = make_gpt(block_size=10, **settings), random_ids(2, 30)
    docs = torch.arange(3).repeat_interleave(10).expand(2, 30)
    packed = model(ids, docs)
    for i in range(3):
        alone = model(ids[:, 10 * i : 10 * i + 10])
        assert (packed[:, 10 * i : 10 * i + 10] - alone).abs().max() < CLOSE


def test_one_too_long_document_among_short_ones_is_refused(make_gpt):
    model = make_gpt(block_size=10)
    docs = torch.tensor([[0] * 10 + [1] * 10 + [2] * 5, [0] * 4 + [1] * 11 + [2] * 10])
    with pytest.raises(ValueError, match=r"\b11\b.*\b10\b"):
        model.hidden(random_ids(2, 25), docs)
    model.hidden(random_ids(1, 25), docs[:1])


@ROPE_AND_LEARNED
@torch.no_grad()
def test_a_cache_may_be_longer_than_the_model_reads_if_what_it_holds_is_padding(make_gpt, settings):
    """Left padding counts for nothing; the row whose own tokens are too many is refused."""
    model, ids = make_gpt(block_size=10, **settings), random_ids(2, 14)
    docs = torch.tensor([[-1] * 8 + [0] * 6, [-1] * 5 + [0] * 9])
    cache = KVCache(model, 2, 20)
    got = model(ids, docs, cache)
    assert (got[0, 8:] - model(ids[:1, 8:])[0]).abs().max() < CLOSE
    model(random_ids(2, 1), cache=cache)  # 7 and 10 tokens
    with pytest.raises(ValueError, match=r"\b11\b.*\b10\b"):
        model(random_ids(2, 1), cache=cache)
    docs[1] = torch.tensor([-1] * 3 + [0] * 11)
    with pytest.raises(ValueError, match=r"\b11\b.*\b10\b"):
        model(ids, docs, KVCache(model, 2, 20))


def test_size_counts_a_tied_head_once(make_gpt):
    tied, untied = make_gpt(tied=True), make_gpt()
    attention = 32 * 48 * 2 + 32 * 24 * 2  # q and o, k and v
    blocks = 2 * (attention + 3 * 32 * 56 + 2 * 32)
    assert tied.size() == 48 * 32 + blocks + 32
    assert untied.size() == tied.size() + 48 * 32


@pytest.mark.parametrize(
    "name", ["llama, grouped-query, head_dim of its own, untied", "gpt2", "qwen2", "qwen3"]
)
def test_gradients_equal_central_differences(make_gpt, name):
    """In float64, h = 1e-6: within 1e-7.

    The difference quotient is off by h^2 (curvature) and 1e-16 / h (rounding): 1e-7 is ample.
    """
    model, ids = make_gpt(**FAMILIES[name][1]).double(), random_ids(2, 12)
    docs = torch.tensor([[0] * 5 + [1] * 7, [-1] * 3 + [0] * 9])
    h = 1e-6

    def loss():
        return F.cross_entropy(model(ids, docs)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    loss().backward()
    largest = 0.0
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            for i in random_ids(2, seed=number, vocab=p.numel()).tolist():
                flat, old = p.view(-1), p.view(-1)[i].item()
                flat[i] = old + h
                up = loss()
                flat[i] = old - h
                down = loss()
                flat[i] = old
                assert abs((up - down) / (2 * h) - p.grad.view(-1)[i]) < 1e-7
                largest = max(largest, p.grad.view(-1)[i].abs().item())
    assert largest > 1e-2  # the gradients compared were not all nothing


def test_fresh_weights_come_from_the_generator_alone():
    config = GPTConfig(n_layer=2, n_embd=32, head_dim=8, mlp_dim=56)
    one, same, other = (
        GPT(config).init_weights(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters()):
        assert torch.equal(a, b), name
        assert a.dim() == 1 or not torch.equal(a, c), name


def test_fresh_weights_have_the_spread_of_gpt2():
    """Standard deviations of 4096 draws and more: within 5 %.

    That is more than four standard errors, each 1 / sqrt(2 * 4096) = 1.1 %.
    """
    model = GPT(GPTConfig(n_layer=2, n_embd=64, head_dim=16)).init_weights(
        torch.Generator().manual_seed(0)
    )
    for layer, expected in (
        (model.wte, 0.02),
        (model.blocks[0].attn.q, 0.02),
        (model.blocks[1].mlp.up, 0.02),
        (model.blocks[0].attn.o, 0.02 / 2),
        (model.blocks[1].mlp.down, 0.02 / 2),
    ):
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert (model.norm.weight == 1).all()


@pytest.mark.parametrize(
    "settings",
    [dict(norm="batch"), dict(position="alibi"), dict(mlp="relu"), dict(n_head=4, n_kv_head=3)],
    ids=str,
)
def test_settings_that_make_no_model_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        GPTConfig(**settings)
