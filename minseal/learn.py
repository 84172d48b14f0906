"""Teach a model your own documents: it writes notes, trains one adapter on them, and sits an exam before and after."""

import itertools
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .adapters import load_adapter, save_adapter
from .errors import UserError, at_least, one_of
from .files import write_folder, write_json
from .inner import InnerConfig, adapt
from .lora import LoRAConfig, attach
from .outer import MStepConfig, apply, mix_seed
from .runs import Run
from .sample import sample
from .selfedit import InvalidSelfEdit, SelfEdit, read_directives
from .tasks.knowledge import (
    PROMPTS,
    Context,
    Knowledge,
    question_and_answer,
    read_questions,
    read_text,
    score,
)
from .weights import DTYPES, load


@dataclass(frozen=True)
class StudyConfig(InnerConfig):
    """The inner loop for whole documents: many steps for one adapter, instead of few for each of many."""

    lr: float = 1e-3  # learning rate
    epochs: int = 6  # passes over notes and sections
    batch: int = 8  # notes and sections in one gradient step; 0: all of them
    decay: str = "linear"  # none | linear: the learning rate over the steps
    row_tokens: int = (
        1024  # notes and sections of a step are packed into rows of about so many tokens
    )


@dataclass(frozen=True)
class LearnConfig:
    """Teach a model text or Markdown files: it writes notes, one adapter is trained on notes and text, an exam is sat before and after."""

    model: str = ""  # a folder (minseal's own or Hugging Face's), a GGUF file, or a hub id such as owner/name
    out: str = "adapter"  # folder of the adapter (PEFT's format), with the notes and the exam
    adapter: str = ""  # go on from this adapter: what was learnt persists
    policy: str = ""  # a folder of `minseal run knowledge` on the same model: its taught policy writes the notes (give its --prompt as --prompts)
    notes: str = ""  # train on the notes in this file, an edited notes.md, instead of new ones
    exam: str = ""  # questions to ask before and after: JSON, a list of {question, answer}; otherwise the model writes them
    prompts: str = "self-qa,implications"  # how the notes are asked for, comma between: each section gets notes of each kind
    section: int = 250  # tokens of a section at most: files are cut at headings and paragraphs
    temperature: float = 0.7  # of sampling notes
    seed: int = 0  # of sampling, and of the adapter's first weights
    device: str = "auto"  # auto | cpu | cuda: auto takes a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16: of the model's weights; auto: as they are stored
    inner: StudyConfig = field(default_factory=StudyConfig)

    def __post_init__(self):
        at_least(self, section=32, temperature=0, seed=0)
        one_of(self, dtype=("auto", *DTYPES))
        if unknown := [p for p in self.prompts.replace(" ", "").split(",") if p not in PROMPTS]:
            raise UserError(
                f"--prompts names {unknown[0]!r}; expected some of {', '.join(PROMPTS)}"
            )


