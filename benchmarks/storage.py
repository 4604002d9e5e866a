"""Part `storage`: our adversarial files against the other ways to keep the same images.

Ours is timed as it is used: with checksums, flushed to the disk and read back before it gets its name. The others
are timed as they are used, too: without any of that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.utils import save_image

from benchmarks.measures import OURS, Check, Measure, Part
from benchmarks.options import Options
from benchmarks.rounds import seconds_in_rounds
from benchmarks.victims import photos
from simhpc.store import adversarial
from simhpc.store.adversarial import AdversarialSet
from simhpc.store.provenance import Provenance

Images = NDArray[np.uint8]

_EPS_255 = 8


@dataclass(frozen=True)
class Format:
    """A way to keep uint8 (N, 3, S, S) images below a path (a file or a folder), and to have them again."""

    write: Callable[[Path, Images], None]
    read: Callable[[Path], Images]


def measure(options: Options, scratch: Path) -> Part:
    """MB/s of 8-bit pixels written and read (from the page cache), and the size on disk."""
    n = 8 if options.quick else 200
    images = adversarial_like(n, 224)
    folder = scratch / "storage"
    folder.mkdir()
    megabytes = images.nbytes / 1e6
    part = Part(facts={"images": n, "MB of pixels": megabytes})

    def fresh(name: str) -> Path:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        return path

    def write(name: str) -> None:
        FORMATS[name].write(fresh(name), images)

    def read(name: str) -> None:
        FORMATS[name].read(folder / name)

    for name, each in FORMATS.items():
        write(name)
        same = np.array_equal(each.read(folder / name), images)
        part.checks.append(Check(f"{name} gives back what was written", same, f"{n} images"))
    for what, work in (("write", write), ("read", read)):
        taken_s = seconds_in_rounds(
            {name: partial(work, name) for name in FORMATS}, options.repetitions, torch.device("cpu")
        )
        rates = {name: [megabytes / s for s in times_s] for name, times_s in taken_s.items()}
        part.measures.append(Measure(f"storage_{what}", "MB/s", "224 px photographs", rates))
    sizes = {name: [100.0 * _bytes_below(folder / name) / images.nbytes] for name in FORMATS}
    part.measures.append(Measure("storage_size", "% of the pixels' bytes", "224 px photographs", sizes))
    shutil.rmtree(folder)
    return part


def adversarial_like(n: int, size_px: int) -> Images:
    """Photographs with a perturbation like PGD's: most pixels at one of the two ends of the ball."""
    random = np.random.default_rng(0)
    clean = photos(n, size_px).astype(np.int16)
    change = np.rint(_EPS_255 * np.clip(random.normal(0.0, 1.5, clean.shape), -1.0, 1.0)).astype(np.int16)
    images: Images = np.clip(clean + change, 0, 255).astype(np.uint8)
    return images


def _write_ours(path: Path, images: Images) -> None:
    n = len(images)
    AdversarialSet(
        provenance=Provenance(
            "benchmark",
            "none",
            "0",
            "0",
            "0",
            "0",
            "{}",
            "0",
            1,
            0,
            "float32",
            "none",
            "cpu",
            1,
            "none",
            "none",
            "none",
        ),
        images=images,
        index=np.arange(n, dtype=np.int32),
        clean_pred=np.zeros(n, dtype=np.int32),
        clean_margin=np.ones(n, dtype=np.float16),
        clean_probabilities=np.ones((n, 1), dtype=np.float16),
        adv_pred=np.ones(n, dtype=np.int32),
        n_fooled=n,
    ).save(path)


def _read_ours(path: Path) -> Images:
    return adversarial.load(path).images


def _write_png(path: Path, images: Images) -> None:
    path.mkdir()
    for position, image in enumerate(images):
        save_image(torch.from_numpy(image).float() / 255.0, path / f"{position:06d}.png")


def _read_png(path: Path) -> Images:
    return np.stack([np.asarray(Image.open(each)).transpose(2, 0, 1) for each in sorted(path.iterdir())])


def _write_npy(path: Path, images: Images) -> None:
    with path.open("wb") as file:
        np.save(file, images)


def _read_npy(path: Path) -> Images:
    with path.open("rb") as file:
        images: Images = np.load(file)
    return images


def _write_npz(path: Path, images: Images) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, images=images)


def _read_npz(path: Path) -> Images:
    with np.load(path) as file:
        images: Images = file["images"]
    return images


def _write_torch(path: Path, images: Images) -> None:
    torch.save(torch.from_numpy(images).float() / 255.0, path)


def _read_torch(path: Path) -> Images:
    images: Images = (torch.load(path) * 255.0).round().to(torch.uint8).numpy()
    return images


def _write_gzip(path: Path, images: Images) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, compression="gzip", chunks=(1, *images.shape[1:]))


def _read_gzip(path: Path) -> Images:
    with h5py.File(path, "r") as file:
        images: Images = file["images"][...]
    return images


FORMATS = {
    OURS: Format(_write_ours, _read_ours),
    "PNG files": Format(_write_png, _read_png),
    ".npy": Format(_write_npy, _read_npy),
    ".npz compressed": Format(_write_npz, _read_npz),
    "torch.save float32": Format(_write_torch, _read_torch),
    "HDF5 gzip": Format(_write_gzip, _read_gzip),
}


def _bytes_below(path: Path) -> int:
    return sum(each.stat().st_size for each in path.iterdir()) if path.is_dir() else path.stat().st_size
