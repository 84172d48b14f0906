# %% [markdown]
# # 5. The outer loop
#
# - **You need** [tutorial 4](04_self_edits.ipynb).
# - **It takes** about 45 s of computing on one core, and an hour with the exercises.
# - **You will see** the student learn to take better notes: ReST-EM, in fifteen lines of your own,
#   then the library's; a control that shows what the choosing is worth; an interval made by hand.
# - **In the code:** [outer.py](../minseal/outer.py). In the paper: section 3.1, Algorithm 1 (and
#   ReST-EM, arXiv 2312.06585).

# %%
import copy
import inspect
from collections import Counter
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

import minseal
from minseal.lab.evidence import paired
from minseal.outer import MStepConfig
from minseal.sample import sample
from minseal.tasks.people import KINDS

torch.set_num_threads(1)  # matrices this small: a second thread only waits
model, tokenizer = minseal.load("tiny_data/knowledge")
task = minseal.People(tokenizer)
people = minseal.toy_passages(120, world_seed=0)
first, second, held_out = people[:32], people[32:64], people[64:]
inner = minseal.InnerConfig(lr=6e-3, epochs=4)  # as good here as the default, in half the time

# %% [markdown]
# ## 1. The E-step: try things
# For each context the *policy* (the model as a writer of notes) writes eight self-edits. Each is
# tried on the *student* (the same model as a reader of notes), as in tutorial 4. No gradient goes
# from the exam back to the notes: the reward is only a number.


# %%
def e_step(policy, people, seed):
    """[(person, eight texts, their rewards), ...]"""
    prompts = [task.prompt(person) for person in people]
    texts = sample(policy, tokenizer, prompts, n=8, max_tokens=task.edit_tokens, seed=seed)
    pairs = [(person, text) for person, eight in zip(people, texts) for text in eight]
    rewards = [trial.reward for trial in minseal.try_out(policy, task, pairs, inner)]
    return list(zip(people, texts, np.reshape(rewards, (-1, 8))))


tried = e_step(model, first, seed=0)
for person, _, rewards in tried[:6]:
    print(f"{person.id:16}" + "  ".join(f"{reward:.2f}" for reward in rewards))
rewards = np.array([rewards for _, _, rewards in tried])  # (contexts, self-edits)
print(f"mean {rewards.mean():.2f}, best of each context {rewards.max(1).mean():.2f}")

# %% [markdown]
# ## 2. The M-step: imitate the best
# Take of each context the best self-edit, and train the policy to write it when it sees that
# passage. This is the inner loop once more: a document is now the prompt and then the winning
# notes, and only the notes carry loss, for nobody needs to learn to write passages. The adapter is
# merged for good.
#
# **Claim 5.1.** Of a lesson exactly the winner's text (and its end) carries loss.


# %%
def m_step(policy, tried, choose):
    """Fine-tune the policy, for good, on one self-edit of each context."""
    lessons = []
    for person, texts, rewards in tried:
        winner = choose(rewards)
        if winner is not None:
            lessons.append(task.lesson(person, texts[winner]))
    with minseal.adapt(policy, [minseal.SelfEdit(tuple(lessons))], MStepConfig()) as adapters:
        adapters.merge()


def best(rewards):
    return None if min(rewards) == max(rewards) else rewards.argmax()  # all alike: nothing to learn


person, texts, rewards = tried[0]
lesson = task.lesson(person, texts[best(rewards)])
learnt = [i for i, weight in zip(lesson.ids, lesson.weights) if weight]
print("what is learnt:", tokenizer.decode(learnt).strip(), sep="\n")
assert learnt == [*tokenizer.encode(texts[best(rewards)]), tokenizer.eot], "claim 5.1"

# %% [markdown]
# That is ReST-EM: E-step, M-step, again with new people. The library's M-step is the class
# `ReSTEM`; its `choose` does what our `best` does, with ties broken at random.
#
# **Claim 5.2.** `ReSTEM` learns, of each context, from a self-edit with the highest reward, and
# from none where all score alike.

