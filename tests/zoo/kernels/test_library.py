"""The compiler, what it makes, and what becomes of models without one that works."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from zoo.kernels.compiler import needs_compiler
from zoo.norms import with_statistics

from simhpc.study import DataConfig
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.fast import make_fast
from simhpc.zoo.kernels import library as library_module
from simhpc.zoo.kernels import pointwise, winograd
from simhpc.zoo.kernels.convolution import KernelConvolution
from simhpc.zoo.kernels.library import in_panels, library
from simhpc.zoo.packed import PackedConvolution
from simhpc.zoo.timm_import import timm

DATA = DataConfig(input_size_px=64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bilinear", crop_pct=1.0)

THREADS = """
from pathlib import Path
from simhpc.zoo.kernels.library import library
assert hasattr(library(), "GOMP_parallel")
print({line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line})
"""


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_its_threads_are_those_of_torch():
    """A second library would wait on the same cores; scikit-learn brings its own, so that this asks a new process."""
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    (found,) = ast.literal_eval(done.stdout)
    assert Path(found).parents[1] == Path(torch.__file__).parent


@needs_compiler
def test_panels_by_hand():
    """48 columns of 2 rows: whole panels, then what is left; in each the first row, then the second."""
    width = library().simhpc_panel_width()
    matrix = torch.arange(96.0).view(1, 48, 2)
    panels = in_panels(matrix)[0]
    first, n_wide = panels[: 2 * width].view(2, width), 48 // width * width
    assert torch.equal(first[0], 2 * torch.arange(width))
    assert torch.equal(first[1], 2 * torch.arange(width) + 1)
    assert torch.equal(panels[2 * n_wide :], matrix[0, n_wide:].T.flatten())


FAILING = """#!/bin/sh
echo "cc1: this processor is not known" >&2
exit 1
"""


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "there is no C compiler (cc)"),
        (FAILING, "cannot translate pointwise.c and winograd.c: cc1: this processor is not known"),
        ("#!/bin/sh\n", "cannot open shared object file"),
    ],
)
def test_without_a_compiler_that_works(monkeypatch, tmp_path, script, reason):
    """torch's convolutions take the places, packed, and the log says why."""
    if script is not None:
        (tmp_path / "cc").write_text(script)
        (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for module in (library_module, pointwise, winograd):
        monkeypatch.setattr(module, "library", library.__wrapped__)
    torch.manual_seed(0)
    model = with_statistics(timm.create_model("resnet18", num_classes=10)).float()
    fast = make_fast(PixelClassifier(model, DATA), torch.rand(2, 3, 64, 64))
    (left_out,) = fast.left_out
    assert left_out.startswith("convolution(s) by kernels in C: ")
    assert reason in left_out
    kinds = {type(module) for module in fast.classifier.modules()}
    assert PackedConvolution in kinds
    assert KernelConvolution not in kinds


def test_a_compiler_that_hangs(monkeypatch, tmp_path):
    (tmp_path / "cc").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(library_module, "_LIMIT_S", 0.2)
    with pytest.raises(OSError, match=r"/cc has not translated pointwise.c and winograd.c in 0.2 s"):
        library.__wrapped__()
