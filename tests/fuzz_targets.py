"""What is fuzzed: everything that reads a text or a file which somebody else wrote.

A Target has valid examples, a way to damage them, and a function that reads the damaged one: it
may succeed, or raise UserError or InvalidSelfEdit, and nothing else.
"""

import contextlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mutations import (
    ODD_TEXTS,
    as_bytes,
    mutate_bytes,
    mutate_file,
    mutate_json,
    mutate_jsonl,
    mutate_text,
)

import minseal.lab.table
from minseal import GPT, GPTConfig, Tokenizer, checkpoint
from minseal.commands import cli
from minseal.commands.documents import cut_text, read_document, read_notes, split_document
from minseal.commands.show import ShowConfig, show
from minseal.config import build
from minseal.files import load_tensors, parse_json, read_json, read_text, save_tensors
from minseal.lab.lab import EXPERIMENTS, restore_policy, settings_of
from minseal.lab.run import Run
from minseal.lora import LoRAConfig, attach
from minseal.open_models.export import export
from minseal.open_models.families import FAMILIES
from minseal.open_models.load import from_hugging_face, load
from minseal.open_models.peft import load_adapter, save_adapter
from minseal.open_models.tokenizers import to_open
from minseal.tasks import augment, knowledge
from minseal.tasks.arc import from_text, read_puzzles, to_json, to_text
from minseal.tasks.fewshot import FewShot
from minseal.tasks.knowledge import Knowledge, Note, Question
from minseal.tasks.passages import Passage, read_passages, read_questions
from minseal.tasks.people import People, pretraining_text, toy_passages
from minseal.tasks.rules import ORACLE, TOY_SIDE, toy_puzzles
from minseal.tokenizer import train_ranks

Mutate = Callable[[Random, Any, tuple, list], Any]  # (luck, an example, words, all examples)


@dataclass
class Target:
    """One thing that reads. path: of a reader of files, where the damaged file is put."""

    name: str
    examples: list  # texts; of a reader of files bytes
    read: Callable  # of a parser: text -> anything; of a reader of files: () -> anything
    share: float = 1.0  # how much of the budget, beside the others of its kind
    words: tuple = ()  # of the format, to put in
    mutate: Mutate = mutate_text
    path: Path | None = None
    seconds: float = 2.0  # of processor time that one input may take

    def input(self, seed: int, number: int) -> Any:
        """Input number `number` under this seed; 0, 1, ... are the examples as they are."""
        if number < len(self.examples):
            return self.examples[number]
        rng = Random(f"{seed}/{self.name}/{number}")
        return self.mutate(rng, rng.choice(self.examples), self.words, self.examples)

    def put(self, data: bytes) -> None:
        """Write the file anew: what is still mapped of the last one stays as it was."""
        self.path.unlink(missing_ok=True)
        self.path.write_bytes(data)


# ---- small valid things --------------------------------------------------------------------------

SHAPE = dict(
    vocab_size=300, block_size=64, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, head_dim=8
)
RANKS = train_ranks("\n".join(pretraining_text(np.random.default_rng(0)) for _ in range(20)), 290)
PLAIN = Tokenizer(RANKS)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
CHAT = Tokenizer(RANKS, specials={name: 290 + i for i, name in enumerate(SPECIALS)}, chat="chatml")
LLAMA3 = Tokenizer(RANKS, specials={"<|endoftext|>": 295}, bos=[295], chat="llama3")
PEOPLE = toy_passages(3, 0)
PUZZLES = toy_puzzles(4, 0)
PASSAGE = Passage(
    "0: Zürich",
    "Zürich",
    "Zürich is a town in Switzerland. 东京是日本的首都。\nIt has a lake (the Zürichsee).",
    (("Where is Zürich?", ("Switzerland", "in Switzerland")), ("日本的首都?", ("东京",))),
)


def make_model(family: str = "llama", tied: bool = False, seed: int = 0) -> GPT:
    """A tiny random model of a family."""
    shape = {**SHAPE, **FAMILIES[family].settings, "mlp_dim": 24, "tied": tied}
    if family == "gpt2":
        shape |= {"n_kv_head": 2}
    if family == "llama":
        shape |= {"rope_scaling": (8.0, 1.0, 4.0, 32)}
    return GPT(GPTConfig(**shape)).init_weights(torch.Generator().manual_seed(seed)).eval()


