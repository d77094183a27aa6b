"""Where images come from: paths, bytes, open files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from inference.client.answers import Answer
from inference.client.errors import ClientError

#: The path of a file, the bytes of one, or a file open for reading bytes.
Source = str | os.PathLike[str] | bytes | IO[bytes]


@dataclass(frozen=True)
class Outcome:
    """What became of one of several sources: it has either an answer or an error.

    Attributes:
        source: as it was given.
        answer: when all went well.
        error: when it did not; ``OSError`` for a file that could not be read.
    """

    source: Source
    answer: Answer | None = None
    error: ClientError | OSError | None = None


def read(source: Source) -> tuple[str, bytes]:
    """Read a source whole, so that it can be sent again.

    Returns:
        A file name for the server, and the bytes.

    Raises:
        OSError: the file cannot be read.
        TypeError: the source is nothing of what it may be, or a file open for text.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return "image", bytes(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        # A name that is no UTF-8 cannot be sent as it is, and only people read it.
        return path.name.encode("utf-8", "replace").decode(), path.read_bytes()
    if not hasattr(source, "read"):
        raise TypeError(f"a path, bytes or a file open for reading is expected, not {type(source).__name__}")
    data = source.read()
    if not isinstance(data, bytes):
        raise TypeError(f"the file must be open for bytes (mode 'rb'); it gave {type(data).__name__}")
    name = getattr(source, "name", None)
    return Path(name).name if isinstance(name, str) else "image", data
