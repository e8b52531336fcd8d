"""find_neighbours: the other ranks that share this one's memory, and a line to each (runtime.transport.packets).

Ranks that torchrun has started inherit nothing from each other. Once every two are connected by TCP, each says which
machine it is on. Where that is the same, they try whether they can share memory:

    rank                                        rank with a higher number
    boot id               <--- TCP --->         boot id
    listens on a Unix socket
    its name              ---- TCP --->         connects to it; both prove the secret (runtime.transport.door)
    a page, and its words --- Unix --->         finds the words there, and writes its answer beside them
                          <--- TCP ----         why not, or nothing
    finds the answer there
    why not, or nothing   ---- TCP --->

That proves what names cannot: hosts of one name may be several machines, one machine may have containers of several
names, and a copy of a virtual machine has the boot id of its original. Containers whose network is not the same do not
find each other's socket; they stay connected by TCP, and a warning says so.

The socket lies in no folder and ends with its process. Its name cannot be foreseen, so that nobody else has it, and
nothing listens any more when all have tried.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from runtime.transport.door import THIS_MACHINE, Door, enter
from runtime.transport.handshake import NotAdmitted
from runtime.transport.rendezvous import Rendezvous
from runtime.transport.same_machine import SUPPORTED
from runtime.transport.shared_memory import map_file, new_file

_PAGE_BYTES = 4096
_WORDS_BYTES = 32
_LENGTH = struct.Struct("!H")
_LONGEST = 300  # characters of a reason
_TRIAL_S = 10.0
_LOOK_S = 0.1  # between two looks at whether the start has failed elsewhere
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NO_TRY_HELPS = NotAdmitted, ConnectionRefusedError, PermissionError

_log = logging.getLogger("runtime")


def boot_id() -> str:
    """Of this machine's kernel, since its start; nothing where it is not known."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def find_neighbours(
    rank: int, tcp: Mapping[int, socket.socket], *, secret: bytes, rendezvous: Rendezvous
) -> dict[int, socket.socket]:
    """Find the ranks that this one shares memory with.

    Args:
        rank: this process's.
        tcp: other rank -> the connection to it, which nothing else uses yet; those to neighbours are not needed after.
        secret: that all ranks of this start know.
        rendezvous: until when, and whether the start has failed elsewhere.

    Returns:
        Neighbour -> this rank's end of the line to it.

    Raises:
        OSError: a connection broke, or a rank has said nothing in time.
    """
    return _Search(rank, tcp, secret, rendezvous).found()


