"""Text <-> ids: byte-level BPE through tiktoken, chat formats, and how a small tokenizer is made."""

import base64
import heapq
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import regex  # tiktoken's own dependency
import tiktoken

from .errors import UserError

# How text is cut into pieces before merging. GPT-2: words keep the space before them.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# SmolLM2 cuts out every digit first, then does as GPT-2: so a digit takes no space along, and white space before it stays whole.
DIGITS_PATTERN = GPT2_PATTERN.replace(r" ?\p{N}+", r"\p{N}").replace(
    r"\s+(?!\S)", r"\s+(?![^\s\p{N}])"
)
# Llama 3: digits by threes, line breaks apart from other white space. Qwen: the same, but each digit alone.
LLAMA3_PATTERN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
QWEN_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
END = "<|endoftext|>"

# Chat formats: a whole turn, and how the assistant's begins. (Llama 3's strips the text.)
CHATS = {
    "chatml": ("<|im_start|>{role}\n{text}<|im_end|>\n", "<|im_start|>assistant\n"),
    "llama3": (
        "<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}
THINK = (
    "<think>",
    "</think>",
)  # a model with these tokens (Qwen3) thinks first, unless the thought is there already, and empty


class Tokenizer:
    """Byte-level BPE. Text is always text: a special token written in it is encoded letter by letter.

    ranks: token bytes -> id, the lower merges first. specials: text -> id of the tokens that no text has (the default: END alone).
    eot: the id that ends a text. bos: the ids that a text begins with. chat: a key of CHATS, or "" for a base model.
    normal: a Unicode normal form that text is put into first (Qwen: "NFC"), or "". Raises UserError if these do not fit together.
    """

    def __init__(
        self, ranks, pattern=GPT2_PATTERN, specials=None, eot=None, bos=(), chat="", normal=""
    ):
        self.ranks, self.pattern, self.chat, self.normal, self.bos = (
            ranks,
            pattern,
            chat,
            normal,
            tuple(bos),
        )
        self.specials = {END: len(ranks)} if specials is None else specials
        self.eot = self.specials.get(END) if eot is None else eot
        self.ends = frozenset(self.specials.values())
        self._check()
        self.tokens = {id: token for token, id in ranks.items()} | dict.fromkeys(self.ends, b"")
        self.vocab_size = max(self.tokens) + 1
        self.missing = frozenset(b for b in range(256) if bytes([b]) not in ranks)
        self.encoding = tiktoken.Encoding(
            "minseal", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )

    def _check(self):
        ids = [*self.ranks.values(), *self.specials.values()]
        for wrong, why in (
            (
                not ids or not all(type(id) is int and id >= 0 for id in ids),
                "ids must be whole numbers from 0",
            ),
            (len(set(ids)) < len(ids), "two tokens share an id"),
            (
                self.eot not in self.ends,
                f"the end of text must be a special token, not {self.eot!r}",
            ),
            (
                not self.ends.issuperset(self.bos),
                f"a text must begin with special tokens, not {self.bos!r}",
            ),
            (
                self.chat not in ("", *CHATS),
                f"chat is {self.chat!r}, expected one of {', '.join(CHATS)} or nothing",
            ),
            (self.normal not in ("", "NFC"), f"normal is {self.normal!r}, expected NFC or nothing"),
        ):
            if wrong:
                raise UserError(f"no tokenizer: {why}")

    def encode(self, text):
        """Text -> list of ids; never a special token."""
        text = text.encode("utf-16", "surrogatepass").decode(
            "utf-16", "replace"
        )  # as tiktoken: half a surrogate pair is no letter
        if self.normal:
            text = unicodedata.normalize(self.normal, text)
        if self.missing.isdisjoint(text.encode()):
            return self.encoding.encode_ordinary(text)
        # A byte without a token: tiktoken panics there, Hugging Face leaves it out of its piece and merges what is left.
        # (`regex` may know letters of a newer Unicode than both: in a text with one of those, the cuts may differ from theirs.)
        ids = []
        for piece in regex.findall(self.pattern, text):
            known = [bytes([b]) for b in piece.encode() if b not in self.missing]
            ids += [self.ranks[token] for token in merge_by_rank(self.ranks, known)]
        return ids

    def decode(self, ids):
        """Ids -> text. Bytes that are no UTF-8 become the replacement character; special tokens leave no trace."""
        return b"".join(map(self.bytes_of, ids)).decode(errors="replace")

    def bytes_of(self, token):
        """The bytes of one id (none for a special token); ValueError for an id without a token (a padded vocabulary has such)."""
        if token not in self.tokens:
            raise ValueError(f"no token has the id {token}")
        return self.tokens[token]

    def prompt(self, text):
        """Text -> the ids that a model is given to go on from: a user's turn for a chat model, else the text itself."""
        return self.turns([("user", text)]) if self.chat else [*self.bos, *self.encode(text)]

    def turns(self, messages):
        """[(role, text), ...] of a chat -> ids, ending where the assistant's next turn begins. No system message is made up."""
        ids = list(self.bos)
        for role, text in messages:
            ids += self._fill(
                CHATS[self.chat][0], role=role, text=text.strip() if self.chat == "llama3" else text
            )
        return ids + self._fill(self.opening())

    def opening(self):
        """How the assistant's turn begins in the chat format."""
        return CHATS[self.chat][1] + (
            "{}\n\n{}\n\n".format(*THINK) if self.specials.keys() >= set(THINK) else ""
        )

    def _fill(self, template, **words):
        # Cut first, filled in after: so special tokens of the template become ids, and a word cannot smuggle one in.
        ids = []
        for part in regex.split(r"(<[^<>]+>)", template):
            ids += (
                [self.specials[part]]
                if part in self.specials
                else self.encode(part.format(**words))
            )
        return ids

    def settings(self):
        """All but the ranks, fit for JSON."""
        return {
            "pattern": self.pattern,
            "specials": self.specials,
            "eot": self.eot,
            "bos": list(self.bos),
            "chat": self.chat,
            "normal": self.normal,
        }

    def save(self, path):
        """The ranks, in tiktoken's own file format: a line for each token, its bytes in base64 and its rank."""
        Path(path).write_text(
            "".join(
                f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in self.ranks.items()
            )
        )

    @classmethod
    def load(cls, path, settings=None):
        """What `save` wrote, and what `settings` gave; without settings, a tokenizer of minseal's own."""
        try:
            rows = [
                line.split() for line in Path(path).read_text(encoding="utf-8").splitlines() if line
            ]
            ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
        except OSError as e:
            raise UserError(
                f"no tokenizer at {path} ({e.strerror}): expected tiktoken ranks there"
            ) from None
        except ValueError:
            raise UserError(
                f"{path} does not hold tiktoken ranks: expected 'BASE64 RANK' on each line"
            ) from None
        if settings is None and (
            sorted(ranks.values()) != list(range(len(ranks)))
            or not all(bytes([b]) in ranks for b in range(256))
        ):
            raise UserError(
                f"{path} is damaged: ranks must count from 0 without gaps and hold every single byte"
            )
        if len(ranks) < len(rows):
            raise UserError(f"{path} is damaged: it holds a token twice")
        try:
            return cls(ranks, **(settings or {}))
        except (TypeError, AttributeError, ValueError) as e:
            raise UserError(f"{path} and its settings: {e}") from None


def merge_by_rank(ranks, parts, least=1):
    """Byte-pair encoding: the neighbours whose union has the lowest rank merge, leftmost first, until `least` parts or none can."""
    while len(parts) > least and (
        known := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
    ):
        i = min(known)[1]
        parts = parts[:i] + [parts[i] + parts[i + 1]] + parts[i + 2 :]
    return parts


def merges_of(ranks):
    """{token of several bytes: the two parts it is merged from, or more parts if no merging reaches it}, by rank."""
    return {
        token: tuple(merge_by_rank(ranks, [bytes([b]) for b in token], least=2))
        for token in sorted(ranks, key=ranks.get)
        if len(token) > 1
    }


def train_ranks(text, size, pattern=GPT2_PATTERN):
    """Byte-pair encoding (Sennrich et al., arXiv 1508.07909): merge the most frequent pair until there are `size` ranks."""
    words = [
        [[bytes([b]) for b in piece.encode()], n]
        for piece, n in Counter(regex.findall(pattern, text)).items()
    ]
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < size:
        pairs = Counter()
        for parts, n in words:
            for pair in pairwise(parts):
                pairs[pair] += n
        if not pairs:
            break
        a, b = heapq.nsmallest(1, pairs, key=lambda pair: (-pairs[pair], pair))[
            0
        ]  # ties by bytes: same text, same ranks
        ranks[a + b] = len(ranks)
        for word in words:
            word[0] = _merge(word[0], a, b)
    return ranks


def _merge(parts, a, b):
    out = []
    for part in parts:
        if out and out[-1] == a and part == b:
            out[-1] = a + b
        else:
            out.append(part)
    return out
