#!/usr/bin/python
"""Make a release on the controller: one archive for all hosts, and one archive of wheels for each kind of host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_build
short_description: Make a release once, with hashes, on the controller
description:
  - The release id is the package's version and a hash of everything that goes in, so the same input gives the same id.
  - In check mode only the id is worked out.
options:
  app_dir: {description: Folder of the C(inference) package., type: path, required: true}
  cache_dir: {description: Folder for archives; may be deleted at any time., type: path, required: true}
  uv: {description: The uv program., type: path, required: true}
  extras: {description: Extras of the package that the services need., type: list, elements: str, default: []}
  targets: {description: Kinds of hosts (python, arch, torch)., type: list, elements: dict, required: true}
  torch_builds: {description: Known builds of torch by name., type: dict, required: true}
  files: {description: Files and folders that go into C(models/) of the release., type: list, elements: path, default: []}
  code: {description: Folders of Python modules that go beside the package., type: list, elements: path, default: []}
  requirements: {description: Further requirements file; pinned, with hashes., type: path, default: ""}
"""

import datetime
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import tomllib
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.wheelhouse import (
    CUDA_ONLY,
    PIN,
    BuildError,
    Requirement,
    Target,
    Wheelhouse,
    for_target,
    parse_lock,
    run,
    sha256_of,
    write_tar,
)

#: Counts up when the layout of a release changes, so that an old archive is not taken for a new one.
LAYOUT = "1"


def files_below(folder: Path) -> list[Path]:
    """All files of a source folder in a fixed order, without what Python or a build leaves there."""
    skipped = {"__pycache__", ".venv", ".pytest_cache", ".mypy_cache", ".ruff_cache", "dist"}
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        # Only below the folder: the project itself may lie in one that is named like these.
        and not skipped & set(path.relative_to(folder).parts)
        and path.suffix != ".pyc"
        and not path.parent.name.endswith(".egg-info")
    ]


def content_hash(parts: list[tuple[str, Path]], extra: object) -> str:
    """Hash of named files and further values."""
    digest = hashlib.sha256(json.dumps(extra, sort_keys=True).encode())
    for name, path in parts:
        digest.update(f"\0{name}\0{sha256_of(path)}".encode())
    return digest.hexdigest()


