"""The same few photographs-to-be in every layout in which ImageNet is handed around."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from scipy.io import savemat

from simhpc.images.labels import imagenet_synsets
from simhpc.study import Images

# Neither neighbours nor in the order in which their images are numbered.
INDICES = (207, 0, 999, 281, 340)
PER_CLASS = 4
SIDE_PX = 12


@dataclass(frozen=True)
class Photo:
    name: str
    index: int
    jpeg: bytes

    @property
    def synset(self) -> str:
        return imagenet_synsets()[self.index]


def photos() -> list[Photo]:
    """Validation images: numbered across classes, as the real ones are."""
    random = np.random.default_rng(0)
    indices = random.permutation(np.repeat(INDICES, PER_CLASS))
    made = []
    for number, index in enumerate(indices.tolist(), start=1):
        stream = io.BytesIO()
        pixels = random.integers(0, 256, (20, 12 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "JPEG")
        made.append(Photo(f"ILSVRC2012_val_{number:08d}", index, stream.getvalue()))
    return made


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_file(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def devkit_ids() -> dict[str, int]:
    """The devkit numbers the synsets from 1 on in an order of its own."""
    order = np.random.default_rng(1).permutation(1000)
    return {imagenet_synsets()[index]: number for number, index in enumerate(order.tolist(), start=1)}


def write_meta_mat(path: Path) -> None:
    rows = [(number, synset, 0) for synset, number in devkit_ids().items()]
    rows += [(1001, "n00001740", 2), (1002, "n00001930", 1000)]  # groups of classes
    synsets = np.empty((len(rows), 1), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    for row, values in enumerate(rows):
        synsets[row, 0] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"synsets": synsets})


def folder(root: Path) -> dict[str, str]:
    for photo in photos():
        write_file(root / photo.synset / f"{photo.name}.JPEG", photo.jpeg)
    return {"source": f"folder:{root}", "labels": "imagenet"}


def _flat_folder(root: Path) -> str:
    for photo in photos():
        write_file(root / "val" / f"{photo.name}.JPEG", photo.jpeg)
    return f"flat:{root / 'val'}"


def flat_devkit(root: Path) -> dict[str, str]:
    write_meta_mat(root / "devkit" / "meta.mat")
    lines = [f"{devkit_ids()[photo.synset]}\n" for photo in photos()]
    truth = write_file(root / "devkit" / "ILSVRC2012_validation_ground_truth.txt", "".join(lines))
    return {"source": _flat_folder(root), "labels": "imagenet", "ground_truth": str(truth)}


def flat_devkit_text(root: Path) -> dict[str, str]:
    lines = [f"{synset} {number} some_name\n" for synset, number in devkit_ids().items()]
    write_file(root / "devkit" / "map_clsloc.txt", "".join(lines))
    lines = [f"{devkit_ids()[photo.synset]}\n" for photo in photos()]
    truth = write_file(root / "devkit" / "ILSVRC2015_clsloc_validation_ground_truth.txt", "".join(lines))
    return {"source": _flat_folder(root), "labels": "imagenet", "ground_truth": str(truth)}


def flat_synset_lines(root: Path) -> dict[str, str]:
    truth = write_file(root / "synsets.txt", "".join(f"{photo.synset}\n" for photo in photos()))
    return {"source": _flat_folder(root), "labels": "imagenet", "ground_truth": str(truth)}


def flat_caffe(root: Path) -> dict[str, str]:
    lines = [f"{photo.name}.JPEG {photo.index}\n" for photo in reversed(photos())]
    # Caffe's file is of all images; here some are not there.
    truth = write_file(root / "val.txt", "".join([*lines, "ILSVRC2012_val_00050000.JPEG 355\n"]))
    return {"source": _flat_folder(root), "labels": "index", "ground_truth": str(truth)}


def flat_kaggle(root: Path) -> dict[str, str]:
    lines = [f"{photo.name},{photo.synset} 85 1 499 272 {photo.synset} 2 3 4 5 \n" for photo in reversed(photos())]
    truth = write_file(root / "val" / "LOC_val_solution.csv", "".join(["ImageId,PredictionString\n", *lines]))
    return {"source": _flat_folder(root), "labels": "imagenet", "ground_truth": str(truth)}


def flat_tar(root: Path) -> dict[str, str]:
    files = [(f"{photo.name}.JPEG", photo.jpeg) for photo in reversed(photos())]
    tar = write_tar(root / "ILSVRC2012_img_val.tar", files)
    return {**flat_devkit(root / "more"), "source": f"flat:{tar}"}


def tar_of_folders(root: Path) -> dict[str, str]:
    files = [(f"./val/{photo.synset}/{photo.name}.JPEG", photo.jpeg) for photo in photos()]
    return {"source": f"tar:{write_tar(root / 'val.tar', files)}", "labels": "imagenet"}


def shards_of_folders(root: Path) -> dict[str, str]:
    files = [(f"{photo.synset}/{photo.name}.JPEG", photo.jpeg) for photo in photos()]
    for shard in range(3):
        write_tar(root / f"val-{shard:04d}.tar", files[shard::3])
    return {"source": f"tar:{root}", "labels": "imagenet"}


def tar_per_class(root: Path) -> dict[str, str]:
    for index in INDICES:
        files = [(f"{photo.name}.JPEG", photo.jpeg) for photo in photos() if photo.index == index]
        write_tar(root / f"{imagenet_synsets()[index]}.tar", files)
    return {"source": f"tar:{root}", "labels": "imagenet"}


def webdataset(root: Path) -> dict[str, str]:
    for shard in range(3):
        files = [
            (f"{photo.name}.{field}", data)
            for photo in photos()[shard::3]
            for field, data in (("jpg", photo.jpeg), ("cls", f"{photo.index}\n".encode()), ("json", b'{"width": 1}'))
        ]
        write_tar(root / f"imagenet1k-validation-{shard:02d}.tar", files)
    write_tar(root / "imagenet1k-train-0000.tar", [("a.jpg", photos()[0].jpeg), ("a.cls", b"0")])
    return {"source": f"tar:{root}/imagenet1k-validation-*.tar", "labels": "index"}


def webdataset_json(root: Path) -> dict[str, str]:
    files = [
        (f"{photo.name}.{field}", data)
        for photo in photos()
        for field, data in (("jpeg", photo.jpeg), ("json", json.dumps({"label": photo.synset}).encode()))
    ]
    return {"source": f"tar:{write_tar(root / 'val.tar', files)}", "labels": "imagenet"}


def hf_table(
    images: Sequence[Photo], class_names: Sequence[str], path_of: Callable[[Photo], str | None]
) -> pyarrow.Table:
    columns = {
        "image": pyarrow.array([{"bytes": photo.jpeg, "path": path_of(photo)} for photo in images]),
        "label": pyarrow.array([photo.index for photo in images], pyarrow.int64()),
    }
    features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    return pyarrow.table(columns).replace_schema_metadata(described)


def hf_path(photo: Photo) -> str:
    """Hugging Face's ImageNet has the synset in the name."""
    return f"{photo.name}_{photo.synset}.JPEG"


