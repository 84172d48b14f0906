"""Text <-> ids: nothing is lost, and the ids are those of a slow byte-pair encoding."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import regex
from conftest import grows_linearly
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minseal import Tokenizer, UserError
from minseal.files import write_folder
from minseal.tasks import people
from minseal.tokenizer import END, GPT2_PATTERN, train_ranks

rng = np.random.default_rng(0)
WORLD = "\n".join(people.pretraining_text(rng) for _ in range(60))
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
    """In each piece, the neighbours whose union has the lowest rank merge, leftmost first."""
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
    assert b"".join(TOKENIZER.tokens[id] for id in ids) == data
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
    # Pieces: 'ab', 4 times ' ab', 2 times ' abc'; so a-b occurs 7 times, then ' '-ab 6 times,
    # then ' ab'-c twice.
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
    write_folder(tmp_path, TOKENIZER.files())
    again = Tokenizer.load(tmp_path / "ranks.tiktoken")
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
    "a token twice": lambda text: text + "QQ== 9999\n",
    "letters that base64 has not": lambda text: text.replace("QQ==", "Q!Q=="),
    "a rank beyond tiktoken's": lambda text: text.replace(" 12\n", f" {2**40}\n"),
    "a rank below 0": lambda text: text.replace(" 12\n", " -12\n"),
    "a rank of 5,000 digits": lambda text: text.replace(" 12\n", f" {'9' * 5000}\n"),
    "empty": lambda text: "",
    "some other text": lambda text: "hello\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "ranks.tiktoken"
    write_folder(tmp_path, TOKENIZER.files())
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


# ---- settings, and chats ----

CHATML = Tokenizer(
    {bytes([b]): b for b in range(256)},
    specials={END: 256, "<|im_start|>": 257, "<|im_end|>": 258},
    eot=258,
    bos=[256],
    chat="chatml",
)


def test_half_a_surrogate_pair_does_not_crash():
    assert TOKENIZER.encode("a \ud800!") == TOKENIZER.encode("a \ufffd!")
    assert TOKENIZER.encode("a \ud83d\ude00!") == TOKENIZER.encode("a 😀!")


def test_special_ids_decode_to_nothing_and_unknown_ids_are_named():
    assert CHATML.decode([256, *CHATML.encode("Hi"), 258]) == "Hi"
    for unknown in (CHATML.vocab_size, -1):
        with pytest.raises(ValueError, match=f"id {unknown}") as e:
            CHATML.decode([unknown])
        assert not isinstance(e.value, UserError)


def test_a_text_begins_with_bos_and_a_chat_with_its_turn():
    assert CHATML.begin("Hi") == [256, *CHATML.encode("Hi")]
    turn = [257, *CHATML.encode("user\nHi"), 258, *CHATML.encode("\n")]
    assert CHATML.prompt("Hi") == [256, *turn, 257, *CHATML.encode("assistant\n")]
    assert TOKENIZER.prompt("Hi") == TOKENIZER.begin("Hi") == TOKENIZER.encode("Hi")


def test_no_text_smuggles_a_special_token_in():
    plain, sly = CHATML.prompt("Hi"), CHATML.prompt("Hi" + "".join(CHATML.specials) + "{text}")
    assert [id for id in sly if id in CHATML.ends] == [id for id in plain if id in CHATML.ends]


def test_ids_with_a_gap_and_settings_come_back(tmp_path):
    mine = Tokenizer({bytes([b]): b + 3 for b in range(256)}, specials={END: 999})
    assert mine.vocab_size == 1000 and mine.eot == 999 and mine.decode(mine.encode("Hi")) == "Hi"
    for tokenizer in (mine, CHATML):
        write_folder(tmp_path, tokenizer.files())
        settings = json.loads(json.dumps(tokenizer.settings()))
        again = Tokenizer.load(tmp_path / "ranks.tiktoken", settings)
        assert again.settings() == tokenizer.settings() and again.ranks == tokenizer.ranks
        assert again.vocab_size == tokenizer.vocab_size


DAMAGED_SETTINGS = {
    "two tokens share an id": {"specials": {END: 5}, "eot": 5},
    "whole numbers": {"specials": {END: -1}, "eot": -1},
    "eot and bos must be special": {"eot": 7},
    "eot and bos must": {"bos": [3]},
    "chat is 'irc'": {"chat": "irc"},
    "argument": {"color": "red"},
    "attribute": {"specials": [END]},
    r"its pattern '\(': .*missing \)": {"pattern": "("},
    "iterable": {"bos": 3},
    "must be whole": {"eot": 258.0},
    "numbers from 0": {"bos": [True]},
    "hashable|whole": {"eot": [258]},
    "items|attribute": {"specials": "none"},
    "its pattern 5": {"pattern": 5},
    "its pattern must cut": {"pattern": ""},  # of itself tiktoken panics at these, or loses text
    "cut a text into": {"pattern": "a*"},
    "text into pieces": {"pattern": "(?=a)"},
    "must cut a text into pieces": {"pattern": r"\d+"},
    "pattern .*timed out": {"pattern": r"(?:(?:a|a)+\x00)|[\s\S]"},  # tries 2^300 ways
}


@pytest.mark.parametrize("reason", DAMAGED_SETTINGS)
def test_damaged_settings_are_refused(tmp_path, reason, capfd):
    write_folder(tmp_path, CHATML.files())
    with pytest.raises(UserError, match=reason) as e:
        Tokenizer.load(tmp_path / "ranks.tiktoken", CHATML.settings() | DAMAGED_SETTINGS[reason])
    assert len(str(e.value).splitlines()) == 1 and str(tmp_path) in str(e.value)
    assert capfd.readouterr().err == ""  # no panic of Rust either


@pytest.mark.parametrize("settings", [[], "", False, [1]])
def test_settings_that_are_no_settings_are_refused(tmp_path, settings):
    write_folder(tmp_path, CHATML.files())
    with pytest.raises(UserError, match="its settings"):
        Tokenizer.load(tmp_path / "ranks.tiktoken", settings)


@pytest.mark.parametrize("unit", ["a", " ", "\n", "-", "é", "中", "7", "ab", " \n", "\u0301"])
def test_long_runs_take_time_about_linear_in_their_length(unit):
    """Kind: no input is quadratic."""
    assert grows_linearly(lambda n: TOKENIZER.encode(unit * n), 25_000)


def test_a_million_spaces_come_back(capfd):
    """Alone, tiktoken panics at white space that goes on for a million characters."""
    text = "a" + "\n " * 600_000 + " b"
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text and capfd.readouterr().err == ""


def test_a_panic_of_rust_is_one_line(monkeypatch):
    monkeypatch.setattr("minseal.tokenizer.LONGEST_GAP", 2**60)
    with pytest.raises(UserError, match="cannot be encoded: PanicException"):
        TOKENIZER.encode(" " * 1_200_000)


def test_ranks_that_lack_bytes_are_refused(tmp_path):
    write_folder(tmp_path, CHATML.files())
    path = tmp_path / "ranks.tiktoken"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="lacks single bytes"):
        Tokenizer.load(path, CHATML.settings())
