"""Where load, save and export were; they live in open_models/ and checkpoint.py."""

from .checkpoint import save  # noqa: F401
from .open_models.export import export  # noqa: F401
from .open_models.load import DTYPES, load  # noqa: F401
