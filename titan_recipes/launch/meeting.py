"""How nodes talk before there are ranks: JSON lines over TCP, node 0 in the middle.

The run directory can't tell a node that is cut off from one that never started, and file systems
keep what they know of a folder for up to a minute; a connection says both at once. It also carries
the clocks: node 0 asks a node for its time and takes the middle of asking and hearing as its own.
"""

import json
import resource
import select
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

RETRY_SECONDS = 0.2
ANSWER_SECONDS = 10.0  # for one message from a node that is there
MAX_MESSAGE = 1 << 20

Message = dict[str, Any]


class Peer:
    """The other end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(ANSWER_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._buffer = b""

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError where the other end is gone."""
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_seconds: float) -> Message | None:
        """The next message; None where none came in time.

        Raises OSError where the other end is gone, ValueError where it speaks something else.
        """
        deadline = time.monotonic() + timeout_seconds
        while b"\n" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            if not _readable(self._connection, left):
                return None
            part = self._connection.recv(1 << 16)
            if not part:
                raise ConnectionError("the other node went away")
            self._buffer += part
            if len(self._buffer) > MAX_MESSAGE:
                raise ValueError("more than a message")
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: object = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError(f"not a message: {line[:80]!r}")
        return cast(Message, message)

    def close(self) -> None:
        self._connection.close()


def gather(
    port: int, wanted: set[int], meeting: str, deadline: float, stopped: Callable[[], bool]
) -> dict[int, tuple[Peer, Message]]:
    """Node 0's part: the other nodes' connections and first messages, by node rank.

    Returns once all are there, at the deadline (of time.monotonic) or when stopped. meeting: what
    their first message must name; a connection that says something else is closed. Raises OSError
    where the port is taken.
    """
    _allow_open_files(len(wanted))
    came = dict[int, tuple[Peer, Message]]()
    with _listen(port, backlog=len(wanted)) as listener:
        while wanted - came.keys() and time.monotonic() < deadline and not stopped():
            if not _readable(listener, RETRY_SECONDS):
                continue
            peer = Peer(listener.accept()[0])
            hello = None
            with suppress(OSError, ValueError):  # a port scanner, or a node that died: no guest
                hello = peer.receive(ANSWER_SECONDS)
            if hello and hello.get("meeting") == meeting and hello.get("rank") in wanted:
                came[hello["rank"]] = (peer, hello)
            else:
                peer.close()
    return came


def join(
    address: str, port: int, hello: Mapping[str, Any], deadline: float, stopped: Callable[[], bool]
) -> Peer | str | None:
    """Another node's part: the connection to node 0, or why there is none; None when stopped."""
    why = f"no connection to {address} port {port} in time"
    while time.monotonic() < deadline:
        if stopped():
            return None
        try:
            peer = Peer(socket.create_connection((address, port), timeout=ANSWER_SECONDS))
            peer.send(hello)
            return peer
        except OSError as error:  # node 0 is not there yet, or can't be reached at all
            why = f"no connection to {address} port {port}: {error.strerror or error}"
        time.sleep(RETRY_SECONDS)
    return why


def clock_skew(peer: Peer) -> float:
    """Seconds that the clock over there is ahead of ours; right to half the time of the answer.

    Raises OSError or ValueError where it does not answer.
    """
    asked = time.time()
    peer.send({"ask": "time"})
    answer = peer.receive(ANSWER_SECONDS)
    if answer is None or not isinstance(answer.get("time"), float):
        raise ValueError("it does not tell its time")
    return answer["time"] - (asked + time.time()) / 2


def wrong_clocks(ahead: Mapping[int, float], allowed_seconds: float) -> Iterator[tuple[int, str]]:
    """(node, what is wrong) of clocks too far from the middle one: node 0's may be the wrong one.

    ahead: node -> seconds that its clock is ahead of node 0's.
    """
    middle = statistics.median_low(ahead.values())
    for node, seconds in ahead.items():
        off = seconds - middle
        if abs(off) > allowed_seconds:
            way = "ahead" if off > 0 else "behind"
            yield node, f"its clock is {abs(off):.1f} s {way}, {allowed_seconds:g} are allowed"


def _readable(source: socket.socket, timeout_seconds: float) -> bool:
    poll = select.poll()  # select() knows no descriptor above 1,023
    poll.register(source, select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))


def _listen(port: int, backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog
        )
    return socket.create_server(("", port), backlog=backlog)


def _allow_open_files(number: int) -> None:
    """One descriptor for each node; many sites' soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number + 256:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the limit a user may set
