# %% [markdown]
# # 1. A GPT you can hold
# - **You need** Python and a little PyTorch: tensors, matrix products, `nn.Linear`.
# - **It takes** about 5 s of computing on one core, and an hour of yours.
# - **You will see** a language model by hand, what it knows, and why use teaches it nothing.
# - **In the code:** [model.py](../minseal/model.py); in the paper: section 1.

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import minseal
from minseal.commands.pretrain import measure
from minseal.sample import KVCache, choose, sample
from minseal.tasks import people

torch.set_num_threads(1)  # matrices this small: a second thread only waits
torch.set_grad_enabled(False)  # nothing is trained in this tutorial
model, tokenizer = minseal.load("tiny_data/knowledge")

# %% [markdown]
# ## 1. Text becomes numbers
# The model is a small Llama, pretrained on texts about invented people. It sees no letters: the
# tokenizer cuts a text into pieces, each with a number. Frequent words are one, names several.

# %%
text = "Vadi Dovek was born in Lyon.\nQuestion: Which country is Vadi Dovek from? Answer:"
encode = lambda text: torch.tensor(tokenizer.encode(text))
pieces = lambda ids: [tokenizer.decode([i]).replace("\n", "\\n") for i in ids.tolist()]
ids = encode(text)  # (T,)
T, V, c = len(ids), tokenizer.vocab_size, model.config
C, H, D = c.n_embd, c.n_head, c.head_dim
print(f"{'|'.join(pieces(ids))}\n{len(text)} letters, {T} tokens, which begin {ids[:5].tolist()}")
print(f"{model.size():,} parameters, {len(model.blocks)} blocks; {V = }, {C = }, {H = }, {D = }")

# %% [markdown]
# ## 2. One block by hand
# Each token is a vector of C numbers. A block adds to it twice. *Attention* fetches something from
# earlier tokens, the *MLP* works on what is there. In symbols, for x of shape (T, C):
# 1. **RMSNorm** brings each vector to length $\sqrt C$ and weighs its channels.
# 2. Each of H heads makes a query, a key and a value of D numbers for every token.
# 3. **Rotary positions**: pair i of a query or key turns by position times $10000^{-2i/D}$, as a
#    product with a complex number of length 1. Only the distance of two tokens then counts.
# 4. The score of two tokens is $q \cdot k / \sqrt D$: a sum of D products spreads like $\sqrt D$,
#    and softmax would choose one token alone. The **causal mask** sets the scores of later tokens
#    to $-\infty$. Softmax turns each row into weights that sum to 1.
# 5. Each token takes the weighted mean of the values, `o` mixes the heads, x is added back.
# 6. **SwiGLU**, `down(silu(gate(x)) * up(x))`: `gate` opens or shuts what `up` lets through.
#
# **Claim 1.1.** This is `model.blocks[0]` within 1e-6, and four in a row are `model(ids)` within
# 1e-4: float32 keeps 7 digits, and logits reach 17. A wrong formula is off by more than 0.01.

# %%
angle = torch.outer(torch.arange(T), 10_000.0 ** (-torch.arange(0, D, 2) / D))  # (T, D/2)
spin = torch.polar(torch.ones_like(angle), angle)  # (T, D/2), complex
later = torch.ones(T, T, dtype=torch.bool).triu(1)  # (T, T)
norm = lambda x, g: x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * g.weight
turn = lambda x: torch.view_as_real(torch.complex(*x.chunk(2, -1)) * spin).mT.flatten(2)


def block(x, its):  # x (T, C)
    n, a = norm(x, its.norm1), its.attn
    q, k, v = ((n @ W.weight.T).view(T, H, D).transpose(0, 1) for W in (a.q, a.k, a.v))  # (H, T, D)
    scores = turn(q) @ turn(k).mT / math.sqrt(D)  # (H, T, T)
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    x = x + (weights @ v).transpose(0, 1).flatten(1) @ a.o.weight.T  # (T, C)
    n = norm(x, its.norm2)
    gate, up = n @ its.mlp.gate.weight.T, n @ its.mlp.up.weight.T  # each (T, 256)
    return x + (gate * gate.sigmoid() * up) @ its.mlp.down.weight.T, weights  # (T, C), (H, T, T)


x, looks, rope = model.wte.weight[ids], [], (model.cos[:T], model.sin[:T])  # x: (T, C)
theirs = model.blocks[0](x[None], rope, None, None, 0)  # (B, T, C), B = 1
off_block = (block(x, model.blocks[0])[0] - theirs).abs().max()
for its in model.blocks:
    x, weights = block(x, its)
    looks.append(weights)
