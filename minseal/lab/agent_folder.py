"""An agent in a folder, which outlives the process: a kill leaves it before an edit, or after it.

agent.json   its model, its settings, what it knew before it was told anything
edits/0001/  edit.json and, if it was kept, adapter.pt: both are written at once, or none
"""

import os
import secrets
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ..config import from_json
from ..files import (
    OURS,
    Lock,
    UserError,
    first_line,
    flush,
    hold,
    is_empty,
    load_tensors,
    read_json,
    tidy,
    write_folder,
    write_json,
    write_tensors,
)
from ..open_models.load import load
from ..open_models.peft import fingerprint, has_fingerprint
from ..tasks.knowledge import Knowledge
from ..tasks.people import People
from ..tokenizer import Tokenizer
from .agent import Agent, AgentConfig, Edit

LARGEST_TOY = 10_000  # tokens: the vocabularies that `minseal pretrain` makes are smaller


class FolderAgent(Agent):
    """An agent whose edits lie in a folder before they are in its weights. See open_agent()."""

    folder: Path
    lock: Lock

    def add(self, edit: Edit, state: dict[str, Tensor]) -> None:
        files = {"adapter.pt": write_tensors(state)} if state else {}
        files["edit.json"] = write_json(asdict(edit))
        write_folder(self.folder / "edits" / f"{len(self.edits) + 1:04}", files)
        super().add(edit, state)

    def drop(self) -> Edit:
        edits = self.folder / "edits"
        gone = edits / f"{OURS}{secrets.token_hex(8)}.tmp"
        os.rename(edits / f"{len(self.edits):04}", gone)  # it is there, or it is not
        flush(edits)
        tidy(edits)
        return super().drop()

    def read(self) -> None:
        """The edits as they lie in the folder, and the weights that they make."""
        self.edits, self.states = [], []
        edits = self.folder / "edits"
        tidy(edits)
        while (here := edits / f"{len(self.edits) + 1:04}").is_dir():
            tidy(here)
            if is_empty(here):  # a kill came before it was written
                break
            edit = from_json(Edit, read_json(here / "edit.json", once=True), here / "edit.json")
            state = load_tensors(here / "adapter.pt", checksums=True) if edit.kept else {}
            self.edits.append(edit)
            self.states.append(state)
        if later := [f.name for f in edits.glob("[0-9]*") if f.name > here.name]:
            raise UserError(f"{edits} is damaged: there is {min(later)}, but no {here.name}")
        try:
            self.build()
        except (ValueError, LookupError, RuntimeError, TypeError, AttributeError) as e:
            raise UserError(f"{edits} holds adapters of another model: {first_line(e)}") from None


def task_for(tokenizer: Tokenizer) -> Knowledge:
    """How a model is asked: a small vocabulary is that of the toy world, with its one form."""
    if tokenizer.vocab_size < LARGEST_TOY and not tokenizer.chat:
        return People(tokenizer)
    return Knowledge(tokenizer, grading="contains", topic=False)


def open_agent(
    folder: str | Path,
    model: str = "",
    device: str = "auto",
    dtype: str = "auto",
    config: AgentConfig = AgentConfig(),
) -> FolderAgent:
    """The agent in a folder, or a new one of a model. UserError if the folder is another model's.

    config: of a new one; later the folder knows its own.
    """
    folder, about = Path(folder), {}
    path = folder / "agent.json"
    if folder.is_dir():
        tidy(folder)
    if path.is_file():
        about = read_json(path, once=True)
        config = from_json(AgentConfig, about.get("settings"), path)
        if not about.keys() >= {"model", "fingerprint", "knew"}:
            raise UserError(f"{path} is damaged: expected model, fingerprint and knew")
    elif not is_empty(folder):
        raise UserError(f"{folder} is there and holds no agent: choose another folder")
    elif not model:
        raise UserError(f"no agent in {folder}: to make one there, --model names its model")
    gpt, tokenizer = load(model or str(about.get("model")), device, dtype)
    if about and not has_fingerprint(gpt, about["fingerprint"], path):
        raise UserError(f"{folder} is an agent of another {about.get('model')}: its weights differ")
    knew = (  # through an Edit, which checks that it is {question: answer}
        from_json(Edit, {"text": "", "questions": about["knew"]}, path).questions if about else None
    )
    agent = FolderAgent(gpt, task_for(tokenizer), config, knew)
    agent.folder, agent.lock = folder, hold(folder)
    if not about:
        if path.is_file():
            raise UserError(f"{folder}: another process made an agent there just now: try again")
        about = {"model": model, "settings": asdict(config), "fingerprint": fingerprint(gpt)}
        write_folder(folder, {path.name: write_json({**about, "knew": agent.knew})})
    agent.read()
    return agent
