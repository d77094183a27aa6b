"""What the tests need beside the controller's own .venv: the app's environment, nginx, a browser, newman, JMeter.

All that can lie in .cache does; Node.js and JMeter are installed as Debian packages where they are missing.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tree
import yaml

sys.path.insert(0, str(tree.ROOT / "plugins" / "module_utils"))
sys.path.insert(0, str(tree.ROOT / "tools"))

import bootstrap
import wheelhouse  # what picks the packages of a release

CACHE = tree.ROOT / ".cache"
TORCH_BUILDS = tree.ROOT / "roles" / "release" / "vars" / "main" / "torch_builds.yml"


class Unavailable(Exception):
    """The environment of a layer cannot be made; the text says why, and the command that mends it."""


def run(*command: str | Path, output: bool = False, env: dict[str, str] | None = None) -> str:
    """Run a command, its output streamed or returned.

    Raises:
        Unavailable: it failed.
    """
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE if output else None, text=True)
    if done.returncode:
        raise Unavailable(f"`{' '.join(map(str, command))}` ended with {done.returncode}")
    return done.stdout or ""


# ---- the app's environment -----------------------------------------------------------------------------------------


def app() -> Path:
    """The Python with all that the app's tests import, with torch's CPU build; made anew when app/uv.lock changes."""
    parts = ["--extra=serve", "--extra=ocr", "--extra=torch", "--extra=client", "--group=test", "--group=convert"]
    return locked("app", tree.ROOT / "app", parts, editable=True)


def locked(name: str, project: Path, parts: list[str], editable: bool = False) -> Path:
    """The Python of an environment with what a uv.lock pins, torch as its CPU build; made anew when that changes.

    Args:
        name: the environment's name, below .cache/venvs.
        project: folder with a pyproject.toml and a uv.lock.
        parts: options of `uv export` that choose extras and groups.
        editable: whether the project itself is installed too, as the code under test.

    Raises:
        Unavailable: packages could not be fetched or installed.
    """
    folder = CACHE / "venvs" / name
    python = folder / "bin" / "python"
    stamp = folder / "stamp"
    inputs = [project / "uv.lock", project / "pyproject.toml", TORCH_BUILDS, Path(__file__)]
    digest = hashlib.sha256(f"{sys.version} {folder}".encode())
    for path in inputs:
        digest.update(path.read_bytes())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The stamp is written last: without it the environment counts as broken.
        if not (python.exists() and stamp.exists() and stamp.read_text() == digest.hexdigest()):
            started = time.monotonic()
            make(folder, python, project, parts)
            if editable:
                # uv is itself the build backend of the app: nothing is fetched for it.
                run(*UV_PIP, "--offline", "--no-deps", "--python", python, "--editable", project)
            stamp.write_text(digest.hexdigest())
            print(f"the environment {name} is ready after {time.monotonic() - started:.0f} s", flush=True)
    return python


UV_PIP: list[str | Path] = [Path(sys.executable).parent / "uv", "--quiet", "pip", "install"]


def make(folder: Path, python: Path, project: Path, parts: list[str]) -> None:
    """Install what a project's uv.lock pins, every file checked against its hash."""
    print(f"making the environment {folder.relative_to(tree.ROOT)}", flush=True)
    run(getattr(sys, "_base_executable", sys.executable), "-I", "-m", "venv", "--clear", "--without-pip", folder)
    target = wheelhouse.Target(f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine(), "cpu")
    export = ["export", "--frozen", "--no-dev", "--no-emit-project", "--no-header", "--no-annotate", *parts]
    locked = wheelhouse.parse_lock(run(UV_PIP[0], "--quiet", "--project", project, *export, output=True))
    # PyPI's torch is the CUDA build: its packages go, and the CPU build of the same version comes in.
    # nvidia-ml-py only asks a driver, and a peer imports it where there is none, too.
    wanted = wheelhouse.for_target(locked, target)
    packages = [one for one in wanted if one.name == "nvidia-ml-py" or not wheelhouse.CUDA_ONLY.match(one.name)]
    build = yaml.safe_load(TORCH_BUILDS.read_text())["__release_torch_builds"]["cpu"]
    torch = wheelhouse.Requirement("torch", build["version"], hashes=tuple(build["sha256"]))
    listing = folder / "requirements.txt"
    listing.write_text("".join(f"{one.line()}\n" for one in packages))
    print(f"installing {len(packages)} packages of {project.relative_to(tree.ROOT)}/uv.lock", flush=True)
    uv = [*UV_PIP, "--no-deps", "--require-hashes", "--python", python]
    run(*uv, "-r", listing, env=bootstrap.uv_environment())
    listing.write_text(f"{torch.line()}\n")
    print(f"installing torch {torch.version}", flush=True)
    # pip and not uv: a wheel that lies on this machine is found through pip's own settings.
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "--python",
        python,
        "install",
    ]
    pip += ["--no-deps", "--require-hashes", "-r", listing]
    if subprocess.run([*pip, "--no-index"], stderr=subprocess.DEVNULL).returncode:
        run(*pip, "--index-url", build["index"])


