# %% [markdown]
# # 4. Self-edits
#
# - **You need** [tutorial 3](03_the_inner_loop.ipynb).
# - **It takes** about 28 s of computing on one core, and an hour with the exercises.
# - **You will see** the student write notes of its own, mostly bad ones, learn from each, and sit
#   the exam. How far do the notes differ, how much of it is luck, what is choosing the best worth?
# - **In the code:** [selfedit.py](../minseal/selfedit.py),
#   [knowledge.py](../minseal/tasks/knowledge.py), [evidence.py](../minseal/lab/evidence.py); in the
#   paper section 3.1, where a self-edit is `SE`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import minseal
from minseal.lab.evidence import best_of_k, reliability
from minseal.sample import sample
from minseal.tasks.people import KINDS

torch.set_num_threads(1)  # matrices this small: a second thread only waits
model, tokenizer = minseal.load("tiny_data/knowledge")
task = minseal.People(tokenizer)
people = minseal.toy_passages(12, world_seed=0)

# %% [markdown]
# ## 1. The model writes notes
# Show the passage, add the word `Notes:`, and let the model go on. What it writes is a *self-edit*:
# text that it will train on itself. Pretraining has shown it notes of all kinds, most of them poor,
# so its own are a mixture too.
#
# **Predict, then run.** The exam asks for what *follows* from the passage (the country, where the
# passage names the town). Which of the notes below will help in it?

# %%
prompts = [task.prompt(person) for person in people]  # ids; the passage, then "Notes:"
texts = sample(model, tokenizer, prompts, n=8, max_tokens=task.edit_tokens, seed=0)
print(tokenizer.decode(prompts[0]))
for text in texts[0][:2]:
    print("-" * 40, text.strip(), sep="\n")

# %% [markdown]
# ## 2. Reading them back
# `task.parse` makes a `SelfEdit` of a text: a document for each line and, as in the paper, the
# passage at the end. First lines such as `lr: 0.001` are *directives*: how to train. The toy world
# can tell a line's kind: it *restates* the passage, *implies* or *asks* what follows, is *vague*,
# *wrong* or *other* (unreadable). A text that cannot be read raises `InvalidSelfEdit`. It is not
# sampled again: its reward is 0, and it counts, since writing readably is part of the skill.
#
# **Claim 4.1.** Training text, directives and errors all come out of the text alone.

# %%
edit = task.parse(people[0], texts[0][0])
print(len(edit.documents), "documents; kinds of note:", edit.chose["notes"])
note, passage = texts[0][0].strip().split("\n")[0], people[0].text
assert tokenizer.decode(edit.documents[0].ids).strip() == note, "claim 4.1"
assert tokenizer.decode(edit.documents[-1].ids).strip() == passage, "claim 4.1"
careful = task.parse(people[0], "lr: 0.001\nepochs: 4\n" + texts[0][0])
print("with directives: lr", careful.lr, "epochs", careful.epochs)
assert (careful.lr, careful.epochs) == (0.001, 4) and careful.documents == edit.documents, (
    "claim 4.1"
)
refused = 0
for text in "lr: 1000000\n" + texts[0][0], " \n\n":
    try:
        task.parse(people[0], text)
    except minseal.InvalidSelfEdit as reason:
        refused += 1
        print("invalid:", reason)
assert refused == 2, "claim 4.1"

# %% [markdown]
# ## 3. One trial: learn the notes, sit the exam
# `minseal.try_out` does for each pair of context and text what tutorial 3 did by hand: parse, train
# a fresh adapter, exam without the passage, throw the adapter away. What came of it is a `Trial`.

# %%
pairs = [(person, text) for person, eight in zip(people, texts) for text in eight]
trials = minseal.try_out(model, task, pairs, seed=0)
print("eight self-edits of", people[0].id)
for trial in sorted(trials[:8], key=lambda t: -t.reward):
    print(f"  reward {trial.reward:.2f}  {trial.chose.get('notes')}")