def quietly(call: Callable, *args: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return call(*args)


# ---- parsers: text in ----------------------------------------------------------------------------

NOTES = [
    "Zürich is in Switzerland.\nIt has a lake.\n\nTokyo is the capital.",
    "lr: 0.001\nepochs: 4\nloss: completion\n1. Zürich is a town.\n2. It has a lake.",
    "Here are some:\n1. One.\n2. Two.\n---\nThree --- four\n- five",
    " Where is Zürich?\nAnswer: Switzerland\nQuestion 2: What has it?\nAnswer 2: a lake",
    "Question: Where is it? Answer: Switzerland\nQuestion 3: What?\n\nAnswer:\n  a lake\n",
    "epochs=3\nlr = 1e-4\nTamo Breck is from France.",
]
NOTE_WORDS = (
    *("Question:", "Question 1:", "Question 12:", "Answer:", "Answer 3:", "lr: 0.01", "lr:"),
    *("epochs: 3\n", "epochs=", "loss: all\n", "loss: completion", "---", "1.", "1. ", "\n"),
    *("## Section 1: x\n", "## Section", "The ", "a ", "an", "Topic: ", "Notes:\n", "```\n"),
)
MARKDOWN = [
    "# A title\n\nA paragraph. With sentences! Is it?\n\n## Second ##\n\n- item\n- item\n",
    "Setext\n======\n\ntext\n\nOther\n---\n\n```python\n# no heading\n```\n\n~~~\n# none\n~~~\n",
    "---\ntitle: front\n---\n\n> quote\n> # heading\n\n    # indented code\n\n| a | b |\n|---|---|\n",
    "1. one\n   # in a list\n2. two\n\n<div>\n# html\n</div>\n\n[link](http://a \"b\") ![i](j)\n\n[r]: x\n",
    "東京は日本の首都です。富士山は高い。\n\nกรุงเทพ\n\n" + "word " * 60,
]
MARKDOWN_WORDS = (
    *("#", "# ", "###### x\n", "```", "````\n", "~~~", "===\n", "---\n", "- ", "> ", "\t", "    "),
    *("[", "](", "![", "<div>", "<!--", "-->", "&amp;", "\\", "**", "_", "`", "|", "\n\n", "  \n"),
    *("[a]: b\n", "<a href='", "http://", "* * *\n", "1. ", "1) ", "\r\n", "***", "[^1]"),
)


def parsers() -> list[Target]:
    out = []
    for style in knowledge.PROMPTS:
        for name, tokenizer in (("plain", PLAIN), ("chat", CHAT)):
            task = Knowledge(tokenizer, style)
            read = partial(task.parse, PASSAGE)
            out.append(Target(f"Knowledge.parse {style} {name}", NOTES, read, 0.6, NOTE_WORDS))
    person, people = PEOPLE[0], People(PLAIN)
    written = [*(pretraining_text(np.random.default_rng(i)) for i in range(6)), "\n".join(person.oracle)]
    for style in ("notes", "self-qa"):
        read = partial(People(PLAIN, style).parse, person)
        out.append(Target(f"People.parse {style}", written + NOTES[1:2], read, 1, NOTE_WORDS))
    note_lines = [line for text in NOTES + written for line in text.split("\n") if line]
    for task in (Knowledge(PLAIN), people):
        name = f"{type(task).__name__}.read_note"
        out.append(Target(name, note_lines, task.read_note, 2, NOTE_WORDS))
    for name in ("find_question", "split_directives", "split_lines", "split_questions"):
        out.append(Target(name, NOTES + note_lines, getattr(knowledge, name), 3, NOTE_WORDS))
    out.append(Target("line_of", NOTES + note_lines, read_back, 2, NOTE_WORDS))
    pairs = ["The lake.\tlake", "in 1811\t81", "東京です\t东京", "« l'eau »\td’eau", "a\tan"]
    for grading in ("exact", "contains", "f1"):
        read = partial(score_pair, grading)
        out.append(Target(f"score {grading}", pairs, read, 3, (*NOTE_WORDS, "\t")))
    task = Knowledge(PLAIN, grading="contains")
    out.append(Target("Knowledge.grade", NOTES, lambda text: task.grade(PASSAGE, [text] * 2)))
    for style in ("implications", "self-qa", "notes"):
        for tokenizer in (PLAIN, CHAT):
            task = Knowledge(tokenizer, style)
            read = partial(ask_about, task)
            name = f"Knowledge.prompt {style}{' chat' * bool(tokenizer.chat)}"
            out.append(Target(name, [PASSAGE.text, *NOTES], read, 0.4, ("{title}", "{", "}")))
    out += puzzle_parsers() + tokenizer_parsers() + json_parsers()
    for most in (8, 32, 60):
        read = lambda text, most=most: split_document(PLAIN, "a_b.md", text, most)
        out.append(Target(f"split_document {most}", MARKDOWN, read, 1, MARKDOWN_WORDS))
    read = lambda text: cut_text(PLAIN, text, 7)
    out.append(Target("cut_text", MARKDOWN + NOTES, read, 1, MARKDOWN_WORDS))
    out.append(cli_options())
    return out


def read_back(text: str) -> None:
    """A note as a line: read_note(line_of(note)) is the note."""
    for note in Knowledge(PLAIN, "self-qa").notes(text):
        if isinstance(note, Question | Note):
            knowledge.line_of(note)


def score_pair(grading: str, text: str) -> None:
    answer, _, gold = text.partition("\t")
    value = knowledge.score(answer, gold, grading)
    assert 0 <= value <= 1, value


def ask_about(task: Knowledge, text: str) -> None:
    title, _, rest = text.partition("\n")
    passage = Passage("0", title, rest, ((title, (rest,)),))
    for call in (task.prompt, task.exam, task.baseline, task.oracle, task.right_answers):
        call(passage)
    task.lesson(passage, text)


def puzzle_parsers() -> list[Target]:
    puzzle, out = PUZZLES[0], []
    edits = [d.to_json() for d in (*ORACLE.values(), FewShot.plain)]
    for style in ("tiny", "paper"):
        task = FewShot(
            PLAIN, style, stop="\n\n", train_puzzles=2, palette=range(6), max_side=TOY_SIDE
        )
        texts = [text.removeprefix('{"data_generation": {' * (style == "paper")) for text in edits]
        words = tuple(re.findall(r'"\w+"', edits[0])) + ("{", "}", ": ", ", ", "true", "false")
        read = partial(task.parse, puzzle)
        out.append(Target(f"FewShot.parse {style}", texts, read, 2, words))
        if style == "tiny":
            mutate = lambda rng, text, words, others: mutate_json(rng, text, words)
            names = tuple(word.strip('"') for word in words[:-6])
            out.append(Target("FewShot.parse JSON", texts, read, 2, names, mutate))
    grids = [to_text(pair.input) for one in PUZZLES for pair in one.demonstrations]
    words = ("\n", "0", "9", "01\n10\n", "\n\n", "a", "²")
    out.append(Target("from_text", grids, from_text, 3, words))
    out.append(Target("augment", grids, there_and_back, 1, words))
    for vote in (0, 1):
        task = FewShot(PLAIN, vote=vote)
        read = lambda text, task=task: task.grade(puzzle, text.split("|"))
        out.append(Target(f"FewShot.grade {vote}", ["|".join(grids)], read, 0.5, (*words, "|")))
    return out


def there_and_back(text: str) -> None:
    """Every augmentation of the grid that a text shows, and back."""
    if (grid := from_text(text)) is None:
        return
    for makers in augment.GROUPS.values():
        for make in makers:
            change = make(np.random.default_rng(0))
            assert change.inverse(change.apply(grid)) == grid
            change.inverse(grid)


def tokenizer_parsers() -> list[Target]:
    out, words = [], (*SPECIALS, "<|eot_id|>", "'s", "'ll", " ", "\n", "\r\n", "{text}", "{0}")
    texts = [*NOTES, MARKDOWN[-1], "for i in range(12):\n    print(i)\n\n", "naïve café – 東京 🦭"]
    some = {"plain": PLAIN, "chatml": CHAT, "llama3": LLAMA3, "open": to_open(PLAIN)}
    some["open chat"] = to_open(CHAT)
    for name, tokenizer in some.items():
        out.append(Target(f"tokenizer {name}", texts, partial(encode, tokenizer), 1.5, words))
        ids = [json.dumps(tokenizer.encode(text)[:20] + [290]) for text in texts]
        read = partial(decode, tokenizer)
        out.append(Target(f"decode {name}", ids, read, 1.5, ("[", "]", ", ", "290", "-1", "299")))
    return out


def encode(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenizer.decode(ids) == whole, "other text comes back"
    tokenizer.begin(text)
    tokenizer.prompt(text)
    if tokenizer.chat:
        role, _, rest = text.partition("\n")
        tokenizer.turns([("user", text), (role, rest)])


def decode(tokenizer: Tokenizer, text: str) -> None:
    ids = [int(n) for n in re.findall(r"-?\d{1,4000}", text, re.ASCII)]
    try:
        tokenizer.decode(ids)
    except ValueError as e:
        known = getattr(tokenizer, "tokens", range(tokenizer.vocab_size))
        if type(e) is not ValueError or all(id in known for id in ids):
            raise


def json_parsers() -> list[Target]:
    texts = [ORACLE["places"].to_json(), json.dumps(to_json(PUZZLES[0])), "[1, 2.5e3, null]"]
    words = ("{", "}", "[", "]", ":", ",", '"a"', "\\u", "\\ud800", "true", "NaN", "1e5")
    out = [
        Target("parse_json", texts, lambda text: parse_json(text, "it"), 2, words),
        Target("parse_json once", texts, lambda text: parse_json(text, "it", True), 2, words),
    ]

    def theirs(text: str) -> None:
        about = parse_json(text, "config.json")
        if isinstance(about, dict):
            from_hugging_face(about, "config.json")

    def ours(text: str) -> None:
        about = parse_json(text, "config.json")
        if isinstance(about, dict):
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items()}
            checkpoint.make_config(values, "config.json")

    mutate = lambda rng, text, words, others: mutate_json(rng, text, words)
    examples = [json.dumps(about) for about in map(their_config, FAMILIES)]
    keys = (*json.loads(examples[0]), "rope_parameters", "rope_scaling", "rope_type", "factor")
    out.append(Target("from_hugging_face", examples, theirs, 3, keys, mutate))
    examples = [json.dumps(asdict(make_model(family).config)) for family in FAMILIES]
    out.append(Target("make_config", examples, ours, 3, (*json.loads(examples[0]),), mutate))
    return out


def their_config(family: str) -> dict:
    from minseal.open_models.export import to_hugging_face

    return to_hugging_face(make_model(family).config)[1]


def cli_options() -> Target:
    """The command line: an argument a line."""
    parser = cli.parser()
    examples = [
        "run\nknowledge\n--rounds\n2\n--inner.lr\n1e-3\n--other-prompts\nrewrite,self-qa",
        "run\nfewshot\n--data\nx.json\n--vote\n2\n--solvable\ntrue\n--out\nruns/a",
        "run\nttt\n--augmentations\nbasic,color\n--epochs\n3\n--seed=5",
        "learn\na.md\nb.md\n--model\nm\n--section\n100\n--temperature\n0.7",
        "ask\nwhat?\n--model\nm\n--max-tokens\n5\n--dtype\nfloat32",
        "convert\na\nb\n--dtype\nauto",
        "pretrain\nknowledge\n--steps\n10",
    ]
    words = (*re.findall(r"--[\w.-]+", "\n".join(examples)), "none", "nan", "inf", "--", "-h", "@x")
    words += ("--control", "--samples", "--inner.rank", "--batch", "--select", "random", "\n")

    def read(text: str) -> None:
        try:
            args, _ = quietly(parser.parse_known_args, text.split("\n"))
        except SystemExit as e:
            assert e.code in (0, 2)
            return
        build(args.command.settings, vars(args))

    return Target("command line", examples, read, 0.5, words)


# ---- readers of files ----------------------------------------------------------------------------

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Zürich",
            "paragraphs": [
                {
                    "context": "Zürich is a town.",
                    "qas": [
                        {"id": "1", "question": "What?", "answers": [{"text": "a town", "answer_start": 10}]},
                        {"id": "2", "question": "Who?", "is_impossible": True, "answers": []},
                    ],
                },
                {"context": "Nothing is asked.", "qas": []},
            ],
        }
    ],
}
FLAT = [
    {"title": "Zürich", "context": "Zürich is a town.", "questions": [{"question": "What?", "answer": "a town"}]},
    {"context": "東京は首都。", "questions": [{"question": "東京?", "answers": ["首都", "都"]}]},
]
MRQA = [
    {"header": {"dataset": "x", "split": "train"}},
    {"context": "A town.", "qas": [{"qid": "1", "question": "What?", "answers": ["town"], "detected_answers": [{"text": "town", "char_spans": [[2, 5]]}]}]},
]


