"""Text <-> ids: byte-level BPE through tiktoken; the tokenizers of open models, in and out again; and how a small one is made."""

import base64
import heapq
import unicodedata
from collections import Counter
from copy import deepcopy
from itertools import pairwise, takewhile
from pathlib import Path

import regex  # tiktoken's own dependency
import tiktoken

from .errors import UserError

# How text is cut into pieces before merging. GPT-2: words keep the space before them.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# SmolLM2 cuts out every digit first, then does as GPT-2: so a digit takes no space along, and white space before it stays whole.
DIGITS_PATTERN = GPT2_PATTERN.replace(r" ?\p{N}+", r"\p{N}").replace(r"\s+(?!\S)", r"\s+(?![^\s\p{N}])")
# Llama 3: digits by threes, line breaks apart from other white space. Qwen: the same, but each digit alone.
LLAMA3_PATTERN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
QWEN_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
END = "<|endoftext|>"

# Chat formats: a whole turn, and how the assistant's begins. (Llama 3's strips the text.)
CHATS = {"chatml": ("<|im_start|>{role}\n{text}<|im_end|>\n", "<|im_start|>assistant\n"),
         "llama3": ("<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n")}
THINK = ("<think>", "</think>")  # a model with these tokens (Qwen3) thinks first, unless the thought is there already, and empty


class Tokenizer:
    """Byte-level BPE. Text is always text: a special token written in it is encoded letter by letter.

    ranks: token bytes -> id, the lower merges first. specials: text -> id of the tokens that no text has (the default: END alone).
    eot: the id that ends a text. bos: the ids that a text begins with. chat: a key of CHATS, or "" for a base model.
    normal: a Unicode normal form that text is put into first (Qwen: "NFC"), or "". Raises UserError if these do not fit together.
    """

    def __init__(self, ranks, pattern=GPT2_PATTERN, specials=None, eot=None, bos=(), chat="", normal=""):
        self.ranks, self.pattern, self.chat, self.normal, self.bos = ranks, pattern, chat, normal, tuple(bos)
        self.specials = {END: len(ranks)} if specials is None else specials
        self.eot = self.specials.get(END) if eot is None else eot
        self.ends = frozenset(self.specials.values())
        self._check()
        self.tokens = {id: token for token, id in ranks.items()} | dict.fromkeys(self.ends, b"")
        self.vocab_size = max(self.tokens) + 1
        self.missing = frozenset(b for b in range(256) if bytes([b]) not in ranks)
        self.encoding = tiktoken.Encoding("minseal", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def _check(self):
        ids = [*self.ranks.values(), *self.specials.values()]
        for wrong, why in ((not ids or not all(type(id) is int and id >= 0 for id in ids), "ids must be whole numbers from 0"),
                           (len(set(ids)) < len(ids), "two tokens share an id"),
                           (self.eot not in self.ends, f"the end of text must be a special token, not {self.eot!r}"),
                           (not self.ends.issuperset(self.bos), f"a text must begin with special tokens, not {self.bos!r}"),
                           (self.chat not in ("", *CHATS), f"chat is {self.chat!r}, expected one of {', '.join(CHATS)} or nothing"),
                           (self.normal not in ("", "NFC"), f"normal is {self.normal!r}, expected NFC or nothing")):
            if wrong:
                raise UserError(f"no tokenizer: {why}")

    def encode(self, text):
        """Text -> list of ids; never a special token."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as tiktoken: half a surrogate pair is no letter
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
            ids += self._fill(CHATS[self.chat][0], role=role, text=text.strip() if self.chat == "llama3" else text)
        return ids + self._fill(self.opening())

    def opening(self):
        """How the assistant's turn begins in the chat format."""
        return CHATS[self.chat][1] + ("{}\n\n{}\n\n".format(*THINK) if self.specials.keys() >= set(THINK) else "")

    def _fill(self, template, **words):
        # Cut first, filled in after: so special tokens of the template become ids, and a word cannot smuggle one in.
        ids = []
        for part in regex.split(r"(<[^<>]+>)", template):
            ids += [self.specials[part]] if part in self.specials else self.encode(part.format(**words))
        return ids

    def settings(self):
        """All but the ranks, fit for JSON."""
        return {"pattern": self.pattern, "specials": self.specials, "eot": self.eot, "bos": list(self.bos), "chat": self.chat, "normal": self.normal}

    def save(self, path):
        """The ranks, in tiktoken's own file format: a line for each token, its bytes in base64 and its rank."""
        Path(path).write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in self.ranks.items()))

    @classmethod
    def load(cls, path, settings=None):
        """What `save` wrote, and what `settings` gave; without settings, a tokenizer of minseal's own."""
        try:
            rows = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
            ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
        except OSError as e:
            raise UserError(f"no tokenizer at {path} ({e.strerror}): expected tiktoken ranks there") from None
        except ValueError:
            raise UserError(f"{path} does not hold tiktoken ranks: expected 'BASE64 RANK' on each line") from None
        if settings is None and (sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([b]) in ranks for b in range(256))):
            raise UserError(f"{path} is damaged: ranks must count from 0 without gaps and hold every single byte")
        if len(ranks) < len(rows):
            raise UserError(f"{path} is damaged: it holds a token twice")
        try:
            return cls(ranks, **(settings or {}))
        except (TypeError, AttributeError, ValueError) as e:
            raise UserError(f"{path} and its settings: {e}") from None


