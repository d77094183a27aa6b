#!/usr/bin/env python3
"""Runs the plan without a window, and ends with 1 when an answer was wrong: JMeter itself ends with 0 then."""

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Debian's program, and what debian.bsh starts it from.
DEBIAN = Path("/usr/bin/jmeter")
DEBIAN_HOME = Path("/usr/share/jmeter")
DEBIAN_JARS = [DEBIAN_HOME / "bin" / "ApacheJMeter.jar", Path("/usr/share/java/bsh.jar")]
#: JMeter 2.13, which Debian has, is older than the walls between the modules of Java.
OPENED = ["java.base/java.lang", "java.base/java.lang.reflect", "java.base/java.util", "java.base/java.text"]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jmeter", default=shutil.which("jmeter") or "jmeter", help="the program; default: from PATH")
    parser.add_argument("--results", type=Path, help="keep JMeter's table of all samples in this file")
    parser.add_argument("properties", nargs="*", metavar="NAME=VALUE", help="host=…, port=…, threads=…, loops=…")
    given = parser.parse_args(arguments)
    for one in given.properties:
        if "=" not in one:
            parser.error(f"{one!r} is not of the form NAME=VALUE, such as port=8100")
    return given


def program(jmeter: str) -> list[str]:
    """The command that starts a JMeter; Debian's needs help."""
    if Path(jmeter) != DEBIAN or not all(path.exists() for path in DEBIAN_JARS):
        return [jmeter]
    opens = [f"--add-opens={package}=ALL-UNNAMED" for package in OPENED]
    jars = ":".join(map(str, DEBIAN_JARS))
    return ["java", *opens, f"-Djmeter.home={DEBIAN_HOME}", "-cp", jars, "bsh.Interpreter", str(HERE / "debian.bsh")]


def run(jmeter: str, properties: list[str], results: Path) -> None:
    """Have JMeter send all requests and write a row for each into a table.

    Raises:
        SystemExit: it did not run.
    """
    table = {"output_format": "csv", "print_field_names": "true", "assertion_results_failure_message": "true"}
    command = [
        *program(jmeter),
        *("-n", "-t", str(HERE / "ocr.jmx"), "-l", str(results), "-j", f"{results}.log"),
        *(f"-Jjmeter.save.saveservice.{name}={value}" for name, value in table.items()),
        f"-Jbodies={HERE.parent / 'bodies'}",
        f"-Jimage={HERE.parent.parent / 'app' / 'tests' / 'images' / 'receipt.png'}",
        *(f"-J{one}" for one in properties),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"{jmeter}: {error.strerror}; mend it with: sudo apt-get install jmeter jmeter-http")
    if done.returncode or not results.exists() or results.stat().st_size == 0:
        log = Path(f"{results}.log")
        sys.exit(f"JMeter did not run:\n{done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}")


def report(results: Path) -> int:
    """Print what each request came to; gives the number of wrong answers, or -1 when there was none at all."""
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = [row for row in rows if row["success"] != "true"]
    sent, failed = Counter(row["label"] for row in rows), Counter(row["label"] for row in wrong)
    for label, count in sent.items():
        slowest = max(int(row["elapsed"]) for row in rows if row["label"] == label)
        verdict = "FAILED" if failed[label] else "ok    "
        print(f"{verdict}  {label}: {count - failed[label]} of {count}, slowest {slowest} ms")
    for row in wrong[:20]:
        why = " ".join((row.get("failureMessage") or row["responseMessage"]).split())
        print(f"        {row['label']}: {row['responseCode']}: {why[:300]}")
    print(f"{len(rows) - len(wrong)} of {len(rows)} answers are right")
    return len(wrong) if rows else -1


def main() -> int:
    given = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.csv"
        run(given.jmeter, given.properties, results)
        if given.results:
            shutil.copy(results, given.results)
        return 1 if report(results) else 0


if __name__ == "__main__":
    sys.exit(main())
