from __future__ import annotations

import gc
import weakref

import pytest
import torch

from simhpc.attacks.backoff import is_out_of_memory, with_backoff


class Activations:
    """Something large."""


def test_half_as_many_until_it_fits_and_nothing_of_the_failure_is_held():
    tried, told, held = [], [], []

    def work(batch_size):
        gc.collect()
        assert not [one for one in held if one() is not None], "what filled the memory is still there"
        tried.append(batch_size)
        activations = Activations()
        held.append(weakref.ref(activations))
        if batch_size > 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return f"done with {batch_size}"

    assert with_backoff(work, 64, told.append) == "done with 8"
    assert tried == [64, 32, 16, 8]
    assert told == [32, 16, 8]


def test_one_image_that_does_not_fit_is_an_error():
    def work(batch_size):
        raise torch.OutOfMemoryError("no")

    told = []
    with pytest.raises(torch.OutOfMemoryError):
        with_backoff(work, 3, told.append)
    assert told == [1]


def test_other_errors_pass_at_once():
    told = []

    def work(batch_size):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        with_backoff(work, 64, told.append)
    assert told == []


@pytest.mark.parametrize(
    ("said", "is_so"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_what_cuda_and_its_libraries_say(said, is_so):
    assert is_out_of_memory(RuntimeError(said)) == is_so


def test_what_the_cpu_allocator_really_raises_is_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