def structured(change: Callable) -> Mutate:
    return lambda rng, data, words, others: mutate_file(rng, data, words, others, change)


JSON, JSONL, TEXT = structured(mutate_json), structured(mutate_jsonl), structured(None)
BYTES: Mutate = lambda rng, data, words, others: mutate_bytes(rng, data)


def keys_of(value: Any) -> list[str]:
    """Every key in it."""
    if isinstance(value, dict):
        return [*value, *(key for inside in value.values() for key in keys_of(inside))]
    return [key for inside in value for key in keys_of(inside)] if isinstance(value, list) else []


def json_file(name: str, path: Path, read: Callable, share: float = 1.0, more: tuple = ()) -> Target:
    """A Target of a JSON file that is there; more: others of its kind."""
    examples = [path.read_bytes(), *(json.dumps(value).encode() for value in more)]
    words = tuple(dict.fromkeys(keys_of([json.loads(e) for e in examples])))[:60]
    return Target(name, examples, read, share, words, JSON, path)


def readers(folder: Path) -> list[Target]:
    """All readers; their files are made in a folder, which should lie in memory."""
    parts = (data_readers, own_readers, open_readers, gguf_readers, adapter_readers, run_readers)
    out = []
    for part in parts:
        place = folder / part.__name__
        place.mkdir(parents=True)
        out += part(place)
    return out


