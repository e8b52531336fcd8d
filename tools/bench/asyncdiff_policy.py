"""AsyncDiff's policy, executed for comparison: whole denoiser on every rank, every hooked output broadcast, blocking.

Written from the paper (arXiv 2406.06911) and from what github.com/czg1225/AsyncDiff does with stride 1. A split names
modules for each component. After the warm-up a rank computes only its own component's modules; in place of the others
it takes what their owners computed in the previous call. At the start of a lagged call these outputs are broadcast one
after the other, at its end the denoiser's output is, each with a blocking call.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from partitioner.baselines.asyncdiff_split import published_split
from tools.bench.settings import RANKS


@dataclass(frozen=True)
class AsyncDiffPolicy:
    """components: the hooked modules of each, by path. sent: those of them whose outputs are broadcast, in order."""

    components: tuple[tuple[str, ...], ...]
    sent: tuple[str, ...]

    @property
    def owner(self) -> dict[str, int]:
        """Component of each hooked module."""
        return {path: k for k, paths in enumerate(self.components) for path in paths}


def published_policy(model: str, components: int) -> AsyncDiffPolicy:
    """AsyncDiff's own split of a UNet that it knows; all hooked modules are broadcast."""
    split = published_split(model, components)
    if split is None:
        raise ValueError(f"AsyncDiff has published no split of {model} into {components} components")
    return AsyncDiffPolicy(tuple(map(tuple, split)), tuple(path for paths in split for path in paths))


def even_policy(denoiser: nn.Module, components: int) -> AsyncDiffPolicy:
    """As AsyncDiff splits SD3's transformer: blocks evenly, its head with the last; the border blocks are broadcast."""
    name, blocks = max(
        ((name, child) for name, child in denoiser.named_children() if isinstance(child, nn.ModuleList)),
        key=lambda item: len(item[1]),
    )
    each = len(blocks) // components
    borders = [k * each for k in range(components)] + [len(blocks)]
    split = [tuple(f"{name}.{i}" for i in range(borders[k], borders[k + 1])) for k in range(components)]
    head = tuple(path for path in ("norm_out", "proj_out") if isinstance(getattr(denoiser, path, None), nn.Module))
    return AsyncDiffPolicy((*split[:-1], split[-1] + head), tuple(paths[-1] for paths in split[:-1]))


PUBLISHED_SPLIT_OF = {"sd15-like": "sd15", "svd-like": "svd"}  # whose modules these denoisers have


def policy_of(name: str, denoiser: nn.Module) -> AsyncDiffPolicy:
    """The published split of the model that has the modules of the denoiser, else an even split."""
    return (
        published_policy(PUBLISHED_SPLIT_OF[name], RANKS)
        if name in PUBLISHED_SPLIT_OF
        else even_policy(denoiser, RANKS)
    )
