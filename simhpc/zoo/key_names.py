"""The tensors of a checkpoint under the model's own names, where the one who saved them used others.

Nothing is guessed: whatever comes out of here is compared with the model, name by name and shape by shape
(`weights.check_fit`), and used only if all agree.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress

from torch import Tensor, nn

from simhpc.errors import ModelError
from simhpc.study import Model
from simhpc.zoo.timm_import import timm

State = dict[str, Tensor]

_COUNTERS = ("n_averaged",)
"""What torch's AveragedModel saves beside the averaged weights."""


def readings(model: Model, built: nn.Module, state: State) -> Iterator[State]:
    """Ways to read a state dict for this model, the plainest first.

    Args:
        built: the architecture, perhaps on the meta device.
        state: as timm's `load_state_dict` gives it: without the prefixes of DataParallel, DDP and torch.compile.

    Raises:
        ModelError: it holds the model more than once, and nothing says which one is meant.
    """
    names = list(built.state_dict())
    # timm takes those prefixes from names that have them by right, too.
    by_right: dict[str, str] = timm.models.clean_state_dict({name: name for name in names})
    plain = {by_right.get(name, name): tensor for name, tensor in state.items() if name not in _COUNTERS}
    yield plain
    if (inner := _inside(model, names, plain)) is not None:
        yield inner
    if model.timm is not None and (renamed := _renamed_by_timm(model.timm, built, state)) is not None:
        yield renamed


def fits(built: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether names and shapes are the model's."""
    return {name: tensor.shape for name, tensor in built.state_dict().items()} == {
        name: tensor.shape for name, tensor in state.items()
    }


def _inside(model: Model, names: list[str], state: State) -> State | None:
    """The model where it was a part of something larger: `model.` of Lightning, `ema_model.`, `backbone.`."""
    if not names:
        return None
    prefixes = [name.removesuffix(names[0]) for name in state if name.endswith(f".{names[0]}")]
    whole = [prefix for prefix in prefixes if all(prefix + name in state for name in names)]
    if len(whole) > 1:
        found = " and ".join(repr(prefix) for prefix in whole)
        raise ModelError(
            f"model {model.key!r}: {model.checkpoint_path} holds this model {len(whole)} times, below {found}: "
            "save the one that is meant in a file of its own"
        )
    return {name: state[whole[0] + name] for name in names} if whole else None


def _renamed_by_timm(architecture: str, built: nn.Module, state: State) -> State | None:
    """What timm's own function for original checkpoints of this architecture makes of it.

    It knows the names that the authors of DeiT, Swin, ConvNeXt and others used, and resamples position embeddings
    that were made for another input size, as timm does with its pretrained weights.
    """
    home = sys.modules[timm.models.model_entrypoint(architecture).__module__]
    rename = getattr(home, "checkpoint_filter_fn", None)
    if rename is not None:
        # Written for originals of its own kind, it may fail in any way on others.
        with suppress(Exception):
            return dict(rename(dict(state), built))
    return None
