"""Open weights in, and out again: the converter. A family is a table; to read another one, add a table to families.py.

load(source)            a folder of minseal's own, one in the Hugging Face layout, a GGUF file or a hub id -> model, tokenizer
save(folder, ...)       minseal's own folder: config.json, weights.pt, ranks.tiktoken
export(folder, ...)     a folder that transformers reads
"""

import math
import re
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from tqdm import tqdm

from . import vocab
from .errors import UserError
from .families import FAMILIES, GGUF_FUSED, GGUF_KEYS, GGUF_NAMES, LLAMA3_ROPE, located, names_of
from .files import (
    Stored,
    first_line,
    load_tensors,
    read_gguf,
    read_json,
    read_shards,
    write_folder,
    write_json,
    write_safetensors,
)
from .model import GPT, GPTConfig, rope_frequencies, rope_table
from .tokenizer import Tokenizer

EXPECTED = "expected a folder with config.json and *.safetensors (or minseal's own), a GGUF file, or a hub id such as owner/name"
LARGEST_TABLE = (
    2**28
)  # values of cos and of sin, which are made whole: 1 GB each. Qwen2.5's million tokens need half of it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(source, device="auto", dtype="auto"):
    """(model, tokenizer) from minseal's own folder, a Hugging Face folder, a GGUF file, or a hub id such as owner/name.

    A relative path is looked up here, then in minseal's own clone. device: auto (a GPU if there is one), cpu, cuda.
    dtype: float32, bfloat16, float16, or auto: as the weights are stored (GGUF: float32).
    Nothing is read before every shape is found right; then each parameter is filled once, straight from disk:
    the peak is the weights and the largest tensor. Raises UserError with the reason if the source is damaged or a model that GPT cannot be.
    """
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype is {dtype!r}; expected auto, {', '.join(DTYPES)}")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    path = find(source)
    own = (path / "ranks.tiktoken").exists() or (path / "weights.pt").exists()
    config, tensors, names, tokenizer = (
        open_gguf if path.is_file() else open_own if own else open_hugging_face
    )(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model's embedding only {config.vocab_size} rows"
        )
    parts = matched(config, tensors, names, path)
    try:
        model = empty(config, DTYPES[dtype] if dtype != "auto" else stored_dtype(tensors), device)
    except (RuntimeError, AssertionError) as e:  # no room, or no such device
        raise UserError(f"{path} cannot be loaded on {device}: {first_line(e)}") from None
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for ours, stored, turn in tqdm(
            parts, desc="weights", unit="tensor", leave=False, disable=None, delay=1
        ):
            parameters[ours].copy_(turn(stored.read()))
    return model.eval(), tokenizer


def find(source):
    """The path of a source; one that is no path here is taken for a hub id and fetched."""
    for path in (Path(source), Path(__file__).parent.parent / source):
        if path.exists():
            return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise UserError(f"no model at {source}: {EXPECTED}")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"there is no {source} here, and fetching it from the hub needs huggingface_hub: pip install 'minseal[weights]'"
        ) from None
    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(source), allow_patterns=["*.json", "*.safetensors", "merges.txt", "*.jinja"]
            )
        )
    except (
        Exception
    ) as e:  # offline, no such model, no permission: the package has an error for each
        raise UserError(
            f"there is no {source} here, and the hub does not give it ({type(e).__name__}: {first_line(e)})"
        ) from None


def matched(config, tensors, names, path):
    """[(our parameter, the Stored tensor of theirs, what turns that into ours), ...]: every parameter and every tensor, or a UserError.

    names: function of our name -> (theirs, what turns it). Shapes are followed on the meta device: this costs neither memory nor reading.
    """
    if config.n_layer > len(tensors):
        raise UserError(
            f"{path}: its configuration describes {config.n_layer} blocks; its {len(tensors)} tensors cannot be so many"
        )
    parts, used = [], set()
    with torch.device("meta"):
        try:
            model = GPT(config)
        except RuntimeError as e:  # sizes beyond every number of bytes
            raise UserError(
                f"{path}: its configuration describes no model: {first_line(e)}"
            ) from None
        for ours, parameter in model.named_parameters():
            theirs, turn = names(ours)
            if theirs not in tensors:
                raise UserError(f"{path}: the tensor {theirs} is missing, {ours} needs it")
            stored = tensors[theirs]
            try:
                shape = turn(torch.empty(stored.shape)).shape
            except (RuntimeError, TypeError, IndexError):  # it cannot be turned at all
                shape = None
            if shape != parameter.shape or not stored.dtype.is_floating_point:
                raise UserError(
                    f"{path}: {theirs} of shape {tuple(stored.shape)} in {stored.dtype} cannot be {ours} of shape {tuple(parameter.shape)}"
                )
            parts.append((ours, stored, turn))
            used.add(theirs)
    if left := sorted(tensors.keys() - used):
        raise UserError(
            f"{path}: {left[0]!r} is not a part of the model that its configuration describes ({len(left)} such tensors)"
        )
    return parts


