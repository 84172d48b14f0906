"""Six outer loops, as found: each has one mistake (problems 4.6 to 4.8). Leave this file as it is.

All are meant to do the same (handout, part B), each as somebody else would write it:

loop(logits, rewards, invalid, unseen, n, dice, ties, lr, steps) -> (history, scores)
"""

import math

import numpy as np


def softmax(logits):
    """The probabilities of these logits, an array (N,)."""
    powers = np.exp(np.asarray(logits, float) - np.max(logits))
    return powers / powers.sum()


def loop_1(logits, rewards, invalid, unseen, n, dice, ties, lr, steps):
    z, history, scores = np.array(logits, float), [], []
    for r in range(len(dice)):
        ends, winners = np.cumsum(softmax(z))[:-1], []
        for i in range(n):
            c = (r + i) % len(rewards)
            wrote = [int((ends <= die).sum()) for die in dice[r][i]]
            best = [o for o in wrote if not invalid[c][o]]
            best = [o for o in best if rewards[c][o] == max(rewards[c][b] for b in best)]
            if len({rewards[c][o] for o in wrote}) > 1:
                winners.append(best[int(ties[r][i] * len(best))])
        for _ in range(steps if winners else 0):
            z = z + lr * (np.bincount(winners, minlength=len(z)) / len(winners) - softmax(z))
        history.append(z.tolist())
        scores.append(float(np.mean(np.array(unseen) @ softmax(z))))
    return history, scores


def loop_2(logits, rewards, invalid, unseen, n, dice, ties, lr, steps):
    policy, history, number = np.array(logits, float), [], 0  # number: contexts so far
    for throws, lots in zip(dice, ties):
        cumulative, targets = np.cumsum(softmax(policy)), []
        for throw, lot in zip(throws, lots):
            context, number = number % len(rewards), number + 1
            edits = np.searchsorted(cumulative[:-1], throw, side="right")
            reward = np.where(np.array(invalid[context]), 0.0, rewards[context])[edits]
            if reward.min() < reward.max():
                (best,) = np.nonzero(reward == reward.max())
                targets.append(np.eye(len(policy))[edits[best[int(lot * len(best))]]])
        for _ in range(steps if targets else 0):
            policy = policy + lr * np.mean(targets - softmax(policy), axis=0)
        history.append(policy)
    scores = [float(softmax(policy) @ np.mean(unseen, axis=0)) for policy in history]
    return [policy.tolist() for policy in history], scores


def loop_3(logits, rewards, invalid, unseen, n, dice, ties, lr, steps):
    z, history, scores = np.array(logits, float), [], []
    p, worth, bad = softmax(z), np.array(rewards, float), np.array(invalid, bool)
    for r, throws in enumerate(dice):
        counts = np.zeros(len(z))
        for i, c in enumerate(np.arange(r * n, r * n + n) % len(worth)):
            drawn = (np.cumsum(p)[:-1, None] <= np.array(throws[i])).sum(0)  # (k,)
            if np.ptp(worth[c, drawn]) > 0:
                drawn = drawn[~bad[c, drawn]]
                drawn = drawn[worth[c, drawn] == worth[c, drawn].max()]
                counts[drawn[int(ties[r][i] * len(drawn))]] += 1
        for _ in range(steps if counts.any() else 0):
            p = softmax(z)
            z = z + lr * (counts / counts.sum() - p)
        history.append(z.tolist())
        scores.append(float((np.array(unseen) * softmax(z)).sum(1).mean()))
    return history, scores


def loop_4(logits, rewards, invalid, unseen, n, dice, ties, lr, steps):
    z, history, scores, options = list(logits), [], [], range(len(logits))
    for r in range(len(dice)):
        p, winners = softmax(z), []
        for i in range(n):
            c, edits = (r * n + i) % len(rewards), []
            for die in dice[r][i]:
                edits.append(next((o for o in options if die < sum(p[: o + 1])), options[-1]))
            marks = [-math.inf if invalid[c][o] else rewards[c][o] for o in edits]
            best = [o for o, mark in zip(edits, marks) if mark == max(marks)]
            if any(rewards[c][o] != rewards[c][edits[0]] for o in edits):
                winners += [best[math.floor(ties[r][i] * len(best))]]
        for _ in range(steps):
            p = softmax(z)
            z = [z[o] + lr * sum((o == w) - p[o] for w in winners) / n for o in options]
        history.append([float(logit) for logit in z])
        scores.append(float(sum(p_o * u for row in unseen for p_o, u in zip(softmax(z), row))))
    return history, [score / len(unseen) for score in scores]


def loop_5(logits, rewards, invalid, unseen, n, dice, ties, lr, steps):
    z, history, scores = np.array(logits, float), [], []
    order = [i % len(rewards) for i in range(n * len(dice))]
    for throws, lots in zip(dice, ties):
        winners, (contexts, order) = [], (order[:n], order[n:])
        for c, throw, lot in zip(contexts, throws, lots):
            edits = np.digitize(throw, np.cumsum(softmax(z))[:-1])
            tried = sorted(((rewards[c][o], -j, o) for j, o in enumerate(edits)), reverse=True)
            if tried[0][0] > tried[-1][0]:
                tried = [t for t in tried if not invalid[c][t[2]]]
                tried = [t for t in tried if t[0] == tried[0][0]]
                winners.append(tried[int(lot * len(tried))][2])
        for _ in range(steps * bool(winners)):
            z += lr * (np.eye(len(z))[winners].mean(0) - softmax(z))
        history.append(z)
        scores.append(np.mean([softmax(z) @ row for row in unseen]).item())
    return [policy.tolist() for policy in history], scores


def loop_6(logits, rewards, invalid, unseen, n, dice, ties, lr, steps):
    history, scores, c = [list(logits)], [], -1
    for throws, lots in zip(dice, ties):
        z, lessons = np.array(history[-1], float), []
        ends = np.cumsum(softmax(z))[:-1].tolist()
        for throw, lot in zip(throws, lots):
            c = (c + 1) % len(rewards)
            edits = [sum(end <= die for end in ends) for die in throw]
            marks = {o: rewards[c][o] for o in edits}
            if len(set(marks.values())) > 1:
                valid = {o: mark for o, mark in marks.items() if not invalid[c][o]}
                best = [o for o, mark in valid.items() if mark == max(valid.values())]
                lessons.append(best[int(lot * len(best))])
        for _ in range(steps):
            slope = sum(np.eye(len(z))[o] - softmax(z) for o in lessons)
            z = z + lr * slope / max(1, len(lessons))
        history.append(z.tolist())
        scores.append(float(np.average(np.mean(unseen, 0), weights=softmax(z))))
    return history[1:], scores