# %%
print(inspect.getsource(minseal.ReSTEM.choose))
for number, (person, texts, rewards) in enumerate(tried):
    trials = [minseal.Trial(person.id, reward, text) for text, reward in zip(texts, rewards)]
    chosen = minseal.ReSTEM("best").choose(trials, np.random.default_rng(number))
    expected = [] if best(rewards) is None else [rewards.max()]
    assert [trial.reward for trial in chosen] == expected, "claim 5.2"

# %% [markdown]
# ## 3. Two rounds, and a control
# A student who improves after practice may have improved *by practice*, not by our clever choice of
# what to practise. So a second policy gets everything alike: people, E-step, number of steps,
# learning rate. But its winner is drawn at random. That is the **control**. Round 1 is our code,
# round 2 is `minseal.outer_loop`, to which an M-step is an argument.
#
# **Predict, then run.** The control trains on its own text, too. Will its notes get better, stay as
# they are, or get worse?

# %%
dice = np.random.default_rng(0)
config = minseal.OuterConfig(rounds=1, contexts=32, samples=8)
policies = {"own notes": model}
any_one = lambda rewards: dice.integers(8)
for name, choose, select in ("SEAL", best, "best"), ("control", any_one, "random"):
    policies[name] = policy = copy.deepcopy(model)
    m_step(policy, tried, choose)
    step = minseal.ReSTEM(select)
    (round_2,) = minseal.outer_loop(policy, task, second, config, inner, improve=step, seed=1)
    means = [np.mean([r for *_, r in tried]), np.mean([t.reward for _, ts in round_2 for t in ts])]
    print(f"{name:8} mean reward of round 1 {means[0]:.2f}, of round 2 {means[1]:.2f}")

# %% [markdown]
# ## 4. The exam that counts
# Those were people whom the policies practised on. Here are 56 others, with one self-edit each.

# %%
scores, mix = {}, {}
for name, policy in policies.items():
    prompts = [task.prompt(person) for person in held_out]
    texts = sample(policy, tokenizer, prompts, 1, task.edit_tokens, seed=2)
    trials = minseal.try_out(
        policy, task, [(p, text) for p, (text,) in zip(held_out, texts)], inner
    )
    scores[name] = np.array([trial.reward for trial in trials])  # (contexts,)
    kinds = sum((Counter(trial.chose.get("notes")) for trial in trials), Counter())
    mix[name] = np.array([kinds[kind] / kinds.total() for kind in KINDS])
    print(f"{name:10} {scores[name].mean():.2f}")

figure, ax = plt.subplots(figsize=(7, 2.2), layout="constrained")
table = np.array(list(mix.values()))  # (arms, kinds)
for i, kind in enumerate(KINDS):
    ax.barh(list(mix), table[:, i], left=table[:, :i].sum(1), label=kind)
