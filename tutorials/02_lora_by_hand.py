# %% [markdown]
# # 2. LoRA by hand
# - **You need** [tutorial 1](01_a_gpt_you_can_hold.ipynb), and to have trained a model in PyTorch.
# - **It takes** about 15 s of computing on one core, and an hour of yours.
# - **You will see** how few numbers learn a passage, and how many students study in one model.
# - **In the code:** [lora.py](../minseal/lora.py); the LoRA paper (arXiv 2106.09685), section 4.

# %%
import copy
import time

import matplotlib.pyplot as plt
import torch

import minseal
from minseal.inner import losses
from minseal.sample import sample

torch.set_num_threads(1)  # matrices this small: a second thread only waits
model, tokenizer = minseal.load("tiny_data/knowledge")
task, passages = minseal.People(tokenizer), minseal.toy_passages(8, world_seed=0)
edits = [task.oracle(passage) for passage in passages]  # notes of someone who knows
adam = lambda parameters: torch.optim.Adam(parameters, lr=3e-3)
twin = copy.deepcopy(model)  # to compare with, and to merge into

# %% [markdown]
# ## 1. One frozen matrix and a small update
# A linear layer computes $y = x W^\top$. To learn something, add to $W$ (out, in) a product of two
# thin matrices, B (out, R) and A (R, in). R is the **rank**. $W$ itself stays as it is:
# $$y = x W^\top + \frac{\alpha}{R}\,(x A^\top) B^\top$$
# $x A^\top$ has R numbers: what the update notices in x. B says what to do about each.
#
# **Claim 2.1.** `LoRALinear` computes this (to 1e-5: float32, sums of 256 terms of size 1), and its
# update has rank R.

# %%
generator = torch.Generator().manual_seed(0)
with minseal.attach(model, 1, minseal.LoRAConfig(rank=4, alpha=8.0)) as adapters:
    layer = adapters.layers["blocks.2.mlp.down"]
    torch.nn.init.normal_(layer.B, std=0.1, generator=generator)
    W, A, B = layer.base.weight, layer.A[0], layer.B[0]  # (96, 256), (4, 256), (96, 4)
    x = torch.randn(1, 5, 256, generator=generator)  # (B, T, in)
    by_hand = x @ W.T + 8.0 / 4 * (x @ A.T) @ B.T  # (B, T, out)
    off, rank = (by_hand - layer(x)).abs().max(), torch.linalg.matrix_rank(layer.delta(0))
print(f"largest difference {off:.1e}; the update is {tuple(W.shape)}, of rank {rank}")
assert off < 1e-5 and rank == 4, "claim 2.1"

# %% [markdown]
# ## 2. Why B begins at zero
# The student should start as it was: the product must be zero. So A is random, and B is zero.
#
# **Predict, then run.** In the first step, what has a gradient: A, B, or both? If both were zero?

# %%
statement = minseal.SelfEdit(edits[0].documents[:1])
ids = torch.tensor([statement.documents[0].ids])  # (B, T), B = 1
gradients = lambda: torch.autograd.grad(losses(model, [[[*statement.documents]]])[0], parameters)
largest = lambda tensors: max(t.abs().max().item() for t in tensors)
plain = model(ids)
with minseal.attach(model, 1) as adapters:
    same, parameters = torch.equal(model(ids), plain), adapters.parameters()  # A, B, A, B, ...
    fresh = gradients()
    for A in parameters[::2]:
        torch.nn.init.zeros_(A)
    dead = gradients()
print(f"logits the same: {same}; largest gradient of A {largest(fresh[::2])}", end=", ")
print(f"of B {largest(fresh[1::2]):.3f}; if both were zero: {largest(dead)}")
assert same and largest(dead) == largest(fresh[::2]) == 0 < largest(fresh[1::2]), "claim 2.2"

# %% [markdown]
# **Claim 2.2.** A fresh adapter changes no bit. Only B has a gradient: that of A is a product with
# B, that of B one with $x A^\top$. After one step both learn. Were both zero, neither ever would.
# ## 3. How much is trained
# A block has four square matrices (q, k, v, o) and three of the MLP (gate, up, down). Each pair has
# R (in + out) numbers. On the right, the shapes of Llama 2 7B.

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
# **Claim 2.3.** The formula counts right. Rank 16 is a quarter of this tiny model, whose matrices
# are hardly wider than that, and 0.6 % of a 7B model. Only these need gradients and Adam's moments.
# ## 4. Eight steps
# `attach` freezes the model. The student studies one statement and is asked about it, closed book.


