"""The tokenizers of open models, in and out: tokenizer.json of Hugging Face and the vocabulary of GGUF <-> Tokenizer."""

from copy import deepcopy
from itertools import takewhile

from .errors import UserError
from .tokenizer import (
    CHATS,
    DIGITS_PATTERN,
    END,
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    QWEN_PATTERN,
    Tokenizer,
    merges_of,
)


def _split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(use_regex):
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": use_regex,
    }


# A pattern, and the steps of tokenizer.json that cut text in the same way.
PRE_TOKENIZERS = {
    GPT2_PATTERN: [_byte_level(True)],
    DIGITS_PATTERN: [{"type": "Digits", "individual_digits": True}, _byte_level(True)],
    LLAMA3_PATTERN: [_split(LLAMA3_PATTERN), _byte_level(False)],
    QWEN_PATTERN: [_split(QWEN_PATTERN), _byte_level(False)],
}
GGUF_PATTERNS = {
    "gpt-2": GPT2_PATTERN,
    "smollm": DIGITS_PATTERN,
    "llama-bpe": LLAMA3_PATTERN,
    "qwen2": QWEN_PATTERN,
}
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # GGUF's types of tokens that no text has
BYTES_ONLY = "minseal reads byte-level BPE only"
# GPT-2's spelling of bytes: those that print stand for themselves, the others for the letters from 256 on, in order.
PRINTED = [
    *range(ord("!"), ord("~") + 1),
    *range(ord("¡"), ord("¬") + 1),
    *range(ord("®"), ord("ÿ") + 1),
]
BYTE_OF = {chr(b): b for b in PRINTED} | {
    chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in PRINTED)
}
LETTER_OF = {b: letter for letter, b in BYTE_OF.items()}


def from_json(data, config=None, where="tokenizer.json"):
    """Hugging Face's tokenizer.json and tokenizer_config.json (both as parsed) -> Tokenizer that gives the same ids.

    Raises UserError, with the reason, for what tiktoken cannot do: all but byte-level BPE as in GPT-2, Llama 3, SmolLM2 and Qwen.
    """
    try:
        model, config = data["model"], config or {}
        normalizers, steps, after = (
            _steps(data.get(part)) for part in ("normalizer", "pre_tokenizer", "post_processor")
        )
        names = [step["type"] for step in steps]
        pattern = next(
            (
                pattern
                for pattern, known in PRE_TOKENIZERS.items()
                if [_essence(step) for step in steps] == known
            ),
            None,
        )
        normal = {"[]": "", "['NFC']": "NFC"}.get(str([step["type"] for step in normalizers]))
        for wrong, why in (
            (
                "Metaspace" in names or model.get("byte_fallback"),
                "is a SentencePiece-style tokenizer (Metaspace / byte fallback), as in Llama 2, Mistral v0.1 and Gemma",
            ),
            (model.get("type", "BPE") != "BPE", f"holds a {model.get('type')} model"),
            (model.get("dropout"), "leaves merges out at random (dropout)"),
            (
                model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"),
                "marks parts of words by a prefix or suffix",
            ),
            (
                normal is None,
                f"changes text first ({', '.join(step['type'] for step in normalizers)})",
            ),
            (
                any(step["type"] not in ("ByteLevel", "TemplateProcessing") for step in after),
                f"adds to the ids ({', '.join(step['type'] for step in after)})",
            ),
            (
                any(step.get("add_prefix_space") for step in steps),
                "puts a space before each text (add_prefix_space)",
            ),
            (
                pattern is None,
                f"cuts text in a way that is none of GPT-2's, Llama 3's, SmolLM2's and Qwen's (pre_tokenizer: {', '.join(names) or 'none'})",
            ),
        ):
            if wrong:
                raise UserError(f"{where} {why}: {BYTES_ONLY}")
        merges = [
            tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair)
            for pair in model["merges"]
        ]
        specials = {token["content"]: token["id"] for token in data.get("added_tokens") or []}
        if plain := [
            token["content"]
            for token in data.get("added_tokens") or []
            if not token["special"] and token["content"][0] != "<"
        ]:
            raise UserError(
                f"{where} adds {plain[0]!r} to its tokens and cuts it out of ordinary text: {BYTES_ONLY}"
            )
        # What is put before a text. (A token put after it would end it, and that is for the caller to say.)
        frame = next((step["single"] for step in after if step["type"] == "TemplateProcessing"), [])
        bos = [
            specials[part["SpecialToken"]["id"]]
            for part in takewhile(lambda part: "SpecialToken" in part, frame)
        ]
        eos = config.get("eos_token")
        return _build(
            where,
            model["vocab"],
            merges,
            specials,
            pattern,
            bool(model.get("ignore_merges")),
            normal,
            eos["content"] if isinstance(eos, dict) else eos,
            bos,
            config.get("chat_template"),
            bool(model.get("unk_token")),
        )
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise UserError(
            f"{where} is not the tokenizer.json of Hugging Face: {type(e).__name__} {e}"
        ) from None


