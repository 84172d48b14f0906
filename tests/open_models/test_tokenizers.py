"""The tokenizers of open models: ids and chats are those of Hugging Face, and text is text."""

import functools
import json
import os
import random
import unicodedata

import pytest
import regex
import tokenizers
import transformers
from conftest import grows_linearly
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from minseal import Tokenizer, UserError
from minseal.files import write_folder
from minseal.open_models.tokenizers import OpenTokenizer, read_tokenizer, to_open, tokenizer_of_gguf
from minseal.tokenizer import END, train_ranks

MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split_then_bytes(digits):
    split = pre_tokenizers.Split(Regex(MODERN.replace("DIGITS", digits)), "isolated")
    return pre_tokenizers.Sequence([split, byte_level(False)])


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_THINKING_OFF = CHATML.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
IM, BEGIN = ["<|im_start|>", "<|im_end|>"], "<|begin_of_text|>"
HEADER = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# Pre-tokenizer, special tokens (before the vocabulary, as SmolLM2 and GPT-2 train it, or after),
# configuration.
FAMILIES = {
    "gpt2": (byte_level(True), [END], {"eos_token": END}),
    "smollm2": (
        pre_tokenizers.Sequence([DIGITS, byte_level(True)]),
        [END, *IM, "<repo_name>"],
        {
            "eos_token": {"__type": "AddedToken", "content": IM[1]},
            "bos_token": IM[0],
            "chat_template": CHATML,
        },
    ),
    "llama3": (
        split_then_bytes("{1,3}"),
        [BEGIN, "<|end_of_text|>", *HEADER],
        {"eos_token": "<|eot_id|>", "bos_token": BEGIN, "chat_template": LLAMA3},
    ),
    "qwen2.5": (
        split_then_bytes(""),
        [END, *IM],
        {"eos_token": IM[1], "chat_template": [{"name": "default", "template": CHATML}]},
    ),
    "qwen3": (
        split_then_bytes(""),
        [END, *IM, "<think>", "</think>"],
        {"eos_token": IM[1], "chat_template": CHATML_THINKING_OFF},
    ),
}
CHATS = [family for family in FAMILIES if family != "gpt2"]
GGUF_CUTS = {
    "gpt2": "gpt-2",
    "smollm2": "smollm",
    "llama3": "llama-bpe",
    "qwen2.5": "qwen2",
    "qwen3": "qwen2",
}
# fmt: off
BITS = [  # that pre-tokenizers differ on
    *" \n\t!-=#'", "  ", "   ", "\r\n", " \n ", "\u3000", "\xa0", "\u2028", "\x85", "\x1c",
    *"0759", "12", "345", "2024", "٣٤", "²", "½", "Ⅷ", "五", "'s", "'S", "'ll", "'RE", "'ſ", "’s",
    "the", " The", "Hello", "é", "e\u0301", "\u0301", "ö", "ﬁ", "Å", "각", "각", "한국",
    "日本語", "中文字", "😀", "👩‍👩‍👧", "🇩🇪", "\u200d", "\ufe0f", "\x00", "\x04", "\x06", "\x7f",
    "न", "ा", "مرحبا", "שלום", "...", "->", END, "<|im_end|>", "<|eot_id|>", "{", "\\", "_", "€",
    "—", "ß", "İ", "\ufffd", "\U0010ffff", "𝟘",
]
# fmt: on
WORDS = ["the", "cat", "isn't", "1234", "in 1969,", "word", "", "(x+y)^2", "café", "\n\n", "!!!"]

# Characters that all versions of Unicode agree on, from Python's to the newest that `regex` knows.
LOW, HIGH = (
    [
        i
        for i in points
        if (unicodedata.category(chr(i)) == "Cn") == bool(regex.match(r"\p{Cn}", chr(i)))
    ]
    for points in (range(0xD800), range(0xE000, 0x110000, 7))
)


def some_texts(n, seed=0):
    """Bits that pre-tokenizers differ on, random code points, and something like prose, in turn."""
    rng = random.Random(seed)

    def point():
        kinds = (rng.randrange(128), rng.randrange(0x300), rng.choice(LOW), rng.choice(HIGH))
        return chr(rng.choice(kinds))

    for i in range(n):
        several = range(rng.randrange(1, 25))
        yield (
            "".join(rng.choice(BITS) for _ in several),
            "".join(point() for _ in several),
            " ".join(rng.choice(WORDS) for _ in several) + rng.choice(BITS),
        )[i % 3]


