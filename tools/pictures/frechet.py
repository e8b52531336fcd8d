"""Fréchet distance between two sets of picture features, and the sampling noise of a difference of two distances."""

from __future__ import annotations

import torch


@torch.no_grad()
def frechet(one: torch.Tensor, other: torch.Tensor) -> float:
    """Fréchet distance of two sets of features (count, FEATURES), each taken as Gaussian, in float64.

    Source: Heusel et al., arXiv 1706.08500.
    """
    (mean_a, cov_a), (mean_b, cov_b) = (_gaussian(features.double()) for features in (one, other))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float(((mean_a - mean_b) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * shared)


@torch.no_grad()
def frechet_noise(one: torch.Tensor, reference: torch.Tensor, other: torch.Tensor, resamples: int = 20) -> float:
    """Standard deviation of frechet(one, other) - frechet(reference, other), by which the two are compared.

    one, reference: features (count, FEATURES) of the same seeds; by bootstrap over these, seeded.
    """
    generator = torch.Generator().manual_seed(0)
    count = len(one)
    drawn = [torch.randint(count, (count,), generator=generator) for _ in range(resamples)]
    differences = torch.tensor([frechet(one[rows], other) - frechet(reference[rows], other) for rows in drawn])
    return float(differences.std())


def _gaussian(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return features.mean(0), torch.cov(features.T)
