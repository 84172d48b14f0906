"""Teach a model your own documents: it writes notes, trains one adapter on them, and sits an exam before and after."""

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
from .selfedit import InvalidSelfEdit, SelfEdit
from .tasks.knowledge import PROMPTS, Context, Knowledge, question_and_answer, read_questions, read_text, score
from .weights import DTYPES, load


@dataclass(frozen=True)
class StudyConfig(InnerConfig):
    """The inner loop for whole documents: many steps for one adapter, instead of few for each of many."""
    lr: float = 1e-3              # learning rate
    epochs: int = 6               # passes over notes and sections
    batch: int = 8                # notes and sections in one gradient step; 0: all of them
    decay: str = "linear"         # none | linear: the learning rate over the steps
    row_tokens: int = 1024        # notes and sections of a step are packed into rows of about so many tokens


@dataclass(frozen=True)
class LearnConfig:
    """Teach a model text or Markdown files: it writes notes, one adapter is trained on notes and text, an exam is sat before and after."""
    model: str = ""               # a folder (minseal's own or Hugging Face's), a GGUF file, or a hub id such as owner/name
    out: str = "adapter"          # folder of the adapter (PEFT's format), with the notes and the exam
    adapter: str = ""             # go on from this adapter: what was learnt persists
    policy: str = ""              # a folder of `minseal run knowledge`: its taught policy writes the notes
    notes: str = ""               # train on the notes in this file, an edited notes.md, instead of new ones
    exam: str = ""                # questions to ask before and after: JSON, a list of {question, answer}; otherwise the model writes them
    prompts: str = "self-qa,implications"  # how the notes are asked for, comma between: each section gets notes of each kind
    section: int = 250            # tokens of a section at most: files are cut at headings and paragraphs
    temperature: float = 0.7      # of sampling notes
    seed: int = 0                 # of sampling, and of the adapter's first weights
    device: str = "auto"          # auto | cpu | cuda: auto takes a GPU if there is one
    dtype: str = "auto"           # auto | float32 | bfloat16 | float16: of the model's weights; auto: as they are stored
    inner: StudyConfig = field(default_factory=StudyConfig)

    def __post_init__(self):
        at_least(self, section=32, temperature=0, seed=0)
        one_of(self, dtype=("auto", *DTYPES))
        if unknown := [p for p in self.prompts.replace(" ", "").split(",") if p not in PROMPTS]:
            raise UserError(f"--prompts names {unknown[0]!r}; expected some of {', '.join(PROMPTS)}")


