# %% [markdown]
# # 2. LoRA by hand
# **You need** tutorial 1, and to have trained some model with PyTorch before.
#
# **It takes** about NN s of computing on one core, and an hour of yours.
#
# **You will see** how a few numbers beside frozen matrices learn what a passage says, why half of
# them begin at zero, and how many students can study side by side in one model.
#
# **In the code:** [minseal/lora.py](../minseal/lora.py), [minseal/inner.py](../minseal/inner.py).
# The paper: LoRA (arXiv 2106.09685), section 4; in SEAL (arXiv 2506.10943), section 3.1.

# %%
import copy
import inspect
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import minseal
from minseal.inner import losses
from minseal.lora import LoRALinear
from minseal.sample import sample

torch.set_num_threads(1)  # matrices this small: a second thread only waits
model, tokenizer = minseal.load("tiny_data/knowledge")
task, passages = minseal.People(tokenizer), minseal.toy_passages(16, world_seed=0)
before = {name: p.detach().clone() for name, p in model.named_parameters()}
untouched = lambda: all(torch.equal(p, before[name]) for name, p in model.named_parameters())

# %% [markdown]
# ## 1. One frozen matrix and a small update
# A linear layer computes $y = x W^\top$. To learn something, add to $W$ (out, in) an update that is a
# product of two thin matrices, B (out, R) and A (R, in). R is the **rank**. $W$ stays as it is:
#
# $$y = x W^\top + \frac{\alpha}{R}\,(x A^\top) B^\top$$
#
# $x A^\top$ has R numbers: what the update can notice in x. B says what to do about each of them.
# The update has R (in + out) numbers in place of in times out. minseal holds K such pairs at once, one
# for each of K equal groups of rows; until section 7, K is 1.
#
# **Claim 2.1.** The formula is `LoRALinear`, and the matrix that it adds has rank R.

# %%
print(inspect.getsource(LoRALinear.forward))
generator = torch.Generator().manual_seed(0)
with minseal.attach(model, 1, minseal.LoRAConfig(rank=4, alpha=8.0)) as adapters:
    layer = adapters.layers["blocks.2.mlp.down"]
    torch.nn.init.normal_(layer.B, std=0.1, generator=generator)
    W, A, B = layer.base.weight, layer.A[0], layer.B[0]  # (96, 256), (4, 256), (96, 4)
    x = torch.randn(1, 5, 256, generator=generator)  # (B, T, in)
    by_hand = x @ W.T + 8.0 / 4 * (x @ A.T) @ B.T  # (B, T, out)
    off, rank = (by_hand - layer(x)).abs().max(), torch.linalg.matrix_rank(layer.delta(0))
print(f"largest difference {off:.1e}; the update, {tuple(W.shape)}, has rank {rank}")
assert off < 1e-5 and rank == 4, "claim 2.1"  # float32, sums of 256 terms of size 1

# %% [markdown]
# ## 2. Why B begins at zero
# The student should start as it was, so the product must be zero at first. A is random, B is zero.
#
# **Predict, then run.** In the first step, which of the two gets a gradient: A, B, or both? And if
# both began at zero?

# %%
ids = torch.tensor([tokenizer.encode("Postin Fulard is from Norway.\n")])  # (B, T), B = 1
loss_of = lambda ids: F.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
largest = lambda tensors: max(t.abs().max().item() for t in tensors)
plain = model(ids)
with minseal.attach(model, 1) as adapters:
    same = torch.equal(model(ids), plain)
    gradients = torch.autograd.grad(loss_of(ids), adapters.parameters())  # A, B, A, B, ...
    for layer in adapters.layers.values():
        layer.A.data.zero_()
    dead = torch.autograd.grad(loss_of(ids), adapters.parameters())
print(f"fresh adapter, the same logits to the bit: {same}")
print(f"largest gradient: A {largest(gradients[::2])}, B {largest(gradients[1::2]):.3f}")
print(f"both at zero:     A {largest(dead[::2])}, B {largest(dead[1::2])}")
assert same and largest(gradients[::2]) == 0 < largest(gradients[1::2]), "claim 2.2"
assert largest(dead) == 0, "claim 2.2"

