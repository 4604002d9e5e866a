from __future__ import annotations

import copy

import pytest
import torch

from simhpc.zoo.timm_import import timm
from simhpc.zoo.tokens import PrefixBlock, drop_unused_tokens

_SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def _small(name: str = "vit_tiny_patch16_224", **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, **{**_SMALL, **arguments}).double().eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"qk_norm": True, "init_values": 0.1, "qkv_bias": False}),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}),
        ("vit_tiny_patch16_224", {"scale_attn_norm": True, "depth": 1}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
)
def test_the_same_logits_and_gradients(name, arguments):
    model = _small(name, **arguments)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    shorter = copy.deepcopy(model)
    assert drop_unused_tokens(shorter)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    expected, found = model(x), shorter(x)
    torch.testing.assert_close(found, expected)
    arriving = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, x, arriving)[0], torch.autograd.grad(expected, x, arriving)[0]
    )


def test_the_last_block_makes_only_the_tokens_in_use():
    model = _small(reg_tokens=2)
    assert drop_unused_tokens(model)
    assert isinstance(model.blocks[-1], PrefixBlock)
    assert model.forward_features(torch.zeros(1, 3, 32, 32, dtype=torch.float64)).shape == (1, 3, 24)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"global_pool": "map"}),
        ("vit_tiny_patch16_224", {"attn_layer": "diff"}),
    ],
)
def test_left_as_it_is_where_every_token_counts_or_attention_is_another(name, arguments):
    model = _small(name, **{**arguments, "num_heads": 2})
    assert not drop_unused_tokens(model)
    assert not any(isinstance(module, PrefixBlock) for module in model.modules())


def test_left_as_it_is_where_it_is_no_vision_transformer():
    assert not drop_unused_tokens(timm.create_model("test_convnext"))