# ---- schemathesis ---------------------------------------------------------------------------------------------------


def schemathesis() -> Path:
    """The program, from uv.lock, in an environment of its own.

    Raises:
        Unavailable: packages could not be fetched or installed.
    """
    folder = CACHE / "venvs" / "schemathesis"
    env = {**bootstrap.uv_environment(), "UV_PROJECT_ENVIRONMENT": str(folder)}
    command = [UV_PIP[0], "--quiet", "--project", tree.ROOT, "sync", "--frozen", "--only-group", "schemathesis"]
    run(*command, "--python", sys.executable, env=env)
    return folder / "bin" / "schemathesis"


# ---- programs of Debian ---------------------------------------------------------------------------------------------


def fetch_lists() -> None:
    """Fetch the lists of Debian's packages where there are none, as on a bare machine."""
    if os.geteuid() == 0 and not list(Path("/var/lib/apt/lists").glob("*_Packages*")):
        print("fetching the package lists (apt-get update)", flush=True)
        run("apt-get", "update", "--quiet=2")


def unpack(folder: Path, *packages: str) -> bool:
    """Unpack Debian packages into a folder, which is emptied before; says whether all could be fetched.

    Raises:
        Unavailable: this is neither Debian nor Ubuntu.
    """
    if not shutil.which("apt-get"):
        raise Unavailable(f"the tests need {packages[0]}; mend it with: install it with this system's packages")
    fetch_lists()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"fetching Debian's {packages[0]} into {folder.relative_to(tree.ROOT)} (not installed)", flush=True)
    # As whoever runs the tests: apt's own user may not write here.
    command = ["apt-get", "--quiet=2", "--option=APT::Sandbox::User=root", "download", *packages]
    if subprocess.run(command, cwd=folder).returncode:
        return False
    for archive in folder.glob("*.deb"):
        run("dpkg-deb", "--extract", archive, folder)
        archive.unlink()
    return True


def nginx() -> Path:
    """An nginx to check configurations with: the machine's own, else Debian's, unpacked into .cache and not installed.

    Raises:
        Unavailable: it could not be fetched.
    """
    unpacked = CACHE / "nginx" / "usr" / "sbin" / "nginx"
    for program in (shutil.which("nginx"), "/usr/sbin/nginx", unpacked):
        if program and os.access(program, os.X_OK):
            return Path(program)
    # `nginx` holds the program from Debian 12 and Ubuntu 24.04 on, `nginx-core` before.
    for package in ("nginx", "nginx-core"):
        if not unpack(CACHE / "nginx", package):
            raise Unavailable(f"Debian's {package} could not be fetched; mend it with: sudo apt-get update")
        if unpacked.exists():
            return unpacked
    raise Unavailable("neither nginx nor nginx-core holds /usr/sbin/nginx")


@dataclass(frozen=True)
class Browser:
    """A browser, what drives it, and the environment that both run in."""

    program: Path
    driver: Path
    environment: dict[str, str]


