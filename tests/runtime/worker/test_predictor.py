"""Predictors: formulas, the figures of docs/concepts/predictors.md, and which of them may grow without bound."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.worker.predictor import PREDICTORS, Adaptive, Hold, Linear, Predictor
from tools.measure.host import Operators

NOTE = Path(__file__).parents[3] / "docs" / "concepts" / "predictors.md"
BOUNDED = sorted(set(PREDICTORS) - {"linear"})
INPUTS = ("constant", "alternating", "noisy")


def observed(name: str, *values: tuple[int, torch.Tensor]) -> Predictor:
    predictor = PREDICTORS[name]()
    for step, value in values:
        predictor.observe(step, value)
    return predictor


def vector(*elements: float) -> torch.Tensor:
    return torch.tensor(elements, dtype=torch.float64)


# ---- formulas


@pytest.mark.parametrize("name", PREDICTORS)
def test_one_value_is_held(name: str) -> None:
    value = torch.randn(3, 4)
    predictor = observed(name, (5, value))
    assert torch.equal(predictor.estimate(6), value)
    assert torch.equal(predictor.estimate(9), value)


def test_hold_reads_the_last_value() -> None:
    predictor = observed("hold", (0, vector(1)), (1, vector(4)))
    assert predictor.estimate(2) == 4
    assert predictor.estimate(7) == 4


def test_linear_extrapolates_the_last_two_to_the_step() -> None:
    predictor = observed("linear", (0, vector(9)), (1, vector(1)), (3, vector(5)))
    assert [float(predictor.estimate(step)) for step in (4, 5, 6)] == [7, 9, 11]


def test_adaptive_goes_on_as_far_as_the_last_differences_agree() -> None:
    # differences (1, 1), then (1, 0): they share 1 of 2
    predictor = observed("adaptive", (0, vector(0, 0)), (1, vector(1, 1)), (2, vector(2, 1)))
    assert predictor.estimate(3).tolist() == [2.5, 1]
    assert predictor.estimate(4).tolist() == [3, 1]


def test_adaptive_compares_changes_per_step_where_steps_are_uneven() -> None:
    predictor = observed("adaptive", (0, vector(0)), (1, vector(3)), (4, vector(9)))
    # 3 a step, then 2 a step: γ = 2/3
    assert float(predictor.estimate(7)) == pytest.approx(9 + 2 / 3 * 2 * 3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 1, 2), 3),  # goes on
        ((0, 1, 4), 7),  # grows: no further than straight on
        ((0, 1, 0), 0),  # turns back: holds
        ((2, 2, 3), 3),  # has only begun to move: holds
        ((1, 3, 3), 3),  # has stopped: holds
    ],
)
def test_adaptive_neither_overshoots_a_straight_line_nor_follows_a_turn(
    values: tuple[float, ...], expected: float
) -> None:
    predictor = observed("adaptive", *((step, vector(value)) for step, value in enumerate(values)))
    assert predictor.estimate(3) == expected


@given(
    st.sampled_from(sorted(PREDICTORS)),
    st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_estimates_stay_within_three_times_the_largest_value_per_step(
    name: str, values: list[list[float]], ahead: int
) -> None:
    predictor = observed(name, *((step, vector(*value)) for step, value in enumerate(values)))
    bound = max(abs(element) for value in values for element in value)
    estimate = predictor.estimate(len(values) - 1 + ahead)
    assert float(estimate.abs().max()) <= bound * (1 + 2 * ahead) * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_estimates_have_the_values_dtype_and_repeat_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    values = [(step, torch.randn(4, 5).to(dtype)) for step in range(4)]
    copies = [tensor.clone() for _, tensor in values]
    first, second = observed(name, *values).estimate(4), observed(name, *values).estimate(4)
    assert first.dtype is dtype
    assert torch.equal(first, second)
    assert all(torch.equal(tensor, copy) for (_, tensor), copy in zip(values, copies, strict=True)), "written to"


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_stride_other_than_contiguous_does_not_matter(name: str) -> None:
    values = [torch.randn(3, 4) for _ in range(4)]
    plain = observed(name, *enumerate(values)).estimate(4)
    strided = observed(name, *((step, value.t().contiguous().t()) for step, value in enumerate(values))).estimate(4)
    torch.testing.assert_close(strided, plain)


# ---- frequency response, as docs/concepts/predictors.md says


def response(name: str, omega: float) -> tuple[float, float]:
    """(gain, error) of the estimate of one frequency, whose phase differs from element to element."""
    phase = torch.arange(1024, dtype=torch.float64) * 2 * math.pi / 1024
    predictor = observed(name, *((step, torch.cos(omega * step + phase)) for step in range(9)))
    estimate, truth = predictor.estimate(9), torch.cos(omega * 9 + phase)
    return float(estimate.norm() / truth.norm()), float((estimate - truth).norm() / truth.norm())


@pytest.mark.parametrize("degrees", range(0, 181, 5))
def test_frequency_response_is_what_the_formulas_say(degrees: int) -> None:
    omega = math.radians(degrees)
    gamma = max(0.0, math.cos(omega))
    turn = complex(math.cos(omega), -math.sin(omega))
    for name, expected in (
        ("hold", turn),
        ("linear", 2 * turn - turn**2),
        ("adaptive", turn * (1 + gamma * (1 - turn))),
    ):
        gain, error = response(name, omega)
        assert gain == pytest.approx(abs(expected), abs=1e-6)
        assert error == pytest.approx(abs(1 - expected), abs=1e-6)
    assert response("adaptive", omega)[0] <= math.sqrt(1 + 4 / (3 * math.sqrt(3))) + 1e-6  # 1.33, at cos ω = 1/√3
    assert response("adaptive", omega)[1] <= min(response(other, omega)[1] for other in ("hold", "linear")) + 1e-6


def test_the_notes_figures_are_those_of_the_predictors() -> None:
    text = NOTE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+), ([\d.]+) \| ([\d.]+), ([\d.]+) \| ([\d.]+), ([\d.]+) \|$", text, re.M)
    assert len(rows) == 5
    for degrees, *figures in rows:
        got = [
            figure for name in ("hold", "linear", "adaptive") for figure in response(name, math.radians(int(degrees)))
        ]
        assert [f"{figure:.2f}" for figure in got] == figures


# ---- growth


def driven(kind: str, step: int, made: torch.Generator, base: torch.Tensor) -> torch.Tensor:
    if kind == "noisy":
        return torch.randn(base.shape, generator=made, dtype=base.dtype)
    return base * (-1) ** step if kind == "alternating" else base


def chain_peak(name: str, kind: str, hops: int, steps: int = 60) -> float:
    """Largest norm of what comes out of a chain of components that pass on what they read, over the input's largest."""
    made = torch.Generator().manual_seed(0)
    base = torch.randn(256, generator=made, dtype=torch.float64)
    chain = [PREDICTORS[name]() for _ in range(hops)]
    peak = largest = 0.0
    for step in range(steps):
        value = driven(kind, step, made, base)
        largest = max(largest, float(value.norm()))
        for predictor in chain:
            before, value = value, predictor.estimate(step) if step else value
            predictor.observe(step, before)
        peak = max(peak, float(value.norm()))
    return peak / largest


