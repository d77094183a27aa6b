"""Collect the wheels of one kind of host (Python, processor, torch build) into one archive, on the controller."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

#: glibc versions whose wheels run on Debian 12 and newer and on Ubuntu 22.04 and newer, newest first.
GLIBC_MINORS = (35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
#: Packages that only torch's CUDA build needs.
CUDA_ONLY = re.compile(r"^(nvidia-|cuda-|triton$|torch$)")
LOCK_ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)\s*(?:;\s*(?P<marker>.+?))?\s*$")
#: How a requirements file is pinned, for errors.
PIN = "Pin it as docs/own-model.md says (uv pip compile --generate-hashes)."


class BuildError(Exception):
    """A release cannot be made; the text says what to do."""


@dataclass(frozen=True)
class Target:
    """A kind of host: every host of the same kind gets the same wheels."""

    python: str
    arch: str
    torch: str

    @property
    def label(self) -> str:
        """For logs and file names."""
        return f"py{self.python}-{self.arch}-{self.torch or 'notorch'}"


@dataclass(frozen=True)
class Requirement:
    """One pinned package with the hashes that are allowed for it."""

    name: str
    version: str
    marker: str = ""
    hashes: tuple[str, ...] = field(default=())

    def line(self) -> str:
        """A line of a requirements file."""
        return " ".join([f"{self.name}=={self.version}", *(f"--hash=sha256:{value}" for value in self.hashes)])


def run(command: list[str], *, say: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command and return its output.

    Raises:
        BuildError: it failed; carries the end of its output.
    """
    done = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"{say} failed ({' '.join(command[:6])} …):\n{done.stdout[-3000:]}")
    return done.stdout


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def parse_lock(text: str, source: str = "app/uv.lock", mend: str = "") -> list[Requirement]:
    """Read pinned requirements with markers and hashes, as ``uv export`` and ``uv pip compile`` write them.

    Args:
        text: the requirements.
        source: where they are from, for errors.
        mend: what to do about an error.

    Raises:
        BuildError: a line is no pinned requirement.
    """
    found = []
    for logical in re.sub(r"\\\n\s*", " ", text).splitlines():
        logical = logical.split(" #")[0].strip()
        if not logical or logical.startswith("#"):
            continue
        hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", logical))
        entry = LOCK_ENTRY.match(re.sub(r"--hash=\S+", "", logical).strip())
        if entry is None:
            raise BuildError(f"{source} has a line that is not NAME==VERSION: {logical[:120]!r}. {mend}".rstrip())
        found.append(Requirement(entry["name"], entry["version"], entry["marker"] or "", hashes))
    return found


def for_target(requirements: Iterable[Requirement], target: Target) -> list[Requirement]:
    """Those requirements whose markers hold on the target."""
    from packaging.markers import Marker, default_environment  # only on the controller

    environment: dict[str, str] = {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": target.python,
        "python_full_version": f"{target.python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": target.arch,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }
    return [one for one in requirements if not one.marker or Marker(one.marker).evaluate(environment)]


def platform_options(target: Target) -> list[str]:
    """pip options that make it choose wheels for the target instead of for this machine."""
    tag = f"cp{target.python.replace('.', '')}"
    options = ["--implementation", "cp", "--python-version", target.python, "--only-binary=:all:"]
    for abi in (tag, "abi3", "none"):
        options += ["--abi", abi]
    for minor in GLIBC_MINORS:
        options += ["--platform", f"manylinux_2_{minor}_{target.arch}"]
    for legacy in ("manylinux2014", "manylinux2010", "manylinux1", "linux"):
        options += ["--platform", f"{legacy}_{target.arch}"]
    return options


