"""The tokenizers of open models, through the package `tokenizers`."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from ..files import (
    UserError,
    Writer,
    first_line,
    need,
    parse_json,
    read_json,
    read_text,
    write_json,
    write_text,
)
from ..tokenizer import CHATS, END, GPT2_PATTERN, Tokenizer


class OpenTokenizer(Tokenizer):
    """The tokenizer of an open model. Text is always text, as in Tokenizer.

    text: what tokenizer.json holds. config: tokenizer_config.json, parsed, of which the end of
    text and the chat template count. where: their name in messages. Raises UserError.

    SentencePiece-style tokenizers put a space before each text and take it off again. Here only
    begin() does, so that parts of a text can be encoded and decoded one by one.
    """

    def __init__(self, text: str, config: dict[str, Any], where: object = "tokenizer.json") -> None:
        package = need("tokenizers", "weights", what=where)
        self.text, self.config = text, config
        data = parse_json(text, where)
        try:
            if data["model"].get("type", "BPE") != "BPE":
                raise ValueError(f"its model is {data['model']['type']}; expected BPE")
            self.lead = " " if drop_leading_space(data) else ""
            for token in data.get("added_tokens") or []:
                if re.fullmatch(r"<.*>", token["content"], re.DOTALL):
                    token["special"] = True  # Qwen3 does not call <think> so; no text has it
            self.backend = package.Tokenizer.from_str(json.dumps(data))
            framed = self.backend.encode("a")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # the package's panics are no Exceptions
            why = f"{type(e).__name__}: {first_line(e)}"
            raise UserError(f"{where} is no tokenizer.json that can be read ({why})") from None
        self.backend.encode_special_tokens = True  # written in a text, they are text
        self.backend.no_truncation()
        self.backend.no_padding()

        added = self.backend.get_added_tokens_decoder()
        self.specials = {token.content: id for id, token in added.items() if token.special}
        self.ends = frozenset(self.specials.values())
        self.vocab_size = max(self.backend.get_vocab().values(), default=-1) + 1
        eos = config.get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        eos = eos or next((t for t in (END, "<|end_of_text|>") if t in self.specials), None)
        if not isinstance(eos, str) or eos not in self.specials:
            raise UserError(f"{where}: expected an eos_token among its special tokens, got {eos!r}")
        self.eot = self.specials[eos]
        marked = zip(framed.ids, framed.special_tokens_mask)
        self.bos = tuple(id for id, special in takewhile(lambda pair: pair[1], marked))
        if not self.ends.issuperset(self.bos):
            raise UserError(f"{where}: a text must begin with special tokens, not {self.bos}")
        # Some files hold several templates, in a list: their text tells the format all the same.
        template = str(config.get("chat_template"))
        first_turns = {chat: turn.split("{")[0] for chat, (turn, _) in CHATS.items()}
        self.chat = next((chat for chat, turn in first_turns.items() if turn in template), "")

    def encode(self, text: str) -> list[int]:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as tiktoken
        return self.backend.encode(text, add_special_tokens=False).ids

    def begin(self, text: str) -> list[int]:
        lead = self.lead if text and not text.startswith(" ") else ""
        return [*self.bos, *self.encode(lead + text)]

    def decode(self, ids: Sequence[int]) -> str:
        for id in ids:
            if not 0 <= id < self.vocab_size:
                raise ValueError(f"no token has the id {id}")
        return self.backend.decode(ids, skip_special_tokens=True)

    def bytes_of(self, token: int) -> bytes:
        """The bytes of one id; for a part of a letter, those of the replacement character."""
        return self.decode([token]).encode()

    def settings(self) -> dict[str, Any]:
        return {"file": "tokenizer.json"}

    def files(self) -> dict[str, Writer]:
        return {
            "tokenizer.json": write_text(self.text),
            "tokenizer_config.json": write_json(self.config),
        }


def drop_leading_space(data: dict[str, Any]) -> bool:
    """Change a parsed tokenizer.json: no space before a text. Returns whether there was one."""
    was_there = False
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        members, whole, kept = part.replace("_", "") + "s", data.get(part), []
        steps = whole[members] if whole and whole["type"] == "Sequence" else [whole]
        for step in filter(None, steps):
            kind, adds = step["type"], bool(step.get("add_prefix_space"))
            if kind == "Metaspace":
                adds = step.get("prepend_scheme", "always") != "never"
                step = step | {"prepend_scheme": "never", "add_prefix_space": False}
            elif kind == "ByteLevel":
                step = step | {"add_prefix_space": False}
            if kind == "Prepend" or adds and part == "pre_tokenizer":
                was_there = True
            if kind != "Prepend" and (kind, part) != ("Strip", "decoder"):  # takes it off again
                kept.append(step)
        data[part] = {"type": "Sequence", members: kept} if kept else None
    return was_there


# ---- where they come from ----


def read_tokenizer(folder: Path) -> OpenTokenizer:
    """The tokenizer of a folder: tokenizer.json, or GPT-2's older pair of files."""
    config, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    whole, vocab, merges = (folder / f for f in ("tokenizer.json", "vocab.json", "merges.txt"))
    settings = read_json(config) if config.is_file() else {}
    if template.is_file():
        settings["chat_template"] = read_text(template)
    if whole.is_file():
        return OpenTokenizer(read_text(whole), settings, whole)
    if vocab.is_file() and merges.is_file():
        ids, lines = read_json(vocab), read_text(merges).split("\n")
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        text = byte_level_json(vocab, ids, pairs, [END] if END in ids else [], GPT2_PATTERN)
        return OpenTokenizer(text, settings, vocab)
    has = "only tokenizer.model" if (folder / "tokenizer.model").is_file() else "no tokenizer.json"
    raise UserError(
        f"{folder} holds {has}; expected tokenizer.json, or vocab.json and merges.txt "
        "(load the tokenizer with transformers, save it again, and tokenizer.json is there)"
    )


