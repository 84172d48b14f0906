"""Teach a model your own documents: notes, one adapter on notes and text, an exam before and after.

Everything goes through a Lab and a Run (out/run-1, run-2, ...), as in every experiment: killed at
any point, the same command goes on.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ..config import ModelConfig
from ..files import UserError, write_folder, write_json, write_text
from ..inner import InnerConfig
from ..lab.lab import Lab, restore_policy
from ..lab.run import Run, Step
from ..lab.table import aligned
from ..lora import LoRAConfig, attach, merge_state
from ..open_models.load import load
from ..open_models.peft import load_adapter, save_adapter
from ..outer import OuterConfig, Trial
from ..selfedit import InvalidSelfEdit, SelfEdit
from ..tasks.knowledge import PROMPTS, Knowledge, Question, score
from ..tasks.passages import Passage, read_questions
from .documents import (
    Notes,
    keep_older,
    notes_as_text,
    read_document,
    read_notes,
    split_document,
)

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
    """Teach a model text or Markdown files: it writes notes, one adapter is trained on notes and
    text, an exam is sat before and after."""

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
            raise UserError(
                f"--prompts names {unknown[0]!r}; expected some of {', '.join(PROMPTS)}"
            )


def learn(
    config: LearnConfig, files: list[str], say: Callable[[str], None] = tqdm.write
) -> dict[str, Any]:
    """Do it; returns {'before', 'after': share of the exam, 'questions', 'tokens', ...}.

    Whatever is finished is on disk: the notes before the exam is written, both before training,
    the adapter before the last exam.
    """
    if not config.model:
        raise UserError("which model shall learn? --model FOLDER, GGUF file or hub id")
    texts = {str(f): read_document(str(f)) for f in files}
    given_exam = read_questions(config.exam) if config.exam else None
    run, out = open_run(config, texts, say), Path(config.out)
    lab, start, lora = open_lab(config, run)
    task = lab.task
    cut = [split_document(task.tokenizer, f, text, config.section) for f, text in texts.items()]
    sections = [section for document in cut for section in document]
    given_notes = read_notes(task, config.notes) if config.notes else None
    check_sections(lab, config, sections, given_notes)
    words = sum(len(text.split()) for text in texts.values())
    say(f"{words} words in {len(sections)} sections, {lab.policy.size() / 1e6:.0f} M parameters")

    notes = given_notes if given_notes is not None else write_notes(lab, config, sections)
    edits = make_edits(lab, sections, notes)
    keep(run, out, "notes.md", config.notes, write_text(notes_as_text(sections, notes)))
    say(f"notes: {out}/notes.md, {sum(map(len, notes.values()))} of them")

    exam = write_exam(lab, sections) if given_exam is None else given_exam
    data = [{"question": question, "answers": list(answers)} for question, answers in exam]
    keep(run, out, "exam.json", config.exam, write_json(data))
    none = (
        ": the model wrote none whose answer stands in the text; give --exam to see what it learns"
    )
    say(f"exam: {out}/exam.json, {len(exam)} questions{'' if exam else none}")
    asked = [
        Passage(f"questions from {i + 1}", "", "", tuple(exam[i : i + BATCH]))
        for i in range(0, len(exam), BATCH)
    ]

    merge_state(lab.policy, start)
    before = lab.arm("before", lambda: lab.plain(asked)) if asked else []
    lab.reset()
    state = lab.learn_for_good("notes", list(zip(sections, edits)), start, progress())
    seconds = run.steps["notes, learnt"].seconds
    tokens = sum(len(d.ids) for edit in edits for d in edit.documents)
    results = {"questions": len(exam), "tokens": tokens, "training seconds": round(seconds)}
    about = {"files": list(texts), "learnt before": config.adapter or None}

    def save() -> None:
        lab.reset()  # the adapter is one of the model as it was, and known by its weights
        told = {**about, "results": results}
        save_adapter(out, lab.policy, state, lora, config.model, about=told)

    save()
    if asked:
        merge_state(lab.policy, state)
        after = lab.arm("after", lambda: lab.plain(asked), over="before")
        for name, trials in (("before", before), ("after", after)):
            results[name] = sum(g for t in trials for g in t.grades) / len(exam)
        save()
        say("\n" + compare(exam, before, after))
    say(
        f"\nadapter: {out} ({tokens} tokens, {seconds:.0f} s of training). To ask it: "
        f'minseal ask "..." --model {config.model} --adapter {out}'
    )
    return results


# ---- folders -------------------------------------------------------------------------------------


def open_run(config: LearnConfig, texts: dict[str, str], say: Callable[[str], None]) -> Run:
    """The run folder in --out: the last one if it is this very run, else a new one.

    Refused if something would be lost: --out must be empty, or go on from itself.
    """
    out = Path(config.out)
    letters = {name: len(text) for name, text in texts.items()}
    settings = {"kind": "learn", "files": letters, **asdict(config)}

    def tell(step: Step, new: bool) -> None:
        if new and step.seconds > 0.05:
            say(f"{step.seconds:6.0f} s  {step.name}")

    runs = sorted(out.glob("run-*/config.json"), key=lambda p: int(p.parent.name[4:]))
    if runs:
        try:
            return Run(runs[-1].parent, settings, tell)  # killed before: it goes on
        except UserError:
            pass
    there = {f.name for f in out.iterdir()} if out.is_dir() else {out.name} if out.exists() else ()
    own = [Path(given).resolve() for given in (config.adapter, config.notes) if given]
    if there and out.resolve() not in own and (out / "notes.md").resolve() not in own:
        hint = f"go on from it with --adapter {out}, " if "adapter_config.json" in there else ""
        if "notes.md" in there:
            hint += f"train on the notes in it with --notes {out / 'notes.md'}, "
        raise UserError(f"{out} is there already and not empty: {hint}or choose another --out")
    return Run(out / f"run-{len(runs) + 1}", settings, tell)


def keep(run: Run, out: Path, name: str, given: str, writer: Callable[[Path], Any]) -> None:
    """Write a file into `out`, once a run; an older one gets another name."""

    def write() -> bool:
        keep_older(out / name, given)
        write_folder(out, {name: writer})
        return True

    run.step(name, write)


def open_lab(config: LearnConfig, run: Run) -> tuple[Lab, dict, LoRAConfig]:
    """(lab, the state of --adapter or {}, the LoRA that is trained)."""
    model, tokenizer = load(config.model, config.device, config.dtype)
    start, lora = {}, LoRAConfig(config.inner.rank, config.inner.alpha)
    if config.adapter:
        adapters, lora = load_adapter(config.adapter, model, config.model)
        with adapters:
            start, lora = adapters.state(), LoRAConfig(lora.rank, lora.alpha)
        with attach(model, 1, lora, config.seed) as adapters:
            start = {**adapters.state(), **start}  # layers that it did not adapt join in
    task = Knowledge(tokenizer, grading="contains", topic=False)
    inner = replace(config.inner, rank=lora.rank, alpha=lora.alpha)
    outer = OuterConfig(temperature=config.temperature, at_once=1)
    lab = Lab(model, task, [], [], run, inner, outer, config.seed)
    return lab, start, lora


def check_sections(
    lab: Lab, config: LearnConfig, sections: list[Passage], notes: Notes | None
) -> None:
    """Refuse what would fail after minutes: no text, too long sections, notes of other ones."""
    if not sections:
        raise UserError("there is no text under the headings: nothing to learn")
    reads, tokenizer = lab.policy.config.block_size, lab.task.tokenizer
    styles = [Knowledge(tokenizer, style) for style in (*config.prompts, "self-qa")]
    longest = max(len(task.prompt(s)) + task.edit_tokens for s in sections for task in styles)
    if longest > reads:
        raise UserError(
            f"a section needs {longest} tokens with what is asked about it and written on it; "
            f"the model reads {reads}: lower --section"
        )
    if notes and max(notes) > len(sections):
        raise UserError(
            f"{config.notes} holds notes on section {max(notes)}; there are {len(sections)}: "
            "give the same files and --section as when it was written"
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
            try:  # directives are for runs: here the inner loop's settings hold
                notes.setdefault(number, []).extend(task.read(text)[0])
            except InvalidSelfEdit:
                continue
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


def write_exam(lab: Lab, sections: list[Passage]) -> tuple:
    """Questions that the model wrote while it saw the text: ((question, (answer,)), ...).

    Those whose answer does not stand in the text are dropped.
    """
    task, found = Knowledge(lab.task.tokenizer, "self-qa"), {}
    for section, text in zip(sections, write_texts(lab.asking(task), sections, 99)):
        for note in task.notes(text):
            if isinstance(note, Question) and score(section.text, note.answer, "contains"):
                found.setdefault(note.question, (note.answer,))
    return tuple(found.items())


def make_edits(lab: Lab, sections: list[Passage], notes: Notes) -> list[SelfEdit]:
    """A self-edit of each section: its notes, and the section itself."""
    edits = [lab.task.edit(s, notes.get(i, [])) for i, s in enumerate(sections, 1)]
    for i, edit in enumerate(edits, 1):
        longest, reads = max(len(d.ids) for d in edit.documents), lab.policy.config.block_size
        if longest > reads:
            raise UserError(
                f"section {i} or a note on it has {longest} tokens; the model reads {reads}: "
                "shorten the line"
            )
    return edits


# ---- what is shown -------------------------------------------------------------------------------


def progress() -> Callable[[int, int, Any], None]:
    """A function for adapt() that shows the steps of training."""
    bar = tqdm(desc="training", unit="step", disable=None)

    def tell(step: int, steps: int, loss: Any) -> None:
        bar.total = steps
        bar.set_postfix_str(f"loss {loss.mean():.2f}")
        bar.update()
        if step == steps:
            bar.close()

    return tell


def compare(exam: tuple, before: list[Trial], after: list[Trial], most: int = 12) -> str:
    """Before and after, question by question (the first few), and the sums."""

    def short(text: str, width: int = 34) -> str:
        return text if len(text) <= width else text[: width - 3] + "..."

    rows = [["question", "expected", "", "before", "", "after"]]
    pairs = [
        [(a, g) for t in trials for a, g in zip(t.answers, t.grades)] for trials in (before, after)
    ]
    for (question, (gold, *_)), *both in list(zip(exam, *pairs))[:most]:
        told = [cell for answer, grade in both for cell in ("+" if grade else "", short(answer))]
        rows.append([short(question, 46), short(gold, 20), *told])
    more = [f"... {len(exam) - most} more"] if len(exam) > most else []
    n, right = len(exam), [sum(grade > 0 for _, grade in pair) for pair in pairs]
    closing = (
        f"right: {right[0]} of {n} before, {right[1]} of {n} after (closed book; a + marks an "
        "answer that contains the expected one)"
    )
    return "\n".join([aligned(rows, left=(0, 1, 2, 3, 4, 5)), *more, "", closing])
