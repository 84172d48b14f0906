"""Bounds of settings."""

from .files import UserError


def at_least(settings, **bounds):
    """Refuse settings whose fields are below these bounds."""
    for name, low in bounds.items():
        if not getattr(settings, name) >= low:  # NaN is refused, too
            raise UserError(
                f"{type(settings).__name__}.{name} is {getattr(settings, name)}; "
                f"expected at least {low}"
            )


def one_of(settings, **allowed):
    """Refuse settings whose fields are none of these words."""
    for name, words in allowed.items():
        if getattr(settings, name) not in words:
            raise UserError(
                f"{type(settings).__name__}.{name} is {getattr(settings, name)!r}; "
                f"expected one of {', '.join(words)}"
            )
