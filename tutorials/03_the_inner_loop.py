# %% [markdown]
# # 3. The inner loop
#
# - **You need** [tutorial 2](02_lora_by_hand.ipynb), or to know what a LoRA adapter is.
# - **It takes** about 20 s of computing on one core, and an hour with the exercises.
# - **You will see** a model study a lecture into an adapter and sit an exam with the book closed.
#   The lecture learnt by heart does not pass it, the right notes do. And what studying costs.
# - **In the code:** [inner.py](../minseal/inner.py), [selfedit.py](../minseal/selfedit.py); in the
#   paper section 3.1, where this loop is called `SFT(theta, SE)`.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

import minseal
from minseal.inner import losses, pack, to_tensors
from minseal.lab.plots import shade
from minseal.model import positions_in_document
from minseal.sample import sample
from minseal.tasks.knowledge import Note
from minseal.tasks.people import probes

torch.set_num_threads(1)  # matrices this small: a second thread only waits
model, tokenizer = minseal.load("tiny_data/knowledge")
task = minseal.People(tokenizer)

# %% [markdown]
# ## 1. The lecture and the exam
# A *context* is what there is to learn: a passage about a person whom the model has never met. The
# exam asks what follows: the passage names a town, the question wants the country. Geography is
# known, so with the passage in view the model answers all. The *score* is the share answered right.

# %%
person = minseal.toy_passages(1, world_seed=0)[0]
print(person.text, "\n")
opened, closed = (minseal.exam(model, task, [person], None, seen)[0] for seen in (True, False))
for (question, _), with_text, without in zip(person.questions, opened.answers, closed.answers):
    print(f"{question:46} open book: {with_text:9} closed book: {without}")

# %% [markdown]
# ## 2. What is trained on: documents, packed into a row
# A *self-edit* is a list of documents: token ids, and a weight for the loss at each. Of a question
# with its answer only the answer may be worth learning, since the exam gives the question. The
# documents of a step share a row, without padding. Attention stays inside a document.
#
# **Predict, then run.** Which tokens carry loss? Which model would notice if positions did *not*
# start again with each document: this one (rotary), or one with learned positions (GPT-2)?

# %%
question, (answer,) = person.questions[0]
asked, said = tokenizer.encode(f"Question: {question} Answer:"), tokenizer.encode(f" {answer}\n")
a = minseal.Document.completion(asked, said, loss="completion")
b = task.oracle(person).documents[0]
ids, docs, targets, _ = to_tensors([pack([a, b], row_tokens=256)])  # each (1, T)
positions = positions_in_document(docs)  # (1, T)
print("token       document  position  carries loss")
for t in range(len(a.ids) - 6, len(a.ids) + 4):  # the end of a and the beginning of b
    mark = "yes" if t and targets[0, t - 1] >= 0 else ""
    print(f"{tokenizer.decode([int(ids[0, t])])!r:12}{docs[0, t]:8}{positions[0, t]:10}  {mark}")
assert (targets[0, : len(a.ids)] >= 0).sum() == len(said), "claim 3.1"
assert positions.tolist() == [[*range(len(a.ids)), *range(len(b.ids))]], "claim 3.2"
shape = minseal.GPTConfig(tokenizer.vocab_size, n_layer=2, position="learned")
for some in model, minseal.GPT(shape).init_weights(torch.Generator().manual_seed(0)):
    with torch.no_grad():
        alone = torch.cat([some(torch.tensor([d.ids])) for d in (a, b)], dim=1)  # (1, T, V)
        assert torch.allclose(some(ids, docs), alone, atol=1e-4), "claim 3.2"  # float32

# %% [markdown]
# **Claim 3.1.** Exactly the answer carries loss (of a plain note, all but its first token, which
# nothing predicts). **Claim 3.2.** A document packed among others is read as if it were alone, by
# both models. (Rotary attention sees distances only: a missing restart would not change it.)
#
# ## 3. The loop itself
# Attach an adapter, take the mean loss over the tokens that carry it, step, again. That is all.


# %%
def study(loss_of, epochs=8):
    """A student who trains on `edit`: its losses, and its exam."""
    with minseal.attach(model, K=1, seed=0) as adapters:
        adam, seen = torch.optim.Adam(adapters.parameters(), lr=3e-3), []
        for _ in range(epochs):
            loss = loss_of(edit.documents)
            adam.zero_grad(), loss.backward(), adam.step()
            seen.append(loss.item())
        return seen, minseal.exam(model, task, [person], adapters)[0]