def data_readers(folder: Path) -> list[Target]:
    out = []

    def add(name, examples, read, share=1.0, mutate=JSON, words=()):
        path = folder / name.replace(" ", "_").replace(",", "_")
        data = [e if isinstance(e, bytes) else as_bytes(e) for e in examples]
        path.write_bytes(data[0])
        out.append(Target(name, data, partial(read, path), share, words, mutate, path))

    dump = partial(json.dumps, ensure_ascii=False)
    passages = [dump(SQUAD), dump(FLAT), dump(FLAT[0]), dump(SQUAD["data"][0]["paragraphs"])]
    words = tuple(dict.fromkeys(keys_of([SQUAD, FLAT, MRQA])))
    rows = ["\n".join(map(dump, some)) + "\n" for some in (FLAT, MRQA)]
    add("passages.json", passages, read_passages, 6, JSON, words)
    add("passages.jsonl", rows, read_passages, 4, JSONL, words)
    exams = [dump(FLAT[0]["questions"]), dump(FLAT[1]), dump(FLAT[1]["questions"][0])]
    add("exam.json", exams, read_questions, 4, JSON, words)
    puzzles = [dump({p.id: to_json(p) for p in PUZZLES[:2]}), dump(to_json(PUZZLES[0]))]
    puzzles += [dump({part: {p.id: to_json(p) for p in PUZZLES[:1]} for part in ("train", "eval")})]
    keys = ("train", "test", "eval", "input", "output", "kind")
    add("puzzle.json", puzzles, read_puzzles, 5, JSON, keys)
    many = folder / "many" / "training"
    many.mkdir(parents=True)
    for p in PUZZLES[:2]:
        (many / f"{p.id}.json").write_text(dump(to_json(p)))
    one = many / f"{PUZZLES[0].id}.json"
    examples = [as_bytes(text) for text in puzzles[1:]]
    read = partial(read_puzzles, folder / "many")
    out.append(Target("a folder of puzzles", examples, read, 2, keys, JSON, one))
    kept = {p.id: to_json(p) for p in PUZZLES[:2]}
    answers = {id: [pair.pop("output") for pair in p["test"]] for id, p in kept.items()}
    challenges, solutions = folder / "challenges.json", folder / "solutions.json"
    challenges.write_text(dump(kept))
    solutions.write_text(dump(answers))
    read = partial(read_puzzles, f"{challenges},{solutions}")
    for path in (challenges, solutions):
        out.append(Target(path.name, [path.read_bytes()], read, 2, (*keys, *kept), JSON, path))
    add("any.json", [dump(FLAT[0]), dump(SQUAD)], read_json, 4, JSON, words)
    add("any.txt", [*NOTES, *MARKDOWN], read_text, 4, TEXT, NOTE_WORDS)

    def learn_from(path):
        split_document(PLAIN, str(path), read_document(str(path)), 30)

    formats = [
        *("{\\rtf1\\ansi Hello \\b world\\b0.}", "<!DOCTYPE html>\n<html><p>Hello</p></html>"),
        *("%PDF-1.4\n1 0 obj\n<< >>\nendobj\n", '{"cells": [], "nbformat": 4, "metadata": {}}'),
    ]
    add("document.md", [*MARKDOWN, *formats], learn_from, 4, TEXT, MARKDOWN_WORDS)
    add("document.txt", [*NOTES, *formats], learn_from, 2, TEXT, MARKDOWN_WORDS)
    file = "## Section 1: Zürich\n\nIt is.\nQuestion: What? Answer: It.\n\n## Section 2: b\n\nMore.\n"
    for task in (Knowledge(PLAIN, "self-qa"), People(PLAIN)):
        read = partial(read_notes, task)
        name = f"notes {type(task).__name__}.md"
        add(name, [file], read, 4, TEXT, NOTE_WORDS)
    return out


