"""Makes or mends the controller's virtual environment .venv from uv.lock.

    python3 -IB tools/bootstrap.py [dev]

Called by ./fleet with any Python from 3.11 on; uses nothing but the standard library. A stamp in .venv, written last,
says what the environment was made from: when it still fits, this ends within some milliseconds.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "fleet-stamp.json"
PYTHON = VENV / "bin" / "python"
Stamp = dict[str, object]


def say(text: str) -> None:
    # Standard output belongs to the verb (`--json` prints nothing else there).
    print(f"fleet: {text}", file=sys.stderr, flush=True)


def wanted(groups: list[str]) -> Stamp:
    """What an up-to-date environment is made from."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "uv.lock"):
        digest.update((ROOT / name).read_bytes())
    # The path counts because the scripts in .venv/bin name it: a moved folder needs a new environment.
    return {"lock": digest.hexdigest(), "python": sys.version, "path": str(VENV), "groups": groups}


def present() -> Stamp | None:
    """What the environment was made from; None when there is none or its making was cut short."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and os.access(PYTHON, os.X_OK) else None


def fits(stamp: Stamp | None, want: Stamp) -> bool:
    """More groups than wanted do no harm: `deploy` after `test` keeps the linters."""
    return stamp is not None and {**want, "groups": None} == {**stamp, "groups": None} and has_groups(stamp, want)


def has_groups(stamp: Stamp, want: Stamp) -> bool:
    return set(groups_of(want)) <= set(groups_of(stamp))


def groups_of(stamp: Stamp) -> list[str]:
    groups = stamp.get("groups")
    return [str(group) for group in groups] if isinstance(groups, list) else []


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a command whose progress goes to the terminal; its standard output is returned.

    It inherits the lock: when this program is killed, the next one waits until the command left behind has ended.
    """
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, close_fds=False)
    if done.returncode:
        say(f"`{' '.join(map(str, command))}` ended with {done.returncode}; the lines above say why")
        say("  mend it, and run the same command again; where PyPI cannot be reached, PIP_INDEX_URL names a mirror")
        sys.exit(2)
    return done.stdout


def locked_uv() -> str:
    """The requirement for uv with the hashes of all its files, as uv.lock holds them."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    (uv,) = (package for package in packages if package["name"] == "uv")
    hashes = [wheel["hash"] for wheel in uv["wheels"]]
    return " ".join([f"uv=={uv['version']}", *(f"--hash={value}" for value in hashes)]) + "\n"


def uv_environment() -> dict[str, str]:
    """The environment for uv. It reads no pip settings, so a mirror set for pip is handed on, unless uv has its own."""
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    if not {"UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_NO_INDEX"} & env.keys():
        for line in run(PYTHON, "-I", "-m", "pip", "config", "list").splitlines():
            name, _, value = line.partition("=")
            if name.endswith(".index-url"):
                env["UV_DEFAULT_INDEX"] = value.strip("'\"")
    return env


def build(want: Stamp, keep: bool) -> None:
    """Bring .venv to the lock. Without its stamp it counts as broken, so a killed run is rebuilt from nothing."""
    started = time.monotonic()
    terminal = sys.stderr.isatty()
    if keep:
        STAMP.unlink()
    else:
        say(f"making .venv with Python {sys.version.split()[0]}")
        # The base interpreter: this one may lie in the very .venv that is being cleared.
        base = getattr(sys, "_base_executable", sys.executable)
        run(base, "-I", "-m", "venv", "--clear", VENV)
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(locked_uv())
        say(f"installing {requirements.read_text().split()[0]} (hash-checked)")
        pip = (PYTHON, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check")
        # stdout is not this program's to use, and PIP_USER would send the files elsewhere.
        run(*pip, "install", "--no-user", "--require-hashes", "--no-deps", "--only-binary=:all:", "-r", requirements)
        env = uv_environment()
        uv = (VENV / "bin" / "uv", *(() if terminal else ("--quiet",)))
        groups = [argument for group in groups_of(want) for argument in ("--group", group)]
        export = (
            "export",
            "--frozen",
            "--no-default-groups",
            *groups,
            "--no-emit-project",
            "--no-annotate",
            "--no-header",
        )
        run(*uv, "--project", ROOT, *export, "--python", PYTHON, "--output-file", requirements, env=env)
        count = sum("==" in line for line in requirements.read_text().splitlines())
        say(f"installing {count} packages of uv.lock (hash-checked)")
        run(*uv, "pip", "sync", "--require-hashes", "--python", PYTHON, requirements, env=env)
    # Python leaves this to the first run, which cannot do it in an environment of another user.
    run(PYTHON, "-I", "-m", "compileall", "-q", "-j", "0", *VENV.glob("lib/python*/site-packages/ansible"))
    new = STAMP.with_suffix(".new")
    new.write_text(json.dumps(want))
    new.replace(STAMP)
    say(f".venv is ready after {time.monotonic() - started:.0f} s")


def main(groups: list[str]) -> None:
    want = wanted(groups)
    if fits(present(), want):
        return
    closed = next(
        (path for path in (ROOT, VENV, ROOT / ".cache") if path.exists() and not os.access(path, os.W_OK)), None
    )
    if closed:
        say(f".venv has to be made or renewed, and {closed} belongs to {closed.owner()}")
        say(f"  mend it with:  sudo chown -R $(id -u):$(id -g) {ROOT}   (or run ./fleet as {closed.owner()} once)")
        sys.exit(2)
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    with (cache / "bootstrap.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another ./fleet that is making .venv")
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)
        # Read again: the other one may have done the work.
        stamp = present()
        if fits(stamp, want):
            return
        if stamp is None:
            build(want, keep=False)
        else:
            want["groups"] = sorted({*groups_of(want), *groups_of(stamp)})
            build(want, keep=stamp["python"] == want["python"] and stamp["path"] == want["path"])


if __name__ == "__main__":
    main(sys.argv[1:])
