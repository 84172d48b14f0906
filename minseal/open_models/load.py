"""Open weights -> GPT: every tensor is matched with a parameter, nothing missing, nothing left."""

import math
import re
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import checkpoint
from ..files import UserError, first_line, need, read_json
from ..model import GPT, GPTConfig, rope_table
from ..terminal import complain
from ..tokenizer import Tokenizer
from .families import FAMILIES, LLAMA3_ROPE, UNUSED, Family, Place, Source, Stored, place_of
from .gguf import open_gguf
from .safetensors import read_shards
from .tokenizers import read_tokenizer

EXPECTED = "expected a folder with config.json, a GGUF file, or a hub id such as owner/name"
PACKAGE = Path(__file__).parent.parent
TOYS = "tiny_data"  # the folder of the models that come with minseal
SLOW = 2.0  # times float32's: a dtype that takes longer is worth its memory no more
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(source: str | Path, device: str = "auto", dtype: str = "auto") -> tuple[GPT, Tokenizer]:
    """(model, tokenizer) of minseal's own folder, a Hugging Face one, a GGUF file, or a hub id.

    device: auto (a GPU if there is one), cpu, cuda. dtype: float32, bfloat16, float16; stored: as
    the largest tensor is (GGUF: float32); auto: so, but float32 on a CPU that is slow in it.
    No weight is taken before every shape is found right; then each parameter is filled once,
    straight from disk: the peak is the weights and the largest tensor. Raises UserError with the
    reason if the source is damaged, or a model that GPT cannot be.
    """
    if dtype not in ("auto", "stored", *DTYPES):
        raise UserError(f"dtype is {dtype!r}; expected auto, stored, {', '.join(DTYPES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    path = find(source)
    disk = open_source(path)
    tokens, rows = disk.tokenizer.vocab_size, disk.config.vocab_size
    if tokens > rows:
        raise UserError(f"{path}: {tokens} tokens in the tokenizer, {rows} rows in the embedding")
    parts = match(disk, path)
    largest = max(disk.tensors.values(), key=lambda stored: math.prod(stored.shape))
    held = DTYPES.get(dtype, largest.dtype)
    if dtype != "stored" and device == "cpu":
        held = fitting(held, dtype == "auto")
    try:
        model = make_empty(disk.config, held, device)
    except (RuntimeError, AssertionError) as e:  # no room, or no such device
        raise UserError(f"{path} cannot be loaded on {device}: {first_line(e)}") from None
    parameters = dict(model.named_parameters())
    bar = tqdm(parts, desc="weights", unit="tensor", leave=False, disable=None, delay=1)
    with torch.no_grad():
        for ours, stored, place in bar:
            parameters[ours].copy_(place.turn(stored.read()))
            if not checkpoint.is_finite(parameters[ours]):
                what = f"in {parameters[ours].dtype} the numbers of {place.name} are not finite"
                raise UserError(f"{path} is damaged: {what}")
    return model.eval(), disk.tokenizer


def fitting(dtype: torch.dtype, may_choose: bool) -> torch.dtype:
    """This dtype, or float32 on a CPU that is slow in it; says so in a line.

    may_choose: False: it stays what it is, with a warning.
    """
    if (factor := slowness(dtype)) < SLOW:
        return dtype
    name = str(dtype).removeprefix("torch.")
    told = f"{name} takes {factor:.0f} times as long as float32 on this CPU"
    if may_choose:
        complain(f"{told}: float32 it is, in twice the memory (--dtype {name}: as stored)")
        return torch.float32
    complain(f"{told}: --dtype float32 is faster")
    return dtype


@cache
def slowness(dtype: torch.dtype) -> float:
    """How many times as long as in float32 a matrix product takes on this CPU: some ms, once."""

    def seconds(dtype: torch.dtype) -> float:
        x, times = torch.ones(128, 128, dtype=dtype), []
        for _ in range(4):  # the first one may set things up
            start = time.perf_counter()
            x @ x
            times.append(time.perf_counter() - start)
        return min(times)

    return 1.0 if dtype == torch.float32 else seconds(dtype) / seconds(torch.float32)


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
    try:
        files = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]  # no pickles
        return Path(hub.snapshot_download(source, allow_patterns=files))
    except Exception as e:  # offline, no such model, no permission: there is an error for each
        why = f"{type(e).__name__}: {first_line(e)}"
        raise UserError(f"no {source} here, and the hub does not give it ({why})") from None