TEXTS = list(some_texts(2000))
EVERY_LETTER = (
    "the quick brown fox jumps over a lazy dog, THE QUICK BROWN FOX JUMPS OVER A LAZY DOG"
)
LESSON = [EVERY_LETTER, *some_texts(1500, seed=1)]


@functools.cache
def their_json(family):
    """A small vocabulary that `tokenizers` trains, as its tokenizer.json.

    Bytes that the lesson lacks are missing in SmolLM2's, as in life.
    """
    cut, specials, config = FAMILIES[family]
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer, theirs.decoder = cut, decoders.ByteLevel()
    if family.startswith("qwen"):
        theirs.normalizer = normalizers.NFC()
    lesson, alphabet = LESSON, pre_tokenizers.ByteLevel.alphabet()
    if family == "smollm2":
        plain = (text for text in LESSON if text.isascii())
        lesson, alphabet = [t.replace("\x04", "").replace("\x06", "") for t in plain], []
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=specials if family in ("gpt2", "smollm2") else [],
        show_progress=False,
        initial_alphabet=alphabet,
    )
    theirs.train_from_iterator(lesson, trainer)
    theirs.add_special_tokens([token for token in specials if "think" not in token])
    # Qwen3 does not call these special.
    theirs.add_tokens([token for token in specials if "think" in token])
    if family == "llama3":
        bos = (config["bos_token"], theirs.token_to_id(config["bos_token"]))
        frame = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
        level = processors.ByteLevel(trim_offsets=False)
        theirs.post_processor = processors.Sequence([level, frame])
    return theirs.to_str()


def in_both(family, **model):
    """(our tokenizer, theirs), from the same tokenizer.json; text is text in both."""
    data = json.loads(their_json(family))
    data["model"].update(model)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    theirs.encode_special_tokens = True
    return OpenTokenizer(json.dumps(data), FAMILIES[family][2]), theirs


def differ(mine, theirs, texts):
    encode = functools.partial(theirs.encode, add_special_tokens=False)
    return [text for text in texts if mine.encode(text) != encode(text).ids]


# ---- byte-level BPE ----


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_are_those_of_byte_pair_encoding(family):
    """Independent of the package: a slow byte-pair encoding, after cuts written as one pattern."""
    mine, _ = in_both(family)
    data = json.loads(their_json(family))
    rank = {tuple(pair): i for i, pair in enumerate(data["model"]["merges"])}
    vocab = data["model"]["vocab"]
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printed]
    letter = {b: chr(b) for b in printed} | {b: chr(256 + i) for i, b in enumerate(others)}
    gpt2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    pattern = {
        "gpt2": gpt2,
        # A digit takes no space along, and white space before it stays whole.
        "smollm2": gpt2.replace(r" ?\p{N}+", r"\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])"),
        "llama3": MODERN.replace("DIGITS", "{1,3}"),
    }.get(family, MODERN.replace("DIGITS", ""))

    def slow_encode(text):
        text = unicodedata.normalize("NFC", text) if "qwen" in family else text
        for piece in regex.findall(pattern, text):
            parts = [letter[b] for b in piece.encode() if letter[b] in vocab]
            while known := [
                (rank[pair], i) for i, pair in enumerate(zip(parts, parts[1:])) if pair in rank
            ]:
                _, i = min(known)
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            yield from (vocab[part] for part in parts)

    assert [text for text in TEXTS[:1000] if mine.encode(text) != [*slow_encode(text)]] == []
    size = sum(len(text.encode()) for text in TEXTS)  # not single bytes all over:
    assert sum(len(mine.encode(text)) for text in TEXTS) < 0.8 * size


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_come_back_and_so_do_their_parts(family):
    mine, theirs = in_both(family)
    texts = [
        text for text in TEXTS if "qwen" not in family or unicodedata.is_normalized("NFC", text)
    ]
    for text in texts:
        ids = mine.encode(text)
        assert mine.decode(ids) == text or family == "smollm2"  # which lacks bytes
        if text.isascii() and mine.decode(ids) == text:
            assert "".join(mine.decode([id]) for id in ids) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_are_found_and_used(family):
    mine, theirs = in_both(family)
    assert mine.specials == {token: theirs.token_to_id(token) for token in FAMILIES[family][1]}
    assert mine.ends == set(mine.specials.values())
    eos = FAMILIES[family][2]["eos_token"]
    assert mine.eot == mine.specials[eos["content"] if isinstance(eos, dict) else eos]
    assert mine.bos == ((theirs.token_to_id(BEGIN),) if family == "llama3" else ())
    assert mine.chat == {"gpt2": "", "llama3": "llama3"}.get(family, "chatml")
    assert mine.vocab_size == theirs.get_vocab_size()
    assert mine.begin("Hi") == theirs.encode("Hi").ids