def own_readers(folder: Path) -> list[Target]:
    """minseal's own model folder."""
    own, kept = folder / "own", folder / "open"
    checkpoint.save(own, make_model(), CHAT, {"about": {"source": "x"}})
    checkpoint.save(kept, make_model("gpt2"), to_open(PLAIN), {})
    read, weights = partial(load, own), own / "weights.pt"
    ranks = own / "ranks.tiktoken"
    words = ("AA==", "=", " 5", " -1", "\n", " ", "IQ== 0\n")
    tensors = load_tensors(weights)
    return [
        json_file("own config.json", own / "config.json", read, 3),
        json_file("own config.json, open", kept / "config.json", partial(load, kept)),
        Target("own ranks.tiktoken", [ranks.read_bytes()], read, 1.5, words, TEXT, ranks),
        Target("own weights.pt", [weights.read_bytes()], read, 1, (), BYTES, weights),
        Target("own weights.pt, pickle", [weights.read_bytes()], read, 2, (), in_zip, weights),
        Target(
            "own weights.pt, tensors",
            [weights.read_bytes()],
            read,
            1.5,
            (),
            partial(other_tensors, {k: t.clone() for k, t in tensors.items()}, True),
            weights,
        ),
    ]


def in_zip(rng: Random, data: bytes, words: tuple, others: list) -> bytes:
    """torch's file is a zip of a pickle and numbers: one of them is damaged, the checksums fit."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        pickles = [name for name in names if name.endswith(".pkl")]
        hit = rng.choice(pickles if rng.random() < 0.85 else names)
        for name in names:
            member = old.read(name)
            if name == hit and rng.random() < 0.6 and name in pickles:
                member = other_opcodes(rng, member)
            elif name == hit:
                member = mutate_bytes(rng, member)
            new.writestr(name, member)
    return out.getvalue()


def other_opcodes(rng: Random, pickle: bytes) -> bytes:
    """A pickle with other small numbers, names and types in it."""
    pairs = [
        (b"K\x10", b"K\xff"),
        (b"K\x10", b"J\xff\xff\xff\x7f"),
        (b"K\x08", b"K\x00"),
        (b"K\x01", b"K\x00"),
        (b"K\x00", b"J\xff\xff\xff\xff"),
        (b"K\x01", b"\x8a\x08" + b"\xff" * 7 + b"\x7f"),
        (b"FloatStorage", b"LongStorage"),
        (b"FloatStorage", b"ByteStorage"),
        (b"FloatStorage", b"UntypedStorage"),
        (b"_rebuild_tensor_v2", b"_rebuild_parameter"),
        (b"cpu", b"cud"),
        (b"\x89", b"\x88"),
        (b"}", b"]"),
        (b"s", b"0"),
    ]
    for _ in range(rng.choice((1, 1, 2))):
        old, new = rng.choice(pairs)
        places = [found.start() for found in re.finditer(re.escape(old), pickle)]
        if places:
            i = rng.choice(places)
            pickle = pickle[:i] + new + pickle[i + len(old) :]
    return pickle


def other_tensors(
    tensors: dict, by_torch: bool, rng: Random, data: bytes, words: tuple, others: list
) -> bytes:
    """A checkpoint that is whole, and whose tensors are others, or no tensors."""
    tensors = dict(tensors)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(tensors) or ["x"])
        old = tensors.get(name, torch.ones(2))
        if not isinstance(old, torch.Tensor):
            continue
        dtype = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool)
        ways = [
            lambda: old * float("nan"),
            lambda: old * float("inf"),
            lambda: old[None],
            lambda: old.flatten(),
            lambda: old[:0],
            lambda: torch.ones(()),
            lambda: torch.empty(0),
            lambda: old.to(rng.choice(dtype)),
            lambda: torch.ones((1,) * rng.choice((5, 64, 70))),
            lambda: old[..., :1].clone(),
        ]
        if by_torch:
            sizes = rng.choice(((10**5, 10**5), (2**40,), old.shape, (300, 10**7)))
            ways += [
                lambda: torch.ones(1).expand(*sizes),
                lambda: torch.ones((1,) * max(old.dim(), 1)).expand(old.shape or (1,)),
                lambda: torch.empty(sizes, device="meta"),
                lambda: old.to(torch.complex64),
                lambda: old.to_sparse(),
                lambda: torch.quantize_per_tensor(old.float(), 0.1, 0, torch.qint8),
                lambda: torch.nn.Parameter(old.float()),
                lambda: rng.choice((None, 5, "x", [old], {"a": old})),
                lambda: torch.as_strided(torch.ones(4), (2, 2), (0, 1)),
            ]
        with contextlib.suppress(RuntimeError, IndexError):
            tensors[name] = rng.choice(ways)()
        luck = rng.random()
        if luck < 0.1:
            tensors.pop(name, None)
        elif luck < 0.2:
            tensors[rng.choice([*map(str.upper, filter(lambda n: isinstance(n, str), tensors)), ""])] = old
        elif luck < 0.25 and by_torch:
            tensors[5] = old
    out = io.BytesIO()
    if not by_torch:
        import safetensors.torch

        return safetensors.torch.save({n: t.contiguous().clone() for n, t in tensors.items()})
    try:
        torch.save(tensors if rng.random() < 0.97 else list(tensors.values()), out)
    except Exception:  # what cannot be saved cannot be met
        return data
    return out.getvalue()


def in_header(rng: Random, data: bytes, words: tuple, others: list) -> bytes:
    """Safetensors: the JSON in front is another one, and its length fits; or bytes are others."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, data)
    n = int.from_bytes(data[:8], "little")
    header = as_bytes(mutate_json(rng, data[8 : 8 + n].decode(), words))
    return len(header).to_bytes(8, "little") + header + data[8 + n :]


