"""Storages: which values of an exported program share storage, and what follows where a node writes to it in place.

Nodes whose storage is written to must run in one component, in order, and none of them may be dropped:

    node               owner of its storage
    1  out = zeros     out
    2  row = out[0]    out     a view of 1
    3  row.copy_(x)    out     writes to it: 1, 2 and 3 are one group
    4  y = out + 1     y       nothing writes to its storage: no group
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from partitioner.errors import TraceError
from partitioner.graph.direct_trace import TraceProgram
from partitioner.graph.modules import caller
from partitioner.graph.nodes import Argument, Node, Ref, Role
from partitioner.graph.torch_private.schemas import aliased_argument, is_mutated_argument


@dataclass(frozen=True)
class Storages:
    """Whose storage each value shares.

    Attributes:
        owner: torch.fx node name -> name of the node that made its storage.
        written: The owners whose storage some node writes to.
    """

    owner: Mapping[str, str]
    written: frozenset[str]

    def is_written(self, name: str) -> bool:
        """Whether some node writes to a value's storage."""
        return self.owner.get(name, name) in self.written

    def needed(self, nodes: Iterable[Node], results: tuple[Argument, ...]) -> list[Node]:
        """The nodes that lead to the results, or whose storage is written to; in the same order."""
        wanted = {item.name for item in results if isinstance(item, Ref)}
        kept: list[Node] = []
        for node in reversed(list(nodes)):
            if node.name in wanted or self.is_written(node.name):
                kept.append(node)
                wanted.update(node.reads)
        return kept[::-1]

    def group(self, nodes: Iterable[Node], roles: Mapping[str, Role]) -> tuple[Node, ...]:
        """The same nodes with their roles and groups: nodes of a storage that is written to share both.

        Args:
            nodes: The nodes in execution order.
            roles: Roles of the inputs and parameters, by name.
        """
        nodes = tuple(nodes)
        role_of = dict(roles)
        numbers = {owner: number for number, owner in enumerate(sorted(self.written))}
        group_of = {n.name: numbers.get(self.owner.get(n.name, n.name), -1) for n in nodes}
        group_role: dict[int, Role] = dict.fromkeys(numbers.values(), Role.CONSTANT)
        while True:  # a group's role can raise that of earlier nodes, so repeat until nothing changes
            before = dict(group_role)
            for node in nodes:
                group = group_of[node.name]
                role = max((role_of[name] for name in node.reads), default=Role.CONSTANT)
                if group >= 0:
                    role = group_role[group] = max(role, group_role[group])
                role_of[node.name] = role
            if before == group_role:
                break
        return tuple(replace(node, role=role_of[node.name], group=group_of[node.name]) for node in nodes)


def find_storages(program: TraceProgram, model: str) -> Storages:
    """The storages of an exported program.

    Raises:
        TraceError: An operator writes to an input or a parameter in place.
    """
    placeholders = {node.name for node in program.graph.find_nodes(op="placeholder")}
    owner_of: dict[str, str] = {}
    written: set[str] = set()
    for fx_node in program.graph.nodes:
        owner_of[fx_node.name] = fx_node.name
        if fx_node.op != "call_function":
            continue
        for position, argument in enumerate(fx_node.args):
            if not isinstance(argument, torch.fx.Node):
                continue
            owner = owner_of[argument.name]
            if is_mutated_argument(fx_node.target, position):
                if owner in placeholders:
                    raise TraceError(
                        f"{model}: {caller(fx_node)}: {fx_node.target} writes to {owner} "
                        "in place; a component cannot share state that changes: use the out-of-place form of that "
                        "operator"
                    )
                written.add(owner)
                owner_of[fx_node.name] = owner
            elif aliased_argument(fx_node.target) == position:
                owner_of[fx_node.name] = owner
    return Storages(owner_of, frozenset(written))
