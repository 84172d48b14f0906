"""Problem set 5: research. Fill in `practise`; add helpers as you like. See handout.md."""

from typing import Any

import minseal


def practise(
    policy: minseal.GPT,
    task: minseal.Task,
    passages: list[minseal.Passage],
    try_out: Any,
    seed: int,
) -> None:
    """Teach `policy`, in place, to write self-edits that are worth training on.

    policy: the tiny model of tiny_data/knowledge. task: minseal.People. passages: 40 people.
    try_out: [(passage, text of a self-edit), ...] -> a minseal.Trial each (`.reward`, `.invalid`,
        `.chose`, ...); an inner loop with the default settings for each pair. 240 pairs in all:
        then it raises. `try_out.left` is what is left. A second argument is your own reward.
    seed: of everything that you draw. The same seed must give the same policy.
    """
    raise NotImplementedError("Problem 5.1: teach the policy")
