"""The mixed-integer program of all placements of a Problem's nodes on devices, minimised for T by HiGHS.

    column     whether (x: integer, 0 or 1; y, z: at least what x makes them) or how much
    --------   --------------------------------------------------------------------------
    x[v,d]     node v is on device d
    y[i,d]     shared item i is needed on device d
    z[u,d]     value u is received on device d
    peak[d]    bytes of the largest activation on device d
    T          step time in ms, the objective

Component d is on device d. In look-ahead over equal devices the placements are chains, with values going from lower to
higher numbers; over unequal ones the order of the devices is free, and the bounds are those of any placement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from partitioner.errors import UsageError
from partitioner.search.arrays import Floats, Ints
from partitioner.search.devices import Devices
from partitioner.search.evaluate import lower_bound_ms
from partitioner.search.mode import Mode
from partitioner.search.problem import KEPT_MESSAGES, Problem


@dataclass(frozen=True, slots=True)
class ProgramSolution:
    """The T in ms that was found, a bound that no placement beats, and the device of each node (None: none)."""

    step_ms: float
    bound_ms: float
    assignment: tuple[int, ...] | None


def fastest_placement(
    problem: Problem,
    devices: Devices,
    mode: Mode,
    *,
    time_limit_s: float = math.inf,
    start: Sequence[int] | None = None,
) -> ProgramSolution:
    """A placement of the least T of all, or the best that is found in the time. start: device of each node, to begin
    with. Raises UsageError if highspy is not installed."""
    return _Program(problem, devices, mode).minimise(time_limit_s, start)


def load_highspy() -> Any:
    """The module of HiGHS; UsageError if it is not installed."""
    try:
        import highspy
    except ImportError as error:
        raise UsageError(
            "a proof needs HiGHS, which is not installed; install the optional extra: pip install highspy"
        ) from error
    return highspy


class _Program:
    """Columns and rows of the program."""

    def __init__(self, problem: Problem, devices: Devices, mode: Mode) -> None:
        self.problem, self.devices, self.mode = problem, devices, mode
        n, count = problem.size, len(devices)
        self.rows: list[tuple[float, float, list[tuple[int, float]]]] = []
        self.x = np.arange(n * count).reshape(n, count)
        columns = n * count

        def block(rows: int) -> Ints:
            nonlocal columns
            made = np.arange(columns, columns + rows * count).reshape(rows, count)
            columns += rows * count
            return made

        self.y = block(len(problem.item_bytes))
        self.z = block(len(problem.value_bytes))
        self.peak = block(1)[0]
        self.step = columns
        self.columns = columns + 1
        self._add_placement()
        self._add_implied()
        self._add_devices()

    def _add(self, lower: float, upper: float, terms: Iterable[tuple[Any, float]]) -> None:
        self.rows.append((lower, upper, [(int(column), float(factor)) for column, factor in terms]))

    def _add_placement(self) -> None:
        problem, count = self.problem, len(self.devices)
        for v in range(problem.size):
            self._add(1, 1, [(c, 1) for c in self.x[v]])
        for d in range(count):
            self._add(1, math.inf, [(c, 1) for c in self.x[:, d]])
        for members in problem.units.values():
            for v in members[1:]:
                for d in range(count):
                    self._add(0, 0, [(self.x[v, d], 1), (self.x[members[0], d], -1)])
        if self.is_chain:
            pairs = np.unique(np.stack([problem.edge_producer, problem.edge_reader], axis=1), axis=0)
            for u, v in pairs.tolist():
                for d in range(count - 1):
                    terms = [(c, 1.0) for c in self.x[u, : d + 1]] + [(c, -1.0) for c in self.x[v, : d + 1]]
                    self._add(0, math.inf, terms)

    @property
    def is_chain(self) -> bool:
        """Whether values may only go to higher numbers."""
        return self.mode == "lookahead" and len(self.devices.kinds) == 1

    def _add_implied(self) -> None:
        """y, z and the peaks are at least what x makes them."""
        problem = self.problem
        for d in range(len(self.devices)):
            for i, v in zip(problem.reading_item.tolist(), problem.reading_node.tolist(), strict=True):
                self._add(0, math.inf, [(self.y[i, d], 1), (self.x[v, d], -1)])
            edges = zip(
                problem.edge_value.tolist(), problem.edge_producer.tolist(), problem.edge_reader.tolist(), strict=True
            )
            for u, p, v in edges:
                self._add(0, math.inf, [(self.z[u, d], 1), (self.x[v, d], -1), (self.x[p, d], 1)])
            if math.isfinite(self.devices.memory_bytes[d]):
                for v in range(problem.size):
                    live = float(problem.activation_bytes[v])
                    self._add(0, math.inf, [(self.peak[d], 1), (self.x[v, d], -live)])

    def _add_devices(self) -> None:
        """T of each device, and its memory."""
        problem = self.problem
        for d, speed in enumerate(self.devices.speeds):
            load = [(c, float(ms) / speed) for c, ms in zip(self.x[:, d], problem.load_ms, strict=True)]
            load += [(c, float(ms) / speed) for c, ms in zip(self.y[:, d], problem.item_cost_ms, strict=True)]
            receive = [
                (c, self.devices.receive_ms(d, float(size), 1))
                for c, size in zip(self.z[:, d], problem.value_bytes, strict=True)
            ]
            for terms in [load, receive] if self.mode == "lookahead" else [load + receive]:
                self._add(0, math.inf, [(self.step, 1.0), *((c, -ms) for c, ms in terms)])
            limit = self.devices.memory_bytes[d]
            if math.isfinite(limit):
                held = [(c, float(size)) for c, size in zip(self.y[:, d], problem.item_bytes, strict=True)]
                held += [(c, KEPT_MESSAGES * float(s)) for c, s in zip(self.z[:, d], problem.value_bytes, strict=True)]
                scaled = [(c, size / limit) for c, size in [*held, (self.peak[d], 1.0)]]
                self._add(-math.inf, 1.0, scaled)

    def minimise(self, time_limit_s: float, start: Sequence[int] | None) -> ProgramSolution:
        """Solve for the least T, which is scaled by its lower bound to about 1, and given back unscaled."""
        highspy = load_highspy()
        scale = 1 / max(lower_bound_ms(self.problem, self.devices), 1e-12)
        solver = highspy.Highs()
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("mip_rel_gap", 1e-7)
        solver.setOptionValue("time_limit", min(time_limit_s, 1e7))
        solver.passModel(self._lp(highspy, scale))
        if start is not None:
            solver.setSolution(*self._sparse_start(start))
        solver.run()
        info = solver.getInfo()
        found = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal or math.isfinite(info.mip_dual_bound)
        if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
            bound = info.mip_dual_bound / scale if found else math.inf
            return ProgramSolution(math.inf, bound, None)
        values = np.array(solver.getSolution().col_value)
        chosen = tuple(int(d) for d in np.argmax(values[self.x], axis=1))
        return ProgramSolution(info.objective_function_value / scale, info.mip_dual_bound / scale, chosen)

    def _lp(self, highspy: Any, scale: float) -> Any:
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = self.columns, len(self.rows)
        cost: Floats = np.zeros(self.columns)
        cost[self.step] = scale
        lp.col_cost_ = cost
        lp.col_lower_ = np.zeros(self.columns)
        upper = np.ones(self.columns)
        upper[self.peak] = highspy.kHighsInf
        upper[self.step] = highspy.kHighsInf
        lp.col_upper_ = upper
        if len(self.devices.kinds) == 1 and not self.is_chain:  # equal devices: node v is on one of the first v+1
            for v in range(min(self.problem.size, len(self.devices))):
                upper[self.x[v, v + 1 :]] = 0
            lp.col_upper_ = upper
        lp.row_lower_ = np.array([lower if math.isfinite(lower) else -highspy.kHighsInf for lower, _, _ in self.rows])
        lp.row_upper_ = np.array([top if math.isfinite(top) else highspy.kHighsInf for _, top, _ in self.rows])
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.cumsum([0, *(len(terms) for _, _, terms in self.rows)])
        lp.a_matrix_.index_ = np.array([column for _, _, terms in self.rows for column, _ in terms])
        lp.a_matrix_.value_ = np.array([factor for _, _, terms in self.rows for _, factor in terms])
        lp.integrality_ = [
            highspy.HighsVarType.kInteger if column < self.x.size else highspy.HighsVarType.kContinuous
            for column in range(self.columns)
        ]
        return lp

    def _sparse_start(self, start: Sequence[int]) -> tuple[int, Ints, Floats]:
        """A placement as the values of all x, equal devices renumbered as the program wants them."""
        place = list(start)
        if len(self.devices.kinds) == 1 and not self.is_chain:
            number: dict[int, int] = {}
            place = [number.setdefault(k, len(number)) for k in place]
        values = np.zeros(self.x.size)
        values[self.x[np.arange(self.problem.size), place]] = 1
        return self.x.size, self.x.reshape(-1).astype(np.int32), values
