"""Text <-> ids: nothing is lost, and the ids are those of a slow byte-pair encoding written out here."""

import functools
import itertools
import json
import os
import random
import unicodedata
from collections import Counter

import numpy as np
import pytest
import regex
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from minseal import Tokenizer, UserError
from minseal.tasks import world
from minseal.tokenizer import END, GPT2_PATTERN, train_ranks
from minseal.vocab import from_gguf, from_json, from_vocab, to_config, to_json

rng = np.random.default_rng(0)
WORLD = "\n".join(world.document(rng) for _ in range(60))
TOKENIZER = Tokenizer(train_ranks(WORLD, 400))
LIKE_THE_WORLD = st.lists(
    st.sampled_from(sorted(set(regex.findall(GPT2_PATTERN, WORLD)))), max_size=12
).map("".join)
ANY_TEXT = (
    st.text()
    | LIKE_THE_WORLD
    | st.tuples(LIKE_THE_WORLD, st.text(max_size=8), LIKE_THE_WORLD).map("".join)
)
FEW_LETTERS = st.text("aab \n", max_size=60)


def slow_encode(ranks, text):
    """BPE as it is told: in each piece, the neighbours whose union has the lowest rank merge, leftmost first."""
    ids = []
    for piece in regex.findall(GPT2_PATTERN, text):
        parts = [bytes([b]) for b in piece.encode()]
        while True:
            known = [
                (ranks[a + b], i)
                for i, (a, b) in enumerate(itertools.pairwise(parts))
                if a + b in ranks
            ]
            if not known:
                break
            _, i = min(known)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


@given(ANY_TEXT)
@example("\x00\x07\x1b[0m\r\n\u2028 \t👩‍👩‍👧 e\u0301 ￿")
def test_any_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.binary(max_size=40))
@example(bytes(range(256)))
def test_every_byte_string_has_tokens_that_give_it_back(data):
    ids = [TOKENIZER.ranks[bytes([b])] for b in data]
    assert b"".join(map(TOKENIZER.bytes_of, ids)) == data
    assert TOKENIZER.decode(ids) == data.decode(errors="replace")


@given(ANY_TEXT)
def test_encoding_equals_slow_bpe(text):
    assert TOKENIZER.encode(text) == slow_encode(TOKENIZER.ranks, text)


def test_words_of_the_world_take_few_tokens():
    assert (
        len(TOKENIZER.encode(WORLD)) < len(WORLD) / 2
    )  # else the comparison above would be about single bytes


@given(st.text(max_size=10), st.text(max_size=10))
def test_a_special_token_written_in_text_is_text(before, after):
    ids = TOKENIZER.encode(before + END + after)
    assert TOKENIZER.eot not in ids and TOKENIZER.decode(ids) == before + END + after


def test_end_of_text_is_the_id_after_all_ranks():
    assert TOKENIZER.eot == len(TOKENIZER.ranks) == TOKENIZER.vocab_size - 1
    assert (
        TOKENIZER.ends == {TOKENIZER.eot}
        and TOKENIZER.specials == {END: TOKENIZER.eot}
        and TOKENIZER.decode([TOKENIZER.eot]) == ""
    )


def test_ranks_of_a_worked_example():
    # Pieces: 'ab', 4 times ' ab', 2 times ' abc', 'ba'... so a-b occurs 7 times, then ' '-ab 6 times, then ' ab'-c twice.
    ranks = train_ranks("ab ab ab ab ab abc abc", 259)
    assert [token for token, rank in sorted(ranks.items(), key=lambda r: r[1])][256:] == [
        b"ab",
        b" ab",
        b" abc",
    ]


@settings(max_examples=40)
@given(FEW_LETTERS | LIKE_THE_WORLD, st.integers(256, 280))
def test_each_merge_joins_a_most_frequent_pair(text, size):
    ranks = train_ranks(text, size)
    by_rank = {rank: token for token, rank in ranks.items()}
    assert list(range(len(ranks))) == sorted(by_rank) and len(ranks) <= size
    for new in range(256, len(ranks)):
        before = {by_rank[r]: r for r in range(new)}
        count = Counter()
        for piece in regex.findall(GPT2_PATTERN, text):
            count.update(itertools.pairwise(by_rank[i] for i in slow_encode(before, piece)))
        assert max(n for (a, b), n in count.items() if a + b == by_rank[new]) == max(count.values())
    if len(ranks) < size:  # it stopped early: then nothing was left to merge
        assert all(piece.encode() in ranks for piece in regex.findall(GPT2_PATTERN, text))


