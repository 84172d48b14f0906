"""Is the grader right? Stubs, the reference, mutants and right variants go through it."""

import json
from collections.abc import Callable
from typing import Any

from checks import Luck, Problem, Wrong
from marks import grade, sets
from worker import decode, encode


def self_test(names: list[str], secrets: list[str]) -> list[str]:
    """What is wrong with the grader: stubs must get nothing, the reference everything, each mutant
    must lose its own problem and no other, each right variant must pass. Prints as it goes."""
    wrong: list[str] = []
    for name, chosen in sets().items():
        if names and name not in names:
            continue
        stubs = (chosen.folder / "answer.py").read_text(encoding="utf-8")
        both = {False: "public", True: secrets[0]}
        got = grade(chosen, stubs, both)
        wrong += [f"{name}: the stub of {m.problem.number} gets points" for m in got if m.points]
        got = grade(chosen, chosen.folder / "reference.py", both, trusted=True)
        wrong += [
            f"{name}: the reference fails {m.problem.number}: {m.message}" for m in got if m.message
        ]
        reference, mutants = chosen.module("reference"), chosen.module("mutants")
        known = {p.number: p for p in chosen.problems}
        if chosen.problems[0].driver:
            seen = 0  # minutes each: these run as answers do
            for mutant, (number, text) in mutants.MUTANTS.items():
                (mark,) = grade(chosen, text, {False: "public"})
                seen += 1
                if not mark.message:
                    wrong.append(f"{name}: the mutant {mutant!r} passes {number}")
            print(f"{name}: {len(known)} problems, {seen} mutants", flush=True)
            continue
        for secret in ["public", *secrets]:
            for problem in chosen.problems:
                right = getattr(reference, problem.function)
                todo = {"the reference": (right, True)}
                for kind, passes in ("MUTANTS", False), ("VARIANTS", True):
                    for title, (number, make) in getattr(mutants, kind).items():
                        if number == problem.number:
                            todo[f"{kind[:-1].lower()} {title!r}"] = make(right), passes
                for title, (function, passes) in todo.items():
                    message = verdict(problem, function, secret)
                    if passes == bool(message):
                        wrong.append(f"{name}, {problem.number}, {title}, {secret}: {message}")
        numbers = {number for number, _ in mutants.MUTANTS.values()}
        wrong += [f"{name}: no mutant of {number}" for number in sorted(set(known) - numbers)]
        counts = f"{len(mutants.MUTANTS)} mutants, {len(mutants.VARIANTS)} right variants"
        print(f"{name}: {len(known)} problems, {counts}, {1 + len(secrets)} secrets", flush=True)
    return wrong


def verdict(problem: Problem, function: Callable, secret: str) -> str:
    """What the check says of a function in this process; "" if it is right."""

    def call(*args: Any) -> Any:
        try:
            return decode(json.loads(json.dumps(encode(function(*decode(encode(list(args))))))))
        except Wrong:
            raise
        except Exception as error:  # as an answer's own errors
            raise Wrong(f"{type(error).__name__}: {error}") from None

    try:
        problem.check(call, Luck(secret, problem.number))
    except Wrong as wrong:
        return str(wrong) or "wrong"
    return ""