SAFETENSORS_WORDS = ("dtype", "shape", "data_offsets", "__metadata__", "F16", "BF16", "U8", "x")


def safetensors_files(name: str, path: Path, read: Callable, share: float) -> list[Target]:
    import safetensors.torch

    whole, tensors = path.read_bytes(), safetensors.torch.load(path.read_bytes())
    change = partial(other_tensors, tensors, False)
    return [
        Target(name, [whole], read, share, SAFETENSORS_WORDS, in_header, path),
        Target(f"{name}, tensors", [whole], read, share / 2, (), change, path),
    ]


def open_readers(folder: Path) -> list[Target]:
    """Folders in the Hugging Face layout."""
    out = []
    for family in FAMILIES:
        place = folder / family
        export(place, make_model(family, tied=family == "gpt2"), PLAIN)
        read = partial(load, place)
        out.append(json_file(f"{family} config.json", place / "config.json", read, 1))
    place = folder / "llama"
    out += safetensors_files("model.safetensors", place / "model.safetensors", partial(load, place), 2)
    out += tokenizer_files(folder / "tokenizer")
    out += sharded(folder / "sharded")
    return out


def tokenizer_files(folder: Path) -> list[Target]:
    """tokenizer.json and the files beside it; and GPT-2's old layout."""
    from minseal.open_models.tokenizers import read_tokenizer

    export(folder, make_model("qwen2"), CHAT)
    read = partial(read_tokenizer, folder)
    special = {"content": "<|im_end|>", "lstrip": False, "normalized": False, "special": True}
    sides = {
        "special_tokens_map.json": {"eos_token": special, "bos_token": "<|im_start|>"},
        "added_tokens.json": {"<|im_end|>": 292, "<|new|>": 296},
        "generation_config.json": {"eos_token_id": [290, 292], "bos_token_id": 290},
    }
    whole = folder / "tokenizer.json"
    data = json.loads(whole.read_text())
    steps = {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "▁"}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    }
    words = ("Sequence", "Split", "BPE", "WordPiece", "Unigram", "pretokenizers", "Regex", "String")

    def read_and_use():
        tokenizer = read()
        tokenizer.decode(tokenizer.begin("Some text, naïve 東京 <|im_end|>"))

    config = folder / "tokenizer_config.json"
    about = json.loads(config.read_text()) | {"add_prefix_space": False, "add_bos_token": False}
    config.write_text(json.dumps(about))
    out = [
        json_file("tokenizer.json", whole, read_and_use, 2, (data | steps,)),
        json_file("tokenizer_config.json", config, read_and_use, 1),
    ]
    out[0].words += words
    for name, value in sides.items():
        (folder / name).write_text(json.dumps(value))
        out.append(json_file(name, folder / name, read_and_use, 0.7))
    jinja = folder / "chat_template.jinja"
    jinja.write_text("{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}")
    out.append(Target(jinja.name, [jinja.read_bytes()], read_and_use, 0.3, ("{{", "%}"), TEXT, jinja))

    old = folder / "old"
    old.mkdir()
    model = json.loads(whole.read_text())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (old / "vocab.json").write_text(json.dumps(model["vocab"]))
    (old / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (old / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    read_old = partial(read_tokenizer, old)
    merges = old / "merges.txt"
    words = ("Ġ", " ", "\n", "#version: 0.2\n", "Ġ t\n")
    out += [
        json_file("vocab.json", old / "vocab.json", read_old, 0.5),
        Target("merges.txt", [merges.read_bytes()], read_old, 0.5, words, TEXT, merges),
    ]
    return out


def sharded(folder: Path) -> list[Target]:
    """Weights in two files, with their index."""
    import safetensors.torch

    export(folder, make_model("qwen3"), PLAIN)
    whole = folder / "model.safetensors"
    tensors = safetensors.torch.load(whole.read_bytes())
    whole.unlink()
    names, where = sorted(tensors), {}
    for i, some in enumerate((names[:5], names[5:]), 1):
        file = f"model-0000{i}-of-00002.safetensors"
        where |= dict.fromkeys(some, file)
        safetensors.torch.save_file({name: tensors[name] for name in some}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": where}))
    read = partial(load, folder)
    return [
        json_file(index.name, index, read, 0.7),
        *safetensors_files("a shard", folder / "model-00001-of-00002.safetensors", read, 0.6),
    ]


def gguf_readers(folder: Path) -> list[Target]:
    """GGUF, as llama.cpp's converter names things."""
    out = []
    for kind in ("llama", "gpt2"):
        path = folder / f"{kind}.gguf"
        write_gguf(path, kind)
        read = partial(load, path)
        data = path.read_bytes()
        out.append(Target(f"{kind}.gguf", [data], read, 1, (), BYTES, path))
        out.append(Target(f"{kind}.gguf, head", [data], read, 1.5, (), in_gguf_head, path))
    return out


def in_gguf_head(rng: Random, data: bytes, words: tuple, others: list) -> bytes:
    """The first kilobyte, or the table of tensors near the end of the metadata, is damaged."""
    keys = [found.end() for found in re.finditer(rb"[a-z0-9_.]{6,}", data)]
    i = rng.choice(keys) if rng.random() < 0.7 else 0
    return data[:i] + mutate_bytes(rng, data[i : i + 64]) + data[i + 64 :]


def write_gguf(path: Path, kind: str) -> None:
    """A tiny model of a family as a GGUF file."""
    import gguf

    from minseal.open_models.gguf import GGUF_NAMES, GPT2_NAMES, place_of

    model = make_model(kind, tied=True)
    c, writer = model.config, gguf.GGUFWriter(path, kind)
    writer.add_block_count(c.n_layer)
    writer.add_context_length(c.block_size)
    writer.add_embedding_length(c.n_embd)
    writer.add_feed_forward_length(c.mlp_dim)
    writer.add_head_count(c.n_head)
    if kind == "gpt2":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_head_count_kv(c.n_kv_head)
        writer.add_key_length(c.head_dim)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10_000.0)
        writer.add_rope_dimension_count(c.head_dim)
    open_one = json.loads(to_open(PLAIN).text)["model"]
    tokens = sorted(open_one["vocab"], key=open_one["vocab"].get)
    tokens += [f"[PAD{i}]" for i in range(len(tokens), c.vocab_size)]
    types = [3 if t == "<|endoftext|>" else 5 if t.startswith("[PAD") else 1 for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in open_one["merges"]])
    writer.add_eos_token_id(tokens.index("<|endoftext|>"))
    names, parts = GPT2_NAMES if kind == "gpt2" else GGUF_NAMES, {}
    for ours, parameter in model.named_parameters():
        parts.setdefault(place_of(ours, names).name, []).append(parameter.detach())
    for name, some in parts.items():
        writer.add_tensor(name, torch.cat(some).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def adapter_readers(folder: Path) -> list[Target]:
    """Adapters in PEFT's format, on a Llama and on a GPT-2."""
    out = []
    for family in ("llama", "gpt2"):
        model, place = make_model(family, tied=True), folder / family
        adapters = attach(model, 1, LoRAConfig(2, 4.0))
        state = {k: torch.ones_like(t) for k, t in adapters.state().items()}
        save_adapter(place, model, state, LoRAConfig(2, 4.0), "someone/base")
        adapters.remove()

        def read(place=place, model=model):
            load_adapter(place, model)[0].remove()

        settings = json.loads((place / "adapter_config.json").read_text())
        full = settings | {
            "alpha_pattern": {"attn.q_proj": 8, "^h.*c_attn$": 4},
            "rank_pattern": {r"\.0\.attn": 2, "q_proj": 4},
            "target_modules": "all-linear",
            "init_lora_weights": "gaussian",
            "lora_dropout": 0.1,
            "use_dora": False,
            "modules_to_save": None,
            "layers_to_transform": [0],
            "alora_invocation_tokens": None,
            "loftq_config": {},
        }
        file = place / "adapter_config.json"
        target = json_file(f"{family} adapter_config.json", file, read, 2, (full,))
        target.words += ("(a+)+$", "pissa", "olora", "(" * 40, ".*" * 20, "lora_alpha", "r")
        out.append(target)
        out.append(json_file(f"{family} minseal.json", place / "minseal.json", read, 1))
        path = place / "adapter_model.safetensors"
        out += safetensors_files(f"{family} adapter_model.safetensors", path, read, 1)
    return out


# ---- run folders ---------------------------------------------------------------------------------


def run_readers(folder: Path) -> list[Target]:
    """Run folders that somebody edited: the report, what `show` shows, the policy, going on."""
    out = []
    for kind, make in (("knowledge", knowledge_run), ("fewshot", fewshot_run)):
        place = folder / kind
        config = make(place)
        report = partial(quietly, cli.report, cli.ReportConfig(), str(place))
        plain = partial(without_plots, report)
        kinds = {
            "report": plain,
            "report with pictures": report,
            "going on": partial(Run, place, config),
        }
        if kind == "knowledge":
            model = make_model()
            kinds["policy"] = partial(restore_policy, model, str(place))
        else:
            settings = ShowConfig(run=str(place), color="no")
            kinds["show"] = partial(show, settings, PUZZLES[0].id, lambda *said, **how: None)
        shares = {"report": 1.0, "report with pictures": 0.01, "going on": 1, "policy": 1, "show": 1}
        log = place / "events.jsonl"
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        words = tuple(dict.fromkeys(keys_of(rows)))[:60]
        for what, read in kinds.items():
            name, share = f"{kind} run, {what}", shares[what]
            file, log_name, data = f"{name}, config.json", f"{name}, events.jsonl", log.read_bytes()
            out.append(json_file(file, place / "config.json", read, share))
            out.append(Target(log_name, [data], read, 2 * share, words, JSONL, log))
            if "pictures" in what:  # five of them, drawn by another package
                out[-1].seconds = out[-2].seconds = 15.0
            if kind == "fewshot" and what in ("report", "show"):
                out.append(json_file(f"{name}, puzzles.json", place / "puzzles.json", read, share))
        if kind == "knowledge":
            path = place / "checkpoints" / "round-1-M-step.pt"
            data, tensors = [path.read_bytes()], load_tensors(path)
            tensors = {name: t.clone() for name, t in tensors.items()}
            read, mutate = kinds["policy"], partial(other_tensors, tensors, True)
            out.append(Target(f"{kind} run, a checkpoint", data, read, 0.5, (), in_zip, path))
            out.append(Target(f"{kind} run, tensors", data, read, 0.5, (), mutate, path))
    return out


def without_plots(call: Callable) -> None:
    drawn, minseal.lab.table.plots = minseal.lab.table.plots, lambda *args: []
    try:
        call()
    finally:
        minseal.lab.table.plots = drawn


def write_run(folder: Path, config: dict, arms: dict, more: list) -> dict:
    """A run folder, its log written by hand: arms {name: (trials, fields of Arm)}."""
    events = []
    for name, (trials, declared) in arms.items():
        events += [{"step": name, **trial} for trial in trials]
        events.append({"done": name, "seconds": 1.5, "arm": {"name": name, **declared}})
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    lines = [json.dumps(event) + "\n" for event in events + more]
    (folder / "events.jsonl").write_text("".join(lines))
    return config


def ladder(trials: Callable) -> dict:
    """Four arms of a short outer loop. trials(i): those of the i-th."""
    control = "control: random winners"
    return {
        "no adaptation": (trials(0), {}),
        "own notes": (trials(1), {"over": "no adaptation", "series": ["SEAL", control], "at": 0}),
        "round 1": (trials(2), {"over": "own notes", "series": ["SEAL"], "at": 1}),
        "control 1": (trials(3), {"over": "own notes", "series": [control], "at": 1, "rival": True}),
    }


IN_TRAINING = {
    "done": "round 1 in training",
    "seconds": 0,
    "value": {"reward": 0.5, "self_edits": 4, "invalid": 1, "contexts": 2, "alike": 1},
    "labels": {"loop": "round", "round": 1},
}


def small(kind: str, **settings: Any) -> dict:
    from minseal import OuterConfig

    experiment = EXPERIMENTS[kind]
    outer = OuterConfig(rounds=1, contexts=2, samples=2)
    return settings_of(experiment, experiment.settings(eval_contexts=2, outer=outer, **settings))


def knowledge_run(folder: Path) -> dict:
    def trials(i):
        chose = {"notes": {"implies": 2, "vague": 1}, "lr": 0.001}
        more = {"seed": 0, "seconds": 0.5, "answers": ["Lyon", ""], "grades": [1.0, 0.0]}
        return [
            {"context": p.id, "text": "Notes.\nMore.", "reward": (i + j) % 3 / 2, "chose": chose, **more}
            for j, p in enumerate(PEOPLE[:2])
        ]

    three = [
        event
        for when in ("before", "after")
        for event in (
            *({"step": f"three self-edits {when}", "context": "a", "text": "x\ny", "reward": r} for r in (0, 1, 0)),
            {"done": f"three self-edits {when}", "seconds": 0},
        )
    ]
    more = [
        IN_TRAINING,
        {"done": "round 1 M-step", "seconds": 9, "checkpoint": "round-1-M-step.pt", "labels": {"loop": "round"}},
        {"done": "reliability", "seconds": 0, "value": [[[1, 1, 0], [0, 0, 0]]]},
        *three,
        {"step": "late", "context": "a", "text": "unfinished", "reward": 0, "invalid": "no words"},
    ]
    config = write_run(folder, small("knowledge"), ladder(trials), more)
    model = make_model()
    adapters = attach(model, 1, LoRAConfig(2, 4.0))
    save_tensors(folder / "checkpoints" / "round-1-M-step.pt", adapters.state())
    adapters.remove()
    return config


def fewshot_run(folder: Path) -> dict:
    from minseal.experiments.puzzle_report import FIRST, LAST

    held_out = PUZZLES[:2]

    def trials(i):
        out = []
        for j, p in enumerate(held_out):
            directives = ORACLE[p.kind]
            chose = {"kind": p.kind, **directives.to_chosen()}
            grids = [to_text(p.tests[0].output), to_text(p.tests[0].input), "0", "12\n34", "", "x"]
            about = {"text": directives.to_json(), "chose": chose, "answers": grids, "grades": [1.0]}
            out.append({"context": p.id, "reward": float((i + j) % 2), **about})
        return out

    arms = ladder(trials) | {
        FIRST: (trials(1), {"over": "own notes"}),
        LAST: (trials(2), {"over": "own notes"}),
    }
    arms = {"in context": (trials(0), {}), **arms}
    solvable = [{"step": "solvable", **trial} for trial in trials(0)]
    more = [IN_TRAINING, *solvable, {"done": "solvable", "seconds": 1}]
    config = write_run(folder, small("fewshot", vote=1), arms, more)
    puzzles = {p.id: to_json(p) for p in held_out}
    (folder / "puzzles.json").write_text(json.dumps(puzzles))
    return config


def all_targets(folder: Path) -> SimpleNamespace:
    return SimpleNamespace(parsers=parsers(), readers=readers(folder))


__all__ = ["ODD_TEXTS", "Target", "all_targets"]
