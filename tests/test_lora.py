"""K adapters against peft, against each adapter alone, and against the weights they are merged into."""

import copy

import pytest
import torch

from minseal import LoRAConfig, attach
from minseal.lora import LoRALinear
from minseal.model import KVCache

CONFIG = LoRAConfig(rank=4, alpha=6.0)
# float32 rounding of two orders of summation, for logits of size about 5; a wrong scale or a swapped adapter is off by 1e-1.
CLOSE = 1e-5


def random_ids(*shape, seed=0):
    return torch.randint(48, shape, generator=torch.Generator().manual_seed(seed))


def filled(adapters, seed=0):
    """The same adapters with random B: updates about as large as the weights, another one for each adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapters.layers.values():
            layer.A.copy_(0.3 * torch.randn(layer.A.shape, generator=generator))
            layer.B.copy_(0.1 * torch.randn(layer.B.shape, generator=generator))
    return adapters


def only(state, k):
    return {name: value[k : k + 1] for name, value in state.items()}


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@torch.no_grad()
def logits(model, *inputs):
    return model(*inputs)


def test_fresh_adapters_change_no_bit(gpt):
    ids = random_ids(6, 10)
    before = logits(gpt, ids)
    attach(gpt, 3, CONFIG)
    assert torch.equal(logits(gpt, ids), before)


@pytest.mark.parametrize(
    "targets", [("q", "v"), ("q", "k", "v", "o", "gate", "up", "down")], ids=len
)
def test_logits_equal_those_of_peft(twins, targets):
    import peft

    theirs, mine = twins()
    ids = random_ids(3, 12)
    before = logits(mine, ids)
    adapters = filled(attach(mine, 1, LoRAConfig(4, 6.0, targets)))
    theirs = peft.get_peft_model(
        theirs,
        peft.LoraConfig(r=4, lora_alpha=6.0, target_modules=[f"{name}_proj" for name in targets]),
    )
    copied = 0
    for path, layer in adapters.layers.items():
        _, i, part, name = path.split(".")
        site = theirs.base_model.model.model.layers[int(i)].get_submodule(
            f"{'self_attn' if part == 'attn' else 'mlp'}.{name}_proj"
        )
        site.lora_A["default"].weight.data.copy_(layer.A[0].detach())
        site.lora_B["default"].weight.data.copy_(layer.B[0].detach())
        copied += 1
    assert copied == 2 * len(targets)
    with torch.no_grad():
        expected = theirs(ids).logits
    assert (expected - before).abs().max() > 0.1
    assert (logits(mine, ids) - expected).abs().max() < CLOSE


def test_each_group_of_rows_goes_through_its_own_adapter(gpt):
    ids = random_ids(6, 10)
    adapters = filled(attach(gpt, 3, CONFIG))
    together, state = logits(gpt, ids), adapters.state()
    assert (
        together - logits(gpt, ids.roll(2, 0)).roll(-2, 0)
    ).abs().max() > 0.1  # the adapters differ
    adapters.remove()
    for k in range(3):
        alone = attach(gpt, 1, CONFIG)
        alone.load(only(state, k))
        assert (
            logits(gpt, ids[2 * k : 2 * k + 2]) - together[2 * k : 2 * k + 2]
        ).abs().max() < CLOSE
        alone.remove()


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_equal_those_of_the_plain_formula(bias):
    """One adapter at a time, as x (W + scale B A)^T; float64, so only rounding near 1e-15 may differ."""
    generator = torch.Generator().manual_seed(0)
    base = torch.nn.Linear(5, 7, bias=bias).double().requires_grad_(False)
    layer = LoRALinear(base, 3, CONFIG, generator)
    layer.B.data = torch.randn(layer.B.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(6, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weigh = torch.randn(6, 4, 7, generator=generator, dtype=torch.float64)
    y = layer(x)
    plain = torch.cat(
        [
            torch.nn.functional.linear(
                x[2 * k : 2 * k + 2], base.weight + 6.0 / 4 * layer.B[k] @ layer.A[k], base.bias
            )
            for k in range(3)
        ]
    )
    assert (y - plain).abs().max() < 1e-12
    inputs = [x, layer.A, layer.B]
    for got, expected in zip(
        torch.autograd.grad((y * weigh).sum(), inputs),
        torch.autograd.grad((plain * weigh).sum(), inputs),
    ):
        assert (got - expected).abs().max() < 1e-12


def test_the_gradient_of_a_model_with_adapters_equals_central_differences(make_gpt):
    """GPT-2's biases included; float64, h = 1e-6: off by h^2 and by 1e-16 / h, so 1e-7 is ample."""
    model = make_gpt(
        norm="layer", position="learned", qkv_bias=True, bias=True, mlp="gelu"
    ).double()
    adapters, ids, h = filled(attach(model, 2, CONFIG)), random_ids(4, 8), 1e-6

    def loss():
        return model(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).mean()

    gradients, largest = torch.autograd.grad(loss(), adapters.parameters()), 0.0
    with torch.no_grad():
        for number, (p, gradient) in enumerate(zip(adapters.parameters(), gradients)):
            i = torch.randint(
                p.numel(), (1,), generator=torch.Generator().manual_seed(number)
            ).item()
            flat, old = p.view(-1), p.view(-1)[i].item()
            flat[i] = old + h
            up = loss()
            flat[i] = old - h
            down = loss()
            flat[i] = old
            assert abs((up - down) / (2 * h) - gradient.reshape(-1)[i]) < 1e-7
            largest = max(largest, gradient.reshape(-1)[i].abs().item())
    assert largest > 1e-2


