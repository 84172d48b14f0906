"""Teach a model your own documents: notes, one adapter on notes and text, an exam before and after.

Everything goes through a Lab and a Run (out/run-1, run-2, ...), as in every experiment: killed at
any point, the same command goes on; when all was done it learns nothing twice, and only shows it.
"""

import itertools
import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..config import ModelConfig
from ..files import UserError, is_empty, need, read_text, real_path, tidy, write_folder, write_text
from ..inner import InnerConfig, OnStep
from ..lab.lab import OWN, Lab, restore_policy
from ..lab.run import OtherRun, Run, Step
from ..lab.table import aligned
from ..lora import LoRAConfig, attach, merge_state
from ..model import GPT
from ..open_models.load import load
from ..open_models.peft import load_adapter, save_adapter
from ..outer import OuterConfig, Trial
from ..selfedit import InvalidSelfEdit, SelfEdit
from ..tasks.grading import score
from ..tasks.knowledge import PROMPTS, Knowledge, Question
from ..tasks.passages import Exam, Passage, read_questions
from ..terminal import say
from .documents import Notes, keep_older, notes_as_text, read_document, read_notes, split_document

BATCH = 16  # sections that notes are written on at once; questions that are asked at once


@dataclass(frozen=True)
class StudyConfig(InnerConfig):
    """The inner loop for whole documents: many steps for one adapter, not few for many."""

    lr: float = 1e-3  # learning rate
    epochs: int = 6  # passes over notes and sections
    batch: int = 8  # notes and sections in one gradient step; 0: all of them
    decay: Literal["none", "linear"] = "linear"  # of the learning rate over the steps
    row_tokens: int = 1024  # notes and sections of a step are packed into rows of about so many


@dataclass(frozen=True)
class LearnConfig(ModelConfig):
    """Teach a model text or Markdown files: notes, an adapter, an exam before and after."""

    out: str = "adapter"  # folder of the adapter (PEFT's format), with the notes and the exam
    adapter: str = ""  # go on from this adapter: what was learnt persists
    policy: str = ""  # the policy of this `minseal run knowledge` folder (same model) writes notes
    notes: str = ""  # train on the notes in this file, an edited notes.md, instead of new ones
    exam: str = ""  # JSON, [{question, answer}, ...], asked before and after; else the model's own
    prompts: tuple[str, ...] = ("self-qa", "implications")  # a section gets notes of each kind
    section: int = 250  # tokens of a section at most: files are cut at headings and paragraphs
    temperature: float = 0.7  # of sampling notes
    seed: int = 0  # of sampling and of the adapter's first weights
    inner: StudyConfig = StudyConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(section=32, temperature=0, seed=0)
        if unknown := [p for p in self.prompts if p not in PROMPTS]:
            known = ", ".join(PROMPTS)
            raise UserError(f"--prompts names {unknown[0]!r}; expected some of {known}")


