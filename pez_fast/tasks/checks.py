"""Checks of arguments that several tasks share."""

from __future__ import annotations


def check_model(model: object, *needed: str) -> None:
    """Checks that a model has the attributes that a task needs.

    Raises:
        TypeError: the model lacks one; the message names it. Or the task is on images, and the model takes texts alone.
    """
    missing = [name for name in ("table", "bind", *needed) if not hasattr(model, name)]
    if missing:
        raise TypeError(f"model must come from load_clip, or have {', '.join(missing)}; got {type(model).__name__}")
    refused = getattr(model, "text_only", "")
    if refused and {"encode_images", "encode_pixels"} & {*needed}:
        raise TypeError(refused)
