"""LaggedTensor: a boundary tensor as a rank reads it while its messages lag behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch

from runtime.worker.predictor import Predictor
from runtime.worker.waiting import Waiting


class LaggedTensor:
    """One boundary tensor of one trajectory: its predictor, and the messages that this has yet to observe.

    Every message is observed once, in order, and not before an evaluation is told to read that far. So what is read
    depends on the driver's commands only, never on when messages arrive.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._announced: deque[int] = deque()  # steps of messages that are, or will be, sent and are not observed yet

    def announce(self, steps: Sequence[int]) -> None:
        """The sender was told to run these steps (ascending): each brings a message."""
        self._announced.extend(steps)

    def read(self, step: int, newest: int, receive: Callable[[int], Waiting[torch.Tensor]]) -> Waiting[torch.Tensor]:
        """The tensor for ``step``.

        Args:
            step: of the evaluation that reads.
            newest: the last step whose message may be used. Where it is ``step`` itself, its message is the value;
                otherwise the value is the predictor's estimate from the messages up to it.
            receive: takes the message of a step.
        """
        latest = None
        while self._announced and self._announced[0] <= newest:
            observed = self._announced.popleft()
            latest = yield from receive(observed)
            self._predictor.observe(observed, latest)
        if newest == step:
            assert latest is not None
            return latest
        return self._predictor.estimate(step)
