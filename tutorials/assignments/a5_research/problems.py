"""Set 5: one open problem, scored on people whom nobody has seen."""

import numpy as np
import torch
from checks import Call, Luck, Problem, Wrong, brief

import minseal
from minseal.lab.evidence import paired
from minseal.sample import sample

PEOPLE, TRIALS, HELD_OUT = 40, 240, 48
GAIN = 0.1  # over the untaught policy's notes. SEAL itself gains .21 to .34 with this budget


def scores(policy: minseal.GPT, world_seed: int, seed: int) -> np.ndarray:
    """(people,): exams of the *untaught* student, mean of two self-edits of the policy for each."""
    student, tokenizer = minseal.load("tiny_data/knowledge")
    task, held_out = minseal.People(tokenizer), minseal.toy_passages(HELD_OUT, world_seed)
    prompts = [task.prompt(person) for person in held_out]
    texts = sample(policy, tokenizer, prompts, 2, task.edit_tokens, seed=seed)
    pairs = [(person, text) for person, two in zip(held_out, texts) for text in two]
    rewards = [trial.reward for trial in minseal.try_out(student, task, pairs)]
    return np.reshape(rewards, (-1, 2)).mean(1)


def check_practise(call: Call, luck: Luck) -> float:
    """Returns the score: the leaderboard's value."""
    practice, held_out, seed = (luck.whole(1, 10**6) for _ in range(3))
    weights = call(practice, PEOPLE, TRIALS, seed)
    policy, _ = minseal.load("tiny_data/knowledge")
    untaught = scores(policy, held_out, seed)
    if not isinstance(weights, torch.Tensor) or weights.shape != (policy.size(),):
        raise Wrong(f"the policy: expected its {policy.size()} weights, got {brief(weights)}")
    if not weights.isfinite().all():
        raise Wrong("the policy has weights that are NaN or infinite: too high a learning rate?")
    with torch.no_grad():
        parts = weights.float().split([p.numel() for p in policy.parameters()])
        for parameter, part in zip(policy.parameters(), parts):
            parameter.copy_(part.view_as(parameter))
    taught = scores(policy, held_out, seed)
    gain, (low, high) = paired(taught, untaught)
    told = f"{taught.mean():.2f}, untaught {untaught.mean():.2f}"
    told += f": {gain:+.2f}, 95 % {low:+.2f} to {high:+.2f}"
    if gain < GAIN or low <= 0:
        raise Wrong(f"{told}; expected at least +{GAIN} and an interval above 0")
    return float(taught.mean())


PROBLEMS = [
    Problem(
        "5.1",
        "a policy that writes better self-edits",
        "practise",
        20,
        40.0,
        check_practise,
        allowed=("minseal", "copy", "random"),
        driver="driver",
    )
]
