"""Corrects a denoiser's output for the error of the predicted latent that look-ahead ran it on."""

from __future__ import annotations

import torch


def corrected(output: torch.Tensor, missed: torch.Tensor, sensitivity: float) -> torch.Tensor:
    """Estimate, to first order, the output for the true latent from the output for the predicted one.

    An output and a latent may differ in the length of one dimension (learned variances behind the output's channels,
    an image behind the latent's): the first entries, which they share, are corrected. If they differ in more, the
    output is returned as it is.

    Args:
        output: what the denoiser made of the predicted latent.
        missed: the true latent minus the predicted one.
        sensitivity: d(output)/d(latent), see runtime.driver.noise_schedule.

    Returns:
        A new tensor of the output's shape and dtype.

    >>> corrected(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]), sensitivity=2.0)
    tensor([2., 2.])
    """
    unequal = [d for d in range(output.dim()) if output.dim() == missed.dim() and output.shape[d] != missed.shape[d]]
    if output.dim() != missed.dim() or len(unequal) > 1:
        return output
    made = output.clone()
    part, moved = made, missed
    for d in unequal:
        shared = min(output.shape[d], missed.shape[d])
        part, moved = part.narrow(d, 0, shared), moved.narrow(d, 0, shared)
    part += (sensitivity * moved).to(part.dtype)
    return made