# %% [markdown]
# **Claim 2.2.** A fresh adapter changes no bit of the logits. Only B gets a gradient: that of A is a
# product with B, that of B a product with $x A^\top$. From the second step on both learn. With both
# at zero each would wait for the other for ever.
# ## 3. How much is trained
# A block has four square matrices (q, k, v, o) and three of the MLP (gate, up, down). Each pair A, B
# has R (in + out) numbers. The model in the last columns has the shapes of Llama 2 7B.

# %%
whole = lambda C, wide, n, V: n * (4 * C * C + 3 * C * wide + 2 * C) + C + V * C
beside = lambda C, wide, n, R: n * R * (4 * (C + C) + 3 * (C + wide))
tiny, large = whole(96, 256, 4, 512), whole(4096, 11008, 32, 2 * 32000)  # its head is not tied
print(f"{'rank':>5} {'tiny, of ' + format(tiny, ','):>24} {'7B, of ' + format(large, ','):>30}")
for R in (1, 4, 16, 64):
    small, its = beside(96, 256, 4, R), beside(4096, 11008, 32, R)
    print(f"{R:5} {small:15,} {small / tiny:8.1%} {its:20,} {its / large:9.2%}")
    with minseal.attach(model, 1, minseal.LoRAConfig(rank=R)) as adapters:
        counted = sum(p.numel() for p in adapters.parameters())
    assert (tiny, small) == (model.size(), counted), "claim 2.3"

# %% [markdown]
# **Claim 2.3.** The formula counts right. In this tiny model, rank 16 is a quarter of the weights: its
# matrices are hardly wider than the rank. In a 7B model it is 0.6 %. And only what is trained needs a
# gradient and Adam's two averages.
# ## 4. Eight steps
# `attach` freezes the model, so an optimiser over `adapters.parameters()` is all it takes.

# %%
exam = [task.exam(passages[0])[0]]  # "Question: Which country is Postin Fulard from? Answer:"
answer = lambda: sample(model, tokenizer, exam, max_tokens=8, temperature=0, stop="\n")[0][0]
print(f"before: {answer()}")
with minseal.attach(model, 1) as adapters:
    adam, curve = torch.optim.Adam(adapters.parameters(), lr=3e-3), []
    for _ in range(8):
        loss = loss_of(ids)
        adam.zero_grad()
        loss.backward()
        adam.step()
        curve.append(loss.item())
    print("loss:", " ".join(f"{value:.2f}" for value in curve))
    print(f"with its adapter: {answer()}")
    state, adapted = adapters.state(), model(ids).detach()
    frozen = all(
        torch.equal(layer.base.weight, before[f"{name}.weight"])
        for name, layer in adapters.layers.items()
    )
print(f"after: {answer()}")
assert curve[-1] < curve[0] / 2 and frozen and untouched(), "claim 2.4"
assert torch.equal(model(ids), plain), "claim 2.4"

# %% [markdown]
# **Claim 2.4.** The loss falls, no frozen weight changes a bit, and after `with` the model is plain
# again. It was told in a statement and asked in a question: pretraining taught it that the one
# answers the other. This time the book was closed.
# ## 5. Merging
# $x W^\top + s\,(x A^\top) B^\top = x\,(W + s\,B A)^\top$: the update can be added to the weights. Then
# nothing is left beside them, and nothing is slower.
#
# **Predict, then run.** Below, a copy of the model merges its adapter inside the `with`. What will
# the copy answer after the `with`: as before, or as with the adapter?

# %%
twin = copy.deepcopy(model)
with minseal.attach(twin, 1) as adapters:
    adapters.load(state)
    adapters.merge()
merged = twin(ids)
print(f"from the adapter {(merged - adapted).abs().max():.1e}, from before", end=" ")
print(f"{(merged - plain).abs().max():.1f}; adapters: {twin.n_adapters}")
assert (merged - adapted).abs().max() < 1e-4 < 0.5 < (merged - plain).abs().max(), "claim 2.5"

