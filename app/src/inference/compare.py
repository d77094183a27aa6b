"""Compare an answer with the known one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def difference(expected: Any, found: Any, tolerance: float = 0.0, path: str = "answer") -> str | None:
    """Say where ``found`` first differs from ``expected``, or give None when it does not.

    Mappings may have more members than expected; sequences must have the same length; numbers may
    differ by ``tolerance``; everything else must be equal.
    """
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            return f"{path}: expected an object, got {found!r:.80}"
        for key, value in expected.items():
            if key not in found:
                return f"{path}.{key}: missing"
            if text := difference(value, found[key], tolerance, f"{path}.{key}"):
                return text
        return None
    if isinstance(expected, Sequence) and not isinstance(expected, str | bytes):
        if not isinstance(found, Sequence) or isinstance(found, str | bytes) or len(found) != len(expected):
            return f"{path}: expected {len(expected)} items, got {found!r:.80}"
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            if text := difference(one, other, tolerance, f"{path}[{index}]"):
                return text
        return None
    if _is_number(expected) and _is_number(found):
        # Written so that NaN, which compares false with everything, counts as a difference.
        same = expected == found or abs(expected - found) <= tolerance
    else:
        same = type(expected) is type(found) and expected == found
    return None if same else f"{path}: expected {expected!r:.80}, got {found!r:.80}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
