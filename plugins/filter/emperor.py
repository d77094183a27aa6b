"""Filter of the role emperor."""

from __future__ import annotations

from typing import Any


def emperor_unit(device: str, manager: str, devices_dir: str, helpers: str) -> dict[str, Any]:
    """The unit of a device's emperor and the files that it reads only when it starts."""
    name = f"uwsgi-emperor@{device}"
    files = [f"{devices_dir}/{device}/emperor.ini", f"{devices_dir}/{device}/environment"]
    if manager == "systemd":
        files += ["/etc/systemd/system/uwsgi-emperor@.service", f"/etc/systemd/system/{name}.service.d/device.conf"]
    else:
        files += [f"{helpers}/run-emperor", f"/etc/supervisor/conf.d/{name}.conf"]
    return {"name": name, "device": device, "files": files}


class FilterModule:
    """Filter of the role emperor."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {"emperor_unit": emperor_unit}