def test_a_byte_without_a_token_is_left_out():
    mine, _ = in_both("smollm2")
    assert mine.encode("!!!") == mine.encode("!\x04!\x06!") != []
    assert mine.decode(mine.encode("no\x04thing")) == "nothing"


def test_half_a_surrogate_pair_does_not_crash():
    mine, _ = in_both("gpt2")
    assert mine.encode("a \ud800!") == mine.encode("a \ufffd!")
    assert mine.encode("a \ud83d\ude00!") == mine.encode("a 😀!")


def test_qwen_composes_first():
    mine, _ = in_both("qwen3")
    assert mine.encode("e\u0301") == mine.encode("é")
    assert mine.decode(mine.encode("e\u0301")) == "é"


def test_special_ids_decode_to_nothing_and_unknown_ids_are_named():
    mine, _ = in_both("llama3")
    assert mine.decode([*mine.begin("Hi"), mine.eot]) == "Hi"
    for unknown in (mine.vocab_size, -1):
        with pytest.raises(ValueError, match=f"id {unknown}") as e:
            mine.decode([unknown])
        assert not isinstance(e.value, UserError)


def test_what_a_tokenizer_json_says_of_padding_and_length_is_not_followed():
    data = json.loads(their_json("gpt2"))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    theirs.enable_truncation(3)
    theirs.enable_padding(length=9)
    mine = OpenTokenizer(theirs.to_str(), {})
    assert mine.encode("some text of more than three tokens") == in_both("gpt2")[0].encode(
        "some text of more than three tokens"
    )


# ---- special tokens are no text ----


@given(st.text(max_size=10), st.text(max_size=10), st.sampled_from(sorted(FAMILIES)))
def test_a_special_token_written_in_text_is_text(before, after, family):
    mine, _ = in_both(family)
    text = before + "".join(mine.specials) + after
    assert not mine.ends.intersection(mine.encode(text))


@pytest.mark.parametrize("family", CHATS)
def test_no_text_smuggles_a_special_token_in(family):
    mine, _ = in_both(family)
    plain, sly = mine.prompt("Hi"), mine.prompt("Hi" + "".join(mine.specials) + "{text}")
    assert [id for id in sly if id in mine.ends] == [id for id in plain if id in mine.ends]


def test_added_tokens_that_are_text_are_as_hugging_face_has_them():
    data = json.loads(their_json("gpt2"))
    new = data["added_tokens"][0] | {"special": False}
    data["added_tokens"] += [
        new | {"id": 900, "content": "   "},
        new | {"id": 901, "content": "<x>"},
    ]
    mine, theirs = (
        OpenTokenizer(json.dumps(data), {}),
        tokenizers.Tokenizer.from_str(json.dumps(data)),
    )
    assert mine.encode("a    b") == theirs.encode("a    b").ids and 900 in mine.encode("a    b")
    assert 901 in mine.ends and 901 not in mine.encode("<x>") and 900 not in mine.ends


# ---- chats ----

TALK = [
    ("system", "Be brief."),
    ("user", "How many?\n 12 {text}"),
    ("assistant", "Twelve."),
    ("user", "\n\nWhy? "),
]


@pytest.mark.parametrize("family", CHATS)
def test_chats_are_those_of_the_template(family):
    mine, config = in_both(family)[0], FAMILIES[family][2]
    template = config["chat_template"]
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(their_json(family)),
        bos_token=config.get("bos_token"),
        chat_template=template if isinstance(template, str) else template[0]["template"],
    )
    for talk in (TALK, TALK[1:], TALK[:1], [("user", "")], [("user", "{role}")]):
        messages = [{"role": role, "content": text} for role, text in talk]
        assert mine.turns(talk) == theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
    assert mine.prompt("Why?") == mine.turns([("user", "Why?")])


# ---- SentencePiece in the form of tokenizer.json: a space before each text, bytes as <0x..> ----

