# %% [markdown]
# # 5. The outer loop
#
# - **You need** [tutorial 4](04_self_edits.ipynb).
# - **It takes** about 45 s of computing on one core, and an hour with the exercises.
# - **You will see** the student learn to take better notes: ReST-EM in fifteen lines of your own,
#   and the library's. What is the choosing worth? A control and an interval by hand tell.
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
people = minseal.toy_passages(96, world_seed=0)
first, second, held_out = people[:24], people[24:48], people[48:]
inner = minseal.InnerConfig(lr=6e-3, epochs=4)  # as good here as the default, in half the time

# %% [markdown]
# ## 1. The E-step: try things
# For each context the *policy* (the model as a writer of notes) writes eight self-edits. Each is
# tried on the *student* (the same model as a reader of notes), as in tutorial 4. The *reward* is
# the share of the exam that is answered right. No gradient leads from it to the notes: these are
# words that were drawn, and so are the answers. A reward can only say which notes were better.


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
round_1 = np.array([rewards for _, _, rewards in tried])  # (contexts, self-edits)
print(f"mean {round_1.mean():.2f}, best of each context {round_1.max(1).mean():.2f}")

# %% [markdown]
# ## 2. The M-step: imitate the best
# Take each context's best self-edit, and train the policy to write it when it sees the passage.
# This is the inner loop again, on the prompt and the winning notes, of which only the notes carry
# loss: nobody needs to learn to write passages. (Settings: print `MStepConfig()`.) It is merged.
#
# **Claim 5.1.** Of a lesson exactly the winner's text (and its end) carries loss.


# %%
def m_step(policy, tried, choose):
    """Fine-tune the policy, for good, on one self-edit of each context."""
    winners = [(person, texts, choose(rewards)) for person, texts, rewards in tried]
    lessons = [task.lesson(person, texts[i]) for person, texts, i in winners if i is not None]
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
# A winner may hold useless lines, and be lucky: all of it is learnt. That is ReST-EM: E-step,
# M-step, and again with new people. The library's M-step is the class `ReSTEM`; its `choose` does
# what our `best` does, with ties broken at random.
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
# Who improves after practice may have improved *by practice*, and not by our clever choice of what
# to practise. So a second policy gets the same people, as many self-edits, as many steps and the
# same learning rate, but its winner is drawn at random. That is the **control**. Round 1 is our
# code, round 2 is `minseal.outer_loop`, to which an M-step is an argument.
#
# **Predict, then run.** The control trains on its own text, too. Will its notes get better, stay as
# they are, or get worse?

# %%
dice = np.random.default_rng(0)
config = minseal.OuterConfig(rounds=1, contexts=24, samples=8)
policies = {"own notes": model}
any_one = lambda rewards: dice.integers(8)
for name, choose, select in ("SEAL", best, "best"), ("control", any_one, "random"):
    policies[name] = policy = copy.deepcopy(model)
    m_step(policy, tried, choose)
    step = minseal.ReSTEM(select)
    (round_2,) = minseal.outer_loop(policy, task, second, config, inner, improve=step, seed=1)
    mean = np.mean([trial.reward for _, trials in round_2 for trial in trials])
    print(f"{name:8} mean reward of round 1 {round_1.mean():.2f}, of round 2 {mean:.2f}")

# %% [markdown]
# ## 4. The exam that counts
# Those were people whom the policies practised on. Here are 48 others, with one self-edit each. And
# who got better, the writer or the reader? The last row: SEAL's notes, read by the *first* student.

# %%
scores, mix = {}, {}
for name, policy in policies.items():
    prompts = [task.prompt(person) for person in held_out]
    texts = sample(policy, tokenizer, prompts, 1, task.edit_tokens, seed=2)
    pairs = [(person, text) for person, (text,) in zip(held_out, texts)]
    trials = minseal.try_out(policy, task, pairs, inner)
    scores[name] = np.array([trial.reward for trial in trials])  # (contexts,)
    if name == "SEAL":
        crossed = [trial.reward for trial in minseal.try_out(model, task, pairs, inner)]
    kinds = sum((Counter(trial.chose.get("notes")) for trial in trials), Counter())
    mix[name] = np.array([kinds[kind] / kinds.total() for kind in KINDS])
    print(f"{name:10} {scores[name].mean():.2f}")
print(f"crossed    {np.mean(crossed):.2f}")
figure, ax = plt.subplots(figsize=(7, 2.2), layout="constrained")
table = np.array(list(mix.values()))  # (arms, kinds)
for i, kind in enumerate(KINDS):
    ax.barh(list(mix), table[:, i], left=table[:, :i].sum(1), label=kind)