def learn(config, files, say=print):
    """Do it; returns {'before', 'after': share of the exam answered right, 'questions', 'tokens', 'training seconds'}.

    Notes and exam are written to config.out before training begins: Ctrl-C after that loses no writing.
    """
    if not config.model:
        raise UserError("which model shall learn? --model FOLDER, GGUF file or hub id")
    if (Path(config.out) / "adapter_config.json").exists() and Path(config.out) != Path(config.adapter):
        raise UserError(f"{config.out} holds an adapter already: go on from it with --adapter {config.out}, or choose another --out")
    texts = {str(f): read_document(f) for f in files}
    notes, exam = read_notes(config.notes) if config.notes else None, read_questions(config.exam) if config.exam else None
    model, tokenizer = load(config.model, config.device, config.dtype)
    start, lora = None, LoRAConfig(config.inner.rank, config.inner.alpha)
    if config.adapter:
        adapters, lora = load_adapter(config.adapter, model, config.model)
        start = adapters.state()
        adapters.remove()
    sections = [s for name, text in texts.items() for s in cut(tokenizer, name, text, config.section)]
    say(f"{sum(len(text.split()) for text in texts.values())} words in {len(sections)} sections, for a model of {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters")

    notes, exam = notes_and_exam(model, tokenizer, sections, config, notes, exam)
    write_folder(config.out, {"notes.md": lambda path: path.write_text(notes_text(sections, notes), encoding="utf-8"),
                              "exam.json": write_json([{"question": q, "answer": a} for q, (a, *_) in exam])})
    say(f"notes: {config.out}/notes.md (edit them and train again with --notes); exam of {len(exam)} questions: {config.out}/exam.json")

    before = sit(model, tokenizer, exam, start, lora)
    edit, began = self_edit(tokenizer, sections, notes), time.time()
    with tqdm(desc="training", unit="step", disable=None) as bar:
        def on_step(step, steps, loss):
            bar.total = steps
            bar.set_postfix_str(f"loss {loss.mean():.2f}")
            bar.update()
        adapters = adapt(model, [edit], replace(config.inner, rank=lora.rank, alpha=lora.alpha), config.seed, start, on_step)
    if adapters.failed:
        raise UserError(f"training failed ({adapters.failed[0]}): try a lower --inner.lr; the notes are kept in {config.out}")
    seconds, state = time.time() - began, adapters.state()
    adapters.remove()
    after = sit(model, tokenizer, exam, state, lora)
    results = {"before": float(np.mean([grade for _, grade in before])), "after": float(np.mean([grade for _, grade in after])),
               "questions": len(exam), "tokens": sum(len(d.ids) for d in edit.documents), "training seconds": round(seconds)}
    about = {"files": list(texts), "results": results, "learnt before": config.adapter or None}
    save_adapter(config.out, model, state, lora, config.model, about=about)
    say("\n" + table(exam, before, after))
    say(f"\nadapter: {config.out} ({results['tokens']} tokens, {seconds:.0f} s of training). "
        f"To ask it: minseal ask \"...\" --model {config.model} --adapter {config.out}")
    return results


def notes_and_exam(model, tokenizer, sections, config, notes=None, exam=None):
    """What is not given is written by the model, or by the policy that was taught from it."""
    if notes is None and config.policy:
        original = {name: t.clone() for name, t in model.state_dict().items()}
        taught(model, config.policy)
        notes = write_notes(model, tokenizer, sections, config)
        model.load_state_dict(original)
    return notes if notes is not None else write_notes(model, tokenizer, sections, config), exam or write_exam(model, tokenizer, sections, config)


def taught(model, folder):
    """Turn the model into the policy that a run's outer loop ended with."""
    run = Run(folder)
    rounds, m = run.config.get("outer", {}).get("rounds", 0), run.config.get("outer", {}).get("m_step", {})
    states = [run.tensors(f"round {r} M-step") for r in range(1, rounds + 1)]
    if not states or any(s is None for s in states):
        raise UserError(f"{folder} holds no finished outer loop: expected the M-steps of {rounds} rounds in its checkpoints")
    try:
        for state in states:
            apply(model, state, MStepConfig(rank=m["rank"], alpha=m["alpha"]))
    except (ValueError, KeyError, RuntimeError) as e:
        raise UserError(f"the policy of {folder} was made from another model ({run.config.get('model')}): {e}") from None


# ---- documents -------------------------------------------------------------------------------------------------------

def read_document(path):
    """A text or Markdown file with words in it."""
    text = read_text(path)
    if "\0" in text or not re.search(r"\w", text):
        raise UserError(f"{path} is {'binary' if chr(0) in text else 'empty'}; expected a text or Markdown file with words in it")
    return text


def cut(tokenizer, name, text, most):
    """A document -> Contexts of at most `most` tokens, cut at headings and paragraphs, and at sentences where a paragraph is too long."""
    title, sections, here = Path(name).stem.replace("_", " "), [], []

    def close():
        if here:
            sections.append(Context(f"{name}, section {len(sections) + 1}", title, "\n\n".join(here), ()))
            here.clear()

    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        lines = paragraph.strip().split("\n")
        while lines and (heading := re.match(r"#{1,6}\s+(.*)", lines[0])):
            close()
            title, lines = heading[1].strip(), lines[1:]
        for piece in pieces(tokenizer, " ".join(line.strip() for line in lines), most):
            if here and len(tokenizer.encode("\n\n".join([*here, piece]))) > most:
                close()
            here.append(piece)
    close()
    return sections


