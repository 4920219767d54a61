"""Results as plain values."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any


def finite_or_none(value: Any) -> Any:
    """Returns the value with None in place of every NaN and infinity in it, which JSON cannot hold."""
    if isinstance(value, dict):
        return {k: finite_or_none(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite_or_none(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Plain:
    """What every result can do; its classes are dataclasses."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dict of plain values."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_json(self, indent: int | None = None) -> str:
        """Returns the result as JSON; NaN (such as the scores of a result with an error) becomes null."""
        return json.dumps(finite_or_none(self.to_dict()), ensure_ascii=False, indent=indent, allow_nan=False)
