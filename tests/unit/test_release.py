"""Releases: made on the controller with the same id for the same content, laid on hosts, and pruned."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ansible_modules
import pytest
import tree
import wheelhouse
import yaml
from processes import wait_for
from stack import Json

release_build = ansible_modules.load("modules", "release_build")
release_install = ansible_modules.load("modules", "release_install")
UV = Path(sys.executable).parent / "uv"
BUILDS = yaml.safe_load((tree.ROOT / "roles/release/vars/main/torch_builds.yml").read_text())["__release_torch_builds"]
CPU = {"python": "3.11", "arch": "x86_64", "torch": "cpu"}

# ---- made on the controller


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A project like app/, but small."""
    folder = tmp_path / "app"
    (folder / "src" / "inference").mkdir(parents=True)
    (folder / "src" / "inference" / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text('[project]\nname = "inference"\nversion = "1.2.3"\n')
    (folder / "uv.lock").write_text("version = 1\n")
    return folder


def build(app: Path, check_mode: bool = True, **options: Any) -> Any:
    params = {
        "app_dir": str(app),
        "cache_dir": str(app.parent / "cache"),
        "uv": str(UV),
        "extras": ["torch"],
        "targets": [CPU],
        "torch_builds": BUILDS,
        "files": [],
        "code": [],
        "requirements": "",
        **options,
    }
    return release_build.Release(SimpleNamespace(params=params, check_mode=check_mode))


def test_the_id_is_the_version_and_a_hash_of_the_content(app: Path, tmp_path: Path) -> None:
    first = build(app).id
    assert first.startswith("1.2.3-")
    assert len(first) == len("1.2.3-") + 12
    elsewhere = shutil.copytree(app, tmp_path / "dist" / ".venv" / "app")
    assert build(elsewhere, cache_dir="/elsewhere").id == first, "wherever the project lies"
    (app / "src" / "inference" / "__init__.py").touch()
    (app / "src" / "inference" / "__pycache__").mkdir()
    (app / "src" / "inference" / "__pycache__" / "x.cpython-311.pyc").touch()
    (app / "tests").mkdir()
    (app / "tests" / "test_it.py").touch()
    assert build(app, targets=[{**CPU, "python": "3.13"}], extras=["torch", "torch"]).id == first


def add_file(app: Path) -> Json:
    (app / "src" / "inference" / "new.py").touch()
    return {}


def change_file(app: Path) -> Json:
    (app / "src" / "inference" / "__init__.py").write_text("x = 1")
    return {}


def rename_file(app: Path) -> Json:
    (app / "src" / "inference" / "__init__.py").rename(app / "src" / "inference" / "other.py")
    return {}


def change_lock(app: Path) -> Json:
    (app / "uv.lock").write_text("version = 2\n")
    return {}


def change_project(app: Path) -> Json:
    (app / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "1.2.3"\n')
    return {}


def own(app: Path, name: str, text: str = "") -> Path:
    path = app.parent / "own" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


CHANGES: dict[str, Callable[[Path], Json]] = {
    "a file more": add_file,
    "a file changed": change_file,
    "a file renamed": rename_file,
    "lock": change_lock,
    "project": change_project,
    "extras": lambda app: {"extras": ["ocr", "torch"]},
    "torch builds": lambda app: {"torch_builds": {**BUILDS, "cu126": {"version": "2.13.0+cu126"}}},
    "program": lambda app: {"files": [str(own(app, "cats.pt2"))]},
    "another program": lambda app: {"files": [str(own(app, "cats.pt2", "other weights"))]},
    "a folder of files": lambda app: {"files": [str(own(app, "cats/model.pt").parent)]},
    "another file in it": lambda app: {"files": [str(own(app, "cats/model.pt", "other weights").parent)]},
    "a program's name": lambda app: {"files": [str(own(app, "dogs.pt2"))]},
    "code": lambda app: {"code": [str(own(app, "mine/cats.py").parent)]},
    "other code": lambda app: {"code": [str(own(app, "mine/cats.py", "x = 1").parent)]},
    "requirements": lambda app: {"requirements": str(own(app, "requirements.txt"))},
}


def test_everything_that_goes_in_changes_the_id(app: Path) -> None:
    ids = {"nothing": build(app).id}
    for name, change in CHANGES.items():
        copy = shutil.copytree(app.parent / "app", app.parent / name / "app")
        ids[name] = build(copy, **change(copy)).id
    assert len(set(ids.values())) == len(ids), ids


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"files": ["/no/such/cats.pt2"]}, "/no/such/cats.pt2 is named by a service or by release_code"),
        ({"code": ["/no/such/folder"]}, "/no/such/folder is named by"),
        ({"requirements": "/no/such/requirements.txt"}, "/no/such/requirements.txt is named by"),
        ({"targets": [{**CPU, "torch": "cu99"}]}, "release_torch_build is 'cu99'; known builds: cpu, cuda"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(app: Path, options: Json, said: str) -> None:
    with pytest.raises(wheelhouse.BuildError, match=said):
        build(app, **options)


def test_two_files_of_one_name_are_refused(app: Path) -> None:
    files = [str(own(app, f"{folder}/cats.pt2", folder)) for folder in "ab"]
    with pytest.raises(wheelhouse.BuildError, match=r"different files with the same name: cats\.pt2"):
        build(app, files=files)
    with pytest.raises(wheelhouse.BuildError, match="different files with the same name: ocr"):
        build(app, files=[str(own(app, "ocr"))], extras=["ocr"])


HASH = f"--hash=sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "tokenizers>=0.20",
            r"own/requirements\.txt has a line .*: .tokenizers>=0\.20.\. Pin it as docs/own-model",
        ),
        ("tokenizers==0.20.0", r"own/requirements\.txt: tokenizers==0\.20\.0 has no --hash"),
        (f"Flask==2.0.0 {HASH}", r"pins Flask 2\.0\.0, and the app is tested with 3\."),
    ],
)
def test_requirements_that_cannot_be_installed_are_refused(app: Path, text: str, said: str) -> None:
    release = build(tree.ROOT / "app", cache_dir="/nowhere", requirements=str(own(app, "requirements.txt", text)))
    with pytest.raises(wheelhouse.BuildError, match=said):
        release.requirements(wheelhouse.Target("3.11", "x86_64", "cpu"))


