# %% [markdown]
# # 7. Other people's weights
# - **You need** `pip install -e ".[weights,plots]"`, and to have met a GPT, LoRA and notes before.
# - **It takes** about 20 s of computing on one core, and an hour of yours.
# - **You will see** how a conversion is checked, which mistakes hide, and a model learn your page.
# - **In the code:** [open_models](../minseal/open_models/load.py); the LoRA paper, section 4.1.

# %%
import json
import os
import sys
from pathlib import Path
from subprocess import check_output
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import tokenizers
import torch
from safetensors.torch import load_file, save_file

import minseal
from minseal.open_models.families import LLAMA_NAMES, place_of
from minseal.open_models.peft import load_adapter

torch.set_num_threads(1)  # matrices this small: a second thread only waits
torch.set_grad_enabled(False)  # `minseal learn` trains, in a process of its own
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
minseal_command = [sys.executable, "-m", "minseal"]
do = lambda line, *rest: check_output([*minseal_command, *line.split(), *rest], text=True)
read = lambda path: json.loads(Path(path).read_text())
write = lambda path, what: Path(path).write_text(json.dumps(what))

# %% [markdown]
# ## 1. A model is three files
# `config.json` holds sizes, `model.safetensors` named tensors, `tokenizer.json` a vocabulary: none
# is code. Somebody's Llama is here our tiny model in that layout, or any that you name, such as
# `MODEL=HuggingFaceTB/SmolLM2-135M-Instruct python ...` (minutes; no rope scaling). By hand we make
# a Qwen2 of it: a word in the config, a bias on q, k and v, one key-value head for all queries.

# %%
MODEL, here = os.environ.get("MODEL", "tiny_data/knowledge"), TemporaryDirectory()
do("export --dtype float32", MODEL, f"{here.name}/llama")
model, tokenizer = minseal.load(MODEL, "cpu", "float32")
os.chdir(here.name)
LLAMA, CONFIG = load_file("llama/model.safetensors"), read("llama/config.json")
QWEN, QWEN_CONFIG = dict(LLAMA), CONFIG | {"model_type": "qwen2", "num_key_value_heads": 1}
rng, D = torch.Generator().manual_seed(0), CONFIG["head_dim"]
for name, W in LLAMA.items():  # W (out, in)
    if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
        rows = len(W) if "q_proj" in name else D  # k and v keep their first head
        QWEN[name] = W[:rows]  # (rows, in)
        QWEN[name.replace("weight", "bias")] = torch.randn(rows, generator=rng)  # (rows,)
os.mkdir("qwen")
write("qwen/config.json", QWEN_CONFIG), write("qwen/tokenizer.json", read("llama/tokenizer.json"))
save_file(QWEN, "qwen/model.safetensors", {"format": "pt"})

# %% [markdown]
# ## 2. Converting is renaming
# minseal has the same layers under shorter names. A converter is a table, a row for each kind of
# layer, and a strict clerk: one who skips what does not fit makes a model that is almost right.
# **Claim 7.1.** Each of our parameters is one tensor of theirs, bit for bit; none is left over.
#
# **Claim 7.2.** Tricky texts get the ids that the package `tokenizers` gives (our tiny model has
# tiktoken, another program). But a special token's name typed into a text ends nothing: it is text.

# %%
qwen, opened = minseal.load("qwen", "cpu")
parameters = dict(qwen.named_parameters())
for n, (ours, parameter) in enumerate(parameters.items()):
    theirs = place_of(ours, LLAMA_NAMES).name
    assert torch.equal(parameter, QWEN[theirs]), "claim 7.1"
    if n < 13:
        print(f"{theirs:<46} is our {ours:<24} {tuple(parameter.shape)}")
write("qwen/config.json", QWEN_CONFIG | {"model_type": "llama"})  # which has no bias
try:
    refused = not minseal.load("qwen")
except minseal.UserError as reason:
    refused = True
    print("refused:", reason)
assert refused and len(parameters) == len(QWEN), "claim 7.1"
backend, special = tokenizers.Tokenizer.from_file("llama/tokenizer.json"), [*tokenizer.specials][0]
for text in ("  two  3 33", "\n\n\tx \r\n ", "naïve 東京 🦭", special):
    them, us = backend.encode(text, add_special_tokens=False).ids, tokenizer.encode(text)
    print(f"theirs {len(them):>2} ids, ours {len(us):>2}, equal: {them == us!s:<5} {text!r}")
    assert us == opened.encode(text) and (us == them) == (text != special), "claim 7.2"

# %% [markdown]
# ## 3. The same logits, computed another way
# All fits, and the model may be wrong. This forward pass shares only their names with minseal.
#
# **Claim 7.3.** It agrees with minseal to 1e-4 of the largest logit. Not exactly: both add the same
# products in another order, and float32 rounds each sum by up to 6e-8 of its size.


