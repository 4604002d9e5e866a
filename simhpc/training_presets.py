"""Published training recipes, as keys of [training]: `preset = "deit"` fills in what a study does not say itself.

The numbers are those of the papers and of the authors' code; docs/study.md says what is left out. Images per step and
learning rate belong together: `batch_size` counts the images of all processes. Each preset names all keys that any of
them does, so that nothing of one is left where a model takes another.
"""

from __future__ import annotations

from typing import Any

_MIXED: dict[str, Any] = {
    "warmup_epochs": 5.0,
    "crop_scale": [0.08, 1.0],
    "crop_ratio": [3 / 4, 4 / 3],
    "hflip_prob": 0.5,
    "cutmix_alpha": 1.0,
}

# Wightman, Touvron and Jegou, "ResNet strikes back" (arXiv:2110.00476), table 2. Warm-up and final learning rate, and
# the threshold of the binary cross-entropy, are of timm's command lines for it.
_RSB: dict[str, Any] = {
    **_MIXED,
    "batch_size": 2048,
    "optimizer": "lamb",
    "lr": 5e-3,
    "warmup_lr": 1e-4,
    "min_lr": 1e-6,
    "weight_decay": 0.02,
    "loss": "bce",
    "bce_target_threshold": 0.2,
    "label_smoothing": 0.0,
    "drop_path_rate": 0.05,
    "auto_augment": "rand-m7-mstd0.5-inc1",
    "mixup_alpha": 0.1,
    "repeated_augmentation": 3,
    "random_erasing_prob": 0.0,
    "random_erasing_mode": "const",
}

PRESETS: dict[str, dict[str, Any]] = {
    # Touvron et al., "Training data-efficient image transformers" (arXiv:2012.12877), table 9, and the defaults of its
    # main.py (5e-4 for 512 images; no averaged weights in the table).
    "deit": {
        **_MIXED,
        "epochs": 300,
        "batch_size": 1024,
        "optimizer": "adamw",
        "lr": 1e-3,
        "warmup_lr": 1e-6,
        "min_lr": 1e-5,
        "weight_decay": 0.05,
        "loss": "ce",
        "bce_target_threshold": 0.0,
        "label_smoothing": 0.1,
        "drop_path_rate": 0.1,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "mixup_alpha": 0.8,
        "repeated_augmentation": 3,
        "random_erasing_prob": 0.25,
        "random_erasing_mode": "pixel",
    },
    "rsb-a1": {**_RSB, "epochs": 600, "weight_decay": 0.01, "label_smoothing": 0.1, "mixup_alpha": 0.2},
    "rsb-a2": {**_RSB, "epochs": 300},
    "rsb-a3": {
        **_RSB,
        "epochs": 100,
        "lr": 8e-3,
        "drop_path_rate": 0.0,
        "auto_augment": "rand-m6-mstd0.5-inc1",
        "repeated_augmentation": 1,
    },
    # Ours: tiny models on small images, on a CPU. It leaves open where the warm-up begins (a hundredth of whatever the
    # learning rate is) and whether images are flipped (digits are not).
    "small": {
        "epochs": 12,
        "batch_size": 64,
        "optimizer": "adamw",
        "lr": 2e-3,
        "min_lr": 0.0,
        "weight_decay": 0.05,
        "warmup_epochs": 1.0,
        "loss": "ce",
        "bce_target_threshold": 0.0,
        "label_smoothing": 0.0,
        "drop_path_rate": 0.0,
        "crop_scale": [0.7, 1.0],
        "crop_ratio": [0.8, 1.25],
        "auto_augment": None,
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
        "repeated_augmentation": 1,
        "random_erasing_prob": 0.0,
        "random_erasing_mode": "const",
    },
}
