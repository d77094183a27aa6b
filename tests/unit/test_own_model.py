"""docs/own-model.md stays true: its files are those of the example, its blocks run, its inventories make a release."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from types import SimpleNamespace

import ansible_modules
import documents
import environments
import pytest
import tree
from stack import Json

release_build = ansible_modules.load("modules", "release_build")
services = ansible_modules.load("filter", "services")

PAGE = tree.ROOT / "docs" / "own-model.md"
EXAMPLE = tree.ROOT / "examples" / "own_model"
SYSTEM = platform.freedesktop_os_release()
FILE = re.compile(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INVENTORIES = sorted(path.name for path in EXAMPLE.glob("inventory-*.yml"))
#: A play that checks an inventory as deploy does, works out the release, and tells what would go into it and run.
PLAYBOOK = (
    ansible_modules.PREFLIGHT
    + """\
  tasks:
    - name: Work out the release
      ansible.builtin.import_role:
        name: release
        tasks_from: build.yml
      # Nothing is fetched or made.
      check_mode: true
      vars:
        __release_target: { python: "3.11", arch: x86_64, torch: cpu }
    - name: Tell
      ansible.builtin.copy:
        content: "{{ {'services': services | services_resolve, 'code': release_code, 'id': made.id} | to_json }}"
        dest: "{{ found }}"
        mode: "0600"
      vars:
        made: "{{ __release_built }}"
"""
)
#: Run in the release by the app's Python: the answer to the service's sample, by the app that uWSGI would load.
ASK = """
import importlib, json, sys
module, callable, route, body, content_type = sys.argv[1:]
client = getattr(importlib.import_module(module), callable).test_client()
answer = client.post(route, data=open(body, "rb").read(), content_type=content_type)
ready = client.get("/readyz")
print(json.dumps([answer.status_code, answer.get_json(), ready.status_code]))
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example below a folder in which the page's commands have been run."""
    folder = tmp_path_factory.mktemp("own")
    ignored = shutil.ignore_patterns("models", "__pycache__")
    shutil.copytree(EXAMPLE, folder / "examples" / "own_model", ignore=ignored)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("INFERENCE_")}
    environment["PATH"] = os.pathsep.join([str(environments.app().parent), environment["PATH"]])
    environment["TMPDIR"] = str(folder)
    documents.check(PAGE, folder, environment, ("8111", "8112"), "examples/own_model/models/*.log")
    return folder / "examples" / "own_model"


@pytest.fixture(scope="module")
def inventories(example: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Json]:
    """What each inventory says, once it has passed the checks of a deploy; run side by side."""
    folder = tmp_path_factory.mktemp("inventories")
    (folder / "play.yml").write_text(PLAYBOOK)
    runs = {}
    for name in INVENTORIES:
        variables = {
            "found": str(folder / f"{name}.json"),
            "release_cache_dir": str(folder / "cache"),
            # This machine stands for the host, so its own system has to pass.
            "ansible_python_interpreter": sys.executable,
            "preflight_further_systems": [f"{SYSTEM['ID'].capitalize()} {SYSTEM['VERSION_ID']}"],
        }
        program = Path(sys.executable).parent / "ansible-playbook"
        runs[name] = subprocess.Popen(
            [program, "-i", example / name, folder / "play.yml", "-e", json.dumps(variables)],
            env=os.environ | {"ANSIBLE_CONFIG": str(tree.ROOT / "ansible.cfg")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    for name, run in runs.items():
        output, _ = run.communicate(timeout=180)
        assert run.returncode == 0, f"{name}: {output}"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in INVENTORIES}


def test_the_blocks_of_the_page_are_the_files() -> None:
    found = dict(FILE.findall(PAGE.read_text()))
    assert {str(path.relative_to(tree.ROOT)) for path in EXAMPLE.glob("inventory-*.yml")} <= set(found)
    different = [name for name, text in found.items() if text != (tree.ROOT / name).read_text()]
    assert not different, "copy them into the page"
    shown = {Path(name).name for name in found}
    assert {path.name for path in EXAMPLE.rglob("*.py")} - shown == {"__init__.py", "train.py"}


def test_the_page_names_the_torch_that_hosts_get() -> None:
    project = tomllib.loads((tree.ROOT / "app" / "pyproject.toml").read_text())["project"]
    (pinned,) = project["optional-dependencies"]["torch"]
    versions = set(re.findall(r"torch(?:==| version that hosts get, )(\d[\d.]*\d)", PAGE.read_text()))
    assert {f"torch=={version}" for version in versions} == {pinned}


def laid_out(inventory: Json, folder: Path) -> Path:
    """The release that an inventory asks for, but for its packages: made as by deploy, and unpacked as on a host."""
    params = {
        "app_dir": str(tree.ROOT / "app"),
        "cache_dir": str(folder / "cache"),
        "uv": str(Path(sys.executable).parent / "uv"),
        "extras": services.services_extras(inventory["services"]),
        "targets": [],
        "torch_builds": {},
        "files": [path for one in inventory["services"] for path in [one["program"], *one["files"]] if path],
        "code": inventory["code"],
        "requirements": "",
    }
    release = release_build.Release(SimpleNamespace(params=params, check_mode=False))
    wheels = folder / "wheels.tar"
    wheels.with_suffix(".json").write_text("[]")
    archive, _ = release.archive([{"id": "py3.11-x", "label": "py3.11", "archive": str(wheels)}])
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "release", filter="data")
    return folder / "release"


@pytest.mark.parametrize("name", INVENTORIES)
def test_a_release_made_by_the_inventory_gives_the_known_answer(
    name: str, example: Path, inventories: dict[str, Json], tmp_path: Path
) -> None:
    inventory = inventories[name]
    (service,) = inventory["services"]
    release = laid_out(inventory, tmp_path)
    body, content_type = example / "shapes" / "sample.png", "image/png"
    expect = service["sample"].get("expect")
    if service["program"]:
        body, content_type = example / "models" / "request.json", "application/json"
        expect = {"outputs": service["options"]["sample"]["outputs"]}
    else:
        assert services.services_sample(service)["expect"] == expect
    vassal = {"service": {**service, "mode": "process"}, "device": {"name": "cpu0", "kind": "cpu"}}
    environment = services.services_environment(
        {**vassal, "fit": {}, "compute_threads": 1}, {"dir": str(release), "id": inventory["id"]}
    )
    done = subprocess.run(
        [environments.app(), "-c", ASK, service["module"], service["callable"], service["route"], body, content_type],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(release / "app"), **environment},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    status, answer, ready = json.loads(done.stdout.splitlines()[-1])
    assert (status, ready) == (200, 200), answer
    if service["program"]:
        assert answer["outputs"][0] == pytest.approx(expect["outputs"][0], abs=0.01)
    else:
        assert {key: answer[key] for key in expect} == expect


def test_ids_follow_the_weights(inventories: dict[str, Json]) -> None:
    """Another way to the same model is another release."""
    assert len({one["id"] for one in inventories.values()}) == len(INVENTORIES) == 3