def learn(
    config: LearnConfig, files: list[str], say: Callable[[str], None] = say
) -> dict[str, Any]:
    """Do it; returns {'before', 'after': share of the exam, 'questions', 'tokens', ...}.

    Whatever is finished is on disk: the notes before the exam is written, both before training,
    the adapter before the last exam.
    """
    if not config.model:
        raise UserError("which model shall learn? --model FOLDER, GGUF file or hub id")
    need("safetensors", "weights", "writing the adapter")  # now, not after minutes
    texts = {str(f): read_document(str(f)) for f in files}
    given_exam = read_questions(config.exam) if config.exam else None
    model, tokenizer = load(config.model, config.device, config.dtype)
    task = Knowledge(tokenizer, grading="contains", topic=False)
    given_notes, titles = read_notes(task, config.notes) if config.notes else (None, {})
    written = {i: some for i, some in (given_notes or {}).items() if some}
    run, out = open_run(config, [texts, given_exam, written, *marks(config)], say), Path(config.out)
    lab, start = open_lab(config, run, model, task)
    sections = cut_documents(lab, config, texts)
    check_titles(config, sections, titles)
    words = sum(len(text.split()) for text in texts.values())
    say(f"{words} words in {len(sections)} sections, {lab.policy.size() / 1e6:.1f} M parameters")

    notes = write_notes(lab, config, sections) if given_notes is None else given_notes
    edits = make_edits(lab, sections, notes)
    keep(run, out / "notes.md", config.notes, notes_as_text(sections, notes), say)
    say(f"notes: {out}/notes.md, {sum(map(len, notes.values()))} of them")

    exam = write_exam(lab, sections) if given_exam is None else given_exam
    data = [{"question": question, "answers": list(answers)} for question, answers in exam]
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    keep(run, out / "exam.json", config.exam, text, say)
    say(f"exam: {out}/exam.json, {len(exam)} questions")
    if not exam:
        say("no answer that the model wrote stands in the text; give --exam to see what it learns")
    batches = [exam[i : i + BATCH] for i in range(0, len(exam), BATCH)]
    asked = [Passage(f"questions {i}", "", "", some) for i, some in enumerate(batches, 1)]

    merge_state(lab.policy, start)
    before = lab.arm("before", lambda: lab.plain(asked)) if asked else []
    lab.reset()
    state = lab.learn_for_good("notes", list(zip(sections, edits)), start, show_steps(say))
    seconds = run.steps["notes, learnt"].seconds
    tokens = sum(len(d.ids) for edit in edits for d in edit.documents)
    results = {"questions": len(exam), "tokens": tokens, "training seconds": round(seconds)}
    about = {"files": list(texts), "learnt before": config.adapter or None, "results": results}
    lora = LoRAConfig(lab.inner.rank, lab.inner.alpha)
    save = partial(save_adapter, out, lab.policy, state, lora, config.model, about=about)
    lab.reset()  # the adapter is one of the model as it was, and known by its weights
    save()
    if asked:
        merge_state(lab.policy, state)
        after = lab.arm("after", lambda: lab.plain(asked), over="before")
        for name, trials in (("before", before), ("after", after)):
            results[name] = sum(grade for t in trials for grade in t.grades) / len(exam)
        lab.reset()
        save()
        say("\n" + compare(exam, before, after))
    say(
        f"\nadapter: {out} ({tokens} tokens, {seconds:.0f} s of training). To ask it: "
        f'minseal ask "..." --model {config.model} --adapter {out}'
    )
    return results


# ---- folders -------------------------------------------------------------------------------------


def open_run(config: LearnConfig, read: list[Any], say: Callable[[str], None]) -> Run:
    """The run folder in --out: the last one if it is this very run, else a new one.

    read: what was read; an edited file makes another run. Refused if something would be lost:
    --out must be empty, or go on from itself.
    """
    out = Path(config.out)
    settings = {"kind": "learn", "read": zlib.crc32(repr(read).encode()), **asdict(config)}

    def tell(step: Step, new: bool) -> None:
        if step.lost:
            say(f"{step.lost}: {step.name} was done again")
        if new and step.seconds > 0.05:
            say(f"{step.seconds:6.0f} s  {step.name}")

    done = next(n for n in itertools.count() if not is_run(out / f"run-{n + 1}"))
    if done:
        with suppress(OtherRun):  # killed before, it goes on
            run = Run(out / f"run-{done}", settings, tell, within=out)
            learnt = "all of it was learnt before, and is not learnt twice (another --seed would)"
            going_on = f"going on after {len(run.steps)} steps that were done already"
            say(f"{run.folder}: {learnt if 'notes, learnt' in run.steps else going_on}")
            return run
    goes_on = is_same(config.adapter, out) or is_same(config.notes, out / "notes.md")
    if not goes_on and not is_empty(out):
        ways = f"to go on from it --adapter {out}, to learn the same texts anew "
        ways += f"from edited notes --notes {out / 'notes.md'}, or "
        ways = ways if (out / "notes.md").exists() else ""
        raise UserError(f"{out} is there already and not empty: {ways}choose another --out")
    return Run(out / f"run-{done + 1}", settings, tell, within=out)


