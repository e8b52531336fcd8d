"""PlanRequest: all that the planner needs to know, checked when it is made."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field, replace

from partitioner.costs.model import CostModel
from partitioner.errors import UsageError
from partitioner.fleet import Fleet, parse_fleet
from partitioner.models.call_rows import CallRows
from partitioner.planning.branching import Branching, check_asked, even_branchings
from partitioner.planning.expected_quality import QualityAdvisor
from partitioner.planning.options import DEFAULTS, PlanOptions
from partitioner.planning.sampling_setup import ANY, SamplingSetup
from partitioner.planning.sources import GraphSource
from profiles.quality_profile import QualityProfile


@dataclass(frozen=True)
class PlanRequest:
    """What to plan, for which devices, by which costs, and how.

    Args:
        denoiser: Where its graphs come from: ``FromSpec``, ``FromModule`` or ``FromGraphs``.
        devices: How many devices of the kind that the costs hold for, or as for ``partition-model --devices``
            ("h200,a100-80g", a JSON file), or a Fleet.
        costs: Where the costs of nodes come from, the driver's own work per step among them.
        options: What else the user asks for.
        sampling: What the plan will be run with: steps and sampler.
        quality: Measured likeness to the sequential output, which decides between modes and predictors. None:
            look-ahead comes before async mode, and async mode reads with ``adaptive``.

    Attributes:
        fleet: The devices, parsed.

    Raises:
        UsageError: Something in it is wrong, or does not go with the rest. Nothing has been traced or measured yet.

    >>> from partitioner.models.find_spec import model_spec
    >>> from partitioner.planning.sources import FromSpec
    >>> request = PlanRequest(FromSpec(model_spec("sdxl")), "h200,a100-80g", CostModel("h200"))
    >>> [device.name for device in request.fleet]
    ['h200', 'a100-80g']
    >>> [branching.rows for branching in request.branchings]  # or one device for each half of the guidance batch
    [(2,), (1, 1)]
    """

    denoiser: GraphSource
    devices: InitVar[Fleet | str | int]
    costs: CostModel
    options: PlanOptions = DEFAULTS
    sampling: SamplingSetup = ANY
    quality: QualityProfile | None = None
    fleet: Fleet = field(init=False)

    def __post_init__(self, devices: Fleet | str | int) -> None:
        object.__setattr__(self, "fleet", parse_fleet(devices, self.costs.reference))
        if self.options.branches is not None:
            check_asked(self.denoiser.name, self.denoiser.step, len(self.fleet), self.options.branches)
        if self.options.refine and not self.costs.times_components:
            raise UsageError("--refine measures components; give --profile cuda:0 or --profile cpu as well")

    @property
    def step(self) -> CallRows:
        """The calls of a step, and into what their rows are divided: only if that was asked for, where it is not known
        that they are computed apart."""
        step = self.denoiser.step
        divides = self.denoiser.divides_unasked or self.options.branches is not None
        return step if divides else replace(step, counts=(step.rows,))

    @property
    def branchings(self) -> list[Branching]:
        """The ways to share a step among branches of as many rows."""
        return even_branchings(self.step, len(self.fleet), self.options.branches)

    @property
    def advisor(self) -> QualityAdvisor | None:
        """Answers from the quality profile for the sampling setup."""
        return None if self.quality is None else QualityAdvisor(self.quality, self.sampling)