def pieces(tokenizer, paragraph, most):
    """A paragraph whole, or its sentences, or (one without end) its words, packed into as few pieces of at most `most` tokens as follow in order."""
    for parts in ([paragraph], re.split(r"(?<=[.!?])\s+", paragraph), paragraph.split(), list(paragraph)):
        if all(len(tokenizer.encode(p)) <= most for p in parts):
            break
    out = []
    for part in parts:
        if out and len(tokenizer.encode(f"{out[-1]} {part}")) <= most:
            out[-1] += f" {part}"
        elif part.strip():
            out.append(part)
    return out


# ---- notes and exam --------------------------------------------------------------------------------------------------

def write_notes(model, tokenizer, sections, config):
    """{section's number: its notes as text}, of every prompt style."""
    notes = {}
    for i, style in enumerate(tqdm(config.prompts.replace(" ", "").split(","), desc="writing notes", unit="prompt", disable=None)):
        task = Knowledge(tokenizer, style)
        texts = sample(model, tokenizer, [task.prompt(s) for s in sections], 1, task.edit_tokens, config.temperature, seed=mix_seed(config.seed, i))
        for number, (section, (text,)) in enumerate(zip(sections, texts), 1):
            try:
                task.parse(section, text)
            except InvalidSelfEdit:
                continue
            notes.setdefault(number, []).append("\n".join(task.lines(text)))
    return {number: "\n".join(parts) for number, parts in notes.items()}


def write_exam(model, tokenizer, sections, config):
    """Questions that the model wrote while it saw the text, as ((question, (answer,)), ...); those whose answer is not in the text are dropped."""
    task = Knowledge(tokenizer, "self-qa")
    texts = sample(model, tokenizer, [task.prompt(s) for s in sections], 1, task.edit_tokens, config.temperature, seed=mix_seed(config.seed, 99))
    found = {}
    for section, (text,) in zip(sections, texts):
        for line in task.lines(text):
            qa = question_and_answer(line)
            if qa and score(section.text, qa[1], "contains"):
                found.setdefault(qa[0], (qa[1],))
    if not found:
        raise UserError("the model wrote no question whose answer stands in the text: give an --exam of your own")
    return tuple(found.items())


def notes_text(sections, notes):
    """The notes as a file to read and edit; read_notes() reads it."""
    return "\n".join(f"## Section {i}: {s.title}\n\n{notes.get(i, '')}\n" for i, s in enumerate(sections, 1))


def read_notes(path):
    """{section's number: notes} from a file that notes_text() made."""
    text = read_text(path)
    parts = re.split(r"^## Section (\d+):.*$", text, flags=re.MULTILINE)
    if len(parts) < 3:
        raise UserError(f"{path} holds no line '## Section 1: ...': expected notes as `minseal learn` writes them")
    return {int(n): notes.strip() for n, notes in zip(parts[1::2], parts[2::2]) if notes.strip()}


def self_edit(tokenizer, sections, notes):
    """All notes and sections as one SelfEdit."""
    task = Knowledge(tokenizer, topic=False)
    return SelfEdit(tuple(d for i, s in enumerate(sections, 1)
                          for d in task.edit(s, [line for line in notes.get(i, "").split("\n") if line.strip()]).documents))


def sit(model, tokenizer, exam, state=None, lora=None, at_once=32):
    """[(answer, grade)] of the model, with the adapter of `state` if there is one, without the text."""
    task, asked = Knowledge(tokenizer, grade="contains"), Context("exam", "", "", tuple(exam))
    prompts, answers = task.exam(asked), []
    if state is not None:
        adapters = attach(model, 1, lora)
        adapters.load(state)
    for i in tqdm(range(0, len(prompts), at_once), desc="exam", unit="batch", leave=False, disable=None):
        answers += [text.strip() for (text,) in sample(model, tokenizer, prompts[i:i + at_once], 1, task.answer_tokens, 0, stop=task.stop)]
    if state is not None:
        adapters.remove()
    return list(zip(answers, task.grade(asked, answers)))


