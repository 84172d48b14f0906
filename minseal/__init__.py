"""minseal: SEAL (Self-Adapting Language Models, arXiv 2506.10943) from scratch.

    import minseal
    model, tokenizer = minseal.load("tiny_data/knowledge")

The names below come from the rooms that define them, when they are first used.
"""

import importlib

_ROOM_OF = {
    "model": ("GPT", "GPTConfig"),
    "lora": ("Adapters", "LoRAConfig", "attach", "merge_state"),
    "selfedit": ("Document", "InvalidSelfEdit", "SelfEdit", "Task"),
    "inner": ("InnerConfig", "adapt"),
    "rewards": ("Outcome", "exam", "likelihood"),
    "outer": ("OuterConfig", "ReSTEM", "Trial", "outer_loop", "try_out"),
    "tokenizer": ("Tokenizer",),
    "files": ("UserError",),
    "checkpoint": ("save",),
    "open_models.load": ("load",),
    "tasks.knowledge": ("Knowledge",),
    "tasks.passages": ("Passage", "read_passages"),
    "tasks.people": ("People", "toy_passages"),
    "tasks.fewshot": ("FewShot",),
    "tasks.arc": ("Puzzle", "read_puzzles"),
}
_ROOM_OF_NAME = {name: room for room, names in _ROOM_OF.items() for name in names}
__all__ = list(_ROOM_OF_NAME)


def __getattr__(name: str):
    if name not in _ROOM_OF_NAME:
        raise AttributeError(f"minseal has no {name!r}")
    value = getattr(importlib.import_module(f".{_ROOM_OF_NAME[name]}", __name__), name)
    globals()[name] = value
    return value