def empty(config, dtype, device):
    """A GPT whose weights are not drawn: they will be read."""
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    if config.tied:
        model.head.weight = None  # or it would get room of its own
    model.to_empty(device=device)
    if config.tied:
        model.head.weight = model.wte.weight
    if config.position == "rope":
        model.cos, model.sin = (x.to(device) for x in rope_table(config))
    return model


def stored_dtype(tensors):
    """The dtype of most of the weights."""
    counts = Counter()
    for t in tensors.values():
        counts[t.dtype] += math.prod(t.shape)
    return max(
        (dtype for dtype in counts if dtype in DTYPES.values()),
        key=counts.get,
        default=torch.float32,
    )


def make_config(values, where, keys={}):
    """GPTConfig(**values) with a stranger's values: UserError if they make no sense. keys: our field -> what it is called there."""
    name_of = {field.name: keys.get(field.name, field.name) for field in fields(GPTConfig)}
    wanted = {
        bool: ("true or false", lambda v: type(v) is bool),
        int: ("a whole number above 0", lambda v: type(v) is int and 0 < v < 2**31),
        float: ("a number above 0", lambda v: type(v) in (int, float) and 0 < v < math.inf),
    }
    for name, value in values.items():
        words, fits = wanted.get(type(getattr(GPTConfig, name, None)), ("", lambda v: True))
        if not fits(value):
            raise UserError(f"{where}: {name_of[name]} is {value!r:.60}; expected {words}")
    if missing := [
        theirs
        for ours, theirs in keys.items()
        if ours not in values and ours not in ("n_kv_head", "head_dim", "mlp_dim", "rope_theta")
    ]:
        raise UserError(f"{where} has no {missing[0]}")
    if values.keys() >= {"n_head", "n_embd"}:  # what follows from these may be left out
        values = {
            "n_kv_head": values["n_head"],
            "head_dim": values["n_embd"] // values["n_head"],
            "mlp_dim": 4 * values["n_embd"],
            **values,
        }
    try:
        config = GPTConfig(**values)
        if config.position == "rope" and (
            config.head_dim % 2 or not rope_frequencies(config).isfinite().all()
        ):
            raise ValueError(
                "rotary positions need an even head_dim, and 4 numbers if they are scaled"
            )
        if config.position == "rope" and config.block_size * config.head_dim > LARGEST_TABLE:
            raise ValueError(
                f"{name_of['block_size']} is {config.block_size}: its table of rotary positions has no room"
            )
        return config
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as e:
        raise UserError(f"{where} describes no model: {first_line(e)}") from None


# ---- minseal's own folder --------------------------------------------------------------------------------------------


def open_own(path):
    about = read_json(path / "config.json")
    try:
        config = make_config(
            {k: tuple(v) if isinstance(v, list) else v for k, v in about["model"].items()},
            path / "config.json",
        )
    except (KeyError, AttributeError):
        raise UserError(
            f'{path / "config.json"} describes no model: expected settings under "model"'
        ) from None
    tensors = {
        name: Stored(tuple(t.shape), t.dtype, t.detach)
        for name, t in load_tensors(path / "weights.pt").items()
    }
    return (
        config,
        tensors,
        lambda ours: (ours, lambda t: t),
        Tokenizer.load(path / "ranks.tiktoken", about.get("tokenizer")),
    )


def save(path, model, tokenizer, about):
    """Write minseal's own folder; `about` (a dict) is kept in config.json beside the settings of model and tokenizer. UserError if it cannot be."""
    state = plain_parameters(model)
    write_folder(
        path,
        {
            "weights.pt": lambda temporary: torch.save(
                {k: v.detach().cpu() for k, v in state.items()}, temporary
            ),
            "ranks.tiktoken": tokenizer.save,
            "config.json": write_json(
                {"model": asdict(model.config), "tokenizer": tokenizer.settings(), **about}
            ),
        },
    )


