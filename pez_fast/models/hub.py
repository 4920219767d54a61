"""Whether the hub can be reached: asked once and shortly, since its client tries again for a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pez_fast.models.reasons import no_network

_SECONDS = 4  # that the hub may take to answer


@contextmanager
def without_waiting() -> Iterator[None]:
    """While the hub cannot be reached, its client looks into the cache alone, and fails at once for what is not there.

    The hub is asked by its own client, so that its address, proxies and certificates are the user's.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not before and not can_be_reached():
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def can_be_reached() -> bool:
    """Whether the hub answers; an answer of any kind, or one that is only late, counts."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as error:  # of a library that differs between versions of the hub's client
        return not no_network(error)
    return True
