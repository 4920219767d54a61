"""The import of pyarrow."""

from __future__ import annotations

from typing import Any

from pez_fast._shared.installation import install_hint


def arrow() -> Any:
    """Returns the module pyarrow, with `pyarrow.parquet` imported.

    Raises:
        ImportError: pyarrow is not installed; the message says what to install.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            f"data sets are written as Parquet, by pyarrow, which cannot be imported; {install_hint('data')}"
        ) from None
    return pyarrow