def learn(config, files, say=print):
    """Do it; returns {'before', 'after': share of the exam answered right, 'questions', 'tokens', 'training seconds'}.

    Whatever is finished is on disk: the notes before the exam is written, both before training, the adapter before the last exam.
    """
    if not config.model:
        raise UserError("which model shall learn? --model FOLDER, GGUF file or hub id")
    out = room_for(config)
    texts = {str(f): read_document(f) for f in files}
    notes, exam = (
        read_notes(config.notes) if config.notes else None,
        read_questions(config.exam) if config.exam else None,
    )
    model, tokenizer = load(config.model, config.device, config.dtype)
    start, lora = None, LoRAConfig(config.inner.rank, config.inner.alpha)
    if config.adapter:
        adapters, lora = load_adapter(config.adapter, model, config.model)
        start, lora = adapters.state(), LoRAConfig(lora.rank, lora.alpha)
        adapters.remove()
        adapters = attach(model, 1, lora, config.seed)
        start = {**adapters.state(), **start}  # layers that it did not adapt join in
        adapters.remove()
    sections = [
        s for name, text in texts.items() for s in cut(tokenizer, name, text, config.section)
    ]
    check_sections(tokenizer, sections, notes, config, model.config.block_size)
    say(
        f"{sum(len(text.split()) for text in texts.values())} words in {len(sections)} sections, for a model of {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters"
    )

    if notes is None:
        notes = write_notes(model, tokenizer, sections, config)
    keep_older(out / "notes.md", config.notes)
    write_folder(
        out,
        {"notes.md": lambda path: path.write_text(notes_text(sections, notes), encoding="utf-8")},
    )
    edit = self_edit(tokenizer, sections, notes, model.config.block_size)
    say(f"notes: {out}/notes.md, {len(edit.documents) - len(sections)} of them")
    exam = exam or write_exam(model, tokenizer, sections, config)
    keep_older(out / "exam.json", config.exam)
    write_folder(
        out,
        {
            "exam.json": write_json(
                [{"question": q, "answers": list(answers)} for q, answers in exam]
            )
        },
    )
    say(
        f"exam: {out}/exam.json, {len(exam)} questions"
        + (
            ""
            if exam
            else ": the model wrote none whose answer stands in the text; give --exam to see what it learns"
        )
    )

    before = sit(model, tokenizer, exam, start, lora)
    state, seconds = trained(model, edit, config, start, lora)
    results = {
        "questions": len(exam),
        "tokens": sum(len(d.ids) for d in edit.documents),
        "training seconds": round(seconds),
    }
    about = {"files": list(texts), "learnt before": config.adapter or None}
    save_adapter(out, model, state, lora, config.model, about={**about, "results": results})
    after = sit(model, tokenizer, exam, state, lora)
    if exam:
        results.update(
            before=float(np.mean([grade for _, grade in before])),
            after=float(np.mean([grade for _, grade in after])),
        )
        save_adapter(out, model, state, lora, config.model, about={**about, "results": results})
        say("\n" + table(exam, before, after))
    say(
        f'\nadapter: {out} ({results["tokens"]} tokens, {seconds:.0f} s of training). To ask it: minseal ask "..." --model {config.model} --adapter {out}'
    )
    return results


def room_for(config):
    """The folder to write into; refused if something would be lost there."""
    out = Path(config.out)
    there = (
        {f.name for f in out.iterdir()} if out.is_dir() else {out.name} if out.exists() else set()
    )
    if config.adapter and out.resolve() == Path(config.adapter).resolve():
        return out
    if "adapter_config.json" in there:
        raise UserError(
            f"{out} holds an adapter already: go on from it with --adapter {out}, or choose another --out"
        )
    if there and Path(config.notes or "-").resolve() != (out / "notes.md").resolve():
        hint = (
            f"train on the notes in it with --notes {out / 'notes.md'}, or "
            if "notes.md" in there
            else ""
        )
        raise UserError(f"{out} is there already and not empty: {hint}choose another --out")
    return out


def keep_older(file, given):
    """What was learnt before stays beside what is learnt now: notes.md becomes notes-1.md, unless it is the very file that was given."""
    if file.exists() and file.resolve() != Path(given or "-").resolve():
        file.rename(
            next(
                new
                for n in itertools.count(1)
                if not (new := file.with_stem(f"{file.stem}-{n}")).exists()
            )
        )


def check_sections(tokenizer, sections, notes, config, block_size):
    """Refuse what would fail after minutes: no text, sections too long for the model, notes of other sections."""
    if not sections:
        raise UserError("there is no text under the headings: nothing to learn")
    styles = [
        Knowledge(tokenizer, style)
        for style in (*config.prompts.replace(" ", "").split(","), "self-qa")
    ]
    longest = max(len(task.prompt(s)) + task.edit_tokens for s in sections for task in styles)
    if longest > block_size:
        raise UserError(
            f"a section needs {longest} tokens with what is asked about it and written on it; the model reads {block_size}: lower --section"
        )
    if notes and max(notes) > len(sections):
        raise UserError(
            f"{config.notes} holds notes on section {max(notes)}; there are {len(sections)}: give the same files and --section as when it was written"
        )


def trained(model, edit, config, start, lora):
    """(state of the adapter, seconds), after the inner loop."""
    began = time.time()
    with tqdm(desc="training", unit="step", disable=None) as bar:

        def on_step(step, steps, loss):
            bar.total = steps
            bar.set_postfix_str(f"loss {loss.mean():.2f}")
            bar.update()

        adapters = adapt(
            model,
            [edit],
            replace(config.inner, rank=lora.rank, alpha=lora.alpha),
            config.seed,
            start,
            on_step,
        )
    state = adapters.state()
    adapters.remove()
    if adapters.failed:
        raise UserError(
            f"training failed ({adapters.failed[0]}): try a lower --inner.lr; the notes are kept in {config.out}"
        )
    return state, time.time() - began


