"""partitioner.report_text: every figure with its name, estimates called so, and nothing called what it is not."""

from __future__ import annotations

from partitioner.planning.sampling_setup import ANY
from partitioner.report import describe, light_of
from partitioner.report_text import report_text
from tests.support.toy_plan import toy_plan


def test_the_table_calls_estimates_estimates() -> None:
    text = report_text(describe(toy_plan(), "toy.plan.json"))
    assert "roofline estimate for h200; nothing was measured" in text
    for line in text.splitlines():
        if " ms" in line or "speed-up" in line:
            assert "estimate" in line, line
    measured = report_text(describe(toy_plan("measured"), None))
    assert "measured on h200 (97.0% of the time; the rest by a roofline calibrated on that)" in measured
    assert "estimate" not in measured


def test_the_table_literally() -> None:
    assert report_text(describe(toy_plan("measured"), "toy.plan.json")) == EXPECTED


EXPECTED = """\
toy (Toy) on 2 x a, 2 x b: 2 branches x 2 components, look-ahead, warm-up 5, predictor hold
costs: measured on h200 (97.0% of the time; the rest by a roofline calibrated on that)
2 branches of 2 rows: the 4 rows of a call

rank  branch  component  device  modules         ms  share  parameters  memory    in   out
   0       0          1  a       up.0 .. relu.0   2  25.0%       3.0 M  9.0 MB  16 B  16 B
   1       0          0  a       conv_in .. mid   2  25.0%       3.0 M  9.0 MB  16 B  16 B
   2       1          1  b       up.0 .. relu.0   2  25.0%       3.0 M  9.0 MB  16 B  16 B
   3       1          0  b       conv_in .. mid   2  25.0%       3.0 M  9.0 MB  16 B  16 B
each branch holds all weights over its 2 components: 12.0 MB in one, 24.0 MB in all

predicted step   2 ms, sequential 8 ms: speed-up 4.00 x
trajectory       speed-up 3.64 x over 50 steps with warm-up
                 at most: steps are made exact where the picture would suffer (run-plan --quality)
speed of light   ideal 4.00 x, balance leaves 4.00 x, communication 4.00 x, warm-up 3.64 x over 50 steps
lower bound      1.6 ms; slowest component 25.00% above it
sent             32 B per step; staleness 0
denoiser         2.4e-11 T multiply-accumulates per call

plan             toy.plan.json"""


def test_the_speed_of_light_has_a_line_of_its_own() -> None:
    plan = toy_plan()
    lines = report_text(describe(plan, None)).splitlines()
    assert f"speed of light   {light_of(plan, ANY)}, an estimate" in lines


def test_more_than_the_ideal_is_explained() -> None:
    document = describe(toy_plan("measured"), None)
    document["speed_of_light"]["balanced"] = 4.02
    why = "above the ideal: a part of a call's rows takes less than its part of the call's time"
    assert why in report_text(document)


def test_one_component_is_exact_whatever_its_mode() -> None:
    document = describe(toy_plan("measured"), None) | {"components_per_branch": 1}
    assert report_text(document).startswith("toy (Toy) on 2 x a, 2 x b: 2 branches x 1 component, exact, warm-up 5")
