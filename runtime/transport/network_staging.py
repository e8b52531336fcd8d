"""NetworkStaging: page-locked memory through which the GPUs of two machines exchange messages over a socket.

As between GPUs of one machine that cannot read each other's memory (runtime.transport.staged), with a socket between
the sender's slot and the reader's. Neither host waits for its GPU, and neither compute stream for a copy through PCIe:

    sender's compute stream  its copy stream        thread of its socket  the reader's         reader's host
    copies the tensor to         :                      :                     :                     :
    the slot's room              :                      :                     :                     :
        :                    waits for that             :                     :                     :
    (other work)             copies it to the host      :                     :                     :
        :                    sets the word              :                     :                     :
        :                        :                  sees that, sends it       :                     :
        :                        :                  the slot is free      reads it into a landing   :
        :                        :                      :                 wakes the host            :
        :                        :                      :                     :         has a copy stream copy it
        :                        :                      :                     :         and the compute stream wait;
        :                        :                      :                     :         the landing is free after that

Threads of sockets look at words and at bytes of the host, and call nothing of CUDA. So landings are made by the rank's
own thread, after a message for which there was none; that one lies in ordinary memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

import torch

from runtime.transport.channel import trial_pattern
from runtime.transport.layout import Layout
from runtime.transport.packets import close_files
from runtime.transport.staged import StagedMemory, StagedSlot

_TRIAL_S = 10.0
_LOOK_S = 1e-4  # between two looks at whether the pattern of the trial is there
_SMALL = 1 << 16  # bytes; a slot of up to that is used again for any smaller message

_log = logging.getLogger("runtime")


class Leaving:
    """A message on its way to other machines (a socket_channel.Staged). bytes: where it is read from."""

    def __init__(self, slot: StagedSlot, size_bytes: int, readers: int) -> None:
        self.bytes = slot.view(size_bytes)
        self.is_there = slot.is_free
        self._readers = readers
        self._lock = threading.Lock()

    def sent(self) -> None:
        with self._lock:
            self._readers -= 1

    @property
    def is_over(self) -> bool:
        """Whether every reader's channel has sent it."""
        return self._readers == 0


class Landing:
    """Page-locked memory for one message at a time that a socket reads. bytes: all of it. slot: where it is read from.

    taken: whether a message is in it.
    """

    def __init__(self, memory: StagedMemory, size_bytes: int) -> None:
        self.bytes, self.slot = memory.make_landing(size_bytes)
        self.taken = False

    def give_back(self) -> None:
        """The message has been copied to the GPU, or nobody wants it."""
        self.taken = False


class NetworkStaging:
    """One rank's page-locked memory for messages to and from other machines.

    Args:
        device: the rank's GPU, with its index.

    Raises:
        MemoryError, RuntimeError: a message cannot be copied through such memory; see the text.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory = StagedMemory(device)
        self._sent_from: dict[StagedSlot, Leaving] = {}  # what each slot had last
        self._landings: list[Landing] = []
        self._wanted: deque[int] = deque()  # sizes of messages for which there was no landing
        self._claiming = threading.Lock()
        self._has_room = True
        try:
            self._try()
        except BaseException:
            self.close()
            raise

    def _try(self) -> None:
        pattern = trial_pattern(self.device)
        leaving = self._write(pattern, 1)
        until = time.monotonic() + _TRIAL_S
        while not leaving.is_there():
            if time.monotonic() > until:
                raise RuntimeError(f"what was written there does not arrive within {_TRIAL_S:g} s")
            time.sleep(_LOOK_S)
        landing = Landing(self._memory, pattern.nbytes)
        landing.taken = True
        landing.bytes[: pattern.nbytes] = leaving.bytes
        tensor, there = landing.slot.lend(Layout.of(pattern), landing.give_back)
        torch.cuda.current_stream(self.device).wait_event(there)
        if not torch.equal(tensor, pattern):
            raise RuntimeError("what comes from there is not what was written")
        leaving.sent()
        self._landings.append(landing)

    @property
    def slot_bytes(self) -> int:
        """Of the GPU's memory that it has."""
        return sum(slot.size_bytes for slot in self._sent_from)

    # ---- the rank's own thread

    def write(self, tensor: torch.Tensor, readers: int) -> Leaving | None:
        """Have a tensor copied to where sockets send it from; it may be written to again, in order on its stream.

        Args:
            tensor: on the GPU; it fills its memory.
            readers: how many channels will send it.

        Returns:
            None where there is no more memory for it, which a warning says once.
        """
        if not self._has_room:
            return None
        try:
            return self._write(tensor, readers)
        except (MemoryError, RuntimeError) as error:
            self._say_full(error)
            return None

    def _write(self, tensor: torch.Tensor, readers: int) -> Leaving:
        size_bytes = tensor.nbytes
        for slot, before in self._sent_from.items():
            if before.is_over and slot.is_free() and _fits(size_bytes, slot.size_bytes):
                break
        else:
            slot, _, files = self._memory.make(0, size_bytes)
            close_files(files)
        slot.write(tensor, Layout.of(tensor))
        self._sent_from[slot] = leaving = Leaving(slot, size_bytes, readers)
        return leaving

    def make_landings(self) -> None:
        """Make room for messages for which there was none."""
        while self._wanted and self._has_room:
            try:
                self._landings.append(Landing(self._memory, self._wanted.popleft()))
            except (MemoryError, RuntimeError) as error:
                self._say_full(error)

    def _say_full(self, error: BaseException) -> None:
        self._has_room = False
        _log.warning(
            "there is no more page-locked memory for messages to and from other machines (%s): some wait for %s",
            error, self.device,
        )  # fmt: skip

    def close(self) -> None:
        """No socket reads or writes any more; copies that are under way may end first."""
        self._memory.close()  # which keeps what copies need
        self._sent_from.clear()
        self._landings.clear()

    # ---- threads of sockets

    def landing(self, size_bytes: int) -> Landing | None:
        """Room for a message that is taken by now; None: there is none, but will be."""
        with self._claiming:
            for landing in self._landings:
                if not landing.taken and _fits(size_bytes, len(landing.bytes)):
                    landing.taken = True
                    return landing
        if size_bytes:
            self._wanted.append(size_bytes)
        return None


def _fits(size_bytes: int, room_bytes: int) -> bool:
    return size_bytes <= room_bytes <= max(2 * size_bytes, _SMALL)


def network_staging(device: torch.device) -> NetworkStaging | None:
    """That of a rank's GPU, tried out; None where it has none, or cannot be, which a warning says."""
    if device.type != "cuda":
        return None
    try:
        return NetworkStaging(device)
    except (MemoryError, RuntimeError) as error:
        _log.warning(
            "%s cannot use %s: %s. Messages to and from other machines go through the host's memory, and wait for it",
            device, StagedMemory.name, error,
        )  # fmt: skip
        return None
