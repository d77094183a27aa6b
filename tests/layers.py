"""The layers of the tests: what each runs, and how its results are counted."""

import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import environments
import tree

ROOT = tree.ROOT
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    layers: list[str]
    all: bool
    fail_fast: bool
    pytest: list[str]


@dataclass(frozen=True)
class Count:
    """Results of tests, linters and scenarios alike."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed" + (f", {self.skipped} skipped" if self.skipped else "")


def stream(command: Sequence[str | Path], cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> int:
    """Run a command that writes straight to our output; returns its exit status."""
    sys.stdout.flush()
    # Some of the tools colour their output even when it goes to a file.
    plain = {} if sys.stdout.isatty() else {"NO_COLOR": "1"}
    return subprocess.run(command, cwd=cwd, env={**os.environ, **plain, **(env or {})}).returncode


def pytest(name: str, python: Path, arguments: Sequence[str | Path], cwd: Path = ROOT) -> Count:
    """Run pytest and count what it reports; no test at all counts as a failure."""
    report = ROOT / ".cache" / "reports" / f"{name}.xml"
    report.unlink(missing_ok=True)
    # A folder of its own: pytest removes those of earlier runs, which may still be going on elsewhere on this machine.
    # Under /tmp and not in the project, because the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="fleet-", ignore_cleanup_errors=True) as folder:
        command = [python, "-m", "pytest", f"--junit-xml={report}", *arguments]
        status = stream(command, cwd, {"PYTEST_DEBUG_TEMPROOT": folder})
    if not report.exists():
        return Count(failed=1)
    # Made by our own pytest a moment ago: nothing to guard against.
    suites = ElementTree.parse(report).getroot().iter("testsuite")  # noqa: S314
    sums = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in suites:
        for key in sums:
            sums[key] += int(suite.get(key, "0"))
    failed = sums["failures"] + sums["errors"]
    # A run can fail without a failed test: nothing collected, a broken conftest, an interrupt.
    failed = max(failed, 1) if status else failed
    return Count(sums["tests"] - sums["failures"] - sums["errors"] - sums["skipped"], failed, sums["skipped"])


def check(name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Count:
    """Run a command that counts as one test."""
    started = time.monotonic()
    status = stream(command, env=env)
    verdict = f"FAILED (exit {status})" if status else "ok"
    print(f"{name}: {verdict}, {time.monotonic() - started:.1f} s", flush=True)
    return Count(failed=1) if status else Count(passed=1)


def lint(options: Options) -> Count:
    mypy: list[str | Path] = [BIN / "mypy", "--config-file", ROOT / "pyproject.toml"]
    python_files = [path for path in tree.files() if path.suffix == ".py" or path == ROOT / "tests" / "run"]
    ours = [
        path
        for path in python_files
        if path.relative_to(ROOT).parts[0] in {"bench", "checks", "plugins", "roles", "tests", "tools"}
    ]
    app = environments.app()
    checks: dict[str, list[str | Path]] = {
        "ruff check": [BIN / "ruff", "check", ROOT],
        "ruff format": [BIN / "ruff", "format", "--check", ROOT],
        "mypy (controller)": [*mypy, *ours],
        "mypy (app)": [*mypy, "--python-executable", app, ROOT / "app" / "src", ROOT / "examples"],
        "shellcheck": [BIN / "shellcheck", "--external-sources", f"--source-path={ROOT}", *tree.shell_scripts()],
        "yamllint": [BIN / "yamllint", "--strict", ROOT],
        "ansible-lint": [BIN / "ansible-lint", "--project-dir", ROOT],
    }
    return sum((check(name, command) for name, command in checks.items()), Count())


def app(options: Options) -> Count:
    folder = ROOT / "app"
    # The app's own settings, even where it has none: else pytest would take those of the controller.
    settings: list[str | Path] = ["--rootdir", folder, "--config-file", folder / "pyproject.toml"]
    return pytest("app", environments.app(), [*settings, *options.pytest, "tests"], folder)


def unit(options: Options) -> Count:
    environments.nginx()
    environments.browser()
    environments.logrotate()
    environments.monitoring()
    long = ["--all"] if options.all else []
    return pytest("unit", Path(sys.executable), [*long, *beside_each_other(options), "tests/unit"])


def beside_each_other(options: Options) -> list[str]:
    """Files of tests beside each other, as they wait more than they compute; not when pytest is told how to run."""
    return options.pytest or [f"--numprocesses={min(4, os.cpu_count() or 1)}", "--dist=loadfile"]


def contract(options: Options) -> Count:
    return pytest("contract", Path(sys.executable), [*options.pytest, "tests/contract"])


def scenarios(options: Options) -> list[Path]:
    """Molecule's scenarios; those with a line `# long: REASON` in their molecule.yml only when all are asked for."""
    found = sorted(path.parent for path in (ROOT / "molecule").glob("*/molecule.yml"))
    return [path for path in found if options.all or "\n# long: " not in (path / "molecule.yml").read_text()]


def molecule(options: Options) -> Count:
    """Each scenario in test hosts of its own. Where no host can run, CI fails and a person is told."""
    chosen = scenarios(options)
    if not chosen:
        raise environments.Unavailable("there is no scenario in molecule/")
    hosts = ROOT / "tests" / "hosts"
    answer = subprocess.run([hosts / "can-run"], stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        print(f"no test host can run here: {answer.stdout.strip()}", flush=True)
        missed = len(chosen)
        return Count(failed=missed) if os.environ.get("CI") == "true" else Count(skipped=missed)
    folders = [ROOT / "molecule" / "shared", *chosen]
    inventories = [path.read_text() for folder in folders for path in folder.rglob("*.yml")]
    releases = {
        name for text in inventories for name in re.findall(r"^\s*test_hosts_release: (\w+)$", text, re.MULTILINE)
    }
    if stream([hosts / "prepare", *sorted(releases)]):
        raise environments.Unavailable("the images of the test hosts could not be made")
    # Named, because Molecule finds it by itself only in a git checkout.
    settings = f"--base-config={ROOT / '.config' / 'molecule' / 'config.yml'}"
    test: list[str | Path] = [hosts / "run", BIN / "molecule", settings, "test", "--scenario-name"]
    # molecule/shared/tasks/api.yml looks for it. Made here, as the hosts of a scenario have no way to a package index.
    env = {"FLEET_TEST_SCHEMATHESIS": str(environments.schemathesis())} if options.all else {}
    return sum((check(scenario.name, [*test, scenario.name], env) for scenario in chosen), Count())


LAYERS: dict[str, Callable[[Options], Count]] = {
    "lint": lint,
    "app": app,
    "unit": unit,
    "contract": contract,
    "molecule": molecule,
}


def run(name: str, options: Options) -> Count:
    """Run one layer; what keeps it from running at all is a failure of this layer, not of the whole run."""
    try:
        return LAYERS[name](options)
    except environments.Unavailable as reason:
        print(f"{name}: {reason}", flush=True)
        return Count(failed=1)
