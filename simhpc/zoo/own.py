"""Models of one's own: `module = "package.module:function"` in a study, a function that returns the network.

What it has to return is a `torch.nn.Module` that takes (B, 3, S, S) normalised float32 images and gives (B, K) float32
logits. Its data config is the entry's `data`; what that leaves out is read from the network's `pretrained_cfg`, a dict
with timm's names (`input_size`, `mean`, `std`, `interpolation`, `crop_pct`). Nothing is assumed beyond them.

Naming a module in a study runs its code, as a script in that folder would run.
"""

from __future__ import annotations

import copy
import importlib
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from simhpc.errors import ModelError
from simhpc.store.checkpoint import file_sha256
from simhpc.study import Model


@dataclass(frozen=True)
class Located:
    """Where the module of an entry was found.

    Attributes:
        folder: that it is imported from.
        sha256: of its source file.
    """

    folder: Path
    sha256: str


def locate(model: Model) -> Located:
    """Import an entry's module.

    Raises:
        ModelError: it cannot be imported, has changed since the run directory was made, or has no such function.
    """
    name, function = _names(model)
    for path in model.module_files:
        # Before any of its code runs.
        if path.is_file():
            _check_sha256(model, path)
    module = _imported(model, name)
    source = Path(module.__file__ or "")
    if not source.is_file():
        raise ModelError(f"model {model.key!r}: the module {name!r} has no source file: name one that has")
    if not callable(getattr(module, function, None)):
        raise ModelError(f"model {model.key!r}: {source} has no function {function!r}")
    depth = len(name.split("."))
    folder = source.parents[depth if source.name == "__init__.py" else depth - 1]
    return Located(folder, _check_sha256(model, source))


def build(model: Model, num_classes: int) -> nn.Module:
    """Call the function of an entry.

    Args:
        num_classes: given as `num_classes` to the function of a model that is trained here, unless `args` has it.

    Raises:
        ModelError: see `locate`; or the function fails, or returns something else than a network.
    """
    locate(model)
    name, function = _names(model)
    arguments: dict[str, Any] = copy.deepcopy(model.args)
    if model.is_trained_here:
        arguments.setdefault("num_classes", num_classes)
    shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    try:
        built = getattr(sys.modules[name], function)(**arguments)
    except (Exception, SystemExit) as error:
        raise ModelError(f"model {model.key!r}: {model.module}({shown}) failed: {_told(error, model)}") from error
    if not isinstance(built, nn.Module):
        raise ModelError(f"model {model.key!r}: {model.module}({shown}) returned {_kind(built)}, not a torch.nn.Module")
    return built


def data_config(model: Model, built: nn.Module) -> dict[str, Any]:
    """The network's `pretrained_cfg`, complete where the entry's `data` is not.

    Raises:
        ModelError: something is said by neither.
    """
    config = getattr(built, "pretrained_cfg", None) or {}
    config = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(config, dict):
        raise ModelError(f"model {model.key!r}: pretrained_cfg of its network is {_kind(config)}, not a dict")
    theirs = {"input_size_px": "input_size"}
    needed = [key for key, value in model.data if value is None and config.get(theirs.get(key, key)) is None]
    if needed:
        raise ModelError(
            f"model {model.key!r}: nothing says how images are prepared for {model.module}: set "
            f"{', '.join(f'data.{key}' for key in needed)} (or give the network a pretrained_cfg as timm's have)"
        )
    given = model.data.model_dump()
    for key, check_value in _CONFIG.items():
        ours = "input_size_px" if key == "input_size" else key
        if given[ours] is None and not check_value(config[key]):
            raise ModelError(
                f"model {model.key!r}: pretrained_cfg of its network has {key} = {config[key]!r}; timm's is such as "
                "input_size = (3, 224, 224), mean = std = (0.5, 0.5, 0.5), interpolation = 'bicubic', crop_pct = 0.9"
            )
    return config


def _are_numbers(value: object, *kinds: type) -> bool:
    kinds = kinds or (int, float)
    return isinstance(value, (tuple, list)) and len(value) == 3 and all(type(each) in kinds for each in value)


_CONFIG: dict[str, Callable[[Any], bool]] = {
    "input_size": lambda value: _are_numbers(value, int),
    "mean": _are_numbers,
    "std": _are_numbers,
    "interpolation": lambda value: isinstance(value, str),
    "crop_pct": lambda value: type(value) in (int, float),
}
"""Whether a value of timm's data config is of its kind."""