# %%
def study(edits, config=minseal.LoRAConfig(), steps=8, total=torch.sum, make=adam):
    adapters = minseal.attach(model, len(edits), config)
    optimiser, rows = make(adapters.parameters()), [[[*edit.documents]] for edit in edits]
    for _ in range(steps):
        loss = losses(model, rows)  # (K,), each adapter's own mean over its tokens; K = 1 for now
        adapters.losses.append(loss.tolist())
        optimiser.zero_grad()
        total(loss).backward()
        optimiser.step()
    return adapters


def score(config, steps=8):
    with study(edits, config, steps) as adapters:
        return sum(o.reward for o in minseal.exam(model, task, passages, adapters)) / len(passages)


def updates(adapters):  # (K, N): what each has learnt, all layers in a row; takes them off
    with adapters:
        return torch.cat([(x.B @ x.A).detach().flatten(1) for x in adapters.layers.values()], 1)


exam = [task.exam(passages[0])[0]]
answer = lambda model: sample(model, tokenizer, exam, max_tokens=8, temperature=0, stop="\n")[0][0]
print(f"{tokenizer.decode(exam[0])}\nbefore:{answer(model)}")
with study([statement]) as adapters:
    state, adapted, curve = adapters.state(), model(ids), [loss for (loss,) in adapters.losses]
    print("loss:", " ".join(f"{loss:.2f}" for loss in curve))
    print(f"with its adapter:{answer(model)}")
print(f"after:{answer(model)}")
untouched = all(map(torch.equal, model.parameters(), twin.parameters()))
assert min(curve) < curve[0] / 2 and untouched and torch.equal(model(ids), plain), "claim 2.4"

# %% [markdown]
# **Claim 2.4.** The loss falls, no frozen weight changes a bit, and after `with` the model is
# plain. That a statement answers a question, it knows from pretraining.
# ## 5. Merging
# Since $x W^\top + s\,x A^\top B^\top = x\,(W + s\,B A)^\top$, the weights can take the update in.
# **Predict, then run.** A copy merges its adapter inside the `with`. What does it answer after it?

# %%
with minseal.attach(twin, 1) as adapters:
    adapters.load(state)
    adapters.merge()
off, moved = ((twin(ids) - logits).abs().max() for logits in (adapted, plain))
print(f"after:{answer(twin)}; logits {off:.1e} from the adapter's, {moved:.1f} from those before")
assert off < 1e-4 < 0.5 < moved and twin.n_adapters is None, "claim 2.5"

# %% [markdown]
# **Claim 2.5.** The merged model is the adapted one, up to rounding (float32 keeps 7 digits of
# logits up to 20). It is for good: `with` takes adapters off, and there was none any more.
# ## 6. Which rank
# Eight students study, each the notes of someone who knows (the oracle) on one passage, and the
# passage. Then comes the exam. alpha = 2 R keeps the scale. **Predict, then run.** Can rank 1 do
# it?

# %%
ranks, scores = (1, 2, 4, 16), {}
plt.figure(figsize=(6, 3), dpi=100, layout="constrained")
for steps in (8, 32):
    scores[steps] = [score(minseal.LoRAConfig(R, 2.0 * R), steps) for R in ranks]
    plt.semilogx(ranks, scores[steps], "o-", base=2, label=f"{steps} steps")
    print(f"{steps:2} steps:", ", ".join(f"rank {R} {x:.2f}" for R, x in zip(ranks, scores[steps])))
plt.gca().set(xlabel="rank R", ylabel="exam score", ylim=(0, 1.05))
plt.legend()
plt.show()
assert scores[8][0] + 0.25 < min(scores[8][-1], scores[32][0]), "claim 2.6"

# %% [markdown]
# **Claim 2.6.** It can, but not in eight steps. Adam moves each number by about lr whatever R is,
# so a sum of R products grows faster. Who compares ranks must look at the steps, too.
# ## 7. K adapters at once
# A is (K, R, in), B is (K, out, R), the batch has K equal groups of rows, group k meets adapter k
# only. The loss is the **sum** of each adapter's own mean: its gradient is what it would be alone.
# **Predict, then run.** Somebody writes `mean` for `sum`: every gradient is divided by K = 8. What
# does that change with SGD, and what with Adam?

