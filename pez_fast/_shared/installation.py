"""How to install an extra of this package, by where the package came from."""

from __future__ import annotations

import json
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SOURCE = Path(__file__).parents[2]


def install_hint(extras: str) -> str:
    """Returns the command that installs extras, such as "data,ray", for an installation like this one.

    A package from an index is named; one from a folder or an address is installed from there again.
    """
    try:
        found: Distribution | None = distribution("pez_fast")
    except PackageNotFoundError:
        found = None
    origin = json.loads((found.read_text("direct_url.json") if found else None) or "{}")
    address, editable = str(origin.get("url", "")), bool(origin.get("dir_info", {}).get("editable"))
    if not address and (_SOURCE / "pyproject.toml").is_file():  # the source folder itself, on the path
        address, editable = _SOURCE.as_uri(), True
    if not address:
        return f"pip install 'pez_fast[{extras}]'"
    version_control = origin.get("vcs_info")
    if version_control:
        commit = version_control.get("commit_id", "")
        return f"pip install 'pez_fast[{extras}] @ {version_control['vcs']}+{address}@{commit}'"
    if urlsplit(address).scheme == "file":
        place = unquote(urlsplit(address).path)
        return f"pip install {'-e ' if editable else ''}'{place}[{extras}]'"
    return f"pip install 'pez_fast[{extras}] @ {address}'"