def check(model: Model, built: nn.Module) -> int:
    """Try the network on two images; how many outputs it has.

    Args:
        built: in eval mode, on the CPU.

    Raises:
        ModelError: it cannot be attacked, compared, or stored.
    """

    def refuse(what: str) -> ModelError:
        return ModelError(f"model {model.key!r}: the network of {model.module} {what}")

    # Fresh weights may overflow in eval mode, where no batch norm has seen an image; they will be replaced.
    is_ready = model.weights == "own"
    for name, tensor in built.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise refuse(f"has a state dict that holds {_kind(tensor)} ({name}); only tensors can be stored")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise refuse(
                f"computes in {tensor.dtype} ({name}), not float32: the study's precision decides; .float() it"
            )
        if is_ready and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise refuse(f"has weights that are NaN or infinite ({name})")
    side = model.data.input_size_px
    assert side is not None
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    try:
        with torch.enable_grad():
            logits, again = built(images), built(images)
    except (Exception, SystemExit) as error:
        raise refuse(f"does not take {side} x {side} images (data.input_size_px): {_told(error, model)}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
        raise refuse(f"gives {_kind(logits)}{shape} for 2 images, not logits of shape (2, classes)")
    if logits.dtype != torch.float32:
        raise refuse(f"gives {logits.dtype} logits for float32 images, not float32 ones")
    if is_ready and not torch.isfinite(logits).all():
        raise refuse("gives logits that are NaN or infinite")
    if not torch.equal(logits.nan_to_num(), again.nan_to_num()):
        raise refuse("answers the same images differently each time: does it ignore eval()?")
    if not logits.requires_grad or torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] is None:
        raise refuse("lets no gradient through to its images (detach? no_grad?), so it cannot be attacked")
    return logits.shape[1]


def _names(model: Model) -> tuple[str, str]:
    assert model.module is not None
    name, _, function = model.module.partition(":")
    return name, function


def _imported(model: Model, name: str) -> ModuleType:
    """The module, from the entry's folder first, then from where Python looks anyway."""
    assert model.module_folder is not None
    folder = Path(model.module_folder)
    # For good: a function may import more as it runs. As for a script in that folder, it comes first; but never the
    # packages of another Python.
    if folder.is_dir() and str(folder) not in sys.path and not model.module_is_installed:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
    if not model.module_is_installed:
        _check_helpers(model, folder)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ModelError(
                f"model {model.key!r}: there is no module {name!r} in {folder}, nor where Python looks (PYTHONPATH, "
                "installed packages); set module_folder"
            ) from error
        raise ModelError(f"model {model.key!r}: importing {name!r} failed: {_told(error, model)}") from error
    meant = [file for file in model.module_files if file.is_file()]
    if meant and not any(file.samefile(module.__file__ or "/") for file in meant):
        raise ModelError(
            f"model {model.key!r}: {meant[0]} is meant, but {name!r} is {module.__file__} already: rename one of them"
        )
    return module


_folders: set[Path] = set()
"""That networks of this process have come from."""


def _check_helpers(model: Model, folder: Path) -> None:
    """No file beside the module may be hidden by one of that name beside another entry's module."""
    files = {path.stem: path for path in folder.glob("*.py")}
    files |= {path.parent.name: path for path in folder.glob("*/__init__.py")}
    for name in sorted(files.keys() & sys.modules.keys()):
        source = Path(sys.modules[name].__file__ or "/").resolve()
        if source != files[name].resolve() and any(other in source.parents for other in _folders):
            raise ModelError(
                f"model {model.key!r}: {name!r} in {folder} would be {source}, which another model's module has "
                "imported: rename one of them, or move both modules into one folder"
            )
    _folders.add(folder.resolve())


def _check_sha256(model: Model, source: Path) -> str:
    found = file_sha256(source)
    if model.module_sha256 not in (None, found):
        raise ModelError(f"model {model.key!r}: {source} has SHA-256 {found}, the study says {model.module_sha256}")
    return found


def _told(error: BaseException, model: Model) -> str:
    """An error with the line of one's own code that it came from, as far as it did."""
    first = (str(error).strip().splitlines() or [""])[0]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if model.module_folder and frame.filename.startswith(model.module_folder)]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {first}{where}"


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