@dataclass
class Wheelhouse:
    """Makes wheelhouses with pip, into a cache that may be deleted at any time."""

    python: str
    cache: Path
    progress: Callable[[str], None]

    def pip(self, *arguments: str, say: str, env: dict[str, str] | None = None) -> str:
        """Run the controller's pip."""
        return run([self.python, "-m", "pip", "--disable-pip-version-check", *arguments], say=say, env=env)

    def torch_requirement(self, build: dict, name: str) -> Requirement:
        """The requirement of a torch build that is not PyPI's.

        Raises:
            BuildError: no hash is known and the index was not declared trusted.
        """
        if not build.get("sha256") and not build.get("trust_index"):
            raise BuildError(
                f"no sha256 is known for torch build {name!r} ({build.get('version')} from {build.get('index')}). "
                f"Add them: release_torch_builds: {{{name}: {{version: …, index: …, sha256: [...]}}}}; "
                "or take what the index gives and have it recorded: trust_index: true in the same place."
            )
        return Requirement("torch", build["version"], hashes=tuple(build.get("sha256", ())))

    def make(self, requirements: list[Requirement], target: Target, build: dict, archive: Path) -> list[dict]:
        """Download or build every wheel and write ``archive`` (a tar of wheels and a ``requirements.txt``).

        Returns:
            name, version and sha256 of each wheel.
        """
        work = self.cache / f"making-{os.getpid()}" / "wheels"
        work.mkdir(parents=True)
        try:
            self.download(requirements, target, build, work)
            wheels = describe(work)
            lines = [f"{one['name']}=={one['version']} --hash=sha256:{one['sha256']}" for one in wheels]
            (work / "requirements.txt").write_text("\n".join(lines) + "\n")
            write_tar(archive, work)
        finally:
            shutil.rmtree(work.parent, ignore_errors=True)
        return wheels

    def download(self, requirements: list[Requirement], target: Target, build: dict, into: Path) -> None:
        """Fetch wheels into a folder; what PyPI has as source only is built, when it is pure Python."""
        plain = [one for one in requirements if not (one.name == "torch" and target.torch != "cuda")]
        torch = [one for one in requirements if one not in plain]
        for one in torch:
            self.progress(f"fetching torch {one.version} for {target.label}; the largest part, up to some GB with CUDA")
            trusted = not one.hashes
            listing = into.parent / "torch.txt"
            listing.write_text(one.line() + "\n")
            options = ["--index-url", build["index"]] if build.get("index") else []
            # A trusted index also decides which CUDA packages torch needs; a hashed wheel stands alone.
            options += (
                ["--extra-index-url", "https://pypi.org/simple"] if trusted else ["--require-hashes", "--no-deps"]
            )
            self.pip(
                "download",
                "-q",
                "-d",
                str(into),
                "-r",
                str(listing),
                *options,
                *platform_options(target),
                say="fetching torch",
            )
        self.progress(f"fetching {len(plain)} packages for {target.label}")
        sources = [one for one in plain if one.name in self.source_only(plain)]
        listing = into.parent / "plain.txt"
        listing.write_text("".join(one.line() + "\n" for one in plain if one not in sources))
        self.pip(
            "download", "-q", "--no-deps", "--require-hashes", "-d", str(into), "-r", str(listing), *platform_options(target),
            say=f"fetching packages for {target.label}",
        )  # fmt: skip
        for one in sources:
            self.build_source(one, into)

    def source_only(self, requirements: list[Requirement]) -> set[str]:
        """Names of packages that have no wheel on PyPI."""
        return {one.name for one in requirements} & {"antlr4-python3-runtime"}

    def build_source(self, requirement: Requirement, into: Path) -> None:
        """Build a wheel from a hashed source archive with the controller's own, locked setuptools.

        Raises:
            BuildError: the result is bound to this machine's Python or processor.
        """
        listing = into.parent / "source.txt"
        listing.write_text(requirement.line() + "\n")
        before = set(into.iterdir())
        # 1980 is the first year that a zip file can hold: makes the wheel the same each time.
        self.pip(
            "wheel", "-q", "--no-deps", "--require-hashes", "--no-build-isolation", "-w", str(into), "-r", str(listing),
            say=f"building {requirement.name}", env={"SOURCE_DATE_EPOCH": "315532800"},
        )  # fmt: skip
        for wheel in set(into.iterdir()) - before:
            if not wheel.name.endswith("-none-any.whl"):
                raise BuildError(f"{requirement.name} has no wheel on PyPI and is not pure Python: {wheel.name}")


def describe(folder: Path) -> list[dict]:
    """Name, version, file and sha256 of each wheel in a folder, sorted."""
    found = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        found.append(
            {"name": name.replace("_", "-").lower(), "version": version, "file": wheel.name, "sha256": sha256_of(wheel)}
        )
    return found


def write_tar(archive: Path, folder: Path) -> None:
    """Write a folder's content as a tar with fixed owners and dates, complete or not at all."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mtime = 0
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_name(f"{archive.name}.{os.getpid()}.partial")
    with tarfile.open(partial, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, arcname=path.name, filter=plain)
    partial.rename(archive)
