"""Case and Way: which cells tools.quality.cells measures, and in which order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from partitioner.errors import UsageError
from tools.pictures.pipelines import TRAINED
from tools.quality.samplers import SCHEDULERS, predicts_flow

SAMPLERS = ("ddim", "dpmpp", "pndm", "euler", "unipc", "dpmpp_karras", "heun", "lms", "euler_ancestral")
FLOW_SAMPLERS = ("flow", "flow_shift3", "flow_dynamic", "flow_unipc")
FEW_STEP_SAMPLERS = ("lcm", "tcd")
FEW_STEPS = (4, 8)  # of these alone
FLOW_SCALE = 4.5  # what pipelines of flow matching have for a guidance scale where others have 7.5


@dataclass(frozen=True)
class Case:
    """What is sampled: all cells of a case have one sequential output.

    Attributes:
        denoiser: of tools/trained.
        sampler: a name in ``tools.quality.samplers.SCHEDULERS``.
        guidance, steps: of the pipeline's call.
    """

    denoiser: str
    sampler: str
    guidance: float
    steps: int


@dataclass(frozen=True)
class Way:
    """How many branches of how many components run it.

    >>> Way(2, 3).devices, str(Way(2, 3))
    (6, '2x3')
    """

    branches: int
    components: int

    @property
    def devices(self) -> int:
        return self.branches * self.components

    def __str__(self) -> str:
        return f"{self.branches}x{self.components}"


def parse_way(text: str) -> Way:
    """Read an entry of ``--ways``.

    Raises:
        UsageError: it is not of the form BRANCHESxCOMPONENTS, with two components or more.

    >>> parse_way("1x2")
    Way(branches=1, components=2)
    """
    parts = text.split("x")
    if len(parts) != 2 or parts[0] not in ("1", "2") or not parts[1].isdigit() or int(parts[1]) < 2:
        raise UsageError(f"--ways {text!r}: expected 1 or 2 branches of 2 components or more, such as 1x2 or 2x2")
    return Way(int(parts[0]), int(parts[1]))


def key_of(case: Case, way: Way, quality: str) -> str:
    """What a cell is called in the results file.

    >>> key_of(Case("unet", "ddim", 7.5, 20), Way(1, 2), "good")
    'unet ddim 7.5 20 1x2 good'
    """
    return f"{case.denoiser} {case.sampler} {case.guidance:g} {case.steps} {way} {quality}"


def ways_of(case: Case, ways: Sequence[Way]) -> list[Way]:
    """Those that a case has: without guidance a call has no two parts for two branches."""
    return [way for way in ways if way.branches == 1 or case.guidance > 1]


def trained_denoisers() -> list[str]:
    """The denoisers of tools/trained, by the folders of their pipelines."""
    return sorted(file.parent.name for file in TRAINED.glob("*/model_index.json"))


@cache
def is_flow(denoiser: str) -> bool:
    """Whether a denoiser of tools/trained predicts a flow."""
    import diffusers

    folder = TRAINED / denoiser
    named = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["scheduler"]
    return predicts_flow(getattr(diffusers, named[1]).from_pretrained(folder / "scheduler"))


def cases_of(
    denoisers: Sequence[str], samplers: Sequence[str], guidance: Sequence[float], steps: Sequence[int]
) -> list[Case]:
    """All cases, breadth first: the first guidance scale with all steps, denoisers and samplers, then the next one.

    Args:
        denoisers: of tools/trained.
        samplers: those that do not suit a denoiser are left out for it.
        guidance: scales; flow matching has FLOW_SCALE as well, before 7.5.
        steps: numbers of steps; few-step samplers have FEW_STEPS.

    Raises:
        UsageError: a name is not known, or a number makes no sense.
    """
    known = {"denoiser": trained_denoisers(), "sampler": list(SCHEDULERS)}
    for what, names in (("denoiser", denoisers), ("sampler", samplers)):
        for name in names:
            if name not in known[what]:
                raise UsageError(f"{name} is no {what} that is known here: {', '.join(known[what])}")
    if min(steps) < 2 or min(guidance) < 1:
        raise UsageError("expected 2 steps or more and guidance scales of 1 or more")
    return list(dict.fromkeys(_ordered(denoisers, samplers, guidance, steps)))


def _ordered(
    denoisers: Sequence[str], samplers: Sequence[str], guidance: Sequence[float], steps: Sequence[int]
) -> Iterator[Case]:
    usual = [name for name in samplers if name not in FEW_STEP_SAMPLERS]
    few = [name for name in samplers if name in FEW_STEP_SAMPLERS]
    runs = [(count, usual) for count in steps] + [(count, few) for count in FEW_STEPS]
    for asked in guidance:
        for scale in (FLOW_SCALE, asked) if asked == 7.5 else (asked,):
            for count, named in runs:
                for denoiser in denoisers:
                    flow = is_flow(denoiser)
                    if scale == asked or flow:
                        suiting = [name for name in named if name.startswith("flow") == flow]
                        yield from (Case(denoiser, name, scale, count) for name in suiting)