META = "\u2581"  # stands for a space
PIECES = {  # normalizer, pre-tokenizer, decoder
    "llama 2": (
        normalizers.Sequence([normalizers.Prepend(META), normalizers.Replace(" ", META)]),
        None,
        [decoders.Replace(META, " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Strip(" ", 1, 0)],
    ),
    "always": (
        None,
        pre_tokenizers.Metaspace(prepend_scheme="always"),
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")],
    ),
    "first": (
        None,
        pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")],
    ),
    "gemma": (
        normalizers.Replace(" ", META),
        None,
        [decoders.Replace(META, " "), decoders.ByteFallback(), decoders.Fuse()],
    ),
}


@functools.cache
def pieces_json(kind):
    normalizer, cut, decoder = PIECES[kind]
    learner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials, show_progress=False)
    learner.train_from_iterator([text for text in LESSON if text.isascii()], trainer)
    data = json.loads(learner.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    data["model"]["byte_fallback"] = True
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    theirs.pre_tokenizer, theirs.decoder = cut, decoders.Sequence(decoder)
    if normalizer:
        theirs.normalizer = normalizer
    theirs.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return theirs.to_str()


@pytest.mark.parametrize("kind", PIECES)
def test_sentencepiece(kind):
    theirs = tokenizers.Tokenizer.from_str(pieces_json(kind))
    theirs.encode_special_tokens = True
    mine = OpenTokenizer(pieces_json(kind), {"eos_token": "</s>"})
    assert (mine.bos, mine.eot, mine.chat) == ((1,), 2, "")
    for text in TEXTS:
        if not text.startswith(" "):
            assert mine.begin(text) == theirs.encode(text).ids
        assert mine.decode(mine.encode(text)) == text
        if text.isascii():  # a text may be cut anywhere: a continuation keeps its leading space
            parts = mine.encode(text[:7]), mine.encode(text[7:])
            assert "".join(map(mine.decode, parts)) == text
    assert mine.begin("") == [1] and mine.decode(mine.encode(" so")) == " so"
    assert not mine.ends.intersection(mine.encode("a <s>b</s>"))


def test_the_older_form_of_metaspace():
    data = json.loads(pieces_json("always"))
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": META, "add_prefix_space": True}
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    mine = OpenTokenizer(json.dumps(data), {"eos_token": "</s>"})
    assert mine.begin("the cat") == theirs.encode("the cat").ids
    assert mine.decode(mine.encode("the cat")) == "the cat"


# ---- there and back ----


@pytest.mark.parametrize("family", [*FAMILIES, "ours", "pieces"])
def test_what_is_written_is_read_the_same_by_us_and_by_transformers(family, tmp_path):
    if family == "ours":
        pattern = r"\d|[a-z]+|[^\da-z]+"  # of one's own
        ranks = train_ranks("a text that has some words, and 12 more words", 280, pattern)
        own = Tokenizer(ranks, pattern, {END: 300, "<s>": 290}, 300, [290])
        mine = to_open(own)
        assert differ(own, mine.backend, TEXTS) == [] and mine.begin("Hi") == own.begin("Hi")
    elif family == "pieces":
        mine = OpenTokenizer(pieces_json("always"), {"eos_token": "</s>"})
    else:
        mine = in_both(family)[0]
    assert to_open(mine) is mine
    write_folder(tmp_path, mine.files())
    again = read_tokenizer(tmp_path)
    names = ("specials", "eot", "ends", "bos", "chat", "vocab_size")
    assert [getattr(again, name) for name in names] == [getattr(mine, name) for name in names]
    assert [again.encode(text) for text in TEXTS] == [mine.encode(text) for text in TEXTS]

    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert auto("Hello 12").input_ids == mine.begin("Hello 12") and auto.eos_token_id == mine.eot
    assert auto.decode(mine.encode(" Hé 😀 12")).strip() == mine.decode(mine.encode("Hé 😀 12"))
    if mine.chat:
        messages = [{"role": role, "content": text} for role, text in TALK]
        assert mine.turns(TALK) == auto.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )


def test_a_rank_that_no_merge_reaches_counts_as_a_whole_piece_only():
    own = Tokenizer({bytes([b]): b for b in range(256)} | {b" zqj": 256})
    mine = to_open(own)
    texts = ["a zqj", " zqj", " zqjs", " zqj zqj", " zqj."]
    assert differ(own, mine.backend, texts) == [] and mine.encode("a zqj") == [97, 256]


def test_the_older_form_of_tokenizer_json():
    """Merges as "a b", no type of the model."""
    data = json.loads(their_json("gpt2"))
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    del data["model"]["type"], data["pre_tokenizer"]["use_regex"]
    assert differ(OpenTokenizer(json.dumps(data), {}), in_both("gpt2")[1], TEXTS) == []


# ---- settings beside tokenizer.json, and GPT-2's layout without it: as AutoTokenizer has them ----

FAST, GPT2, QWEN2 = "PreTrainedTokenizerFast", "GPT2Tokenizer", "Qwen2TokenizerFast"
E_AND_I = {"added_tokens.json": {"<e>": 900, "[I]": 901}}  # the first special by its name
E_ENDS = {"special_tokens_map.json": {"eos_token": {"content": "<e>", "lstrip": False}}}
DECODER = {
    "900": {"content": "<e>", "special": True},
    "901": {"content": "[I]", "normalized": False, "lstrip": True},
}


def config(kind=FAST, **settings):
    return {"tokenizer_config.json": {"tokenizer_class": kind, **settings}}


def prefix(add, *before):
    """tokenizer.json, whose pre-tokenizer puts a space before each text, or not."""
    level = byte_level(True)
    level.add_prefix_space = add
    data = json.loads(their_json("gpt2"))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    theirs.pre_tokenizer = pre_tokenizers.Sequence([*before, level]) if before else level
    return {"tokenizer.json": theirs.to_str()}


def old_layout(model_type="gpt2"):
    model = json.loads(their_json("gpt2"))["model"]
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    return {
        "vocab.json": model["vocab"],
        "merges.txt": "\n".join(merges),
        "config.json": {"model_type": model_type},
    }


def write_files(folder, files):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")


def new_layout():
    return {"tokenizer.json": their_json("gpt2"), "config.json": {"model_type": "gpt2"}}


LAYOUTS = {  # name: the folder's files
    "old": old_layout,
    "old, of Qwen": lambda: old_layout("qwen2"),
    "old, of Qwen by its class": lambda: old_layout("llama") | config(QWEN2),
    "old, a space first": lambda: old_layout() | config(GPT2, add_prefix_space=True),
    "old, a bos": lambda: old_layout() | config(GPT2, add_bos_token=True),
    "old, Qwen has no bos": lambda: old_layout() | config(QWEN2, add_bos_token=True),
    "old, side files": lambda: old_layout() | E_AND_I | E_ENDS,
    "old, decoder": lambda: old_layout() | config(GPT2, added_tokens_decoder=DECODER),
    "decoder hides side files": lambda: (
        old_layout()
        | {"special_tokens_map.json": {"eos_token": "!"}}
        | config(GPT2, added_tokens_decoder=DECODER)
    ),
    "the end is a token of the text": lambda: (
        old_layout() | {"special_tokens_map.json": {"eos_token": "!"}}
    ),
    "new, side files": lambda: new_layout() | E_AND_I | E_ENDS | config(),
    "new, decoder": lambda: (
        new_layout() | config(eos_token="<e>", added_tokens_decoder=DECODER, pad_token=END)
    ),
    "new, extra tokens": lambda: (
        new_layout() | config(eos_token=END, additional_special_tokens=["[I]"]) | E_AND_I
    ),
    "new: its own frame counts": lambda: (
        new_layout() | config(eos_token=END, bos_token=END, add_bos_token=True, add_eos_token=True)
    ),
    "new, a space first": lambda: prefix(True) | config(eos_token=END),
    "new, a space first, nested": lambda: (
        prefix(True) | {"tokenizer.json": nested(prefix(True)["tokenizer.json"])} | config()
    ),
    "new, a space by the class": lambda: (
        prefix(False) | config(GPT2, eos_token=END, add_prefix_space=True)
    ),
    "new, no space by the class": lambda: (
        prefix(True) | config(GPT2, eos_token=END, add_prefix_space=False)
    ),
    "new, the plain class overrules": lambda: (
        prefix(False) | config(eos_token=END, add_prefix_space=True)
    ),
}


def nested(text):
    data = json.loads(text)
    for _ in range(2):
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [data["pre_tokenizer"]]}
    return json.dumps(data)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_setting_that_changes_ids_or_the_end_is_ignored(layout, tmp_path):
    """Kind: settings in tokenizer_config.json and beside it. And what we write says the same."""
    write_files(tmp_path, LAYOUTS[layout]())
    mine, theirs = read_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    write_folder(tmp_path / "again", mine.files())
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    again = read_tokenizer(tmp_path / "again")
    assert mine.eot == again.eot == written.eos_token_id
    assert mine.eot == theirs.eos_token_id or (theirs.eos_token_id is None and mine.eot == 0)
    assert mine.ends == again.ends and mine.ends.issuperset(theirs.all_special_ids)
    # A special token written in a text is text here; without the first, "<e>" is one to them.
    for text in [*TEXTS[:40], "", " ", "  two", "\ta", "a [I]b", "日本 12", " <|endoftext|>", "!"]:
        if not ("[I]" in text and 901 in mine.ends) and not (text == "!" and mine.eot == 1):
            ids = theirs(text, split_special_tokens=True).input_ids
            assert mine.begin(text) == again.begin(text) == ids
            assert written(text, split_special_tokens=True).input_ids == ids


