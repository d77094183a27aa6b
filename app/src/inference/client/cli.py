"""The command ``inference``: what people ask a service from a shell."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import IO, Any

import click

from inference.client import Client, ClientError, Outcome, Problem

#: Exit status when a file failed; click has 2 for a wrong call.
SOME_FAILED = 1


class ImageFile(click.ParamType):
    """A file that is there, looked at before anything is sent; ``-`` is the standard input."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Look whether it can be read."""
        path = Path(value)
        if value == "-":
            return path
        if path.is_dir():
            self.fail(f"{value!r} is a directory; name its files, for example {value.rstrip('/')}/*.png", param, ctx)
        if not path.exists():
            self.fail(f"{value!r} does not exist, seen from {Path.cwd()}", param, ctx)
        if not os.access(path, os.R_OK):
            self.fail(f"{value!r} must not be read by this user", param, ctx)
        return path


class Header(click.ParamType):
    """``NAME: VALUE``, as curl takes it."""

    name = "header"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Split it."""
        name, colon, text = value.partition(":")
        if not colon or not name.strip() or not (value.isascii() and value.isprintable()):
            self.fail(f"{value!r} is not of the form 'NAME: VALUE'", param, ctx)
        return name.strip(), text.strip()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Ask a service of Inference Fleet."""


@main.command()
@click.argument("files", nargs=-1, required=True, type=ImageFile(), metavar="FILE...")
@click.option(
    "--url",
    envvar="FLEET_URL",
    show_envvar=True,
    default="http://localhost:8100",
    show_default=True,
    help="Host or edge.",
)
@click.option("--route", default="/v1/parse", show_default=True, help="Route of the service.")
@click.option("--text", "form", flag_value="text", default="text", help="Print the text of each image.  [default]")
@click.option("--json", "form", flag_value="json", help="Print one line of JSON for each file.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write FOLDER/FILE.txt or FOLDER/FILE.json instead of printing.",
)
@click.option("--jobs", default=4, show_default=True, type=click.IntRange(1, 64), help="Files under way at a time.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Longest time for one file, with all attempts; the server is told.",
)
@click.option("--header", "headers", multiple=True, type=Header(), help="Further header of each request; repeatable.")
def parse(
    files: tuple[Path, ...],
    url: str,
    route: str,
    form: str,
    output: Path | None,
    jobs: int,
    timeout: float | None,
    headers: tuple[tuple[str, str], ...],
) -> None:
    r"""Read the text in images.

    A FILE of - is the standard input. Files that fail are named with the reason and the request id, under which the
    server's logs have them.

    \b
    Exit status: 0 all files were read, 1 some failed, 2 the call is wrong.
    """
    if files.count(Path("-")) > 1:
        raise click.UsageError("- stands for the standard input, which can be read only once")
    try:
        client = Client(url, route=route, timeout=timeout, headers=dict(headers), jobs=min(jobs, len(files)))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    suffix = ".json" if form == "json" else ".txt"
    if output is not None:
        _prepare(output, files, suffix)
    failed = 0
    with client, _Display(len(files)) as display:
        sources = (sys.stdin.buffer if str(path) == "-" else path for path in files)
        for path, outcome in zip(files, client.parse_all(sources), strict=True):
            shown = click.format_filename(path)
            if outcome.error is not None:
                failed += 1
                display.complain(f"{shown}: {_why(outcome.error)}")
            text = _as_json(shown, outcome) if form == "json" else _as_text(outcome)
            if output is not None:
                if outcome.answer is not None:
                    _write(output / f"{_name(path)}{suffix}", text)
                text = ""
            elif form == "text" and outcome.answer and len(files) > 1:
                text = f"==> {shown} <==\n{text}"
            display.step(text)
    if failed:
        # Names were printed as they came; with many files this is the line that people see.
        if len(files) > 1:
            click.echo(f"{failed} of {len(files)} files failed", err=True)
        sys.exit(SOME_FAILED)


class _Display:
    """What is printed, and on a terminal a bar below it on the error output."""

    def __init__(self, count: int) -> None:
        self._bar = click.progressbar(
            length=count,
            show_pos=True,
            file=sys.stderr,
            label="files",
            hidden=count < 2 or not sys.stderr.isatty(),
        )

    def __enter__(self) -> _Display:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def complain(self, text: str) -> None:
        self._print(text + "\n", sys.stderr)

    def step(self, text: str) -> None:
        """Print what came of a file, and count it."""
        if text:
            self._print(text, sys.stdout)
        self._bar.update(1)

    def _print(self, text: str, file: IO[str]) -> None:
        if not self._bar.hidden:
            # The bar is drawn again below by the next step.
            click.echo("\r\x1b[2K", nl=False, err=True)
        click.echo(text, nl=False, file=file)


def _name(path: Path) -> str:
    return "stdin" if str(path) == "-" else path.name


def _prepare(folder: Path, files: tuple[Path, ...], suffix: str) -> None:
    """Make the folder of the answers.

    Raises:
        UsageError: two files would get one answer, or the folder cannot be made.
    """
    name, count = Counter(map(_name, files)).most_common(1)[0]
    if count > 1:
        same = ", ".join(str(path) for path in files if _name(path) == name)
        raise click.UsageError(f"{same}: their answers would all be {folder / name}{suffix}; give them one by one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"the folder {folder} cannot be made: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    """Write an answer so that it is there whole or not at all.

    Raises:
        ClickException: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error


def _as_text(outcome: Outcome) -> str:
    return f"{outcome.answer.text}\n" if outcome.answer else ""


def _as_json(name: str, outcome: Outcome) -> str:
    """One line: the file and the server's answer, or the file and the problem."""
    members: dict[str, Any] = {"file": name}
    if outcome.answer is not None:
        members |= outcome.answer.members
    elif isinstance(outcome.error, ClientError):
        members["problem"] = outcome.error.members()
    elif outcome.error is not None:
        members["problem"] = {"type": "urn:inference-fleet:client:unreadable-file", "detail": outcome.error.strerror}
    return json.dumps(members, ensure_ascii=False) + "\n"


def _why(error: ClientError | OSError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    waited = ""
    if isinstance(error, Problem) and error.retry_after:
        waited = f" (it wants to be asked again after {error.retry_after:.0f} s)"
    return f"{error}{waited} (request id {error.request_id})"
