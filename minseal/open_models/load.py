"""Open weights -> GPT: every tensor is matched with a parameter, nothing missing, nothing left."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import checkpoint
from ..checkpoint import make_config
from ..files import UserError, first_line, need, read_json
from ..model import GPT, GPTConfig, rope_table
from ..tokenizer import Tokenizer
from .families import FAMILIES, LLAMA3_ROPE, Family, Place, Source, Stored, place_of
from .gguf import open_gguf
from .safetensors import FLOATS, read_shards
from .tokenizers import read_tokenizer

EXPECTED = (
    "expected a folder with config.json and *.safetensors (or minseal's own), a GGUF file, "
    "or a hub id such as owner/name"
)
PACKAGE = Path(__file__).parent.parent
TOYS = "tiny_data"  # the folder of the models that come with minseal
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(source: str | Path, device: str = "auto", dtype: str = "auto") -> tuple[GPT, Tokenizer]:
    """(model, tokenizer) of minseal's own folder, a Hugging Face one, a GGUF file, or a hub id.

    device: auto (a GPU if there is one), cpu, cuda. dtype: float32, bfloat16, float16, or auto:
    as the weights are stored (GGUF: float32).
    Nothing is read before every shape is found right; then each parameter is filled once,
    straight from disk: the peak is the weights and the largest tensor. Raises UserError with the
    reason if the source is damaged, or a model that GPT cannot be.
    """
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype is {dtype!r}; expected auto, {', '.join(DTYPES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    path = find(source)
    disk = open_source(path)
    tokens, rows = disk.tokenizer.vocab_size, disk.config.vocab_size
    if tokens > rows:
        raise UserError(
            f"{path}: the tokenizer has {tokens} tokens, the model's embedding only {rows} rows"
        )
    parts = match(disk, path)
    kind = most_common_dtype(disk.tensors) if dtype == "auto" else DTYPES[dtype]
    try:
        model = make_empty(disk.config, kind, device)
    except (RuntimeError, AssertionError) as e:  # no room, or no such device
        raise UserError(f"{path} cannot be loaded on {device}: {first_line(e)}") from None
    parameters = dict(model.named_parameters())
    bar = tqdm(parts, desc="weights", unit="tensor", leave=False, disable=None, delay=1)
    with torch.no_grad():
        for ours, stored, place in bar:
            parameters[ours].copy_(place.turn(stored.read()))
    return model.eval(), disk.tokenizer


def find(source: str | Path) -> Path:
    """The path of a source: as given; a toy also in the package or beside it; else from the hub."""
    source = str(source)
    toy = source.startswith(f"{TOYS}/")
    for path in (Path(), PACKAGE, PACKAGE.parent) if toy else (Path(),):
        if (path / source).exists():
            return path / source
    if toy:
        raise UserError(f"no toy model at {source}: expected a folder of minseal's {TOYS}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(f"no model at {source}: {EXPECTED}")
    hub = need("huggingface_hub", "weights", f"there is no {source} here, and the hub")
    patterns = ["*.json", "*.safetensors", "merges.txt", "*.jinja"]  # no pickles
    try:
        return Path(hub.snapshot_download(source, allow_patterns=patterns))
    except Exception as e:  # offline, no such model, no permission: there is an error for each
        raise UserError(
            f"there is no {source} here, and the hub does not give it "
            f"({type(e).__name__}: {first_line(e)})"
        ) from None


def open_source(path: Path) -> Source:
    """A file is GGUF; a folder is minseal's own if it has weights.pt, else Hugging Face's."""
    if path.is_file():
        return open_gguf(path)
    if (path / "weights.pt").exists() or (path / "ranks.tiktoken").exists():
        return open_own(path)
    return open_hugging_face(path)


def match(source: Source, path: Path) -> list[tuple[str, Stored, Place]]:
    """[(our parameter, what fills it, how), ...]: every parameter and tensor, or a UserError.

    Shapes are followed on the meta device: that costs neither memory nor reading.
    """
    config, tensors = source.config, source.tensors
    if config.n_layer > len(tensors):
        raise UserError(
            f"{path}: its configuration describes {config.n_layer} blocks; "
            f"its {len(tensors)} tensors cannot be so many"
        )
    parts = []
    with torch.device("meta"):
        try:
            model = GPT(config)
        except RuntimeError as e:  # sizes beyond every number of bytes
            raise UserError(f"{path}: its configuration is no model's: {first_line(e)}") from None
        for ours, parameter in model.named_parameters():
            place = source.place(ours)
            stored = tensors.get(place.name)
            if stored is None:
                raise UserError(f"{path}: the tensor {place.name} is missing, {ours} needs it")
            try:
                shape = place.turn(torch.empty(stored.shape)).shape
            except (RuntimeError, TypeError, IndexError):  # it cannot be turned at all
                shape = None
            if shape != parameter.shape or stored.dtype not in FLOATS.values():
                raise UserError(
                    f"{path}: {place.name} of shape {stored.shape} in {stored.dtype} "
                    f"cannot be {ours} of shape {tuple(parameter.shape)}"
                )
            parts.append((ours, stored, place))
    if left := sorted(tensors.keys() - {place.name for _, _, place in parts}):
        raise UserError(
            f"{path}: {left[0]!r} is not a part of the model that its configuration describes "
            f"({len(left)} such tensors)"
        )
    return parts


def make_empty(config: GPTConfig, dtype: torch.dtype, device: str) -> GPT:
    """A GPT whose weights are not drawn: they will be read."""
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    if config.tied:
        model.head.weight = None  # or it would get room of its own
    model.to_empty(device=device)
    if config.tied:
        model.head.weight = model.wte.weight
    if config.position == "rope":
        model.cos, model.sin = (table.to(device) for table in rope_table(config))
    return model


def most_common_dtype(tensors: dict[str, Stored]) -> torch.dtype:
    """The dtype of most of the weights, by count of numbers."""
    counts: Counter = Counter()
    for t in tensors.values():
        if t.dtype in DTYPES.values():
            counts[t.dtype] += math.prod(t.shape)
    return max(counts, key=counts.get, default=torch.float32)


# ---- folders ----


def open_own(path: Path) -> Source:
    """A folder that save() wrote; with tokenizer.json, if it was made of an open model."""
    config, weights, settings = checkpoint.read(path)
    if settings == {"file": "tokenizer.json"}:  # OpenTokenizer.settings()
        tokenizer: Tokenizer = read_tokenizer(path)
    else:
        tokenizer = Tokenizer.load(path / "ranks.tiktoken", settings)
    stored = {name: Stored(tuple(t.shape), t.dtype, t.detach) for name, t in weights.items()}
    return Source(config, stored, tokenizer)


def open_hugging_face(path: Path) -> Source:
    """A folder with config.json, safetensors and a tokenizer."""
    if not (path / "config.json").is_file():
        raise UserError(f"no model at {path}: {EXPECTED}")
    family, config = from_hugging_face(read_json(path / "config.json"), path / "config.json")
    unused = "|".join(family.unused + ((r"lm_head\.weight",) if config.tied else ()))
    found = {name.removeprefix("transformer."): t for name, t in read_shards(path).items()}
    tensors = {name: t for name, t in found.items() if not re.fullmatch(unused, name)}
    return Source(
        config,
        tensors,
        read_tokenizer(path),
        lambda ours: place_of(ours, family.names, family.transposed),
    )


def from_hugging_face(about: dict[str, Any], where: object) -> tuple[Family, GPTConfig]:
    """What their config.json says -> Family, GPTConfig. (Back: export.to_hugging_face.)"""
    family = FAMILIES.get(str(about.get("model_type")))
    if family is None:
        raise UserError(
            f"{where}: model_type is {about.get('model_type')!r:.60}; "
            f"minseal reads {', '.join(FAMILIES)} (SmolLM2 is a llama)"
        )
    for key, value in {**family.expected, "quantization_config": None}.items():
        if about.get(key, value) != value:
            raise UserError(
                f"{where}: {key} is {about[key]!r:.60}; "
                f"for {family.name}, minseal's GPT has {value!r} only"
            )
    # What config.json leaves out is transformers' own default.
    defaults = {
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-6,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": family.name == "gpt2",
    }
    try:
        if other := sorted({*(about.get("layer_types") or ())} - {"full_attention"}):
            raise UserError(
                f"{where}: layer_types holds {other[0]!r}; minseal's GPT has full attention only"
            )
        # The older key counts, in transformers too.
        rope = about.get("rope_scaling") or about.get("rope_parameters") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        share = rope.get("partial_rotary_factor", about.get("partial_rotary_factor", 1))
        if kind not in ("default", "llama3") or share != 1:
            raise UserError(
                f"{where}: rope scaling of type {kind!r} for {share} of each head; "
                "minseal's GPT knows llama3's and none, for whole heads"
            )
        given = defaults | about
        given |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
        values = {ours: given.get(theirs) for ours, theirs in family.keys.items()}
        values = {ours: value for ours, value in values.items() if value is not None}
        if kind == "llama3":
            values["rope_scaling"] = tuple(rope[key] for key in LLAMA3_ROPE)
    except KeyError as e:
        raise UserError(f"{where} has no {e.args[0]}") from None
    except (TypeError, AttributeError):
        raise UserError(
            f"{where}: layer_types must be a list of words, rope_parameters an object"
        ) from None
    return family, make_config(values | family.settings, where, family.keys)
