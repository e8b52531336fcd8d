"""SameMachineMailbox: messages between ranks that are processes of one machine, through memory that they share.

No thread receives. Whoever waits for a message reads the packets of all channels until it is there, so that between a
send and the work that waited for it lies one wake-up, of the thread that does the work.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch

from runtime.devices.stream import Event
from runtime.errors import EngineError, RankError
from runtime.transport.channel import Channel
from runtime.transport.checked import CheckedMailbox
from runtime.transport.header import Header, describe, description_of
from runtime.transport.layout import Layout, dense
from runtime.transport.mailbox import PARAMETER_CONTEXT, MessageKey, PeerLost
from runtime.transport.not_moved import not_moved
from runtime.transport.payload import Payload

_SPIN_S = 2e-4  # how long a thread asks without a pause whether a GPU has written a message
_PAUSE_S = 5e-5  # between questions after that
SUPPORTED = sys.platform == "linux"  # anonymous files, sockets of packets, and descriptors that travel over them


class SameMachineMailbox(CheckedMailbox):
    """One rank's side of the transport between processes of one machine.

    ``ready``, ``wait`` and ``take`` are called by one thread at a time.

    Args:
        rank: this process's.
        lines: other rank -> this rank's end of the line to it (runtime.transport.packets.new_line).
        device: where this rank computes; of a GPU, with its index.
        plan_hash: the first bits of the plan's hash; a message of another plan is refused.
        announce_timeout_s: how long before its table is registered a message may arrive.
        on_error: called with an EngineError, or with PeerLost where a connection broke.
    """

    copies_sent = True

    def __init__(
        self,
        rank: int,
        lines: Mapping[int, socket.socket],
        device: torch.device,
        *,
        plan_hash: int,
        announce_timeout_s: float,
        on_error: Callable[[BaseException], None],
    ) -> None:
        super().__init__(rank, plan_hash=plan_hash, announce_timeout_s=announce_timeout_s, on_error=on_error)
        said: set[str] = set()
        self._channels = {peer: Channel(line, peer, device, said) for peer, line in lines.items()}
        self._sent_before: dict[tuple[int, ...], tuple[Layout, bytes]] = {}  # table, wire -> and how it is described
        # by peer, in order: what is announced, but a GPU has yet to write, and all that comes after it
        self._under_way: dict[int, deque[tuple[MessageKey, Payload]]] = {}
        self._there: dict[MessageKey, Event] = {}  # of what is copied from another GPU: from when on it is there
        self._early: dict[int, tuple[Header, float]] = {}  # peer -> header without a table; until when
        self._reading = threading.RLock()
        self._alarm = os.eventfd(0)  # wakes the thread that waits
        self._poll = select.poll()
        self._poll.register(self._alarm, select.POLLIN)
        self._by_descriptor = {channel.fileno(): channel for channel in self._channels.values()}
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, select.POLLIN)

    # ---- send

    @property
    def slot_bytes(self) -> int:
        return sum(channel.slot_bytes for channel in self._channels.values())

    def send(self, readers: Sequence[int], key: MessageKey, tensor: torch.Tensor) -> None:
        before = self._sent_before.get(key[:2])
        if before is not None and before[0].is_of(tensor):
            layout, described = before
        else:
            self.check_sent(key, tensor)
            tensor = dense(tensor)
            layout, described = Layout.of(tensor), describe(tensor)
            self._sent_before[key[:2]] = layout, described
        if tensor.requires_grad:
            tensor = tensor.detach()
        with out_of_inference_mode():
            for reader in readers:
                self.sent_bytes += layout.size_bytes
                try:
                    self._channels[reader].send(self.plan_hash, key, described, layout, tensor)
                except OSError as error:
                    self.report(PeerLost(self.rank, reader, error))  # the next wait will raise
                    return
                except (RuntimeError, MemoryError) as error:
                    raise self._not_moved("send", key, error) from error

    def _not_moved(self, what: str, key: MessageKey, error: BaseException) -> RankError:
        return not_moved(what, self.expected(key), error, rank=self.rank, step=key.step)

    # ---- receive

    @property
    def kept(self) -> int:
        self._look(0.0)
        return super().kept

    def ready(self, key: MessageKey) -> bool:
        if key not in self._arrived:
            self._look(0.0, key)
        return super().ready(key)

    def take(self, key: MessageKey) -> torch.Tensor:
        with self._lock:
            tensor = self._arrived.pop(key)
            there = self._there.pop(key, None) if self._there else None
        if there is not None:
            stream = torch.cuda.current_stream(tensor.device)
            stream.wait_event(there)
            tensor.record_stream(stream)
        if key.context != PARAMETER_CONTEXT:
            return tensor
        with out_of_inference_mode():
            return tensor.clone()  # parameters stay: with memory of their own, each can go alone

    def _await(self, holds: Callable[[], bool], timeout_s: float | None) -> bool:
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not holds():
            left = None if end is None else max(0.0, end - time.monotonic())
            self._look(left, self.waiting_for)
            if left == 0.0:
                return holds()
        return True

    def _look(self, timeout_s: float | None, key: MessageKey | None = None) -> None:
        """Take in what has arrived; where nothing has, wait for it.

        Args:
            timeout_s: how long to wait at most; None: until something arrives or the mailbox fails.
            key: of a message after which the others need not be taken in yet.
        """
        with self._reading:
            if self._closing:
                return
            if self._under_way and self._settle():
                timeout_s = 0.0
            for peer in list(self._early):
                until = self._early[peer][1]
                if self._take_in(self._channels[peer]):
                    timeout_s = 0.0
                else:
                    left = max(0.0, until - time.monotonic())
                    timeout_s = left if timeout_s is None else min(left, timeout_s)
            found = self._await_gpu(timeout_s) if self._under_way else self._poll_packets(timeout_s)
            while found and key not in self._arrived:
                found = self._poll_packets(0.0)

    def _await_gpu(self, timeout_s: float | None) -> bool:
        """As ``_poll_packets``, and for messages that GPUs have yet to write."""
        begin = time.monotonic()
        while not (found := self._poll_packets(0.0)) and not self._settle():
            passed = time.monotonic() - begin
            if timeout_s is not None and passed >= timeout_s:
                break
            if passed > _SPIN_S:
                time.sleep(_PAUSE_S)
        return found

    def _poll_packets(self, timeout_s: float | None) -> bool:
        """Take in one packet of each channel that has any, or that it was woken; whether there was this."""
        found = self._poll.poll(None if timeout_s is None else timeout_s * 1e3)
        for descriptor, _ in found:
            if descriptor == self._alarm:
                os.eventfd_read(self._alarm)
            else:
                self._take_in(self._by_descriptor[descriptor])
        return bool(found)

    def _settle(self) -> bool:
        """Deliver messages that GPUs have written by now; returns whether there were any."""
        found = False
        for peer, under_way in list(self._under_way.items()):
            while under_way and under_way[0][1].is_there():
                self._deliver_payload(*under_way.popleft())
                found = True
            if not under_way:
                del self._under_way[peer]
        return found

    def _deliver_payload(self, key: MessageKey, payload: Payload) -> None:
        with out_of_inference_mode():
            tensor, there = payload.tensor()
        if there is None:
            self.deliver(key, tensor)
            return
        with self._changed:
            self.deliver(key, tensor)
            if key in self._arrived:
                self._there[key] = there

    def _take_in(self, channel: Channel) -> bool:
        """Take in a channel's next packet, if its table is known; returns whether it has been."""
        try:
            header = self._next_header(channel)
            if header is None or (
                self.is_early(header, channel.received) and not self._waited_for_table(channel, header)
            ):
                return False
            self._take_in_message(channel, header)
        except EngineError as error:
            self._stop(channel, error)
        except (OSError, EOFError) as error:
            self._stop(channel, PeerLost(self.rank, channel.peer, error))
        except ValueError as error:
            self._stop(channel, self._refusal(channel.peer, MessageKey(0, 0, 0, 0), str(error)))
        return True

    def _next_header(self, channel: Channel) -> Header | None:
        early = self._early.get(channel.peer)
        return early[0] if early is not None else channel.next_header()

    def _waited_for_table(self, channel: Channel, header: Header) -> bool:
        """Whether a header has waited too long for its table; before that it is put aside, with all that follow it."""
        if channel.peer not in self._early:
            self._early[channel.peer] = header, time.monotonic() + self._announce_timeout_s
            self._poll.unregister(channel)
        return time.monotonic() >= self._early[channel.peer][1]

    def _take_in_message(self, channel: Channel, header: Header) -> None:
        if self._early and self._early.pop(channel.peer, None) is not None:
            self._poll.register(channel, select.POLLIN)
        key = header.key
        announced = self.check_header(header, channel.peer, channel.received)
        try:
            if announced is None:
                channel.drop(key, description_of(header.described).size_bytes)
                return
            payload = channel.payload(key, announced.layout)
            if channel.peer not in self._under_way and payload.is_there():
                self._deliver_payload(key, payload)
            else:
                self._under_way.setdefault(channel.peer, deque()).append((key, payload))
                self._settle()
        except (RuntimeError, MemoryError) as error:
            if announced is None:
                raise
            raise self._not_moved("receive", key, error) from error

    def forget(self, context: int, before_step: int, ahead: int | None = None) -> None:
        with self._changed:
            super().forget(context, before_step, ahead)
            self._there = {key: there for key, there in self._there.items() if key in self._arrived}

    def _stop(self, channel: Channel, error: BaseException) -> None:
        """Receive no more from a rank, and report why."""
        self._early.pop(channel.peer, None)
        with contextlib.suppress(KeyError):
            self._poll.unregister(channel)
        self.report(error)

    def _forget_known(self, tables: Sequence[int]) -> None:
        super()._forget_known(tables)
        self._sent_before = {wire: sent for wire, sent in self._sent_before.items() if wire[0] not in tables}

    # ---- end

    def unregister(self, tables: Sequence[int]) -> None:
        with self._changed:
            super().unregister(tables)
            self._there = {key: there for key, there in self._there.items() if key in self._arrived}
        for peer, under_way in list(self._under_way.items()):
            for _, payload in (message for message in under_way if message[0].table in tables):
                payload.drop()
            self._under_way[peer] = deque(message for message in under_way if message[0].table not in tables)
            if not self._under_way[peer]:
                del self._under_way[peer]
        for channel in self._channels.values():
            channel.forget(tables)

    def fail(self, error: BaseException) -> None:
        with self._changed:
            super().fail(error)
            self._wake()

    def _wake(self) -> None:
        """Have the thread that waits look again; called with the lock."""
        if self._alarm >= 0:
            os.eventfd_write(self._alarm, 1)

    def close(self) -> None:
        self._end_waits()
        with self._reading:
            for channel in self._channels.values():
                channel.close()
            self._arrived.clear()
            self._under_way.clear()
            with self._changed:
                if self._alarm >= 0:
                    os.close(self._alarm)
                self._alarm = -1


_AS_IT_IS = contextlib.nullcontext()


def out_of_inference_mode() -> AbstractContextManager[object]:
    """Slots and messages outlast the mode that the caller is in."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else _AS_IT_IS
