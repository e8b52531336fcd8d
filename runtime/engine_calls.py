"""EngineCalls: calls of one of the denoisers that an engine runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.driver.denoiser_driver import DenoiserDriver


class EngineCalls:
    """Calls of one of an engine's denoisers: call it like the denoiser, it returns the denoiser's output as a tuple."""

    def __init__(
        self, driver: DenoiserDriver, call: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, ...]]
    ) -> None:
        """Calls that a driver makes. call: takes the engine's turn for one, given its arguments."""
        self._driver = driver
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Make one denoiser call; see Engine."""
        return self._call(args, kwargs)

    def in_context(self, name: str) -> str:
        """Have calls of this thread or asyncio task from here on belong to the cache context ``name``.

        Args:
            name: "" is the default one.

        Returns:
            The name of the context that calls belonged to before.
        """
        return self._driver.in_context(name)
