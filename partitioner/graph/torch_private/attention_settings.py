"""AttentionSettings: notices that it is set how torch is to compute attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self

import torch


class AttentionSettings:
    """Inside it, ``changed`` is called when it has been set how torch is to compute attention."""

    def changed(self) -> None:
        """Called after each setting."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._before = {name: getattr(torch._C, name) for name in dir(torch._C) if name.startswith("_set_sdp_use_")}
        for name, setter in self._before.items():
            setattr(torch._C, name, partial(self._set, setter))
        return self

    def __exit__(self, *_: object) -> None:
        for name, setter in self._before.items():
            setattr(torch._C, name, setter)

    def _set(self, setter: Callable[[bool], None], enabled: bool) -> None:
        setter(enabled)
        self.changed()