def test_rows_that_do_not_divide_among_the_adapters_are_refused(gpt):
    """Else a row is silently cut between two adapters: 3 rows of 4 tokens are 2 groups of 6 tokens."""
    attach(gpt, 2, CONFIG)
    with pytest.raises((ValueError, RuntimeError)):
        logits(gpt, random_ids(3, 4))


def test_adapters_work_packed_and_with_a_cache_as_without(gpt):
    ids = random_ids(4, 9)
    filled(attach(gpt, 2, CONFIG))
    expected, cache = logits(gpt, ids), KVCache(gpt, 4, 9)
    with torch.no_grad():
        got = torch.cat([gpt(piece, cache=cache) for piece in ids.split([4, 1, 1, 3], 1)], 1)
    assert (got - expected).abs().max() < CLOSE
    packed = logits(gpt, ids.view(2, 18), torch.arange(2).repeat_interleave(9).expand(2, 18))
    assert (packed.view(4, 9, -1) - expected).abs().max() < CLOSE


@pytest.mark.parametrize("k", [0, 2])
def test_merged_weights_give_the_logits_of_the_adapter(gpt, k):
    ids = random_ids(2, 10)
    adapters = filled(attach(gpt, 3, CONFIG))
    expected = logits(gpt, ids.repeat(3, 1))[2 * k : 2 * k + 2]
    adapters.merge(k)
    assert (logits(gpt, ids) - expected).abs().max() < CLOSE
    adapters.remove()  # what was merged stays
    assert (logits(gpt, ids) - expected).abs().max() < CLOSE


def test_unmerge_restores_weights_and_adapters(gpt):
    ids, before = random_ids(3, 10), weights(gpt)
    adapters = filled(attach(gpt, 3, CONFIG))
    expected = logits(gpt, ids)
    adapters.merge(1)
    adapters.unmerge()
    assert (logits(gpt, ids) - expected).abs().max() < CLOSE
    adapters.remove()
    for name, weight in weights(
        gpt
    ).items():  # W + D - D: off by a rounding of numbers below 4, 4 * 2^-24 = 2.4e-7
        assert (weight - before[name]).abs().max() < 1e-6, name


