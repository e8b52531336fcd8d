"""Correct a denoiser's output for the error of the latent that look-ahead foresaw."""

from __future__ import annotations

import torch


def corrected(output: torch.Tensor, missed: torch.Tensor, sensitivity: float) -> torch.Tensor:
    """The output that the denoiser would have made of a latent that is ``missed`` away from the one it was given.

    To first order, by the sensitivity of a Gaussian: an output and a latent that differ in one dimension only
    (learned variances behind the output, an image behind the latent) share its first entries; any others are left.
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
