"""Making a frozen model faster without changing what it computes.

Nothing is assumed to be exact: a model that was rewritten must give the same logits and input gradients as before, in
double precision, where an error of a rewriting cannot hide behind rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from simhpc.errors import first_line
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.folding import affine_batch_norms, fold_batch_norms
from simhpc.zoo.fused import ConvReLU, check_kernels, fuse
from simhpc.zoo.kernels.convolution import kernel_convolution
from simhpc.zoo.packed import packed_convolution, packed_linear
from simhpc.zoo.stems import is_stem, make_stems
from simhpc.zoo.substitutes import Make, substitutes
from simhpc.zoo.timm_import import timm
from simhpc.zoo.tokens import drop_unused_tokens, has_unused_tokens

_CPU = torch.device("cpu")

_TOLERANCE = 1e-5
"""Of the relative error in double precision. Folding leaves 1e-14, timm's merging in single precision 1e-7."""

_TOLERANCES_IN_SINGLE_PRECISION = (1e-3, 0.1, 1e-3)
"""Likewise, of `_answers` of layers that were compared each by itself. What is within rounding of 0 may pass a ReLU or
not: one number in a late layer, where an image has few pixels, was 0.02 of the gradient."""

_WITHOUT_STATE = ("torch", "timm", "simhpc")
"""Packages whose modules keep nothing between passes but what depends on the size of the input alone."""

_MOST_CONVOLUTIONS_OF_A_TRANSFORMER = 1
"""With its patch embedding alone; what has more gains from channels_last."""


@dataclass(frozen=True)
class Fast:
    """A classifier that is ready to be attacked.

    Attributes:
        memory_format: that its pixels should have.
        done: what was changed, for the record; the same for the same model and machine, always.
        left_out: what was tried and is not exact, or failed, with the reason.
        is_in_parts: whether parts of a batch are best computed side by side, on CPU threads of their own.
    """

    classifier: PixelClassifier
    memory_format: torch.memory_format
    done: tuple[str, ...]
    left_out: tuple[str, ...]
    is_in_parts: bool = False


def make_fast(
    classifier: PixelClassifier,
    pixels: Tensor,
    on: torch.device = _CPU,
    *,
    is_compiled: bool = False,
    is_portable: bool = False,
) -> Fast:
    """Fold batch norms, merge branches, drop what is not used, choose orders of the elements; where that is exact.

    Args:
        classifier: on the CPU; not to be used afterwards, its weights may be in the result.
        pixels: float32 (B, 3, H, W) in [0, 1] on the CPU, two images that it will be shown: more take time, and one
            alone may get wrong gradients from torch (see `folding`).
        on: where the result is. A GPU's choices depend on whether TF32 is on.
        is_compiled: whether `torch.compile` follows, which fuses for itself.
        is_portable: whether it will be copied, moved to another device or run under autocast.
    """
    is_for_cpu = on.type == "cpu" and not (is_compiled or is_portable or classifier.in_bfloat16)
    # cuDNN has fused kernels for what tensor cores compute, in their order of the elements.
    is_fused = is_for_cpu or (on.type == "cuda" and not is_compiled and _uses_tensor_cores(classifier))
    fast = _made(classifier, pixels, on, is_fused=is_fused)
    if is_for_cpu:
        is_in_parts = _gains_in_parts(fast.classifier.model)
        return replace(_for_cpu(fast, pixels), is_in_parts=is_in_parts)
    dtypes = {module.convolution.weight.dtype for module in fast.classifier.modules() if isinstance(module, ConvReLU)}
    if not dtypes:
        return fast
    try:
        if classifier.in_bfloat16 and dtypes != {torch.bfloat16}:
            raise RuntimeError("their weights could not be cast")
        check_kernels(fast.classifier, pixels.to(on, memory_format=fast.memory_format))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        plain = _made(classifier, pixels, on, is_fused=False)
        return replace(plain, left_out=(*plain.left_out, f"fused convolutions: {first_line(error)}"))
    return fast


def _made(classifier: PixelClassifier, pixels: Tensor, on: torch.device, *, is_fused: bool) -> Fast:
    """`make_fast`, with or without what is for CUDA and channels_last alone."""
    model, done, left_out = _rewritten(classifier, pixels, is_fused=is_fused)
    fast = PixelClassifier(
        model, classifier.data, fits_inside=classifier.fits_inside, in_bfloat16=classifier.in_bfloat16
    )
    memory_format = torch.contiguous_format
    # cuDNN's kernels for IEEE float32 are slower in this order.
    gains = on.type == "cpu" or _uses_tensor_cores(classifier)
    if gains and _n_convolutions(model) > _MOST_CONVOLUTIONS_OF_A_TRANSFORMER:
        try:
            _answer(_laid_out(fast, torch.channels_last), pixels.to(memory_format=torch.channels_last))
        except Exception as error:  # a view that this order of the elements does not have; code of one's own
            left_out.append(f"channels_last: {first_line(error)}")
            _laid_out(fast, torch.contiguous_format)
        else:
            memory_format = torch.channels_last
            done.append("channels_last")
    if classifier.in_bfloat16:
        try:
            fast.model = _cast_once(copy.deepcopy(model))
            _answer(fast, pixels.to(memory_format=memory_format))
        except Exception as error:  # weights in use where autocast does not act
            fast.model = model
            left_out.append(f"weights cast once: {first_line(error)}")
    return Fast(fast.to(on), memory_format, tuple(done), tuple(left_out))