@pytest.mark.parametrize("kind", ["llama 2", "always", "first"])
def test_sentencepiece_puts_its_space_where_tokenizers_does_also_before_a_space(kind):
    theirs = tokenizers.Tokenizer.from_str(pieces_json(kind))
    theirs.encode_special_tokens = True
    mine = OpenTokenizer(pieces_json(kind), {"eos_token": "</s>"})
    for text in [" two", "  three", META + "x", "\n", " "]:
        assert mine.begin(text) == theirs.encode(text).ids, text


def test_a_metaspace_that_is_told_not_to_puts_no_space():
    data = json.loads(pieces_json("always"))
    older = {"type": "Metaspace", "replacement": META, "add_prefix_space": False}
    data["pre_tokenizer"] = older | {"prepend_scheme": "never"}
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    mine = OpenTokenizer(json.dumps(data), {"eos_token": "</s>"})
    assert mine.begin("the cat") == theirs.encode("the cat").ids


REFUSED_LAYOUTS = [  # the reason, the files: what transformers makes of them is not followed
    ("GPT2Tokenizer or Qwen2", lambda: old_layout("llama")),
    ("no add_eos_token", lambda: old_layout() | config(GPT2, add_eos_token=True)),
    ("'<s>', is not in it", lambda: old_layout() | config(GPT2, add_bos_token=1, bos_token="<s>")),
    ("add_prefix_space", lambda: old_layout("qwen2") | config(QWEN2, add_prefix_space=True)),
    ("before each piece", lambda: prefix(True, DIGITS)),
    (
        "'<e>' has the id 903; expected 900",
        lambda: old_layout() | E_ENDS | {"added_tokens.json": {"<e>": 903}},
    ),
    ("eos_token .*, got '<e>'", lambda: old_layout() | E_ENDS),
    ("two ids", lambda: new_layout() | {"added_tokens.json": {END: 5}}),
    ("no tokenizer.json, nor", lambda: {"vocab.json": {}}),
    ("no tokenizer that", lambda: old_layout() | {"vocab.json": {"a": "b"}}),
    ("no tokenizer that", lambda: old_layout() | {"vocab.json": {"a": 2**40}}),
    ("no tokenizer that", lambda: old_layout() | {"merges.txt": "a b c"}),
    (
        "no tokenizer that",
        lambda: new_layout() | config(added_tokens_decoder={"x": {"content": "y"}}),
    ),
    ("no tokenizer that", lambda: new_layout() | config(added_tokens_decoder=[1])),
    ("no tokenizer that", lambda: new_layout() | {"added_tokens.json": {"x": {}}}),
    ("no tokenizer that", lambda: new_layout() | config(additional_special_tokens=7)),
    ("JSON object", lambda: new_layout() | {"special_tokens_map.json": []}),
    ("JSON object", lambda: old_layout() | {"vocab.json": "[]"}),
]