logits = norm(x, model.norm) @ model.head.weight.T  # (T, V)
off_model = (logits - model(ids[None])[0]).abs().max()
print(f"largest difference: {off_block:.1e} after a block, {off_model:.1e} in the logits")
assert off_block < 1e-6 and off_model < 1e-4, "claim 1.1"

# %% [markdown]
# ## 3. Where it looks
# The country stands nowhere in the text. The model must find the city, and know its country. Here
# is head 0 of block 2, counted from 0. A row is a token of the question: from where does it fetch?

# %%
names, first = pieces(ids), pieces(ids).index("Question")
plt.figure(figsize=(8, 4), dpi=100, layout="constrained")
plt.imshow(looks[2][0, first:], cmap="Blues", vmin=0, vmax=1, aspect="auto")
plt.xticks(range(T), names, rotation=90, fontsize=8)
plt.yticks(range(T - first), names[first:], fontsize=8)
plt.gca().set(xlabel="the token looked at (key)", ylabel="the token that looks (query)")
plt.show()

# %% [markdown]
# In the last row, where the answer is due, nearly all weight lies on the city: see exercise 2.
# ## 4. What surprises it
# The **loss** of a token is $-\log p$, p the probability that the model gave to what came: its
# surprise. Who knows nothing gives each of V tokens the same, and pays $\log V$.
#
# **Predict, then run.** In pretraining 36 cities were equally frequent. What do the pieces of
# "Lyon" cost together? Which words cost nothing?

# %%
surprise = lambda ids: F.cross_entropy(model(ids[None])[0, :-1], ids[1:], reduction="none")
told = encode("Vadi Dovek was born in Lyon. She works as a nurse.\nVadi Dovek is from France.")
plt.figure(figsize=(8, 3), dpi=100, layout="constrained")
plt.bar(range(1, len(told)), surprise(told))
plt.xticks(range(1, len(told)), pieces(told[1:]), rotation=90, fontsize=8)
plt.ylabel(f"loss (log V is {math.log(V):.2f})")
plt.show()
cities, born = people.ATTRIBUTES["city"].implied, "Vadi Dovek was born in"
costs = torch.tensor([surprise(encode(f"{born} {city}."))[8:].sum() for city in cities])  # (36,)
print(f"'Lyon' {costs[0]:.2f}, mean of the cities {costs.mean():.2f}, log 36 = {math.log(36):.2f}")
assert abs(costs.mean() - math.log(36)) < 0.3 and surprise(told).mean() < 2, "claim 1.2"

# %% [markdown]
# **Claim 1.2.** Where there is a choice, it pays about the logarithm of the number of choices,
# however many pieces a city has. Where there is none ("in" after "born") it pays nothing. The line
# end costs more than log V: it never saw a passage end after two facts, and being sure is dear.
# ## 5. Writing: a distribution and a die
# Divide the logits by the **temperature**, take the softmax, lay the probabilities end to end (the
# cumulative distribution) and roll a die in [0, 1): it falls on a token. Low temperatures favour
# the likeliest; 0 means that it is always taken. **Claim 1.3.** `sample.choose` does just this.

# %%
start = tokenizer.encode(born)
last = model(torch.tensor([start]))[0, -1].double()  # (V,)
dice = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
for temperature in (0.3, 1.0, 1.5):
    cumulative = (last / temperature).softmax(-1).cumsum(-1)  # (V,)
    by_hand = [int((cumulative <= die).sum()) for die in dice]
    assert choose(last.expand(500, V), dice, temperature, 1.0).tolist() == by_hand, "claim 1.3"
    (written,) = sample(model, tokenizer, [start], 200, 8, temperature, stop=".")
    real = sum(city.strip() in cities for city in written) / 200
    print(f"temperature {temperature}: {real:4.0%} real cities; it wrote{','.join(written[:8])}")

# %% [markdown]
# Hot, it builds cities that do not exist. Cold, the likeliest come more often.
# ## 6. Not reading everything again
# A new token needs the keys and values of all earlier ones. They never change, for nobody looks
# ahead: the **key-value cache** keeps them, and only the new token is read.
#
# **Predict, then run.** The prompt has 9 tokens, and 40 more are written. How many tokens does the
# model read without the cache, and how many with it?

# %%
stories, counts = [], [0, 0]
for i, cache in enumerate([None, KVCache(model, 1, len(start) + 40)]):
    story = new = start
    for _ in range(40):
        story = story + [int(model(torch.tensor([new]), cache=cache)[0, -1].argmax())]
        counts[i] += len(new)
        new = story[-1:] if cache else story  # what the model reads next
    stories.append(story)
print(f"without: {counts[0]} tokens read, with: {counts[1]}\n{tokenizer.decode(story)}")
assert stories[0] == stories[1] and counts == [sum(range(9, 49)), 9 + 39], "claim 1.4"

