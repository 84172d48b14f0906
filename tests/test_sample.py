"""Sampling against a slow loop without a cache, against transformers, and against brute force."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minseal import LoRAConfig, attach
from minseal.sample import choose, sample

PROMPTS = [[5, 9, 3], [1], [7, 7, 2, 30, 11, 40, 8], [22, 4]]
CONFIG = LoRAConfig(rank=4, alpha=8.0)


@torch.no_grad()
def slow_greedy(model, tokenizer, prompt, max_tokens, stop=None):
    """One prompt, no cache, all read anew for each token: (text, how many tokens were chosen)."""
    ids = list(prompt)
    for _ in range(max_tokens):
        ids.append(model(torch.tensor([ids]))[0, -1, : tokenizer.vocab_size].argmax().item())
        if ids[-1] == tokenizer.eot:
            return tokenizer.decode(ids[len(prompt) : -1]), len(ids) - len(prompt)
        text = tokenizer.decode(ids[len(prompt) :])
        if stop and stop in text:
            return text[: text.index(stop)], len(ids) - len(prompt)
    return text, max_tokens


def only(state, k):
    """Adapter k of an Adapters.state()."""
    return {name: value[k : k + 1] if value.dim() else value for name, value in state.items()}


def flat(texts):
    return [text for written in texts for text in written]


def forward_sizes(model):
    """A list that will hold the number of rows of every later pass through the model."""
    sizes = []
    model.norm.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[0]))
    return sizes


@pytest.mark.parametrize(
    "changes",
    [{}, dict(position="learned", norm="layer", mlp="gelu", qkv_bias=True), dict(tied=True)],
    ids=["llama", "gpt2", "tied"],
)
def test_greedy_equals_a_slow_loop_token_for_token(make_gpt, letters, changes):
    model, tokenizer = make_gpt(1, **changes), letters()
    texts = flat(sample(model, tokenizer, PROMPTS, max_tokens=40, temperature=0))
    assert texts == [slow_greedy(model, tokenizer, prompt, 40)[0] for prompt in PROMPTS]
    assert len(set("".join(texts))) > 5  # not one letter over and over


def test_greedy_equals_generate_of_transformers(twins, letters):
    """Without an end token, so that both write 30 tokens; prompts are left-padded in both."""
    theirs, mine = twins(seed=2)
    T = max(len(p) for p in PROMPTS)
    ids = torch.tensor([[0] * (T - len(p)) + p for p in PROMPTS])
    attention = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in PROMPTS])
    written = theirs.generate(
        ids,
        attention_mask=attention,
        do_sample=False,
        max_new_tokens=30,
        min_new_tokens=30,
        pad_token_id=0,
    )[:, T:]
    tokenizer = letters(eot=-1)
    assert flat(sample(mine, tokenizer, PROMPTS, max_tokens=30, temperature=0)) == [
        tokenizer.decode(row.tolist()) for row in written
    ]


def test_greedy_equals_a_slow_loop_on_the_pretrained_model(pretrained):
    model, tokenizer = pretrained
    prompts = [
        tokenizer.encode(text)
        for text in (
            "Question: Which country is Lyon in? Answer:",
            "Question: What covers a goose? Answer:",
        )
    ]
    texts = flat(sample(model, tokenizer, prompts, max_tokens=12, temperature=0, stop="\n"))
    assert texts == [slow_greedy(model, tokenizer, prompt, 12, "\n")[0] for prompt in prompts]


def test_a_text_does_not_depend_on_what_else_is_in_the_batch(gpt, letters):
    """Rows leave the batch at different times, and the rest go on as if nothing happened."""
    tokenizer, prompts = letters(eot=3), [[i % 48, (7 * i) % 48] for i in range(12)]
    sizes = forward_sizes(gpt)
    together = flat(sample(gpt, tokenizer, prompts, max_tokens=80, seed=4))
    assert sizes[0] == 12 and sizes[-1] < 6  # rows did leave
    assert len({len(text) for text in together}) > 5
    # Text i keeps its place, and with it its random numbers; all others are as short as can be.
    for i in range(12):
        crowd = [[0]] * i + [prompts[i]]
        assert flat(sample(gpt, tokenizer, crowd, max_tokens=80, seed=4))[i] == together[i]


def test_n_texts_of_a_prompt_equal_n_prompts(gpt, letters):
    tokenizer = letters(eot=3)
    written = sample(gpt, tokenizer, PROMPTS, n=5, max_tokens=30, seed=2)
    assert [len(texts) for texts in written] == [5] * 4
    assert all(len(set(texts)) > 1 for texts in written)
    assert flat(written) == flat(
        sample(gpt, tokenizer, [p for p in PROMPTS for _ in range(5)], max_tokens=30, seed=2)
    )


def test_no_prompts_give_no_texts(gpt, letters):
    assert sample(gpt, letters(), []) == []


def test_same_seed_same_text_other_seed_other_text(gpt, letters):
    first, again, other = (
        sample(gpt, letters(), PROMPTS, max_tokens=20, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert all(a != b for a, b in zip(flat(first), flat(other)))


def test_global_random_state_is_neither_read_nor_moved(gpt, letters):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = sample(gpt, letters(), PROMPTS, max_tokens=20)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert sample(gpt, letters(), PROMPTS, max_tokens=20) == first


def test_max_tokens_is_reached_and_not_passed(gpt, letters):
    for n in (1, 7):
        assert [
            len(text) for text in flat(sample(gpt, letters(eot=-1), PROMPTS, max_tokens=n))
        ] == [n] * 4


def test_end_of_text_ends_a_text_and_is_no_part_of_it(gpt, letters):
    free = flat(sample(gpt, letters(eot=-1), PROMPTS, max_tokens=40, seed=1))
    for eot in (3, 20, 31):
        letter = letters().decode([eot])
        assert flat(sample(gpt, letters(eot=eot), PROMPTS, max_tokens=40, seed=1)) == [
            text.split(letter)[0] for text in free
        ]
        assert any(letter in text for text in free)


def test_tokens_that_the_tokenizer_lacks_are_never_written(gpt, letters):
    """A checkpoint's vocabulary may be padded beyond the tokenizer's."""
    short = letters(vocab_size=8, eot=-1)
    text = "".join(flat(sample(gpt, short, [[1, 2]] * 20, max_tokens=20)))
    assert set(text) == set("abcdefgh")


def test_a_stop_string_ends_a_text_also_across_the_border_of_tokens(gpt, letters):
    """As in the slow loop, and with as many passes: it stops, it does not just cut."""
    tokenizer = letters(eot=-1)
    free = slow_greedy(gpt, tokenizer, PROMPTS[2], 30)[0]
    stops = [free[i : i + n] for n in (1, 2, 3, 5) for i in (2, 9, 16)]
    for stop in stops:
        expected, tokens = slow_greedy(gpt, tokenizer, PROMPTS[2], 30, stop)
        sizes = forward_sizes(gpt)
        assert flat(
            sample(gpt, tokenizer, [PROMPTS[2]], max_tokens=30, temperature=0, stop=stop)
        ) == [expected]
        assert len(sizes) == tokens < 30


def test_a_stop_string_inside_tokens_of_several_letters_cuts_inside_the_token(gpt, letters):
    tokenizer = letters(eot=-1)
    tokenizer.decode = lambda ids: "".join(f"{i:03d};" for i in ids)
    free = slow_greedy(gpt, tokenizer, PROMPTS[0], 20)[0]
    # Inside one token, over one border, over two, over one.
    for start, end in ((6, 7), (6, 9), (15, 22), (29, 31)):
        stop = free[start:end]
        expected, tokens = slow_greedy(gpt, tokenizer, PROMPTS[0], 20, stop)
        sizes = forward_sizes(gpt)
        assert flat(
            sample(gpt, tokenizer, [PROMPTS[0]], max_tokens=20, temperature=0, stop=stop)
        ) == [expected]
        assert len(sizes) == tokens < 20


def test_a_stop_string_in_the_prompt_does_not_count(gpt, letters):
    tokenizer = letters(eot=-1)
    free = slow_greedy(gpt, tokenizer, PROMPTS[0], 10)[0]
    stop = tokenizer.decode(PROMPTS[0][-1:]) + free[0]  # half in the prompt, half in the text
    text = flat(sample(gpt, tokenizer, [PROMPTS[0]], max_tokens=10, temperature=0, stop=stop))[0]
    assert text == free.split(stop)[0] and len(text) > 0


def test_texts_with_a_stop_string_do_not_depend_on_the_batch_either(gpt, letters):
    tokenizer, prompts = letters(eot=3), [[i % 48, (5 * i) % 48] for i in range(8)]
    free = flat(sample(gpt, tokenizer, prompts, max_tokens=40, seed=6))
    assert flat(sample(gpt, tokenizer, prompts, max_tokens=40, seed=6, stop="b")) == [
        text.split("b")[0] for text in free
    ]
    assert any("b" in text for text in free)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_each_group_of_prompts_answers_as_with_its_adapter_alone(gpt, letters, temperature):
    """Rows finish at different times here too, but none may leave: groups stay whole."""
    tokenizer, K = letters(eot=3), 3
    prompts = [PROMPTS[i % 4] for i in range(2 * K)]
    adapters, generator = attach(gpt, K, CONFIG), torch.Generator().manual_seed(0)
    for p in adapters.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=generator)
    state = adapters.state()
    together = flat(sample(gpt, tokenizer, prompts, max_tokens=40, temperature=temperature, seed=1))
    adapters.remove()
    plain = flat(sample(gpt, tokenizer, prompts, max_tokens=40, temperature=temperature, seed=1))
    alone = []
    for k in range(K):
        one = attach(gpt, 1, CONFIG)
        one.load(only(state, k))
        alone += flat(
            sample(gpt, tokenizer, prompts, max_tokens=40, temperature=temperature, seed=1)
        )[2 * k : 2 * k + 2]
        one.remove()
    assert together == alone
    assert (
        all(a != b for a, b in zip(together, plain)) and len({len(text) for text in together}) > 1
    )


# ---- one token ----


def frequencies(logits, temperature, top_p, n=50_000):
    """How often `choose` gives each token over n evenly spread dice."""
    dice = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return (
        torch.bincount(
            choose(logits.expand(n, -1), dice, temperature, top_p), minlength=len(logits)
        ).double()
        / n
    )


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_tokens_are_drawn_from_the_softmax(temperature):
    logits = 2 * torch.randn(20, generator=torch.Generator().manual_seed(0))
    weights = [torch.tensor(x / temperature).double().exp().item() for x in logits.tolist()]
    expected = torch.tensor([w / sum(weights) for w in weights])
    # n evenly spread dice miss a token's share by at most 1/n at each of its two ends.
    assert (frequencies(logits, temperature, 1.0) - expected).abs().max() < 2 / 50_000 + 1e-6


def test_random_dice_give_the_softmax_too():
    """As sample() draws them; four standard errors of 100000 draws."""
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    dice = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = torch.bincount(choose(logits.expand(100_000, -1), dice, 1.0, 1.0), minlength=4) / 100_000
    p = torch.tensor([0.0, 1.0, -1.0, 2.0]).exp() / sum(torch.tensor([0.0, 1.0, -1.0, 2.0]).exp())
    assert ((got - p).abs() < 4 * (p * (1 - p) / 100_000).sqrt()).all()


def test_temperature_zero_is_the_likeliest_token_whatever_the_dice():
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    for dice in (0.0, 0.5, 0.999999):
        assert choose(logits, torch.full((50,), dice, dtype=torch.float64), 0, 0.5).tolist() == [
            row.index(max(row)) for row in logits.tolist()
        ]


@settings(max_examples=40)
@given(
    st.lists(st.integers(-30, 30), min_size=2, max_size=7, unique=True),
    st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.95]),
)
def test_top_p_keeps_the_smallest_set_with_that_probability(tenths, top_p):
    """Brute force over all subsets: the fewest tokens that reach top_p, the likeliest such set.

    They are drawn in proportion.
    """
    logits = torch.tensor(tenths) / 10
    p = torch.softmax(logits.double(), 0).tolist()
    subsets = [
        s
        for n in range(1, len(p) + 1)
        for s in itertools.combinations(range(len(p)), n)
        if sum(p[i] for i in s) >= top_p
    ]
    fewest = min(len(s) for s in subsets)
    kept = max((s for s in subsets if len(s) == fewest), key=lambda s: sum(p[i] for i in s))
    total = sum(p[i] for i in kept)
    expected = torch.tensor([p[i] / total if i in kept else 0.0 for i in range(len(p))])
    got = frequencies(logits, 1.0, top_p)
    assert (got[expected == 0] == 0).all()
    assert (got - expected).abs().max() < 2 / 50_000 + 1e-6  # see above


def test_the_smallest_and_the_largest_die_never_draw_an_impossible_token():
    logits = torch.tensor([[-1000.0, 0.0, 1.0, -1000.0]])
    for dice in (0.0, 1 - 2.0**-53):
        assert choose(logits, torch.tensor([dice], dtype=torch.float64), 1.0, 1.0).item() in (1, 2)
        assert choose(logits, torch.tensor([dice], dtype=torch.float64), 1.0, 0.7).item() == 2


@pytest.mark.parametrize("spread", [0.1, 6.0], ids=["flat", "peaked"])
def test_top_p_of_a_large_vocabulary_equals_sorting_all_of_it(spread):
    """Peaked: only the likeliest thousand are ranked, they hold top_p. Flat: all of them."""
    logits = spread * torch.randn(
        40, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    dice = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = []
    for row, die in zip(torch.softmax(logits, -1).tolist(), dice.tolist()):
        kept, total = set(), 0.0
        for i in sorted(range(5000), key=lambda i: -row[i]):
            if total >= 0.9:
                break
            kept.add(i)
            total += row[i]
        here = 0.0
        for i in range(5000):
            here += row[i] if i in kept else 0
            if here > die * total:
                break
        wanted.append(i)
    assert choose(logits, dice, 1.0, 0.9).tolist() == wanted


# ---- the name ----