def parquet(root: Path, class_names: Sequence[str] | None = None) -> dict[str, str]:
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        # As on the hub: not in the order of their names.
        table = hf_table(photos()[::-1][shard::2], class_names or imagenet_synsets(), hf_path)
        pyarrow.parquet.write_table(table, root / f"validation-{shard:05d}-of-00002.parquet", row_group_size=3)
    return {"source": f"hf:{root}", "labels": "imagenet"}


def parquet_in_words(root: Path) -> dict[str, str]:
    from simhpc.zoo.timm_import import timm

    words = timm.data.ImageNetInfo().label_descriptions()
    words[517] = "crane2"
    return parquet(root, words)


def parquet_by_number(root: Path) -> dict[str, str]:
    return {**parquet(root), "labels": "index"}


def arrow(root: Path, *, is_stream: bool = True) -> dict[str, str]:
    root.mkdir(parents=True, exist_ok=True)
    table = hf_table(photos(), imagenet_synsets(), hf_path)
    path = root / "data-00000-of-00001.arrow"
    # `datasets` writes streams, others files.
    new = pyarrow.ipc.new_stream if is_stream else pyarrow.ipc.new_file
    with pyarrow.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=6)
    write_file(root / "state.json", "{}")
    return {"source": f"hf:{root}", "labels": "imagenet"}


def arrow_file(root: Path) -> dict[str, str]:
    return arrow(root, is_stream=False)


LAYOUTS: tuple[Callable[[Path], dict[str, str]], ...] = (
    folder,
    flat_devkit,
    flat_devkit_text,
    flat_synset_lines,
    flat_caffe,
    flat_kaggle,
    flat_tar,
    tar_of_folders,
    shards_of_folders,
    tar_per_class,
    webdataset,
    webdataset_json,
    parquet,
    parquet_in_words,
    parquet_by_number,
    arrow,
    arrow_file,
)


def images(spec: dict[str, str], n: int = 10, **more: object) -> Images:
    return Images.model_validate({"n": n, "size_px": SIDE_PX, **spec, **more})