def tokenizer_of_gguf(fields: dict[str, Any], where: object) -> OpenTokenizer:
    """The tokenizer in the metadata of a GGUF file, {key: value}."""
    about = {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}
    kind, cut = about.get("model"), about.get("pre")
    if kind != "gpt2" or cut not in GGUF_PATTERNS:
        raise UserError(
            f"{where} holds a tokenizer of the kind {kind!r} that cuts text as {cut!r}; "
            f"expected 'gpt2' and one of {', '.join(GGUF_PATTERNS)}"
        )
    try:
        tokens = about["tokens"]
        kinds = dict(zip(tokens, about["token_type"], strict=True))
        if len(kinds) < len(tokens):
            raise ValueError("a token is there twice")
        ids = {token: id for id, token in enumerate(tokens) if kinds[token] != UNUSED}
        specials = [token for token in ids if kinds[token] in (CONTROL, USER_DEFINED)]
        merges = [pair.split(" ") for pair in about["merges"]]
        adds_bos = about.get("add_bos_token", cut == "llama-bpe")  # llama.cpp's own default
        bos = [tokens[about["bos_token_id"]]] if adds_bos else []
        eos = tokens[about["eos_token_id"]]
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as e:
        why = f"{type(e).__name__} {first_line(e)}"
        raise UserError(f"{where} has no complete tokenizer: {why}") from None
    llama, qwen = cut == "llama-bpe", cut == "qwen2"
    text = byte_level_json(where, ids, merges, specials, GGUF_PATTERNS[cut], bos, llama, qwen)
    config = config_json(eos, bos) | {"chat_template": fields.get("tokenizer.chat_template")}
    return OpenTokenizer(text, config, where)


