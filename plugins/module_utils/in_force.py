"""What the deployment in force wants of a host's devices, and whether they do it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ansible.module_utils.deployments import Deployments
from ansible.module_utils.vassal_files import NotReady, Vassals

#: Where no deployment says it.
WAIT_SECONDS = 120


class InForce:
    """The deployment in force.

    Args:
        options: places of a host, as in the module ``device_drain``.
    """

    def __init__(self, options: Mapping) -> None:
        self.options = options
        self.deployments = Deployments(Path(options["deployed_file"]), Path(options["deployments_dir"]))
        self._read: tuple[str, dict] = ("", {})

    def record(self) -> dict:
        """Its record; empty before the first one. The file of a record never changes, so it is read once."""
        name = str(self.deployments.current().get("record", ""))
        if name != self._read[0]:
            try:
                self._read = (name, self.deployments.read(name))
            except LookupError:
                self._read = ("", {})
        return self._read[1]

    def wait_seconds(self) -> int:
        """Longest time that it gives requests to finish when nginx reloads."""
        return int((self.record().get("nginx") or {}).get("wait_seconds", WAIT_SECONDS))

    def vassals(self, device: str) -> Vassals:
        """Those that it wants on a device."""
        record = self.record()
        wanted = [one for one in record.get("vassals", []) if one["device"] == device]
        return Vassals({**self.options, "vassals": wanted, "group": record.get("group", ""), "stop_seconds": 0})

    def what_is_wrong(self, device: str) -> str:
        """Why requests to a device would fail; empty when its vassals serve."""
        vassals = self.vassals(device)
        for vassal in vassals.vassals:
            try:
                vassal.check()
            except NotReady as error:
                return f"vassal {vassal.full_name} does not serve: {error}. Look: {vassals.look(device)}"
        return ""
