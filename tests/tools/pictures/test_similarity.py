"""tools.pictures.similarity and the distance of tools.pictures.classifier: known values."""

from __future__ import annotations

import pytest
import torch

from tools.pictures.frechet import frechet, frechet_noise
from tools.pictures.similarity import psnr, ssim


def test_psnr_of_a_known_error() -> None:
    black = torch.zeros(2, 3, 8, 8)
    grey = torch.stack([torch.full((3, 8, 8), 0.1), torch.full((3, 8, 8), 0.01)])
    assert psnr(grey, black).tolist() == pytest.approx([20.0, 40.0], abs=1e-4)
    assert psnr(black, black).tolist() == [100.0, 100.0]


def test_ssim_is_one_for_itself_and_less_for_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 32, 32, generator=generator)
    near = (picture + 0.02 * torch.randn(picture.shape, generator=generator)).clamp(0, 1)
    far = torch.rand(picture.shape, generator=generator)
    assert float(ssim(picture, picture)) == pytest.approx(1.0)
    assert 0.9 < float(ssim(near, picture)) < 1.0
    assert float(ssim(far, picture)) < 0.2


def test_ssim_of_constants_is_that_of_their_means() -> None:
    one, other = torch.full((1, 1, 16, 16), 0.5), torch.full((1, 1, 16, 16), 0.25)
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    assert float(ssim(one, other)) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(20_000, 4, generator=generator)
    assert frechet(base, base) == pytest.approx(0.0, abs=1e-6)
    assert frechet(base, base + 1.0) == pytest.approx(4.0, abs=1e-6)
    assert frechet(base, 2 * base) == pytest.approx(4.0, rel=0.05)  # tr(1 + 4 - 2*2) per feature


def test_noise_of_a_difference_is_that_of_what_differs() -> None:
    """None where the two are alike; of independent ones, that of both: as samples of samples show."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(20_000, 4, generator=generator)
    one = 0.5 + torch.randn(1000, 4, generator=generator)
    assert frechet_noise(one, one, drawn) == 0.0
    other = 0.5 + torch.randn(20, 1000, 4, generator=generator)
    true = torch.tensor([frechet(one_of, drawn) for one_of in other]).std()
    noise = frechet_noise(other[0], one, drawn)
    assert 0.5 < noise / float(2**0.5 * true) < 2.0
    near = one + 0.01 * torch.randn(1000, 4, generator=generator)
    assert frechet_noise(near, one, drawn) < 0.1 * noise