@pytest.mark.parametrize("reason, files", REFUSED_LAYOUTS, ids=range(len(REFUSED_LAYOUTS)))
def test_settings_that_cannot_be_followed_are_refused_by_name(reason, files, tmp_path):
    write_files(tmp_path, files())
    with pytest.raises(UserError, match=reason) as e:
        read_tokenizer(tmp_path)
    assert len(str(e.value).splitlines()) == 1 and str(tmp_path) in str(e.value)


# ---- what is refused, and why ----


def change(part, value):
    def changed(data):
        *path, last = part.split("/")
        at = data
        for name in path:
            at = at[int(name)] if isinstance(at, list) else at[name]
        at[int(last) if isinstance(at, list) else last] = value

    return changed


FRAME_OF_NO_TOKEN = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}
FRAME_THAT_CLOSES = {
    "type": "TemplateProcessing",
    "single": [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": END, "type_id": 0}},
    ],
    "pair": [],
    "special_tokens": {END: {"id": END, "ids": [0], "tokens": [END]}},
}
LAST_ID = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
LAST_ID |= {"id": 2**32 - 1, "content": "<q>", "special": True}
CATASTROPHE = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
CATASTROPHE["invert"] = False
REFUSED = [  # the reason, the change of GPT-2's tokenizer.json
    ("expected BPE", change("model", {"type": "Unigram", "vocab": [["a", -1.0]]})),
    ("expected BPE", change("model/type", "WordPiece")),
    ("eos_token", change("added_tokens", [])),
    ("no tokenizer that", change("model/vocab", {})),
    ("no tokenizer that", change("model/merges", [["z", "qqq"]])),
    ("no tokenizer that", change("model/vocab", {"a": -4})),
    ("no tokenizer that", change("model", {"type": "BPE", "vocab": {}})),
    ("no tokenizer that", change("model", None)),
    ("no tokenizer that", change("added_tokens", "none")),
    ("no tokenizer that", change("normalizer", 3)),
    ("PanicException", change("post_processor", FRAME_OF_NO_TOKEN)),
    ("no tokenizer that", change("pre_tokenizer", {"type": "Nonsense"})),
    ("no tokenizer that", change("pre_tokenizer", {"type": "Sequence"})),
    ("no tokenizer that", change("pre_tokenizer", {"type": "Sequence", "pretokenizers": [3]})),
    ("no tokenizer that", change("normalizer", {"type": "Sequence", "normalizers": 3})),
    ("no tokenizer that", change("decoder", ["ByteLevel"])),
    ("no tokenizer that", change("model/vocab/a", 2**40)),
    ("no tokenizer that", change("model/vocab/a", 10**400)),
    ("no tokenizer that", change("added_tokens/0/id", 2**40)),
    ("no tokenizer that", change("added_tokens/0/content", 7)),
    ("has the id 4294967295; expected 900", change("added_tokens/0", LAST_ID)),
    ("dropout is 0.5", change("model/dropout", 0.5)),
    ("puts 'x' before", change("normalizer", {"type": "Prepend", "prepend": "x"})),
    ("none after it", change("post_processor", FRAME_THAT_CLOSES)),
    ("PanicException: .*retry-limit", change("pre_tokenizer", CATASTROPHE)),
]


