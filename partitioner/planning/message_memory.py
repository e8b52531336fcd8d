"""How much memory the messages of boundary tensors take: what their readers keep, and the slots of their senders.

A reader keeps messages that it has still to look at, in look-ahead those of as many calls as it is components behind,
and those that its predictor looks at. Two more are under way: one is written while the reader works, and one is given
back only after it. Where the reader computes on another GPU, it copies messages, and their sender has slots for them.

The search counts KEPT_MESSAGES of what a component receives, which needs no knowledge of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

from partitioner.search.evaluate import Evaluation
from partitioner.search.mode import Mode
from partitioner.search.problem import KEPT_MESSAGES

UNDER_WAY = 2
SLOTS = 3  # of a sender: one is written to, one is copied, and one is yet to be given back


@dataclass(frozen=True)
class ComponentMemory:
    """What one component's rank holds.

    Attributes:
        memory_bytes: Parameters, what is kept of prompts, activations and messages.
        message_bytes: Of that, messages that it keeps and slots.
        slot_bytes: Of that, slots for what it sends, which there are only between GPUs.
    """

    memory_bytes: int
    message_bytes: int
    slot_bytes: int


def kept_messages(mode: Mode, source: int, reader: int) -> int:
    """How many messages of one boundary tensor there are at once, at most, whatever the predictor.

    >>> kept_messages("lookahead", 0, 1), kept_messages("lookahead", 0, 3), kept_messages("async", 3, 0)
    (3, 5, 5)
    """
    return (abs(reader - source) if mode == "lookahead" else KEPT_MESSAGES) + UNDER_WAY


def component_memory(evaluation: Evaluation, calls: int = 1) -> tuple[ComponentMemory, ...]:
    """What each component of a split holds.

    Args:
        evaluation: The split's figures.
        calls: How many of a step's calls a component computes; it keeps the messages of each.
    """
    kept = [0] * len(evaluation.components)
    slots = [0] * len(evaluation.components)
    for boundary in evaluation.boundaries:
        for reader in boundary.targets:
            messages = kept_messages(evaluation.mode, boundary.source, reader)
            kept[reader] += calls * messages * boundary.size_bytes
            slots[boundary.source] += calls * SLOTS * boundary.size_bytes
    return tuple(
        ComponentMemory(
            memory_bytes=figures.memory_bytes - KEPT_MESSAGES * figures.receive_bytes + kept[k] + slots[k],
            message_bytes=kept[k] + slots[k],
            slot_bytes=slots[k],
        )
        for k, figures in enumerate(evaluation.components)
    )
