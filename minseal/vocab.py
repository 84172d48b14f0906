"""Where from_json was; tokenizers of open models live in open_models/tokenizers.py."""

from .open_models.tokenizers import OpenTokenizer, read_tokenizer  # noqa: F401