def _for_cpu(fast: Fast, pixels: Tensor) -> Fast:
    """With layers in the place of torch's that are faster on a CPU."""
    others: list[tuple[Make, str]] = [(packed_linear, "linear layer(s) in oneDNN's order")]
    if fast.memory_format == torch.channels_last:
        others.append((kernel_convolution, "convolution(s) by kernels in C"))
        others.append((packed_convolution, "convolution(s) in oneDNN's order"))
    for make, what in others:
        fast = _with_others(fast, pixels.to(memory_format=fast.memory_format), make, what)
    return fast


def _with_others(fast: Fast, pixels: Tensor, make: Make, what: str) -> Fast:
    """With layers that `make` makes, if the model is still the same."""
    classifier, before = fast.classifier, {}
    try:
        others = substitutes(classifier, pixels, make)
        if not others:
            return fast
        # In single precision: these layers have no other that is more exact.
        expected = _answers(classifier, pixels)
        before = {name: classifier.get_submodule(name) for name in others}
        _put(others, classifier)
        off = [_relative_error(*both) for both in zip(_answers(classifier, pixels), expected, strict=True)]
        if not all(error <= most for error, most in zip(off, _TOLERANCES_IN_SINGLE_PRECISION, strict=True)):
            raise RuntimeError(f"relative error of logits and gradient {max(off[::2]):.1g} and {off[1]:.1g}")
    except Exception as error:  # no compiler; code that looks at a layer's weight
        _put(before, classifier)
        return replace(fast, left_out=(*fast.left_out, f"{what}: {first_line(error)}"))
    return replace(fast, done=(*fast.done, f"{len(set(others.values()))} {what}"))


def _put(layers: dict[str, nn.Module], model: nn.Module) -> None:
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def _gains_in_parts(model: nn.Module) -> bool:
    """Whether it is a transformer, or like one, that may run in several threads at once."""
    if _n_convolutions(model) > _MOST_CONVOLUTIONS_OF_A_TRANSFORMER:
        return False
    # Code of one's own may keep what it computes on the module.
    return all(type(module).__module__.split(".")[0] in _WITHOUT_STATE for module in model.modules())


def _uses_tensor_cores(classifier: PixelClassifier) -> bool:
    return classifier.in_bfloat16 or torch.backends.cudnn.allow_tf32


_Rewriting = Callable[[nn.Module, Tensor], tuple[nn.Module, str]]
"""A model in double precision, which may be changed, and an input of it, to the new model and what was done."""


def as_attacked(model: nn.Module, inputs: Tensor) -> nn.Module:
    """What `make_fast` makes of a model, unless it is found not to be exact: to count what it costs.

    Args:
        model: float32, frozen; may be on the meta device, as nothing is compared. Not to be used afterwards.
        inputs: float32 (B, 3, S, S), normalised, on the model's device.
    """
    model, inputs = model.double(), inputs.double()
    for alternatives in _rewritings(model):
        for rewrite in alternatives:
            rewritten, what = rewrite(model, inputs)
            if what:
                model = rewritten
                break
    return model.float()


def _rewritings(model: nn.Module, *, is_fused: bool = False) -> list[list[_Rewriting]]:
    """Those worth a try, one after the other. Of alternatives the first that is exact is taken."""
    found: list[list[_Rewriting]] = []
    if any(map(has_unused_tokens, model.modules())):
        found.append([_drop_tokens])
    norms: list[_Rewriting] = [_merge_and_fold] if _is_reparameterisable(model) else []
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        norms += [_fold, _affine]
    if norms:
        found.append(norms)
    # Merging may make a stem of several branches.
    if any(map(is_stem, model.modules())) or _is_reparameterisable(model):
        # Convolutions want another order of the elements than a product gives.
        found.append([_patches, _stems] if _n_convolutions(model) == 1 else [_stems])
    if is_fused and _n_convolutions(model) > _MOST_CONVOLUTIONS_OF_A_TRANSFORMER:
        found.append([_fused])
    return found


