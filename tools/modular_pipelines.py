"""modular_pipeline: a modular pipeline of diffusers, of given parts."""

from __future__ import annotations

from typing import Any


def modular_pipeline(blocks: Any, **components: Any) -> Any:
    """A modular pipeline without its progress bar.

    Args:
        blocks: what it does, in diffusers' ModularPipelineBlocks; they are changed.
        components: its parts by name; it has no others.
    """
    _hide_progress(blocks)
    pipe = blocks.init_pipeline()
    pipe.update_components(**components)
    return pipe


def _hide_progress(blocks: Any) -> None:
    """Also of blocks within others, which a pipeline does not tell."""
    for block in getattr(blocks, "sub_blocks", {}).values():
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)
        _hide_progress(block)