def plain_parameters(model):
    """{name: parameter} of a model without adapters; a tied head is there once."""
    if model.n_adapters is not None:
        raise UserError(
            "the model has adapters: merge() and remove() them, or remove() them, before it is written"
        )
    return dict(model.named_parameters())


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def open_hugging_face(path):
    if not (path / "config.json").is_file():
        raise UserError(f"no model at {path}: {EXPECTED}")
    family, config = described(read_json(path / "config.json"), path / "config.json")
    tensors = {name.removeprefix("transformer."): t for name, t in read_shards(path).items()}
    unused = family.unused + ((r"lm_head\.weight",) if config.tied else ())
    return (
        config,
        {name: t for name, t in tensors.items() if not any(re.fullmatch(p, name) for p in unused)},
        names_of(family),
        tokenizer_of(path),
    )


def described(about, where):
    """A parsed config.json of Hugging Face -> (Family, GPTConfig)."""
    family = FAMILIES.get(str(about.get("model_type")))
    if family is None:
        raise UserError(
            f"{where}: model_type is {about.get('model_type')!r:.60}; minseal reads {', '.join(FAMILIES)} (SmolLM2 is a llama)"
        )
    for key, value in {**family.expected, "quantization_config": None}.items():
        if about.get(key, value) != value:
            raise UserError(
                f"{where}: {key} is {about[key]!r:.60}; for {family.name}, minseal's GPT has {value!r} only"
            )
    try:
        if other := sorted({*(about.get("layer_types") or ())} - {"full_attention"}):
            raise UserError(
                f"{where}: layer_types holds {other[0]!r}; minseal's GPT has full attention only"
            )
        rope = (
            about.get("rope_scaling") or about.get("rope_parameters") or {}
        )  # the older key counts, in transformers too
        kind, share = (
            rope.get("rope_type", rope.get("type", "default")),
            rope.get("partial_rotary_factor", about.get("partial_rotary_factor", 1)),
        )
        if kind not in ("default", "llama3") or share != 1:
            raise UserError(
                f"{where}: rope scaling of type {kind!r} for {share} of each head; minseal's GPT knows llama3's and none, for whole heads"
            )
        # What config.json leaves out is transformers' own default.
        given = {
            "rope_theta": 10_000.0,
            "rms_norm_eps": 1e-6,
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": family.name == "gpt2",
            **about,
        }
        given |= {k: v for k, v in rope.items() if k == "rope_theta"}
        values = {
            ours: given[theirs]
            for ours, theirs in family.keys.items()
            if given.get(theirs) is not None
        }
        if kind == "llama3":
            values["rope_scaling"] = tuple(rope[k] for k in LLAMA3_ROPE)
    except KeyError as e:
        raise UserError(f"{where} has no {e.args[0]}") from None
    except (TypeError, AttributeError):
        raise UserError(
            f"{where}: layer_types must be a list of words, rope_parameters an object"
        ) from None
    return family, make_config(values | family.settings, where, family.keys)


def tokenizer_of(path):
    """The tokenizer of a folder: tokenizer.json, or GPT-2's older pair of files."""
    settings = (
        read_json(path / "tokenizer_config.json")
        if (path / "tokenizer_config.json").is_file()
        else {}
    )
    if (path / "chat_template.jinja").is_file():
        settings["chat_template"] = (path / "chat_template.jinja").read_text(
            encoding="utf-8", errors="replace"
        )
    if (path / "tokenizer.json").is_file():
        return vocab.from_json(
            read_json(path / "tokenizer.json"), settings, path / "tokenizer.json"
        )
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        merges = (path / "merges.txt").read_text(encoding="utf-8", errors="replace")
        return vocab.from_vocab(
            read_json(path / "vocab.json"), merges, settings, path / "vocab.json"
        )
    kind = (
        "a SentencePiece tokenizer (tokenizer.model)"
        if (path / "tokenizer.model").is_file()
        else "no tokenizer.json"
    )
    raise UserError(
        f"{path} holds {kind}; minseal reads byte-level BPE from tokenizer.json, or from vocab.json and merges.txt"
    )


def export(path, model, tokenizer):
    """Write a folder that transformers reads, to the same logits and ids. Raises UserError if no family has such a model, or it cannot be written."""
    family, about = describe(model.config)
    tensors = {}
    for ours, parameter in plain_parameters(model).items():
        theirs, _, transposed = located(ours, family)
        tensors.setdefault(theirs, []).append(
            parameter.detach().T if transposed else parameter.detach()
        )
    prefix = "transformer." if family.name == "gpt2" else ""
    tensors = {
        (name if name.startswith("lm_head") else prefix + name): parts[0]
        if len(parts) == 1
        else torch.cat(parts, -1)
        for name, parts in tensors.items()
    }
    about |= {
        "dtype": str(model.wte.weight.dtype).removeprefix("torch."),
        "eos_token_id": tokenizer.eot,
        "bos_token_id": next(iter(tokenizer.bos), None),
    }
    write_folder(
        path,
        {
            "model.safetensors": write_safetensors(tensors),
            "config.json": write_json(about),
            "tokenizer.json": write_json(vocab.to_json(tokenizer)),
            "tokenizer_config.json": write_json(vocab.to_config(tokenizer)),
        },
    )


