"""The tokenizers of open models, through the package `tokenizers`."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from ..files import UserError, Writer, need, read_json, read_text, write_text
from ..tokenizer import CHATS, END, GPT2_PATTERN, PROBE, Tokenizer, as_user_error


class OpenTokenizer(Tokenizer):
    """The tokenizer of an open model. Text is always text, as in Tokenizer.

    text: what tokenizer.json holds. config: tokenizer_config.json, parsed.
    SentencePiece-style tokenizers put a space before each text and take it off again. Here only
    begin() does, so that parts of a text can be encoded and decoded one by one.
    """

    def __init__(self, text: str, config: dict[str, Any], where: object = "tokenizer.json") -> None:
        package = need("tokenizers", "weights", what=where)
        with as_user_error(f"{where} has no tokenizer that can be read"):
            data = json.loads(text)
            follow(config, data)
            self.text = json.dumps(data)
            self.bare = drop_leading_space(data)
            self.backend = package.Tokenizer.from_str(json.dumps(data))
            self.backend.no_truncation()
            self.backend.no_padding()
            plain, framed = (self.backend.encode("a", None, False, on).ids for on in (False, True))
            self.backend.encode_special_tokens = True  # written in a text, they are text
            self.backend.encode(PROBE)

        for token in data["added_tokens"]:
            if (id := self.backend.token_to_id(token["content"])) != token["id"]:
                says = f"{token['content']!r:.60} has the id {token['id']}"
                raise UserError(f"{where}: the added token {says}; expected {id}, the next free")
        self.specials = {t["content"]: t["id"] for t in data["added_tokens"] if t["special"]}
        self.ends = frozenset(self.specials.values())
        self.vocab_size = max(self.backend.get_vocab().values(), default=-1) + 1
        eos = text_of(config.get("eos_token") or END)
        if eos not in [*self.specials]:
            raise UserError(f"{where}: expected an eos_token among its special tokens, got {eos!r}")
        self.eot = self.specials[eos]
        # Of this class, transformers takes tokenizer.json as it is.
        self.config = config | {"tokenizer_class": PLAIN_CLASS, "eos_token": eos}
        self.bos = tuple(framed[: len(framed) - len(plain)])
        if [*self.bos, *plain] != framed or not self.ends.issuperset(self.bos):
            how = "expected special tokens before a text, none after it (add_eos_token: false)"
            raise UserError(f"{where}: {how}")
        # Some files hold several templates, in a list: their text tells the format all the same.
        template = str(config.get("chat_template"))
        first_turns = {chat: turn.split("{")[0] for chat, (turn, _) in CHATS.items()}
        self.chat = next((chat for chat, turn in first_turns.items() if turn in template), "")

    def encode(self, text: str) -> list[int]:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as tiktoken
        with as_user_error("this text cannot be encoded"):
            return self.backend.encode(text, add_special_tokens=False).ids

    def begin(self, text: str) -> list[int]:
        lead = self.bare is not None and text and not text.startswith(self.bare)
        return [*self.bos, *self.encode(" " + text if lead else text)]

    def decode(self, ids: Sequence[int]) -> str:
        if unknown := [id for id in ids if not 0 <= id < self.vocab_size]:
            raise ValueError(f"no token has the id {unknown[0]}")
        return self.backend.decode(ids, skip_special_tokens=True)

    def settings(self) -> dict[str, Any]:
        return {"file": "tokenizer.json"}

    def files(self) -> dict[str, Writer]:
        config = write_text(json.dumps(self.config, indent=1))
        return {"tokenizer.json": write_text(self.text), "tokenizer_config.json": config}


def follow(config: dict[str, Any], data: dict[str, Any]) -> None:
    """Write into a parsed tokenizer.json what tokenizer_config.json adds to it in transformers.

    These are tokens, and add_prefix_space. A token that is named is special; so is one that looks
    like <think>, which Qwen3 does not call so: no text has it.
    """
    model, added = data["model"], data.get("added_tokens") or []
    data["added_tokens"] = added
    if (kind := model.get("type", "BPE")) != "BPE":
        raise UserError(f"its model is {kind!r:.60}; expected BPE")
    if model.get("dropout"):
        raise UserError(
            f"its model leaves out merges at random: dropout is {model['dropout']!r:.60}"
        )
    known = {token["content"]: token["id"] for token in added}
    ids, named = model["vocab"] | known, named_tokens(config)
    declared = {int(id): token for id, token in (config.get("added_tokens_decoder") or {}).items()}
    declared |= {ids[text]: {"content": text} for text in named if text in ids}
    for id, token in sorted(declared.items(), key=itemgetter(0)):
        text = token["content"]
        if ids.setdefault(text, id) != id:
            raise UserError(f"the token {text!r:.60} has two ids, {ids[text]} and {id}")
        if text not in known:
            added.append(PLAIN_TOKEN | token | {"id": id})
    for token in added:
        looks_so = re.fullmatch(r"<.*>", token["content"], re.DOTALL) is not None
        token["special"] = token["special"] or looks_so or token["content"] in named

    wanted, cut = config.get("add_prefix_space"), data.get("pre_tokenizer") or {}
    if wanted is None or config.get("tokenizer_class") in (PLAIN_CLASS, "TokenizersBackend"):
        return  # transformers takes tokenizer.json as it is
    if cut.get("type") == "ByteLevel":
        cut["add_prefix_space"] = bool(wanted)
    elif bool(wanted) != (drop_leading_space({**data}) is not None):
        raise UserError(f"it cannot follow the setting add_prefix_space, which is {wanted!r:.60}")


def named_tokens(config: dict[str, Any]) -> list[str]:
    """The texts of the special tokens that a tokenizer_config.json has a name for."""
    named = [token for key, token in config.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = config.get(key) or []
        named += extra.values() if isinstance(extra, dict) else extra
    return [text for text in map(text_of, named) if isinstance(text, str)]


def text_of(token: Any) -> Any:
    """A special token is its text, or described by a dict."""
    return token["content"] if isinstance(token, dict) and "content" in token else token


def drop_leading_space(data: dict[str, Any]) -> tuple[str, ...] | None:
    """Change a parsed tokenizer.json: no space before a text.

    Returns what a text begins with that gets no space; None if no text got one.
    """
    bare = None
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        members = part.replace("_", "") + "s"
        kept: list[dict] = []
        for step in leaves(data.get(part), members):
            kind = step["type"]
            if kind == "Metaspace":
                never = step.get("prepend_scheme") == "never" or not step.get("add_prefix_space", 1)
                if part == "pre_tokenizer" and not never:
                    bare = (" ", step["replacement"])
                kept.append(step | {"prepend_scheme": "never", "add_prefix_space": False})
            elif kind == "ByteLevel" and part == "pre_tokenizer" and step["add_prefix_space"]:
                if kept:
                    raise UserError("add_prefix_space puts a space before each piece of a text")
                bare = (" ",)
                kept.append(step | {"add_prefix_space": False})
            elif kind == "Prepend":
                if step["prepend"] not in ("\u2581", " "):
                    raise UserError(f"it puts {step['prepend']!r:.60} before a text, not a space")
                bare = ()
            elif (kind, part) != ("Strip", "decoder"):  # takes it off again
                kept.append(step)
        data[part] = {"type": "Sequence", members: kept} if kept else None
    return bare


def leaves(step: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """The steps of a Sequence, and of the Sequences in it."""
    if not step or step["type"] != "Sequence":
        return [step] if step else []
    return [leaf for part in step[members] for leaf in leaves(part, members)]


def read_tokenizer(folder: Path) -> OpenTokenizer:
    """The tokenizer of a folder in the Hugging Face layout, or in GPT-2's, which is older."""

    def side(name: str) -> dict[str, Any]:
        return read_json(folder / name) if (folder / name).is_file() else {}

    whole, template = folder / "tokenizer.json", folder / "chat_template.jinja"
    config = side("tokenizer_config.json")
    if template.is_file():
        config["chat_template"] = read_text(template)
    if "added_tokens_decoder" not in config:  # else transformers does not look at these two
        added = side("added_tokens.json").items()
        config |= {key: text_of(value) for key, value in side("special_tokens_map.json").items()}
        config["added_tokens_decoder"] = {f"{id}": {"content": token} for token, id in added}
    if whole.is_file():
        return OpenTokenizer(read_text(whole), config, whole)
    if not (folder / "vocab.json").is_file() or not (folder / "merges.txt").is_file():
        how = "load its tokenizer with transformers and save it again"
        raise UserError(f"{folder} has no tokenizer.json, nor vocab.json and merges.txt: {how}")
    kind = str(config.get("tokenizer_class") or side("config.json").get("model_type"))
    name = next((name for name in OLD_CLASSES if kind.lower().startswith(name)), None)
    if name is None or config.get("add_eos_token"):
        expected = "expected a GPT2Tokenizer or Qwen2Tokenizer, and no add_eos_token"
        raise UserError(f"{folder} has no tokenizer.json, and is a {kind!r:.60}: {expected}")
    cut, bos = OLD_CLASSES[name]
    bos = text_of(config.get("bos_token", bos)) if config.get("add_bos_token") else None
    vocab, lines = read_json(folder / "vocab.json"), read_text(folder / "merges.txt").splitlines()
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return byte_level_bpe(vocab, merges, cut, bos, {"unk_token": END} | config, folder)


