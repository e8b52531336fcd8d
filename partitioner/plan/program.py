"""Program: one component's ordered instructions, derived from graph and placement, never stored. Pure.

Of a chain n0 -> n1 -> n2 -> n3, of which component 0 has n0 and n1, and n0 is read by n3 as well:

    component 0                            component 1
    ------------------------------------   --------------------------------------
    0  Compute n0 .. n0 (1 nodes)
    1  Send %n0 to 1
    2  Compute n1 .. n1 (1 nodes)
    3  Send %n1 to 1                       0  Receive %n1 from 0
                                           1  Compute n2 .. n2 (1 nodes)
                                           2  Receive %n0 from 0
                                           3  Compute n3 .. n3 (1 nodes)

Exact and lagged evaluations run the same program: they differ in which call's message a Receive hands over (see
schedule.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from partitioner.plan.hoisted import Hoisted


@dataclass(frozen=True, slots=True)
class Receive:
    """Make ``value``, which component ``source`` computes, readable from here on."""

    value: str
    source: int

    def __str__(self) -> str:
        return f"Receive %{self.value} from {self.source}"


@dataclass(frozen=True, slots=True)
class Compute:
    """Run nodes in order; ``reads`` come from before, ``keeps`` are read after, ``drops`` are not."""

    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    keeps: tuple[str, ...]
    drops: tuple[str, ...]

    def __str__(self) -> str:
        return f"Compute {self.nodes[0]} .. {self.nodes[-1]} ({len(self.nodes)} nodes)"


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``value`` to components ``readers``."""

    value: str
    readers: tuple[int, ...]

    def __str__(self) -> str:
        return f"Send %{self.value} to {', '.join(map(str, self.readers))}"


Instruction = Receive | Compute | Send


@dataclass(frozen=True)
class Program:
    """What one component does.

    hoisted: what it computes for itself of all that does not depend on the latent. instructions: its latent nodes
    and messages. inputs: names of the graph's inputs and the preamble's values that it reads. parameters: names of
    the parameters that it reads. results: names of the denoiser's results that it computes.
    """

    component: int
    hoisted: Hoisted
    instructions: tuple[Instruction, ...]
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    results: tuple[str, ...]

    def __str__(self) -> str:
        head = (
            f"component {self.component}: {len(self.parameters)} parameters, inputs {', '.join(self.inputs) or 'none'}"
        )
        return "\n  ".join([head, *map(str, self.instructions)])
