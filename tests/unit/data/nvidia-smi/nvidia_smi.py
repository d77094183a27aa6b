#!/usr/bin/env python3
"""Stands in for nvidia-smi: answers as the machine that $NVIDIA_SMI_CASE names, from the files beside it.

CASE.csv holds what the driver answers to queries, CASE.list what it prints with -L; CASE.error, where there is one,
its exit status and what it says instead. Unknown fields and options are refused as the real program refuses them.
"""

import csv
import os
import sys
from pathlib import Path


def query(case: Path, fields: list[str]) -> int:
    rows = list(csv.DictReader(case.with_suffix(".csv").read_text().splitlines(), skipinitialspace=True))
    for field in fields:
        if field not in rows[0]:
            print(f'Field "{field}" is not a valid field to query.\n')
            return 2
    for row in rows:
        print(", ".join(row[field] for field in fields))
    return 0


def main(arguments: list[str]) -> int:
    case = Path(__file__).resolve().parent / os.environ["NVIDIA_SMI_CASE"]
    if case.with_suffix(".error").exists():
        status, _, said = case.with_suffix(".error").read_text().partition("\n")
        print(said, end="")
        return int(status)
    if arguments == ["-L"]:
        print(case.with_suffix(".list").read_text(), end="")
        return 0
    if (
        len(arguments) == 2
        and arguments[0].startswith("--query-gpu=")
        and arguments[1] == "--format=csv,noheader,nounits"
    ):
        return query(case, arguments[0].removeprefix("--query-gpu=").split(","))
    print(f"ERROR: Option {arguments[0]} is not recognized. Please run 'nvidia-smi -h'.\n")
    return 6


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