def normal(name: str) -> str:
    """A package's name as all its spellings have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def further_requirements(path: Path, locked: list[Requirement], target: Target) -> list[Requirement]:
    """What the user's own requirements add to those of the app.

    Raises:
        BuildError: a package has no hash, or is pinned to another version than the app's.
    """
    known = {normal(one.name): one.version for one in locked}
    found = []
    for one in for_target(parse_lock(path.read_text(), str(path), PIN), target):
        if not one.hashes:
            raise BuildError(f"{path}: {one.name}=={one.version} has no --hash. {PIN}")
        version = known.get(normal(one.name), one.version)
        if version != one.version:
            raise BuildError(f"{path} pins {one.name} {one.version}, and the app is tested with {version}. {PIN}")
        if normal(one.name) not in known:
            found.append(one)
    return found


class Release:
    """One release, from its inputs to its archives."""

    def __init__(self, module: AnsibleModule) -> None:
        options = module.params
        self.module = module
        self.app = Path(options["app_dir"])
        self.cache = Path(options["cache_dir"])
        self.files = [Path(path) for path in options["files"]]
        self.code = [Path(path) for path in options["code"]]
        self.further = Path(options["requirements"]) if options["requirements"] else None
        self.targets = [Target(str(one["python"]), one["arch"], one["torch"]) for one in options["targets"]]
        self.builds: dict[str, dict] = options["torch_builds"]
        self.extras = sorted(set(options["extras"]))
        self.wheelhouse = Wheelhouse(sys.executable, self.cache, self.say)
        self.check_inputs()
        self.version = tomllib.loads((self.app / "pyproject.toml").read_text())["project"]["version"]
        self.id = f"{self.version}-{content_hash(self.inputs(), [LAYOUT, self.extras, self.builds])[:12]}"

    def say(self, text: str) -> None:
        """Note progress where a person can follow a long build."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with (self.cache / "build.log").open("a") as log:
            log.write(f"{datetime.datetime.now(datetime.timezone.utc):%H:%M:%S} {text}\n")

    def check_inputs(self) -> None:
        """Refuse files that are not there, before anything is made."""
        for path in [*self.files, *self.code, *filter(None, [self.further])]:
            if not path.exists():
                raise BuildError(
                    f"{path} is named by a service or by release_code or release_requirements, but is not there."
                )
        # The OCR networks lie in a folder of that name.
        names = [*(path.name for path in self.files), *(["ocr"] if "ocr" in self.extras else [])]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BuildError(f"several services name different files with the same name: {', '.join(twice)}.")
        for target in self.targets:
            if target.torch and target.torch not in self.builds:
                raise BuildError(
                    f"release_torch_build is {target.torch!r}; known builds: {', '.join(sorted(self.builds))}. "
                    "Others can be added in release_torch_builds."
                )

    def inputs(self) -> list[tuple[str, Path]]:
        """Everything that decides what the release is, with a name that does not depend on this machine."""
        parts = [(str(path.relative_to(self.app)), path) for path in files_below(self.app / "src")]
        parts += [(name, self.app / name) for name in ("pyproject.toml", "uv.lock")]
        for path in self.files:
            parts += [(f"models/{one.relative_to(path.parent)}", one) for one in self.files_of(path)]
        for folder in self.code:
            parts += [(f"code/{one.relative_to(folder.parent)}", one) for one in files_below(folder)]
        if self.further:
            parts.append(("requirements", self.further))
        return parts

    def files_of(self, path: Path) -> list[Path]:
        """A file that goes into ``models/``, or all that lie in a folder which does."""
        return files_below(path) if path.is_dir() else [path]

    def requirements(self, target: Target) -> list[Requirement]:
        """Pinned and hashed packages of one kind of host."""
        command = [
            self.module.params["uv"],
            "export",
            "--project",
            str(self.app),
            "--frozen",
            "--no-dev",
            "--no-emit-project",
        ]
        command += ["--no-header", "--no-annotate", "--quiet", "--format", "requirements.txt"]
        for extra in ["serve", *self.extras]:
            command += ["--extra", extra]
        wanted = for_target(parse_lock(run(command, say="reading app/uv.lock")), target)
        if self.further:
            wanted += further_requirements(self.further, wanted, target)
        if "torch" in self.extras and target.torch != "cuda":
            wanted = [one for one in wanted if not CUDA_ONLY.match(one.name)]
            wanted.append(self.wheelhouse.torch_requirement(self.builds[target.torch], target.torch))
        return wanted

    def environment(self, target: Target) -> dict:
        """Make the archive of wheels of one kind of host, unless the cache has it."""
        wanted = self.requirements(target)
        text = "\n".join(sorted(one.line() for one in wanted))
        key = hashlib.sha256(f"{LAYOUT}\n{target.label}\n{text}".encode()).hexdigest()[:12]
        name = f"py{target.python}-{key}"
        archive = self.cache / "environments" / f"{name}.tar"
        listing = archive.with_suffix(".json")
        made = not (archive.is_file() and listing.is_file())
        if made and not self.module.check_mode:
            wheels = self.wheelhouse.make(wanted, target, self.builds.get(target.torch, {}), archive)
            partial = listing.with_name(f"{listing.name}.partial")
            partial.write_text(json.dumps(wheels, indent=1))
            partial.rename(listing)
        uwsgi = next(one.version for one in wanted if one.name == "pyuwsgi")
        return {
            "id": name, "label": target.label, "archive": str(archive), "made": made, "uwsgi": uwsgi,
            "python": target.python, "arch": target.arch, "torch": target.torch,
        }  # fmt: skip

    def archive(self, environments: list[dict]) -> tuple[Path, bool]:
        """Make the archive of the release itself: package, models and ``REVISION.json``."""
        archive = self.cache / "releases" / f"{self.id}.tar"
        if archive.is_file() or self.module.check_mode:
            return archive, not archive.is_file()
        work = self.cache / f"release-{os.getpid()}"
        try:
            self.say(f"making release {self.id}")
            self.unpack_package(work / "app")
            self.place_models(work / "models", Path(environments[0]["archive"]))
            revision = {
                "id": self.id,
                "version": self.version,
                "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "source": self.source(),
                "extras": self.extras,
                "models": {
                    str(path.relative_to(work / "models")): sha256_of(path)
                    for path in sorted((work / "models").rglob("*"))
                    if path.is_file()
                },
                "environments": {
                    one["id"]: {
                        "target": one["label"],
                        "wheels": json.loads(Path(one["archive"]).with_suffix(".json").read_text()),
                    }
                    for one in environments
                },
            }
            (work / "REVISION.json").write_text(json.dumps(revision, indent=1) + "\n")
            write_tar(archive, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return archive, True

    def unpack_package(self, into: Path) -> None:
        """Build the wheel of the package and lay it and the user's own code into a folder."""
        wheels = into.parent / "wheel"
        run(
            [self.module.params["uv"], "build", "--quiet", "--wheel", "--out-dir", str(wheels), str(self.app)],
            say="building the wheel of the package",
        )
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as content:
            content.extractall(into)  # noqa: S202 - built by ourselves a moment ago
        shutil.rmtree(wheels)
        for folder in self.code:
            for path in files_below(folder):
                # A package keeps its name; loose modules lie at the top.
                base = folder.parent if (folder / "__init__.py").exists() else folder
                target = into / path.relative_to(base)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)

    def place_models(self, into: Path, wheels: Path) -> None:
        """Convert the OCR networks when a service needs them, and copy the files that services name."""
        into.mkdir(parents=True)
        if "ocr" in self.extras:
            with tarfile.open(wheels) as tar:
                name = next(entry for entry in tar.getnames() if entry.startswith("rapidocr-"))
                tar.extract(name, into.parent, filter="data")
            wheel = into.parent / name
            run(
                [sys.executable, "-m", "inference.models.ocr.convert", "--wheel", str(wheel), "--out", str(into)],
                say="converting the OCR networks", env={"PYTHONPATH": str(self.app / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
            wheel.unlink()
        for path in self.files:
            for one in self.files_of(path):
                target = into / one.relative_to(path.parent)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(one, target)

    def source(self) -> dict[str, object]:
        """The commit that the release was made from, where there is one."""

        def git(*arguments: str) -> str | None:
            try:
                done = subprocess.run(
                    ["git", "-C", str(self.app), *arguments], capture_output=True, text=True, check=False
                )
            except FileNotFoundError:
                return None
            return done.stdout.strip() if done.returncode == 0 else None

        status = git("status", "--porcelain")
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(status) if status is not None else None}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "app_dir": {"type": "path", "required": True},
            "cache_dir": {"type": "path", "required": True},
            "uv": {"type": "path", "required": True},
            "extras": {"type": "list", "elements": "str", "default": []},
            "targets": {"type": "list", "elements": "dict", "required": True},
            "torch_builds": {"type": "dict", "required": True},
            "files": {"type": "list", "elements": "path", "default": []},
            "code": {"type": "list", "elements": "path", "default": []},
            "requirements": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    cache = Path(module.params["cache_dir"])
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Two deploys at once share the cache: the second waits and then finds everything made.
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in [*cache.glob("making-*"), *cache.glob("release-*"), *cache.glob("*/*.partial")]:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            release = Release(module)
            environments = [release.environment(target) for target in release.targets]
            archive, made = release.archive(environments)
    except BuildError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"The release cannot be written: {error}. Is the disk of the controller full? (df -h {cache})"
        )
    module.exit_json(
        # Files of a cache are not a change of the fleet.
        changed=False,
        id=release.id,
        archive=str(archive),
        made=made,
        environments=environments,
    )


if __name__ == "__main__":
    main()
