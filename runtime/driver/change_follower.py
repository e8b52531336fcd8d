"""ChangeFollower: when a denoiser is looked at for changes, and how all that an engine keeps of it follows them.

To look takes milliseconds, and mostly there is nothing to find. So ranks begin a call first, and the denoiser is looked
at while they compute. If something was done to it, what they compute is discarded, its trajectory ends, and the call is
made again. The denoiser is looked at before ranks begin

    where a trajectory begins, anything is traced, or ranks lack something of the graph
    where ranks are at work anyway, on calls that were foreseen
    where a parameter or buffer was written to: ranks that share its memory would compute with half of a change, and
      might fail at it; what is discarded is always a call of the denoiser as it was
    in an engine's first CALM calls, and from a change on until a generation has passed without one: what is put on and
      taken off at every step neither ends a trajectory each time nor has calls made twice
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence

import torch

from partitioner.graph.stateless import listed
from runtime.driver.call_arguments import CallReader
from runtime.driver.denoiser_changes import DenoiserChanges
from runtime.driver.distribution import Distribution
from runtime.driver.foresight import BegunCall, Foresight
from runtime.driver.generations import Generation
from runtime.driver.shared_rows import SharedRows
from runtime.driver.stream import Stream
from runtime.driver.streams import Streams
from runtime.driver.traced_graphs import TracedGraphs

CALM = 4  # calls in a row before which nothing was done: a step of most pipelines, so that what each step does shows

_LOGGER = logging.getLogger("runtime")


class LookFirst(Exception):
    """The present call cannot begin before the denoiser has been looked at."""


class ChangeFollower:
    """Looks at one denoiser, and has what an engine keeps of it follow what was done to it.

    Attributes:
        has_looked: whether it has been looked at since the present call was made.
        sees: whether ``look`` has seen something that ``follow`` is to find out about.
    """

    def __init__(
        self,
        changes: DenoiserChanges,
        graphs: TracedGraphs,
        distribution: Distribution,
        *,
        rows: SharedRows,
        calls: CallReader,
        streams: Streams,
        foresight: Foresight,
    ) -> None:
        """Take the denoiser as ``changes`` knows it."""
        self._changes = changes
        self._graphs = graphs
        self._distribution = distribution
        self._rows = rows
        self._calls = calls
        self._streams = streams
        self._foresight = foresight
        self.has_looked = self.sees = False
        self._found = False  # at the present call
        self._calm = 0  # calls since something was found
        self._generation: Callable[[], Generation | None] = lambda: None  # the last one that began
        self._restless = [False, False]  # whether something was found within it, and within the one before

    @property
    def may_look_later(self) -> bool:
        """Whether ranks may begin the next call before the denoiser is looked at."""
        is_calm = self._calm >= CALM and not any(self._restless)
        return is_calm and not self._foresight.begun and not self._changes.was_written()

    def expect_call(self) -> None:
        """A call is made, or made again."""
        self.has_looked = self.sees = self._found = False

    def require_look(self) -> None:
        """Go on only where the denoiser has been looked at.

        Raises:
            LookFirst: it has not.
        """
        if not self.has_looked:
            raise LookFirst

    def look(self) -> None:
        """See whether there is anything to follow, while ranks compute; nothing is done about it yet."""
        self.has_looked = True
        self.sees = self._changes.seems_changed()

    def placed(self, stream: Stream) -> None:
        """Take note of the stream that the present call belongs to."""
        self._calm = 0 if self._found else self._calm + 1
        if stream.trajectory.is_new and stream.generation is not self._generation():
            self._generation = weakref.ref(stream.generation)
            self._restless = [False, self._restless[0]]  # what was done before its first call was not done within it
        else:
            self._restless[0] |= self._found

    def follow(self, *, thorough: bool) -> bool:
        """Notice what was done to the denoiser since the last call, and have this and later calls follow it.

        thorough: see DenoiserChanges.found. True if there was something; all graphs are others then.
        """
        self.has_looked = True
        before = self._changes.state
        change = self._changes.found(thorough=thorough)
        if change is None:
            return False
        self._found = True
        if change.differences:
            self._rows.forget()
            self._calls.share_again()
        if change.differences and not change.is_known:
            _LOGGER.info("the denoiser was changed, and is traced again: %s", listed(change.differences))
        if change.turned:
            unused = self._graphs.turn(before, change.state)
            if unused:
                self.end_trajectories()
                self._distribution.drop(unused)
            if change.written:
                self._graphs.renew()
                self.outdate(change.written)
            return True
        if change.differences:
            self._graphs.forget()
        else:
            self._graphs.renew()
        if change.written or any(difference.is_part for difference in change.differences):
            self.outdate(change.written)  # otherwise if it shows in the graph
        return True

    def discards(self, begun: BegunCall) -> bool:
        """Follow what ``look`` has seen; True if a call that has run is void by that: it is ended, to be made again."""
        if not self.follow(thorough=False):
            return False
        self._restless[0] = True
        self._foresight.discard(begun)
        return True

    def outdate(self, written: Sequence[torch.Tensor]) -> None:
        """Have ranks be given anew what they have of the denoiser. written: tensors that may hold other values."""
        self._graphs.outdate()
        self._distribution.outdate(written)
        self.end_trajectories()

    def end_trajectories(self) -> None:
        """Have no call to come go on with what ranks have kept."""
        self._foresight.give_up_all()
        self._streams.end_all()
