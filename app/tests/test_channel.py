"""Messages over a real socket between two ends in one process."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inference import channel
from inference.channel import LARGE_BYTES, Link, LinkClosed
from inference.errors import Busy, ConfigError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.bool,
]


@pytest.fixture
def links() -> Iterator[tuple[Link, Link]]:
    pair = tuple(Link(one) for one in socket.socketpair(socket.AF_UNIX))
    yield pair  # type: ignore[misc]
    for link in pair:
        link.close()


def sent(links: tuple[Link, Link], message: tuple[Any, ...]) -> tuple[Any, ...]:
    """Send a message from one end, and give what arrives at the other one."""
    links[0].send(message)
    return links[1].receive()


@pytest.mark.parametrize("count", [0, 3, LARGE_BYTES - 100, LARGE_BYTES, LARGE_BYTES * 40])
def test_bytes_of_any_size_arrive(links: tuple[Link, Link], count: int) -> None:
    data = os.urandom(count)
    assert sent(links, ("work", data, "after")) == ("work", data, "after")
    assert sent(links, ("next",)) == ("next",)


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (300, 400, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_arrive_as_they_are_and_can_be_written(
    links: tuple[Link, Link], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = (torch.rand(shape, dtype=torch.float64) * 9).to(dtype)
    (_, (found,)) = sent(links, ("work", (tensor,)))
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(found, tensor)
    found.zero_()


def test_arrays_arrive_as_they_are_and_can_be_written(links: tuple[Link, Link]) -> None:
    small, large = np.arange(12.0).reshape(3, 4), np.arange(500_000, dtype=np.int32).reshape(1000, 500)
    _, found = sent(links, ("work", {"large": large, "small": small, "part": large[::2, 1::3], "again": large.T}))
    for name, expected in {"large": large, "small": small, "part": large[::2, 1::3], "again": large.T}.items():
        assert np.array_equal(found[name], expected)
    found["large"][0, 0] = 7
    assert large[0, 0] == 0


def test_a_row_of_a_large_tensor_does_not_take_the_rest_along(links: tuple[Link, Link]) -> None:
    rows = torch.zeros(1000, 1000)
    links[0].send(("done", rows[5]))
    data = links[1]._frames.recv_bytes()
    assert len(data) < 6000
    assert torch.equal(pickle.loads(data)[1], rows[5])  # noqa: S301


def test_a_tensor_that_needs_gradients_arrives_as_its_numbers(links: tuple[Link, Link]) -> None:
    _, found = sent(links, ("done", torch.nn.Parameter(torch.ones(3))))
    assert found.tolist() == [1, 1, 1]
    assert not found.requires_grad


def test_a_tensor_that_is_not_on_the_cpu_is_refused_and_nothing_is_sent(links: tuple[Link, Link]) -> None:
    with pytest.raises(TypeError, match="a tensor on meta cannot leave the model process"):
        links[0].send(("done", torch.ones(3, device="meta")))
    assert sent(links, ("next",)) == ("next",)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=200_000),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=10,
    )
)
def test_any_message_arrives(value: Any) -> None:
    one, other = (Link(end) for end in socket.socketpair(socket.AF_UNIX))
    try:
        one.send(("work", value))
        assert other.receive() == ("work", value)
    finally:
        one.close()
        other.close()


def test_problems_arrive_with_all_they_say(links: tuple[Link, Link]) -> None:
    _, found = sent(links, ("error", Busy("Full.", retry_after=7)))
    assert (type(found), found.detail, found.retry_after) == (Busy, "Full.", 7)


def test_the_end_of_the_other_side_is_seen_by_both_directions(links: tuple[Link, Link]) -> None:
    links[0].close()
    with pytest.raises(LinkClosed):
        links[1].receive()
    with pytest.raises(LinkClosed):
        links[1].send(("work", b""))
    with pytest.raises(LinkClosed):
        links[1].send(("work", bytes(LARGE_BYTES)))


def test_large_messages_leave_no_descriptor_behind(links: tuple[Link, Link]) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - Path.iterdir would open one of its own
    for _ in range(20):
        sent(links, ("work", np.zeros(100_000)))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_large_message_does_not_wait_for_its_receiver(links: tuple[Link, Link]) -> None:
    """The sender may be the thread that serves everybody else too."""
    thread = threading.Thread(target=links[0].send, args=(("done", np.zeros(20_000_000)),))
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert links[1].receive()[1].nbytes == 160_000_000


def test_the_socket_is_for_its_owner_alone_and_one_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model"
    before = os.umask(0)
    try:
        channel.listen(path).close()
        with pytest.raises(LinkClosed, match="Connection refused"):
            channel.connect(path)
        listening = channel.listen(path)
        assert path.stat().st_mode & 0o777 == 0o600
        link = channel.connect(path)
        other = channel.accept(listening)
        other.send(("ready", {}))
        assert link.receive() == ("ready", {})
        for one in (link, other, listening):
            one.close()
        assert os.umask(0) == 0, "the mask of the process is as before"
    finally:
        os.umask(before)


def test_a_socket_that_cannot_be_bound_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"INFERENCE_CHANNEL='.*nowhere/model': cannot be bound: No such file"):
        channel.listen(tmp_path / "nowhere" / "model")
