"""partitioner.quality_text: what was measured is told as such, with the speed-up that goes with it."""

from __future__ import annotations

from typing import Any

import pytest

from partitioner.quality_text import idle_text, trajectory_text
from partitioner.report import describe
from partitioner.report_text import report_text
from tests.support.toy_plan import toy_plan

QUALITY = {
    "exact": False, "psnr_db": 64.8, "fewer_steps_psnr_db": 40.0, "fewer_steps_better": False, "steps": 50,
    "scheduler": None, "no_lookahead": None, "denoisers": ["dit", "unet"], "guidance_scale": 3.0,
    "guidance_scale_is_default": False, "measured_at": [3.0], "measured_steps": [50], "nearest": None,
    "exact_share": None, "speedup": 1.8, "other_settings": False, "nearest_fewer_steps_psnr_db": 40.0,
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
        ({"exact_share": 0.42, "speedup": 1.4}, "speed-up 1.40 x over 50 steps, 42% of their calls exact,\n"),
        (
            {"exact_share": 0.42, "speedup": 1.4},
            "as where quality was measured; at most 3.64 x, with the warm-up alone\n",
        ),
        (
            {"exact_share": 0.42, "speedup": 1.4, "guidance_scale": 4.0, "measured_at": [3.0, 5.0]},
            "as where quality was measured, interpolated between guidance 3 and 5; at most 3.64 x",
        ),
        ({"exact_share": 1.0, "speedup": 0.98}, "note             over 50 steps one device is as fast, for so"),
        ({"other_settings": True, "scheduler": "X"}, "(50 steps, X (measured with other settings), guidance 3)"),
        (
            {"fewer_steps_psnr_db": None},
            "fewer sequential steps: not measured in the same time; 40.0 dB in the nearest",
        ),
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


def candidate(components: int, passed_over: str | None) -> dict[str, Any]:
    return {"branches": 1, "components": components, "passed_over": passed_over}


@pytest.mark.parametrize(
    ("passed_over", "words"),
    [
        ("not measured", "some plans with more were not measured with this sampler at these steps and this guidance"),
        ("near fewer steps", "with more, the output was less than 6 dB better than that of fewer steps on one device"),
        ("no faster", "with more it would be done no sooner, or hardly, for so many of its calls are exact"),
        (None, "see below"),
    ],
)
def test_idle_devices_have_a_reason(passed_over: str | None, words: str) -> None:
    candidates = [candidate(4, passed_over), candidate(2, None), candidate(2, "no faster")]
    document = {"idle_devices": 2, "branches": 1, "components_per_branch": 2, "candidates": candidates}
    assert idle_text(document) == [f"note             2 left idle (--prefer speed uses them): {words}"]
    assert idle_text(document | {"idle_devices": 0}) == []


def test_each_reason_is_given_once() -> None:
    candidates = [candidate(k, why) for k, why in ((8, "not measured"), (7, "not measured"), (4, "near fewer steps"))]
    document = {"idle_devices": 6, "branches": 1, "components_per_branch": 2, "candidates": candidates}
    first, second = idle_text(document)
    assert first.endswith("with more, the output was less than 6 dB better than that of fewer steps on one device")
    assert second.strip().startswith("and some plans with more were not measured")


def test_a_trajectory_of_exact_calls_says_that_one_device_is_as_fast() -> None:
    described = describe(toy_plan("measured"), None)
    slow = described | {"speedup_trajectory": 1.0, "mode": "async"}
    note = "note             over 50 steps one device is as fast, for so many of their calls are exact"
    assert list(trajectory_text(slow, ""))[-1] == note
    assert note not in list(trajectory_text(described, ""))
    alone = slow | {"components": described["components"][:1]}
    assert note not in list(trajectory_text(alone, ""))