def test_requirements_of_ones_own_come_to_those_of_the_app(app: Path) -> None:
    """As `uv pip compile` writes them; a package that the app has too is taken once."""
    target = wheelhouse.Target("3.11", "x86_64", "cpu")
    plain = build(tree.ROOT / "app", cache_dir="/nowhere").requirements(target)
    (flask,) = (one for one in plain if one.name == "flask")
    (torch,) = (one for one in plain if one.name == "torch")
    text = (
        f"# made by uv\nFlask=={flask.version} \\\n    {HASH}\n    # via -r in\n"
        f"tokenizers==0.20.0 ; python_full_version < '4' \\\n    {HASH} \\\n    {HASH}\n"
        f"tomli==2.0.1 ; python_version < '3.11' {HASH}\ntorch=={torch.version.split('+')[0]} {HASH}\n"
    )
    release = build(tree.ROOT / "app", cache_dir="/nowhere", requirements=str(own(app, "requirements.txt", text)))
    found = {one.name: one for one in release.requirements(target)}
    assert sorted(found) == sorted([*(one.name for one in plain), "tokenizers"])
    assert found["torch"] == torch, "the build of the host"
    assert found["flask"] == flask


def test_check_mode_of_the_real_app(tmp_path: Path) -> None:
    """Ids of the release and of each kind of host, worked out from the lock alone."""
    arguments = {
        "app_dir": str(tree.ROOT / "app"),
        "cache_dir": str(tmp_path),
        "uv": str(UV),
        "extras": ["ocr", "torch"],
        "targets": [CPU, {**CPU, "torch": "cuda"}, {**CPU, "python": "3.13"}],
        "torch_builds": BUILDS,
    }
    found = ansible_modules.run("release_build", arguments, check=True)
    assert (found["failed"], found["changed"]) == (False, False)
    environments = found["environments"]
    assert len({one["id"] for one in environments}) == 3
    assert [one["id"].split("-")[0] for one in environments] == ["py3.11", "py3.11", "py3.13"]
    assert {one["uwsgi"] for one in environments} == {"2.0.30.post1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"], "nothing was fetched or made"
    again = ansible_modules.run("release_build", {**arguments, "targets": [CPU]}, check=True)
    assert again["id"] == found["id"]
    assert again["environments"] == environments[:1]