def table(exam, before, after, shown=12, width=34):
    """Before and after, question by question (the first few), and the sums."""
    def short(text, n=width):
        return text if len(text) <= n else text[:n - 3] + "..."
    rows = [f"{'question':<{width + 14}}{'expected':<22}{'before':<{width}}  {'after':<{width}}"]
    for (question, (answer, *_)), (a, ga), (b, gb) in list(zip(exam, before, after))[:shown]:
        rows.append(f"{short(question, width + 12):<{width + 14}}{short(answer, 20):<22}{'+' if ga else ' '} {short(a, width - 2):<{width - 2}}  {'+' if gb else ' '} {short(b, width - 2)}".rstrip())
    if len(exam) > shown:
        rows.append(f"... {len(exam) - shown} more")
    n = len(exam)
    return "\n".join(rows) + f"\n\nright: {sum(g > 0 for _, g in before)} of {n} before, {sum(g > 0 for _, g in after)} of {n} after (closed book; a + marks an answer that contains the expected one)"


# ---- asking ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class AskConfig:
    """Ask a model, with an adapter or without. `ask` answers one question as in the exam; `chat` goes on line by line."""
    model: str = ""               # a folder (minseal's own or Hugging Face's), a GGUF file, or a hub id such as owner/name
    adapter: str = ""             # folder of an adapter: `minseal learn` makes one, PEFT too
    max_tokens: int = 128         # longest answer
    temperature: float = 0.0      # 0: the likeliest token each time
    seed: int = 0                 # of sampling
    device: str = "auto"          # auto | cpu | cuda: auto takes a GPU if there is one
    dtype: str = "auto"           # auto | float32 | bfloat16 | float16: of the model's weights; auto: as they are stored

    def __post_init__(self):
        at_least(self, max_tokens=1, temperature=0, seed=0)
        one_of(self, dtype=("auto", *DTYPES))


def opened(config):
    """(model, tokenizer), the adapter attached."""
    if not config.model:
        raise UserError("which model? --model FOLDER, GGUF file or hub id")
    model, tokenizer = load(config.model, config.device, config.dtype)
    if config.adapter:
        load_adapter(config.adapter, model, config.model)
    return model, tokenizer


def ask(config, question):
    """The answer to one question: asked as the exam asks if there is an adapter (or no chat format), else as a turn of a chat."""
    model, tokenizer = opened(config)
    prompt, stop = asked_alone(tokenizer, question) if config.adapter or not tokenizer.chat else (tokenizer.prompt(question), None)
    return sample(model, tokenizer, [prompt], 1, config.max_tokens, config.temperature, stop=stop, seed=config.seed)[0][0].strip()


def asked_alone(tokenizer, question):
    """(ids, stop) of a question as an exam asks it."""
    task = Knowledge(tokenizer)
    (prompt,) = task.exam(Context("asked", "", "", ((question, ("",)),)))
    return prompt, task.stop


def chat(config, read=input, say=print):
    """Line by line until an empty line or the end of the input. A base model sees each line as a question of its own."""
    model, tokenizer = opened(config)
    turns = []
    say("an empty line ends the chat")
    while line := _line(read):
        if tokenizer.chat:
            turns.append(("user", line))
            prompt, stop = tokenizer.turns(turns), None
        else:
            prompt, stop = asked_alone(tokenizer, line)
        while len(prompt) + config.max_tokens > model.config.block_size and len(turns) > 1:
            turns = turns[2:]
            prompt = tokenizer.turns(turns)
        ((answer,),) = sample(model, tokenizer, [prompt], 1, config.max_tokens, config.temperature, stop=stop, seed=mix_seed(config.seed, len(turns)))
        say(answer.strip())
        turns.append(("assistant", answer.strip()))


def _line(read):
    try:
        return read("> ").strip()
    except EOFError:
        return ""