ax.invert_yaxis()
ax.set(xlabel="share of the notes", xlim=(0, 1))
ax.legend(ncols=6, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
plt.show()
helpful = table[:, KINDS.index("implies")] + table[:, KINDS.index("asks")]  # (arms,)
assert scores["SEAL"].mean() > scores["own notes"].mean() + 0.05, "claim 5.3"
assert scores["SEAL"].mean() > scores["control"].mean() + 0.05, "claim 5.4"
assert helpful[1] > helpful[0] + 0.05, "claim 5.5"  # notes that say what follows

# %% [markdown]
# **Claim 5.3.** After two rounds the notes are worth more, on people whom the policy never saw.
# **Claim 5.4.** Practice alone does not do it: the control is behind. With 32 lessons a round it
# may drift either way. In the full run it ends between .28 and .38, from own notes at .31 to .34,
# while SEAL reaches .76 to .82. **Claim 5.5.** Nobody explained what a good note is. The policy
# writes more of those that say what follows, since these were rewarded.
# ## 5. An interval by hand
# Fifty-six people are few. Would others say the same? Both policies sat the *same* exams, so look
# at the difference person by person, and draw 56 people out of the 56, with repeats, ten
# thousand times. Where the middle 95 % of the means lie is the interval.
#
# **Predict, then run.** Suppose you forget that the exams are the same, and resample the two arms
# apart. Will the interval be wider or narrower?

# %%
difference = scores["SEAL"] - scores["control"]  # (contexts,)
picks = np.random.default_rng(0).integers(56, size=(10_000, 56))
means = difference[picks].mean(1)  # (10000,)
low, high = np.percentile(means, [2.5, 97.5])
others = np.random.default_rng(1).integers(56, size=(10_000, 56))
apart = scores["SEAL"][picks].mean(1) - scores["control"][others].mean(1)  # (10000,)
print(f"SEAL minus control {difference.mean():+.2f}, 95 % {low:+.2f} to {high:+.2f}")
print("resampled apart, {:+.2f} to {:+.2f}".format(*np.percentile(apart, [2.5, 97.5])))
assert np.allclose(paired(scores["SEAL"], scores["control"])[1], (low, high)), "claim 5.6"
assert low > 0, "claim 5.6"

# %% [markdown]
# **Claim 5.6.** The interval does not reach 0: the choosing is what helped. Apart it is wider, for
# the people then differ, too; how much wider depends on how alike both arms find a person hard.
# ## 6. Reading the ladder of a full run
# `minseal run knowledge` does this with three rounds of 64 people x 8 self-edits and 96 held out.
# Its table is in the [README](../README.md) and its columns in [results.md](results.md):
#
# ![Exam score by round, SEAL and the control](images/rounds.png)
#
# Read it from below: *passage only* is what training without notes gives, *own notes* what notes
# give before any outer loop. Is each round above the one before (gain, interval)? Is the last round
# above the last *control*? How far is it to *oracle notes*, which no policy wrote?
#
# ## Exercises
# 1. **Fill in** `advantages`: each reward minus the mean of its context, divided by its standard
#    deviation; 0 where all are alike. (GRPO weighs its lessons so, where ReST-EM picks one.)
# 2. **Change a setting and explain.** One round with `samples=1`. What does the policy learn?
# 3. **Find the mistake.** `wrong_winners` takes the 32 best of all 256 self-edits. What is lost?


# %%
def advantages(rewards):  # (contexts, self-edits) -> the same shape
    ...  # yours


def check_1(f):
    rows = np.array([rewards for _, _, rewards in tried])
    for found, row in zip(f(rows), rows):
        assert np.allclose(found, (row - row.mean()) / (row.std() or 1)), row
    print("right")


def wrong_winners(tried):
    every = [(reward, person.id) for person, _, rewards in tried for reward in rewards]
    return [person for _, person in sorted(every)[-32:]]


# %% [markdown]
# ## Answers


# %% jupyter={"source_hidden": true} tags=["answer"]
def advantages_answer(rewards):
    centred = rewards - rewards.mean(1, keepdims=True)  # (contexts, self-edits)
    spread = rewards.std(1, keepdims=True)  # (contexts, 1)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)


check_1(advantages_answer)

# %% jupyter={"source_hidden": true} tags=["answer"]
# Nothing. With one self-edit a context all of its rewards are alike, so there is no winner, and the
# M-step leaves the policy as it is. The outer loop learns from comparison.
alone = copy.deepcopy(model)
minseal.outer_loop(alone, task, first[:4], replace(config, contexts=4, samples=1))
assert all(torch.equal(p, q) for p, q in zip(alone.parameters(), model.parameters()))
print("unchanged")

# %% jupyter={"source_hidden": true} tags=["answer"]
# The reward depends on the person as well as on the notes: some names are easier. Picked over all
# contexts, winners come from the easy ones, and from the others nothing is learnt.
right_winners = [person.id for person, _, rewards in tried if best(rewards) is not None]
print(f"people learnt from: {len(set(wrong_winners(tried)))}, not {len(set(right_winners))}")
assert len(set(wrong_winners(tried))) < len(set(right_winners)) - 2

# %% [markdown]
# Next: [tutorial 6](06_learning_how_to_learn.ipynb), where a self-edit says *how* to train. Or
# change this one: a reward is a function (rewards.py), an M-step another (outer.py).