def tokenizer_of_gguf(fields: dict[str, Any], where: object) -> OpenTokenizer:
    """The tokenizer in the metadata of a GGUF file, {key: value}."""
    about = {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}
    kind, cut = about.get("model"), about.get("pre")
    if kind != "gpt2" or cut not in [*GGUF_CUTS]:
        expected = f"expected gpt2, {' or '.join(GGUF_CUTS)}"
        raise UserError(
            f"{where} has a tokenizer of the kind {kind!r:.60}, {cut!r:.60}; {expected}"
        )
    for key in ("add_eos_token", "add_space_prefix"):
        if about.get(key):
            raise UserError(f"{where} has a tokenizer with {key}; expected one without")
    with as_user_error(f"{where} has no complete tokenizer"):
        tokens, merges = about["tokens"], [pair.split(" ") for pair in about["merges"]]
        kinds, at = dict(zip(tokens, about["token_type"], strict=True)), dict(enumerate(tokens))
        ids = {token: id for id, token in enumerate(tokens) if kinds[token] != UNUSED}
        added = {
            id: {"content": token, "special": kinds[token] == CONTROL}
            for token, id in ids.items()
            if kinds[token] in (CONTROL, USER_DEFINED)
        }
        names = ["eos", *(name for name in ("bos", "eot", "eom") if f"{name}_token_id" in about)]
        config = {f"{name}_token": at[about[f"{name}_token_id"]] for name in names}
        adds_bos = about.get("add_bos_token", cut == "llama-bpe")  # llama.cpp's own default
        bos = config["bos_token"] if adds_bos else None
    config |= {
        "chat_template": fields.get("tokenizer.chat_template"),
        "added_tokens_decoder": added,
    }
    return byte_level_bpe(ids, merges, GGUF_CUTS[cut], bos, config, where)


