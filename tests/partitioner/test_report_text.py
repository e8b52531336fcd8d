"""partitioner.report_text: every figure with its name, estimates called so, and nothing called what it is not."""

from __future__ import annotations

from typing import Any

import pytest

from partitioner.planning.expected_quality import ANY
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


QUALITY = {
    "exact": False, "psnr_db": 64.8, "fewer_steps_psnr_db": 40.0, "fewer_steps_better": False, "steps": 50,
    "scheduler": None, "no_lookahead": None, "denoisers": ["dit", "unet"], "guidance_scale": 3.0,
    "guidance_scale_is_default": False, "measured_at": [3.0], "measured_steps": [50], "nearest": None,
    "exact_share": None, "speedup": 1.8,
}  # fmt: skip


NEAREST = {"guidance_scale": 3.0, "psnr_db": 64.8, "fewer_steps_psnr_db": 40.0, "fewer_steps_better": False}
BEYOND = {"guidance_scale": 7.5, "psnr_db": None, "fewer_steps_psnr_db": None, "nearest": NEAREST}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"exact": True}, "quality          exact: the output is that of one device"),
        ({"psnr_db": None}, "not measured for plans like this (50 steps, the worst sampler that was measured, g"),
        ({}, "not measured for toy; 64.8 dB against the sequential output with the denoisers dit, unet\n"),
        (
            {"denoisers": ["toy"]},
            f"quality          64.8 dB against the sequential output\n{17 * ' '}(50 steps, the",
        ),
        ({"scheduler": "DDIMScheduler"}, "(50 steps, DDIMScheduler, guidance 3)\n"),
        ({"measured_steps": [25, 28], "steps": 28}, "(28 steps (measured with 25), the worst"),
        ({"guidance_scale_is_default": True}, "guidance 3 by default)"),
        ({"guidance_scale": 4.0, "measured_at": [3.0, 5.0]}, "guidance 4, interpolated between 3 and 5)"),
        ({"guidance_scale": None, "measured_at": [7.5]}, "guidance 7.5, the highest that was measured)"),
        (BEYOND, "quality          not measured for 50 steps, the worst sampler that was measured, guidance 7.5;\n"),
        (BEYOND, "at 3, the nearest guidance scale that was measured: 64.8 dB against the sequential output with"),
        (BEYOND, "fewer sequential steps in the same time: 40.0 dB"),
        (BEYOND | {"nearest": NEAREST | {"fewer_steps_better": True}}, "fewer steps on one device were as good"),
        ({}, "at most: steps are made exact where the picture would suffer (run-plan --quality)\nspeed of light"),
        ({"exact_share": 0.42, "speedup": 1.4}, "where quality was measured 42% of them were, which leaves 1.40 x\n"),
        ({}, "fewer sequential steps in the same time: 40.0 dB"),
        ({"fewer_steps_better": True}, "fewer steps on one device were as good"),
        (
            {"scheduler": "X", "no_lookahead": "it adds noise"},
            "with no look-ahead: of X,\n                 it adds noise",
        ),
    ],
)
def test_quality_says_what_it_was_measured_of(changed: dict[str, Any], expected: str) -> None:
    assert expected in report_text({**describe(toy_plan("measured"), None), "quality": QUALITY | changed})
