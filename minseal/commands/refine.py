"""Going over it again: a model reads, explains it to itself, is examined, and returns to its gaps.

for each pass:
    the sections whose questions failed get new notes, written by the model as it is by now
    the adapter goes on from where it was, on these and on all that it learnt before
    the exam decides: more right than before, and the pass is kept; else it is taken back

The questions that choose what is learnt again flatter what comes of it. So every third question is
held out: it chooses no section and has no say in what is kept, and it is shown apart.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..config import mix_seed
from ..lab.lab import Lab
from ..lab.run import Run
from ..lab.table import aligned
from ..lora import merge_state
from ..tasks.grading import normalise, score
from .documents import Notes, notes_as_text
from .notes import Study, grades_of, keep, make_edits, short, show_steps, write_notes

EVERY = 3  # the last of so many questions is held out
FINISHED = "refined"  # the step that tells that no pass is to come


@dataclass(frozen=True)
class Standing:
    """What a pass changes, and gives back when it is taken back."""

    state: dict[str, Tensor]  # of the adapter
    notes: Notes  # that it was trained on
    grades: list[float]  # of the exam, question by question

    def right(self, held_out: bool = False) -> int:
        """How many of the questions that decide are right; held_out: of the others."""
        return sum(g > 0 for i, g in enumerate(self.grades) if is_held_out(i) == held_out)


def refine(
    study: Study,
    passes: int,
    now: Standing,
    save: Callable[[dict[str, Tensor]], None],
    say: Callable[[str], None],
) -> tuple[Standing, list[dict[str, Any]]]:
    """Go over it `passes` times; returns (how it stands then, a row of the table for each pass).

    A pass that has no more questions right than there were is taken back, to the bit: where nothing
    shows that it helped, the adapter stays what it was, and the next pass draws other notes.
    save(state): is called when a pass is kept, before its notes are added to notes.md.
    """
    rows: list[dict[str, Any]] = []
    if passes and not now.grades:
        say("--refine has no question to go by: write an exam.json and give it as --exam")
        passes = 0
    for number in range(1, passes + 1):
        failed = [i for i, g in enumerate(now.grades) if not g and not is_held_out(i)]
        places = find_sections(study, failed)
        chosen = sorted({place for place in places if place})
        told = f"{len(failed)} of the questions that choose sections failed"
        if nowhere := places.count(0):
            told += f", {nowhere} of them on no section (none shares a word)"
        if not chosen:
            say(f"pass {number}: {told}: there is nothing to go over")
            break
        say(f"pass {number}: {told}; going over sections {listed(chosen)}")
        new, row = go_over(study, number, chosen, now, say)
        rows.append(row)
        if row["kept"]:
            old, now = now, new
            # After a kill the adapter of a later pass may lie there already.
            if not is_examined(study.lab.run, number + 1):
                save(now.state)
            texts = [notes_as_text(study.sections, s.notes) for s in (now, old)]
            run = study.lab.run.under(f"pass {number}")
            keep(run, study.out / "notes.md", texts[0], say, over=texts[1])
        row["seconds"] = seconds_of(study.lab.run, number)
    study.lab.step(FINISHED, lambda: len(rows))
    if rows:
        say("\n" + table(rows))
    return now, rows


def go_over(
    study: Study, number: int, chosen: list[int], now: Standing, say: Callable[[str], None]
) -> tuple[Standing, dict[str, Any]]:
    """One pass over the chosen sections: (how it stands after it, its row of the table)."""
    lab, sections = lab_of(study.lab, number), [study.sections[i - 1] for i in chosen]
    lab.reset()
    merge_state(lab.policy, now.state)
    written = write_notes(lab, study.prompts, sections)
    lab.reset()
    notes = {i: list(some) for i, some in now.notes.items()}
    for i, some in written.items():
        place = chosen[i - 1]  # write_notes() numbers the chosen ones from 1
        notes[place] = list(dict.fromkeys([*notes.get(place, []), *some]))
    edits = make_edits(lab, study.sections, notes)  # all of it: what is not repeated is forgotten
    pairs = list(zip(study.sections, edits))
    state = lab.learn_for_good("notes", pairs, now.state, show_steps(say))
    trials = study.lab.arm(f"pass {number}", lambda: study.lab.plain(study.batches()), over="after")
    new = Standing(state, notes, grades_of(trials))
    held_out = sum(map(is_held_out, range(len(now.grades))))
    return new, {
        "pass": number,
        "sections": chosen,
        "notes": sum(map(len, written.values())),
        "tokens": sum(edit.length() for edit in edits),
        "right": [now.right(), new.right(), len(now.grades) - held_out],  # before, after, of
        "held out": [now.right(True), new.right(True), held_out],
        "kept": new.right() > now.right(),
    }


def is_held_out(question: int) -> bool:
    """Whether a question, counted from 0, neither chooses sections nor decides about a pass."""
    return question % EVERY == EVERY - 1


def is_examined(run: Run, number: int) -> bool:
    """Whether a pass has come as far as its exam."""
    return f"pass {number}" in run.steps


def find_sections(study: Study, questions: list[int]) -> list[int]:
    """The section, from 1, that each of these questions of the exam belongs to; 0: none.

    Of one that the model wrote it is the section that it was written on. Of a given one it is a
    guess: the section, with its title, that shares most words with the question, each counting the
    less the more sections have it. To hold an accepted answer counts as a word that no other has.
    """
    sections, places = study.sections, []
    words = [set(normalise(f"{s.title}\n{s.text}").split()) for s in sections]
    having = Counter(word for some in words for word in some)  # sections in which a word stands
    for asked, golds in (study.exam[i] for i in questions):
        mine, fits = sorted(set(normalise(asked).split())), [0.0]  # that of no section
        for section, some in zip(sections, words):
            holds = any(score(section.text, gold, "contains") for gold in golds)
            fits.append(holds + sum(1 / having[word] for word in mine if word in some))
        places.append(study.written_on.get(asked, fits.index(max(fits))))
    return places


def lab_of(lab: Lab, number: int) -> Lab:
    """The same lab in a pass: its steps have names, and its draws luck, of their own."""
    mine = copy.copy(lab)
    mine.run, mine.seed = lab.run.under(f"pass {number}"), mix_seed(lab.seed, "pass", number)
    return mine


def seconds_of(run: Run, number: int) -> float:
    """What a pass took, its exam included."""
    steps = run.steps.values()  # the space: pass 1 is not pass 10
    return round(sum(s.seconds for s in steps if f"{s.name} ".startswith(f"pass {number} ")), 1)


def table(rows: list[dict[str, Any]]) -> str:
    """A row for each pass, and below it what the numbers are worth."""
    cells = [["pass", "sections", "notes", "tokens", "right", "held out", "", "s"]]
    for row in rows:
        shares = ["{} > {} of {}".format(*row[what]) for what in ("right", "held out")]
        numbers = [str(row["notes"]), str(row["tokens"]), *shares]
        verdict = "kept" if row["kept"] else "taken back"
        where = short(listed(row["sections"]), 24)
        cells.append([str(row["pass"]), where, *numbers, verdict, f"{row['seconds']:.0f}"])
    return f"""{aligned(cells, left=(1, 6))}

right, before > after: these questions chose the sections and what was kept, which flatters them;
held out: every third question, which had no say. A pass with no more right is taken back."""


def listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
