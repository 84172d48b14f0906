"""Readers of files: data, models, tokenizers and adapters that come from somewhere."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import gguf
import safetensors.torch
import torch
from fuzzing.mutations import as_bytes, mutate_bytes
from fuzzing.targets import (
    BYTES,
    CHAT,
    JSON,
    JSONL,
    PLAIN,
    PUZZLES,
    TEXT,
    Target,
    json_file,
    keys_of,
    make_model,
)
from fuzzing.tensors import in_header, in_zip, other_tensors
from fuzzing.texts import MARKDOWN, MARKDOWN_WORDS, NOTE_WORDS, NOTES

from minseal import checkpoint
from minseal.commands.documents import read_document, read_notes, split_document
from minseal.files import load_tensors, read_json, read_text
from minseal.lora import LoRAConfig, attach
from minseal.open_models.export import export
from minseal.open_models.families import FAMILIES, place_of
from minseal.open_models.gguf import GGUF_NAMES, GPT2_NAMES
from minseal.open_models.load import load
from minseal.open_models.peft import load_adapter, save_adapter
from minseal.open_models.tokenizers import read_tokenizer, to_open
from minseal.tasks.arc import read_puzzles, to_json
from minseal.tasks.knowledge import Knowledge
from minseal.tasks.passages import read_passages, read_questions
from minseal.tasks.people import People

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Zürich",
            "paragraphs": [
                {
                    "context": "Zürich is a town.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "What?",
                            "answers": [{"text": "a town", "answer_start": 10}],
                        },
                        {"id": "2", "question": "Who?", "is_impossible": True, "answers": []},
                    ],
                },
                {"context": "Nothing is asked.", "qas": []},
            ],
        }
    ],
}
FLAT = [
    {
        "title": "Zürich",
        "context": "Zürich is a town.",
        "questions": [{"question": "What?", "answer": "a town"}],
    },
    {"context": "東京は首都。", "questions": [{"question": "東京?", "answers": ["首都", "都"]}]},
]
MRQA = [
    {"header": {"dataset": "x", "split": "train"}},
    {
        "context": "A town.",
        "qas": [
            {
                "qid": "1",
                "question": "What?",
                "answers": ["town"],
                "detected_answers": [{"text": "town", "char_spans": [[2, 5]]}],
            }
        ],
    },
]


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
    file = (
        "## Section 1: Zürich\n\nIt is.\nQuestion: What? Answer: It.\n\n## Section 2: b\n\nMore.\n"
    )
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


SAFETENSORS_WORDS = ("dtype", "shape", "data_offsets", "__metadata__", "F16", "BF16", "U8", "x")


def safetensors_files(name: str, path: Path, read: Callable, share: float) -> list[Target]:
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
    out += safetensors_files(
        "model.safetensors", place / "model.safetensors", partial(load, place), 2
    )
    out += tokenizer_files(folder / "tokenizer")
    out += sharded(folder / "sharded")
    return out


def tokenizer_files(folder: Path) -> list[Target]:
    """tokenizer.json and the files beside it; and GPT-2's old layout."""
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
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "▁"}],
        },
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": True,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
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
    out.append(
        Target(jinja.name, [jinja.read_bytes()], read_and_use, 0.3, ("{{", "%}"), TEXT, jinja)
    )

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


PARTS = (data_readers, own_readers, open_readers, gguf_readers, adapter_readers)