ax.invert_yaxis()
ax.set(xlabel="share of the notes", xlim=(0, 1))
ax.legend(ncols=6, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
plt.show()
helpful = table[:, KINDS.index("implies")] + table[:, KINDS.index("asks")]  # (arms,)
own, seal, control = (values.mean() for values in scores.values())
assert min(seal, np.mean(crossed)) > own + 0.05, "claim 5.3"
assert seal > control + 0.05, "claim 5.4"
assert helpful[1] > helpful[0] + 0.05, "claim 5.5"  # notes that say what follows

# %% [markdown]
# **Claim 5.3.** After two rounds the notes are worth more, to any reader, on people never seen.
# **Claim 5.4.** Practice alone does not do it: the control is behind. With few lessons a round it
# may drift either way, also in its kinds of note. In the full run it ends at .28 to .38, from own
# notes at .31 to .34, while SEAL reaches .76 to .82. **Claim 5.5.** Nobody explained what a good
# note is, and the policy writes more of those that say what follows.
# ## 5. An interval by hand
# Forty-eight people are few. Would others say the same? Both policies sat the *same* exams, so look
# at the difference person by person, and draw 48 people out of the 48, with repeats, ten thousand
# times. Where the middle 95 % of the means lie is the interval.
#
# **Predict, then run.** Does it reach 0? And if we forget that the exams are the same, and resample
# the two arms apart: will the interval be wider?

# %%
difference = scores["SEAL"] - scores["control"]  # (contexts,)
picks = np.random.default_rng(0).integers(48, size=(10_000, 48))
means = difference[picks].mean(1)  # (10000,)
low, high = np.percentile(means, [2.5, 97.5])
others = np.random.default_rng(1).integers(48, size=(10_000, 48))
apart = scores["SEAL"][picks].mean(1) - scores["control"][others].mean(1)  # (10000,)
print(f"SEAL minus control {difference.mean():+.2f}, 95 % {low:+.2f} to {high:+.2f}")
print("resampled apart, {:+.2f} to {:+.2f};".format(*np.percentile(apart, [2.5, 97.5])), end=" ")
print(f"correlation of the arms {np.corrcoef(scores['SEAL'], scores['control'])[0, 1]:+.2f}")
assert np.allclose(paired(scores["SEAL"], scores["control"])[1], (low, high)), "claim 5.6"
assert low > 0, "claim 5.6"

# %% [markdown]
# **Claim 5.6.** The interval does not reach 0: on other people the choosing would have helped as
# well. It says nothing about other *runs*: for these, train again (three seeds in the full table).
# Pairing narrows it as far as both arms find the same people hard, which the correlation tells.
# ## 6. Reading the ladder of a full run
# `minseal run knowledge` does this with three rounds of 64 people x 8 self-edits and 96 held out.
# Its table is in the [README](../README.md) and its columns in [results.md](results.md):
#
# ![Exam score by round, SEAL and the control](images/rounds.png)
#
# Read it from below: *passage only*, then *own notes* before any outer loop. Is each round above
# the one before (gain, interval)? The last above the last *control*? How far to *oracle notes*?
# ## Exercises
# 1. **Fill in** `advantages`: each reward minus the mean of its context, divided by its standard
#    deviation; 0 where all are alike. (GRPO weighs its lessons so, where ReST-EM picks one.)
# 2. **Change a setting and explain.** One round with `samples=1`. What does the policy learn?
# 3. **Find the mistake.** `wrong_gain` of the same policy, twice, is large. Why?


# %%
def advantages(rewards):  # (contexts, self-edits) -> the same shape
    ...  # yours


def check_1(f):
    for found, row in zip(f(round_1), round_1):
        assert np.allclose(found, (row - row.mean()) / (row.std() or 1)), row
    print("right")


def wrong_gain(before, after):  # rewards of two policies, each (contexts, self-edits)
    return after.max(1).mean() - before.mean()


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
# The best of eight is compared with the mean of eight: that is choosing, not learning, and needs
# the answer key at the exam. Both sides need the same number of tries.
right_gain = lambda before, after: after.mean() - before.mean()
wrong, right = (gain(round_1, round_1) for gain in (wrong_gain, right_gain))
print(f"the same policy: {wrong:+.2f}, mended {right:+.2f}")
assert wrong > 0.15 and right == 0

# %% [markdown]
# Next: [tutorial 6](06_learning_how_to_learn.ipynb), where a self-edit says *how* to train. Or
# change this one: a reward is a function (rewards.py), an M-step another (outer.py).