def ring_peak(name: str, kind: str, feedback: float, steps: int = 300) -> float:
    """Largest value of a fold's ring, v = u + feedback · v̂; inf where it passes 1e12."""
    made = torch.Generator().manual_seed(0)
    base = torch.randn(256, generator=made, dtype=torch.float64)
    predictor = observed(name, (0, base))
    peak = 0.0
    for step in range(1, steps):
        value = driven(kind, step, made, base) + feedback * predictor.estimate(step)
        predictor.observe(step, value)
        peak = max(peak, float(value.abs().max()))
        if peak > 1e12:
            return math.inf
    return peak


def loop_end(name: str, stride: float, steps: int = 600) -> float:
    """Largest value at the end of x ← x − stride · v̂ under small noise, v being x; inf where it passes 1e12."""
    made = torch.Generator().manual_seed(0)
    x = torch.randn(256, generator=made, dtype=torch.float64)
    predictor = observed(name, (0, x))
    for step in range(1, steps):
        noise = torch.randn(256, generator=made, dtype=torch.float64)
        estimate = predictor.estimate(step)
        predictor.observe(step, x)
        x = x - stride * estimate + noise
        if float(x.abs().max()) > 1e12:
            return math.inf
    return float(x.abs().max())


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", BOUNDED)
def test_no_chain_makes_a_bounded_predictor_grow(name: str, kind: str) -> None:
    for hops in (1, 2, 4, 8, 16):
        assert chain_peak(name, kind, hops) <= 1 + 1e-9


def test_linear_triples_what_alternates_at_every_hop() -> None:
    for hops in (1, 2, 4, 8):
        assert chain_peak("linear", "alternating", hops) == pytest.approx(3**hops)
        assert chain_peak("linear", "constant", hops) == pytest.approx(1)
    assert chain_peak("linear", "noisy", 8) > 1000


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", BOUNDED)
def test_no_fold_makes_a_bounded_predictor_grow(name: str, kind: str) -> None:
    for feedback in (-0.95, -0.9, -0.6, -0.35, -0.3, 0.3, 0.6, 0.9, 0.95):
        largest_input = 5.0
        assert ring_peak(name, kind, feedback) <= largest_input / (1 - abs(feedback))


@pytest.mark.parametrize("kind", INPUTS)
def test_linear_grows_on_a_fold_whose_feedback_is_below_minus_a_third(kind: str) -> None:
    assert ring_peak("linear", kind, -0.4) == math.inf
    assert ring_peak("linear", kind, -0.3) < 100


@pytest.mark.parametrize(("name", "limit"), [("hold", 1.0), ("linear", (math.sqrt(5) - 1) / 2), ("adaptive", 0.72)])
def test_the_samplers_loop_is_stable_up_to_the_notes_limit(name: str, limit: float) -> None:
    assert loop_end(name, 0.9 * limit) < 100
    assert loop_end(name, 1.15 * limit) > 1e6


def test_every_predictor_is_listed() -> None:
    assert list(PREDICTORS.items()) == [("hold", Hold), ("linear", Linear), ("adaptive", Adaptive)]


def test_adaptive_divides_and_multiplies_by_no_number_of_steps_where_that_is_one() -> None:
    counts = []
    for every in (1, 2):
        predictor = PREDICTORS["adaptive"]()
        for step in range(3):
            predictor.observe(every * step, torch.randn(2, 3))
        with Operators() as operators:
            predictor.observe(every * 3, torch.randn(2, 3))
            predictor.estimate(every * 4)
        counts.append(operators.count)
    assert counts[0] == counts[1] - 2
