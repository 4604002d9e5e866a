"""Ways in which the files of a run go bad, each from a seed; and what a run then says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from simhpc import image_list
from simhpc.rundir import Run, open_run
from simhpc.stages import aggregate
from simhpc.store import adversarial, checkpoint, hdf5, image_set, predictions, seal, similarity

Random = np.random.Generator


def reseal(path: Path) -> None:
    """Make a file that was changed, here or through h5py, one that its seal agrees with."""
    seal.seal(path, *hdf5._to_be_sealed(path))


def edit_study(run: Run, old: str, new: str) -> None:
    """Change the frozen study on purpose, as its message tells how."""
    text = run.dir.study.read_text()
    assert old in text
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("# SHA-256")]
    run.dir.study.write_text("".join(lines).replace(old, new))


def edit_frozen(run: Run, **changes: object) -> None:
    """Likewise what stands beside it."""
    stated = json.loads(run.dir.frozen.read_text())
    del stated["sha256"]
    run.dir.frozen.write_text(json.dumps({**stated, **changes}))


def _truncate(path: Path, random: Random) -> None:
    os.truncate(path, int(random.integers(path.stat().st_size)))


def _flip_bit(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << int(random.integers(8))
    path.write_bytes(data)


def _flip_early_bit(path: Path, random: Random) -> None:
    """In the seal, the superblock, the first headers."""
    data = bytearray(path.read_bytes())
    data[random.integers(min(len(data), 3000))] ^= 1 << int(random.integers(8))
    path.write_bytes(data)


def _flip_late_bit(path: Path, random: Random) -> None:
    """In the headers that HDF5 writes last, texts, the seal's table."""
    data = bytearray(path.read_bytes())
    data[-1 - random.integers(min(len(data), 3000))] ^= 1 << int(random.integers(8))
    path.write_bytes(data)


def _change_byte(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] = int(random.integers(256))
    path.write_bytes(data)


def _fill(path: Path, random: Random) -> None:
    """Zeros, ones or noise over a range: a lost sector, a failing disk."""
    data = bytearray(path.read_bytes())
    first, length = int(random.integers(len(data))), int(random.choice([4, 8, 64, 512, 4096]))
    length = len(data[first : first + length])
    data[first : first + length] = [bytes(length), b"\xff" * length, random.bytes(length)][random.integers(3)]
    path.write_bytes(data)


