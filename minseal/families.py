"""Where the tables of the families were; they live in open_models/families.py."""

from .open_models.families import FAMILIES, Family  # noqa: F401