def merge_by_rank(ranks, parts, least=1):
    """Byte-pair encoding: the neighbours whose union has the lowest rank merge, leftmost first, until `least` parts or none can."""
    while len(parts) > least and (known := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]):
        i = min(known)[1]
        parts = parts[:i] + [parts[i] + parts[i + 1]] + parts[i + 2:]
    return parts


def merges_of(ranks):
    """{token of several bytes: the two parts it is merged from, or more parts if no merging reaches it}, by rank."""
    return {token: tuple(merge_by_rank(ranks, [bytes([b]) for b in token], least=2))
            for token in sorted(ranks, key=ranks.get) if len(token) > 1}


def train_ranks(text, size, pattern=GPT2_PATTERN):
    """Byte-pair encoding (Sennrich et al., arXiv 1508.07909): merge the most frequent pair until there are `size` ranks."""
    words = [[[bytes([b]) for b in piece.encode()], n] for piece, n in Counter(regex.findall(pattern, text)).items()]
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < size:
        pairs = Counter()
        for parts, n in words:
            for pair in pairwise(parts):
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


# ---- Hugging Face's tokenizer.json and GGUF, in and out ----

def _split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


# A pattern, and the steps of tokenizer.json that cut text in the same way.
PRE_TOKENIZERS = {GPT2_PATTERN: [_byte_level(True)],
                  DIGITS_PATTERN: [{"type": "Digits", "individual_digits": True}, _byte_level(True)],
                  LLAMA3_PATTERN: [_split(LLAMA3_PATTERN), _byte_level(False)],
                  QWEN_PATTERN: [_split(QWEN_PATTERN), _byte_level(False)]}
GGUF_PATTERNS = {"gpt-2": GPT2_PATTERN, "smollm": DIGITS_PATTERN, "llama-bpe": LLAMA3_PATTERN, "qwen2": QWEN_PATTERN}
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # GGUF's types of tokens that no text has
BYTES_ONLY = "minseal reads byte-level BPE only"
# GPT-2's spelling of bytes: those that print stand for themselves, the others for the letters from 256 on, in order.
PRINTED = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTE_OF = {chr(b): b for b in PRINTED} | {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in PRINTED)}
LETTER_OF = {b: letter for letter, b in BYTE_OF.items()}


