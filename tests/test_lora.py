"""K adapters against peft, each adapter alone, and the weights they are merged into."""

import copy

import pytest
import torch

from minseal import InnerConfig, LoRAConfig, SelfEdit, adapt, attach, merge_state
from minseal.lora import LoRALinear
from minseal.sample import KVCache
from minseal.selfedit import Document

CONFIG = LoRAConfig(rank=4, alpha=6.0)
# float32 rounding of two orders of summation, logits of size about 5; a wrong scale or a swapped
# adapter is off by 1e-1.
CLOSE = 1e-5


def random_ids(*shape, seed=0):
    return torch.randint(48, shape, generator=torch.Generator().manual_seed(seed))


def filled(adapters, seed=0):
    """The same adapters, random: updates about as large as the weights, each another one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapters.layers.values():
            layer.A.copy_(0.3 * torch.randn(layer.A.shape, generator=generator))
            layer.B.copy_(0.1 * torch.randn(layer.B.shape, generator=generator))
    return adapters


def only(state, k):
    """Adapter k of an Adapters.state()."""
    return {name: value[k : k + 1] if value.dim() else value for name, value in state.items()}


def is_plain(model):
    return model.n_adapters is None and not any(isinstance(m, LoRALinear) for m in model.modules())


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
    swapped = logits(gpt, ids.roll(2, 0)).roll(-2, 0)
    assert (together - swapped).abs().max() > 0.1  # the adapters differ
    adapters.remove()
    for k in range(3):
        rows = slice(2 * k, 2 * k + 2)
        with attach(gpt, 1, CONFIG) as alone:
            alone.load(only(state, k))
            assert (logits(gpt, ids[rows]) - together[rows]).abs().max() < CLOSE


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_equal_those_of_the_plain_formula(bias):
    """One adapter at a time, as x (W + scale B A)^T; float64: only rounding, near 1e-15."""
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
    """Else a row is silently cut between two: 3 rows of 4 tokens are 2 groups of 6 tokens."""
    attach(gpt, 2, CONFIG)
    with pytest.raises(ValueError, match="3 rows.*2 adapters"):
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
def test_merged_weights_give_the_logits_of_the_adapter_and_the_model_is_plain(gpt, k):
    ids = random_ids(2, 10)
    adapters = filled(attach(gpt, 3, CONFIG))
    expected = logits(gpt, ids.repeat(3, 1))[2 * k : 2 * k + 2]
    adapters.merge(k)
    assert is_plain(gpt) and all(p.requires_grad for p in gpt.parameters())
    assert (logits(gpt, ids) - expected).abs().max() < CLOSE
    adapters.remove()  # what was merged stays
    assert (logits(gpt, ids) - expected).abs().max() < CLOSE


def test_merging_changes_each_target_by_its_update_and_nothing_else(gpt):
    before, adapters = weights(gpt), filled(attach(gpt, 2, LoRAConfig(4, 6.0, ("q", "v"))))
    updates = {f"{name}.weight": layer.delta(1) for name, layer in adapters.layers.items()}
    adapters.merge(1)
    for name, weight in weights(gpt).items():
        assert torch.equal(weight, before[name] + updates.get(name, 0)), name
    assert len(updates) == 4 and all(update.abs().max() > 0.1 for update in updates.values())


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
    for name in set(one) - {"scale"}:
        assert all(torch.equal(three[name][k], one[name][0]) for k in range(3))
        assert name.endswith(".B") or not torch.equal(one[name], other[name])
        # Kaiming-uniform with a = sqrt(5), as in the paper's code.
        bound = 1 / one[name].shape[2] ** 0.5
        assert name.endswith(".B") or 0.9 * bound < one[name].abs().max() <= bound


def test_state_and_load_go_round(gpt):
    ids = random_ids(4, 10)
    adapters = filled(attach(gpt, 4, CONFIG))
    expected, state = logits(gpt, ids), adapters.state()
    adapters.remove()
    fresh = attach(gpt, 4, LoRAConfig(4, 1.0))  # the state brings its own scale
    fresh.load(state)
    assert len(fresh) == gpt.n_adapters == 4
    assert torch.equal(logits(gpt, ids), expected)
    assert state.keys() == fresh.state().keys()
    assert all(torch.equal(state[name], value) for name, value in fresh.state().items())


def test_a_state_of_one_adapter_is_loaded_into_all(gpt):
    with filled(attach(gpt, 3, CONFIG)) as adapters:
        one = only(adapters.state(), 1)
    with attach(gpt, 2, CONFIG) as two:
        two.load(one)
        assert len(two) == 2
        for name, value in two.state().items():
            assert torch.equal(value, one[name].expand_as(value)), name


def test_a_state_says_its_scale(gpt):
    state = attach(gpt, 2, CONFIG).state()
    assert state["scale"].shape == () and state["scale"].item() == 6.0 / 4
    assert len(state) == 1 + 2 * 2 * 7  # A and B of seven layers in each of two blocks


@pytest.mark.parametrize("targets", [("q", "v"), ("down", "o", "k")], ids=str)
def test_merging_a_state_equals_merging_its_first_adapter(make_gpt, targets):
    one, other, config = make_gpt(), make_gpt(), LoRAConfig(3, 6.0, targets)
    adapters = filled(attach(one, 2, config))
    merge_state(other, dict(reversed(adapters.state().items())))  # in any order
    adapters.merge(0)
    expected, got, plain = weights(one), weights(other), weights(make_gpt())
    assert expected.keys() == got.keys() and is_plain(other)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    changed = {name.split(".")[3] for name in plain if not torch.equal(plain[name], got[name])}
    assert changed == set(targets)


def test_merging_no_state_changes_nothing(gpt):
    before = weights(gpt)
    merge_state(gpt, {})
    assert all(torch.equal(before[name], weight) for name, weight in weights(gpt).items())


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
    without_scale = {name: value for name, value in before.items() if name != "scale"}
    for state in (
        attach(make_gpt(mlp_dim=40), 2, CONFIG).state(),
        attach(make_gpt(), 3, CONFIG).state(),
        without_scale,
        {},
    ):
        with pytest.raises(ValueError, match="for another model"):
            adapters.load(state)
    assert len(adapters) == 2
    assert all(torch.equal(before[name], value) for name, value in adapters.state().items())


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


def test_adapters_that_are_off_cannot_merge(gpt):
    adapters = filled(attach(gpt, 1, CONFIG))
    adapters.merge()
    merged = weights(gpt)
    with pytest.raises(RuntimeError, match="removed"):
        adapters.merge()
    attach(gpt, 1, CONFIG)  # also while others are on
    with pytest.raises(RuntimeError, match="removed"):
        adapters.merge()
    for layer in adapters.layers.values():
        assert torch.equal(layer.base.weight, merged[name_of(gpt, layer.base)])


def name_of(model, layer):
    """The name that the weight of a wrapped layer has in the plain model."""
    (name,) = (name for name, module in model.named_modules() if module is layer)
    return name.removesuffix(".base") + ".weight"


def test_remove_after_the_next_adapters_came_does_not_take_those_off(gpt):
    old = attach(gpt, 1, CONFIG)
    old.remove()
    filled(attach(gpt, 2, CONFIG))
    ids = random_ids(2, 6)
    expected = logits(gpt, ids)
    old.remove()
    assert gpt.n_adapters == 2 and torch.equal(logits(gpt, ids), expected)
    # Nor does it thaw what they froze.
    assert {name[-2:] for name, p in gpt.named_parameters() if p.requires_grad} == {".A", ".B"}


# ---- `with` ----


@pytest.mark.parametrize("how", ["attach", "adapt"])
def test_after_the_block_the_model_is_plain_to_the_bit(gpt, how):
    ids, before = random_ids(2, 10), weights(gpt)
    expected = logits(gpt, ids)
    with put_on(gpt, how) as adapters:
        assert gpt.n_adapters == len(adapters) == 1
        assert (logits(gpt, ids) - expected).abs().max() > 1e-2
    assert is_plain(gpt) and all(p.requires_grad for p in gpt.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in weights(gpt).items())
    assert torch.equal(logits(gpt, ids), expected)


@pytest.mark.parametrize("how", ["attach", "adapt"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_after_an_error_in_the_block_too_and_the_error_goes_on(gpt, how, error):
    before = weights(gpt)
    with pytest.raises(error):
        with put_on(gpt, how):
            raise error
    assert is_plain(gpt) and all(p.requires_grad for p in gpt.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in weights(gpt).items())


def test_what_is_merged_in_the_block_stays_after_it(gpt):
    ids, before = random_ids(1, 10), weights(gpt)
    with put_on(gpt, "attach") as adapters:
        expected = logits(gpt, ids)
        adapters.merge()
        assert is_plain(gpt)
    assert is_plain(gpt) and all(p.requires_grad for p in gpt.parameters())
    assert (logits(gpt, ids) - expected).abs().max() < CLOSE
    assert not torch.equal(weights(gpt)["blocks.0.attn.q.weight"], before["blocks.0.attn.q.weight"])


@pytest.mark.parametrize("how", ["attach", "adapt"])
def test_adapters_inside_adapters_are_refused_and_those_outside_stay(gpt, how):
    ids = random_ids(1, 10)
    with put_on(gpt, "attach"):
        expected = logits(gpt, ids)
        with pytest.raises(RuntimeError, match="remove"):
            with put_on(gpt, how):
                raise AssertionError("two adapters on one layer")
        assert gpt.n_adapters == 1 and torch.equal(logits(gpt, ids), expected)
    assert is_plain(gpt)


def test_the_adapters_of_a_block_can_be_kept_and_put_on_again(gpt):
    ids = random_ids(1, 10)
    with put_on(gpt, "adapt") as adapters:
        expected, state = logits(gpt, ids), adapters.state()
    assert all(torch.equal(state[name], value) for name, value in adapters.state().items())
    with attach(gpt, 1, CONFIG) as again:
        again.load(state)
        assert torch.equal(logits(gpt, ids), expected)


def put_on(model, how):
    if how == "attach":
        return filled(attach(model, 1, CONFIG))
    document = Document.completion([5], [1, 2, 3])
    return adapt(model, [SelfEdit((document,))], InnerConfig(epochs=3, rank=4, alpha=6.0))