@settings(max_examples=20)
@given(FEW_LETTERS, st.integers(256, 280))
def test_same_text_same_ranks(text, size):
    assert list(train_ranks(text, size).items()) == list(train_ranks(text, size).items())


def test_saved_and_loaded_is_the_same(tmp_path):
    TOKENIZER.save(tmp_path / "ranks")
    again = Tokenizer.load(tmp_path / "ranks")
    assert (again.ranks, again.eot, again.vocab_size) == (
        TOKENIZER.ranks,
        TOKENIZER.eot,
        TOKENIZER.vocab_size,
    )
    assert again.encode(WORLD) == TOKENIZER.encode(WORLD)


def without(line):
    return lambda text: "".join(
        text.splitlines(keepends=True)[:line] + text.splitlines(keepends=True)[line + 1 :]
    )


DAMAGES = {
    "a single byte is missing, the ranks end earlier": lambda text: without(-1)(text).replace(
        "QQ== 65\n", "QUFB 65\n"
    ),
    "a gap in the ranks": without(300),
    "cut within a line": lambda text: text[:-3],
    "cut after a line": lambda text: text[: len(text) // 8].rsplit("\n", 1)[0],
    "no base64": lambda text: "???? 0\n" + text,
    "a rank that is no number": lambda text: text.replace(" 12\n", " twelve\n"),
    "three columns": lambda text: text.replace(" 12\n", " 12 12\n"),
    "a rank twice": lambda text: text.replace(" 12\n", " 13\n"),
    "empty": lambda text: "",
    "some other text": lambda text: "hello\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "ranks.tiktoken"
    TOKENIZER.save(path)
    whole = path.read_text()
    path.write_text(DAMAGES[damage](whole))
    assert path.read_text() != whole
    with pytest.raises(UserError, match="ranks.tiktoken") as e:
        Tokenizer.load(path)
    assert len(str(e.value).splitlines()) == 1


def test_no_file_no_text_and_a_folder_are_refused_by_name(tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    for path in (tmp_path / "missing", tmp_path / "binary", tmp_path):
        with pytest.raises(UserError, match=path.name):
            Tokenizer.load(path)


# ---- The tokenizers of open models, against Hugging Face's `tokenizers` ----

MODERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split_then_bytes(digits):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(MODERN.replace("DIGITS", digits)), "isolated"),
            byte_level(False),
        ]
    )


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_THINKING_OFF = CHATML.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
FAMILIES = {  # pre-tokenizer, special tokens (END first: before the vocabulary, as SmolLM2 and GPT-2 train it), configuration
    "gpt2": (byte_level(True), [END], {"eos_token": END}),
    "smollm2": (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]),
        [END, "<|im_start|>", "<|im_end|>", "<repo_name>"],
        {
            "eos_token": {"content": "<|im_end|>"},
            "bos_token": "<|im_start|>",
            "chat_template": CHATML,
        },
    ),
    "llama3": (
        split_then_bytes("{1,3}"),
        [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ],
        {"eos_token": "<|eot_id|>", "bos_token": "<|begin_of_text|>", "chat_template": LLAMA3},
    ),
    "qwen2.5": (
        split_then_bytes(""),
        [END, "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|im_end|>", "chat_template": [{"name": "default", "template": CHATML}]},
    ),
    "qwen3": (
        split_then_bytes(""),
        [END, "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
        {"eos_token": "<|im_end|>", "chat_template": CHATML_THINKING_OFF},
    ),
}
BITS = [
    *" \n\t!-=#'",
    "  ",
    "   ",
    "\r\n",
    " \n ",
    "\u3000",
    "\xa0",
    "\u2028",
    "\x85",
    "\x1c",
    *"0759",
    "12",
    "345",
    "2024",
    "٣٤",
    "²",
    "½",
    "Ⅷ",
    "五",
    "'s",
    "'S",
    "'ll",
    "'RE",
    "'ſ",
    "’s",
    "the",
    " The",
    "Hello",
    "é",
    "e\u0301",
    "\u0301",
    "ö",
    "ﬁ",
    "Å",
    "각",
    "각",
    "한국",
    "日本語",
    "中文字",
    "😀",
    "👩‍👩‍👧",
    "🇩🇪",
    "\u200d",
    "\ufe0f",
    "\x00",
    "\x04",
    "\x06",
    "\x7f",
    "न",
    "ा",
    "مرحبا",
    "שלום",
    "...",
    "->",
    END,
    "<|im_end|>",
    "<|eot_id|>",
    "{",
    "\\",
    "_",
    "€",
    "—",
    "ß",
    "İ",
    "\ufffd",
    "\U0010ffff",
    "𝟘",
]
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
    point = lambda: chr(
        rng.choice((rng.randrange(128), rng.randrange(0x300), rng.choice(LOW), rng.choice(HIGH)))
    )
    for i in range(n):
        several = range(rng.randrange(1, 25))
        yield (
            "".join(rng.choice(BITS) for _ in several),
            "".join(point() for _ in several),
            " ".join(rng.choice(WORDS) for _ in several) + rng.choice(BITS),
        )[i % 3]


