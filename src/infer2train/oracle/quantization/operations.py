"""The operations of an exported graph, one after another: what is kept of it once its sites are found.

Nothing here is written to while it runs, so threads may share it, and it can be pickled: operations are named, and
nothing of torch.export is needed where it is unpickled.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

Act = Callable[[Tensor], Tensor]


def at_site(x: Tensor, number: int) -> Tensor:
    """Stands in a graph where `Operations` does the act of that number."""
    return x


@dataclass(frozen=True)
class _Result:
    """Among arguments: what an input, a constant or an operation of that number gave."""

    number: int


@dataclass(frozen=True)
class _Operation:
    number: int
    target: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    done: tuple[int, ...]
    """Numbers of what is read for the last time here."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _operation, (self.number, _name(self.target), self.arguments, self.named, self.done)


class Operations:
    """The operations of a graph.

    Args:
        module: whose graph is read; it is not kept. Other modules among its arguments must be graphs as well.

    Example:
        >>> operations = Operations(fx.symbolic_trace(lambda x, y: x * y + 1))
        >>> operations(torch.tensor(2), torch.tensor(3))
        tensor(7)
    """

    def __init__(self, module: fx.GraphModule) -> None:
        nodes = list(module.graph.nodes)
        numbers = {node: number for number, node in enumerate(nodes)}
        results: dict[fx.Node, Any] = {node: _Result(number) for node, number in numbers.items()}
        self._inputs = [numbers[node] for node in nodes if node.op == "placeholder"]
        self._constants = {numbers[node]: _constant(module, node.target) for node in nodes if node.op == "get_attr"}
        last_read = {node: max(map(numbers.__getitem__, node.users), default=numbers[node]) for node in nodes}
        self._operations: list[_Operation] = []
        for node in nodes:
            assert node.op in ("placeholder", "get_attr", "call_function", "output"), node.op
            if node.op == "call_function":
                done = [numbers[read] for read in (*node.all_input_nodes, node) if last_read[read] == numbers[node]]
                arguments, named = map_arg((node.args, node.kwargs), results.__getitem__)
                self._operations.append(_Operation(numbers[node], node.target, arguments, named, tuple(done)))
        self._given = map_arg(nodes[-1].args[0], results.__getitem__)

    def to(self, device: torch.device) -> "Operations":
        """The same operations on a device, where the graph had its constants and made its tensors elsewhere."""
        moved = copy.copy(self)
        moved._constants = _moved(self._constants, device)
        moved._operations = [
            replace(each, arguments=_moved(each.arguments, device), named=_moved(each.named, device))
            for each in self._operations
        ]
        return moved

    def __call__(self, *inputs: Any, acts: Mapping[int, Act] | None = None) -> Any:
        """What the graph gives, with `acts` done at the sites of those numbers."""
        values = dict(zip(self._inputs, inputs, strict=True)) | self._constants
        for operation in self._operations:
            arguments = _filled(operation.arguments, values)
            if operation.target is at_site:
                x, number = arguments
                act = (acts or {}).get(number)
                value = x if act is None else act(x)
            else:
                value = operation.target(*arguments, **_filled(operation.named, values))
            values[operation.number] = value
            for number in operation.done:
                del values[number]
        return _filled(self._given, values)


def _constant(module: fx.GraphModule, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    # The inside of a `with torch.autocast(…)`, say.
    return Operations(found) if isinstance(found, fx.GraphModule) else found


def _filled(arguments: Any, values: Mapping[int, Any]) -> Any:
    """Arguments with values in the places of `_Result`s."""
    return map_aggregate(arguments, lambda part: values[part.number] if isinstance(part, _Result) else part)


def _moved(arguments: Any, device: torch.device) -> Any:
    """Arguments with what is on any device on this one."""

    def moved(part: Any) -> Any:
        if isinstance(part, Tensor | Operations):
            return part.to(device)
        return device if isinstance(part, torch.device) else part

    return map_aggregate(arguments, moved)


def _name(target: Any) -> Any:
    """What an operation of torch is pickled as; functions are pickled by their own name."""
    if isinstance(target, torch._ops.OpOverload):
        return (*target._schema.name.split("::"), target._overloadname)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return ("higher_order", target.name())  # type: ignore[no-untyped-call]  # torch has no types for it
    return target


def _operation(number: int, name: Any, *others: Any) -> _Operation:
    target = name
    if isinstance(name, tuple):
        target = torch.ops
        for part in name:
            target = getattr(target, part)
    return _Operation(number, target, *others)