def from_json(data, config=None, where="tokenizer.json"):
    """Hugging Face's tokenizer.json and tokenizer_config.json (both as parsed) -> Tokenizer that gives the same ids.

    Raises UserError, with the reason, for what tiktoken cannot do: all but byte-level BPE as in GPT-2, Llama 3, SmolLM2 and Qwen.
    """
    try:
        model, config = data["model"], config or {}
        normalizers, steps, after = (_steps(data.get(part)) for part in ("normalizer", "pre_tokenizer", "post_processor"))
        names = [step["type"] for step in steps]
        pattern = next((pattern for pattern, known in PRE_TOKENIZERS.items() if [_essence(step) for step in steps] == known), None)
        normal = {"[]": "", "['NFC']": "NFC"}.get(str([step["type"] for step in normalizers]))
        for wrong, why in (
                ("Metaspace" in names or model.get("byte_fallback"), "is a SentencePiece-style tokenizer (Metaspace / byte fallback), as in Llama 2, Mistral v0.1 and Gemma"),
                (model.get("type", "BPE") != "BPE", f"holds a {model.get('type')} model"),
                (model.get("dropout"), "leaves merges out at random (dropout)"),
                (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"), "marks parts of words by a prefix or suffix"),
                (normal is None, f"changes text first ({', '.join(step['type'] for step in normalizers)})"),
                (any(step["type"] not in ("ByteLevel", "TemplateProcessing") for step in after), f"adds to the ids ({', '.join(step['type'] for step in after)})"),
                (any(step.get("add_prefix_space") for step in steps), "puts a space before each text (add_prefix_space)"),
                (pattern is None, f"cuts text in a way that is none of GPT-2's, Llama 3's, SmolLM2's and Qwen's (pre_tokenizer: {', '.join(names) or 'none'})")):
            if wrong:
                raise UserError(f"{where} {why}: {BYTES_ONLY}")
        merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        specials = {token["content"]: token["id"] for token in data.get("added_tokens") or []}
        if plain := [token["content"] for token in data.get("added_tokens") or [] if not token["special"] and token["content"][0] != "<"]:
            raise UserError(f"{where} adds {plain[0]!r} to its tokens and cuts it out of ordinary text: {BYTES_ONLY}")
        # What is put before a text. (A token put after it would end it, and that is for the caller to say.)
        frame = next((step["single"] for step in after if step["type"] == "TemplateProcessing"), [])
        bos = [specials[part["SpecialToken"]["id"]] for part in takewhile(lambda part: "SpecialToken" in part, frame)]
        eos = config.get("eos_token")
        return _build(where, model["vocab"], merges, specials, pattern, bool(model.get("ignore_merges")), normal,
                      eos["content"] if isinstance(eos, dict) else eos, bos, config.get("chat_template"), bool(model.get("unk_token")))
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise UserError(f"{where} is not the tokenizer.json of Hugging Face: {type(e).__name__} {e}") from None


def from_vocab(vocab, merges, config=None, where="vocab.json"):
    """The older files of GPT-2: vocab.json (as parsed) and merges.txt (its text)."""
    lines = [line for line in merges.splitlines() if line and not line.startswith("#version")]
    added = [{"content": END, "id": vocab[END], "special": True}] if END in vocab else []
    return from_json({"model": {"vocab": vocab, "merges": lines}, "pre_tokenizer": _byte_level(True), "added_tokens": added}, config, where)


def from_gguf(fields, where="the GGUF file"):
    """The metadata of a GGUF file, {key: value} -> Tokenizer."""
    try:
        kind, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
        if kind != "gpt2":
            raise UserError(f"{where} holds a tokenizer of the kind {kind!r}, expected 'gpt2': {BYTES_ONLY}")
        if pre not in GGUF_PATTERNS:
            raise UserError(f"{where} cuts text as {pre!r}; minseal knows {', '.join(GGUF_PATTERNS)}")
        tokens = fields["tokenizer.ggml.tokens"]
        types = fields["tokenizer.ggml.token_type"]
        if len(set(tokens)) < len(tokens):
            raise UserError(f"{where} is damaged: it holds a token twice")
        specials = {token: id for id, token in enumerate(tokens) if types[id] in (CONTROL, USER_DEFINED)}
        vocab = {token: id for id, token in enumerate(tokens) if types[id] not in (CONTROL, USER_DEFINED, UNUSED)}
        merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
        adds_bos = fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe")  # llama.cpp's own default
        bos = [fields["tokenizer.ggml.bos_token_id"]] if adds_bos else []
        return _build(where, vocab, merges, specials, GGUF_PATTERNS[pre], pre == "llama-bpe", "NFC" if pre == "qwen2" else "",
                      tokens[fields["tokenizer.ggml.eos_token_id"]], bos, fields.get("tokenizer.chat_template"))
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise UserError(f"{where} has no complete tokenizer: {type(e).__name__} {e}") from None


def _build(where, vocab, merges, specials, pattern, whole, normal, eos, bos, template, unk=False):
    """What both formats say -> Tokenizer, once it is sure that merging by rank (tiktoken) equals merging by the list (Hugging Face).

    merges: pairs of spelled tokens. whole: a piece that is a token stays whole, even if no merging reaches it.
    """
    if odd := [token for token in vocab if token not in specials and not BYTE_OF.keys() >= set(token)]:
        raise UserError(f"{where} holds the token {odd[0]!r}, which is not bytes in GPT-2's spelling: {BYTES_ONLY}")
    ranks = {_bytes(token): id for token, id in vocab.items() if token not in specials}
    eos = eos or next((token for token in (END, "<|end_of_text|>") if token in specials), None)
    if eos not in specials:
        raise UserError(f"{where}: expected an eos_token among the special tokens, got {eos!r}")
    # Some files hold several templates, in a list: their text tells the format all the same.
    chat = next((chat for chat, (turn, _) in CHATS.items() if turn.split("{")[0] in str(template)), "")
    try:
        tokenizer = Tokenizer(ranks, pattern, specials, specials[eos], bos, chat, normal)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    if unk and tokenizer.missing:
        raise UserError(f"{where} has an unknown token for bytes that it lacks: minseal leaves such bytes out")

    listed = {tuple(map(_bytes, pair)): "".join(pair) for pair in merges}
    ids = [ranks.get(b"".join(pair)) for pair in listed]
    if None in ids:
        raise UserError(f"{where} lists a merge to {list(listed.values())[ids.index(None)]!r}, which is no token: {BYTES_ONLY}")
    if ids != sorted(ids):
        raise UserError(f"{where} lists its merges in another order than its ids: tiktoken merges in the order of the ids")
    for token, parts in merges_of(ranks).items():
        # Until something merges across its borders, a token's bytes merge in a longer text as they do alone: each alone tells all.
        if parts not in listed and not (whole and len(parts) > 2):
            raise UserError(f"{where} lists no merge {' + '.join(map(_letters, parts))}, but tiktoken would make the token {_letters(token)!r} of them")
    return tokenizer


def to_json(tokenizer):
    """Tokenizer -> a dict that, written as tokenizer.json, Hugging Face's `tokenizers` reads: the same ids for the same text."""
    if tokenizer.pattern not in PRE_TOKENIZERS:
        raise UserError(f"tokenizer.json cannot be written for the pattern {tokenizer.pattern!r}: minseal knows the steps of its own patterns only")
    text_of = {id: text for text, id in tokenizer.specials.items()}
    begin = [text_of[id] for id in tokenizer.bos]
    return {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": text_of[id], "special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
                         for id in sorted(text_of)],
        "normalizer": {"type": tokenizer.normal} if tokenizer.normal else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": deepcopy(PRE_TOKENIZERS[tokenizer.pattern])},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": text, "type_id": 0}} for text in begin] + [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {text: {"id": text, "ids": [tokenizer.specials[text]], "tokens": [text]} for text in begin}} if begin else None,
        "decoder": _byte_level(True),
        "model": {"type": "BPE", "ignore_merges": True,  # as tiktoken: a piece that is a token stays whole
                  # specials stand in the vocabulary too: added tokens alone would be numbered anew, after it
                  "vocab": {_letters(token): id for token, id in tokenizer.ranks.items()} | tokenizer.specials,
                  "merges": [tuple(map(_letters, parts)) for parts in merges_of(tokenizer.ranks).values() if len(parts) == 2]}}