def taught(model, folder):
    """Turn the model into the policy that the outer loop of a run ended with."""
    run = Run(folder)
    rounds, m = (
        run.config.get("outer", {}).get("rounds", 0),
        run.config.get("outer", {}).get("m_step", {}),
    )
    if not rounds or f"round {rounds}" not in run.done:
        raise UserError(
            f"{folder} holds no finished outer loop: expected {rounds or 'some'} rounds"
        )
    try:
        for r in range(1, rounds + 1):
            if (
                state := run.tensors(f"round {r} M-step")
            ) is not None:  # a round without winners taught nothing
                apply(model, state, MStepConfig(rank=m["rank"], alpha=m["alpha"]))
    except (ValueError, KeyError, RuntimeError) as e:
        raise UserError(
            f"the policy of {folder} was made from another model ({run.config.get('model')}): {e}"
        ) from None


# ---- documents -------------------------------------------------------------------------------------------------------


def read_document(path):
    """A text or Markdown file with words in it."""
    text = read_text(path)
    if "\0" in text or not re.search(r"\w", text):
        raise UserError(
            f"{path} is {'binary' if chr(0) in text else 'empty'}; expected a text or Markdown file with words in it"
        )
    return text


def cut(tokenizer, name, text, most):
    """A document -> Contexts of at most `most` tokens, cut at headings and paragraphs, and at sentences where a paragraph is too long."""
    title, sections, paragraphs, lines, code = Path(name).stem.replace("_", " "), [], [], [], False

    def close():
        if paragraphs:
            sections.append(
                Context(f"{name}, section {len(sections) + 1}", title, "\n\n".join(paragraphs), ())
            )
            paragraphs.clear()

    def end_paragraph():
        for piece in pieces(tokenizer, " ".join(lines), most):
            if paragraphs and len(tokenizer.encode("\n\n".join([*paragraphs, piece]))) > most:
                close()
            paragraphs.append(piece)
        lines.clear()

    for line in map(str.strip, text.split("\n")):
        code ^= line.startswith("```")  # a '#' in a code block is no heading
        heading = None if code else re.match(r"#{1,6}\s+(.*)", line)
        if heading or not line:
            end_paragraph()
        if heading:
            close()
            title = heading[1].strip()
        elif line:
            lines.append(line)
    end_paragraph()
    close()
    return sections


def pieces(
    tokenizer, text, most, cuts=((r"(?<=[.!?])\s+", " "), (r"\s+", " "), (r"(?<=.)(?=.)", ""))
):
    """A text in pieces of at most `most` tokens: whole if it fits, else its sentences, else words, else letters, as many together as fit."""
    if not text.strip() or len(tokenizer.encode(text)) <= most:
        return [text] if text.strip() else []
    (pattern, joint), *finer = cuts
    out = []
    for part in (
        p for whole in re.split(pattern, text) for p in pieces(tokenizer, whole, most, finer)
    ):
        if out and len(tokenizer.encode(out[-1] + joint + part)) <= most:
            out[-1] += joint + part
        else:
            out.append(part)
    return out


# ---- notes and exam --------------------------------------------------------------------------------------------------


def write_notes(model, tokenizer, sections, config):
    """{section's number: its notes as text, those of every prompt style}. With config.policy the policy of a run writes them."""
    original = {name: t.clone() for name, t in model.state_dict().items()} if config.policy else {}
    if config.policy:
        taught(model, config.policy)
    notes = {}
    for i, style in enumerate(config.prompts.replace(" ", "").split(",")):
        task = Knowledge(tokenizer, style)
        for number, text in enumerate(written(model, tokenizer, task, sections, config, i), 1):
            try:
                task.parse(sections[number - 1], text)
                lines = task.lines(
                    read_directives(text)[1]
                )  # directives are for runs: here the inner loop's settings hold
            except InvalidSelfEdit:
                continue
            notes[number] = "\n".join([*([notes[number]] if number in notes else []), *lines])
    model.load_state_dict(original, strict=False)
    return notes


