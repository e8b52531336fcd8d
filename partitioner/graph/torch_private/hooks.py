"""Hooks on the calls of modules: those of all modules, and those of one."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn
from torch.nn.modules import module as module_hooks


def hooks_of_all_modules() -> tuple[dict[int, Any], ...]:
    """The hooks that run before and after the forward of every module, whichever it is."""
    hooks: tuple[dict[int, Any], ...] = (module_hooks._global_forward_pre_hooks, module_hooks._global_forward_hooks)
    return hooks


def without_own_hooks(module: nn.Module) -> nn.Module:
    """A shallow copy of a module, which shares all that it has, but for hooks on its own call."""
    made = copy.copy(module)
    made._forward_hooks = OrderedDict()
    made._forward_pre_hooks = OrderedDict()
    return made
