# %% [markdown]
# # 8. Beyond the paper
# - **You need** tutorials [3](03_the_inner_loop.ipynb) to [5](05_the_outer_loop.ipynb).
# - **It takes** about 90 s of computing on one core, and an hour of yours.
# - **You will see** a student who keeps what she learns and forgets what she knew; one who marks
#   her own work, and one who is sure and wrong; and a teacher who learns to write for a student.
# - **In the code:** [forgetting.py](../minseal/lab/forgetting.py),
#   [proxies.py](../minseal/lab/proxies.py), [outer.py](../minseal/outer.py) (`student`). In the
#   paper: section 5, limits and what is left open, and section 3.1 on a separate teacher.

# %%
import copy
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

import minseal
from minseal.lab.evidence import paired, rank_correlation
from minseal.lab.forgetting import Before
from minseal.lab.proxies import certainty, own_exam
from minseal.sample import sample
from minseal.tasks.knowledge import Note, find_question
from minseal.tasks.people import write_implications

torch.set_num_threads(1)  # matrices this small: a second thread only waits
SEED = 0
model, tokenizer = minseal.load("tiny_data/knowledge")
first = {name: w.clone() for name, w in model.state_dict().items()}
task = minseal.People(tokenizer)
people = minseal.toy_passages(120, world_seed=8)
keep, inner = minseal.InnerConfig(), minseal.InnerConfig(lr=6e-3, epochs=4)  # as in tutorial 5
scores = lambda trials: np.array([t.reward for t in trials])
marks = lambda trials: np.array([np.mean(t.grades or [0]) for t in trials])  # the true exam


def write(policy, some, n=1, task=task):
    """n self-edits of each: a list of lists of texts."""
    prompts = [task.prompt(person) for person in some]
    return sample(policy, tokenizer, prompts, n, task.edit_tokens, seed=SEED)


# %% [markdown]
# ## 1. To learn for good
# In the tutorials before, an adapter was thrown away after its exam. A student who keeps what she
# learns merges it, and goes on with the next passage. Six people, one after another, with the
# exam's own questions and answers as notes. After each lesson she is asked about all six, and about
# what pretraining taught ("Which country is Lyon in?").
#
# **Predict, then run.** Asked at the end: how much is left of the first five people? And of general
# knowledge? What changes if the notes on earlier people are in every lesson again (*replay*)?

# %%
six, before = people[:6], Before(model, task)
matrices, general = {}, {"before": before.general_knowledge()}


def lesson_of(person, earlier=()):
    """The exam's questions with their answers, the passage, and what is replayed."""
    own = (*task.right_answers(person), *task.baseline(person).documents)
    return minseal.SelfEdit((*own, *earlier))


for way in ("one after another", "replay"):
    model.load_state_dict(first)
    earlier, rows = (), []
    for person in six:
        lesson = lesson_of(person, earlier)
        with minseal.adapt(model, [lesson], keep, SEED) as adapters:
            adapters.merge()
        earlier = lesson.documents if way == "replay" else ()
        rows.append([outcome.reward for outcome in minseal.exam(model, task, six)])
    matrices[way], general[way] = np.array(rows), before.general_knowledge()  # (6, 6)
model.load_state_dict(first)

figure, row = plt.subplots(1, 2, figsize=(7, 2.6), dpi=100, layout="constrained")
for axes, (way, matrix) in zip(row, matrices.items()):
    axes.imshow(np.where(np.tri(6), matrix, np.nan), vmin=0, vmax=1, cmap="Greens")
    axes.set(title=way, xlabel="asked about person", ylabel="after lesson")
    axes.set(xticks=range(6), xticklabels=range(1, 7), yticks=range(6), yticklabels=range(1, 7))
plt.show()
kept = {way: matrix[-1, :-1].mean() for way, matrix in matrices.items()}
new = {way: np.diag(matrix).mean() for way, matrix in matrices.items()}
for way in matrices:
    told = f"just learnt {new[way]:.2f}, the first five at the end {kept[way]:.2f}"
    print(f"{way:18} {told}; general knowledge {general['before']:.2f} -> {general[way]:.2f}")
sequential, replay = matrices
assert min(new.values()) > 0.9 and kept[sequential] < 0.45, "claim 8.1"
assert kept[replay] > 0.9 and general[sequential] < general[replay] < 0.95, "claim 8.2"