# %% [markdown]
# **Claim 2.5.** The merged model is the adapted one, up to rounding (logits reach 20, float32 keeps 7
# digits). Merging is for good: `with` takes adapters off, and there was none any more. SEAL needs
# both: adapters to try self-edits out, and a merge where an update is kept.
# ## 6. Which rank
# Sixteen students study the notes of someone who knows (the oracle), each those on one passage.
# Then comes the exam, closed book. alpha = 2 R keeps the scale at 2. `losses` gives each adapter's
# own mean loss over the tokens of its documents.
#
# **Predict, then run.** Four facts are to be learnt. Is rank 1 enough?


# %%
def study(
    passages, config=minseal.LoRAConfig(), total=torch.sum, optimiser=torch.optim.Adam, lr=3e-3
):
    adapters = minseal.attach(model, len(passages), config)
    steps, rows = (
        optimiser(adapters.parameters(), lr),
        [[[*task.oracle(p).documents]] for p in passages],
    )
    for _ in range(8):
        loss = losses(model, rows)  # (K,)
        steps.zero_grad()
        total(loss).backward()
        steps.step()
    return adapters


def score(config):
    with study(passages, config) as adapters:
        outcomes = minseal.exam(model, task, passages, adapters)
        update = adapters.layers["blocks.2.mlp.down"].delta(0).detach()  # (out, in)
    return sum(o.reward for o in outcomes) / len(outcomes), torch.linalg.svdvals(update)


ranks = (1, 2, 4, 8, 16, 32)
scores, values = zip(*(score(minseal.LoRAConfig(R, 2.0 * R)) for R in ranks))
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), dpi=100, layout="constrained")
left.plot(ranks, scores, "o-")
left.set_xscale("log", base=2)
left.set(xlabel="rank R", ylabel="exam score", ylim=(0, 1))
right.plot(range(1, 25), values[4][:24], "o-")
right.set(xlabel="number", ylabel="singular value", title="update of rank 16")
plt.show()
print("  ".join(f"rank {R}: {share:.2f}" for R, share in zip(ranks, scores)))
assert scores[4] > scores[0] + 0.25, "claim 2.6"

# %% [markdown]
# **Claim 2.6.** Rank 1 is too narrow in eight steps: its one direction must serve all notes. From 8 on
# more rank adds little. The singular values of an update of rank 16 say the same: a few directions
# carry most, and after the sixteenth there is nothing.
# ## 7. K adapters at once
# A is (K, R, in), B is (K, out, R), and the batch has K equal groups of rows. Group k meets adapter k
# only, and the loss is the sum of each adapter's own mean: the gradient of adapter k is what it would
# be alone.
#
# **Predict, then run.** Somebody writes `mean` for `sum`: every gradient is divided by K = 16. What
# does that change with SGD, and what with Adam?

# %%
last = "blocks.3.mlp.down"
for name, optimiser, lr in ("SGD", torch.optim.SGD, 0.1), ("Adam", torch.optim.Adam, 3e-3):
    updates = []
    for total in (torch.sum, torch.mean):
        with study(passages, total=total, optimiser=optimiser, lr=lr) as adapters:
            updates.append(
                torch.stack([adapters.layers[last].delta(k) for k in range(16)]).detach()
            )
    apart = (updates[0] - updates[1]).norm() / updates[0].norm()
    print(f"{name:>4}: with the mean, updates differ by {apart:.1%} of their size")
    assert apart > 0.5 if name == "SGD" else apart < 0.05, "claim 2.7"
edits, deltas, took = [task.oracle(p) for p in passages], [], []
for groups in ([edits], [[edit] for edit in edits]):
    begun = time.perf_counter()
    deltas.append([])
    for group in groups:
        with minseal.adapt(model, group) as adapters:
            deltas[-1] += [adapters.layers[last].delta(k).detach() for k in range(len(group))]
    took.append(time.perf_counter() - begun)