def to_open(tokenizer: Tokenizer) -> OpenTokenizer:
    """The same ids for the same text, in a form that can be written as tokenizer.json."""
    if isinstance(tokenizer, OpenTokenizer):
        return tokenizer
    ranks, text_of = tokenizer.ranks, {id: text for text, id in tokenizer.specials.items()}
    merges = [last_merge(ranks, token) for token in sorted(ranks, key=ranks.get)]
    pairs = [[spell(part) for part in parts] for parts in merges if len(parts) == 2]
    # Special tokens stand in the vocabulary too, or they would be numbered anew, after it.
    ids = {spell(token): id for token, id in ranks.items()} | tokenizer.specials
    bos = [text_of[id] for id in tokenizer.bos]
    text = byte_level_json(
        "tokenizer.json", ids, pairs, [*tokenizer.specials], tokenizer.pattern, bos, whole=True
    )
    return OpenTokenizer(text, config_json(text_of[tokenizer.eot], bos))


# ---- byte-level BPE ----


def byte_level_json(
    where: object,
    ids: dict[str, int],
    merges: list[list[str]],
    specials: list[str],
    pattern: str,
    bos: Sequence[str] = (),
    whole: bool = False,
    compose: bool = False,
) -> str:
    """What tokenizer.json of a byte-level BPE holds. Raises UserError, in the name of `where`.

    ids: of all tokens, in GPT-2's spelling. pattern: what text is cut into.
    whole: a piece that is a token stays whole, as in tiktoken, even if no merging reaches it.
    compose: text is put into Unicode's normal form C first.
    """
    package = need("tokenizers", "weights", what=where)
    try:
        pairs = [(first, second) for first, second in merges]
        backend = package.Tokenizer(package.models.BPE(ids, pairs, ignore_merges=whole))
        split = package.pre_tokenizers.Split(package.Regex(pattern), "isolated")
        bytes_of = package.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = package.pre_tokenizers.Sequence([split, bytes_of])
        backend.decoder = package.decoders.ByteLevel()
        if compose:
            backend.normalizer = package.normalizers.NFC()
        backend.add_special_tokens(specials)
        if bos:
            backend.post_processor = package.processors.TemplateProcessing(
                single=[*bos, "$A"], special_tokens=[(token, ids[token]) for token in bos]
            )
    except Exception as e:  # the package raises nothing more special
        raise UserError(f"{where} has no byte-level tokenizer: {first_line(e)}") from None
    return backend.to_str()


def config_json(eos: str, bos: Sequence[str]) -> dict[str, Any]:
    """What tokenizer_config.json holds: transformers learns the special tokens from it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "bos_token": next(iter(bos), None),
    }


def last_merge(ranks: dict[bytes, int], token: bytes) -> list[bytes]:
    """The two parts that a token is merged from; one for a byte, more if no merging reaches it."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        known = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not known:
            break
        _, i = min(known)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def spell(token: bytes) -> str:
    """Bytes in GPT-2's spelling: those that print stand for themselves."""
    return "".join(LETTER_OF[b] for b in token)


PRINTED = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
OTHERS = sorted(set(range(256)) - set(PRINTED))  # the letters from 256 on stand for these
LETTER_OF = {b: chr(b) for b in PRINTED} | {b: chr(256 + i) for i, b in enumerate(OTHERS)}

# SmolLM2 cuts out every digit first, then does as GPT-2: so a digit takes no space along, and
# white space before it stays whole.
DIGITS_PATTERN = GPT2_PATTERN.replace(r" ?\p{N}+", r"\p{N}")
DIGITS_PATTERN = DIGITS_PATTERN.replace(r"\s+(?!\S)", r"\s+(?![^\s\p{N}])")
# Llama 3: digits by threes, line breaks apart from other white space. Qwen: each digit alone.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
GGUF_PATTERNS = {
    "gpt-2": GPT2_PATTERN,
    "smollm": DIGITS_PATTERN,
    "llama-bpe": LLAMA3_PATTERN,
    "qwen2": QWEN_PATTERN,
}
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # GGUF's types of tokens that no text has
