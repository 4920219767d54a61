"""pyarrow, or one sentence that says what to install."""

from __future__ import annotations

from typing import Any


def arrow() -> Any:
    """The module pyarrow, its `parquet` imported.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            "data sets are written as Parquet, by pyarrow, which cannot be imported; pip install 'pez_fast[data]'"
        ) from None
    return pyarrow