@pytest.mark.parametrize("reason, change", REFUSED, ids=range(len(REFUSED)))
def test_a_tokenizer_json_that_cannot_be_read(reason, change):
    data = json.loads(their_json("gpt2"))
    change(data)
    with pytest.raises(UserError, match=reason) as e:
        OpenTokenizer(json.dumps(data), {}, "its tokenizer.json")
    assert len(str(e.value).splitlines()) == 1 and "its tokenizer.json" in str(e.value)


def test_an_eos_token_that_is_none_of_the_special_tokens_is_refused():
    for eos in (["x"], {"content": 3}):
        with pytest.raises(UserError, match="eos_token"):
            OpenTokenizer(their_json("gpt2"), {"eos_token": eos})


# ---- GGUF ----


def as_gguf(family):
    """What a GGUF file says: special tokens (type 3, or 4), others (1), padding without use (5)."""
    data, config = json.loads(their_json(family)), FAMILIES[family][2]
    added = {token["content"]: token["id"] for token in data["added_tokens"]}
    tokens = data["model"]["vocab"] | added
    kind = {token["content"]: 3 if token["special"] else 4 for token in data["added_tokens"]}
    tokens = sorted(tokens, key=tokens.get)
    eos = config["eos_token"]
    fields = {
        "model": "gpt2",
        "pre": GGUF_CUTS[family],
        "tokens": [*tokens, "[PAD0]", "[PAD1]"],
        "token_type": [*(kind.get(token, 1) for token in tokens), 5, 5],
        "merges": [" ".join(pair) for pair in data["model"]["merges"]],
        "bos_token_id": tokens.index(FAMILIES[family][1][0]),
        "eos_token_id": tokens.index(eos["content"] if isinstance(eos, dict) else eos),
    }
    if family != "llama3":
        fields["add_bos_token"] = False
    fields = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    return fields | {"tokenizer.chat_template": str(config.get("chat_template", ""))}


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_gives_the_same_tokenizer(family):
    mine, again = in_both(family)[0], tokenizer_of_gguf(as_gguf(family), "x.gguf")
    names = ("specials", "eot", "ends", "bos", "chat", "vocab_size")
    assert [getattr(again, name) for name in names] == [getattr(mine, name) for name in names]
    assert differ(again, mine.backend, TEXTS) == []