class _Search:
    """One rank's part. No step waits for what another rank does only after a later one of its own."""

    def __init__(self, rank: int, tcp: Mapping[int, socket.socket], secret: bytes, rendezvous: Rendezvous) -> None:
        self._rank = rank
        self._tcp = tcp
        self._secret = secret
        self._rendezvous = rendezvous
        self._lines: dict[int, socket.socket] = {}
        self._pages: dict[int, _Page] = {}
        self._ended = False

    def found(self) -> dict[int, socket.socket]:
        own = boot_id() if SUPPORTED else ""
        for peer in self._tcp:
            self._tell(peer, own)
        said = {peer: self._hear(peer) for peer in sorted(self._tcp)}
        here = [peer for peer, theirs in said.items() if theirs == own != ""]
        higher = [peer for peer in here if peer > self._rank]
        door = Door(THIS_MACHINE, self._secret, higher, self._entered) if higher else None
        try:
            for peer in higher:
                assert door is not None
                self._tell(peer, door.address[0])
            apart = {peer: self._visit(peer) for peer in here if peer < self._rank}
            apart |= {peer: self._judge(peer) for peer in higher}
            for peer in here:
                if peer < self._rank:
                    apart[peer] = self._hear(peer) or apart[peer]
        except BaseException:
            self._ended = True
            for line in list(self._lines.values()):
                line.close()
            raise
        finally:
            if door is not None:
                door.close()
        for peer in here:
            if apart[peer] and peer in self._lines:
                self._lines.pop(peer).close()
        self._warn({peer: why for peer, why in apart.items() if why and peer > self._rank})
        return {peer: self._lines[peer] for peer in here if not apart[peer]}

    # ---- towards ranks with higher numbers

    def _entered(self, peer: int, line: socket.socket) -> None:
        """Called by the door, from a thread: somebody has come; send a page."""
        with contextlib.suppress(OSError):  # it has gone, and says why over TCP
            try:
                self._pages[peer] = page = _Page()
            except (OSError, RuntimeError, ValueError) as error:
                line.send(f"the other has no memory to share: {error}"[:_LONGEST].encode())
            else:
                page.send(line)
        self._lines[peer] = line
        if self._ended:
            line.close()
        self._rendezvous.notify()

    def _judge(self, peer: int) -> str:
        """Hear how a rank has fared, look whether it has written to the page, and tell it; returns why not."""
        why = self._hear(peer)
        if not why:
            self._rendezvous.wait_for(lambda: peer in self._lines, f"rank {peer} has not come in")
            if not self._pages[peer].is_answered():
                why = "what it writes there is not seen"
        self._tell(peer, why)
        return why

    def _warn(self, apart: Mapping[int, str]) -> None:
        if apart:
            ranks = ", ".join(f"rank {peer}" for peer in apart)
            _log.warning(
                "rank %d and %s are on one machine, by its boot id, and share no memory (%s): messages between them "
                "go through the network. Containers share memory where they have one network, as in one pod or that of "
                "their host",
                self._rank, ranks, "; ".join(dict.fromkeys(apart.values())),
            )  # fmt: skip

    # ---- towards ranks with lower ones

    def _visit(self, peer: int) -> str:
        """Go to a rank's door and try the page that it gives, and tell it; returns why not."""
        until = min(self._rendezvous.until, time.monotonic() + _TRIAL_S)
        address = self._hear(peer), 0
        try:
            line = enter(address, self._secret, self._rank, until, lambda: not self._rendezvous.failed, _NO_TRY_HELPS)
        except OSError as error:
            why = f"rank {self._rank} does not find the other's socket: {error}"
        else:
            self._lines[peer] = line
            line.settimeout(max(_LOOK_S, until - time.monotonic()))
            try:
                why = _answer_page(line)
                line.settimeout(None)
            except (OSError, RuntimeError, ValueError) as error:
                why = f"rank {self._rank} does not get at the other's memory: {error}"
        self._tell(peer, why)
        return why

    # ---- words over TCP

    def _tell(self, peer: int, text: str) -> None:
        said = text[:_LONGEST].encode()
        self._tcp[peer].sendall(_LENGTH.pack(len(said)) + said)

    def _hear(self, peer: int) -> str:
        (length,) = _LENGTH.unpack(self._read(peer, _LENGTH.size))
        return self._read(peer, length).decode(errors="replace")

    def _read(self, peer: int, size_bytes: int) -> bytes:
        line, got = self._tcp[peer], b""
        line.settimeout(_LOOK_S)
        try:
            while len(got) < size_bytes:
                if self._rendezvous.failed:
                    raise ConnectionError("the start has failed elsewhere")
                if time.monotonic() > self._rendezvous.until:
                    raise TimeoutError(f"rank {peer} does not say whether it is on rank {self._rank}'s machine")
                with contextlib.suppress(TimeoutError):
                    more = line.recv(size_bytes - len(got))
                    if not more:
                        raise ConnectionError(f"rank {peer} has ended")
                    got += more
        finally:
            line.settimeout(None)
        return got


class _Page:
    """A page of memory that is offered to another rank. words: what lies there."""

    def __init__(self) -> None:
        self.words = secrets.token_bytes(_WORDS_BYTES)
        self._file = new_file(_PAGE_BYTES)
        try:
            self._bytes = map_file(os.dup(self._file), _PAGE_BYTES)
            _write(self._bytes[:_WORDS_BYTES], self.words)
        except BaseException:
            os.close(self._file)
            raise

    def send(self, line: socket.socket) -> None:
        """Send it, once, and its words beside it."""
        try:
            socket.send_fds(line, [self.words], [self._file])
        finally:
            os.close(self._file)

    def is_answered(self) -> bool:
        """Whether the other rank has found the words, and has written its answer beside them."""
        return _read(self._bytes[_WORDS_BYTES : 2 * _WORDS_BYTES]) == _answer_to(self.words)


def _answer_page(line: socket.socket) -> str:
    """Look at the page that comes, and write the answer to it; returns why that cannot be done, or nothing."""
    words, files, _, _ = socket.recv_fds(line, 4 * _LONGEST, 1)
    if not files:
        return words.decode(errors="replace") or "the other has ended"
    page = map_file(files[0], _PAGE_BYTES)
    if _read(page[:_WORDS_BYTES]) != words:
        return "what the other wrote there is not seen"
    _write(page[_WORDS_BYTES : 2 * _WORDS_BYTES], _answer_to(words))
    return ""


def _answer_to(words: bytes) -> bytes:
    return hashlib.sha256(words).digest()


def _read(memory: torch.Tensor) -> bytes:
    return memory.numpy().tobytes()


def _write(memory: torch.Tensor, content: bytes) -> None:
    memory.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
