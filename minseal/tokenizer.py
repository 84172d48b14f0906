"""Text <-> ids: byte-level BPE through tiktoken, and how the ranks of a small one are made."""

import base64
import heapq
from collections import Counter
from pathlib import Path

import regex  # tiktoken's own dependency
import tiktoken

from .errors import UserError

# How text is cut into pieces before merging (GPT-2's pattern): words keep the space before them.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
END = "<|endoftext|>"


class Tokenizer:
    """Byte-level BPE. Text is always text: a special token written in it is encoded letter by letter.

    ranks: token bytes -> id. The end-of-text token `eot` comes after them.
    """

    def __init__(self, ranks, pattern=GPT2_PATTERN):
        self.ranks, self.pattern, self.eot = ranks, pattern, len(ranks)
        self.encoding = tiktoken.Encoding("minseal", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: self.eot})
        self.vocab_size = self.encoding.n_vocab

    def encode(self, text):
        """Text -> list of ids; never a special token."""
        return self.encoding.encode_ordinary(text)

    def decode(self, ids):
        """Ids -> text. Bytes that are no UTF-8 become the replacement character."""
        return self.encoding.decode(list(ids))

    def bytes_of(self, token):
        return self.encoding.decode_single_token_bytes(token)

    def save(self, path):
        """tiktoken's own file format: a line for each token, its bytes in base64 and its rank."""
        Path(path).write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in self.ranks.items()))

    @classmethod
    def load(cls, path, pattern=GPT2_PATTERN):
        try:
            rows = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
            ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
        except OSError as e:
            raise UserError(f"no tokenizer at {path} ({e.strerror}): expected tiktoken ranks there") from None
        except ValueError:
            raise UserError(f"{path} does not hold tiktoken ranks: expected 'BASE64 RANK' on each line") from None
        if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([b]) in ranks for b in range(256)):
            raise UserError(f"{path} is damaged: ranks must count from 0 without gaps and hold every single byte")
        return cls(ranks, pattern)


def train_ranks(text, size, pattern=GPT2_PATTERN):
    """Byte-pair encoding (Sennrich et al., arXiv 1508.07909): merge the most frequent pair until there are `size` ranks."""
    words = [[[bytes([b]) for b in piece.encode()], n] for piece, n in Counter(regex.findall(pattern, text)).items()]
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < size:
        pairs = Counter()
        for parts, n in words:
            for pair in zip(parts, parts[1:]):
                pairs[pair] += n
        if not pairs:
            break
        a, b = heapq.nsmallest(1, pairs, key=lambda pair: (-pairs[pair], pair))[0]  # ties by bytes: same text, same ranks
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
