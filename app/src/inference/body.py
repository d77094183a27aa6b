"""Read request bodies within a limit, straight from the server's stream.

Werkzeug's own form parsing is not used, for three reasons: it writes every file over 500 kB to disk,
it limits a field without a file name to 500 kB of decoded text, and it takes a body for empty when the
request says ``Transfer-Encoding: chunked``, which nginx passes on although it has already put the
body together and set its length.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from inference.errors import BodyTooLarge, LengthRequired, UnreadableInput

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

LENGTH = re.compile(r"[0-9]{1,18}")
#: Bytes read at once.
CHUNK_BYTES = 1 << 20
#: More parts than a client of ours has reason to send.
MAX_PARTS = 100
#: Seconds spent on reading away a body that nobody wants.
DRAIN_SECONDS = 5.0


class Body:
    """The body of one request.

    Args:
        environ: the request.
        limit: bytes allowed.
    """

    def __init__(self, environ: WSGIEnvironment, limit: int) -> None:
        self._stream = environ["wsgi.input"]
        self._limit = limit
        self._length = environ.get("CONTENT_LENGTH") or "0"
        self._chunked = environ.get("HTTP_TRANSFER_ENCODING", "").strip().lower() == "chunked"
        self._has_length = bool(environ.get("CONTENT_LENGTH"))
        # Set by servers, such as Flask's own, that end the stream where the body ends.
        self._terminated = bool(environ.get("wsgi.input_terminated"))
        #: Bytes read so far.
        self.seen = 0

    def chunks(self) -> Iterator[bytes]:
        """Read the body piece by piece.

        Raises:
            LengthRequired: the server cannot tell where the body ends.
            BodyTooLarge: the body is over the limit.
            UnreadableInput: the body ends early.
        """
        if self._terminated:
            while piece := self._read(CHUNK_BYTES):
                self._refuse_large(self.seen)
                yield piece
            return
        length = self._announced()
        self._refuse_large(length)
        while self.seen < length:
            piece = self._read(min(CHUNK_BYTES, length - self.seen))
            if not piece:
                raise UnreadableInput(f"The body ended after {self.seen} of {length} bytes.")
            yield piece

    def drain(self) -> None:
        """Read away what is left, so that the client gets the answer.

        A server that closes a connection with unread data resets it, and the client sees the reset
        in place of the answer. What is over twice the limit, or slow, is not worth that.
        """
        give_up = time.monotonic() + DRAIN_SECONDS
        try:
            length = 2 * self._limit if self._terminated else min(self._announced(), 2 * self._limit)
            while self.seen < length and time.monotonic() < give_up:
                if not self._read(min(CHUNK_BYTES, length - self.seen)):
                    return
        except (LengthRequired, UnreadableInput):
            # There is nothing more to read; the answer is already decided.
            return

    def _announced(self) -> int:
        if self._chunked and not self._has_length:
            raise LengthRequired("Send the body with Content-Length instead of in chunks.")
        if not LENGTH.fullmatch(self._length):
            raise UnreadableInput(f"Content-Length {self._length!r:.40} is not a number of bytes.")
        return int(self._length)

    def _refuse_large(self, size: int) -> None:
        if size > self._limit:
            raise BodyTooLarge(f"The body has {size} bytes or more; allowed are {self._limit}.")

    def _read(self, count: int) -> bytes:
        try:
            piece: bytes = self._stream.read(count)
        except OSError as error:
            # uWSGI's way to say that the client left or stalled.
            raise UnreadableInput(f"The body could not be read after {self.seen} bytes.") from error
        self.seen += len(piece)
        return piece


def read_input(body: Body, content_type: str, field: str) -> tuple[bytes, str]:
    """Read the input and its media type: one field of a ``multipart/form-data`` body, or the whole body.

    Raises:
        UnreadableInput: the body is empty or damaged, or it does not have the field exactly once.
        BodyTooLarge: the body is over the limit.
        LengthRequired: the body has no known length.
    """
    # Most bodies are no forms: what their media type says beyond that is for the model to read.
    if not content_type[:32].lstrip().lower().startswith("multipart/form-data"):
        data = b"".join(body.chunks())
        if not data:
            raise UnreadableInput(
                f"The body is empty: send the input as the body, or as multipart/form-data in the field {field!r}."
            )
        return data, content_type
    boundary = parse_options_header(content_type)[1].get("boundary", "")
    if not boundary:
        raise UnreadableInput("The Content-Type multipart/form-data names no boundary.")
    return _read_field(body, boundary.encode("latin-1", "replace"), field)


def _read_field(body: Body, boundary: bytes, field: str) -> tuple[bytes, str]:
    decoder = MultipartDecoder(boundary, max_parts=MAX_PARTS)
    names: list[str] = []
    pieces: list[bytes] = []
    found_type = ""
    wanted = False
    # Every byte is read, also after the field, or the client could not read the answer.
    for piece in _and_none(body.chunks()):
        try:
            decoder.receive_data(piece)
            while not isinstance(event := decoder.next_event(), NeedData):
                if isinstance(event, Field | File):
                    names.append(event.name)
                    wanted = event.name == field
                    if wanted:
                        found_type = event.headers.get("Content-Type", "")
                elif isinstance(event, Data) and wanted:
                    pieces.append(event.data)
                elif isinstance(event, Epilogue):
                    break
        except RequestEntityTooLarge:
            raise UnreadableInput(f"The form has more than {MAX_PARTS} parts.") from None
        except ValueError as error:
            raise UnreadableInput(f"The form is damaged or ends early: {error}.") from error
    if names.count(field) != 1:
        seen = ", ".join(repr(name[:40]) for name in names[:10]) or "none"
        raise UnreadableInput(f"The form must have the field {field!r} exactly once; its fields are: {seen}.")
    data = b"".join(pieces)
    if not data:
        raise UnreadableInput(f"The form's field {field!r} is empty.")
    return data, found_type


def _and_none(pieces: Iterator[bytes]) -> Iterator[bytes | None]:
    """Add the None with which the decoder is told that the body has ended."""
    yield from pieces
    yield None