GGUF_REFUSED = [
    ("kind 'llama'", {"model": "llama"}),
    ("'deepseek-llm'", {"pre": "deepseek-llm"}),
    ("None", {"pre": None}),
    ("kind 'gpt2', \\['gpt-2'\\]", {"pre": ["gpt-2"]}),
    ("no complete tokenizer", {"token_type": [1]}),
    ("no complete tokenizer", {"tokens": None}),
    ("no complete tokenizer", {"eos_token_id": 10_000}),
    ("no complete tokenizer", {"eos_token_id": -1}),
    ("no complete tokenizer", {"eot_token_id": "x"}),
    ("with add_eos_token", {"add_eos_token": True}),
    ("with add_space_prefix", {"add_space_prefix": True}),
    ("no complete tokenizer", {"merges": [["a", "b"]]}),
    ("no complete tokenizer", {"merges": 3}),
    ("no tokenizer.*qqq", {"merges": ["z qqq"]}),
]


@pytest.mark.parametrize("reason, changes", GGUF_REFUSED)
def test_a_gguf_file_whose_tokenizer_cannot_be_read(reason, changes):
    fields = as_gguf("qwen3") | {f"tokenizer.ggml.{k}": v for k, v in changes.items()}
    with pytest.raises(UserError, match=reason) as e:
        tokenizer_of_gguf(fields, "x.gguf")
    assert len(str(e.value).splitlines()) == 1 and "x.gguf" in str(e.value)


def test_gguf_tokens_that_users_defined_are_text_and_tokens_that_end_a_turn_are_not():
    """Kind: types of tokens in GGUF. llama.cpp ends at these whatever type they have."""
    fields = as_gguf("gpt2")
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    kinds[-2:], tokens[-2:] = [4, 4], ["   ", "<tool>"]
    fields |= {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eos_token_id": 6}
    mine = tokenizer_of_gguf(fields, "x.gguf")
    assert mine.ends == {0, 5, 6, len(tokens) - 1} and mine.eot == 6
    assert (
        len(tokens) - 2 in mine.encode("a    b") and mine.decode(mine.encode("a    b")) == "a    b"
    )


@pytest.mark.parametrize("family", ["gpt2", "llama3", "llama 2"])
@pytest.mark.parametrize("unit", ["a", " ", "中", "ab", " \n"])
def test_long_runs_take_time_about_linear_in_their_length(family, unit):
    """Kind: no input is quadratic."""
    if family == "llama 2":
        mine = OpenTokenizer(pieces_json(family), {"eos_token": "</s>"})
    else:
        mine, _ = in_both(family)
    assert grows_linearly(lambda n: mine.encode(unit * n), 5_000)


SMOLLM2 = os.environ.get("MINSEAL_SMOLLM2")


@pytest.mark.skipif(not SMOLLM2, reason="MINSEAL_SMOLLM2 names no GGUF file of SmolLM2")
def test_smollm2_itself():
    gguf = pytest.importorskip("gguf")
    read = gguf.GGUFReader(SMOLLM2).fields.items()
    fields = {name: field.contents() for name, field in read if name.startswith("tokenizer.")}
    mine, tokens = tokenizer_of_gguf(fields, SMOLLM2), fields["tokenizer.ggml.tokens"]
    assert (mine.vocab_size, mine.eot, mine.bos, mine.chat) == (49152, 2, (), "chatml")
    assert len(mine.ends) == 17
    data = json.loads(their_json("smollm2"))
    first = data["added_tokens"][0]
    data["added_tokens"] = [first | {"id": id, "content": tokens[id]} for id in range(17)]
    vocab = {token: id for id, token in enumerate(tokens)}
    data["model"].update(vocab=vocab, merges=fields["tokenizer.ggml.merges"])
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    theirs.encode_special_tokens = True
    assert differ(mine, theirs, TEXTS) == []
    user, answer = mine.encode("user\nHi"), mine.encode("assistant\n")
    assert mine.prompt("Hi") == [1, *user, 2, *mine.encode("\n"), 1, *answer]
