"""What torch is at in this thread or process: transforms, a profile."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def under_a_transform() -> bool:
    """Whether torch.func transforms what is called now (vmap, jvp, grad), or gradients are computed forward."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def is_profiling() -> bool:
    """Whether torch.profiler is at work in this process, in whichever thread."""
    return bool(torch.autograd.profiler._is_profiler_enabled)