off = max((one - other).abs().max().item() for one, other in zip(*deltas))
off_hand = max((one - other).abs().max().item() for one, other in zip(deltas[0], updates[0]))
print(f"16 at once against one by one: {off:.1e} apart; against study(): {off_hand:.1e}")
print(f"the largest entry of an update: {updates[0].abs().max():.3f}")
print(f"at once {took[0]:.2f} s, one by one {took[1]:.2f} s: {took[1] / took[0]:.1f} times faster")
assert max(off, off_hand) < 1e-4, "claim 2.8"

# %% [markdown]
# **Claim 2.7.** SGD takes steps 16 times smaller: how fast you learn depends on how many sit beside
# you. Adam divides each gradient by its own size, so hardly anything changes; what does is where a
# gradient is so small that Adam's eps counts.
# **Claim 2.8.** `minseal.adapt` is our `study`, and 16 at once are 16 one by one, to 1e-4 (eight steps
# of float32 rounding, of updates of 0.04). On one core the gain is modest, since the arithmetic is the
# same: fewer, larger products. A GPU that one small adapter leaves idle has more to gain.
# ## Exercises
# **1. Fill in** a linear layer with K adapters, then run `check_1(lora_linear)`.


# %%
def lora_linear(x, W, A, B, scale):
    """x (K b, T, in), W (out, in), A (K, R, in), B (K, out, R) -> (K b, T, out)."""
    ...  # yours


def check_1(f):
    layer = LoRALinear(torch.nn.Linear(6, 5, bias=False), 3, minseal.LoRAConfig(2, 8.0), generator)
    torch.nn.init.normal_(layer.B, generator=generator)
    x = torch.randn(6, 4, 6, generator=generator)  # (K b, T, in), b = 2
    assert torch.allclose(f(x, layer.base.weight, layer.A, layer.B, 4.0), layer(x), atol=1e-5)
    print("right")


# %% [markdown]
# **2. Change a setting and explain.** The paper's code adapts q and v alone. Give `score` a
# `LoRAConfig` with `targets=("q", "v")`, then with `("gate", "up", "down")`. Compare the exam scores.
#
# **3. Find the mistake.** This merges, and a test with rank 1 did not complain.


# %%
def mistaken_merge(layer, config):
    layer.base.weight.data += config.alpha * layer.B[0].data @ layer.A[0].data


# %% [markdown]
# ## Answers


# %% jupyter={"source_hidden": true} tags=["answer"]
def answer_1(x, W, A, B, scale):
    groups = x.reshape(len(A), -1, x.shape[-1])  # (K, b T, in)
    y = groups @ W.T + scale * (groups @ A.mT) @ B.mT  # (K, b T, out)
    return y.view(*x.shape[:-1], -1)  # (K b, T, out)


check_1(answer_1)

# %% jupyter={"source_hidden": true} tags=["answer"]
# Attention decides what is fetched from the text in view; closed book there is no such text. What a
# name stands for must come out of the weights of the MLP. (It also has more numbers to train.)
attention, mlp = (
    score(minseal.LoRAConfig(targets=targets))[0]
    for targets in (("q", "v"), ("gate", "up", "down"))
)
print(f"q and v {attention:.2f}, MLP {mlp:.2f}")
assert mlp > attention + 0.1


# %% jupyter={"source_hidden": true} tags=["answer"]
# The scale is alpha / rank, not alpha. With rank 1 they are the same, so test with another.
def mended_merge(layer, config):
    layer.base.weight.data += config.alpha / config.rank * layer.B[0].data @ layer.A[0].data


for rank, merge, is_right in (
    (1, mistaken_merge, True),
    (4, mistaken_merge, False),
    (4, mended_merge, True),
):
    config = minseal.LoRAConfig(rank, 8.0)
    layer = LoRALinear(torch.nn.Linear(6, 5), 1, config, generator)
    torch.nn.init.normal_(layer.B, generator=generator)
    x = torch.randn(1, 4, 6, generator=generator)  # (B, T, in)
    adapted = layer(x)
    merge(layer, config)
    assert torch.allclose(layer.base(x), adapted, atol=1e-4) == is_right

# %% [markdown]
# Read on: [tutorial 3](03_the_inner_loop.py). The room: [lora.py](../minseal/lora.py).