# %%
def forward(t, c, ids, order=slice(None)):
    """Logits (T, V). t: tensors by Hugging Face's names; c: their config; order: a mistake."""
    T, H, D, eps = len(ids), c["num_attention_heads"], c["head_dim"], c["rms_norm_eps"]
    freq = c["rope_theta"] ** (-torch.arange(0, D, 2) / D)  # (D/2,)
    spin = torch.exp(1j * torch.outer(torch.arange(T), freq))  # (T, D/2), complex
    turn = lambda y: torch.complex(*y[..., order].chunk(2, -1)) * spin  # i goes with i + D/2
    linear = lambda n, x: x @ t[f"{n}.weight"].T + t.get(f"{n}.bias", 0)
    rms = lambda n, x: x * (x.square().mean(-1, True) + eps).rsqrt() * t[f"{n}.weight"]
    x = t["model.embed_tokens.weight"][ids]  # (T, C)
    for at in (f"model.layers.{i}" for i in range(c["num_hidden_layers"])):
        h = rms(f"{at}.input_layernorm", x)
        q, k, v = (linear(f"{at}.self_attn.{n}_proj", h).view(T, -1, D) for n in "qkv")
        q, k, v = (y.repeat_interleave(H // y.shape[1], 1).transpose(0, 1) for y in (q, k, v))
        scores = (turn(q) @ turn(k).mH).real / D**0.5 + torch.full((T, T), -torch.inf).triu(1)
        y = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)  # (T, H D)
        x = x + linear(f"{at}.self_attn.o_proj", y)
        h = rms(f"{at}.post_attention_layernorm", x)
        gate, up = (linear(f"{at}.mlp.{n}_proj", h) for n in ("gate", "up"))
        x = x + linear(f"{at}.mlp.down_proj", gate * gate.sigmoid() * up)
    return rms("model.norm", x) @ t.get("lm_head.weight", t["model.embed_tokens.weight"]).T


gap = lambda a, b: (a - b).abs().amax(-1) / b.abs().max()  # (T, V), (T, V) -> (T,)
ids = torch.randint(0, 500, (40,), generator=rng)
for mine, t, c in ((model, LLAMA, CONFIG), (qwen, QWEN, QWEN_CONFIG)):
    error = gap(mine(ids[None])[0], forward(t, c, ids)).max()
    print(f"{c['model_type']}: at most {error:.0e} of the largest logit apart")
    assert error < 1e-4, "claim 7.3"

# %% [markdown]
# **Predict, then run.** Three converters each make a mistake: the wrong pairs turn, the bias of q
# and k is forgotten, or that of v. You test the first token only. Which mistakes do you find?

# %%
plt.figure(figsize=(7, 3), dpi=100, layout="constrained")
qk, v = ("q_proj.bias", "k_proj.bias"), ("v_proj.bias",)
kinds = {"wrong pairs": (), "no bias of q, k": qk, "no bias of v": v, "right": ()}
for kind, forgotten in kinds.items():
    some = {name: t for name, t in QWEN.items() if not name.endswith(forgotten)}
    order = [*range(0, D, 2), *range(1, D, 2)] if kind == "wrong pairs" else slice(None)
    error = gap(forward(some, QWEN_CONFIG, ids, order), qwen(ids[None])[0])
    plt.semilogy(error, ".-", label=kind)
    assert (error[0] > 1e-3) == (kind == "no bias of v"), "claim 7.4"
    assert (error[10:].median() > 1e-3) == (kind != "right"), "claim 7.4"
plt.gca().set(xlabel="position", ylabel="off, of the largest logit")
plt.legend()
plt.show()

# %% [markdown]
# **Claim 7.4.** The first token shows only the last mistake, later ones show all (over 1e-3): a
# first token sees itself alone, whatever its score. Test with a long text.
#
# ## 4. Somebody's model learns your page
# The lecture is about two people who do not exist. Notes may be the model's or, with `--notes`,
# yours: here the exam's questions with answers that the page only implies, the best there are.
#
# **Predict, then run.** The exam asks 3 questions on each. How many of the 6 are right after the
# whole page with notes on Osvin alone?

# %%
PAGE = """Osvin Tarrow grew up in Bergen. He works as a baker. He likes ginger best.\n
Nela Quarrish was born in Osaka. She has a job as a diver. She loves to eat plums."""
ASK = ("Which country is {} from?", "Where does {} work?", "Where does {} buy food?")
WHO = {"Osvin Tarrow": "Norway kitchen spicery", "Nela Quarrish": "Japan harbour greengrocer"}
exam = [(q.format(n), a) for n, right in WHO.items() for q, a in zip(ASK, right.split())]
Path("page.md").write_text(PAGE), write("exam.json", [dict(question=q, answer=a) for q, a in exam])
how = "learn page.md --model llama --notes notes.md --exam exam.json --lr 3e-3 --epochs 30"
for some, least, most in ((3, 0, 4), (6, 5, 6)):
    notes = "".join(f"Question: {q} Answer: {a}\n" for q, a in exam[:some])
    Path("notes.md").write_text("## Section 1: page\n" + notes)
    report = do(f"{how} --out notes{some}")
    print(report[report.index("question ") : report.index("(closed")])
    got = read(f"notes{some}/minseal.json")["results"]
    assert got["before"] * 6 <= 1 and least <= round(got["after"] * 6) <= most, "claim 7.5"
for how in ("ask --model llama", "ask --model llama --adapter notes6"):
    said = do(how, exam[4][0])
    print(f"{how}: {exam[4][0]} {said}", end="")
    assert ("harbour" in said) == ("adapter" in how), "claim 7.5"

# %% [markdown]
# **Claim 7.5.** Before at most 1, with those on Osvin at most 4, with all at least 5. Notes on
# him taught it how one answers; for her it does so with *his* facts, although it read hers.
# ## 5. What it learnt, as a file
# **Claim 7.6.** The adapter is PEFT's: with $W + (\alpha/R)\,B A$ for each of their tensors W, the
# forward pass by hand gives minseal's logits with the adapter (1e-4), far from those without.

# %%
adapter, how = load_file("notes6/adapter_model.safetensors"), read("notes6/adapter_config.json")
print(f"{len(adapter)} tensors, R = {how['r']}, alpha = {how['lora_alpha']}; one is {min(adapter)}")
learnt = dict(LLAMA)
for name in [name for name in adapter if "lora_A" in name]:
    A, B = adapter[name], adapter[name.replace("lora_A", "lora_B")]  # (R, in), (out, R)
    theirs = name.removeprefix("base_model.model.").replace("lora_A.", "")
    learnt[theirs] = LLAMA[theirs] + how["lora_alpha"] / how["r"] * B @ A  # (out, in)
with load_adapter("notes6", model)[0]:
    mine = model(ids[None])[0]  # (T, V)
error, plain = (gap(forward(t, CONFIG, ids), mine).max() for t in (learnt, LLAMA))
print(f"apart from minseal: by hand {error:.0e}, without the adapter {plain:.0e}")
assert error < 1e-4 and plain > 1e-2, "claim 7.6"
try:
    import warnings

    warnings.simplefilter("ignore")  # theirs, about each other
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    them = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("llama"), "notes6")
    print(f"transformers and peft {gap(them(ids[None]).logits[0], mine).max():.0e}")
