"""The tokenizers of open models, through the package `tokenizers`."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple

from ..files import UserError, Writer, first_line, need, read_json, read_text, write_text
from ..tokenizer import CHATS, END, GPT2_PATTERN, Tokenizer


class OpenTokenizer(Tokenizer):
    """The tokenizer of an open model. Text is always text, as in Tokenizer.

    text: what tokenizer.json holds. config: tokenizer_config.json, parsed.
    SentencePiece-style tokenizers put a space before each text and take it off again. Here only
    begin() does, so that parts of a text can be encoded and decoded one by one.
    """

    def __init__(self, text: str, config: dict[str, Any], where: object = "tokenizer.json") -> None:
        package = need("tokenizers", "weights", what=where)
        self.text, self.config = text, config
        try:
            data = json.loads(text)
            if data["model"].get("type", "BPE") != "BPE":
                raise ValueError(f"its model is {data['model']['type']}; expected BPE")
            self.lead = " " if drop_leading_space(data) else ""
            for token in data.get("added_tokens") or []:
                if re.fullmatch(r"<.*>", token["content"], re.DOTALL):
                    token["special"] = True  # Qwen3 does not call <think> so; no text has it
            self.backend = package.Tokenizer.from_str(json.dumps(data))
            framed = self.backend.encode("a").ids
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
        eos = config.get("eos_token") or END
        eos = eos.get("content") if isinstance(eos, dict) else eos
        if eos not in [*self.specials]:
            raise UserError(f"{where}: expected an eos_token among its special tokens, got {eos!r}")
        self.eot = self.specials[eos]
        self.bos = tuple(takewhile(lambda id: id in self.ends, framed))
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
        if unknown := [id for id in ids if not 0 <= id < self.vocab_size]:
            raise ValueError(f"no token has the id {unknown[0]}")
        return self.backend.decode(ids, skip_special_tokens=True)

    def settings(self) -> dict[str, Any]:
        return {"file": "tokenizer.json"}

    def files(self) -> dict[str, Writer]:
        config = write_text(json.dumps(self.config, indent=1))
        return {"tokenizer.json": write_text(self.text), "tokenizer_config.json": config}


def drop_leading_space(data: dict[str, Any]) -> bool:
    """Change a parsed tokenizer.json: no space before a text. Returns whether there was one."""
    was_there = False
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        members = part.replace("_", "") + "s"
        whole = data.get(part) or {"type": "Sequence", members: []}
        kept = []
        for step in whole[members] if whole["type"] == "Sequence" else [whole]:
            if step["type"] == "Metaspace":
                was_there = was_there or step.get("prepend_scheme") != "never"
                kept.append(step | {"prepend_scheme": "never", "add_prefix_space": False})
            elif step["type"] == "Prepend":
                was_there = True
            elif (step["type"], part) != ("Strip", "decoder"):  # takes it off again
                kept.append(step)
        data[part] = {"type": "Sequence", members: kept} if kept else None
    return was_there


def read_tokenizer(folder: Path) -> OpenTokenizer:
    """The tokenizer of a folder in the Hugging Face layout."""
    whole, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    template = folder / "chat_template.jinja"
    if not whole.is_file():
        how = "load its tokenizer with transformers and save it again"
        raise UserError(f"{folder} has no tokenizer.json: {how}")
    settings = read_json(config) if config.is_file() else {}
    if template.is_file():
        settings["chat_template"] = read_text(template)
    return OpenTokenizer(read_text(whole), settings, whole)


def tokenizer_of_gguf(fields: dict[str, Any], where: object) -> OpenTokenizer:
    """The tokenizer in the metadata of a GGUF file, {key: value}."""
    about = {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}
    kind, cut = about.get("model"), about.get("pre")
    if kind != "gpt2" or cut not in GGUF_CUTS:
        expected = f"expected gpt2, {' or '.join(GGUF_CUTS)}"
        raise UserError(f"{where} has a tokenizer of the kind {kind!r}, {cut!r}; {expected}")
    try:
        tokens, merges = about["tokens"], [tuple(pair.split(" ")) for pair in about["merges"]]
        kinds = dict(zip(tokens, about["token_type"], strict=True))
        ids = {token: id for id, token in enumerate(tokens) if kinds[token] != UNUSED}
        specials = [token for token in ids if kinds[token] in (CONTROL, USER_DEFINED)]
        adds_bos = about.get("add_bos_token", cut == "llama-bpe")  # llama.cpp's own default
        bos = [tokens[about["bos_token_id"]]] if adds_bos else []
        eos = tokens[about["eos_token_id"]]
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as e:
        why = f"{type(e).__name__} {first_line(e)}"
        raise UserError(f"{where} has no complete tokenizer: {why}") from None
    template = fields.get("tokenizer.chat_template")
    return byte_level_bpe(ids, merges, specials, GGUF_CUTS[cut], eos, bos, template, where)


def to_open(tokenizer: Tokenizer) -> OpenTokenizer:
    """The same ids for the same text, in a form that can be written as tokenizer.json."""
    if isinstance(tokenizer, OpenTokenizer):
        return tokenizer
    ranks, text_of = tokenizer.ranks, {id: text for text, id in tokenizer.specials.items()}
    parts = [last_merge(ranks, token) for token in sorted(ranks, key=ranks.get)]
    merges = [(spell(pair[0]), spell(pair[1])) for pair in parts if len(pair) == 2]
    # Special tokens stand in the vocabulary too, or they would be numbered anew, after it.
    ids = {spell(token): id for token, id in ranks.items()} | tokenizer.specials
    eos, bos = text_of[tokenizer.eot], [text_of[id] for id in tokenizer.bos]
    cut = Cut(tokenizer.pattern, whole=True)
    return byte_level_bpe(ids, merges, [*tokenizer.specials], cut, eos, bos)


class Cut(NamedTuple):
    """How a text is cut into pieces, before pairs merge in each."""

    pattern: str
    whole: bool = False  # a piece that is a token stays whole, even if no merging reaches it
    compose: bool = False  # text is put into Unicode's normal form C first


def byte_level_bpe(
    ids: dict[str, int],
    merges: list[tuple],
    specials: list[str],
    cut: Cut,
    eos: str,
    bos: list[str],
    template: str | None = None,
    where: object = "tokenizer.json",
) -> OpenTokenizer:
    """The tokenizer of these ids (of all tokens, in GPT-2's spelling) and merges."""
    package = need("tokenizers", "weights", what=where)
    cuts = package.pre_tokenizers
    try:
        backend = package.Tokenizer(package.models.BPE(ids, merges, ignore_merges=cut.whole))
        split = cuts.Split(package.Regex(cut.pattern), "isolated")
        as_bytes = cuts.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = cuts.Sequence([split, as_bytes])
        backend.decoder = package.decoders.ByteLevel()
        if cut.compose:
            backend.normalizer = package.normalizers.NFC()
        backend.add_special_tokens(specials)
        frame = package.processors.TemplateProcessing
        tokens = [(token, ids[token]) for token in bos]
        backend.post_processor = frame(single=[*bos, "$A"], special_tokens=tokens)
    except Exception as e:  # the package raises nothing more special
        raise UserError(f"{where} has no byte-level tokenizer: {first_line(e)}") from None
    config = {  # transformers learns the special tokens from it
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "bos_token": bos[0] if bos else None,
        "chat_template": template,
    }
    return OpenTokenizer(backend.to_str(), config, where)


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
GGUF_CUTS = {
    "gpt-2": Cut(GPT2_PATTERN),
    "smollm": Cut(DIGITS_PATTERN),
    "llama-bpe": Cut(LLAMA3_PATTERN, whole=True),
    "qwen2": Cut(QWEN_PATTERN, compose=True),
}
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # GGUF's types of tokens that no text has