TEXTS = list(some_texts(10_000))
LESSON = [WORLD, *some_texts(1500, seed=1)]


@functools.cache
def their_json(family):
    """A small vocabulary that `tokenizers` trains, as its tokenizer.json. Bytes that the lesson lacks are missing in SmolLM2's, as in life."""
    cut, specials, config = FAMILIES[family]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer, first = cut, specials if family in ("gpt2", "smollm2") else []
    if family.startswith("qwen"):
        theirs.normalizer = tokenizers.normalizers.NFC()
    lesson = (
        [text.replace("\x04", "").replace("\x06", "") for text in LESSON if text.isascii()]
        if family == "smollm2"
        else LESSON
    )
    theirs.train_from_iterator(
        lesson,
        tokenizers.trainers.BpeTrainer(
            vocab_size=900,
            special_tokens=first,
            show_progress=False,
            initial_alphabet=[] if family == "smollm2" else pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    theirs.add_special_tokens([token for token in specials if "think" not in token])
    theirs.add_tokens(
        [token for token in specials if "think" in token]
    )  # Qwen3 does not call these special
    if family == "llama3":
        bos = config["bos_token"]
        theirs.post_processor = tokenizers.processors.Sequence(
            [
                tokenizers.processors.ByteLevel(trim_offsets=False),
                tokenizers.processors.TemplateProcessing(
                    single=f"{bos} $A", special_tokens=[(bos, theirs.token_to_id(bos))]
                ),
            ]
        )
    return theirs.to_str()


def in_both(family, **model):
    """(our tokenizer, theirs), from the same tokenizer.json."""
    data = json.loads(their_json(family))
    data["model"].update(model)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    theirs.encode_special_tokens = True  # text is text there, too
    return from_json(data, FAMILIES[family][2]), theirs


def differ(mine, theirs, texts):
    return [
        text
        for text in texts
        if mine.encode(text) != theirs.encode(text, add_special_tokens=False).ids
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_are_those_of_hugging_face(family):
    mine, theirs = in_both(family)
    assert differ(mine, theirs, TEXTS) == []
    assert sum(len(mine.encode(text)) for text in TEXTS) < 0.8 * sum(
        len(text.encode()) for text in TEXTS
    )  # not single bytes all over


@pytest.mark.parametrize("family", ["gpt2", "llama3", "qwen3"])
def test_every_kind_of_character(family):
    mine, theirs = in_both(family)
    points = [
        chr(i) for i in range(0x110000) if (i < 0x3100 or i % 101 == 0) and not 0xD800 <= i < 0xE000
    ]
    assert differ(mine, theirs, [f"a{c}b {c}1{c} {c}\n'{c}.{c}" for c in points]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_are_found_and_used(family):
    mine, theirs = in_both(family)
    assert mine.specials == {
        token: theirs.token_to_id(token) for token in FAMILIES[family][1]
    } and mine.ends == set(mine.specials.values())
    eos = FAMILIES[family][2]["eos_token"]
    assert mine.eot == mine.specials[eos["content"] if isinstance(eos, dict) else eos]
    assert mine.bos == ((theirs.token_to_id("<|begin_of_text|>"),) if family == "llama3" else ())
    assert mine.chat == {"gpt2": "", "llama3": "llama3"}.get(family, "chatml") and mine.normal == (
        "NFC" if "qwen" in family else ""
    )
    assert mine.vocab_size == theirs.get_vocab_size()
    assert mine.prompt("Hi") == theirs.encode("Hi").ids or mine.chat


@pytest.mark.parametrize(
    "text",
    [
        "a  12",
        "a\n 1",
        "in  1969",
        " 1",
        "  1",
        "1 2",
        "\t\n3x",
        "x \u3000٣ y",
        " ²",
        "'s5's",
        "5 's",
    ],
)
def test_white_space_before_a_digit(text):
    """GPT-2's own pattern gives the last space to the number; SmolLM2 cuts digits out first."""
    mine, theirs = in_both("smollm2")
    assert differ(mine, theirs, [text]) == []
    assert regex.findall(mine.pattern, text) == [
        piece
        for part in regex.split(r"(\p{N})", text)
        for piece in regex.findall(GPT2_PATTERN, part)
    ]


def test_a_byte_without_a_token_is_left_out_and_its_neighbours_merge():
    mine, theirs = in_both("smollm2")
    assert {4, 6, 0xC1, 0xFF} <= mine.missing and mine.encode("!!!") == mine.encode(
        "!\x04!\x06!"
    ) != []
    texts = [
        "\x04",
        "a\x04b",
        "th\x04e",
        "\x04\x06\x04",
        "é",
        "!\x04!\x06!",
        "=" * 50 + "\x04" + "=" * 50,
        *(text + bit for bit in ("\x04", "é") for text in TEXTS[:500]),
    ]
    assert differ(mine, theirs, texts) == []
    assert mine.decode(mine.encode("no\x04thing")) == "nothing"


def test_half_a_surrogate_pair_does_not_crash():
    for mine in (TOKENIZER, in_both("smollm2")[0]):
        assert mine.encode("a \ud800!") == mine.encode("a \ufffd!") and mine.encode(
            "a \ud83d\ude00!"
        ) == mine.encode("a 😀!")


def test_qwen_composes_first():
    mine, _ = in_both("qwen3")
    assert mine.encode("e\u0301") == mine.encode("é") and mine.decode(mine.encode("e\u0301")) == "é"


def with_an_orphan(family, **model):
    data = json.loads(their_json(family))
    return in_both(family, vocab=data["model"]["vocab"] | {"Ġzqj": 2000}, **model)


def test_a_token_that_no_merge_reaches_counts_as_a_whole_piece_only():
    mine, theirs = with_an_orphan("llama3", ignore_merges=True)
    assert mine.encode("a zqj") == [*mine.encode("a"), 2000] and 2000 not in mine.encode("a zqjzqj")
    assert (
        differ(mine, theirs, ["a zqj", " zqj", " zqjs", " zqj zqj", " zqj.", *TEXTS[:2000]]) == []
    )
    again = tokenizers.Tokenizer.from_str(json.dumps(to_json(mine)))
    assert differ(mine, again, ["a zqj", " zqj", " zqjs", " zqj zqj"]) == []


def test_llama_lists_every_way_to_a_token():
    """Its merges were made from ranks: all pairs of tokens that make a token, not the one that training saw."""
    data = json.loads(their_json("llama3"))
    vocab = data["model"]["vocab"]
    every = [
        (token[:i], token[i:])
        for token in sorted(vocab, key=vocab.get)
        for i in range(1, len(token))
        if token[:i] in vocab and token[i:] in vocab
    ]
    mine, theirs = in_both("llama3", merges=[list(pair) for pair in every], ignore_merges=True)
    assert len(every) > len(data["model"]["merges"]) and differ(mine, theirs, TEXTS[:2000]) == []


@pytest.mark.parametrize("family", [*FAMILIES, "ours"])
def test_what_is_written_as_tokenizer_json_is_read_the_same(family, tmp_path):
    mine = TOKENIZER if family == "ours" else in_both(family)[0]
    (tmp_path / "tokenizer.json").write_text(json.dumps(to_json(mine)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(to_config(mine)))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    assert differ(mine, theirs, TEXTS[:2000]) == []
    assert [theirs.token_to_id(token) for token in mine.specials] == list(mine.specials.values())
    again = from_json(to_json(mine), to_config(mine))
    assert (again.ranks, again.settings()) == (mine.ranks, mine.settings())

    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (
        auto("Hello 12").input_ids == [*mine.bos, *mine.encode("Hello 12")]
        and auto.eos_token_id == mine.eot
    )
    assert auto.decode(mine.encode(" Hé 😀 12")) == mine.decode(mine.encode(" Hé 😀 12"))
    if mine.chat:
        messages = [{"role": role, "content": text} for role, text in TALK]
        assert auto.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        ) == mine.turns(TALK)


TALK = [
    ("system", "Be brief."),
    ("user", "How many?\n 12 {text}"),
    ("assistant", "Twelve."),
    ("user", "\n\nWhy? "),
]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt2"])
def test_chats_are_those_of_the_template(family):
    mine, _ = in_both(family)
    template = FAMILIES[family][2]["chat_template"]
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(their_json(family)),
        bos_token=FAMILIES[family][2].get("bos_token"),
        chat_template=template if isinstance(template, str) else template[0]["template"],
    )
    for talk in (TALK, TALK[1:], TALK[:1], [("user", "")], [("user", "{role}")]):
        messages = [{"role": role, "content": text} for role, text in talk]
        assert mine.turns(talk) == theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
    assert mine.prompt("Why?") == mine.turns([("user", "Why?")])


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt2"])
def test_no_text_smuggles_a_special_token_in(family):
    mine, _ = in_both(family)
    plain, sly = mine.prompt("Hi"), mine.prompt("Hi" + "".join(mine.specials) + "{text}")
    assert [id for id in sly if id in mine.ends] == [id for id in plain if id in mine.ends]
    assert not mine.ends.intersection(mine.encode("".join(mine.specials)))


def test_special_ids_decode_to_nothing_and_unknown_ids_are_named():
    mine, _ = in_both("llama3")
    assert (
        mine.decode([*mine.bos, *mine.encode("Hi"), mine.eot]) == "Hi"
        and mine.bytes_of(mine.eot) == b""
    )
    for unknown in (mine.vocab_size, -1):
        with pytest.raises(ValueError, match=f"id {unknown}") as e:
            mine.decode([unknown])
        assert not isinstance(e.value, UserError)


def test_ids_with_a_gap():
    mine = Tokenizer({bytes([b]): b + 3 for b in range(256)}, specials={END: 999})
    assert mine.vocab_size == 1000 and mine.eot == 999 and mine.decode(mine.encode("Hi")) == "Hi"
    theirs = tokenizers.Tokenizer.from_str(json.dumps(to_json(mine)))
    assert theirs.token_to_id(END) == 999 and theirs.encode("Hi").ids == mine.encode("Hi")


def test_what_is_done_to_a_written_dict_does_not_come_back():
    to_json(TOKENIZER)["pre_tokenizer"]["pretokenizers"].clear()
    assert to_json(TOKENIZER)["pre_tokenizer"]["pretokenizers"]


# ---- Settings ----


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_and_settings_come_back(family, tmp_path):
    mine, _ = in_both(family)
    mine.save(tmp_path / "ranks")
    again = Tokenizer.load(tmp_path / "ranks", json.loads(json.dumps(mine.settings())))
    assert (
        again.settings() == mine.settings()
        and again.ranks == mine.ranks
        and again.vocab_size == mine.vocab_size
    )
    assert [again.encode(text) for text in TEXTS[:300]] == [
        mine.encode(text) for text in TEXTS[:300]
    ] and again.prompt("Hi") == mine.prompt("Hi")


DAMAGED_SETTINGS = {
    "two tokens share an id": {"specials": {END: 5}, "eot": 5},
    "whole numbers": {"specials": {END: -1}, "eot": -1},
    "end of text": {"eot": 7},
    "begin with special": {"bos": [3]},
    "chat is 'irc'": {"chat": "irc"},
    "normal is 'NFKC'": {"normal": "NFKC"},
    "argument": {"color": "red"},
    "attribute": {"specials": [END]},
    "regex|[Pp]ars": {"pattern": "("},
    "iterable": {"bos": 3},
}


@pytest.mark.parametrize("reason", DAMAGED_SETTINGS)
def test_damaged_settings_are_refused(tmp_path, reason):
    mine, _ = in_both("qwen3")
    mine.save(tmp_path / "ranks")
    with pytest.raises(UserError, match=reason) as e:
        Tokenizer.load(tmp_path / "ranks", mine.settings() | DAMAGED_SETTINGS[reason])
    assert len(str(e.value).splitlines()) == 1 and str(tmp_path) in str(e.value)


def test_damaged_ranks_are_refused_with_settings_too(tmp_path):
    mine, _ = in_both("qwen3")
    mine.save(tmp_path / "ranks")
    whole = (tmp_path / "ranks").read_text()
    first, second, *rest = whole.splitlines()
    for damaged in (
        whole[:-3] + "x\n",
        "\n".join([first, first, second, *rest]),
        "\n".join([first, second.split()[0] + " " + first.split()[1], *rest]),
    ):
        (tmp_path / "ranks").write_text(damaged)
        with pytest.raises(UserError, match="ranks"):
            Tokenizer.load(tmp_path / "ranks", mine.settings())


# ---- What is refused, and why ----


def change(part, value):
    def changed(data):
        *path, last = part.split("/")
        at = data
        for name in path:
            at = at[int(name) if name.isdigit() else name]
        at[last] = value(at[last]) if callable(value) else value

    return changed


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
REFUSED = [  # the reason, the family whose tokenizer.json is changed, the change
    (
        "SentencePiece-style.*Llama 2, Mistral v0.1 and Gemma",
        "gpt2",
        change("pre_tokenizer", METASPACE),
    ),
    ("SentencePiece-style", "gpt2", change("model/byte_fallback", True)),
    ("holds a Unigram model", "gpt2", change("model", {"type": "Unigram", "vocab": [["a", -1.0]]})),
    ("holds a WordPiece model", "gpt2", change("model/type", "WordPiece")),
    ("dropout", "gpt2", change("model/dropout", 0.1)),
    ("prefix or suffix", "gpt2", change("model/end_of_word_suffix", "</w>")),
    ("prefix or suffix", "gpt2", change("model/continuing_subword_prefix", "##")),
    ("unknown token", "smollm2", change("model/unk_token", END)),
    ("add_prefix_space", "gpt2", change("pre_tokenizer/add_prefix_space", True)),
    ("changes text first .Lowercase", "gpt2", change("normalizer", {"type": "Lowercase"})),
    (
        "changes text first .NFC, Strip",
        "gpt2",
        change(
            "normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}
        ),
    ),
    ("pre_tokenizer: Whitespace", "gpt2", change("pre_tokenizer", {"type": "Whitespace"})),
    ("pre_tokenizer: none", "gpt2", change("pre_tokenizer", None)),
    (
        "pre_tokenizer: Split, ByteLevel",
        "qwen3",
        change("pre_tokenizer/pretokenizers/0/pattern", {"Regex": r"\p{L}+|\s+"}),
    ),
    (
        "pre_tokenizer: Split, ByteLevel",
        "qwen3",
        change("pre_tokenizer/pretokenizers/0/behavior", "Removed"),
    ),
    (
        "pre_tokenizer: Split, ByteLevel",
        "qwen3",
        change("pre_tokenizer/pretokenizers/0/invert", True),
    ),
    (
        "pre_tokenizer: Digits, ByteLevel",
        "smollm2",
        change("pre_tokenizer/pretokenizers/0/individual_digits", False),
    ),
    (
        "adds to the ids .RobertaProcessing",
        "gpt2",
        change("post_processor", {"type": "RobertaProcessing"}),
    ),
    (
        "adds '   ' to its tokens",
        "gpt2",
        change(
            "added_tokens",
            lambda tokens: [*tokens, {"id": 1000, "content": "   ", "special": False}],
        ),
    ),
    (
        "two tokens share an id",
        "gpt2",
        change(
            "added_tokens",
            lambda tokens: [*tokens, {"id": 300, "content": "<new>", "special": True}],
        ),
    ),
    (
        "two tokens share an id",
        "gpt2",
        change("model/vocab", lambda vocab: vocab | {"Ġt": vocab["Ġa"]}),
    ),
    ("whole numbers", "gpt2", change("model/vocab", lambda vocab: vocab | {"!": -4})),
    ("'▁x', which is not bytes", "gpt2", change("model/vocab", lambda vocab: vocab | {"▁x": 2000})),
    (
        "merge to 'zq', which is no token",
        "gpt2",
        change("model/merges", lambda merges: [*merges, ["z", "q"]]),
    ),
    ("another order", "gpt2", change("model/merges", lambda merges: merges[::-1])),
    ("lists no merge", "gpt2", change("model/merges", lambda merges: merges[:100] + merges[101:])),
    (
        "lists no merge Ġ . z . q . j",
        "gpt2",
        change("model/vocab", lambda vocab: vocab | {"Ġzqj": 2000}),
    ),
    ("eos_token", "gpt2", change("added_tokens", [])),
    ("not the tokenizer.json.*'merges'", "gpt2", change("model", {"type": "BPE", "vocab": {}})),
    ("not the tokenizer.json", "gpt2", change("model", None)),
    ("not the tokenizer.json", "gpt2", change("added_tokens", "none")),
]


@pytest.mark.parametrize(
    "reason, family, change",
    REFUSED,
    ids=[f"{i} {reason[:30]}" for i, (reason, _, _) in enumerate(REFUSED)],
)
def test_what_tiktoken_cannot_do_is_refused_with_the_reason(reason, family, change):
    data = json.loads(their_json(family))
    change(data)
    with pytest.raises(UserError, match=reason) as e:
        from_json(data, where="its tokenizer.json")
    assert len(str(e.value).splitlines()) == 1 and "its tokenizer.json" in str(e.value)


def test_an_eos_token_that_is_none_of_the_special_tokens_is_refused():
    with pytest.raises(UserError, match="eos_token.*'</s>'"):
        from_json(json.loads(their_json("gpt2")), {"eos_token": "</s>"})


def test_a_merge_order_that_only_tiktoken_would_take_is_refused():
    """Vocabulary a b c ab bc abc. By rank, a bc -> abc; the list knows only ab c -> abc, so Hugging Face stops at a bc."""
    vocab = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())} | {
        "bc": 256,
        "ab": 257,
        "abc": 258,
        END: 259,
    }
    data = json.loads(their_json("gpt2"))
    data["added_tokens"][0]["id"] = 259
    data["model"].update(vocab=vocab, merges=["b c", "a b", "ab c"])
    assert tokenizers.Tokenizer.from_str(json.dumps(data)).encode("abc").tokens == ["a", "bc"]
    with pytest.raises(UserError, match="lists no merge a . bc"):
        from_json(data)
    data["model"]["merges"] = ["b c", "a b", "a bc"]
    assert from_json(data).encode("abc") == [258]


def test_a_token_with_a_lower_id_than_its_parts():
    """Llama 3 has such. Of acac (258 = ac ac), tiktoken makes aca (256 = ac a) as soon as the first ac (257) is there."""
    vocab = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())} | {
        "aca": 256,
        "ac": 257,
        "acac": 258,
        END: 259,
    }
    data = json.loads(their_json("gpt2"))
    data["added_tokens"][0]["id"] = 259
    data["model"].update(vocab=vocab, merges=["ac a", "a c", "ac ac"])
    with pytest.raises(UserError, match="lists no merge aca . c"):
        from_json(data)
    data["model"].update(
        vocab={token: id for token, id in vocab.items() if token != "acac"}, merges=["ac a", "a c"]
    )
    assert (
        differ(
            from_json(data),
            tokenizers.Tokenizer.from_str(json.dumps(data)),
            ["ac", "aca", "acac", "acaca", "aacac"],
        )
        == []
    )