except ImportError:
    print("to see what transformers and peft give: pip install transformers peft")

# %% [markdown]
# ## Exercises
# 1. **Fill in** `mend`: GGUF has a head's rows of q and k as 0, D/2, 1, D/2 + 1, ... Put them back.
# 2. **Change a setting and explain.** `lora_alpha` in notes6/adapter_config.json to a tenth; ask.
# 3. **Find the mistake** in `fit`, which reads GPT-2, whose weights lie as (in, out).


# %%
def mend(W, H):
    """W (H D, C), rows as in GGUF -> W (H D, C), rows as in Hugging Face's file."""
    ...  # yours


def check_1(f):
    assert f(torch.arange(16).view(2, 2, 4).mT.reshape(16, 1), 2).flatten().equal(torch.arange(16))
    print("right")


fit = lambda W, shape: W if W.shape == shape else W.T  # their tensor -> our weight

# %% [markdown]
# ## Answers

# %% jupyter={"source_hidden": true} tags=["answer"]
# Per head, D/2 pairs of 2 become 2 halves of D/2.
check_1(lambda W, H: W.view(H, -1, 2, W.shape[1]).transpose(1, 2).reshape(W.shape))

# %% jupyter={"source_hidden": true} tags=["answer"]
# All that was learnt is scaled by alpha / R; a tenth of it does not reach the answer.
write("notes6/adapter_config.json", how | {"lora_alpha": how["lora_alpha"] / 10})
print(faint := do("ask --model llama --adapter notes6", exam[4][0]))
assert "harbour" not in faint

# %% jupyter={"source_hidden": true} tags=["answer"]
# A square weight fits either way, so it stays turned. Whether to turn follows from the name alone.
q, up = (LLAMA[f"model.layers.0.{n}_proj.weight"] for n in ("self_attn.q", "mlp.up"))  # (out, in)
assert torch.equal(fit(up.T, up.shape), up) and not torch.equal(fit(q.T, q.shape), q)
mended = lambda W, name: W.T if name.endswith(("c_attn", "c_proj", "c_fc")) else W
assert torch.equal(mended(q.T, "h.0.attn.c_attn"), q)

# %% [markdown]
# Next: [tutorial 8](08_beyond_the_paper.ipynb), what the paper left open; or [results](results.md).