def browser() -> Browser:
    """A Chromium to look at pages with: the machine's own, else Debian's, unpacked into .cache and not installed.

    Raises:
        Unavailable: it could not be fetched.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    own = next(filter(None, map(shutil.which, names)), None)
    if own and (driver := shutil.which("chromedriver")):
        return Browser(Path(own), Path(driver), dict(os.environ))
    folder = CACHE / "chromium"
    # Written last: without it the folder counts as broken.
    fonts = folder / "fonts.conf"
    if not fonts.exists():
        shell = "chromium-headless-shell"
        # What it needs and this machine does not have; the driver works without the browser that its package asks for.
        fetch_lists()
        wanted = ["apt-get", "--simulate", "--quiet=2", "install", "--no-install-recommends", shell]
        asked = subprocess.run(wanted, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        needed = {line.split()[1] for line in asked if line.startswith("Inst ")} - {shell}
        # Those that must lie in one folder with the shell, also where the machine has them.
        fixed = ("chromium-driver", "chromium-common", "fonts-inter", "fonts-dejavu-core")
        if not unpack(folder, shell, *fixed, *sorted(needed - set(fixed))):
            raise Unavailable(
                "Debian's chromium-headless-shell could not be fetched; mend it with: sudo apt-get update, or install "
                "Chromium or Chrome together with chromedriver"
            )
        fonts.write_text(FONTS.format(folder=folder))
    libraries = [str(path) for found in folder.glob("usr/lib/*-linux-gnu") for path in (found, found / "pulseaudio")]
    more = {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "FONTCONFIG_FILE": str(fonts)}
    lib = folder / "usr" / "lib" / "chromium"
    return Browser(lib / "chromium-headless-shell", folder / "usr" / "bin" / "chromedriver", {**os.environ, **more})


#: The same fonts on every machine, so that pictures of pages look alike.
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{folder}/usr/share/fonts</dir>
  <cachedir>{folder}/font-cache</cachedir>
  <alias binding="same"><family>system-ui</family><prefer><family>Inter</family></prefer></alias>
  <alias binding="same"><family>sans-serif</family><prefer><family>Inter</family></prefer></alias>
  <alias binding="same"><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""


# ---- what people check a service with ------------------------------------------------------------------------------


def installed(program: str, *packages: str) -> Path:
    """A program of the machine, installed with Debian's packages where it is missing.

    Raises:
        Unavailable: it is missing, and this is no root or no Debian.
    """
    if found := shutil.which(program):
        return Path(found)
    command = ["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(f"{program} is needed; mend it with: sudo {' '.join(command)}")
    fetch_lists()
    print(f"installing {' and '.join(packages)}", flush=True)
    run(*command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    return Path(shutil.which(program) or f"/usr/bin/{program}")


def newman() -> Path:
    """The runner of Postman collections, in .cache, of the packages that checks/package-lock.json pins.

    Raises:
        Unavailable: there is no Node.js, or the packages could not be fetched.
    """
    installed("node", "nodejs")
    npm = installed("npm", "npm")
    folder = CACHE / "newman"
    stamp = folder / "stamp"
    inputs = [tree.ROOT / "checks" / name for name in ("package.json", "package-lock.json")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "newman.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and stamp.read_text() == digest):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for path in inputs:
                shutil.copy(path, folder)
            # `ci` takes what the lock says and nothing else, each file checked against its hash. No package runs a
            # script of its own at its installation.
            run(npm, "ci", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
            stamp.write_text(digest)
    return folder / "node_modules" / ".bin" / "newman"


def jmeter() -> Path:
    """Debian's JMeter, with what it needs for HTTP.

    Raises:
        Unavailable: it is missing, and this is no root or no Debian.
    """
    return installed("jmeter", "default-jre-headless", "jmeter", "jmeter-http")


def logrotate() -> Path:
    """A logrotate, found as nginx is: a script where the library that it needs was unpacked too.

    Raises:
        Unavailable: it could not be fetched.
    """
    if found := shutil.which("logrotate", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin"):
        return Path(found)
    folder = CACHE / "logrotate"
    wrapper = folder / "run"
    if not wrapper.exists():
        if not unpack(folder, "logrotate", "libpopt0"):
            raise Unavailable("Debian's logrotate could not be fetched; mend it with: sudo apt-get update")
        library = f"$(echo {folder}/usr/lib/*-linux-gnu)"
        wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={library} exec {folder}/usr/sbin/logrotate "$@"\n')
        wrapper.chmod(0o755)
    return wrapper


#: Programs that the rules and the configuration of the monitoring host are judged with.
MONITORING = ("prometheus", "promtool", "prometheus-alertmanager", "amtool")


def monitoring() -> Path:
    """A folder with Prometheus, Alertmanager and their tools, of Debian, unpacked into .cache and not installed.

    Raises:
        Unavailable: they could not be fetched.
    """
    folder = CACHE / "monitoring"
    programs = folder / "usr" / "bin"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "monitoring.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(os.access(programs / name, os.X_OK) for name in MONITORING) and not unpack(
            folder, "prometheus", "prometheus-alertmanager"
        ):
            raise Unavailable("Debian's prometheus could not be fetched; mend it with: sudo apt-get update")
    return programs
