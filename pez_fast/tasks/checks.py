"""Checks of arguments that several tasks share."""

from __future__ import annotations


def check_model(model: object, *needed: str) -> None:
    """Raises: TypeError: the model lacks what a task needs."""
    missing = [name for name in ("table", "bind", *needed) if not hasattr(model, name)]
    if missing:
        raise TypeError(f"model must come from load_clip, or have {', '.join(missing)}; got {type(model).__name__}")