def test_remove_restores_every_bit_and_every_requires_grad(gpt):
    gpt.wte.weight.requires_grad_(False)
    ids, before, wanted = (
        random_ids(3, 10),
        weights(gpt),
        {name: p.requires_grad for name, p in gpt.named_parameters()},
    )
    expected, modules = (
        logits(gpt, ids),
        {name: type(module) for name, module in gpt.named_modules()},
    )
    adapters = filled(attach(gpt, 3, CONFIG))
    assert not any(
        p.requires_grad for name, p in gpt.named_parameters() if not name.endswith((".A", ".B"))
    )
    adapters.remove()
    after = weights(gpt)
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    assert {name: p.requires_grad for name, p in gpt.named_parameters()} == wanted
    assert {name: type(module) for name, module in gpt.named_modules()} == modules
    assert torch.equal(logits(gpt, ids), expected)
    attach(gpt, 2, CONFIG)  # and again


def test_only_adapters_learn(gpt):
    before, adapters = weights(gpt), attach(gpt, 2, CONFIG)
    optimizer = torch.optim.SGD(adapters.parameters(), lr=0.1)
    gpt(random_ids(4, 8)).logsumexp(-1).sum().backward()
    assert all(
        p.grad is None for name, p in gpt.named_parameters() if not name.endswith((".A", ".B"))
    )
    optimizer.step()
    for path, layer in adapters.layers.items():
        assert layer.B.abs().amax((1, 2)).min() > 0, path  # of every adapter
        assert layer.A.grad.abs().max() == 0, path  # B was 0
    adapters.remove()
    after = weights(gpt)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_all_adapters_start_alike_and_from_their_seed(make_gpt):
    one, three, other = (
        attach(make_gpt(), K, CONFIG, seed).state() for K, seed in ((1, 0), (3, 0), (1, 1))
    )
    for name in one:
        assert all(torch.equal(three[name][k], one[name][0]) for k in range(3))
        assert name.endswith(".B") or not torch.equal(one[name], other[name])
        bound = (
            1 / one[name].shape[2] ** 0.5
        )  # Kaiming-uniform with a = sqrt(5), as in the paper's code
        assert name.endswith(".B") or 0.9 * bound < one[name].abs().max() <= bound


def test_train_and_eval_change_nothing(gpt):
    ids = random_ids(2, 10)
    adapters = filled(attach(gpt, 2, CONFIG))
    expected, before, grads = (
        logits(gpt, ids),
        weights(gpt),
        [p.requires_grad for p in gpt.parameters()],
    )
    for mode in (gpt.train, gpt.eval, gpt.train):
        mode()
        assert torch.equal(logits(gpt, ids), expected)
        assert all(torch.equal(weight, before[name]) for name, weight in weights(gpt).items())
        assert [p.requires_grad for p in gpt.parameters()] == grads
    adapters.merge(0)
    merged = logits(gpt, ids)
    gpt.train()
    assert torch.equal(logits(gpt, ids), merged)


def test_state_and_load_go_round_and_may_change_K(gpt):
    ids = random_ids(4, 10)
    adapters = filled(attach(gpt, 4, CONFIG))
    expected, state = logits(gpt, ids), adapters.state()
    adapters.remove()
    fresh = attach(gpt, 2, CONFIG)
    fresh.load(state)
    assert len(fresh) == gpt.n_adapters == 4
    assert torch.equal(logits(gpt, ids), expected)
    assert state.keys() == fresh.state().keys() and all(
        torch.equal(state[name], value) for name, value in fresh.state().items()
    )


def test_state_is_a_copy(gpt):
    adapters = filled(attach(gpt, 1, CONFIG))
    state = adapters.state()
    kept = copy.deepcopy(state)
    filled(adapters, seed=1)
    assert all(torch.equal(state[name], kept[name]) for name in state)


def test_a_loaded_state_is_no_window_into_the_adapters(gpt):
    """Training after load() must not write into the tensors that were loaded."""
    adapters = attach(gpt, 1, CONFIG)
    state = filled(adapters).state()
    kept = copy.deepcopy(state)
    adapters.load(state)
    filled(adapters, seed=1)
    assert all(torch.equal(state[name], kept[name]) for name in state)