# %% [markdown]
# **Claim 8.1.** Each lesson is learnt at once, and the next ones overwrite it. **Claim 8.2.**
# Replay keeps the people. What no lesson repeats still suffers: general knowledge falls, if less.
# `minseal run continual` compares seven ways; `minseal chat --agent` lives with one of them.
#
# ## 2. To mark one's own work
# The reward so far needs an answer key. What if nobody has one? Two rewards that do without:
#
# - *certainty*: how probable the student finds the answers that she gives, the passage hidden;
# - *own exam*: as she reads, she asks herself questions (the prompt ends with `Question:`) and
#   answers them, the passage in view. Later, without it, she is marked by these answers.

# %%
some, asking, exams = people[6:22], minseal.People(tokenizer, "questions"), {}
for person, (text,) in zip(some, write(model, some, task=asking)):
    asked = [find_question(line) for line in f"Question:{text}".split("\n")]
    exams[person.id] = tuple((q.question, (q.answer,)) for q in asked if q)
print(some[0].text, *(f"  {question} {own}" for question, (own,) in exams[some[0].id]), sep="\n")

# %% [markdown]
# **Predict, then run.** Of each person eight self-edits are tried. Which of the two rewards puts
# them in the order of the true exam? And how sure is a student of notes on somebody else's life?

# %%
pairs = [(person, text) for person, eight in zip(some, write(model, some, 8)) for text in eight]
ranks = {}
for name, reward in {"certainty": certainty, "own exam": own_exam(exams)}.items():
    trials = minseal.try_out(model, task, pairs, inner, reward, SEED)
    proxy, truth = scores(trials).reshape(16, 8), marks(trials).reshape(16, 8)
    different = [i for i in range(16) if np.ptp(truth[i]) and np.ptp(proxy[i])]
    ranks[name] = np.mean([rank_correlation(proxy[i], truth[i]) for i in different])
    best = truth[np.arange(16), proxy.argmax(1)].mean()
    print(f"{name:9}: rank correlation with the true exam {ranks[name]:+.2f};", end=" ")
    print(f"of the one it likes best {best:.2f} is right, of all {truth.mean():.2f}")
assert ranks["own exam"] > 0.8 and 0 < ranks["certainty"] < ranks["own exam"] - 0.2, "claim 8.3"

sure = {}
for name, lives in {"true": some, "false": [*some[1:], some[0]]}.items():  # or somebody else's life
    people_told = [replace(p.person, values=q.person.values) for p, q in zip(some, lives)]
    told = [write_implications(person, np.random.default_rng(SEED)) for person in people_told]
    # Without the passage, which would contradict what is false.
    edits = [task.edit(p, [Note(line) for line in lines]) for p, lines in zip(some, told)]
    edits = [minseal.SelfEdit(edit.documents[:-1]) for edit in edits]
    trials = minseal.try_out(model, task, list(zip(some, edits)), inner, certainty, SEED)
    sure[name] = scores(trials).mean()
    print(f"{name:5} notes: certainty {sure[name]:.2f}, right {marks(trials).mean():.2f}")
assert marks(trials).mean() < 0.3 and sure["false"] > sure["true"] - 0.15, "claim 8.4"

# %% [markdown]
# **Claim 8.3.** Her own exam is nearly as good as the answer key: she reads well, and pretraining
# taught her what is asked. Certainty knows something, too. **Claim 8.4.** But it is not truth: she
# is nearly as sure of what is false (a little of which is true by chance). `minseal run confidence`
# teaches by these rewards, ten rounds long, and shows where they fail.
#
# By the way: her questions with their answers would make excellent notes, and no outer loop was
# needed for them, only another prompt. So `minseal run knowledge` measures other prompts,
# untrained, beside the taught policy. In this toy world the best one wins: see
# [README](../README.md).
#
# ## 3. Teacher and student
# In SEAL the writer of the notes is their reader. Section 3.1 says that it need not be so: a
# *teacher* writes, a *student* trains and sits the exam, and its marks are the teacher's reward.
# The student here has less than half the teacher's weights.
#
# **Predict, then run.** Before any outer loop: does it matter who writes, or who learns? After two
# rounds: is the teacher of use to its student alone, or also to one who took no part?

