"""Door: a listening socket that is open only until those have come in whom it is for.

    address ------ told to the peers by another way, and with it the key
    connection --> a thread of its own greets it (runtime.transport.handshake)
                     proves the key, seat is free     -> keeps the seat, for good
                     anything else, or nothing in 5 s -> closed
    last seat ---> the door is closed

Whoever else connects gains nothing and takes nothing: at most MOST_STRANGERS connections are open that have not proved
the key; where one more comes, the oldest is closed. One that is stopped so while it would have proved the key tries
again (``enter``).
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Collection

from runtime.transport.handshake import (
    HostAndPort,
    NotAdmitted,
    accept_handshake,
    connect,
    in_no_folder,
    local_name,
    set_up,
    shut_down,
)

THIS_MACHINE = "@"  # in place of a host, for those of its processes only
MOST_STRANGERS = 64  # connections that have not proved the key
GREETING_S = 5.0  # for a connection to prove it
_ENTER_S = 4 * GREETING_S  # for one try to come in: longer, so that a seat is never given to who has just gone
_PAUSE_S = 0.05  # before another try, to connect or to accept

_log = logging.getLogger("runtime")


class Door:
    """Listens until each of some seats is taken by a peer that knows the key; one that is taken is never given again.

    Args:
        host: the address of this machine to listen on, the port being the system's choice; or THIS_MACHINE.
        key: that the peers know.
        seats: numbers of those who are to come in.
        entered: called with a seat and its connection, from a thread of that connection, which may stay in it.
        who: what a seat is, for messages ("rank").
    """

    def __init__(
        self,
        host: str,
        key: bytes,
        seats: Collection[int],
        entered: Callable[[int, socket.socket], None],
        who: str = "rank",
    ) -> None:
        self._key = key
        self._awaited = set(seats)
        self._entered = entered
        self._who = who
        self._lock = threading.Lock()
        self._strangers: dict[socket.socket, float] = {}  # and until when each may stay, the oldest first
        self._closed = False
        self._listening, self.address = _listen(host)
        threading.Thread(target=self._accept, name=f"door to {who}s", daemon=True).start()

    def _accept(self) -> None:
        come = select.poll()
        come.register(self._listening, select.POLLIN)
        self._listening.setblocking(False)
        try:
            while not self._closed and self._awaited:
                come.poll(1e3 * self._turn_away())
                try:
                    line, _ = self._listening.accept()
                except BlockingIOError:
                    continue
                except OSError:  # no descriptor is left, or it has gone again
                    time.sleep(_PAUSE_S)
                    continue
                self._receive(line)
        finally:
            with self._lock:
                self._listening.close()
        self.close()

    def _turn_away(self) -> float:
        """Close connections that have been strangers for too long; returns in how many seconds to look again."""
        now = time.monotonic()
        with self._lock:
            for line in [line for line, until in self._strangers.items() if until <= now]:
                self._drop(line)
            return min((until - now for until in self._strangers.values()), default=GREETING_S)

    def _drop(self, line: socket.socket) -> None:
        self._strangers.pop(line, None)
        shut_down(line)  # the thread that greets it closes it

    def _receive(self, line: socket.socket) -> None:
        with self._lock:
            while len(self._strangers) >= MOST_STRANGERS:
                self._drop(next(iter(self._strangers)))
            self._strangers[line] = time.monotonic() + GREETING_S
        try:
            # each in a thread of its own: one that stays silent holds nobody up
            threading.Thread(target=self._greet, args=(line,), daemon=True).start()
        except RuntimeError:  # no more threads
            with self._lock:
                self._drop(line)
            line.close()

    def _greet(self, line: socket.socket) -> None:
        taken: list[int] = []

        def admit(seat: int) -> bool:
            with self._lock:
                if self._strangers.pop(line, None) is None or self._closed:
                    return False
                free = seat in self._awaited
                self._awaited.discard(seat)
            if not free:
                _log.warning("who came as %s %d was refused: it is there already, or not expected", self._who, seat)
                return False
            taken.append(seat)
            return True

        try:
            set_up(line)
            accept_handshake(line, self._key, self.address, admit)
        except OSError:
            pass
        finally:
            with self._lock:
                self._strangers.pop(line, None)
            if not taken:
                line.close()
        if taken:
            if not self._awaited:
                self.close()
            self._entered(taken[0], line)

    def close(self) -> None:
        """Listen no more, and close the connections of strangers; without effect the second time."""
        with self._lock:
            self._closed = True
            for line in list(self._strangers):
                self._drop(line)
            # or the thread that accepts would go on; with the lock, or its descriptor might be another socket's by now
            shut_down(self._listening)


def _listen(host: str) -> tuple[socket.socket, HostAndPort]:
    if host == THIS_MACHINE:
        listening, name = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), local_name()
        try:
            listening.bind(in_no_folder(name))
            listening.listen(2 * MOST_STRANGERS)
        except BaseException:
            listening.close()
            raise
        return listening, (name, 0)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, 0), family=family, backlog=2 * MOST_STRANGERS)
    return listening, (host, listening.getsockname()[1])


def enter(
    address: HostAndPort,
    key: bytes,
    seat: int,
    until: float,
    go_on: Callable[[], bool] = lambda: True,
    hopeless: tuple[type[OSError], ...] = (NotAdmitted,),
) -> socket.socket:
    """Come in by a door, as often as it takes.

    Args:
        address: of the door.
        key: that both sides know.
        seat: which one to take.
        until: when to give up, in monotonic seconds.
        go_on: whether to try again.
        hopeless: after which it is of no use to try again.

    Raises:
        NotAdmitted: by the other side's own words it is of no use to try again.
        OSError: of the last try.
    """
    while True:
        left = until - time.monotonic()
        try:
            return connect(address, key, seat, max(_PAUSE_S, min(_ENTER_S, left)))
        except OSError as error:
            if isinstance(error, hopeless) or left <= _PAUSE_S or not go_on():
                raise
        time.sleep(_PAUSE_S)