def test_loading_an_adapter_of_another_shape_names_the_tensor(make_gpt):
    adapters, other_rank = attach(make_gpt(), 1, CONFIG), attach(make_gpt(), 1, LoRAConfig(rank=8))
    with pytest.raises(ValueError, match=r"blocks\.\d\.(attn|mlp)\.\w+\.[AB]"):
        adapters.load(other_rank.state())
    with pytest.raises(ValueError, match=r"blocks\.\d\.mlp\.(up|down|gate)\.[AB]"):
        adapters.load(attach(make_gpt(mlp_dim=40), 1, CONFIG).state())
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.k\.A"):
        adapters.load(attach(make_gpt(), 1, LoRAConfig(4, 6.0, ("q", "v"))).state())
    with pytest.raises(ValueError, match=r"blocks\.2\."):
        adapters.load(attach(make_gpt(n_layer=3), 1, CONFIG).state())


def test_a_failed_load_changes_nothing(make_gpt):
    adapters = filled(attach(make_gpt(), 2, CONFIG))
    before = adapters.state()
    with pytest.raises(ValueError):
        adapters.load(attach(make_gpt(mlp_dim=40), 3, CONFIG).state())
    assert len(adapters) == 2 and all(
        torch.equal(before[name], value) for name, value in adapters.state().items()
    )


def test_attaching_twice_is_refused_and_leaves_the_first_in_place(gpt):
    ids = random_ids(2, 5)
    filled(attach(gpt, 2, CONFIG))
    expected = logits(gpt, ids)
    with pytest.raises(RuntimeError, match="remove"):
        attach(gpt, 1, CONFIG)
    assert torch.equal(logits(gpt, ids), expected)


@pytest.mark.parametrize("targets", [(), ("q", "query"), ("lm_head",)], ids=str)
def test_targets_that_are_no_layer_are_refused_and_leave_the_model_plain(gpt, targets):
    with pytest.raises(ValueError, match="targets"):
        attach(gpt, 1, LoRAConfig(4, 6.0, targets))
    assert gpt.n_adapters is None and all(p.requires_grad for p in gpt.parameters())
    attach(gpt, 1, CONFIG)


def test_a_target_that_this_model_lacks_everywhere_is_refused(make_gpt):
    with pytest.raises(ValueError, match="targets"):
        attach(make_gpt(mlp="gelu"), 1, LoRAConfig(4, 6.0, ("gate",)))


def test_merge_and_unmerge_out_of_order_are_refused(gpt):
    adapters = filled(attach(gpt, 1, CONFIG))
    with pytest.raises(RuntimeError, match="unmerge"):
        adapters.unmerge()
    adapters.merge()
    with pytest.raises(RuntimeError, match="merge"):
        adapters.merge()
    adapters.unmerge()
    with pytest.raises(RuntimeError, match="unmerge"):
        adapters.unmerge()
    adapters.remove()
    for gone in (adapters.merge, adapters.unmerge):
        with pytest.raises(RuntimeError):
            gone()


def test_remove_after_the_next_adapters_came_does_not_take_those_off(gpt):
    old = attach(gpt, 1, CONFIG)
    old.remove()
    filled(attach(gpt, 2, CONFIG))
    ids = random_ids(2, 6)
    expected = logits(gpt, ids)
    try:
        old.remove()
    except RuntimeError:
        pass  # refusing is as good as doing nothing
    assert gpt.n_adapters == 2 and torch.equal(logits(gpt, ids), expected)


def test_loading_while_merged_does_not_spoil_the_weights(gpt):
    """unmerge() must take away what merge() added, whatever was loaded in between, unless load() refuses."""
    before = weights(gpt)
    adapters = filled(attach(gpt, 1, CONFIG))
    other = {name: 2 * value for name, value in adapters.state().items()}
    adapters.merge()
    try:
        adapters.load(other)
    except RuntimeError:
        pass
    adapters.unmerge()
    adapters.remove()
    assert all((weight - before[name]).abs().max() < 1e-6 for name, weight in weights(gpt).items())
