"""What calls a research answer: the policy, the people to practise on, and a budget of trials."""

from typing import Any

import torch

import minseal
import minseal.memory
import minseal.outer
import minseal.rewards
import minseal.sample
import minseal.tasks.people

# Read everything once while this process may: the answer runs with nobody's rights.
minseal.load("tiny_data/knowledge")


class BudgetSpent(Exception):
    """More trials were asked for than the budget holds."""


class Budget:
    """minseal.try_out for the policy and its task, until the budget of trials is spent."""

    def __init__(self, policy: minseal.GPT, task: minseal.Task, trials: int) -> None:
        self.policy, self.task, self.left = policy, task, trials

    def __call__(self, pairs: list[tuple[Any, str]], reward: Any = minseal.exam) -> list:
        """[(passage, text of a self-edit), ...] -> a minseal.Trial each. Raises BudgetSpent."""
        self.left -= len(pairs)
        if self.left < 0:
            raise BudgetSpent(f"{-self.left} trials more than the budget")
        return minseal.try_out(self.policy, self.task, pairs, reward=reward)


def drive(practise: Any, world_seed: int, people: int, trials: int, seed: int) -> torch.Tensor:
    """The policy's weights after `practise`, in one row."""
    policy, tokenizer = minseal.load("tiny_data/knowledge")
    task, passages = minseal.People(tokenizer), minseal.toy_passages(people, world_seed)
    practise(policy, task, passages, Budget(policy, task, trials), seed)
    return torch.cat([p.detach().flatten() for p in policy.parameters()])