@pytest.mark.parametrize(("torch", "version"), [("cpu", "2.13.0+cpu"), ("cuda", "2.13.0")])
def test_each_kind_of_host_gets_its_torch(torch: str, version: str) -> None:
    release = build(tree.ROOT / "app", cache_dir="/nowhere", extras=["ocr", "torch"])
    found = {one.name: one.version for one in release.requirements(wheelhouse.Target("3.11", "x86_64", torch))}
    assert found["torch"] == version
    assert any(name.startswith("nvidia-") for name in found) == (torch == "cuda")
    without = build(tree.ROOT / "app", cache_dir="/nowhere", extras=[])
    assert "torch" not in {one.name for one in without.requirements(wheelhouse.Target("3.11", "x86_64", torch))}


def test_the_archive_of_a_release(tmp_path: Path) -> None:
    """The real package by the real uv, a program, and modules of one's own."""
    (tmp_path / "own" / "package").mkdir(parents=True)
    (tmp_path / "own" / "package" / "__init__.py").touch()
    (tmp_path / "own" / "loose").mkdir()
    (tmp_path / "own" / "loose" / "cats.py").touch()
    program = tmp_path / "own" / "cats.pt2"
    program.write_bytes(b"weights")
    weights = tmp_path / "own" / "dogs"
    (weights / "vocabulary").mkdir(parents=True)
    (weights / "model.pt").write_bytes(b"more")
    (weights / "vocabulary" / "words.txt").write_text("woof")
    release = build(
        tree.ROOT / "app",
        check_mode=False,
        cache_dir=str(tmp_path / "cache"),
        extras=[],
        files=[str(program), str(weights)],
        code=[str(tmp_path / "own" / "package"), str(tmp_path / "own" / "loose")],
    )
    wheels = tmp_path / "cache" / "environments" / "py3.11-x.tar"
    wheels.parent.mkdir(parents=True)
    wheels.with_suffix(".json").write_text('[{"name": "flask"}]')
    archive, made = release.archive([{"id": "py3.11-x", "label": "py3.11", "archive": str(wheels)}])
    assert made
    assert release.archive([]) == (archive, False), "made once"
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
        revision = json.loads((tar.extractfile("REVISION.json") or pytest.fail("no revision")).read())
    assert {"app/inference/wsgi.py", "app/package/__init__.py", "app/cats.py", "models/cats.pt2"} <= names
    # The page too, which is no code: nginx looks for its files there.
    page = [path.name for path in (tree.ROOT / "app" / "src" / "inference" / "page").iterdir()]
    assert {f"app/inference/page/{name}" for name in [*page, "index.html", "status.html"]} <= names
    assert {"models/dogs/model.pt", "models/dogs/vocabulary/words.txt"} <= names
    assert not [name for name in names if name.startswith(("app/tests", "wheel"))]
    assert revision["id"] == release.id
    assert revision["models"] == {
        "cats.pt2": sha256(b"weights").hexdigest(),
        "dogs/model.pt": sha256(b"more").hexdigest(),
        "dogs/vocabulary/words.txt": sha256(b"woof").hexdigest(),
    }
    assert revision["environments"] == {"py3.11-x": {"target": "py3.11", "wheels": [{"name": "flask"}]}}
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["build.log", "environments", "releases"]


