"""What a process with the model was measured to take when a release was first loaded on a kind of device.

Beside the release, because it is true for that release only, and a host goes back to an older one with what it knew of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ansible.module_utils.placed_files import place

#: Releases whose numbers are kept; more than hosts keep releases.
RELEASES = 10
#: A sample is small and a request may be large: as much more is reckoned with.
HEADROOM = 1.5


def workers_that_fit(fit: Mapping, worker_mib: int, host_worker_mib: int) -> int:
    """Workers that a device and its share of the host's memory hold, at least 1.

    Args:
        fit: ``device_mib`` and ``host_mib`` that are to be had, ``most`` (workers that are of use; 0 for any number).
        worker_mib: device memory of one worker; 0 when it takes none.
        host_worker_mib: host memory of one worker.
    """
    counts = [int(fit["host_mib"]) // max(1, host_worker_mib)]
    if worker_mib:
        counts.append(int(fit["device_mib"]) // worker_mib)
    if fit["most"]:
        counts.append(int(fit["most"]))
    return max(1, min(counts))


class Measured:
    """Measured memory by release and by service with its settings and kind of device.

    Args:
        file: where it is kept.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> dict[str, dict[str, dict]]:
        """Everything; empty when there is nothing, or nothing that can be read: it is measured again then."""
        try:
            found = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def get(self, release: str, key: str) -> dict | None:
        """``host_mib`` and ``device_mib`` of one process with the model, with headroom; ``None`` before it was loaded."""
        return self.read().get(release, {}).get(key)

    def put(self, release: str, key: str, host_mib: int, device_mib: int) -> dict:
        """Note what one process with the model was seen to take.

        Returns:
            What :meth:`get` gives from now on.
        """
        found = self.read()
        numbers = {"host_mib": int(host_mib * HEADROOM), "device_mib": int(device_mib * HEADROOM)}
        of_release = found.pop(release, {})
        # Last in order: the releases that were not loaded for the longest time are forgotten.
        found[release] = {**of_release, key: numbers}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept = dict(list(found.items())[-RELEASES:])
        place(self.file, json.dumps(kept, indent=1) + "\n", 0o644)
        return numbers
