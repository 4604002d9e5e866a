"""What runs in a forward pass, in order: the calls of modules, and the operations between them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

Shape = tuple[int, ...]
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that hold what a network has learnt to look for."""
OPERATIONS = {
    **dict.fromkeys(("matmul", "bmm", "einsum", "baddbmm"), "product"),
    "scaled_dot_product_attention": "attention",
    **{name: name for name in ("mean", "softmax", "adaptive_avg_pool2d", "adaptive_max_pool2d", "amax")},
    **{name: name for name in ("max_pool2d", "avg_pool2d", "sigmoid", "hardsigmoid")},
    **dict.fromkeys(("getitem", "select"), "select"),
    **{name: name for name in ("relu", "gelu", "silu", "hardswish", "leaky_relu", "elu", "mish", "prelu", "selu")},
    **dict.fromkeys(("hardtanh", "relu6"), "relu6"),
}
"""The functions of torch that are noted, and under which name."""


@dataclass(frozen=True)
class Call:
    """One call of one module.

    Attributes:
        name: its path in the model; empty for the model itself.
        module: an `nn.Module`; untyped, because layers' own attributes are read.
        caller: path of the module whose forward calls it. Containers that are not called (`ModuleList`) are left out.
        begin, end: when it starts and ends, in steps of the trace.
        inputs, outputs: shapes of the tensors it is given and gives.
        is_given_callers_input: it reads the very tensor that its caller was given, as a shortcut does.
    """

    name: str
    caller: str
    module: Any
    begin: int
    end: int
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    is_given_callers_input: bool


@dataclass(frozen=True)
class Operation:
    """One call of a torch function.

    Attributes:
        name: without trailing underscores: in place or not is one.
        within: path of the innermost module that runs.
        at: when, in steps of the trace.
        args: what it was given, by position and then by name, with shapes in place of tensors.
        output: shape of the first tensor that it gives; None without one.
    """

    name: str
    within: str
    at: int
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Shape | None


@dataclass(frozen=True)
class Trace:
    """A forward pass of one image. `calls` and `operations` in the order in which they begin."""

    calls: list[Call]
    operations: list[Operation]

    def inside(self, call: Call) -> Iterator[Call]:
        """The calls that begin while `call` runs, itself left out."""
        return iter(self.calls[bisect_right(self._begins, call.begin) : bisect_left(self._begins, call.end)])

    def operations_of(self, call: Call) -> Iterator[Operation]:
        """The operations while `call` runs."""
        return iter(self.operations[bisect_right(self._times, call.begin) : bisect_left(self._times, call.end)])

    @cached_property
    def _begins(self) -> list[int]:
        return [call.begin for call in self.calls]

    @cached_property
    def _times(self) -> list[int]:
        return [operation.at for operation in self.operations]

    def called_by(self, call: Call) -> list[Call]:
        """The calls that `call` makes itself."""
        return [each for each in self.inside(call) if each.caller == call.name]

    def weighted(self) -> list[Call]:
        return [call for call in self.calls if isinstance(call.module, WEIGHTED)]

    def convolutions(self) -> list[Call]:
        return [call for call in self.calls if isinstance(call.module, nn.Conv2d)]

    def around(self, call: Call) -> Iterator[Call]:
        """The calls inside which `call` is, the innermost first."""
        before = self.calls[: bisect_left(self._begins, call.begin)]
        return (each for each in reversed(before) if call.end < each.end)


def trace(model: nn.Module, images: Tensor) -> Trace:
    """One forward pass of `model`, in eval mode and without gradients.

    Args:
        images: (1, 3, H, W) float32 on the model's device, `meta` included.
    """
    recorder = _Recorder()
    with recorder.hooks(model), torch.no_grad(), recorder:
        model(images)
    return Trace(sorted(recorder.calls, key=lambda call: call.begin), recorder.operations)


@dataclass
class _Open:
    name: str
    begin: int
    inputs: list[Tensor]


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.operations: list[Operation] = []
        self._running: list[_Open] = []
        self._step = 0

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in model.named_modules():
                before = module.register_forward_pre_hook(self._before(name), with_kwargs=True)
                after = module.register_forward_hook(self._after(name))
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _before(self, name: str) -> Any:
        def hook(_: nn.Module, args: Any, keywords: Any) -> None:
            inputs = [leaf for leaf in tree_leaves((args, keywords)) if isinstance(leaf, Tensor)]
            self._running.append(_Open(name, self._next(), inputs))

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, _: Any, result: Any) -> None:
            call = self._running.pop()
            assert call.name == name
            caller = self._running[-1] if self._running else None
            self.calls.append(
                Call(
                    name=name,
                    caller=caller.name if caller else "",
                    module=module,
                    begin=call.begin,
                    end=self._next(),
                    inputs=_shapes(call.inputs),
                    outputs=_shapes(tree_leaves(result)),
                    is_given_callers_input=caller is not None
                    and any(mine is its for mine in call.inputs for its in caller.inputs),
                )
            )

        return hook

    def _next(self) -> int:
        self._step += 1
        return self._step

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        if name in OPERATIONS and self._running:
            positional, keywords = tree_map_only(Tensor, lambda tensor: torch.Size(tensor.shape), (args, kwargs or {}))
            outputs = _shapes(tree_leaves(result))
            self.operations.append(
                Operation(
                    name=OPERATIONS[name],
                    within=self._running[-1].name,
                    at=self._next(),
                    args=tuple(positional),
                    keywords=dict(keywords),
                    output=outputs[0] if outputs else None,
                )
            )
        return result


def _shapes(leaves: Any) -> tuple[Shape, ...]:
    return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))
