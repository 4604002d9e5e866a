"""The C of this folder, translated for this very processor, and matrices in the order that it reads."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SOURCES = ("pointwise.c", "winograd.c")

_NAMES = " and ".join(_SOURCES)

_LIMIT_S = 60
"""For the compiler, which needs less than a second."""

CHANNELS = 16
"""What numbers of channels are a multiple of."""

STREAMED_BYTES = 2**23
"""What is made and is larger does not stay in a cache anyway."""


@dataclass(frozen=True)
class Around:
    """What a kernel does before and after the products, with tensors in channels_last order.

    Attributes:
        gate: if the input is the gradient of what a ReLU made, that; of its shape.
        gated: gets what of this gradient comes back through the ReLU.
        bias: (K,), added.
        residual: of the shape of the result, added.
        is_relu: whether a ReLU follows.
    """

    gate: Tensor | None = None
    gated: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    is_relu: bool = False


@functools.cache
def library() -> Any:
    """The functions, whose threads are torch's own: their library is in the process.

    Raises:
        OSError: there is no compiler, or what it makes cannot be used.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise OSError("there is no C compiler (cc)")
    sources = [str(Path(__file__).with_name(name)) for name in _SOURCES]
    with tempfile.TemporaryDirectory(prefix="simhpc-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "kernels.so"
        how = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        try:
            done = subprocess.run(
                [compiler, *how, *sources, "-o", str(made)],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"{compiler} has not translated {_NAMES} in {_LIMIT_S} s") from None
        if done.returncode:
            raise OSError(f"{compiler} cannot translate {_NAMES}: {done.stderr.strip()}")
        found = ctypes.CDLL(str(made))
    found.simhpc_pointwise.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_long] * 4 + [ctypes.c_int] * 2
    found.simhpc_winograd.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_long] * 7 + [ctypes.c_int] * 3
    found.simhpc_panel_width.restype = found.simhpc_rows.restype = ctypes.c_long
    return found


def in_panels(matrices: Tensor) -> Tensor:
    """Matrices of products.h: (n, K, C), by which rows of C numbers become rows of K, to (n, K * C)."""
    width = library().simhpc_panel_width()
    n, out_channels, channels = matrices.shape
    n_wide = out_channels // width * width
    wide, rest = matrices[:, :n_wide].reshape(n, n_wide // width, width, channels), matrices[:, n_wide:]
    return torch.cat([wide.transpose(2, 3).flatten(1), rest.transpose(1, 2).flatten(1)], dim=1)


def address(tensor: Tensor | None) -> int | None:
    """As C takes it."""
    return None if tensor is None else tensor.data_ptr()