# %% [markdown]
# **Claim 1.4.** The same text. Without the cache it reads 9 + 10 + ... + 48 = 1140 tokens, with it
# 9 + 39 = 48: nothing follows the last token, so that one is never read.
# ## 7. What it knows, and why being used teaches it nothing
# *Known people* are a hundred, learnt in pretraining. *Reading* asks 200 questions on strangers,
# the passage in view; *closed book* is the same without it, as an exam after a lecture.
# **Predict, then run.** It has read all the passages and answered. Which share of the same
# questions is right afterwards, book closed? How many weights have changed?

# %%
before = {name: p.clone() for name, p in model.named_parameters()}
shares = measure(model, tokenizer, people.probes(tokenizer), stop="\n")
shares["a guess"] = sum(1 / len({*a.implied.values()}) for a in people.ATTRIBUTES.values()) / 4
print("\n".join(f"{name:>22}: {share:4.0%} right" for name, share in shares.items()))
task, passages = minseal.People(tokenizer), minseal.toy_passages(32, world_seed=0)
sit = lambda in_context: minseal.exam(model, task, passages, in_context=in_context)
print(passages[0].text)
for (ask, _), *said in zip(passages[0].questions, sit(True)[0].answers, sit(False)[0].answers):
    print(f"  {ask:44} open: {said[0]:10} closed: {said[1]}")
assert min(shares["reading"], shares["general knowledge"]) > 0.95, "claim 1.5"
assert shares["strangers, closed book"] < 0.25 < 0.6 < shares["known people"], "claim 1.5"
assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), "claim 1.6"

# %% [markdown]
# **Claim 1.5.** It reads without a fault, knows its world, and most known people. Closed book, it
# knows of strangers what a guess knows. **Claim 1.6.** Not one bit of the weights has changed.
# Everything it was told was in the keys and values of one text, and is gone when the text is out of
# sight: a student who only ever sits open-book exams. To keep something, weights must change:
# cheaply, in tutorial 2; on notes that the student writes, in SEAL.
# ## Exercises
# **1. Fill in** causal attention for one head, then run `check_1(attend)`.


# %%
def attend(q, k, v):
    """q, k, v (T, D) -> (T, D): each token's weighted mean of the values up to its own."""
    ...  # yours


def check_1(f):
    q, k, v = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))  # each (T, D)
    right = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (T, D)
    assert torch.allclose(f(q, k, v), right, atol=1e-5), "PyTorch's attention gives something else"
    print("right")


# %% [markdown]
# **2. Change a setting and explain.** Set the first D columns of `model.blocks[2].attn.o.weight` to
# zero: head 0 of block 2 is off. Look at the share of each of the four questions, open book. Then
# do it in block 0 instead. What does a picture of attention not show?
#
# **3. Find the mistake.** No weight on a later token remains. What is wrong?

# %%
mistaken = lambda scores: scores.softmax(-1).tril()  # (T, T)

# %% [markdown]
# ## Answers

# %% jupyter={"source_hidden": true} tags=["answer"]
# Mask first, then softmax. The sum of the values is a matrix product.
mended = lambda s: s.masked_fill(later[: len(s), : len(s)], -math.inf).softmax(-1)  # (T, T)
answer_1 = lambda q, k, v: mended(q @ k.T / math.sqrt(q.shape[1])) @ v  # (T, D)
check_1(answer_1)

# %% jupyter={"source_hidden": true} tags=["answer"]
# Without the head that looks at the city, countries are still right, and some workplaces are lost.
# Block 0's head 0 is what countries need. A picture shows where a head looks, not what for.
for layer, needed in (2, False), (0, True):
    o = model.blocks[layer].attn.o.weight
    o[:, :D] = 0
    share = torch.tensor([e.grades for e in sit(in_context=True)]).mean(0)  # (4,), by question
    o.copy_(before[f"blocks.{layer}.attn.o.weight"])
    print(f"without head 0 of block {layer}:", share.numpy().round(2))
    assert (share[0] < 0.5) == needed and share[2:].min() > 0.8

# %% jupyter={"source_hidden": true} tags=["answer"]
# The mask came after the softmax: later tokens had a part in the sum that each weight was divided
# by. Rows do not sum to 1, and another last word changes what earlier tokens get.
scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))  # (T, T)
other = scores + 3 * (torch.arange(5) == 4)  # (T, T), another last word
for f, is_right in (mistaken, False), (mended, True):
    assert torch.allclose(f(scores).sum(-1), torch.ones(5)) == is_right
    assert torch.allclose(f(scores)[:4], f(other)[:4]) == is_right

# %% [markdown]
# Next: [tutorial 2](02_lora_by_hand.ipynb), the cheap way to change the weights.