def test_odd_vocabularies_are_refused_or_give_the_same_ids():
    """Merges in any order, tokens that no merge reaches, several ways to a token: what is not refused equals Hugging Face."""
    rng, data, accepted = random.Random(0), json.loads(their_json("gpt2")), 0
    strings = [
        "".join(letters)
        for n in range(1, 7)
        for letters in itertools.product("abc" if n < 5 else "ab", repeat=n)
    ]
    for _ in range(400):
        tokens, merges = list("abc"), []
        for _ in range(rng.randrange(2, 8)):
            pair = rng.choice(tokens), rng.choice(tokens)
            if rng.random() < 0.85:
                merges.append(pair)
            if "".join(pair) not in tokens:
                tokens.append("".join(pair))
        if rng.random() < 0.3:
            tokens[3:] = rng.sample(tokens[3:], len(tokens) - 3)
        vocab = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
        vocab |= {token: 256 + i for i, token in enumerate([*tokens[3:], END])}
        merges = sorted(dict.fromkeys(merges), key=lambda pair: vocab["".join(pair)])
        data["added_tokens"][0]["id"] = vocab[END]
        data["model"].update(vocab=vocab, merges=merges, ignore_merges=rng.random() < 0.5)
        try:
            mine = from_json(data)
        except UserError:
            continue
        accepted += 1
        assert differ(mine, tokenizers.Tokenizer.from_str(json.dumps(data)), strings) == [], data[
            "model"
        ]["merges"]
    assert 100 < accepted < 350