# ---- laid on a host


def wheel(folder: Path, name: str, version: str, text: str = "") -> Path:
    """A wheel that pip takes."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{file},sha256={urlsafe_b64encode(sha256(content.encode()).digest()).rstrip(b'=').decode()},{len(content)}\n"
        for file, content in files.items()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(file, content)
    return path


class Host:
    """Folders like those of a host, and archives like those that a deploy copies there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "fleet"
        self.incoming = self.root / "incoming"
        self.devices = folder / "devices"
        self.root.mkdir()

    def copy_archives(self, release: str = "r1", environment: str = "py3-a", spoil: bool = False) -> None:
        """What the deploy copies before it has the module install."""
        self.incoming.mkdir(exist_ok=True)
        wheels = self.folder / "wheels"
        wheels.mkdir(exist_ok=True)
        wheel(wheels, "pyuwsgi", "2.0.30")
        wheel(wheels, "tiny", "1.0", "answer = 42\n")
        lines = [
            f"{one['name']}=={one['version']} --hash=sha256:{one['sha256']}" for one in wheelhouse.describe(wheels)
        ]
        (wheels / "requirements.txt").write_text("\n".join(lines) + "\n")
        if spoil:
            wheel(wheels, "tiny", "1.0", "answer = 'stolen'\n")
        wheelhouse.write_tar(self.incoming / f"{environment}.tar", wheels)
        content = self.folder / "content"
        (content / "app" / "inference").mkdir(parents=True, exist_ok=True)
        (content / "app" / "inference" / "__init__.py").touch()
        (content / "models").mkdir(exist_ok=True)
        revision = {"id": release, "version": "1.2.3", "created": "2026-01-01T00:00:00+00:00"}
        (content / "REVISION.json").write_text(json.dumps(revision))
        wheelhouse.write_tar(self.incoming / f"{release}.tar", content)

    def arguments(self, state: str, release: str = "r1", environment: str = "py3-a", **more: Any) -> Json:
        return {
            **{"state": state, "id": release, "environment": environment, "uwsgi": "2.0.30"},
            **{"root": str(self.root), "incoming": str(self.incoming), "devices_dir": str(self.devices)},
            "audit_log": str(self.folder / "audit.log"),
            **more,
        }

    def run(self, state: str, *names: str, check: bool = False, **more: Any) -> Json:
        return ansible_modules.run("release_install", self.arguments(state, *names, **more), check=check)

    def missing(self, *names: str) -> list[str]:
        return [what for what, lacks in self.run("query", *names)["missing"].items() if lacks]

    def complete(self, *folders: str) -> None:
        """Virtual environments that are there already, to save the time of making them."""
        for folder in folders:
            (self.root / folder / "bin").mkdir(parents=True)
            (self.root / folder / "bin" / "python").symlink_to(sys.executable)
            (self.root / folder / ".complete").touch()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def imports(folder: Path, name: str) -> bool:
    """Whether the Python of a virtual environment can import something."""
    command: list[str | Path] = [folder / "bin" / "python", "-c", f"import {name}"]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def test_a_bare_host_gets_everything_also_after_a_run_that_was_killed(host: Host) -> None:
    query = host.run("query")
    assert query["missing"] == {"release": True, "environment": True, "uwsgi": True}
    assert query["release_dir"] == f"{host.root}/releases/r1"
    assert query["uwsgi_home"] == f"{host.root}/uwsgi/2.0.30-py3"
    host.copy_archives()
    assert host.run("present", check=True)["changed"]
    assert sorted(path.name for path in host.root.iterdir()) == ["incoming"], "check mode"

    process = ansible_modules.begin("release_install", host.arguments("present"))
    uwsgi = Path(query["uwsgi_home"])
    wait_for((uwsgi / "bin" / "python").exists, "the first environment to be half made")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    release = host.root / "releases" / "r1"
    release.with_name(".r1.partial").mkdir(parents=True)
    (release.with_name(".r1.partial") / "REVISION.json").write_text("half")
    assert host.missing() == ["release", "environment", "uwsgi"]

    host.copy_archives()
    installed = host.run("present")
    assert not installed["failed"], installed
    assert installed["changed"]
    assert installed["revision"] == {"id": "r1", "version": "1.2.3", "created": "2026-01-01T00:00:00+00:00"}
    assert host.missing() == []
    assert not host.incoming.exists(), "archives are not kept"
    assert [path.name for path in (host.root / "releases").iterdir()] == ["r1"]
    assert str((release / "venv").readlink()) == "../../environments/py3-a"
    assert (release / "app" / "inference" / "__pycache__").is_dir(), "workers could not write it"
    assert imports(release / "venv", "tiny")
    assert imports(uwsgi, "pyuwsgi")
    assert not imports(uwsgi, "tiny"), "emperors have their own, with uWSGI only"
    assert not host.run("present")["changed"]


