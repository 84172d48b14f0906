"""Where load_adapter and save_adapter were; they live in open_models/peft.py."""

from .open_models.peft import load_adapter, save_adapter  # noqa: F401