def test_a_pattern_of_ones_own_cannot_be_written_as_tokenizer_json():
    with pytest.raises(UserError, match="tokenizer.json cannot be written"):
        to_json(Tokenizer(TOKENIZER.ranks, pattern=r"\s+|\S+"))


# ---- Older files, and GGUF ----


def test_an_older_tokenizer_json_is_read():
    """Merges as "a b", no type of the model, and no use_regex, which then is on."""
    data = json.loads(their_json("gpt2"))
    mine = in_both("gpt2", merges=[" ".join(pair) for pair in data["model"]["merges"]])[0]
    del data["pre_tokenizer"]["use_regex"], data["model"]["type"]
    again = from_json(data)
    assert (again.ranks, again.settings()) == (mine.ranks, mine.settings())


def test_older_files_of_gpt2_are_read():
    data = json.loads(their_json("gpt2"))
    merges = (
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in data["model"]["merges"]) + "\n"
    )
    mine, again = in_both("gpt2")[0], from_vocab(data["model"]["vocab"], merges)
    assert (again.ranks, again.settings()) == (mine.ranks, mine.settings())


def as_gguf(family, pre):
    """What a GGUF file says of a tokenizer: raw special tokens (type 3, or 4), the others (1), padding without use (5)."""
    data = json.loads(their_json(family))
    tokens = data["model"]["vocab"] | {
        token["content"]: token["id"] for token in data["added_tokens"]
    }
    kind = {token["content"]: 3 if token["special"] else 4 for token in data["added_tokens"]}
    tokens = sorted(tokens, key=tokens.get)
    eos = FAMILIES[family][2]["eos_token"]
    template = FAMILIES[family][2].get("chat_template")
    fields = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens + ["[PAD0]", "[PAD1]"],
        "token_type": [kind.get(token, 1) for token in tokens] + [5, 5],
        "merges": [" ".join(pair) for pair in data["model"]["merges"]],
        "bos_token_id": tokens.index(FAMILIES[family][1][0]),
        "eos_token_id": tokens.index(eos["content"] if isinstance(eos, dict) else eos),
    }
    if family != "llama3":
        fields["add_bos_token"] = False
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items()} | (
        {"tokenizer.chat_template": str(template)} if template else {}
    )