def test_a_wheel_with_another_hash_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.complete("uwsgi/2.0.30-py3")
    host.copy_archives(spoil=True)
    run = release_install.Host.run

    def quick(self: Any, *command: str, say: str) -> None:
        """Lend the environment this Python's pip, since making one with its own takes long."""
        if "venv" in command:
            run(self, *command, "--without-pip", say=say)
            (packages,) = Path(command[-1]).glob("lib/python*/site-packages")
            (packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
        else:
            run(self, *command, say=say)

    monkeypatch.setattr(release_install.Host, "run", quick)
    refused = ansible_modules.call(release_install, host.arguments("present"))
    assert refused["failed"]
    assert "installing the packages failed" in refused["msg"]
    assert "DO NOT MATCH THE HASHES" in refused["msg"]
    assert host.missing() == ["release", "environment"]
    host.copy_archives()
    assert not ansible_modules.call(release_install, host.arguments("present"))["failed"]
    assert imports(host.root / "environments" / "py3-a", "tiny")


def test_a_release_that_wants_another_environment_keeps_its_files(host: Host) -> None:
    """Processes run from them; the link is changed in one step."""
    host.complete("uwsgi/2.0.30-py3", "environments/py3-a", "environments/py3-b")
    host.copy_archives()
    host.run("present")
    revision = host.root / "releases" / "r1" / "REVISION.json"
    before = revision.stat()
    assert host.missing("r1", "py3-b") == ["release"]
    host.incoming.mkdir()
    assert host.run("present", "r1", "py3-b")["changed"]
    assert str((revision.parent / "venv").readlink()) == "../../environments/py3-b"
    assert (revision.stat().st_ino, revision.stat().st_mtime) == (before.st_ino, before.st_mtime)
    assert sorted(path.name for path in revision.parent.iterdir()) == ["REVISION.json", "app", "models", "venv"]


def test_a_damaged_archive_is_told(host: Host) -> None:
    host.complete("uwsgi/2.0.30-py3", "environments/py3-a")
    host.copy_archives()
    archive = host.incoming / "r1.tar"
    archive.write_bytes(archive.read_bytes()[:700])
    damaged = host.run("present")
    assert damaged["failed"]
    assert "may simply be run again" in damaged["msg"]
    assert host.missing() == ["release"]


def test_a_disk_that_would_be_filled_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.copy_archives()
    size = (host.incoming / "py3-a.tar").stat().st_size
    usage = {"free": 5 * size - 1}
    monkeypatch.setattr(release_install.shutil, "disk_usage", lambda path: SimpleNamespace(**usage))
    refused = ansible_modules.call(release_install, host.arguments("present"))
    assert refused["failed"]
    assert f"{host.root} has 0 MiB free; installing py3-a.tar takes about" in refused["msg"]
    assert "lower release_keep" in refused["msg"]
    assert [path.name for path in host.root.iterdir()] == ["incoming"]


def test_a_disk_that_fills_up_meanwhile_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.complete("uwsgi/2.0.30-py3", "environments/py3-a")
    host.copy_archives()

    def full(archive: Path, into: Path) -> None:
        into.mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(release_install, "unpack", full)
    told = ansible_modules.call(release_install, host.arguments("present"))
    assert told["failed"]
    assert "No space left on device" in told["msg"]
    assert "Is the disk full?" in told["msg"]
    assert host.missing() == ["release"]


# ---- pruned


@pytest.fixture
def full_host(host: Host) -> Host:
    """Six releases, r1 the oldest; r1 to r3 share an environment, the others have one each."""
    for number in range(1, 7):
        release = host.root / "releases" / f"r{number}"
        release.mkdir(parents=True)
        (release / "REVISION.json").write_text("{}")
        environment = "py3-old" if number <= 3 else f"py3-{number}"
        (host.root / "environments" / environment).mkdir(parents=True, exist_ok=True)
        (release / "venv").symlink_to(f"../../environments/{environment}")
        stamp = time.time() - 1000 + number
        os.utime(release, (stamp, stamp))
    (host.root / "environments" / "py3-unused").mkdir()
    return host


def left(host: Host) -> tuple[str, str]:
    return tuple(  # type: ignore[return-value]
        " ".join(sorted(path.name for path in (host.root / folder).iterdir()))
        for folder in ("releases", "environments")
    )


def run_from(host: Host, device: str, release: str) -> None:
    folder = host.devices / device / "vassals"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"ocr--{release}-123abc.ini").write_text(
        f"[uwsgi]\nchdir = {host.root}/releases/{release}\nworkers = 1\n"
    )


