"""Ask a model, with an adapter or without."""

from dataclasses import dataclass

from .adapters import load_adapter
from .errors import UserError, at_least, one_of
from .outer import mix_seed
from .sample import sample
from .tasks.knowledge import Context, Knowledge
from .weights import DTYPES, load


@dataclass(frozen=True)
class AskConfig:
    """Ask a model, with an adapter or without: `ask` one question, `chat` line by line. With an adapter, or without a chat format, a question is asked as in exams."""

    model: str = ""  # a folder (minseal's own or Hugging Face's), a GGUF file, or a hub id such as owner/name
    adapter: str = ""  # folder of an adapter: `minseal learn` makes one, PEFT too
    max_tokens: int = 128  # longest answer
    temperature: float = 0.0  # 0: the likeliest token each time
    seed: int = 0  # of sampling
    device: str = "auto"  # auto | cpu | cuda: auto takes a GPU if there is one
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16: of the model's weights; auto: as they are stored

    def __post_init__(self):
        at_least(self, max_tokens=1, temperature=0, seed=0)
        one_of(self, dtype=("auto", *DTYPES))


def opened(config):
    """(model, tokenizer), the adapter attached."""
    if not config.model:
        raise UserError("which model? --model FOLDER, GGUF file or hub id")
    model, tokenizer = load(config.model, config.device, config.dtype)
    if config.adapter:
        load_adapter(config.adapter, model, config.model)
    return model, tokenizer


def ask(config, question):
    """The answer to one question: asked as the exam asks if there is an adapter (or no chat format), else as a turn of a chat."""
    model, tokenizer = opened(config)
    return answer(
        model,
        tokenizer,
        config,
        [("user", question)],
        as_exam=bool(config.adapter) or not tokenizer.chat,
        seed=config.seed,
    )


def answer(model, tokenizer, config, turns, as_exam, seed):
    """What the model says to the last of the turns [(role, text), ...]; early turns that it has no room for are left out."""
    task, room = Knowledge(tokenizer), model.config.block_size - 1
    while True:
        if as_exam:  # the form in which notes and exams ask
            (prompt,), stop = (
                task.exam(Context("asked", "", "", ((turns[-1][1], ("",)),))),
                task.stop,
            )
        else:
            prompt, stop = tokenizer.turns(turns), None
        if len(prompt) <= room - (config.max_tokens if len(turns) > 1 and not as_exam else 0):
            break
        if as_exam or len(turns) == 1:
            raise UserError(
                f"the question has {len(prompt)} tokens; the model reads {model.config.block_size}"
            )
        turns = turns[2:]
    most = min(config.max_tokens, model.config.block_size - len(prompt))
    return sample(model, tokenizer, [prompt], 1, most, config.temperature, stop=stop, seed=seed)[0][
        0
    ].strip()


def chat(config, read=input, say=print):
    """Line by line until an empty line or the end of the input. With an adapter, or without a chat format, each line is a question of its own."""
    model, tokenizer = opened(config)
    turns = []
    say("an empty line ends the chat")
    while line := _line(read):
        turns.append(("user", line))
        said = answer(
            model,
            tokenizer,
            config,
            turns,
            bool(config.adapter) or not tokenizer.chat,
            mix_seed(config.seed, len(turns)),
        )
        say(said)
        turns.append(("assistant", said))


def _line(read):
    try:
        return read("> ").strip()
    except EOFError:
        return ""