PRE = {
    "gpt2": "gpt-2",
    "smollm2": "smollm",
    "llama3": "llama-bpe",
    "qwen2.5": "qwen2",
    "qwen3": "qwen2",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_gives_the_same_tokenizer(family):
    mine, again = in_both(family)[0], from_gguf(as_gguf(family, PRE[family]))
    assert (again.ranks, again.settings(), again.vocab_size) == (
        mine.ranks,
        mine.settings(),
        mine.vocab_size,
    )


GGUF_REFUSED = [
    ("kind 'llama'", {"model": "llama"}),
    ("cuts text as 'deepseek-llm'", {"pre": "deepseek-llm"}),
    ("cuts text as None", {"pre": None}),
    ("no complete tokenizer", {"token_type": [1]}),
    ("no complete tokenizer", {"tokens": None}),
    ("no complete tokenizer", {"eos_token_id": 10_000}),
    ("eos_token", {"eos_token_id": 5}),
    ("begin with special", {"add_bos_token": True, "bos_token_id": 5}),
    ("lists no merge", {"merges": []}),
    ("a token twice", {"tokens": ["a", "a"]}),
]


@pytest.mark.parametrize("reason, changes", GGUF_REFUSED)
def test_a_gguf_file_that_cannot_be_read_is_refused(reason, changes):
    with pytest.raises(UserError, match=reason) as e:
        from_gguf(
            as_gguf("qwen3", "qwen2")
            | {f"tokenizer.ggml.{name}": value for name, value in changes.items()},
            "x.gguf",
        )
    assert len(str(e.value).splitlines()) == 1 and "x.gguf" in str(e.value)


SMOLLM2 = os.environ.get("MINSEAL_SMOLLM2")


@pytest.mark.skipif(not SMOLLM2, reason="MINSEAL_SMOLLM2 names no GGUF file of SmolLM2")
def test_smollm2_itself():
    gguf = pytest.importorskip("gguf")
    fields = {
        name: field.contents()
        for name, field in gguf.GGUFReader(SMOLLM2).fields.items()
        if name.startswith("tokenizer.")
    }
    mine = from_gguf(fields, SMOLLM2)
    assert (mine.vocab_size, mine.eot, mine.bos, mine.chat, len(mine.ends), len(mine.missing)) == (
        49152,
        2,
        (),
        "chatml",
        17,
        21,
    )
    tokens = fields["tokenizer.ggml.tokens"]
    data = json.loads(their_json("smollm2"))
    data["added_tokens"] = [
        data["added_tokens"][0] | {"id": id, "content": tokens[id]} for id in range(17)
    ]
    data["model"].update(
        vocab={token: id for id, token in enumerate(tokens)}, merges=fields["tokenizer.ggml.merges"]
    )
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    theirs.encode_special_tokens = True
    assert differ(mine, theirs, TEXTS) == []
    assert mine.prompt("Hi") == [
        1,
        *mine.encode("user\nHi"),
        2,
        *mine.encode("\n"),
        1,
        *mine.encode("assistant\n"),
    ]
