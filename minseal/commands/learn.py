"""Teach a model your own documents: notes, one adapter on notes and text, an exam before and after.

Everything goes through a Lab and a Run (out/run-1, run-2, ...), as in every experiment: killed at
any point, the same command goes on; when all was done it learns nothing twice, and only shows it.
"""

import itertools
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..config import ModelConfig
from ..files import UserError, is_empty, need, real_path, tidy
from ..inner import InnerConfig
from ..lab.lab import Lab, restore_policy
from ..lab.run import OtherRun, Run, Step
from ..lora import LoRAConfig, attach, merge_state
from ..model import GPT
from ..open_models.load import load
from ..open_models.peft import load_adapter, save_adapter
from ..outer import OuterConfig
from ..tasks.knowledge import PROMPTS, Knowledge
from ..tasks.passages import Passage, read_questions
from ..terminal import say
from .documents import notes_as_text, read_document, read_notes, split_document
from .notes import (
    Study,
    compare,
    exam_as_text,
    grades_of,
    keep,
    make_edits,
    show_steps,
    write_exam,
    write_notes,
)
from .refine import FINISHED, Standing, is_examined, refine


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
    refine: int = 0  # passes over what failed in the exam: new notes, learnt, kept if they help
    temperature: float = 0.7  # of sampling notes
    seed: int = 0  # of sampling and of the adapter's first weights
    inner: StudyConfig = StudyConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(section=32, refine=0, temperature=0, seed=0)
        if unknown := [p for p in self.prompts if p not in PROMPTS]:
            known = ", ".join(PROMPTS)
            raise UserError(f"--prompts names {unknown[0]!r}; expected some of {known}")


def learn(
    config: LearnConfig, files: list[str], say: Callable[[str], None] = say
) -> dict[str, Any]:
    """Do it; returns {'before', 'after': share of the exam, 'questions', 'tokens', ...}.

    Whatever is finished is on disk: the notes before the exam is written, both before training,
    the adapter before the last exam, and again after each pass that is kept.
    """
    study = prepare(config, files, say)
    lab, exam = study.lab, study.exam

    merge_state(lab.policy, study.start)
    before = lab.arm("before", lambda: lab.plain(study.batches())) if exam else []
    lab.reset()
    edits = make_edits(lab, study.sections, study.notes)
    pairs = list(zip(study.sections, edits))
    state = lab.learn_for_good("notes", pairs, study.start, show_steps(say))
    seconds = lab.run.steps["notes, learnt"].seconds
    tokens = sum(edit.length() for edit in edits)
    results = {"questions": len(exam), "tokens": tokens, "training seconds": round(seconds)}
    about = {"files": files_of(files), "learnt before": config.adapter or None, "results": results}
    lora = LoRAConfig(lab.inner.rank, lab.inner.alpha)

    def save(state: dict[str, Tensor]) -> None:
        lab.reset()  # the adapter is one of the model as it was, and known by its weights
        save_adapter(config.out, lab.policy, state, lora, config.model, about=about)

    fresh = not is_examined(lab.run, 1)  # else an adapter that went over it lies there
    if fresh:
        save(state)
    lab.reset()
    merge_state(lab.policy, state)
    after = lab.arm("after", lambda: lab.plain(study.batches()), over="before") if exam else []
    if exam:
        for name, trials in (("before", before), ("after", after)):
            results[name] = sum(grades_of(trials)) / len(exam)
        if fresh:
            save(state)
        say("\n" + compare(exam, before, after))
    if config.refine:
        first = Standing(state, study.notes, grades_of(after))
        last, results["passes"] = refine(study, config.refine, first, save, say)
        save(last.state)
    say(
        f"\nadapter: {config.out} ({tokens} tokens, {seconds:.0f} s of training). To ask it: "
        f'minseal ask "..." --model {config.model} --adapter {config.out}'
    )
    return results


def prepare(config: LearnConfig, files: list[str], say: Callable[[str], None]) -> Study:
    """Everything that is read, and what the model writes before it learns: notes and exam."""
    if not config.model:
        raise UserError("which model shall learn? --model FOLDER, GGUF file or hub id")
    need("safetensors", "weights", "writing the adapter")  # now, not after minutes
    out = Path(config.out)
    if config.refine and is_same(config.notes, out / "notes.md"):
        told = f"--refine adds notes to {out / 'notes.md'}"
        raise UserError(f"{told}: give --notes a copy of it, or choose another --out")
    texts = {name: read_document(name) for name in files_of(files)}
    given_exam = read_questions(config.exam) if config.exam else None
    model, tokenizer = load(config.model, config.device, config.dtype)
    task = Knowledge(tokenizer, grading="contains", topic=False)
    given_notes, titles = read_notes(task, config.notes) if config.notes else (None, {})
    written = {i: some for i, some in (given_notes or {}).items() if some}
    run = open_run(config, [texts, given_exam, written, *marks(config)], say)
    lab, start = open_lab(config, run, model, task)
    sections = cut_documents(lab, config, texts)
    check_titles(config, sections, titles)
    words = sum(len(text.split()) for text in texts.values())
    many = "s" * (len(sections) > 1)
    size = f"{lab.policy.size() / 1e6:.1f} M parameters"
    say(f"{words} words in {len(sections)} section{many}, {size}")

    if config.policy and given_notes is None:  # the policy of a run writes the notes
        restore_policy(lab.policy, config.policy)
    notes = write_notes(lab, config.prompts, sections) if given_notes is None else given_notes
    lab.reset()
    make_edits(lab, sections, notes)  # a note that does not fit is refused before it is kept
    keep(run, out / "notes.md", notes_as_text(sections, notes), say, config.notes)
    say(f"notes: {out}/notes.md, {sum(map(len, notes.values()))} of them")

    exam, written_on = write_exam(lab, sections) if given_exam is None else (given_exam, {})
    keep(run, out / "exam.json", exam_as_text(exam), say, config.exam)
    say(f"exam: {out}/exam.json, {len(exam)} questions")
    if not exam:
        say("no answer that the model wrote stands in the text; give --exam to see what it learns")
    return Study(lab, out, config.prompts, start, sections, notes, exam, written_on)


# ---- folders -------------------------------------------------------------------------------------


def open_run(config: LearnConfig, read: list[Any], say: Callable[[str], None]) -> Run:
    """The run folder in --out: the last one if it is this very run, else a new one.

    read: what was read; an edited file makes another run. Refused if something would be lost:
    --out must be empty, or go on from itself.
    """
    out = Path(config.out)
    settings = {"kind": "learn", "read": zlib.crc32(repr(read).encode()), **asdict(config)}
    if not config.refine:
        del settings["refine"]  # so a run from before there was this option is known again

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
            all_of_it = FINISHED if config.refine else "notes, learnt"
            say(f"{run.folder}: {learnt if all_of_it in run.steps else going_on}")
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


def files_of(files: list[str]) -> list[str]:
    return list(dict.fromkeys(map(str, files)))


def is_same(given: str, path: str | Path) -> bool:
    """Whether an option names this file or folder; without the option it names none."""
    return bool(given) and real_path(given) == real_path(path)


def is_run(folder: Path) -> bool:
    tidy(folder)
    return (folder / "config.json").exists()


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
