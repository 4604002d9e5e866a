"""Patch embeddings as the matrix products that they are.

A convolution whose kernel is as large as its stride looks at each pixel once. Torch's CPU kernels take several times
longer for its input gradient than for the product that it amounts to.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PatchProjection(nn.Module):
    """`Conv2d` with kernel = stride, no padding and one group: (B, C, H, W) to (B, K, H // P, W // Q).

    Args:
        convolution: whose weights are shared.
    """

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.patch: tuple[int, int] = convolution.kernel_size
        weight = convolution.weight.detach().flatten(1)
        self.projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.projection.weight = nn.Parameter(weight, requires_grad=False)
        self.projection.bias = convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        (p, q), rows, columns = self.patch, height // self.patch[0], width // self.patch[1]
        # What does not fill a patch is not looked at.
        x = x[:, :, : rows * p, : columns * q].reshape(batch, channels, rows, p, columns, q)
        tokens: Tensor = self.projection(x.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * p * q))
        return tokens.transpose(1, 2).view(batch, -1, rows, columns)


def project_patches(model: nn.Module) -> int:
    """Replace every such convolution, in place; how many there were."""
    found = {name: module for name, module in model.named_modules() if _is_projection(module)}
    for name, convolution in found.items():
        model.set_submodule(name, PatchProjection(convolution))
    return len(found)


def _is_projection(module: Any) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == module.stride != (1, 1)
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )
