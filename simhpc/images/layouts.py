"""Opening an image source: `layout:PATH`, one module per layout."""

from __future__ import annotations

from pathlib import Path

from simhpc.images.digits import Digits
from simhpc.images.source import EncodedImages, Source
from simhpc.study import Images


def open_source(spec: Images, training: str | None = None) -> Source:
    """Open the study's images, or others whose classes are labelled in the same way.

    Args:
        spec: the study's section; its `labels` and `ground_truth` hold for its own source.
        training: another source, as `training.images` names it; `labels` holds for it too.

    Raises:
        ImageSourceError: it cannot be found or read, or is not as its layout has to be; see the layouts.
    """
    source = training or spec.source
    layout, _, path = source.partition(":")
    if layout == "sklearn-digits":
        return Digits()
    if layout == "folder":
        from simhpc.images.folder import class_folders

        listing = class_folders(Path(path))
    elif layout == "flat":
        from simhpc.images.flat import flat

        assert spec.ground_truth is not None
        listing = flat(Path(path), Path(spec.ground_truth))
    elif layout == "tar":
        from simhpc.images.tar import shards

        listing = shards(Path(path))
    else:
        from simhpc.images.huggingface import tables

        listing = tables(Path(path))
    return EncodedImages(listing, spec.labels)