# %% [markdown]
# ## 4. Is it skill or luck?
# Rewards differ. But an adapter starts from random weights, and four questions are a short exam. If
# we trained on the *same* notes again, from other weights, would the same notes be best? So each of
# the 12 x 8 self-edits is tried three times: `scores` is (contexts, self-edits, runs).
#
# *Reliability* is the share of the variance within a context that belongs to the self-edit rather
# than to the run. 1: run it once and you know. 0: pure luck.
#
# **Predict, then run.** Where between 0 and 1 will it be?

# %%
runs = [trials] + [minseal.try_out(model, task, pairs, seed=seed) for seed in (1, 2)]
scores = np.array(
    [[trial.reward for trial in run] for run in runs]
)  # (runs, contexts * self-edits)
scores = scores.reshape(3, 12, 8).transpose(1, 2, 0)  # (contexts, self-edits, runs)

of_edit = scores.mean(2)  # (contexts, self-edits)
noise = ((scores - of_edit[:, :, None]) ** 2).sum() / (12 * 8 * (3 - 1))  # variance between runs
spread = ((of_edit - of_edit.mean(1, keepdims=True)) ** 2).sum() / (12 * (8 - 1))
skill = spread - noise / 3  # the mean of three runs still holds a third of the noise
by_hand, (once, thrice) = skill / (skill + noise), reliability(scores)
print(f"variance between self-edits {skill:.3f}, between runs {noise:.3f}")
print(
    f"reliability of one run {once:.2f} (by hand {by_hand:.2f}), of the mean of three {thrice:.2f}"
)
assert abs(by_hand - once) < 1e-9, "claim 4.2"
assert once > 0.6, "claim 4.2"

# %% [markdown]
# **Claim 4.2.** The reward is reliable here: good notes are good notes, whichever weights the
# adapter starts from. Do not take this for granted: where it is not so, an outer loop learns noise.
# Measure it first. (All runs sat the same exam. Whether four questions are enough, this cannot
# see.)
#
# ## 5. What choosing the best is worth
# Take of each context the self-edit with the highest reward: *best of k*. The score it was chosen
# for flatters if there is luck in it, like the highest of eight dice. The honest number is its
# score in *other* runs.


# %%
def chosen_and_again(scores):
    """Mean score of the best self-edits in the run that chose them, and in the other runs."""
    here, elsewhere = [], []
    for run in range(scores.shape[2]):
        others = np.delete(scores, run, axis=2).mean(2)  # (contexts, self-edits)
        for row, other in zip(scores[:, :, run], others):
            here.append(row.max())
            elsewhere.append(other[row == row.max()].mean())  # ties count with their mean
    return np.mean(here), np.mean(elsewhere)


