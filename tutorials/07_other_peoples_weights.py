# %% [markdown]
# # 7. Other people's weights
#
# **You need** `pip install -e ".[weights,plots]"`, and GPT, LoRA and notes from the tutorials before.
#
# **It takes** about 17 s of computing on one core, and an hour of yours.
#
# **You will see** what a model folder from Hugging Face holds, how you know that a conversion is
# right, which mistakes a short test misses, and how such a model learns a page of yours.
#
# **In the code:** [families.py](../minseal/open_models/families.py) and the files beside it,
# [learn.py](../minseal/commands/learn.py). LoRA (arXiv 2106.09685), section 4.1; SEAL, section 3.1.

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
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import minseal
from minseal.open_models.families import LLAMA_NAMES, place_of
from minseal.open_models.peft import load_adapter

torch.set_num_threads(1)  # matrices this small: a second thread only waits
torch.set_grad_enabled(False)  # `minseal learn` trains, in a process of its own
os.environ |= {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
do = lambda w, *q: check_output([sys.executable, "-m", "minseal", *w.split(), *q], text=True)
read = lambda path: json.loads(Path(path).read_text())
write = lambda path, what: Path(path).write_text(json.dumps(what))

# %% [markdown]
# ## 1. A model is three files
#
# `config.json` holds sizes, `model.safetensors` named tensors, `tokenizer.json` how text becomes
# numbers. None of it is code. Somebody's Llama is here our tiny model, exported to that layout; with
# `MODEL=HuggingFaceTB/SmolLM2-135M-Instruct` in the environment it is that one (or another Llama
# without rope scaling: hub id, folder or GGUF file; it takes minutes). By hand we make a Qwen2 of
# it: a word in the config, a bias on q, k and v, and one key-value head for all query heads.

# %%
MODEL, here = os.environ.get("MODEL", "tiny_data/knowledge"), TemporaryDirectory()
do("export --dtype float32", MODEL, f"{here.name}/llama")
model, tokenizer = minseal.load(MODEL, "cpu", "float32")
os.chdir(here.name)
LLAMA, CONFIG = load_file("llama/model.safetensors"), read("llama/config.json")
QWEN, QWEN_CONFIG = dict(LLAMA), CONFIG | {"model_type": "qwen2", "num_key_value_heads": 1}
rng = torch.Generator().manual_seed(0)
for at in (f"model.layers.{i}.self_attn." for i in range(CONFIG["num_hidden_layers"])):
    for n, rows in (("q", None), ("k", CONFIG["head_dim"]), ("v", CONFIG["head_dim"])):
        W = QWEN[f"{at}{n}_proj.weight"] = LLAMA[f"{at}{n}_proj.weight"][:rows]  # (out, in)
        QWEN[f"{at}{n}_proj.bias"] = torch.randn(len(W), generator=rng)  # (out,)
os.mkdir("qwen")
write("qwen/config.json", QWEN_CONFIG), write("qwen/tokenizer.json", read("llama/tokenizer.json"))
save_file(QWEN, "qwen/model.safetensors", {"format": "pt"})

# %% [markdown]
# ## 2. Converting is renaming
#
# minseal has the same layers under shorter names. A converter is a table, a row for each kind of
# layer, and a strict clerk: one who skips what does not fit makes a model that is almost right.
#
# **Claim 7.1.** Each of our parameters is one tensor of theirs, bit for bit; none is left over.

# %%
for n, (ours, p) in enumerate((qwen := minseal.load("qwen", "cpu")[0]).named_parameters(), 1):
    assert torch.equal(p, QWEN[theirs := place_of(ours, LLAMA_NAMES).name]), "claim 7.1"
    if n <= 13:
        print(f"{theirs:<46} is our {ours:<24} {tuple(p.shape)}")
assert n == len(QWEN), "claim 7.1"
write("qwen/config.json", QWEN_CONFIG | {"model_type": "llama"})  # which has no bias
try:
    raise AssertionError(f"claim 7.1: {minseal.load('qwen')}")
except minseal.UserError as e:
    print("refused:", e)

# %% [markdown]
# ## 3. The same logits, computed another way
#
# All can fit and the model be wrong: what counts is what it computes. Here is a forward pass that
# shares no line with minseal and knows their names only.
#
# **Claim 7.2.** It agrees with minseal to 1e-4 of the largest logit. Not exactly: both add the same
# products in another order, and float32 rounds each sum by up to 6e-8 of its size.


# %%
def forward(t, c, ids, pairs=False):
    """Logits (T, V). t: tensors by Hugging Face's names; c: their config; pairs: a mistake."""
    T, H, D, eps = len(ids), c["num_attention_heads"], c["head_dim"], c["rms_norm_eps"]
    angle = torch.outer(
        torch.arange(T), c["rope_theta"] ** (-torch.arange(0, D, 2) / D)
    )  # (T, D/2)
    two = lambda y: (y[..., ::2], y[..., 1::2]) if pairs else y.chunk(2, -1)  # i and i + D/2
    turn = lambda y: torch.complex(*two(y)) * torch.polar(torch.ones_like(angle), angle)
    linear = lambda n, x: F.linear(x, t[f"{n}.weight"], t.get(f"{n}.bias"))
    rms = lambda n, x: x * (x.square().mean(-1, True) + eps).rsqrt() * t[f"{n}.weight"]
    x = t["model.embed_tokens.weight"][ids]  # (T, C)
    for at in (f"model.layers.{i}" for i in range(c["num_hidden_layers"])):
        h = rms(f"{at}.input_layernorm", x)
        q, k, v = (linear(f"{at}.self_attn.{n}_proj", h).view(T, -1, D) for n in "qkv")
        q, k, v = (y.repeat_interleave(H // y.shape[1], 1).transpose(0, 1) for y in (q, k, v))
        scores = (turn(q) @ turn(k).mH).real / D**0.5 + torch.full((T, T), -torch.inf).triu(1)
        x = x + linear(
            f"{at}.self_attn.o_proj", (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        )
        h = rms(f"{at}.post_attention_layernorm", x)
        gate, up = (linear(f"{at}.mlp.{n}_proj", h) for n in ("gate", "up"))
        x = x + linear(f"{at}.mlp.down_proj", F.silu(gate) * up)
    return F.linear(rms("model.norm", x), t.get("lm_head.weight", t["model.embed_tokens.weight"]))


gap = lambda a, b: (a - b).abs().amax(-1) / b.abs().max()  # (T, V), (T, V) -> (T,)
ids = torch.randint(0, 500, (40,), generator=rng)
for mine, t, c in ((model, LLAMA, CONFIG), (qwen, QWEN, QWEN_CONFIG)):
    error = gap(mine(ids[None])[0], forward(t, c, ids)).max()
    print(f"{c['model_type']}: at most {error:.0e} of the largest logit apart")
    assert error < 1e-4, "claim 7.2"

# %% [markdown]
# **Predict, then run.** Three converters each make a mistake: the wrong pairs turn, the bias of q
# and k is forgotten, or that of v. You test the first token only. Which mistakes do you find?
#
# **Claim 7.3.** The first two are right at the first token, and off by over 1e-2 later.

# %%
wrong = {"wrong pairs turn": forward(QWEN, QWEN_CONFIG, ids, pairs=True)}
for name in ("qk", "v", "nothing"):
    some = {n: t for n, t in QWEN.items() if n[-5:] != ".bias" or n[-11] not in name}
    wrong[f"no bias of {name}"] = forward(some, QWEN_CONFIG, ids)
plt.figure(figsize=(7, 3), dpi=100)
for name, logits in wrong.items():
    plt.semilogy(error := gap(logits, qwen(ids[None])[0]), ".-", label=name)
    if name in ("wrong pairs turn", "no bias of qk"):
        assert error[0] < 1e-4 and error[10:].median() > 1e-2, "claim 7.3"
plt.xlabel("position"), plt.ylabel("off, of the largest logit"), plt.legend(), plt.show()

# %% [markdown]
# Only the last. The first token sees itself alone, with weight 1 whatever its score: what makes
# scores is invisible there. Test with a long text.
#
# ## 4. Text stays text
#
# **Claim 7.4.** Tricky texts get the ids that the package `tokenizers` gives (our tiny model has
# tiktoken, another program). But a special token's name, typed by somebody, ends nothing: it is text.

# %%
backend, special = tokenizers.Tokenizer.from_file("llama/tokenizer.json"), [*tokenizer.specials][0]
for text in ("  two  3 33", "\n\n\tx \r\n ", "naïve 東京 🦭", special):
    them, us = backend.encode(text, add_special_tokens=False).ids, tokenizer.encode(text)
    print(f"theirs {len(them):>2} ids, ours {len(us):>2}, equal: {them == us!s:<5} {text!r}")
    assert (us == them) == (text != special) and tokenizer.decode(us) == text, "claim 7.4"

# %% [markdown]
# ## 5. Somebody's model learns your page
#
# The lecture is about two people who do not exist. Notes may be the model's or, with `--notes`,
# yours. These state the exam's questions with answers that the page only implies: the best notes
# there are. They show that the way works, not that the model can read.
#
# **Predict, then run.** The exam asks 3 questions on each. How many of the 6 are right after the
# whole page with notes on the first person alone?
#
# **Claim 7.5.** Before at most 1, with notes on one person at most 4, with all notes at least 5.

# %%
PAGE = """Osvin Tarrow grew up in Bergen. He works as a baker. He likes ginger best.\n
Nela Quarrish was born in Osaka. She has a job as a diver. She loves to eat plums."""
ASK = ("Which country is {} from?", "Where does {} work?", "Where does {} buy food?")
WHO = {"Osvin Tarrow": "Norway kitchen spicery", "Nela Quarrish": "Japan harbour greengrocer"}
exam = [(q.format(n), a) for n, right in WHO.items() for q, a in zip(ASK, right.split())]
write("exam.json", [{"question": q, "answer": a} for q, a in exam])
Path("page.md").write_text(PAGE)
how = "learn page.md --model llama --notes notes.md --exam exam.json"
how += " --lr 3e-3 --epochs 30" if MODEL.startswith("tiny") else ""  # a small model learns slowly
for some, least, most in ((3, 0, 4), (6, 5, 6)):
    notes = "".join(f"Question: {q} Answer: {a}\n" for q, a in exam[:some])
    Path("notes.md").write_text("## Section 1: page\n" + notes)
    print((told := do(f"{how} --out notes{some}"))[told.index("question ") : told.index("(closed")])
    got = read(f"notes{some}/minseal.json")["results"]
    assert got["before"] * 6 <= 1 and least <= round(got["after"] * 6) <= most, "claim 7.5"
for adapter in ("", "--adapter notes6"):
    print(f"{exam[4][0]} {adapter}: {do(f'ask --model llama {adapter}', exam[4][0])}", end="")

# %% [markdown]
# 3 of 6. From notes on Osvin the model learnt how such questions are answered, and answers so for
# Nela, though it trained on her sentences, too.
#
# ## 6. What it learnt, as a file
#
# **Claim 7.6.** The adapter is PEFT's: with $W + (alpha/R) B A$ in place of each of their tensors,
# our forward pass gives minseal's logits with the adapter (1e-4, as above), far from those without.

# %%
adapter, how = load_file("notes6/adapter_model.safetensors"), read("notes6/adapter_config.json")
print(f"{len(adapter)} tensors, R = {how['r']}, alpha = {how['lora_alpha']}, such as")
print(*(f"{n:<62} {tuple(t.shape)}" for n, t in sorted(adapter.items())[:2]), sep="\n")
learnt = dict(LLAMA)
for name in (n for n in adapter if "lora_A" in n):
    theirs = name.removeprefix("base_model.model.").replace("lora_A.", "")
    BA = adapter[name.replace("lora_A", "lora_B")] @ adapter[name]  # (out, R) (R, in) = (out, in)
    learnt[theirs] = LLAMA[theirs] + how["lora_alpha"] / how["r"] * BA
with load_adapter("notes6", model)[0]:
    mine = model(ids[None])[0]  # (T, V)
error, plain = (gap(forward(t, CONFIG, ids), mine).max() for t in (learnt, LLAMA))
print(f"apart from minseal: by hand {error:.0e}, without the adapter {plain:.0e}")
assert error < 1e-4 and plain > 1e-2, "claim 7.6"
try:
    from peft import AutoPeftModelForCausalLM as Both

    error = gap(
        Both.from_pretrained("notes6", dtype=torch.float32)(ids[None]).logits[0], mine
    ).max()
    print(f"transformers and peft: {error:.0e}")
except ImportError:
    print("to see what transformers and peft give: pip install transformers peft")

# %% [markdown]
# ## 7. Will it fit?
#
# Sizes alone tell, on the device `meta`, which has no memory. In bfloat16 a weight takes 2 bytes.
# `learn` adds 24 bytes for each number of the adapter (itself, its gradient, two of Adam, two in
# moving) and what the backward pass keeps; to train all weights takes 16 bytes each.
#
# **Claim 7.7.** The counts are those that these models' makers state.

# %%
for name, n, *c in (  # V, longest text, layers, H, H_kv, C, D, width of the MLP
    ("SmolLM2-135M", 134_515_008, 49152, 8192, 30, 9, 3, 576, 64, 1536),
    ("Llama-3.2-1B", 1_235_814_400, 128256, 8192, 16, 32, 8, 2048, 64, 8192),
):
    with torch.device("meta"):
        big = minseal.GPT(minseal.GPTConfig(*c))
    assert big.size() == n, "claim 7.7"
    layers = [m for m in big.blocks.modules() if isinstance(m, torch.nn.Linear)]
    lora = 16 * sum(m.in_features + m.out_features for m in layers)  # R = 16
    print(
        f"{name}: {n / 1e6:.0f} M weights {2 * n / 1e9:.2f} GB, LoRA of {lora / 1e6:.1f} M "
        f"{24 * lora / 1e9:.2f} GB, training all {16 * n / 1e9:.1f} GB"
    )

# %% [markdown]
# ## Exercises
#
# 1. **Fill in** `mend`: in GGUF files of Llamas the rows of q and k that turn together lie side by
#    side in each head (0, D/2, 1, D/2 + 1, ...). Put them back.
# 2. **Change** `lora_alpha` in notes6 to a tenth and ask again. Explain.
# 3. **Find the mistake** in `fit`, which reads GPT-2, whose weights lie as (in, out).


# %%
def mend(W, H):
    """W (H D, C), rows as in GGUF -> W (H D, C), rows as in Hugging Face's file."""
    ...  # yours


def check_1(f):
    rows = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15])[:, None]  # (H D, 1)
    assert f(rows, 2).flatten().tolist() == [*range(16)]
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
assert "harbour" not in faint or not MODEL.startswith("tiny")

# %% jupyter={"source_hidden": true} tags=["answer"]
# A square weight fits either way, so it stays turned. Whether to turn follows from the name alone.
q, up = (LLAMA[f"model.layers.0.{n}_proj.weight"] for n in ("self_attn.q", "mlp.up"))  # (out, in)
assert torch.equal(fit(up.T, up.shape), up) and not torch.equal(fit(q.T, q.shape), q)
mended = lambda W, name: W.T if name.endswith(("c_attn", "c_proj", "c_fc")) else W
assert torch.equal(mended(q.T, "h.0.attn.c_attn"), q)

# %% [markdown]
# Read on: [README](../README.md), Commands and Add an experiment; [results](results.md) says how
# SEAL fared on SmolLM2 and SQuAD: it did not work there, and why is a question worth yours.