def to_config(tokenizer):
    """Tokenizer -> a dict that, written as tokenizer_config.json, tells transformers the special tokens and the chat format."""
    text_of = {id: text for text, id in tokenizer.specials.items()}
    begin = [text_of[id] for id in tokenizer.bos]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
              "eos_token": text_of[tokenizer.eot], "bos_token": begin[0] if begin else None}
    if tokenizer.chat:
        text = "{{ message['content'] | trim }}" if tokenizer.chat == "llama3" else "{{ message['content'] }}"
        turn = CHATS[tokenizer.chat][0].format(role="{{ message['role'] }}", text=text)
        config["chat_template"] = ("".join(begin) + "{% for message in messages %}" + turn + "{% endfor %}"
                                   + "{% if add_generation_prompt %}" + tokenizer.opening() + "{% endif %}")
    return config


def _bytes(spelled):
    return bytes(BYTE_OF[letter] for letter in spelled)


def _letters(token):
    return "".join(LETTER_OF[b] for b in token)


def _steps(part):
    """A part of tokenizer.json as a list of steps: none, itself, or the members of a Sequence."""
    if not part:
        return []
    return next(list(v) for v in part.values() if isinstance(v, list)) if part["type"] == "Sequence" else [part]


def _essence(step):
    """A step, whatever it says of offsets, which do not touch ids; older files leave use_regex out."""
    return {"use_regex": True} | step | {"trim_offsets": False} if step["type"] == "ByteLevel" else step