def _rewritten(
    classifier: PixelClassifier, pixels: Tensor, *, is_fused: bool
) -> tuple[nn.Module, list[str], list[str]]:
    """The model after all rewritings that are exact, with what was done, and what was not with the reason."""
    taken: list[_Rewriting] = []
    done: list[str] = []
    left_out: list[str] = []
    rewritings = _rewritings(classifier.model, is_fused=is_fused)
    if not rewritings:
        return classifier.model, done, left_out
    try:
        exact = PixelClassifier(copy.deepcopy(classifier.model), classifier.data, fits_inside=classifier.fits_inside)
        exact, pixels = exact.double(), pixels.double()
        expected = _answer(exact, pixels)
    except Exception as error:
        return classifier.model, done, [f"double precision: {first_line(error)}"]
    for alternatives in rewritings:
        for rewrite in alternatives:
            what, problem = _tried(exact, rewrite, pixels, expected)
            if problem:
                left_out.append(problem)
                # What failed may have changed it. Large models are not in memory once more for that.
                exact.model = copy.deepcopy(classifier.model).double()
                for earlier in taken:
                    exact.model, _ = earlier(exact.model, exact.normalised(pixels))
            elif what:
                taken.append(rewrite)
                done.append(what)
                break
    return exact.model.float() if done else classifier.model, done, left_out


def _tried(
    exact: PixelClassifier, rewrite: _Rewriting, pixels: Tensor, expected: tuple[Tensor, Tensor]
) -> tuple[str, str]:
    """Rewrite the model of a classifier in double precision: what was done, or why it is not to be used."""
    try:
        exact.model, what = rewrite(exact.model, exact.normalised(pixels))
        if not what:
            return "", ""
        found = _answer(exact, pixels)
        off = [_relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True)]
    except Exception as error:
        return "", f"{getattr(rewrite, '__name__', '').strip('_')}: {first_line(error)}"
    # Each for itself: the larger one of 0 and NaN is 0.
    if not all(error <= _TOLERANCE for error in off):
        shown = " and ".join(f"{error:.1g}" for error in off)
        return "", f"{what}: not exact, relative error of logits and gradient {shown}"
    return what, ""


def _drop_tokens(model: nn.Module, _: Tensor) -> tuple[nn.Module, str]:
    return model, "last block for the tokens in use" if drop_unused_tokens(model) else ""


def _merge_and_fold(model: nn.Module, inputs: Tensor) -> tuple[nn.Module, str]:
    # timm makes the new layers in single precision.
    merged = timm.utils.reparameterize_model(model.float()).double().requires_grad_(False)
    norms = _fold(merged, inputs)[1]
    return merged, "merged branches" + (f", {norms}" if norms else "")


def _fold(model: nn.Module, inputs: Tensor) -> tuple[nn.Module, str]:
    n_folded, n_affine = fold_batch_norms(model, inputs)
    return model, f"folded {n_folded} of {n_folded + n_affine} batch norms" if n_folded + n_affine else ""


def _affine(model: nn.Module, _: Tensor) -> tuple[nn.Module, str]:
    n_affine = affine_batch_norms(model)
    return model, f"{n_affine} batch norm(s) as affine maps" if n_affine else ""


def _stems(model: nn.Module, _: Tensor) -> tuple[nn.Module, str]:
    return model, "stem's gradient as a convolution" if make_stems(model) else ""


def _patches(model: nn.Module, _: Tensor) -> tuple[nn.Module, str]:
    return model, "patches as a product" if make_stems(model, as_products=True) else ""


def _fused(model: nn.Module, inputs: Tensor) -> tuple[nn.Module, str]:
    n_fused = fuse(model, inputs)
    return model, f"{n_fused} convolutions with what follows inside" if n_fused else ""


def _n_convolutions(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


def _is_reparameterisable(model: nn.Module) -> bool:
    names = ("fuse", "reparameterize", "switch_to_deploy")
    return any(hasattr(module, name) for module in model.modules() for name in names)


def _answer(classifier: PixelClassifier, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a sum of them in which every class counts."""
    with torch.enable_grad():
        variable = pixels.detach().requires_grad_(True)
        logits = classifier(variable)
        weights = torch.linspace(-1.0, 1.0, logits.shape[1], dtype=logits.dtype)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), variable)
    return logits.detach(), gradient


@torch.no_grad()
def _answers(classifier: PixelClassifier, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_answer`, and the logits where no gradient is asked for: torch's own encoder layer has another way then."""
    return *_answer(classifier, pixels), classifier(pixels)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_(min=1e-300))


def _laid_out(classifier: PixelClassifier, memory_format: torch.memory_format) -> PixelClassifier:
    """Its weights in another order; in place."""
    return classifier.to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]


def _cast_once(model: nn.Module) -> nn.Module:
    """What autocast would do to these weights in every forward pass, as it remembers only weights being trained."""
    for module in model.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            module.to(torch.bfloat16)
    return model
