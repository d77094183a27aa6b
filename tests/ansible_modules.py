"""Runs the project's modules: as Ansible does, in a process of their own, or quicker within this one."""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils
import ansible.module_utils.basic
import tree

MODULE_UTILS = tree.ROOT / "plugins" / "module_utils"
# Ansible ships module_utils of a project within each module; here they are put beside its own.
START = """
import runpy, sys
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
sys.argv[:] = [sys.argv[2]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


# The same for tests: each file is one module, by whichever of its two names it is imported.
ansible.module_utils.__path__.append(str(MODULE_UTILS))
for name in sorted(path.stem for path in MODULE_UTILS.glob("*.py")):
    sys.modules[name] = importlib.import_module(f"ansible.module_utils.{name}")
#: A play that checks an inventory as every verb does; tasks may follow.
PREFLIGHT = """
- hosts: inference
  gather_facts: false
  roles:
    - preflight
    # Only for their variables.
    - { role: devices, tags: [never] }
    - { role: emperor, tags: [never] }
    - { role: nginx, tags: [never] }
    - { role: release, tags: [never] }
    - { role: site, tags: [never] }
    - { role: services, tags: [never] }
    - { role: verify, tags: [never] }
"""


def begin(name: str, arguments: Mapping[str, Any], **environment: str) -> subprocess.Popen[str]:
    """Start a module in a process group of its own and do not wait for it."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", START, MODULE_UTILS, tree.ROOT / "plugins" / "modules" / f"{name}.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )
    assert process.stdin
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": dict(arguments)}))
    process.stdin.close()
    process.stdin = None
    return process


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a module and give its result; whether it failed stands under ``failed``, always."""
    out, err = process.communicate(timeout=120)
    try:
        result: dict[str, Any] = json.loads(out)
    except ValueError:
        raise AssertionError(f"the module gave no result, exit status {process.returncode}\n{out}\n{err}") from None
    # As Ansible sees it: the word and the exit status have to agree.
    assert bool(process.returncode) == result.setdefault("failed", False), (process.returncode, result)
    return result


def load(kind: str, name: str) -> ModuleType:
    """Import a plugin by its file, for tests of its single functions: ``load("filter", "services")``."""
    path = Path(tree.ROOT, "plugins", kind, f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"fleet_{kind}_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(module: ModuleType, arguments: Mapping[str, Any], *, check: bool = False) -> dict[str, Any]:
    """Run an imported module in this process and give its result; what it prints and its exit status have to agree."""
    basic = ansible.module_utils.basic
    output = io.StringIO()
    former, umask = (basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE), os.umask(0o022)
    given = {**arguments, "_ansible_check_mode": check}
    basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = json.dumps({"ANSIBLE_MODULE_ARGS": given}).encode(), "legacy"
    try:
        with contextlib.redirect_stdout(output):
            module.main()
    except SystemExit as end:
        result: dict[str, Any] = json.loads(output.getvalue())
        assert bool(end.code) == result.setdefault("failed", False)
        return result
    finally:
        basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = former
        os.umask(umask)
    raise AssertionError("the module came to its end without a result")


def run(name: str, arguments: Mapping[str, Any], *, check: bool = False) -> dict[str, Any]:
    """Run a module in this process, which saves the time that a Python of its own takes to start."""
    return call(load("modules", name), arguments, check=check)