def describe(config):
    """GPTConfig -> (Family, config.json of Hugging Face): described() backwards."""
    for family in FAMILIES.values():
        if all(getattr(config, k) == v for k, v in family.settings.items()):
            break
    else:
        raise UserError(
            f"no family of Hugging Face ({', '.join(FAMILIES)}) has these settings: {config}"
        )
    if family.name == "gpt2" and (
        config.n_kv_head != config.n_head or config.head_dim * config.n_head != config.n_embd
    ):
        raise UserError(
            "GPT-2 has neither grouped heads nor a head_dim of its own; this model has, so it cannot be exported as one"
        )
    about = {
        "architectures": [family.architecture],
        "model_type": family.name,
        **family.expected,
        **{theirs: getattr(config, ours) for ours, theirs in family.keys.items()},
    }
    if config.rope_scaling is not None:
        about["rope_scaling"] = {
            "rope_type": "llama3",
            **dict(zip(LLAMA3_ROPE, config.rope_scaling)),
        }
    return family, about


# ---- GGUF ------------------------------------------------------------------------------------------------------------


def open_gguf(path):
    about, tensors = read_gguf(path)
    kind = about.get("general.architecture")
    family = FAMILIES.get(str(kind))
    if family is None:
        raise UserError(
            f"{path}: general.architecture is {kind!r:.60}; minseal reads {', '.join(FAMILIES)}"
        )
    told = {
        key.removeprefix(f"{kind}."): value
        for key, value in about.items()
        if key.startswith(f"{kind}.")
    }
    if (
        told.get("expert_count")
        or told.get("attention.sliding_window")
        or told.get("rope.scaling.type", "none") != "none"
    ):
        raise UserError(
            f"{path}: experts, sliding windows and rope scaling by a formula are not a part of minseal's GPT"
        )
    eps = (
        "attention.layer_norm_rms_epsilon"
        if family.settings["norm"] == "rms"
        else "attention.layer_norm_epsilon"
    )
    keys = GGUF_KEYS | {"norm_eps": eps}
    values = {ours: told[theirs] for ours, theirs in keys.items() if theirs in told}
    values |= family.settings | {"tied": "output.weight" not in tensors}
    if "token_embd.weight" in tensors:
        values["vocab_size"] = tensors["token_embd.weight"].shape[0]
    if isinstance(values.get("norm_eps"), float):
        values["norm_eps"] = float(
            f"{values['norm_eps']:.6g}"
        )  # stored in float32: 1e-5 comes as 9.9999997e-06
    config = make_config(values, path, {**keys, "vocab_size": "token_embd.weight"})
    if told.get("rope.dimension_count", config.head_dim) != config.head_dim:
        raise UserError(
            f"{path}: rotary positions for a part of each head; minseal's GPT turns whole heads"
        )
    if "rope_freqs.weight" in tensors:
        config = with_factors(config, tensors.pop("rope_freqs.weight").read(), path)
    plain = names_of(
        replace(family, names=GGUF_NAMES | (GGUF_FUSED if kind == "gpt2" else {}), transposed=())
    )

    def names(ours):
        theirs, turn = plain(ours)
        heads = {"attn_q": config.n_head, "attn_k": config.n_kv_head}.get(theirs.split(".")[-2])
        return theirs, half_split(heads) if kind == "llama" and heads else turn

    return config, tensors, names, vocab.from_gguf(about, path)


def half_split(heads):
    """Undo the order in which GGUF keeps the rows of Llama's q and k: pairs (0, 1), (2, 3), ... of a head turn together there, (i, i + D/2) here."""
    return lambda w: w.view(heads, -1, 2, *w.shape[1:]).transpose(1, 2).reshape(w.shape)  # (H D, C)


def with_factors(config, factors, path):
    """GGUF keeps Llama 3's rope scaling as what each frequency is divided by; find the settings that give just that."""
    plain = rope_frequencies(config)
    for factor in (8.0, 32.0):  # Llama 3.1, Llama 3.2
        scaled = replace(config, rope_scaling=(factor, 1.0, 4.0, 8192))
        if factors.shape == plain.shape and torch.allclose(
            plain / rope_frequencies(scaled), factors.double(), rtol=1e-4
        ):
            return scaled
    raise UserError(f"{path}: rope_freqs.weight is not the rope scaling of Llama 3.1 or 3.2")
