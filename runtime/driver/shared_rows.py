"""SharedRows: whether the rows of a denoiser's calls may be shared among branches, as the denoiser is now.

The plan was made for a denoiser that keeps them apart. One that has been given other attention processors, as for
frames that attend to each other, may mix them, and the graph of a branch's rows does not show it. So where its
operators are not those of the plan, or it holds code from elsewhere, a whole call is traced, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from partitioner.graph.ir import TracedGraph
from partitioner.graph.row_flow import divide
from partitioner.plan.plan import Plan
from runtime.driver.call_arguments import Tensors
from runtime.driver.prompt_inputs import version_of
from runtime.driver.warn_once import warn_once

_LOGGER = logging.getLogger("runtime")
_OF_TORCH = {"torch", "builtins", "functools", "types", "typing", "collections"}


class SharedRows:
    """Knows of each kind of call whether branches may share its rows, until the denoiser is changed."""

    def __init__(self, denoiser: nn.Module, plan: Plan, warned: set[str]) -> None:
        """Know nothing yet.

        Args:
            denoiser: what is called.
            plan: how its graphs are split.
            warned: what the user has been warned of.
        """
        self._denoiser = denoiser
        self._plan = plan
        self._warned = warned
        self._equal: dict[str, tuple[torch.Tensor, int]] = {}  # inputs whose rows are equal, and their version
        self.forget()

    def forget(self) -> None:
        """Look again at every kind of call: the denoiser was changed."""
        # by the graphs' ids: the graphs, and why their rows stay together
        self._known: dict[tuple[int, ...], tuple[Sequence[TracedGraph], str]] = {}
        self._has_own_code: bool | None = None

    def let_go(self, graphs: Sequence[TracedGraph]) -> None:
        """Forget what is known of some graphs, which will not be seen again."""
        gone = set(map(id, graphs))
        self._known = {key: known for key, known in self._known.items() if gone.isdisjoint(key)}

    def are_shared(self, tensors: Tensors, parts: Sequence[TracedGraph], whole: Callable[[], TracedGraph]) -> bool:
        """Whether the parts of a call compute what the whole call does; where not, the user is warned once.

        Args:
            tensors: the call's inputs by path.
            parts: the graph of each branch's rows.
            whole: gives the graph of all rows.
        """
        why = self._unlike(tensors) or self._looked_up(
            parts, lambda: self._found(parts, whole) if self._is_doubtful(parts[0]) else ""
        )
        if why:
            warn_once(
                self._warned,
                f"{why}: all rows of such calls go to one branch, and the ranks of the others have nothing to do; make "
                "a plan with one branch (--branches 1)",
            )
        return not why

    def keeps_parts(self, whole: TracedGraph, part: TracedGraph, count: int) -> bool:
        """Whether a call may be computed in so many micro-batches."""
        return not self._looked_up([whole, part], lambda: self._found([part] * count, lambda: whole))

    def _unlike(self, tensors: Tensors) -> str:
        """Which input has rows that differ, although the denoiser reads the first for all; "" for none."""
        for path in self._plan.alike:
            tensor = tensors.get(path)
            if tensor is None:
                continue
            version = version_of(tensor)
            known, former = self._equal.get(path, (None, None))
            if known is not tensor or version == -1 or version != former:
                if len(tensor) > 1 and not torch.equal(tensor, tensor[:1].expand_as(tensor)):
                    return f"the rows of {path} differ, and the denoiser reads the first for all"
                self._equal[path] = (tensor, version)
        return ""

    def _looked_up(self, graphs: Sequence[TracedGraph], find: Callable[[], str]) -> str:
        key = tuple(map(id, graphs))
        if key not in self._known:
            self._known[key] = (tuple(graphs), find())
        return self._known[key][1]

    def _found(self, parts: Sequence[TracedGraph], whole: Callable[[], TracedGraph]) -> str:
        fault = divide(whole(), parts).fault
        if fault is None:
            return ""
        if not fault.known and len(parts) == 2:
            _LOGGER.warning("%s: the halves of a call are taken to be computed apart all the same", fault)
            return ""
        return str(fault)

    def _is_doubtful(self, part: TracedGraph) -> bool:
        """Whether the denoiser is another than the plan's, or may be."""
        if {node.key for node in part.latent_nodes} != self._plan.placement.keys():
            return True
        if self._has_own_code is None:
            home = {_package(type(self._denoiser).__module__), *_OF_TORCH}
            self._has_own_code = any(package not in home for package in _code_in(self._denoiser))
        return self._has_own_code


def _code_in(denoiser: nn.Module) -> Iterator[str]:
    """Packages that the functions come from which modules hold beside their methods, such as attention processors."""
    for module in denoiser.modules():
        for name, value in vars(module).items():
            if (
                callable(value)
                and not isinstance(value, (nn.Module, type))
                and (name != "forward" or module is not denoiser)
            ):
                code = value if hasattr(value, "__code__") else type(value)
                yield _package(getattr(code, "__module__", None) or "")


def _package(module: str) -> str:
    return module.partition(".")[0]
