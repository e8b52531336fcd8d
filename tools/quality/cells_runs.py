"""measure_case: all cells of one case, by pipelines and engines that this process keeps from case to case."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch

from partitioner.errors import first_line
from partitioner.models.sampler_probe import probe
from partitioner.models.samplers import denoiser_calls, steps_within
from partitioner.plan.plan import Plan
from runtime.driver.trajectory import GUARDED, UNFORESEEN
from runtime.engine import Engine
from runtime.options import decibels
from runtime.pipeline import parallelize
from runtime.stats import Stats
from tools.pages import be_quiet, commit
from tools.pictures.classifier import Classifier
from tools.quality.cells_cases import Case, Way, key_of, ways_of
from tools.quality.cells_row import CellScorer, MeasuredCell
from tools.quality.engine_config import EngineConfig
from tools.quality.measured_pipeline import MeasuredPipeline, shipped_pipeline
from tools.quality.metrics import drawn_features
from tools.quality.runs import speedup_of
from tools.quality.samplers import SamplingCase
from tools.trace_once import traced_once

AT_ONCE = 64  # pictures of sequential runs, which nothing is decided for


@dataclass(frozen=True)
class CellSettings:
    """How cases are measured.

    Attributes:
        samples: pictures of a cell.
        deep_samples: of a cell of more than two components.
        chunk: pictures in one call of the pipeline under the engine: its calls are exact or not for all of them.
        ways: branches and components.
        qualities: of the engine's option; "default" leaves it out.
    """

    samples: int
    deep_samples: int
    chunk: int
    ways: tuple[Way, ...]
    qualities: tuple[str, ...]

    def samples_of(self, way: Way) -> int:
        """How many pictures a cell of that way has."""
        return self.samples if way.components == 2 else min(self.samples, self.deep_samples)


@dataclass(frozen=True)
class Run:
    """What the engine made of a case.

    Attributes:
        pixels: (samples, 3, height, width) in [0, 1].
        calls: of each generation, how many calls were exact, and how many were not.
        lagged: of the latter, how many were async, in all generations.
        reasons: why calls were exact -> how many.
        bound_db: PSNR that the guard held pictures to; None where there was none, as in async mode.
    """

    pixels: torch.Tensor
    calls: tuple[tuple[int, int], ...]
    lagged: int
    reasons: Counter[str]
    bound_db: float | None


class Contestant:
    """A shipped pipeline alone, and one of its own for each engine, so that an engine is started once.

    Args:
        denoiser: of tools/trained.
        settings: of the measurement.
        stack: ends the engines.

    Attributes:
        alone: the pipeline without an engine.
        chunk: pictures in a call of the others.
    """

    def __init__(self, denoiser: str, settings: CellSettings, stack: ExitStack) -> None:
        self._denoiser, self._settings, self._stack = denoiser, settings, stack
        self.chunk = settings.chunk
        self.alone = shipped_pipeline(denoiser, settings.samples, AT_ONCE, None)
        self._planner = self._pipeline()
        self._engines: dict[tuple[int, str], tuple[MeasuredPipeline, Engine]] = {}
        self._made: dict[tuple[int, int], torch.Tensor] = {}  # (steps, sample) -> picture
        self._sampling: tuple[str, float] | None = None

    def _pipeline(self) -> MeasuredPipeline:
        return shipped_pipeline(self._denoiser, self._settings.samples, self._settings.chunk, None)

    @cached_property
    def _classified(self) -> tuple[Classifier, torch.Tensor]:
        classifier = Classifier.load()
        return classifier, drawn_features(classifier)

    def sequential(self, case: Case, steps: Sequence[int]) -> torch.Tensor:
        """Pictures of the first samples, by as many sequential steps each; what was made before is not made again."""
        if self._sampling != (case.sampler, case.guidance):
            self._sampling, self._made = (case.sampler, case.guidance), {}
            _prepare(self.alone, case)
        for count in sorted(set(steps)):
            missing = [sample for sample, own in enumerate(steps) if own == count and (count, sample) not in self._made]
            if missing:
                made = self.alone.pictures_of(missing, count)
                self._made |= {(count, sample): picture for sample, picture in zip(missing, made, strict=True)}
        return torch.stack([self._made[count, sample] for sample, count in enumerate(steps)])

    def scorer(self, case: Case) -> CellScorer:
        """Compares pictures with the sequential ones."""
        reference = self.sequential(case, [case.steps] * self._settings.samples)
        if not bool(reference.isfinite().all()):
            raise ValueError("the sequential pictures are not finite")
        assert self.alone.labels is not None
        return CellScorer(*self._classified, self.alone.labels, reference)

    def plan(self, way: Way) -> Plan:
        """For calls of a chunk."""
        return self._planner.plan(EngineConfig(way.devices, way.branches, "chain"))[0]

    def run(self, case: Case, components: int, quality: str, samples: int) -> Run:
        """Have the engine make the first samples, a chunk at a time."""
        pipeline, engine = self._engine(components, quality)
        _prepare(pipeline, case)
        before, made, calls, lagged = engine.stats, [], [], 0
        reasons = Counter[str]()
        for first in range(0, samples, self._settings.chunk):
            numbers = range(first, min(samples, first + self._settings.chunk))
            made.append(pipeline.pictures_of(numbers, case.steps))
            now = engine.stats
            exact = now.exact_steps - before.exact_steps
            calls.append((exact, now.steps - before.steps - exact))
            lagged += now.async_steps - before.async_steps
            reasons += _reasons_between(before, now)
            before = now
        return Run(torch.cat(made), tuple(calls), lagged, reasons, None if lagged else decibels(engine.options.quality))

    def _engine(self, components: int, quality: str) -> tuple[MeasuredPipeline, Engine]:
        key = components, quality
        if key not in self._engines:
            pipeline = self._pipeline()
            # rows of exact calls together: the same pictures but for the last bits, sooner where one core computes all
            options: dict[str, Any] = {"transport": "emulation", "keep_weights": True, "microbatches": 1}
            if quality != "default":
                options["quality"] = float(quality) if quality[0].isdigit() else quality
            running = parallelize(pipeline.pipe, self.plan(Way(1, components)), **options)
            self._engines[key] = pipeline, self._stack.enter_context(running)
        return self._engines[key]


def _prepare(pipeline: MeasuredPipeline, case: Case) -> None:
    pipeline.arguments["guidance_scale"] = case.guidance
    pipeline.use(SamplingCase(case.sampler, case.steps))


def _reasons_between(before: Stats, now: Stats) -> Counter[str]:
    return Counter(now.exact_reasons) - Counter(before.exact_reasons)


class Bench:
    """The contestants of this process."""

    def __init__(self, settings: CellSettings) -> None:
        self.settings = settings
        self._stack = ExitStack()
        self._stack.enter_context(traced_once(plans=True))
        self._contestants: dict[str, Contestant] = {}

    def contestant(self, denoiser: str) -> Contestant:
        """The pipelines and engines of a denoiser."""
        if denoiser not in self._contestants:
            self._contestants[denoiser] = Contestant(denoiser, self.settings, self._stack)
        return self._contestants[denoiser]

    def close(self) -> None:
        """End the engines."""
        self._stack.close()


_bench: Bench | None = None


def measure_case(case: Case, wanted: frozenset[str], settings: CellSettings) -> dict[str, dict[str, Any]]:
    """The cells of a case by their keys, as JSON takes them; {"failed": why} for what could not be measured.

    Args:
        case: what is sampled.
        wanted: the keys of the cells that are measured.
        settings: the same in every call of a process.
    """
    global _bench
    if _bench is None:
        be_quiet()
        torch.set_num_threads(1)
        logging.getLogger("runtime").setLevel(logging.ERROR)  # what it warns of is in the cells
        _bench = Bench(settings)
    try:
        return _cells(case, wanted, _bench)
    except Exception as error:  # one case of many, which go on
        close_bench()
        return {key: {"failed": f"{type(error).__name__}: {first_line(error)}"} for key in sorted(wanted)}


def close_bench() -> None:
    """End what ``measure_case`` keeps for the next one."""
    global _bench
    if _bench is not None:
        _bench.close()
        _bench = None


def _cells(case: Case, wanted: frozenset[str], bench: Bench) -> dict[str, dict[str, Any]]:
    settings, contestant = bench.settings, bench.contestant(case.denoiser)
    start = time.perf_counter()
    scorer = contestant.scorer(case)
    runs: dict[tuple[int, str], Run] = {}
    cells = {}
    for way in ways_of(case, settings.ways):
        for quality in settings.qualities:
            if key_of(case, way, quality) in wanted:
                key = way.components, quality
                if key not in runs:
                    runs[key] = _same_run(runs, *key) or contestant.run(case, *key, settings.samples_of(way))
                cells[key_of(case, way, quality)] = _cell(contestant, case, way, quality, runs[key], scorer)
    seconds = round((time.perf_counter() - start) / max(1, len(cells)), 2)
    return {key: {**asdict(cell), "seconds": seconds} for key, cell in cells.items()}


def _same_run(runs: Mapping[tuple[int, str], Run], components: int, quality: str) -> Run | None:
    """Without a guard the pictures are those of a run in which it never acted; None where there is no such run."""
    for (number, _), run in runs.items():
        if quality == "off" and number == components and GUARDED not in run.reasons:
            return replace(run, bound_db=None)
    return None


def _cell(contestant: Contestant, case: Case, way: Way, quality: str, run: Run, scorer: CellScorer) -> MeasuredCell:
    pipeline, plan = contestant.alone, contestant.plan(way)
    is_foreseen = not run.lagged and UNFORESEEN not in run.reasons
    samples, chunk = len(run.pixels), contestant.chunk
    counts = [fewer_steps(plan, pipeline.sampler, case.steps, *calls) for calls in run.calls]
    fewer = [counts[sample // chunk] for sample in range(samples)]
    beside = contestant.sequential(case, fewer)
    reference = contestant.sequential(case, [case.steps] * samples)
    exact, others = (sum(calls[kind] for calls in run.calls) for kind in (0, 1))
    calls = exact + others
    distances, baseline = scorer.distances(run.pixels), scorer.distances(beside)
    return MeasuredCell(
        **asdict(case),
        branches=way.branches,
        components=way.components,
        quality=quality,
        samples=samples,
        chunk=chunk,
        engine=scorer.score(run.pixels),
        fewer=scorer.score(beside),
        sequential=scorer.score(reference),
        speedup=round(speedup_of(plan, exact, others), 3),
        planned_speedup=round(plan.speedup(case.steps, pipeline.sampler), 3),
        fewer_steps=round(sum(fewer) / samples, 2),
        exact=round(exact / calls, 4),
        lookahead=round((others - run.lagged) / calls, 4),
        lagged=round(run.lagged / calls, 4),
        reasons={why: round(count / calls, 4) for why, count in run.reasons.items()},
        note=None if is_foreseen else probe(pipeline.pipe.scheduler).refusal,
        bound_db=run.bound_db,
        below_bound=None if run.bound_db is None else round(float((distances < run.bound_db).float().mean()), 4),
        behind_fewer=round(float((distances < baseline).float().mean()), 4),
        seconds=0.0,
        commit=commit(),
    )


def fewer_steps(plan: Plan, sampler: str, steps: int, exact: int, others: int) -> int:
    """How many sequential steps take no longer than a run with so many exact and other calls; at most all of them."""
    time = denoiser_calls(sampler, steps) / speedup_of(plan, exact, others)
    return steps_within(sampler, steps, time)
