"""The audit log of a host: who did what to it, one JSON line for each event."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

#: Name of its file, in the folder of the log files.
AUDIT_LOG = "audit.log"


def now() -> str:
    """The time as it stands in records: UTC, whole seconds."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def note(run: dict, event: str, log: Path, **fields: object) -> str:
    """Append one event to the audit log.

    Args:
        run: who does it, as the fact ``fleet_run`` (``id``, ``by``, ``verb``).
        event: what was done, one word such as ``switched``.
        log: the file.
        fields: what else is worth knowing of it.

    Returns:
        An empty string, or why the line could not be written: a full disk must not stop what is under way.
    """
    line = {"time": now(), "event": event, "run": run.get("id"), "by": run.get("by"), "verb": run.get("verb"), **fields}
    try:
        log.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        # One write of one line: two runs at once cannot mix theirs.
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            os.write(handle, (json.dumps(line) + "\n").encode())
        finally:
            os.close(handle)
    except OSError as error:
        return f"{log}: {error}"
    return ""