# %%
small, _ = minseal.load("tiny_data/knowledge-small")
students, (held_out, training) = {"small": small, "big": model}, (people[22:62], people[62:102])
teacher, unmoved = copy.deepcopy(model), [w.clone() for w in small.parameters()]
config = minseal.OuterConfig(rounds=2, contexts=20, samples=8)
minseal.outer_loop(teacher, task, training, config, inner, student=small, seed=SEED)
assert all(torch.equal(a, b) for a, b in zip(small.parameters(), unmoved))

learnt = {}
for writer, policy in {**students, "big, taught": teacher}.items():
    pairs = [(person, text) for person, (text,) in zip(held_out, write(policy, held_out))]
    for reader, student in students.items():
        trials = minseal.try_out(student, task, pairs, inner, seed=SEED)
        learnt[writer, reader] = scores(trials)  # (contexts,)
means = np.array([each.mean() for each in learnt.values()]).reshape(3, 2)  # writers x readers
figure, axes = plt.subplots(figsize=(4, 2.2), dpi=100, layout="constrained")
axes.imshow(means, vmin=0, vmax=1, cmap="Greens", aspect="auto")
for (i, j), mean in np.ndenumerate(means):
    axes.text(j, i, f"{mean:.2f}", ha="center", va="center")
axes.set(xticks=range(2), xticklabels=students, xlabel="learns")
axes.set(yticks=range(3), yticklabels=[*students, "big, taught"], ylabel="writes")
plt.show()
for reader, claim in (("small", "claim 8.5"), ("big", "claim 8.6")):
    gain, (low, high) = paired(learnt["big, taught", reader], learnt["big", reader])
    print(f"what the teacher gained, {reader:5} learns: {gain:+.2f} [{low:+.2f}, {high:+.2f}]")
    assert low > 0, claim

# %% [markdown]
# **Claim 8.5.** The teacher learns from the marks of a student that it cannot look into. **Claim
# 8.6.** What it learns serves another student, too: good notes are good notes, here. Before it, no
# writer was clearly better. `minseal run teacher` also asks whether being taught is better than
# teaching oneself, and what a student can do to learn better.
#
# ## Exercises
# 1. **Fill in** `agreement`: a third reward without a key. A question is asked several times; the
#    reward is the share of the commonest answer.
# 2. **Change a setting and explain.** Section 1 in sequence, with a twentieth of the learning rate.
#    Does it forget less? (Look at *just learnt*, too.)
# 3. **Find the mistake.** With `marked` as a reward nearly every mark is the highest. Fine?


# %%
def agreement(answers):  # ["farm", "farm", "mine"] -> 2/3
    ...  # yours


def check_1(f):
    assert f(["farm", "farm", "mine"]) == 2 / 3 and f(["a"]) == 1 and f(["a", "b"]) == 0.5
    print("right")


marked = lambda some: minseal.exam(model, task, some, in_context=True)

# %% [markdown]
# ## Answers


# %% jupyter={"source_hidden": true} tags=["answer"]
# One who always answers the same is rewarded, right or wrong: agreement is not truth either.
agreement_answer = lambda answers: max(map(answers.count, answers)) / len(answers)

check_1(agreement_answer)

# %% jupyter={"source_hidden": true} tags=["answer"]
# It forgets less because it learns less. Compare ways where the new is learnt equally well.
slow, matrix = replace(keep, lr=keep.lr / 20), []
for person in six:
    with minseal.adapt(model, [lesson_of(person)], slow, SEED) as adapters:
        adapters.merge()
    matrix.append([outcome.reward for outcome in minseal.exam(model, task, six)])
print(f"just learnt {np.diag(matrix).mean():.2f}, general {before.general_knowledge():.2f}")
assert np.diag(matrix).mean() < 0.8 and before.general_knowledge() > general[sequential] + 0.2
model.load_state_dict(first)

# %% jupyter={"source_hidden": true} tags=["answer"]
# The passage is in view, so it marks reading, which no self-edit changes. The best of a context is
# chosen by comparing its self-edits, and all have the same mark.
in_view = scores(marked(held_out))
assert in_view.mean() > 0.95
print(f"passage in view, nothing learnt: {in_view.mean():.2f}")

# %% [markdown]
# That was the last sitting. What was measured, with intervals over seeds: [results](results.md).
