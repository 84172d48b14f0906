"""Parsers: what is made of a text that a model or a person wrote."""

import json
import re
from dataclasses import asdict
from functools import partial

import numpy as np
from fuzzing.mutations import mutate_json
from fuzzing.targets import (
    CHAT,
    LLAMA3,
    PASSAGE,
    PEOPLE,
    PLAIN,
    PUZZLES,
    SPECIALS,
    Target,
    make_model,
)
from fuzzing.worker import steering

from minseal import Tokenizer, checkpoint
from minseal.commands import cli
from minseal.commands.ask import AskConfig, answer
from minseal.commands.documents import cut_text, split_document
from minseal.config import build
from minseal.files import parse_json
from minseal.open_models.export import to_hugging_face
from minseal.open_models.families import FAMILIES
from minseal.open_models.load import from_hugging_face
from minseal.open_models.tokenizers import to_open
from minseal.tasks import augment, knowledge
from minseal.tasks.arc import from_text, to_json, to_text
from minseal.tasks.fewshot import FewShot
from minseal.tasks.knowledge import Knowledge
from minseal.tasks.passages import Passage
from minseal.tasks.people import People, pretraining_text
from minseal.tasks.rules import ORACLE, TOY_SIDE
from minseal.terminal import printable

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
    "---\ntitle: front\n---\n\n> quote\n> # heading\n\n    # code\n\n| a | b |\n|---|---|\n",
    '1. one\n   # in a list\n2. two\n\n<div>\n# html\n</div>\n\n[l](a "b") ![i](j)\n\n[r]: x\n',
    "東京は日本の首都です。富士山は高い。\n\nกรุงเทพ\n\n" + "word " * 60,
]
MARKDOWN_WORDS = (
    *("#", "# ", "###### x\n", "```", "````\n", "~~~", "===\n", "---\n", "- ", "> ", "\t", "    "),
    *("[", "](", "![", "<div>", "<!--", "-->", "&amp;", "\\", "**", "_", "`", "|", "\n\n", "  \n"),
    *("[a]: b\n", "<a href='", "http://", "* * *\n", "1. ", "1) ", "\r\n", "***", "[^1]", "<?"),
    *(
        "title: x\n",
        "+++\n",
        "...\n",
        "<b>",
        "</p>",
        "]]>",
        "{\\rtf",
        "%PDF-",
        "PK\x03\x04",
        "|-|\n",
    ),
)


def parsers() -> list[Target]:
    out = []
    for style in knowledge.PROMPTS:
        for name, tokenizer in (("plain", PLAIN), ("chat", CHAT)):
            task = Knowledge(tokenizer, style)
            read = partial(task.parse, PASSAGE)
            out.append(Target(f"Knowledge.parse {style} {name}", NOTES, read, 0.6, NOTE_WORDS))
    person, people = PEOPLE[0], People(PLAIN)
    written = [
        *(pretraining_text(np.random.default_rng(i)) for i in range(6)),
        "\n".join(person.oracle),
    ]
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
    for most in (32, 60, 250):  # what `learn` allows is 32 and more
        read = lambda text, most=most: split_document(PLAIN, "a_b.md", text, most)
        out.append(Target(f"split_document {most}", MARKDOWN, read, 1, MARKDOWN_WORDS))
    read = lambda text: cut_text(PLAIN, text, 32)
    out.append(Target("cut_text", MARKDOWN + NOTES, read, 1, MARKDOWN_WORDS))
    out.append(Target("printable", NOTES, print_it, 1, ("\x1b[31m", "\u202e", "\x9b")))
    for tokenizer in (PLAIN, CHAT):
        config, model = AskConfig(max_tokens=2), make_model(block_size=1024)
        read = lambda text, t=tokenizer: answer(model, t, config, [("user", text)], 0)
        out.append(Target(f"ask{' chat' * bool(tokenizer.chat)}", NOTES, read, 0.05, NOTE_WORDS))
    out.append(cli_options())
    return out


def print_it(text: str) -> None:
    assert not steering(printable(text))
    assert not steering(printable(text, one_line=True), but="")


def read_back(text: str) -> None:
    """A note as a line: read_note(line_of(note)) is the note."""
    task = Knowledge(PLAIN, "self-qa")
    for note in task.notes(text):
        assert task.read_note(knowledge.line_of(note)) == note


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
        "convert\na\nb\n--dtype\nstored",
        "pretrain\nknowledge\n--steps\n10",
    ]
    words = (*re.findall(r"--[\w.-]+", "\n".join(examples)), "none", "nan", "inf", "--", "-h", "@x")
    words += ("--control", "--samples", "--inner.rank", "--batch", "--select", "random", "\n")

    def read(text: str) -> None:
        try:
            args, _ = parser.parse_known_args(text.split("\n"))
        except SystemExit as e:
            assert e.code in (0, 2)
            return
        build(args.command.settings, vars(args))

    return Target("command line", examples, read, 0.5, words)
