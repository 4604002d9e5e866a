"""`timm`, imported so that it also works beside a CPU build of torch. Import timm from here.

timm imports torchvision, and torchvision's wheels on the package index are built against CUDA torch. Beside
a CPU torch their compiled operators do not load, and torchvision then fails at import because it attaches
shape functions to two operators, `nms` and `qnms`, that nobody has defined. Nothing here uses either, so
their schemas alone are enough. This acts only after that one failure has been seen.
"""

from __future__ import annotations

import sys

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm
import timm.data
import timm.layers
import timm.loss
import timm.models
import timm.optim
import timm.scheduler
import timm.task
import timm.utils

__all__ = ["timm"]
