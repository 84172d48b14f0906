"""The footprint of an adapter against what autograd keeps, and groups that fit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minseal import GPT, Document, GPTConfig, InnerConfig, LoRAConfig, SelfEdit, attach
from minseal.inner import Course, losses
from minseal.memory import footprint, side_by_side

CONFIG = InnerConfig(rank=4, alpha=8.0, row_tokens=512)


def edit_of(n):
    """A self-edit of one document of n tokens."""
    return SelfEdit((Document((1,) * n, (1.0,) * n),))


def kept_for_backward(model, edit, config):
    """Bytes of all that one step keeps for its backward pass, but for the model's own weights."""
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t  # held, so that no two have one address
        return t

    with attach(model, 1, LoRAConfig(config.rank, config.alpha)):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            losses(model, [Course.of(edit, config, 0).steps[0]])
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)


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
    """0.7 to 1.6 times: an estimate, and rather too much than too little."""
    model = make_gpt(n_embd=96, head_dim=24, mlp_dim=192, n_layer=6, block_size=512, **settings)
    edit, kept = edit_of(300), kept_for_backward(model, edit_of(300), CONFIG)
    with attach(model, 1, LoRAConfig(4, 8.0)) as adapters:
        weights = 6 * 4 * sum(p.numel() for p in adapters.parameters())
    assert 0.7 < (footprint(model, edit, CONFIG) - weights) / kept < 1.6
    less = footprint(model, edit, replace(CONFIG, recompute=True))
    assert less < footprint(model, edit, CONFIG) / 2


@given(st.lists(st.integers(2, 60), min_size=1, max_size=12), st.integers(1, 5), st.floats(0, 3))
def test_groups_fit_into_memory_and_lose_nobody(lengths, at_most, share):
    small = dict(vocab_size=8, n_layer=1, n_embd=8, n_head=1, n_kv_head=1, head_dim=8, mlp_dim=8)
    model, edits = GPT(GPTConfig(**small)), [edit_of(n) for n in lengths]
    sizes = [footprint(model, edit, CONFIG) for edit in edits]
    memory = share * max(sizes) / 1e9
    groups = side_by_side(model, edits, CONFIG, at_most, memory)
    assert [i for group in groups for i in group] == list(range(len(edits)))
    for group in groups:
        together = len(group) * max(sizes[i] for i in group)
        assert len(group) <= at_most
        assert len(group) == 1 or memory == 0 or together <= memory * 1e9


@pytest.mark.parametrize("n, at_most, sizes", [(7, 3, [3, 3, 1]), (3, 8, [3]), (0, 4, [])])
def test_without_a_limit_groups_are_full(gpt, n, at_most, sizes):
    groups = side_by_side(gpt, [edit_of(5)] * n, CONFIG, at_most)
    assert [len(group) for group in groups] == sizes


@pytest.mark.parametrize("batch", [0, 2])
def test_epochs_of_a_self_edit_do_not_change_its_footprint(gpt, batch):
    """Steps come one after another, however many."""
    config, edit = InnerConfig(rank=4, batch=batch), edit_of(30)
    assert footprint(gpt, replace(edit, epochs=50), config) == footprint(gpt, edit, config)
