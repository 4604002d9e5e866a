"""What becomes of convolutions for CUDA: here, on the CPU, that it is the same computation. Its kernels: tests/gpu."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from zoo.norms import with_statistics

from simhpc.study import DataConfig
from simhpc.zoo import fast as fast_module
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.fused import ConvReLU, ResidualBlock, check_kernels, fuse
from simhpc.zoo.timm_import import timm

CPU = torch.device("cpu")
DATA = DataConfig(input_size_px=64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), interpolation="bicubic", crop_pct=1.0)

# By hand: a basic block has a ReLU after its first convolution and one after the sum, a bottleneck two and one.
KINDS = {"resnet18": 16, "resnet26": 24, "seresnext26d_32x4d": None, "regnetx_002": None, "repvgg_a0": None}


def classifier_of(model):
    return PixelClassifier(model.eval().requires_grad_(False), DATA)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_answers_and_gradients(name):
    torch.manual_seed(0)
    model = with_statistics(timm.create_model(name, num_classes=10)).float()
    pixels = torch.rand(2, 3, 64, 64)
    plain = fast_module._made(classifier_of(model), pixels, CPU, is_fused=False)
    fused = fast_module._made(classifier_of(model), pixels, CPU, is_fused=True)
    assert fused.left_out == plain.left_out == ()
    count = sum(isinstance(module, ConvReLU) for module in fused.classifier.modules())
    said = f"{count} convolutions with what follows inside"
    assert fused.done == (*plain.done[:-1], said, plain.done[-1])
    assert count == KINDS[name] or (KINDS[name] is None and count > 10)
    answers = [fast_module._answer(each.classifier, pixels) for each in (fused, plain)]
    for found, expected in zip(*answers, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 0.02


class Twice(nn.Module):
    """Its ReLU is not all that sees the convolution."""

    def __init__(self):
        super().__init__()
        self.convolution, self.act, self.head = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 10)
        self.other = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        made = self.convolution(x)
        return self.head((self.act(made) + self.other(made)).mean((2, 3)))


def test_what_is_used_twice_is_left_out():
    torch.manual_seed(0)
    fast = fast_module._made(classifier_of(Twice()), torch.rand(2, 3, 64, 64), CPU, is_fused=True)
    assert "1 convolutions with what follows inside: not exact" in fast.left_out[0]
    assert not any(isinstance(module, ConvReLU) for module in fast.classifier.modules())


class Watched(nn.Module):
    """Its logits depend on what a hook has seen last."""

    def __init__(self, watched):
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()
        self.norm, self.head = nn.BatchNorm2d(64), nn.Linear(64, 10)
        getattr(self, watched).register_forward_hook(self.keep)

    def keep(self, module, arguments, output):
        self.seen = output.detach().abs().mean()

    def forward(self, x):
        return self.head(self.act(self.norm(self.second(self.first(x)))).mean((2, 3)) / self.seen)


@pytest.mark.parametrize("watched", ["second", "norm", "act"])
def test_what_something_else_looks_at_keeps_its_place(watched):
    """The images of the comparison would show nothing: what was seen last is of them."""
    torch.manual_seed(0)
    model = Watched(watched)
    plain = copy.deepcopy(model)
    getattr(plain, watched)._forward_hooks.clear()
    getattr(plain, watched).register_forward_hook(plain.keep)
    pixels, others = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64) / 5
    fast = fast_module.make_fast(classifier_of(model), pixels)
    expected = classifier_of(plain)(others)
    assert fast.left_out == ()
    torch.testing.assert_close(fast.classifier(others), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("hooked", ["conv3", "bn3", "act3"])
def test_a_block_that_something_else_looks_at_keeps_its_place(hooked):
    torch.manual_seed(0)
    model = timm.create_model("resnet26", num_classes=10)
    getattr(model.layer1[1], hooked).register_forward_hook(lambda *_: None)
    fast = fast_module.make_fast(classifier_of(model), torch.rand(2, 3, 64, 64))
    kinds = [type(module) for module in fast.classifier.modules()]
    assert kinds.count(ResidualBlock) == 7
    assert kinds.count(timm.models.resnet.Bottleneck) == 1


def test_a_relu_inside_by_hand():
    convolution = nn.Conv2d(1, 1, 1)
    convolution.weight.data.fill_(2.0)
    convolution.bias.data.fill_(-1.0)
    x = torch.tensor([0.0, 1.0, 2.0, 0.25]).view(1, 1, 2, 2).requires_grad_(True)
    residual = torch.tensor([3.0, -2.0, 0.0, 0.0]).view(1, 1, 2, 2).requires_grad_(True)
    made = ConvReLU(convolution)(x, residual)
    assert made.flatten().tolist() == [2.0, 0.0, 3.0, 0.0]
    made.sum().backward()
    assert x.grad.flatten().tolist() == [2.0, 0.0, 2.0, 0.0]
    assert residual.grad.flatten().tolist() == [1.0, 0.0, 1.0, 0.0]
    assert ConvReLU(convolution)(x).flatten().tolist() == [0.0, 1.0, 3.0, 0.0]


def test_what_does_more_than_add_a_bias_is_left_alone():
    """Squeeze-and-excitation between convolution and sum, a batch norm that was not folded."""
    torch.manual_seed(0)
    for name in ("seresnet50", "resnet18"):
        model = timm.create_model(name, num_classes=10).eval().requires_grad_(False)
        fuse(model, torch.rand(2, 3, 64, 64))
        assert not any(isinstance(module, ResidualBlock) for module in model.modules())


def test_a_kernel_that_computes_something_else_is_found(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(ConvReLU(nn.Conv2d(3, 4, 3)), ConvReLU(nn.Conv2d(4, 4, 3))).requires_grad_(False)
    check_kernels(model, torch.rand(2, 3, 8, 8))
    monkeypatch.setattr(ConvReLU, "forward", lambda self, x: self.convolution(x).clamp(min=0.1))
    with pytest.raises(RuntimeError, match=r"Conv2d\(3, 4.* with ReLU is not the same"):
        check_kernels(model, torch.rand(2, 3, 8, 8))
