"""Messages between web workers and the model process, over a Unix socket.

A message is a tuple, written by pickle. The framing is that of :mod:`multiprocessing.connection`: whole messages,
and an end of file when the other process dies, however it dies. What is large (pictures, tensors) does not go
through the socket but through a file in memory (``memfd_create``) whose descriptor does: it is copied once by the
sender and not at all by the receiver, and because every message on the socket is small, nobody blocks for longer
than a moment while the other side has other things to do.

**Whoever may write to the socket can run code here**, as pickle is code: the socket is for its owner alone from its
first moment on.

Messages of a web worker: ``(WORK, number, deadline, cost, request_id, item)``, ``(CANCEL, number)``,
``(EXPIRE, number)``, ``(HEALTH, number)``. Messages of the model process: first ``(LOADING,)`` or
``(READY, facts)``, and the latter also as soon as it is true, or ``(FAILED, reason)``; then for each number
``(DONE, number, output, started, ended, batch)``, ``(HEALTHY, number, last_success, age)`` or
``(ERROR, number, exception)``, exactly one of them.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from inference.errors import ConfigError

WORK, CANCEL, EXPIRE, HEALTH = "work", "cancel", "expire", "health"
LOADING, READY, FAILED, DONE, ERROR, HEALTHY = "loading", "ready", "failed", "done", "error", "healthy"
_LARGE = "large"

#: Buffers and messages of at least this many bytes go through a file in memory; see docs/performance/channel.json.
LARGE_BYTES = 65_536
#: Buffers in the file begin at multiples of this many bytes, as vector instructions like it.
ALIGNMENT = 64
#: Web workers that may wait for the model process to take their connection.
BACKLOG = 1024

Message = tuple[Any, ...]


class LinkClosed(Exception):
    """The other process has gone, or has closed the connection."""


class _Pickler(pickle.Pickler):
    """Pickle in which CPU tensors are as cheap as arrays: their numbers are a buffer that need not be copied."""

    def reducer_override(self, obj: Any) -> Any:
        """Write a tensor as the array that shares its memory; everything else as usual.

        Raises:
            TypeError: the tensor is not on the CPU; sending it would open the device in another process.
        """
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(obj, torch.Tensor):
            return NotImplemented
        if obj.device.type != "cpu":
            raise TypeError(f"a tensor on {obj.device} cannot leave the model process: predict must give CPU tensors")
        if obj.layout is not torch.strided or obj.is_quantized or obj.is_conj() or obj.is_neg():
            return NotImplemented
        tensor = obj.detach().contiguous()
        # numpy has no bfloat16 and no 8 bit floats: bytes have no such trouble, whatever the type.
        array = tensor.reshape(-1).view(torch.uint8).numpy()
        return _tensor, (array, str(obj.dtype).removeprefix("torch."), tuple(obj.shape))


def _tensor(array: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    import torch

    return torch.from_numpy(array).view(getattr(torch, dtype)).reshape(shape)


class Link:
    """One connection, used by one thread at a time.

    Args:
        connected: the socket; it belongs to the link from now on.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        #: Number of the request that came last on it.
        self.number = 0
        # Frames are written and read on a second descriptor of the same socket, as each side closes its own.
        self._frames = Connection(os.dup(connected.fileno()))

    def fileno(self) -> int:
        """Give the descriptor to wait on."""
        return self._frames.fileno()

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            LinkClosed: nobody is there any more.
            Exception: something in the message cannot be pickled; nothing was sent then.
        """
        buffers: list[pickle.PickleBuffer] = []

        def keep(buffer: pickle.PickleBuffer) -> bool:
            with buffer.raw() as raw:
                small = raw.nbytes < LARGE_BYTES
            if not small:
                buffers.append(buffer)
            return small

        stream = io.BytesIO()
        _Pickler(stream, protocol=5, buffer_callback=keep).dump(message)
        data = stream.getbuffer()
        try:
            if buffers or data.nbytes >= LARGE_BYTES:
                self._send_large([data, *(buffer.raw() for buffer in buffers)])
            else:
                self._frames.send_bytes(data)
        except OSError as error:
            raise LinkClosed(str(error)) from error

    def receive(self) -> Message:
        """Wait for a message.

        Raises:
            LinkClosed: nobody is there any more.
            Exception: the message cannot be unpickled in this process.
        """
        try:
            message: Message = pickle.loads(self._frames.recv_bytes())  # noqa: S301 - the socket is its owner's alone
            if message[0] != _LARGE:
                return message
            parts = self._receive_large(message[1])
        except (EOFError, OSError) as error:
            raise LinkClosed(str(error)) from error
        found: Message = pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301
        return found

    def close(self) -> None:
        """Close the connection."""
        self._frames.close()
        self._socket.close()

    def _send_large(self, parts: list[memoryview]) -> None:
        file = os.memfd_create("inference", os.MFD_CLOEXEC)
        try:
            position = 0
            for part in parts:
                _write(file, part, position)
                position += _aligned(part.nbytes)
            os.ftruncate(file, position)
            self._frames.send_bytes(pickle.dumps((_LARGE, [part.nbytes for part in parts])))
            socket.send_fds(self._socket, [b"f"], [file])
        finally:
            os.close(file)

    def _receive_large(self, sizes: list[int]) -> list[memoryview]:
        _, files, _, _ = socket.recv_fds(self._socket, 1, 1)
        if len(files) != 1:
            raise EOFError("the connection ended inside of a message")
        try:
            # Shared and writable: the sender has let go of it, so what is done here is seen by nobody else.
            whole = memoryview(mmap.mmap(files[0], 0))
        finally:
            os.close(files[0])
        parts = []
        position = 0
        for size in sizes:
            parts.append(whole[position : position + size])
            position += _aligned(size)
        return parts


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _write(file: int, part: memoryview, position: int) -> None:
    # One call writes at most 2 GiB.
    done = 0
    while done < part.nbytes:
        done += os.pwrite(file, part[done:], position + done)


def listen(path: Path) -> socket.socket:
    """Bind the socket of the model process, for its owner alone.

    Call it while the process has one thread: the mode of a new socket can only be set by the mask of the process.

    Raises:
        ConfigError: the path cannot be bound.
    """
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        # One that a killed process has left behind.
        path.unlink(missing_ok=True)
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise ConfigError(f"INFERENCE_CHANNEL={str(path)!r}: cannot be bound: {error.strerror}") from error
    finally:
        os.umask(before)
    listening.listen(BACKLOG)
    listening.setblocking(False)
    return listening


def connect(path: Path) -> Link:
    """Connect to the model process.

    Raises:
        LinkClosed: nobody listens there.
    """
    connecting = socket.socket(socket.AF_UNIX)
    try:
        connecting.connect(str(path))
    except OSError as error:
        connecting.close()
        raise LinkClosed(f"{path}: {error.strerror}") from error
    return Link(connecting)


def accept(listening: socket.socket) -> Link:
    """Take a connection of a web worker."""
    connected, _ = listening.accept()
    connected.setblocking(True)
    return Link(connected)
