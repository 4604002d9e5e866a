"""FLOPs and bytes against cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from tiny import DATA, MODELS
from torch import nn
from torch.nn import functional

from simhpc.study import Model
from simhpc.zoo import cost
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.resolve import resolve_model


def resolved(key="cnn", **changes) -> Model:
    return resolve_model(
        Model.model_validate({"key": key, "weights": "train", "data": DATA, **MODELS[key], **changes}, strict=False), 10
    )


def on_meta(make) -> nn.Module:
    with torch.device("meta"):
        return make().eval().requires_grad_(False)


class Attention(nn.Module):
    """One head over T tokens of width D: (B, T, D) to (B, D)."""

    def forward(self, x):
        x = x.unsqueeze(1)
        return functional.scaled_dot_product_attention(x, x, x).squeeze(1).sum(1)


class Mlp(nn.Module):
    """(B, 3, 4, 4) to (B, 5), keeping what GELU needs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(48, 7), nn.Linear(7, 5)

    def forward(self, x):
        return self.second(functional.gelu(self.first(x.flatten(1))))


def test_flops_of_a_linear_layer():
    """48 x 5 multiply-adds; the input gradient is as many again, and the weights' gradient is not counted."""
    network = on_meta(lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 5)))
    assert cost.flops(network, (3, 4, 4)) == (2 * 48 * 5, 2 * 2 * 48 * 5)


def test_flops_of_a_convolution():
    """8 x 8 positions, each 3 x 3 x 3 products for each of 6 channels."""
    network = on_meta(lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Flatten()))
    forward = 2 * 8 * 8 * 3 * 3 * 3 * 6
    assert cost.flops(network, (3, 8, 8)) == (forward, 2 * forward)


def test_flops_of_attention():
    """Two products of T x T x D forward; five backward, because the scores are computed again."""
    tokens, width = 9, 4
    product = 2 * tokens * tokens * width
    assert cost.flops(Attention(), (tokens, width)) == (2 * product, 7 * product)


def test_flops_of_a_vision_transformer():
    width, depth, tokens, patch = 32, 2, 16 + 1, 4
    linear = 16 * 3 * patch * patch * width  # patches
    linear += (depth - 1) * tokens * (3 + 1 + 4 + 4) * width * width  # queries, keys, values; projection; MLP
    linear += (tokens * 2 + (1 + 1 + 4 + 4)) * width * width  # the last block: all keys and values, one of the others
    linear += width * 10  # the head sees the class token
    attention = ((depth - 1) * tokens + 1) * tokens * width
    found = cost.count(resolved("vit", training=None), 10)
    assert found.forward_flops == 2 * (linear + 2 * attention)
    assert found.gradient_flops == 2 * (2 * linear + 7 * attention)
    assert found.counted_on == "meta"


def test_saved_bytes_of_an_mlp():
    """With frozen weights a linear layer keeps nothing of the image; GELU keeps its 7 inputs."""
    network = on_meta(Mlp)
    assert cost.saved(network, (3, 4, 4)) == (7 * 4, 0)
    # With gradients of weights each layer keeps its input too; the image itself is flattened in place.
    assert cost.saved(network.requires_grad_(True), (3, 4, 4)) == ((48 + 7 + 7) * 4, 0)


def test_what_is_kept_once_per_batch():
    class Standardised(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 48))

        def forward(self, x):
            return torch.sigmoid(functional.linear(x.flatten(1), self.weight / 2))

    # The halved weights, and the sigmoid's 6 results per image.
    assert cost.saved(on_meta(Standardised), (3, 4, 4)) == (6 * 4, 6 * 48 * 4)


def test_peak_of_a_forward_pass():
    """The 7 results of the first layer are alive beside the 7 of GELU, then these beside the last 5."""
    assert cost.peak_forward_bytes(on_meta(Mlp), (3, 4, 4)) == (7 + 7) * 4


@pytest.mark.parametrize("key", ["cnn", "convnext", "vit"])
def test_shapes_alone_and_real_images_give_the_same(key):
    """The meta device stands for the CPU: FLOPs, and what autograd keeps, down to some bytes of alignment."""
    model = resolved(key, training=None)
    meta, cpu = (cost._count(model, 10, None, device) for device in ("meta", "cpu"))
    assert (meta.forward_flops, meta.gradient_flops) == (cpu.forward_flops, cpu.gradient_flops)
    assert meta.saved_bytes == pytest.approx(cpu.saved_bytes, rel=0.01)
    assert (meta.parameters, meta.weight_bytes, meta.tensors) == (cpu.parameters, cpu.weight_bytes, cpu.tensors)
    network = cost.build.untrained(model, 10)
    assert meta.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_a_canvas_costs_memory_and_no_flops():
    model = resolved("cnn")
    small, large = cost.count(model, 10), cost.count(model, 10, canvas_px=64)
    assert large.forward_flops == small.forward_flops
    # The clamp behind the resize keeps what it clamped, the crop nothing.
    assert large.saved_bytes > small.saved_bytes


def test_a_model_that_needs_values_is_counted_on_the_cpu(monkeypatch):
    real = PixelClassifier.forward

    def forward(self, pixels):
        if bool(pixels.isfinite().all()):  # a question that shapes cannot answer
            return real(self, pixels)
        raise AssertionError

    expected = cost.count(resolved(), 10)
    monkeypatch.setattr(PixelClassifier, "forward", forward)
    found = cost.count(resolved(), 10)
    assert found.counted_on == "cpu"
    assert found.gradient_flops == expected.gradient_flops


def test_training_keeps_more():
    assert cost.count(resolved("vit"), 10).training_bytes > cost.count(resolved("vit"), 10).saved_bytes
    pretrained = Model(key="m", timm="resnet18", weights="pretrained:a1_in1k")
    assert cost.count(resolve_model(pretrained, 1000), 1000).training_bytes == 0