def to_open(tokenizer: Tokenizer) -> OpenTokenizer:
    """The same ids for the same text, in a form that can be written as tokenizer.json."""
    if isinstance(tokenizer, OpenTokenizer):
        return tokenizer
    ranks, name = tokenizer.ranks, {id: text for text, id in tokenizer.specials.items()}
    parts = [last_merge(ranks, token) for token in sorted(ranks, key=ranks.get)]
    merges = [(spell(pair[0]), spell(pair[1])) for pair in parts if len(pair) == 2]
    # Special tokens stand in the vocabulary too, or they would be numbered anew, after it.
    ids = {spell(token): id for token, id in ranks.items()} | tokenizer.specials
    bos = name[tokenizer.bos[0]] if tokenizer.bos else None
    added = {id: {"content": text, "special": True} for id, text in name.items()}
    config = {"eos_token": name[tokenizer.eot], "bos_token": bos, "added_tokens_decoder": added}
    return byte_level_bpe(ids, merges, Cut(tokenizer.pattern, whole=True), bos, config)


class Cut(NamedTuple):
    """How a text is cut into pieces, before pairs merge in each."""

    pattern: str
    whole: bool = False  # a piece that is a token stays whole, even if no merging reaches it
    compose: bool = False  # text is put into Unicode's normal form C first


def byte_level_bpe(
    ids: dict[str, int],
    merges: list[Sequence[str]],
    cut: Cut,
    bos: str | None,
    config: dict[str, Any],
    where: object = "tokenizer.json",
) -> OpenTokenizer:
    """The tokenizer of these ids (of all tokens, in GPT-2's spelling) and merges.

    bos: the token that begins each text. config: the special tokens, as in tokenizer_config.json.
    """
    if bos is not None and bos not in ids:
        raise UserError(f"{where}: the token that begins a text, {bos!r:.60}, is not in it")
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pre_tokenizer: dict[str, Any] = as_bytes | {"use_regex": True}  # which is GPT-2's
    if cut.pattern != GPT2_PATTERN:
        split = {"type": "Split", "pattern": {"Regex": cut.pattern}, "behavior": "Isolated"}
        steps = [split | {"invert": False}, as_bytes | {"use_regex": False}]
        pre_tokenizer = {"type": "Sequence", "pretokenizers": steps}
    frame = [{"SpecialToken": {"id": bos, "type_id": 0}}] if bos else []
    text, other = ({"Sequence": {"id": which, "type_id": 0}} for which in "AB")
    data = {
        "model": {"type": "BPE", "vocab": ids, "merges": merges, "ignore_merges": cut.whole},
        "normalizer": {"type": "NFC"} if cut.compose else None,
        "pre_tokenizer": pre_tokenizer,
        "decoder": as_bytes | {"use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*frame, text],
            "pair": [*frame, text, other],
            "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}} if bos else {},
        },
    }
    return OpenTokenizer(json.dumps(data), config, where)


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
# Without tokenizer.json the class of the tokenizer, or of the model, tells the cut; their bos.
OLD_CLASSES = {"gpt2": (GGUF_CUTS["gpt-2"], END), "qwen": (GGUF_CUTS["qwen2"], None)}
PLAIN_CLASS = "PreTrainedTokenizerFast"
PLAIN_TOKEN = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
PLAIN_TOKEN["normalized"] = True
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # GGUF's types of tokens that no text has