# %%
for name, make in ("SGD", lambda p: torch.optim.SGD(p, lr=0.1)), ("Adam", adam):
    summed, averaged = (updates(study(edits, total=f, make=make)) for f in (torch.sum, torch.mean))
    apart = (summed - averaged).norm() / summed.norm()
    print(f"{name:>4}: with the mean, updates differ by {apart:.1%} of their size")
    assert apart > 0.5 if name == "SGD" else apart < 0.05, "claim 2.7"
took, got = [], []
for groups in [edits], [[edit] for edit in edits]:
    begun = time.perf_counter()
    got.append(torch.cat([updates(minseal.adapt(model, group)) for group in groups]))  # (K, N)
    took.append(time.perf_counter() - begun)
off, off_study = (got[0] - got[1]).abs().max(), (got[0] - summed).abs().max()
print(f"at once and one by one differ by {off:.1e}, adapt and study by {off_study:.1e}")
print(f"at once {took[0]:.2f} s, one by one {took[1]:.2f} s: {took[1] / took[0]:.1f} times as fast")
assert max(off, off_study) < 1e-4, "claim 2.8"

# %% [markdown]
# **Claim 2.7.** SGD takes steps 8 times smaller: how fast a student learns depends on how many sit
# beside it. Adam divides a gradient by its own size: the 8 cancels, except where gradients are so
# small that eps counts. **Claim 2.8.** `minseal.adapt` is our `study`, and 8 at once are 8 one by
# one, within 1e-4: rounding in eight steps of float32. The arithmetic is the same, so a CPU gains
# little. A GPU, idle with one small adapter, should gain more; we have not measured it.
# ## Exercises
# **1. Fill in** a linear layer with K adapters, then run `check_1(lora_linear)`.


# %%
def lora_linear(x, W, A, B, scale):
    """x (K b, T, in), W (out, in), A (K, R, in), B (K, out, R) -> (K b, T, out)."""
    ...  # yours


def check_1(f):
    x, W, A, B = map(torch.randn, ((6, 4, 7), (5, 7), (3, 2, 7), (3, 5, 2)))
    right = [x[2 * k : 2 * k + 2] @ (W + 4 * B[k] @ A[k]).T for k in range(3)]  # each (b, T, out)
    assert torch.allclose(f(x, W, A, B, 4.0), torch.cat(right), atol=1e-4), "another result"
    print("right")


# %% [markdown]
# **2. Change a setting and explain.** The paper's code adapts q and v alone. Give `score` a
# `LoRAConfig` with `targets=("q", "v")`, then with `("gate", "up", "down")`. Compare the scores.
#
# **3. Find the mistake.** This merges. A test with rank 1 found nothing.

# %%
mistaken = lambda W, A, B, config: W + config.alpha * B @ A  # (out, in)

# %% [markdown]
# ## Answers

# %% jupyter={"source_hidden": true} tags=["answer"]
# Group the rows, and let each group meet its own A and B. W is the same for all.
low = lambda x, A: x.reshape(len(A), -1, x.shape[-1]) @ A.mT  # (K, b T, R)
answer_1 = lambda x, W, A, B, s: x @ W.T + s * (low(x, A) @ B.mT).view(*x.shape[:-1], -1)
check_1(answer_1)

# %% jupyter={"source_hidden": true} tags=["answer"]
# q and v change what is fetched from the text in view; closed book there is little to fetch. What
# follows a name comes out of the MLP. (It has more numbers, too.)
targets = ("q", "v"), ("gate", "up", "down")
attention, mlp = (score(minseal.LoRAConfig(targets=names)) for names in targets)
print(f"q and v {attention:.2f}, MLP {mlp:.2f}")
assert mlp > attention + 0.05

# %% jupyter={"source_hidden": true} tags=["answer"]
# The scale is alpha / R, not alpha. With R = 1 these are the same: test with another rank.
mended = lambda W, A, B, config: W + config.alpha / config.rank * B @ A  # (out, in)
for R, merge, is_right in (1, mistaken, True), (4, mistaken, False), (4, mended, True):
    with minseal.attach(model, 1, config := minseal.LoRAConfig(R, 8.0)) as adapters:
        layer, x = adapters.layers["blocks.0.attn.q"], torch.randn(1, 4, 96, generator=generator)
        torch.nn.init.normal_(layer.B, generator=generator)
        merged = merge(layer.base.weight, layer.A[0], layer.B[0], config)
        assert torch.allclose(x @ merged.T, layer(x), atol=1e-3) == is_right

# %% [markdown]
# Next: [tutorial 3](03_the_inner_loop.ipynb), what an adapter should be trained on.
