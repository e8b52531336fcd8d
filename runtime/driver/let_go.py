"""LetGo: the streams that were let go of although more of their calls may come.

An engine keeps so many streams and no more. A call of one that has gone must start anew, with exact calls, and must not
be taken for the next one of another stream that is like it. So as long as there may be such calls, a stream's next call
must show clearly by its latent whose it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runtime.driver.callers import Caller
from runtime.driver.denoiser_call import DenoiserCall
from runtime.driver.stream import Stream, has_ended


@dataclass(eq=False)
class _Run:
    """Streams of one caller and one run of its scheduler. count: how many may still go on."""

    caller: Caller
    timesteps: torch.Tensor | None
    is_known: bool
    count: int = 1


class LetGo:
    """The streams that were let go of; what is kept of them is how many there are of each run."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def add(self, stream: Stream) -> None:
        """Take note of one."""
        self._runs = [run for run in self._runs if not has_ended(run.caller, run.timesteps, is_known=run.is_known)]
        for run in self._runs:
            if run.timesteps is stream.timesteps and run.caller.may_be(stream.caller):
                run.count += 1
                return
        self._runs.append(_Run(stream.caller, stream.timesteps, stream.is_known))

    def may_have(self, call: DenoiserCall) -> bool:
        """Whether a call may be the next one of one of them."""
        return self._of(call) is not None

    def take_back(self, call: DenoiserCall) -> bool:
        """Whether a call that starts anew seems to be of one of them, which then is none any more."""
        run = self._of(call)
        if run is None:
            return False
        run.count -= 1
        if run.count == 0:
            self._runs.remove(run)
        return True

    def _of(self, call: DenoiserCall) -> _Run | None:
        found = (run for run in self._runs if run.timesteps is call.timesteps and run.caller.may_be(call.caller))
        return next(found, None)