def marks(config: LearnConfig) -> list[int]:
    """By these another adapter, or policy, of the same name is known; --out itself changes."""
    files = [Path(config.adapter) / "adapter_model.safetensors"] if config.adapter else []
    files = [] if is_same(config.adapter, config.out) else files
    files += [Path(config.policy) / "events.jsonl"] if config.policy else []
    return [zlib.crc32(file.read_bytes()) for file in files if file.is_file()]


def is_same(given: str, path: str | Path) -> bool:
    """Whether an option names this file or folder; without the option it names none."""
    return bool(given) and real_path(given) == real_path(path)


def is_run(folder: Path) -> bool:
    tidy(folder)
    return (folder / "config.json").exists()


def keep(run: Run, path: Path, given: str, text: str, say: Callable[[str], None]) -> None:
    """Write a file, once in a run; an older one gets another name."""

    def write() -> bool:
        if not path.is_file() or read_text(path) != text:  # else a kill came right after it
            if older := keep_older(path, given):
                say(f"what was {path} is now {older}")
            write_folder(path.parent, {path.name: write_text(text)})
        return True

    run.step(path.name, write)


def open_lab(
    config: LearnConfig, run: Run, model: GPT, task: Knowledge
) -> tuple[Lab, dict[str, Tensor]]:
    """(lab, the state of --adapter or {}); such an adapter keeps its rank and alpha."""
    start, inner = {}, config.inner

    def read_adapter() -> dict[str, Tensor]:
        if "notes, learnt" in run.steps and is_same(config.adapter, config.out):
            raise UserError(f"{config.adapter}: what it was before this run is lost")
        adapters, lora = load_adapter(config.adapter, model, config.model)
        with adapters:
            state = adapters.state()
        with attach(model, 1, LoRAConfig(lora.rank, lora.alpha), config.seed) as adapters:
            state = {**adapters.state(), **state}  # layers that it did not adapt join in
        return state

    if config.adapter:  # kept: in its own folder it is another one when a kill comes late
        found = {} if "adapter before" in run.steps else read_adapter()  # a mistake leaves nothing
        start = run.step("adapter before", lambda: found or read_adapter())
        rank = next(t.shape[1] for name, t in start.items() if name.endswith(".A"))
        inner = replace(inner, rank=rank, alpha=start["scale"].item() * rank)
    outer = OuterConfig(temperature=config.temperature, at_once=1)
    return Lab(model, task, [], [], run, inner, outer, config.seed), start


def cut_documents(lab: Lab, config: LearnConfig, texts: dict[str, str]) -> list[Passage]:
    """The sections of all files. UserError if there are none, or the model cannot read one."""
    reads, tokenizer = lab.policy.config.block_size, lab.task.tokenizer
    sections: list[Passage] = []
    for name, text in texts.items():
        sections += split_document(tokenizer, name, text, config.section)
    if not sections:
        raise UserError("there is no text under the headings: nothing to learn")
    tasks = [Knowledge(tokenizer, style) for style in (*config.prompts, "self-qa")]
    longest = max(len(task.prompt(s)) + task.edit_tokens for s in sections for task in tasks)
    if longest > reads:
        told = f"a section with its prompt and what is written on it needs {longest} tokens"
        raise UserError(f"{told}; the model reads {reads}: lower --section")
    return sections


def check_titles(config: LearnConfig, sections: list[Passage], titles: dict[int, str]) -> None:
    """Refuse the notes of another document: not one of its sections has its title there."""
    here = {(i, " ".join(s.title.casefold().split())) for i, s in enumerate(sections, 1)}
    there = {(i, " ".join(title.casefold().split())) for i, title in titles.items()}
    if there and here.isdisjoint(there):
        first = f"section {next(iter(titles))} is {next(iter(titles.values()))!r:.60} there"
        raise UserError(
            f"{config.notes} has notes on other texts: {first}, section 1 {sections[0].title!r:.60}"
            " here; give the files that they were written on, or mend the titles"
        )