def from_vocab(vocab, merges, config=None, where="vocab.json"):
    """The older files of GPT-2: vocab.json (as parsed) and merges.txt (its text)."""
    lines = [line for line in merges.splitlines() if line and not line.startswith("#version")]
    added = [{"content": END, "id": vocab[END], "special": True}] if END in vocab else []
    return from_json(
        {
            "model": {"vocab": vocab, "merges": lines},
            "pre_tokenizer": _byte_level(True),
            "added_tokens": added,
        },
        config,
        where,
    )


def from_gguf(fields, where="the GGUF file"):
    """The metadata of a GGUF file, {key: value} -> Tokenizer."""
    try:
        kind, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre")
        if kind != "gpt2":
            raise UserError(
                f"{where} holds a tokenizer of the kind {kind!r}, expected 'gpt2': {BYTES_ONLY}"
            )
        if pre not in GGUF_PATTERNS:
            raise UserError(
                f"{where} cuts text as {pre!r}; minseal knows {', '.join(GGUF_PATTERNS)}"
            )
        tokens = fields["tokenizer.ggml.tokens"]
        types = fields["tokenizer.ggml.token_type"]
        if len(set(tokens)) < len(tokens):
            raise UserError(f"{where} is damaged: it holds a token twice")
        specials = {
            token: id for id, token in enumerate(tokens) if types[id] in (CONTROL, USER_DEFINED)
        }
        vocab = {
            token: id
            for id, token in enumerate(tokens)
            if types[id] not in (CONTROL, USER_DEFINED, UNUSED)
        }
        merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
        adds_bos = fields.get(
            "tokenizer.ggml.add_bos_token", pre == "llama-bpe"
        )  # llama.cpp's own default
        bos = [fields["tokenizer.ggml.bos_token_id"]] if adds_bos else []
        return _build(
            where,
            vocab,
            merges,
            specials,
            GGUF_PATTERNS[pre],
            pre == "llama-bpe",
            "NFC" if pre == "qwen2" else "",
            tokens[fields["tokenizer.ggml.eos_token_id"]],
            bos,
            fields.get("tokenizer.chat_template"),
        )
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise UserError(f"{where} has no complete tokenizer: {type(e).__name__} {e}") from None


def _build(where, vocab, merges, specials, pattern, whole, normal, eos, bos, template, unk=False):
    """What both formats say -> Tokenizer, once it is sure that merging by rank (tiktoken) equals merging by the list (Hugging Face).

    merges: pairs of spelled tokens. whole: a piece that is a token stays whole, even if no merging reaches it.
    """
    if odd := [
        token for token in vocab if token not in specials and not BYTE_OF.keys() >= set(token)
    ]:
        raise UserError(
            f"{where} holds the token {odd[0]!r}, which is not bytes in GPT-2's spelling: {BYTES_ONLY}"
        )
    ranks = {_bytes(token): id for token, id in vocab.items() if token not in specials}
    eos = eos or next((token for token in (END, "<|end_of_text|>") if token in specials), None)
    if eos not in specials:
        raise UserError(f"{where}: expected an eos_token among the special tokens, got {eos!r}")
    # Some files hold several templates, in a list: their text tells the format all the same.
    chat = next(
        (chat for chat, (turn, _) in CHATS.items() if turn.split("{")[0] in str(template)), ""
    )
    try:
        tokenizer = Tokenizer(ranks, pattern, specials, specials[eos], bos, chat, normal)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    if unk and tokenizer.missing:
        raise UserError(
            f"{where} has an unknown token for bytes that it lacks: minseal leaves such bytes out"
        )

    listed = {tuple(map(_bytes, pair)): "".join(pair) for pair in merges}
    ids = [ranks.get(b"".join(pair)) for pair in listed]
    if None in ids:
        raise UserError(
            f"{where} lists a merge to {list(listed.values())[ids.index(None)]!r}, which is no token: {BYTES_ONLY}"
        )
    if ids != sorted(ids):
        raise UserError(
            f"{where} lists its merges in another order than its ids: tiktoken merges in the order of the ids"
        )
    for token, parts in merges_of(ranks).items():
        # Until something merges across its borders, a token's bytes merge in a longer text as they do alone: each alone tells all.
        if parts not in listed and not (whole and len(parts) > 2):
            raise UserError(
                f"{where} lists no merge {' + '.join(map(_letters, parts))}, but tiktoken would make the token {_letters(token)!r} of them"
            )
    return tokenizer


