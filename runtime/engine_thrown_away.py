"""end_thrown_away: the end of an engine that nobody has closed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from partitioner.graph.alone import works_alone
from partitioner.process import interrupts_put_off
from runtime.ranks.base import Ranks
from runtime.turns import Turns, at_engine_work, later


def end_thrown_away(turns: Turns, ranks: Ranks, give_back_weights: Sequence[Callable[[], None]]) -> None:
    """End an engine that nobody has closed and nobody has any more.

    Args:
        turns: the engine's.
        ranks: that are to end.
        give_back_weights: of each denoiser; they may do without the denoiser itself.
    """
    if not turns.is_owner:
        return

    def end() -> None:
        with interrupts_put_off(), ExitStack() as stack:
            stack.callback(
                warnings.warn,
                "an engine was thrown away without having been closed; use it in a with block, or call close()",
                ResourceWarning,
                stacklevel=1,
            )
            for give_back_own in give_back_weights:
                stack.callback(give_back_own)
            stack.callback(ranks.close)

    if at_engine_work() or works_alone():  # the garbage collector may run in the middle of anything
        later(end, "end engine")
    else:
        end()
