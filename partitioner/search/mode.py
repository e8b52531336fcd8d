"""Mode: how components overlap, and what a step then takes."""

from __future__ import annotations

from typing import Literal

Mode = Literal["async", "lookahead"]
MODES: tuple[Mode, ...] = ("lookahead", "async")


def step_ms(mode: Mode, load_ms: float, receive_ms: float) -> float:
    """Time of a component in one step: its load, and what of its communication that cannot hide.

    Look-ahead: what is read has had a whole step to arrive, so that receiving costs only where it takes longer than
    the computation. Async: what was sent at the end of one step is read in the next, so none of it is sure to hide.
    """
    return max(load_ms, receive_ms) if mode == "lookahead" else load_ms + receive_ms