def to_json(tokenizer):
    """Tokenizer -> a dict that, written as tokenizer.json, Hugging Face's `tokenizers` reads: the same ids for the same text."""
    if tokenizer.pattern not in PRE_TOKENIZERS:
        raise UserError(
            f"tokenizer.json cannot be written for the pattern {tokenizer.pattern!r}: minseal knows the steps of its own patterns only"
        )
    text_of = {id: text for text, id in tokenizer.specials.items()}
    begin = [text_of[id] for id in tokenizer.bos]
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": id,
                "content": text_of[id],
                "special": True,
                "normalized": False,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
            }
            for id in sorted(text_of)
        ],
        "normalizer": {"type": tokenizer.normal} if tokenizer.normal else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": deepcopy(PRE_TOKENIZERS[tokenizer.pattern]),
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": text, "type_id": 0}} for text in begin]
            + [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                text: {"id": text, "ids": [tokenizer.specials[text]], "tokens": [text]}
                for text in begin
            },
        }
        if begin
        else None,
        "decoder": _byte_level(True),
        "model": {
            "type": "BPE",
            "ignore_merges": True,  # as tiktoken: a piece that is a token stays whole
            # specials stand in the vocabulary too: added tokens alone would be numbered anew, after it
            "vocab": {_letters(token): id for token, id in tokenizer.ranks.items()}
            | tokenizer.specials,
            "merges": [
                tuple(map(_letters, parts))
                for parts in merges_of(tokenizer.ranks).values()
                if len(parts) == 2
            ],
        },
    }


def to_config(tokenizer):
    """Tokenizer -> a dict that, written as tokenizer_config.json, tells transformers the special tokens and the chat format."""
    text_of = {id: text for text, id in tokenizer.specials.items()}
    begin = [text_of[id] for id in tokenizer.bos]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": text_of[tokenizer.eot],
        "bos_token": begin[0] if begin else None,
    }
    if tokenizer.chat:
        text = (
            "{{ message['content'] | trim }}"
            if tokenizer.chat == "llama3"
            else "{{ message['content'] }}"
        )
        turn = CHATS[tokenizer.chat][0].format(role="{{ message['role'] }}", text=text)
        config["chat_template"] = (
            "".join(begin)
            + "{% for message in messages %}"
            + turn
            + "{% endfor %}"
            + "{% if add_generation_prompt %}"
            + tokenizer.opening()
            + "{% endif %}"
        )
    return config


def _bytes(spelled):
    return bytes(BYTE_OF[letter] for letter in spelled)


def _letters(token):
    return "".join(LETTER_OF[b] for b in token)


def _steps(part):
    """A part of tokenizer.json as a list of steps: none, itself, or the members of a Sequence."""
    if not part:
        return []
    return (
        next(list(v) for v in part.values() if isinstance(v, list))
        if part["type"] == "Sequence"
        else [part]
    )


def _essence(step):
    """A step, whatever it says of offsets, which do not touch ids; older files leave use_regex out."""
    return (
        {"use_regex": True} | step | {"trim_offsets": False}
        if step["type"] == "ByteLevel"
        else step
    )
