"""Prints the processes of the service on this host as JSON: what the vassals' stats sockets and /proc say."""

import json
import pwd
import socket
import sys
from pathlib import Path


def status(pid: int) -> dict[str, str]:
    """Fields of /proc/PID/status; none when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def user(pid: int) -> str:
    """Name of the user that a process runs as; empty when the process is gone."""
    fields = status(pid)
    return pwd.getpwuid(int(fields["Uid"].split()[0])).pw_name if fields else ""


def stats(path: Path) -> dict | None:
    """What a vassal says about itself; None while it does not listen."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(str(path))
            return json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
        except (OSError, ValueError):
            return None


def model_process(master: int) -> int:
    """The process of a vassal that has the model in mode batch; 0 when there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"inference.model_process" in command and status(int(folder.name)).get("PPid") == str(master):
            return int(folder.name)
    return 0


vassals = []
for path in sorted(Path("/run/fleet").glob("*/*--*.stats")):
    said = stats(path)
    if said is None:
        continue
    vassals.append(
        {
            "device": path.parent.name,
            "service": path.name.split("--")[0],
            "vassal": said["pid"],
            "model_process": model_process(said["pid"]),
            "emperor": int(status(said["pid"]).get("PPid", 0)),
            "workers": [
                {"pid": worker["pid"], "accepting": bool(worker["accepting"]), "user": user(worker["pid"])}
                for worker in said["workers"]
            ],
        }
    )
nginx = Path("/run/nginx.pid").read_text().strip() if Path("/run/nginx.pid").exists() else ""
json.dump({"vassals": vassals, "nginx": int(nginx or 0)}, sys.stdout)