edit = task.oracle(person)  # notes of someone who knows what the exam asks, and the passage
print("It studies:", *(tokenizer.decode(d.ids).strip() for d in edit.documents), sep="\n  ")
mean_loss = lambda documents: losses(model, [pack(documents, 256)])[0]
by_hand, outcome = study(mean_loss)
with minseal.adapt(model, [edit], minseal.InnerConfig(lr=3e-3, epochs=8), seed=0) as adapters:
    of_adapt = adapters.losses[0]
print("by hand", np.round(by_hand, 4), "\nadapt()", np.round(of_adapt, 4))
print("closed book:", *outcome.answers, "score", outcome.reward)
assert np.allclose(by_hand, of_adapt, atol=1e-3), "claim 3.3"  # eight steps of float32

# %% [markdown]
# **Claim 3.3.** `minseal.adapt` is this loop, for K self-edits at once. It is a `with` because the
# adapter is thrown away at its end: the next student starts as fresh as this one.
#
# ## 4. The passage alone does not answer the exam
# **Predict, then run.** Sixteen people, one adapter each. One arm studies the passage, the other
# the passage and notes that say what follows from it ("Losel Mutov comes from Kenya."). Four
# questions, about ten possible answers each: where between .10 and 1.00 will the two arms be?

# %%
worlds = [minseal.toy_passages(16, world_seed) for world_seed in (1, 2, 3)]


def score(edits, people):
    """Mean exam score, closed book, of one adapter for each of these self-edits."""
    with minseal.adapt(model, edits) as adapters:
        return np.mean([o.reward for o in minseal.exam(model, task, people, adapters)])


for people in worlds:
    nothing = np.mean([o.reward for o in minseal.exam(model, task, people)])
    passage_only = score([task.baseline(p) for p in people], people)
    with_notes = score([task.oracle(p) for p in people], people)
    print(f"no study {nothing:.2f}   passage {passage_only:.2f}   and notes {with_notes:.2f}")
    assert with_notes > passage_only + 0.4, "claim 3.4"

# %% [markdown]
# **Claim 3.4.** Studying the passage is worth next to nothing, studying what follows from it nearly
# everything. What an adapter can be asked for is what its training text *said*.
#
# ## 5. Two hops through the weights do not compose
# Ask a student of the passage alone three things: to go on from "Losel Mutov grew up in" (first
# hop), "Which country is Kisumu in?" (second hop), and the exam question, which needs both.


# %%
def answers(prompts):
    """What the model says to each prompt (ids). K adapters: K equal groups of prompts, in order."""
    return [t.strip() for (t,) in sample(model, tokenizer, prompts, 1, 8, temperature=0, stop="\n")]


people = sum(worlds, [])
words = [p.person.words("city") for p in people]  # each {"n": name, "v": town, "t": country}
asks = [task.asked(None, f"Which country is {x}?") for x in ("{v} in", "{n} from")]
hops = []
with minseal.adapt(model, [task.baseline(p) for p in people]):
    for form, right in ("{n} grew up in", "v"), (asks[0], "t"), (asks[1], "t"):
        said = answers([tokenizer.encode(form.format(**w)) for w in words])
        hops.append(np.mean([a.startswith(w[right]) for a, w in zip(said, words)]))
print("the fact {:.2f}, geography {:.2f}, both at once {:.2f}".format(*hops))
assert min(hops[:2]) > 0.8 > 0.4 > hops[2], "claim 3.5"

# %% [markdown]
# **Claim 3.5.** It knows the fact, it knows the geography, and cannot put the two together: nothing
# writes down the town on the way from the name to the country. So somebody has to think *before*
# studying, and write the result down. That is what a self-edit is for.
#
# ## 6. How hard to study
# Each self-edit may bring its own learning rate and number of epochs. What do 25 settings do to the
# exam of four people, to general knowledge ("Which country is Lyon in?"), and to other people whom
# the model knows from pretraining? **Predict, then run.** Which of these suffers first?

