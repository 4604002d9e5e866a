from __future__ import annotations

import pytest
import torch

from simhpc.attacks.determinism import settle


def state():
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def test_strict_where_that_works(capsys):
    seen = []
    assert settle(lambda: seen.append(state()) or 7, "net") == 7
    assert seen == [(True, False)]
    assert state() == (True, False)
    assert capsys.readouterr().out == ""


def test_an_operation_without_a_deterministic_kernel_is_named_and_allowed(capsys):
    seen = []

    def work():
        seen.append(state())
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(
                "upsample_bicubic2d_aa_backward_out_cuda does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True)'."
            )

    settle(work, "net")
    assert seen == [(True, False), (True, True)]
    assert state() == (True, True)
    assert capsys.readouterr().out == (
        "net: not the same bits each time on this device: upsample_bicubic2d_aa_backward_out_cuda has no deterministic "
        "form\n"
    )


def test_another_error_is_none_of_its_business():
    def work():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        settle(work, "net")
