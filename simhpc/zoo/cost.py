"""What a model costs per image: FLOPs and bytes, counted on shapes alone. No weights are loaded or made.

One multiply-add is two FLOPs. Matrix products, convolutions and attention count; what is applied to each element
(normalisation, activations, pooling, resizing) does not: it is a percent or two of the arithmetic.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from simhpc.study import Model
from simhpc.zoo import build
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.fast import as_attacked
from simhpc.zoo.kernels.convolution import memory_bytes

_BATCH = 2


@dataclass(frozen=True)
class Cost:
    """What one model costs.

    Attributes:
        parameters: numbers in its parameters.
        weight_bytes: of its state dict, parameters and buffers.
        cpu_weight_bytes: of weights as a CPU has them that does not train: one order for each direction
            (`zoo.packed`), and what `zoo.kernels` take.
        tensors: in the state dict.
        forward_flops: of one image's forward pass.
        gradient_flops: of one image's forward pass and input gradient together; no weight gradients.
        forward_bytes: most that lies in memory at once in the forward pass of one image, weights aside.
        saved_bytes: what a forward pass keeps per image for the input gradient, parameters and buffers aside.
        saved_fixed_bytes: what it keeps once per batch, such as standardised weights.
        training_bytes: what it keeps per image when the weights need gradients too; 0 if it is not trained here.
        counted_on: `meta` (shapes alone), or `cpu` where an operation has no form for shapes alone.
    """

    parameters: int
    weight_bytes: int
    cpu_weight_bytes: int
    tensors: int
    forward_flops: int
    gradient_flops: int
    forward_bytes: int
    saved_bytes: int
    saved_fixed_bytes: int
    training_bytes: int
    counted_on: str


def count(model: Model, num_classes: int, *, canvas_px: int | None = None) -> Cost:
    """Count one resolved entry of a study, made faster as it will be (`fast.as_attacked`).

    Args:
        num_classes: classes of the image set.
        canvas_px: side of the pixels that are attacked if the resize is inside the model; None: its own input size.
    """
    if model.module is not None:
        # Code that was not written for shapes alone: it may keep what it made, or warn of each weight that it loads.
        return _count(model, num_classes, canvas_px, "cpu")
    try:
        return _count(model, num_classes, canvas_px, "meta")
    except (RuntimeError, TypeError, ValueError):
        # Values decide shapes somewhere, or an operation's gradient is not known on shapes alone.
        return _count(model, num_classes, canvas_px, "cpu")


def _count(model: Model, num_classes: int, canvas_px: int | None, device: str) -> Cost:
    with torch.device(device):
        network = build.untrained(model, num_classes)
    input_size = model.data.input_size_px
    assert input_size is not None
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    state = network.state_dict().values()
    weight_bytes, n_tensors = sum(tensor.nbytes for tensor in state), len(state)
    training_bytes = 0
    if model.is_trained_here:
        training_bytes, _ = saved(network.train().requires_grad_(True), (3, input_size, input_size))
    with torch.device(device):
        inputs = torch.zeros(_BATCH, 3, input_size, input_size)
        network = as_attacked(network.eval().requires_grad_(False), inputs)
        cpu_weight_bytes = 2 * weight_bytes + memory_bytes(network, inputs)
        classifier = PixelClassifier(network, model.data, fits_inside=canvas_px is not None)
    side = canvas_px or input_size
    shape = (3, side, side)
    forward_flops, gradient_flops = flops(classifier, shape)
    saved_bytes, saved_fixed_bytes = saved(classifier, shape)
    forward_bytes = peak_forward_bytes(classifier, shape)
    return Cost(
        parameters=n_parameters,
        weight_bytes=weight_bytes,
        cpu_weight_bytes=cpu_weight_bytes,
        tensors=n_tensors,
        forward_flops=forward_flops,
        gradient_flops=gradient_flops,
        forward_bytes=forward_bytes,
        saved_bytes=saved_bytes,
        saved_fixed_bytes=saved_fixed_bytes,
        training_bytes=training_bytes,
        counted_on=device,
    )


def flops(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """FLOPs per image of a forward pass, and of a forward pass with the input gradient.

    Args:
        network: (B, *shape) float32 to (B, K), on any device, its parameters frozen.
        shape: of one image.
    """
    leaf = _images(network, 1, shape)
    # A copy: the counter cannot follow a module whose input is a leaf.
    images = leaf.clone()
    with FlopCounterMode(display=False, custom_mapping=_FUSED_FLOPS) as counter, _FusedAttention():
        logits = network(images)
        forward = int(counter.get_total_flops())
        torch.autograd.grad(logits.sum(), leaf)
        return forward, int(counter.get_total_flops())


def saved(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass: per image, and once per batch.

    From batches of two and of four, because some models keep what does not grow with the batch. Parameters and
    buffers of the network are not counted; each storage counts once, and whole.
    """
    small, large = (_saved(network, (batch, *shape)) for batch in (_BATCH, 2 * _BATCH))
    per_image = (large - small) // _BATCH
    return per_image, max(0, small - _BATCH * per_image)


def peak_forward_bytes(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Most bytes that intermediate results of one image, itself aside, take at once in a pass without gradient."""
    images = _images(network, 1, shape).detach()
    live = _LiveBytes(_own_storages(network) | {images.untyped_storage()._cdata})
    with torch.no_grad(), _FusedAttention(), live:
        network(images)
    return live.peak_bytes


def _saved(network: nn.Module, shape: tuple[int, ...]) -> int:
    leaf = _images(network, shape[0], shape[1:])
    own = _own_storages(network)
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes()
        return tensor

    with _FusedAttention(), saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(leaf)
    # Until here the graph has kept every storage alive, so that no number stands for two of them.
    del logits
    return sum(found.values())


def _images(network: nn.Module, batch: int, shape: tuple[int, ...]) -> Tensor:
    device = next((tensor.device for tensor in network.parameters()), torch.device("meta"))
    return torch.zeros(batch, *shape, device=device, requires_grad=True)


def _own_storages(network: nn.Module) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in [*network.parameters(), *network.buffers()]}


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows which results of operations are alive; those that share memory count once."""

    def __init__(self, own: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = own
        self._alive: dict[int, Any] = {}
        self._bytes = self.peak_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._own or key in self._alive:
            return

        def gone(_: object) -> None:
            del self._alive[key]
            self._bytes -= size

        self._alive[key] = weakref.ref(storage, gone)
        self._bytes += size


class _FusedAttention(TorchFunctionMode):
    """Attention as CPUs and GPUs compute it: fused, the matrix of all pairs of tokens never in memory.

    On the meta device torch would write that matrix out, and a vision transformer seem to keep half as much again.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return _attention(func, *args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    otherwise: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **more: Any,
) -> Tensor:
    has_form = query.ndim == 4 and query.shape[-1] == value.shape[-1] and dropout_p == 0 and not any(more.values())
    if not has_form or (attn_mask is not None and attn_mask.requires_grad):
        return otherwise(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
    fused: tuple[Tensor, Tensor] = _FUSED(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)
    return fused[0]


_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _fused_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _fused_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    # Five products where the forward pass has two: the scores are computed again.
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


# torch counts the GPU's fused attention, and forgets the CPU's.
_FUSED_FLOPS = {_FUSED: _fused_flops, _FUSED_BACKWARD: _fused_backward_flops}