# %%
RATES, EPOCHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (1, 2, 4, 8, 16)
TITLES = "the exam", "general knowledge", "people known before"
people, asides = minseal.toy_passages(4, world_seed=4), probes(tokenizer)
asides = asides["general knowledge"][::5], asides["known people"][:24]
grid = np.zeros((3, len(RATES), len(EPOCHS)))
for i, lr in enumerate(RATES):
    edits = [replace(task.oracle(p), lr=lr, epochs=n) for n in EPOCHS for p in people]
    with minseal.adapt(model, edits) as adapters:
        found = [[o.reward for o in minseal.exam(model, task, people * len(EPOCHS), adapters)]]
        for prompts, right in (zip(*questions) for questions in asides):
            said = np.reshape(answers(prompts * len(edits)), (len(edits), -1))  # a row each
            found.append((said == np.array(right)).mean(1))
    grid[:, i] = np.reshape(found, (3, len(EPOCHS), -1)).mean(2)  # over people
passed, general, known = grid
print(f"people known before: {known[0, 0]:.2f}; after lr 0.003 and 8 epochs {known[2, 3]:.2f}")
figure, axes = plt.subplots(1, 3, figsize=(8, 3), sharey=True, layout="constrained")
for ax, (name, panel) in zip(axes, zip(TITLES, grid)):
    shade(ax, panel)  # percent
    ax.set(title=name, xlabel="epochs", xticks=range(5), xticklabels=EPOCHS)
axes[0].set(ylabel="learning rate", yticks=range(5), yticklabels=RATES)
plt.show()
assert passed[2, 3] > 0.4 + max(passed[0, 0], passed[4, 4]), "claim 3.6"
assert general[2, 3] > 0.9 and known[4, 4] < 0.1 < known[0, 0] - known[2, 3], "claim 3.7"

# %% [markdown]
# **Claim 3.6.** Too little study learns nothing, too much destroys: both corners are far below the
# default, 0.003 and 8 epochs. **Claim 3.7.** There general knowledge is untouched, but other people
# suffer: what is most like the thing learnt, or known least firmly. Lower right, nothing is left.
#
# ## Exercises
# 1. **Fill in** `targets_of`: at each place of a row the token to be predicted there, or -1.
# 2. **Change a setting and explain.** Study the exam: `task.edit(p, notes, epochs=1, loss=...)`,
#    with a `Note(task.asked(p, question) + f" {answer}")` each. Compare `"all"` and `"completion"`.
# 3. **Find the mistake.** `wrong_loss` falls as a loss should, and the student fails the exam.


# %%
def targets_of(documents):  # packed into one row -> a list, the target of every token
    ...  # yours


def check_1(f):
    assert f([a, b]) == targets[0].tolist(), (f([a, b]), targets[0].tolist())
    print("right")


def wrong_loss(documents):
    ids, docs, targets, _ = to_tensors([pack(documents, 256)])  # each (1, T)
    carries = targets >= 0  # (1, T)
    return torch.nn.functional.cross_entropy(model(ids, docs)[carries], ids[carries])


# %% [markdown]
# ## Answers


# %% jupyter={"source_hidden": true} tags=["answer"]
def targets_answer(documents):
    # The last token of a document has nothing to predict in it.
    each = [[i if w else -1 for i, w in zip(d.ids[1:], d.weights[1:])] + [-1] for d in documents]
    return sum(each, [])


check_1(targets_answer)

# %% jupyter={"source_hidden": true} tags=["answer"]
# A mean over all tokens spends most of the gradient on the words of the question, which the exam
# gives anyway. In one epoch that costs a lot; after eight both have learnt everything.
people = worlds[0]
lines = [[Note(task.asked(p, q) + f" {a}") for q, (a,) in p.questions] for p in people]
for n, at_least in (1, 0.08), (8, -0.1):
    how = [dict(epochs=n, loss=loss) for loss in ("all", "completion")]
    of = [score([task.edit(p, ls, **h) for p, ls in zip(people, lines)], people) for h in how]
    print(f"{n} epochs: {of[0]:.2f} with loss on all, {of[1]:.2f} on the answers")
    assert of[1] - of[0] > at_least

# %% jupyter={"source_hidden": true} tags=["answer"]
# The logits at t are about token t + 1, so they belong to targets[t], and not to ids[t], which the
# model has just read. Copying what one sees is easily learnt, and not on the exam.
for name, loss_of in ("wrong", wrong_loss), ("right", mean_loss):
    seen, outcome = study(loss_of, epochs=16)
    print(f"{name}: {seen[0]:.2f} -> {seen[-1]:.2f}, exam {outcome.reward:.2f}")
    assert seen[-1] < seen[0] / 3 and (outcome.reward > 0.7) == (loss_of is mean_loss)

# %% [markdown]
# Next: [tutorial 4](04_self_edits.ipynb), where the model writes the notes itself.