def match(source: Source, path: Path) -> list[tuple[str, Stored, Place]]:
    """[(our parameter, what fills it, how), ...]: every parameter and tensor, or a UserError.

    Shapes are followed on the meta device: that costs neither memory nor reading. Nothing is made
    here, or later, whose size only the configuration says.
    """
    config, tensors, parts = source.config, source.tensors, []
    with torch.device("meta"):
        try:
            model = GPT(replace(config, n_layer=1))  # all blocks are alike
        except RuntimeError as e:  # sizes beyond every number of bytes
            raise UserError(f"{path}: its configuration is no model's: {first_line(e)}") from None
        for first, parameter in model.named_parameters():
            for i in range(config.n_layer if first.startswith("blocks.") else 1):
                ours = first.replace("blocks.0.", f"blocks.{i}.")
                place = source.place(ours)
                stored = tensors.get(place.name)
                if stored is None:
                    raise UserError(f"{path}: the tensor {place.name} is missing, {ours} needs it")
                try:  # [:3]: a shape may have thousands of dimensions
                    shape = place.turn(torch.empty(stored.shape[:3])).shape
                except (RuntimeError, TypeError, IndexError):  # it cannot be turned at all
                    shape = None
                if shape != parameter.shape or stored.dtype not in DTYPES.values():
                    there = f"{place.name} of shape {stored.shape!s:.60} in {stored.dtype}"
                    here = f"{ours} of shape {tuple(parameter.shape)}"
                    raise UserError(f"{path}: {there} cannot be {here}")
                parts.append((ours, stored, place))
    if left := sorted(tensors.keys() - {place.name for _, _, place in parts}):
        raise UserError(f"{path}: its config has no place for the tensor {left[0]!r:.160}")
    if config.position == "rope":
        size = sum(math.prod(stored.shape) for _, stored, _ in parts)
        checkpoint.check_positions(config, size, path)
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


def open_source(path: Path) -> Source:
    """A file is GGUF; a folder is minseal's own if it has weights.pt, else Hugging Face's."""
    if path.is_file():
        return open_gguf(path)
    is_own = (path / "weights.pt").exists() or (path / "ranks.tiktoken").exists()
    return open_own(path) if is_own else open_hugging_face(path)


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
    where = path / "config.json"
    if not where.is_file():
        raise UserError(f"no model at {path}: {EXPECTED}")
    family, config = from_hugging_face(read_json(where), where)
    found = read_shards(path)
    tensors = {name.removeprefix(family.prefix): stored for name, stored in found.items()}
    if len(tensors) < len(found):
        raise UserError(f"{path}: some tensors are there twice, with {family.prefix} and without")
    for name, stored in list(tensors.items()):
        for pattern, is_as_made in UNUSED.items():
            if re.fullmatch(pattern, name) and is_as_made(stored.read(), config):
                del tensors[name]
    wte, head = (f"{family.names[ours]}.weight" for ours in ("wte", "head"))
    if config.tied and head in tensors:  # as in transformers: one that differs is no tied one
        if wte not in tensors or _are_equal(tensors[wte], tensors[head]):
            tensors.setdefault(wte, tensors.pop(head))
        else:
            config = replace(config, tied=False)

    def place(ours: str) -> Place:
        return place_of(ours, family.names, family.transposed)

    return Source(config, tensors, read_tokenizer(path), place)


def _are_equal(a: Stored, b: Stored) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype) and torch.equal(a.read(), b.read())


def from_hugging_face(about: dict[str, Any], where: object) -> tuple[Family, GPTConfig]:
    """What their config.json says -> Family, GPTConfig. (Back: export.to_hugging_face.)"""
    kind = str(about.get("model_type"))
    if kind not in FAMILIES:
        raise UserError(f"{where}: model_type is {kind!r:.60}; expected {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    rope = about.get("rope_scaling") or about.get("rope_parameters") or {}  # older: it counts
    plain = {"quantization_config": None, "partial_rotary_factor": 1}
    try:
        for key, value in (family.expected | plain).items():
            if (there := about.get(key, rope.get(key, value))) != value:
                raise UserError(f"{where}: {key} is {there!r:.60}; expected {value!r}")
        about = {"tie_word_embeddings": kind == "gpt2"} | about  # transformers' own default
        scaling = rope.get("rope_type", rope.get("type", "default"))
        if scaling not in ("default", "llama3"):
            raise UserError(f"{where}: rope scaling is {scaling!r:.60}; expected llama3's or none")
        about = about | {"rope_theta": rope.get("rope_theta", about.get("rope_theta"))}
        values = {ours: about.get(theirs) for ours, theirs in family.keys.items()}
        values = {ours: value for ours, value in values.items() if value is not None}
        if scaling == "llama3":
            # Also beside rope_scaling, where it counts; by default the longest text of all.
            original = about.get(LLAMA3_ROPE[-1]) or rope.get(LLAMA3_ROPE[-1])
            original = original or about.get("max_position_embeddings")
            values["rope_scaling"] = (*(rope[key] for key in LLAMA3_ROPE[:-1]), original)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{where}: rope_parameters must have {', '.join(LLAMA3_ROPE)}") from None
    return family, checkpoint.make_config(values | family.settings, where, family.keys)