def _move(path: Path, random: Random) -> None:
    """A range copied over another: two sectors mixed up."""
    data = bytearray(path.read_bytes())
    length = min(512, len(data) // 3)
    source, target = (int(at) for at in random.integers(len(data) - length, size=2))
    data[target : target + length] = data[source : source + length]
    path.write_bytes(data)


def _append(path: Path, random: Random) -> None:
    with path.open("ab") as file:
        file.write(random.bytes(int(random.integers(1, 2000))))


def _cut_out(path: Path, random: Random) -> None:
    data = path.read_bytes()
    first = int(random.integers(len(data)))
    path.write_bytes(data[:first] + data[first + int(random.integers(1, 600)) :])


def _other_text(path: Path, random: Random) -> None:
    path.write_text("no data here\n" * int(random.integers(1, 50)))


def _empty(path: Path, random: Random) -> None:
    path.write_bytes(b"")


def _folder(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, random: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _link_to_nothing(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def _link_to_a_device(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _foreign_hdf5(path: Path, random: Random) -> None:
    with h5py.File(path, "w") as file:
        file["images"] = np.arange(10)


def _of_another_model(path: Path, random: Random) -> None:
    others = [other for other in sorted(path.parent.glob(f"*{path.suffix}")) if other != path]
    if not others:
        return _other_text(path, random)
    shutil.copyfile(others[random.integers(len(others))], path)
    return None


def _edited_attribute(path: Path, random: Random) -> None:
    with h5py.File(path, "r+") as file:
        name = sorted(file.attrs)[random.integers(len(file.attrs))]
        file.attrs[name] = "other" if isinstance(file.attrs[name], str) else 3


def _edited_data(path: Path, random: Random) -> None:
    """A number changed by h5py, which makes a new checksum of its chunk; sealed again."""
    with h5py.File(path, "r+") as file:
        numbers = [item for item in _datasets(file) if item.dtype.kind in "uif" and item.size]
        chosen = numbers[random.integers(len(numbers))]
        flat = chosen[...].reshape(-1)
        flat[random.integers(flat.size)] = 1 if flat[0] != 1 else 2
        if np.array_equal(flat, chosen[...].reshape(-1), equal_nan=flat.dtype.kind == "f"):
            flat[0] += 1
        chosen[...] = flat.reshape(chosen.shape)
    reseal(path)


def _other_type(path: Path, random: Random) -> None:
    """A dataset replaced by one of another type or shape; sealed again."""
    with h5py.File(path, "r+") as file:
        found = _datasets(file)
        name = found[random.integers(len(found))].name
        old = file[name]
        new = np.zeros(old.shape, "f8") if random.integers(2) else np.zeros((*old.shape, 2), "i4")
        del file[name]
        file[name] = new
    reseal(path)


def _dataset_gone(path: Path, random: Random) -> None:
    with h5py.File(path, "r+") as file:
        found = _datasets(file)
        del file[found[random.integers(len(found))].name]
    reseal(path)


def _older_version(path: Path, random: Random) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = int(file.attrs["format_version"]) - 1
    reseal(path)


def _of_another_study(path: Path, random: Random) -> None:
    """What a run of another study would have put here: whole, and said to be so."""
    name = ["study_sha256", "model_sha256", "images_sha256", "weights_sha256"][random.integers(4)]
    kind = path.parent.name
    if kind == "adversarial" or kind == "predictions":
        module: Any = adversarial if kind == "adversarial" else predictions
        found = module.load(path)
        replace(found, provenance=replace(found.provenance, **{name: "0" * 64})).save(path)
    elif path.name == "images.h5":
        found = image_set.load(path)
        if random.integers(2):
            replace(found, settings_sha256="0" * 64).save(path)
        else:
            replace(found, images=np.ascontiguousarray(found.images[::-1])).save(path)
    else:
        matrix = similarity.load(path)
        replace(matrix, inputs_sha256="0" * 64).save(path)


def _datasets(file: h5py.File) -> list[h5py.Dataset]:
    found: list[h5py.Dataset] = []
    file.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


ANY: list[Callable[[Path, Random], None]] = [
    _truncate, _flip_bit, _flip_bit, _flip_bit, _flip_early_bit, _flip_late_bit, _change_byte, _fill, _fill, _move,
    _append, _cut_out, _other_text, _empty, _folder, _pipe, _link_to_nothing, _link_to_a_device, _foreign_hdf5,
    _of_another_model,
]  # fmt: skip
HDF5: list[Callable[[Path, Random], None]] = [
    _edited_attribute, _edited_data, _other_type, _dataset_gone, _older_version, _of_another_study,
]  # fmt: skip


def content(path: Path) -> Any:
    """All that a file says, without its bytes: two files of the same content are the same to everybody.

    Raises whatever reading it raises.
    """
    if path.suffix == ".safetensors":
        weights = load_file(path)
        return checkpoint.metadata_of(path), {name: array.tobytes() for name, array in sorted(weights.items())}
    if path.suffix == ".h5":
        kind = {"images.h5": image_set, "similarity.h5": similarity}.get(path.name)
        module: Any = kind or {"adversarial": adversarial, "predictions": predictions}[path.parent.name]
        return repr({name: _plain(value) for name, value in vars(module.load(path)).items()})
    if path.suffix == ".png":
        return np.asarray(Image.open(path)).tobytes()
    if path.name == "images.txt":
        return image_list.read(path)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".toml":
        return open_run(path.parent).study
    return path.read_bytes()


def _plain(value: Any) -> Any:
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def aggregated(root: str) -> tuple[list[str], dict[str, list[Any]]]:
    """Problems and numbers of a run's matrix, computed again."""
    matrix = aggregate.aggregate(open_run(Path(root)), lambda *_: None)
    return matrix.problems, {name: v.tolist() for name, v in vars(matrix).items() if isinstance(v, np.ndarray)}