# ---- notes and exam ------------------------------------------------------------------------------


def write_notes(lab: Lab, config: LearnConfig, sections: list[Passage]) -> Notes:
    """The notes of all prompt styles; with --policy the policy of a run writes them."""
    if config.policy:
        restore_policy(lab.policy, config.policy)
    notes: Notes = {}
    for i, style in enumerate(config.prompts):
        task = Knowledge(lab.task.tokenizer, style)
        for number, text in enumerate(write_texts(lab.asking(task), sections, i), 1):
            with suppress(InvalidSelfEdit):  # directives are for runs: --inner.lr holds here
                notes.setdefault(number, []).extend(task.read(text)[0])
    lab.reset()
    return notes


def write_texts(lab: Lab, sections: list[Passage], draw: int) -> list[str]:
    """A self-edit of each section as text; each batch is a step, so a kill loses little."""
    texts = []
    for j in range(0, len(sections), BATCH):
        part = sections[j : j + BATCH]
        name = f"{lab.task.style} {draw}, sections {j + 1}-{j + len(part)}"
        texts += lab.step(name, lambda: lab.write(part, (draw, j)))
    return texts


def write_exam(lab: Lab, sections: list[Passage]) -> Exam:
    """Questions that the model wrote while it saw the text, and whose answers stand in it."""
    task, found = Knowledge(lab.task.tokenizer, "self-qa"), {}
    for section, text in zip(sections, write_texts(lab.asking(task), sections, OWN)):
        for note in task.notes(text):
            if isinstance(note, Question) and score(section.text, note.answer, "contains"):
                found.setdefault(note.question, (note.answer,))
    return tuple(found.items())


def make_edits(lab: Lab, sections: list[Passage], notes: Notes) -> list[SelfEdit]:
    """A self-edit of each section: its notes, and the section itself."""
    if max(notes, default=0) > len(sections):
        told = f"there are notes on section {max(notes)} of {len(sections)}"
        raise UserError(f"{told}: give the files and --section that they were written with")
    edits, reads = [], lab.policy.config.block_size
    for i, section in enumerate(sections, 1):
        edit = lab.task.edit(section, notes.get(i, []))
        longest = max(len(d.ids) for d in edit.documents)
        if longest > reads:
            told = f"section {i} or a note on it has {longest} tokens; the model reads {reads}"
            raise UserError(f"{told}: shorten the line")
        edits.append(edit)
    return edits


# ---- what is shown -------------------------------------------------------------------------------


def show_steps(say: Callable[[str], None]) -> OnStep:
    """A function for adapt() that says ten times how training goes."""

    def show(step: int, steps: int, loss: Tensor) -> None:
        if step * 10 // steps > (step - 1) * 10 // steps:
            say(f"training: step {step} of {steps}, loss {loss.mean():.2f}")

    return show


def compare(exam: Exam, before: list[Trial], after: list[Trial], most: int = 12) -> str:
    """Before and after, question by question (the first few), and the sums."""
    rows = [["question", "expected", "", "before", "", "after"]]
    pairs = list(zip(marks_of(before), marks_of(after)))
    for (question, golds), (old, new) in zip(exam[:most], pairs):
        rows.append([short(question, 46), short(golds[0], 20), *old, *new])
    more = [f"... {len(exam) - most} more"] if len(exam) > most else []
    right = [sum(mark == "+" for mark, _ in trials) for trials in zip(*pairs)]
    closing = (
        f"right: {right[0]} of {len(exam)} before, {right[1]} of {len(exam)} after (closed book; "
        "a + marks an answer that contains the expected one)"
    )
    return "\n".join([aligned(rows, left=(0, 1, 2, 3, 4, 5)), *more, "", closing])


def marks_of(trials: list[Trial]) -> list[tuple[str, str]]:
    """('+' where it is right, the answer), question by question."""
    graded = [pair for t in trials for pair in zip(t.answers, t.grades)]
    return [("+" if grade else "", short(answer, 34)) for answer, grade in graded]


def short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