def written(model, tokenizer, task, sections, config, i, at_once=16):
    """A self-edit of each section, as text."""
    texts = []
    for j in tqdm(
        range(0, len(sections), at_once), desc=f"writing ({task.style})", unit="batch", disable=None
    ):
        prompts = [task.prompt(s) for s in sections[j : j + at_once]]
        texts += [
            text
            for (text,) in sample(
                model,
                tokenizer,
                prompts,
                1,
                task.edit_tokens,
                config.temperature,
                seed=mix_seed(config.seed, i, j),
            )
        ]
    return texts


def write_exam(model, tokenizer, sections, config):
    """Questions that the model wrote while it saw the text, as ((question, (answer,)), ...); those whose answer is not in the text are dropped."""
    task, found = Knowledge(tokenizer, "self-qa"), {}
    for section, text in zip(sections, written(model, tokenizer, task, sections, config, 99)):
        for line in task.lines(text):
            qa = question_and_answer(line)
            if qa and score(section.text, qa[1], "contains"):
                found.setdefault(qa[0], (qa[1],))
    return tuple(found.items())


def notes_text(sections, notes):
    """The notes as a file to read and edit; read_notes() reads it."""
    return "\n".join(
        f"## Section {i}: {s.title}\n\n{notes.get(i, '')}\n" for i, s in enumerate(sections, 1)
    )


def read_notes(path):
    """{section's number: notes} from a file that notes_text() made."""
    before, *parts = re.split(r"^## Section (\d+):.*$", read_text(path), flags=re.MULTILINE)
    if not parts or before.strip():
        raise UserError(
            f"{path} does not begin with a line '## Section 1: ...': expected notes as `minseal learn` writes them"
        )
    notes = {}
    for number, text in zip(map(int, parts[::2]), parts[1::2]):
        if number in notes:
            raise UserError(f"{path} holds section {number} twice")
        notes[number] = text.strip()
    return {number: text for number, text in notes.items() if text}


def self_edit(tokenizer, sections, notes, block_size=None):
    """All notes and sections as one SelfEdit."""
    task, documents = Knowledge(tokenizer, topic=False), []
    for i, s in enumerate(sections, 1):
        lines = [line for line in notes.get(i, "").split("\n") if line.strip()]
        some = task.edit(s, lines).documents
        if block_size and (longest := max(len(d.ids) for d in some)) > block_size:
            raise UserError(
                f"section {i} or a note on it has {longest} tokens; the model reads {block_size}: shorten the line"
            )
        documents += some
    return SelfEdit(tuple(documents))


def sit(model, tokenizer, exam, state=None, lora=None, at_once=32):
    """[(answer, grade)] of the model, with the adapter of `state` if there is one, without the text."""
    if not exam:
        return []
    task, asked = Knowledge(tokenizer, grade="contains"), Context("exam", "", "", tuple(exam))
    prompts, answers = task.exam(asked), []
    if state is not None:
        adapters = attach(model, 1, lora)
        adapters.load(state)
    for i in tqdm(
        range(0, len(prompts), at_once), desc="exam", unit="batch", leave=False, disable=None
    ):
        answers += [
            text.strip()
            for (text,) in sample(
                model, tokenizer, prompts[i : i + at_once], 1, task.answer_tokens, 0, stop=task.stop
            )
        ]
    if state is not None:
        adapters.remove()
    return list(zip(answers, task.grade(asked, answers)))


def table(exam, before, after, shown=12, width=34):
    """Before and after, question by question (the first few), and the sums."""

    def short(text, n=width):
        return text if len(text) <= n else text[: n - 3] + "..."

    rows = [f"{'question':<{width + 14}}{'expected':<22}{'before':<{width}}  {'after':<{width}}"]
    for (question, (answer, *_)), (a, ga), (b, gb) in list(zip(exam, before, after))[:shown]:
        rows.append(
            f"{short(question, width + 12):<{width + 14}}{short(answer, 20):<22}{'+' if ga else ' '} {short(a, width - 2):<{width - 2}}  {'+' if gb else ' '} {short(b, width - 2)}".rstrip()
        )
    if len(exam) > shown:
        rows.append(f"... {len(exam) - shown} more")
    n = len(exam)
    return (
        "\n".join(rows)
        + f"\n\nright: {sum(g > 0 for _, g in before)} of {n} before, {sum(g > 0 for _, g in after)} of {n} after (closed book; a + marks an answer that contains the expected one)"
    )
