"""What becomes of a request that has waited too long; the same words wherever that is found out."""

from __future__ import annotations

import time

from inference.errors import OverTime


def over_time() -> OverTime:
    """Make the answer to a request that was not computed because it is past its deadline."""
    return OverTime("The request waited past its deadline; it was not computed.")


def refuse_late(deadline: float) -> None:
    """Refuse a request that is past its deadline.

    Args:
        deadline: instant of :func:`time.monotonic`.

    Raises:
        OverTime: it is.
    """
    if time.monotonic() >= deadline:
        raise over_time()
