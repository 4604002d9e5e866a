from __future__ import annotations

import pytest
import torch

from simhpc.store import image_set
from simhpc.zoo import build
from simhpc.zoo.geometry import clean_view


@pytest.fixture(scope="session")
def target(finished):
    """A trained classifier with images that it gets right: classifier, uint8 (N, 3, 16, 16), labels (N,)."""
    model = finished.study.model("cnn")
    chosen = image_set.load(finished.dir.images)
    loaded = build.load(model, num_classes=10, trained=finished.dir.checkpoint("cnn"))
    images = torch.from_numpy(clean_view(chosen.images, model.data))
    labels = torch.from_numpy(chosen.labels).long()
    with torch.no_grad():
        right = loaded.classifier(images.float() / 255).argmax(1) == labels
    assert right.sum() >= 20
    return loaded.classifier, images[right], labels[right]
