"""Text <-> ids: byte-level BPE through tiktoken, chat formats, and how ranks are learnt."""

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import regex  # tiktoken's own dependency
import tiktoken

from .files import UserError, Writer, first_line, read_text, write_text

# How GPT-2 cuts text into pieces before merging: words keep the space before them.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
END = "<|endoftext|>"
# A pattern must cut this, all of it, in half a second: long runs are where patterns that try
# every way of matching never end.
PROBE = "The cat's 12 été,\n\n\t中文 😀 e\u0301" + "".join(c * 300 for c in "aA1 \n!_é中")
LONGEST_GAP = 500_000  # white space characters in a row; at a million tiktoken gives up

# Chat formats: a whole turn, and how the assistant's begins. (Llama 3's strips the text.)
CHATS = {
    "chatml": ("<|im_start|>{role}\n{text}<|im_end|>\n", "<|im_start|>assistant\n"),
    "llama3": (
        "<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}
# A model with these tokens (Qwen3) thinks first, unless the thought is there already, and empty.
THINK = ("<think>", "</think>")


class Tokenizer:
    """Byte-level BPE. Text is always text: a special token written in it is encoded as letters.

    ranks: token bytes -> id; the lower merges first. Every single byte is among them.
    specials: text -> id of the tokens that no text has (the default: END alone).
    eot: the id that ends a text. bos: the ids that a text begins with.
    chat: a key of CHATS, or "" for a base model.
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        pattern: str = GPT2_PATTERN,
        specials: dict[str, int] | None = None,
        eot: int | None = None,
        bos: Iterable[int] = (),
        chat: str = "",
    ) -> None:
        self.ranks, self.pattern, self.chat, self.bos = ranks, pattern, chat, tuple(bos)
        self.specials = {END: len(ranks)} if specials is None else specials
        self.eot = self.specials.get(END) if eot is None else eot
        self.ends = frozenset(self.specials.values())
        with as_user_error("no tokenizer"):
            self._check()
            self.encoding = tiktoken.Encoding(
                "minseal", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
            )
        self.tokens = {id: token for token, id in ranks.items()} | dict.fromkeys(self.ends, b"")
        self.vocab_size = max(self.tokens) + 1

    def _check(self) -> None:
        ids, used = [*self.ranks.values(), *self.specials.values()], [self.eot, *self.bos]
        with as_user_error(f"its pattern {self.pattern!r:.60}"):
            pieces = [match[0] for match in regex.finditer(self.pattern, PROBE, timeout=0.5)]
        problems = {
            "ids must be whole numbers from 0": any(
                type(i) is not int or i < 0 for i in ids + used
            ),
            "its special tokens must be text": not all(type(t) is str for t in self.specials),
            "its pattern must cut a text into pieces": "" in pieces or "".join(pieces) != PROBE,
            "two tokens share an id": len(set(ids)) < len(ids),
            "it lacks single bytes": any(bytes([b]) not in self.ranks for b in range(256)),
            "eot and bos must be special": not self.ends.issuperset(used),
            f"chat is {self.chat!r}, expected one of {[*CHATS]}": self.chat not in ("", *CHATS),
        }
        for problem, is_there in problems.items():
            if is_there:
                raise UserError(problem)

    def encode(self, text: str) -> list[int]:
        """Text, or a part of one, -> ids; never a special token. Time is about linear."""
        with as_user_error("this text cannot be encoded"):
            if len(text) < LONGEST_GAP:
                return self.encoding.encode_ordinary(text)
            parts = regex.split(rf"(\s{{{LONGEST_GAP}}})", text)
            return [id for part in parts for id in self.encoding.encode_ordinary(part)]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text. Bytes that are no UTF-8 become "\ufffd", special tokens leave no trace.

        Raises ValueError for an id without a token: a padded vocabulary has such ids.
        """
        if unknown := [id for id in ids if id not in self.tokens]:
            raise ValueError(f"no token has the id {unknown[0]}")
        return b"".join(self.tokens[id] for id in ids).decode(errors="replace")

    def begin(self, text: str) -> list[int]:
        """A text from its beginning -> ids."""
        return [*self.bos, *self.encode(text)]

    def prompt(self, text: str) -> list[int]:
        """Text -> what a model is given to go on from: a user's turn in a chat, else the text."""
        return self.turns([("user", text)]) if self.chat else self.begin(text)

    def turns(self, messages: Iterable[tuple[str, str]]) -> list[int]:
        """(role, text) pairs of a chat -> ids, ending where the assistant's next turn begins.

        No system message is made up.
        """
        turn, opening = CHATS[self.chat]
        if self.specials.keys() >= set(THINK):
            opening += "{}\n\n{}\n\n".format(*THINK)
        ids = list(self.bos)
        for role, text in messages:
            text = text.strip() if self.chat == "llama3" else text
            ids += self._fill(turn, role=role, text=text)
        return ids + self._fill(opening)

    def _fill(self, template: str, **words: str) -> list[int]:
        # Cut first, filled in after: the template's special tokens become ids, and no word of
        # a message can smuggle one in.
        ids = []
        for part in regex.split(r"(<[^<>]+>)", template):
            special = part in self.specials
            ids += [self.specials[part]] if special else self.encode(part.format(**words))
        return ids

    def settings(self) -> dict[str, Any]:
        """What files() leave out, fit for JSON."""
        names = ("pattern", "specials", "eot", "bos", "chat")
        return {name: getattr(self, name) for name in names}

    def files(self) -> dict[str, Writer]:
        """{file name: its writer}: tiktoken's own format, token in base64 and rank on each line."""
        lines = (f"{base64.b64encode(token).decode()} {id}\n" for token, id in self.ranks.items())
        return {"ranks.tiktoken": write_text("".join(lines))}

    @classmethod
    def load(cls, path: str | Path, settings: dict[str, Any] | None = None) -> "Tokenizer":
        """What files() and settings() gave; without settings, the default ones."""
        rows = [line.split(" ") for line in read_text(path).splitlines() if line]
        try:
            ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
        except ValueError:
            raise UserError(f"{path}: expected tiktoken's 'BASE64 RANK' on each line") from None
        with as_user_error(f"{path} and its settings"):
            if len(ranks) < len(rows):
                raise UserError("a token stands in it twice")
            return cls(ranks, **({} if settings is None else settings))


@contextmanager
def as_user_error(where: object) -> Iterator[None]:
    """What goes wrong inside is told in one line: panics of Rust too, which are no Exceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as e:
        kind = "" if isinstance(e, UserError) else f"{type(e).__name__}: "
        raise UserError(f"{where}: {kind}{first_line(e)}") from None


def train_ranks(text: str, size: int, pattern: str = GPT2_PATTERN) -> dict[bytes, int]:
    """Byte-pair encoding (Sennrich et al., arXiv 1508.07909): text -> `size` ranks.

    The most frequent pair merges next; ties go by bytes, so the same text gives the same ranks.
    """
    pieces = Counter(regex.findall(pattern, text))
    words = [([bytes([b]) for b in piece.encode()], n) for piece, n in pieces.items()]
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < size:
        pairs = Counter()
        for parts, n in words:
            for pair in pairwise(parts):
                pairs[pair] += n
        if not pairs:
            break
        a, b = min(pairs, key=lambda pair: (-pairs[pair], pair))
        ranks[a + b] = len(ranks)
        words = [(_merge(parts, a, b), n) for parts, n in words]
    return ranks


def _merge(parts: list[bytes], a: bytes, b: bytes) -> list[bytes]:
    out: list[bytes] = []
    for part in parts:
        if out and out[-1] == a and part == b:
            out[-1] = a + b
        else:
            out.append(part)
    return out
