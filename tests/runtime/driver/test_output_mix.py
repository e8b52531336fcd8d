"""OutputMix: the weights by which outputs are mixed, seen in what the sampler makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runtime.driver.output_mix import UNSEEN, OutputMix
from runtime.driver.readback import read


def _show(mix: OutputMix, made: torch.Tensor | None, slope: torch.Tensor) -> None:
    shown = mix.show(made if made is None else made.unsqueeze(1), slope.unsqueeze(1))
    if shown:
        mix.take(*read(shown))


def _shown(mix: OutputMix, weights: list[float], calls: int = 3, samples: int = 2, left: float = 0.0) -> OutputMix:
    """Rows of all samples without the prompt first, then those of the next weight."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(calls):
        made = torch.randn(len(weights) * samples, 4, 8, generator=generator)
        parts = made.view(len(weights), samples, 4, 8)
        slope = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        slope = slope + left * torch.randn(samples, 4, 8, generator=generator)
        _show(mix, made.flatten(1), slope.repeat(len(weights), 1, 1).flatten(1))
    return mix


@pytest.mark.parametrize("weights", [[0.0, 1.0], [-6.5, 7.5], [7.5, -6.5], [-2.0, 5.0, -2.0], [-1.0, 0.5, 0.5, 1.0]])
def test_the_gain_is_the_sum_of_what_is_added(weights: list[float]) -> None:
    gain = _shown(OutputMix(), weights).gain
    assert gain is not None
    wanted = sum(weight for weight in weights if weight > 0)
    np.testing.assert_allclose(gain, [wanted] * 2 * len(weights), rtol=1e-2)


def test_a_scale_that_rises_is_followed() -> None:
    mix = OutputMix()
    for call in range(20):
        generator = torch.Generator().manual_seed(call)
        without, having = torch.randn(2, 1, 64, generator=generator).unbind(0)
        scale = 1.5 + call
        _show(mix, torch.cat([without, having]), (without + scale * (having - without)).repeat(2, 1))
        assert mix.gain is not None
        assert float(mix.gain[0]) == pytest.approx(scale, rel=1e-2)
        assert mix.rise is not None
        assert float(mix.rise[0]) == pytest.approx(1.0 if call else 0.0, abs=0.05)


def test_rows_that_do_not_explain_what_was_made_of_them_are_taken_to_be_guided() -> None:
    """Such as a third call beside a batch of two, as in skip-layer guidance."""
    gain = _shown(OutputMix(), [-0.5, 1.5], left=1.0).gain
    np.testing.assert_allclose(gain, [UNSEEN] * 4)
    more = _shown(OutputMix(), [-9.0, 10.0], left=1.0).gain
    assert more is not None
    assert (more > 8.0).all()


def test_rows_are_told_apart_by_the_first_call_that_moves_them() -> None:
    mix = OutputMix()
    _show(mix, torch.randn(2, 8), torch.zeros(2, 8))
    assert mix.gain is None
    made = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    _show(mix, made, made)
    np.testing.assert_allclose(mix.gain, [1.0, 1.0])


def test_a_row_of_its_own_that_is_used_as_it_is_has_no_gain() -> None:
    np.testing.assert_allclose(_shown(OutputMix(), [1.0], samples=3).gain, [1.0] * 3)


def test_what_is_mixed_in_from_elsewhere_is_taken_to_be_guidance() -> None:
    """Such as of pipelines that call the denoiser once with the prompt and once without."""
    np.testing.assert_allclose(_shown(OutputMix(), [1.0], left=1.0).gain, [UNSEEN] * 2)


def test_outputs_that_mean_no_slope_are_taken_to_be_guided() -> None:
    mix = OutputMix()
    _show(mix, None, torch.zeros(3, 4))
    np.testing.assert_allclose(mix.gain, [UNSEEN] * 3)


def test_guidance_over_alike_outputs_is_no_gain_of_infinite_size() -> None:
    mix, made = OutputMix(), torch.ones(2, 8)
    _show(mix, made, made)
    assert mix.gain is not None
    assert np.isfinite(mix.gain).all()
