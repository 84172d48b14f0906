"""Ask a model, with an adapter or without; chat with one that learns while you talk."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ..config import ModelConfig, mix_seed
from ..files import UserError, first_line
from ..lab.agent import Edit
from ..lab.agent_folder import FolderAgent, open_agent, task_for
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


@dataclass(frozen=True)
class ChatConfig(AskConfig):
    """Ask a model, with an adapter or without: `ask` one question, `chat` line by line.

    With an adapter, or without a chat format, a question is asked as in exams. With --agent FOLDER
    the model learns while you talk: /learn TEXT, /undo the last, /what it learnt. It learns answers
    to questions that it asks itself about the text. They may be wrong: look at them.
    """

    agent: str = ""  # folder of an agent, made of --model at first: it learns while you talk


def ask(config: AskConfig, question: str) -> str:
    """The answer to one question."""
    return answer(*open_model(config), config, [("user", question)], config.seed)


def chat(
    config: ChatConfig, read: Callable[[str], str] = input, say: Callable[[str], None] = say
) -> None:
    """Line by line until an empty line or the end of the input; an error ends its turn only."""
    agent = open_agent_of(config) if config.agent else None
    model, tokenizer = (agent.model, agent.task.tokenizer) if agent else open_model(config)
    turns: Turns = []
    if agent:
        say(f"{AGENT}; {sum(edit.kept for edit in agent.edits)} edits so far")
    say("an empty line ends the chat")
    with suppress(EOFError):
        while line := read("> ").strip():
            try:
                if agent and line.startswith("/"):
                    say(obey(agent, line, turns))
                    continue
                turns.append(("user", line))
                seed, task = mix_seed(config.seed, len(turns)), agent and agent.task
                said = answer(model, tokenizer, config, turns, seed, task)
            except (UserError, RuntimeError) as e:  # too long, or no memory left
                say(f"error: {first_line(e)}")
                turns = turns[:-1] if turns[-1:] == [("user", line)] else turns
                continue
            say(said)
            turns.append(("assistant", said))


AGENT = "/learn TEXT, or /learn alone for what you said last; /undo; /what lists its edits"


def open_agent_of(config: ChatConfig) -> FolderAgent:
    if config.adapter:
        raise UserError("--agent has adapters of its own: leave out --adapter")
    return open_agent(config.agent, config.model, config.device, config.dtype)


def obey(agent: FolderAgent, line: str, turns: Turns) -> str:
    """Do what a line that begins with / wants; returns what to say. Ctrl-C stops learning only."""
    word, _, text = line.partition(" ")
    if word == "/what":
        return "\n".join(map(show_edit, agent.edits)) or "it has learnt nothing yet"
    if word == "/undo":
        edit = agent.undo()
        return f"taken back: {edit.text}" if edit else "there is no edit to take back"
    if word != "/learn":
        raise UserError(f"{word:.40} is unknown: {AGENT}")
    text = text.strip() or next((t for role, t in reversed(turns) if role == "user"), "")
    if not text:
        raise UserError("what shall it learn? /learn TEXT")
    number = len(agent.edits)
    try:
        return show_edit(agent.learn(text))
    except KeyboardInterrupt:
        agent.read()  # what lies in the folder counts: the edit is there as a whole, or is not
        done = len(agent.edits) > number
        return "stopped; it was learnt already: /undo" if done else "stopped: nothing was learnt"


def show_edit(edit: Edit) -> str:
    head = f"{'kept' if edit.kept else 'rejected'} ({edit.why}): {edit.text}"
    return "\n".join([head, *(f"  {q} {a}" for q, a in edit.questions.items())])


def open_model(config: AskConfig) -> tuple[GPT, Tokenizer]:
    """(model, tokenizer), the adapter attached."""
    if not config.model:
        raise UserError("which model? --model FOLDER, GGUF file or hub id")
    model, tokenizer = load(config.model, config.device, config.dtype)
    if config.adapter:
        load_adapter(config.adapter, model, config.model)
    return model, tokenizer


def answer(
    model: GPT,
    tokenizer: Tokenizer,
    config: AskConfig,
    turns: Turns,
    seed: int,
    task: Knowledge | None = None,
) -> str:
    """What the model says to the last of the turns; early ones it has no room for are left out.

    task: has the form in which an agent was asked and learnt.
    """
    reads = model.config.block_size
    if task or config.adapter or not tokenizer.chat:  # the form in which notes and exams ask
        # `learn` taught an adapter in the form of Knowledge, whatever pretraining's was.
        task = task or (Knowledge(tokenizer) if config.adapter else task_for(tokenizer))
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