# The same rewards, but in every run dealt out anew among the eight self-edits of a context.
deal = np.random.default_rng(0)
lottery = np.stack([deal.permuted(scores[:, :, run], axis=1) for run in range(3)], axis=2)
results = {"rewards": chosen_and_again(scores), "lottery": chosen_and_again(lottery)}
print(f"mean of all self-edits {scores.mean():.2f}")
for name, (here, again) in results.items():
    print(f"{name}: best of 8 in the run that chose them {here:.2f}, in other runs {again:.2f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for ax, (title, table) in zip((left, right), {"rewards": scores, "lottery": lottery}.items()):
    for x, rows in enumerate(sorted(table.tolist(), key=np.mean)):
        rows = np.array(rows)  # (self-edits, runs)
        best = rows[:, 0].argmax()
        ax.plot([x] * 8, rows[:, 1:].mean(1), ".", color="silver")
        ax.plot(x, rows[best, 1:].mean(), "o", color="tab:blue")
    ax.set(title=title, xlabel="context", xticks=[])
left.set_ylabel("reward in runs 2 and 3")
left.plot([], [], "o", color="tab:blue", label="best of run 1")
left.legend(fontsize=8)
plt.show()
hand, theirs = results["rewards"], best_of_k(scores)
assert np.allclose(hand, [theirs["in sample"], theirs["held out"]]), "claim 4.3"
assert hand[1] > scores.mean() + 0.1, "claim 4.3"
assert results["lottery"][0] == hand[0] and results["lottery"][1] < scores.mean() + 0.08, (
    "claim 4.4"
)

# %% [markdown]
# **Claim 4.3.** The best of eight is worth much more than their mean, also when it is trained
# again. **Claim 4.4.** In the lottery, the number "in the run that chose" is just as high, and the
# truth is the mean. A paper that reports only the first cannot tell the two apart.
#
# ## 6. What good notes have in common
# Nobody told the model which notes are good. The toy world has a grammar that reads them, so we can
# look.

# %%
counts = np.array([[t.chose.get("notes", {}).get(kind, 0) for kind in KINDS] for t in trials])
helpful = counts[:, KINDS.index("implies")] + counts[:, KINDS.index("asks")]  # (96,)
for low, high in (0, 0), (1, 1), (2, 2), (3, 9):
    some = of_edit.ravel()[(helpful >= low) & (helpful <= high)]
    print(
        f"{low}{'+' if high > low else ' '} notes that say what follows: reward {some.mean():.2f}"
    )
correlation = np.corrcoef(helpful, of_edit.ravel())[0, 1]
assert correlation > 0.4, "claim 4.5"

# %% [markdown]
# **Claim 4.5.** The more notes state or ask what follows from the passage, the higher the reward.
# The reward found that out without a grammar. So a model that is trained on its *best* notes should
# write more of these: that is the outer loop, tutorial 5.
#
# ## Exercises
# 1. **Fill in** `expected_best`: the mean of the highest of k rewards drawn from a list, without
#    drawing.
# 2. **Change a setting and explain.** Write the notes at `temperature=0`. What is best of 8 worth
#    now?
# 3. **Find the mistake.** `open_reward` gives every self-edit nearly full marks. Why is that bad
#    news?


# %%
def expected_best(rewards, k):  # a list of n rewards -> mean of the highest of k of them
    ...  # yours


def check_1(f):
    for k in 1, 3, 8:
        draws = [max(deal.choice(of_edit[0], k, replace=False)) for _ in range(4000)]
        assert abs(f(of_edit[0].tolist(), k) - np.mean(draws)) < 0.02, k
    print("right")


def open_reward(student, task, contexts, adapters):
    return minseal.exam(student, task, contexts, adapters, in_context=True)


# %% [markdown]
# ## Answers


# %% jupyter={"source_hidden": true} tags=["answer"]
def expected_best_answer(rewards, k):
    # Sorted, the i-th (from 0) is the highest of k if the other k - 1 come from the i below it.
    from math import comb

    n = len(rewards)
    return sum(r * comb(i, k - 1) for i, r in enumerate(sorted(rewards))) / comb(n, k)


check_1(expected_best_answer)

# %% jupyter={"source_hidden": true} tags=["answer"]
# Greedy sampling writes the likeliest text, eight times the same: there is nothing to choose from,
# and what is likeliest is poor. An outer loop lives on differences: its policy has to try things.
greedy = sample(model, tokenizer, prompts, n=8, max_tokens=task.edit_tokens, temperature=0)
pairs_0 = [(person, text) for person, eight in zip(people, greedy) for text in eight]
rewards = np.reshape([t.reward for t in minseal.try_out(model, task, pairs_0)], (12, 8))
print(f"greedy: mean {rewards.mean():.2f}, best of 8 {rewards.max(1).mean():.2f}")
assert (rewards == rewards[:, :1]).all()

# %% jupyter={"source_hidden": true} tags=["answer"]
# The exam is taken with the book open: the answers stand in the passage, whatever was studied. All
# self-edits score alike, so nothing can be learnt from them. A reward must hide the context.
opened = [t.reward for t in minseal.try_out(model, task, pairs[:32], reward=open_reward)]
closed = [t.reward for t in trials[:32]]
for name, rewards in ("open", opened), ("closed", closed):
    print(f"{name} book: mean {np.mean(rewards):.2f}, standard deviation {np.std(rewards):.2f}")
assert np.mean(opened) > 0.9 and np.std(opened) < np.std(closed) / 2

# %% [markdown]
# Next: [tutorial 5](05_the_outer_loop.ipynb) teaches the model to write notes like its best ones.
