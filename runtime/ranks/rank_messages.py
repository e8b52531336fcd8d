"""What the driver and the process of a rank send each other over their connection.

    driver                        rank
    Welcome       ->                          first message
    Address      <->  Address                 until all ranks are connected to each other
                  <-  Ready(0)                connected
    Adopt         ->                          the settings of torch to compute by, whenever they are others
    Build, Load   ->
                  <-  Ready(n)                n Load commands are done
    Evaluate      ->                          again and again; its tensors travel between the ranks themselves
    SendBack      ->                          so do those of parameters
    Forget        ->                          a trajectory has ended
    Ask           ->
                  <-  Answer
                  <-  Failed | Lost           a failure
    Stop          ->                          the rank's process ends with status 0

Build, Load, Evaluate, SendBack and Forget are for one of the rank's workers (runtime.worker.commands).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runtime.devices.torch_settings import Settings
from runtime.errors import EngineError
from runtime.ranks.rank_report import Report
from runtime.transport.handshake import HostAndPort
from runtime.worker.commands import Setup


@dataclass(frozen=True)
class Welcome:
    """The driver's first message: all that a rank has to know to begin.

    setups: of the rank's workers, by denoiser. world: how many ranks there are. threads: of torch, 0 for torch's own
    choice. startup_timeout_s: for the ranks to connect. step_timeout_s: of a step. lines: of ranks
    that the driver's own process has started, other rank -> the inherited descriptor of this rank's end of the line to
    it. Where there are none, secret: by which ranks of this start know each other; host: the address of its machine on
    which the rank listens until all are connected.
    """

    setups: Sequence[Setup]
    world: int
    plan_hash: int
    threads: int
    startup_timeout_s: float
    step_timeout_s: float
    secret: bytes = field(repr=False)
    lines: Mapping[int, int]
    host: str


@dataclass(frozen=True)
class Address:
    """Where a rank can be reached by the others, who are told by the driver."""

    rank: int
    address: HostAndPort


@dataclass(frozen=True)
class Adopt:
    """Compute by these settings of torch from now on, in the order of commands."""

    settings: Settings


@dataclass(frozen=True)
class Ready:
    """The rank is connected to the others, and has done ``loads`` Load commands."""

    loads: int


@dataclass(frozen=True)
class Ask:
    """Ask for a Report; answered at once, also while the rank computes or waits. number: for the answer to repeat."""

    number: int


@dataclass(frozen=True)
class Answer:
    """The answer to an Ask."""

    number: int
    report: Report


@dataclass(frozen=True)
class Failed:
    """The rank has failed, and its process ends."""

    error: EngineError


@dataclass(frozen=True)
class Lost:
    """The rank's connection to rank ``peer`` broke. The cause may be the end of either; the driver finds out."""

    peer: int
    text: str
