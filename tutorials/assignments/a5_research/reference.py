"""SEAL itself, as minseal has it: two rounds of ReST-EM within the budget."""

from typing import Any

import minseal
from minseal.sample import sample


def practise(policy: Any, task: Any, passages: list[Any], try_out: Any, seed: int) -> None:
    improve, half = minseal.ReSTEM("best"), len(passages) // 2
    for r, people in enumerate((passages[:half], passages[half:])):
        prompts = [task.prompt(person) for person in people]
        texts = sample(policy, task.tokenizer, prompts, 6, task.edit_tokens, seed=seed + r)
        trials = try_out([(p, text) for p, six in zip(people, texts) for text in six])
        tried = [(p, trials[6 * i : 6 * i + 6]) for i, p in enumerate(people)]
        minseal.merge_state(policy, improve(policy, task, tried, seed + r))
