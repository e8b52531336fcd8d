"""BoundCode: the nodes of a lowered segment as a plain Python function, in which every operator is a name of its own.

torch.fx writes ``torch.ops.aten.linear.default(...)``: four look-ups and a call in Python before the operator's own.
Where kernels are small that is much of a node's time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import Any, cast

from torch import fx

from partitioner.graph.torch_private.schemas import plain_callable

_LITERALS = (bool, int, str, type(None))


class BoundCode:
    """The function of a lowered segment.

    Attributes:
        call: the function.
        node_at: by line of its source, the name of the node that it computes.

    Args:
        module: of the segment; the function keeps its constants.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self._names: dict[str, Any] = {}
        self._numbers = itertools.count()
        lines: list[str] = []
        self.node_at: dict[int, str] = {}
        nodes = list(module.graph.nodes)
        given = [node.name for node in nodes if node.op == "placeholder"]
        last = _last_uses(nodes)
        for node in nodes:
            if node.op == "get_attr":
                lines.append(f"{node.name} = {self._named(getattr(module, node.target))}")
            elif node.op == "call_function":
                arguments = [self._written(value) for value in node.args]
                arguments += [f"{key}={self._written(value)}" for key, value in node.kwargs.items()]
                function = self._named(plain_callable(node.target))
                lines.append(f"{node.name} = {function}({', '.join(arguments)})")
                self.node_at[len(lines) + 1] = node.name  # below the first line
                done = [name for name in last.get(node, ()) if name != node.name]
                if done:
                    lines[-1] += f"; del {', '.join(done)}"  # so that its memory is free for what comes next
            elif node.op == "output":
                lines.append(f"return {self._written(node.args[0])}")
        source = f"def segment({', '.join(given)}):\n" + "".join(f"    {line}\n" for line in lines)
        scope = self._names
        exec(compile(source, "<segment>", "exec"), scope)
        self.call = cast("Callable[..., Sequence[Any]]", scope.pop("segment"))

    @property
    def code(self) -> CodeType:
        """The function's code, to find it in a traceback."""
        return cast(FunctionType, self.call).__code__

    def _written(self, value: Any) -> str:
        """A value as source text: a node by its name, what is no literal by a name of its own."""
        if isinstance(value, fx.Node):
            return value.name
        if isinstance(value, (list, tuple)):
            items = ", ".join(self._written(item) for item in value)
            return f"[{items}]" if isinstance(value, list) else f"({items}{',' if len(value) == 1 else ''})"
        return repr(value) if type(value) in _LITERALS else self._named(value)

    def _named(self, value: Any) -> str:
        name = f"_{next(self._numbers)}"
        self._names[name] = value
        return name


def _last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[str]]:
    """By node, what nothing reads after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last.update(dict.fromkeys(node.all_input_nodes, node))
        last.setdefault(node, node)
    found: dict[fx.Node, list[str]] = {}
    for node, user in last.items():
        if node.op != "get_attr":
            found.setdefault(user, []).append(node.name)
    return found
