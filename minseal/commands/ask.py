"""Ask a model, with an adapter or without."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ..config import ModelConfig, mix_seed
from ..files import UserError, first_line
from ..model import GPT
from ..open_models.load import load
from ..open_models.peft import load_adapter
from ..sample import sample
from ..tasks.knowledge import Knowledge
from ..tasks.passages import Passage
from ..terminal import say
from ..tokenizer import Tokenizer

Turns = list[tuple[str, str]]  # [(role, text), ...]


@dataclass(frozen=True)
class AskConfig(ModelConfig):
    """Ask a model, with an adapter or without: `ask` one question, `chat` line by line.

    With an adapter, or without a chat format, a question is asked as in exams.
    """

    adapter: str = ""  # folder of an adapter: `minseal learn` makes one, PEFT too
    max_tokens: int = 128  # longest answer
    temperature: float = 0.0  # 0: the likeliest token each time
    seed: int = 0  # of sampling

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(max_tokens=1, temperature=0, seed=0)


def ask(config: AskConfig, question: str) -> str:
    """The answer to one question."""
    return answer(*open_model(config), config, [("user", question)], config.seed)


def chat(
    config: AskConfig, read: Callable[[str], str] = input, say: Callable[[str], None] = say
) -> None:
    """Line by line until an empty line or the end of the input; an error ends its turn only."""
    model, tokenizer = open_model(config)
    turns: Turns = []
    say("an empty line ends the chat")
    with suppress(EOFError):
        while line := read("> ").strip():
            turns.append(("user", line))
            try:
                said = answer(model, tokenizer, config, turns, mix_seed(config.seed, len(turns)))
            except (UserError, RuntimeError) as e:  # too long, or no memory left
                say(f"error: {first_line(e)}")
                turns.pop()
                continue
            say(said)
            turns.append(("assistant", said))


def open_model(config: AskConfig) -> tuple[GPT, Tokenizer]:
    """(model, tokenizer), the adapter attached."""
    if not config.model:
        raise UserError("which model? --model FOLDER, GGUF file or hub id")
    model, tokenizer = load(config.model, config.device, config.dtype)
    if config.adapter:
        load_adapter(config.adapter, model, config.model)
    return model, tokenizer


def answer(model: GPT, tokenizer: Tokenizer, config: AskConfig, turns: Turns, seed: int) -> str:
    """What the model says to the last of the turns; early ones it has no room for are left out."""
    reads = model.config.block_size
    if config.adapter or not tokenizer.chat:  # the form in which notes and exams ask
        task = Knowledge(tokenizer)
        (prompt,) = task.exam(Passage("asked", "", "", ((turns[-1][1], ("",)),)))
        stop = task.stop
    else:
        prompt, stop = tokenizer.turns(turns), None
        while len(turns) > 1 and len(prompt) + config.max_tokens >= reads:
            turns = turns[2:]
            prompt = tokenizer.turns(turns)
    if len(prompt) >= reads:
        raise UserError(f"the question has {len(prompt)} tokens; the model reads {reads}")
    most = min(config.max_tokens, reads - len(prompt))
    how = dict(temperature=config.temperature, stop=stop, seed=seed)
    return sample(model, tokenizer, [prompt], 1, most, **how)[0][0].strip()