def test_the_newest_releases_stay(full_host: Host) -> None:
    planned = full_host.run("pruned", "r6", "py3-6", check=True)
    assert planned["changed"]
    assert left(full_host)[0] == "r1 r2 r3 r4 r5 r6", "check mode"
    pruned = full_host.run("pruned", "r6", "py3-6")
    assert pruned["removed"] == planned["removed"]
    assert left(full_host) == ("r4 r5 r6", "py3-4 py3-5 py3-6")
    assert sorted(Path(path).name for path in pruned["removed"]) == ["py3-old", "py3-unused", "r1", "r2", "r3"]
    assert not full_host.run("pruned", "r6", "py3-6")["changed"]


@pytest.mark.parametrize(("keep", "expected"), [(1, "r5 r6"), (0, "r5 r6"), (2, "r5 r6"), (5, "r2 r3 r4 r5 r6")])
def test_the_running_and_the_former_one_stay_whatever_is_asked(full_host: Host, keep: int, expected: str) -> None:
    full_host.run("pruned", "r6", "py3-6", keep=keep)
    assert left(full_host)[0] == expected


def test_what_a_vassal_runs_from_stays_however_old(full_host: Host) -> None:
    run_from(full_host, "gpu0", "r6")
    run_from(full_host, "gpu1", "r1")
    full_host.run("pruned", "r6", "py3-6", keep=2)
    assert left(full_host) == ("r1 r6", "py3-6 py3-old")


def test_a_release_that_came_back_stays(full_host: Host) -> None:
    """After a rollback the running one is not the newest."""
    full_host.run("pruned", "r2", "py3-old", keep=3)
    assert left(full_host) == ("r2 r5 r6", "py3-5 py3-6 py3-old")


def test_what_killed_runs_left_behind_goes(full_host: Host) -> None:
    (full_host.root / "releases" / ".r7.partial").mkdir()
    full_host.run("pruned", "r6", "py3-6", keep=6)
    assert left(full_host)[0] == "r1 r2 r3 r4 r5 r6"


def test_a_host_without_releases_has_nothing_to_prune(host: Host) -> None:
    assert not host.run("pruned")["changed"]
