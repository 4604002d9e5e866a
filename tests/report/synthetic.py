"""A run directory of the paper's 69 models, or some of them, without a network: planted families, made-up images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from simhpc.analysis import similarity as analysis
from simhpc.analysis.clusters import distances
from simhpc.report import tables
from simhpc.report.page.content import Analysis, Content, Grouping, ModelRow, Tree
from simhpc.rundir import Run, RunDir, open_run
from simhpc.store.adversarial import AdversarialSet
from simhpc.store.image_set import ImageSet, identity
from simhpc.store.provenance import Provenance
from simhpc.store.similarity import SimilarityMatrix
from simhpc.study import DataConfig, Study, dump_study, load_study
from simhpc.zoo.components.table import labelled

JOB = Path(__file__).parents[2] / "jobs" / "imagenet69.toml"
EPS = 8


def study_of(n_models: int, size_px: int = 224) -> Study:
    """The paper's study, cut to its first models, with a complete data config for each."""
    study = load_study(JOB)
    data = DataConfig(
        input_size_px=size_px, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", crop_pct=0.875
    )
    models = tuple(model.model_copy(update={"data": data}) for model in study.models[:n_models])
    images = study.images.model_copy(update={"n": 12, "size_px": 256})
    return study.model_copy(update={"models": models, "images": images})


def matrix_of(study: Study, n_images: int = 5000, seed: int = 0) -> SimilarityMatrix:
    """Counts of images drawn at random: two of one family fool each other more often than two of different ones."""
    random = np.random.default_rng(seed)
    keys = [model.key for model in study.models]
    m = len(keys)
    family = np.array([labelled()[key].row()["Base architecture"] for key in keys])
    common = random.integers(int(0.6 * n_images), int(0.8 * n_images), (m, m))
    common = np.triu(common) + np.triu(common, 1).T
    rate = np.where(family[:, None] == family, 0.25, 0.08) * np.exp(random.normal(0, 0.4, (m, m)))
    np.fill_diagonal(rate, 0.99)
    fooled = random.binomial(common, np.minimum(rate, 1.0))
    both = np.maximum(np.minimum(fooled, fooled.T) // 2, fooled + fooled.T - common)
    np.fill_diagonal(both, np.diag(fooled))
    counts = analysis.PairCounts(common, fooled, both)
    low, high = analysis.bootstrap_intervals(counts, floor_percent=0.01, confidence=0.95)
    return SimilarityMatrix(
        models=keys,
        timm_names=[model.timm_name for model in study.models],
        sat=analysis.sat_matrix(counts, 0.01),
        ci_low=low,
        ci_high=high,
        n_common=common,
        n_fooled=fooled,
        n_both=both,
        clean_accuracy=random.uniform(0.75, 0.88, m),
        n_images=n_images,
        floor_percent=0.01,
        confidence=0.95,
        inputs_sha256="0" * 64,
        problems=[],
        notes=[],
    )


def content_of(n_models: int, **changes: Any) -> Content:
    """What a report of the matrix shows, with clusters that are the families, and no files."""
    study = study_of(n_models)
    matrix = matrix_of(study)
    own = [labelled()[key].row()["Base architecture"] for key in matrix.models]
    numbers = {family: k for k, family in enumerate(sorted(set(own)), 1)}
    linkage = hierarchy.linkage(squareform(distances(matrix.sat), checks=False), method="average")
    content = Content(
        title=study.name,
        matrix=matrix,
        facts=[("models", str(n_models))],
        models=[
            ModelRow(key, name, family) for key, name, family in zip(matrix.models, matrix.timm_names, own, strict=True)
        ],
        provenance=[("seed", "0")],
        hashes=[("matrix", "0" * 64)],
        files=[],
        orders={"cluster": sorted(range(n_models), key=lambda k: own[k]), "as given": list(range(n_models))},
        grouping=Grouping(
            cluster_of={key: numbers[family] for key, family in zip(matrix.models, own, strict=True)},
            stability=dict.fromkeys(matrix.models, 1.0),
            tree=Tree(matrix.models, linkage.tolist(), float(matrix.sat[~np.eye(n_models, dtype=bool)].max())),
        ),
        analyses=[Analysis("clusters", "Clusters", "Groups of alike models.")],
    )
    return dataclasses.replace(content, **changes)


def synthetic_run(root: Path, n_models: int = 69, n_attacked: int = 6) -> Run:
    """A run directory with the matrix, its tables, the components, 12 photographs' worth of noise, and attacks on some.

    Args:
        n_attacked: of so many models there are attacked images.
    """
    study, where = study_of(n_models), RunDir(root)
    root.mkdir(parents=True)
    where.study.write_text(dump_study(study))
    matrix = matrix_of(study)
    matrix.save(where.similarity)
    tables.write_similarity(matrix, where.similarity_csv)
    tables.write_pairs(matrix, where.pairs_csv)
    tables.write_models(matrix, where.models_csv)
    rows = {key: labelled()[key].row() for key in matrix.models}
    columns = list(next(iter(rows.values())))
    cells = ([key, *row.values()] for key, row in rows.items())
    tables.write_csv(where.analysis("components.csv"), ["Model name", *columns], cells)
    run = open_run(root)
    _write_images(run, n_attacked)
    return run


def _write_images(run: Run, n_attacked: int) -> None:
    from simhpc.zoo.geometry import clean_view

    n, side = run.study.images.n, run.study.images.size_px
    random = np.random.default_rng(1)
    coarse = random.integers(0, 256, (n, 3, 8, 8)).repeat(side // 8, axis=2).repeat(side // 8, axis=3)
    images = np.clip(coarse + random.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)
    ImageSet(
        images=images,
        labels=np.arange(n, dtype=np.int32) // 2,
        ids=[f"val-{k:05d}.JPEG" for k in range(n)],
        content_ids=[str(k) for k in range(n)],
        classes=[f"class {k}" for k in range(20)],
        source=run.study.images.source,
        settings_sha256=run.study.settings_sha256(),
    ).save(run.dir.images)
    spread = np.linspace(0, len(run.study.models) - 1, n_attacked).astype(int)
    for model in (run.study.models[k] for k in spread):
        index = np.arange(2, n, dtype=np.int32)  # the first two are not classified correctly
        clean = clean_view(images[index], model.data)
        noise = random.integers(-EPS, EPS + 1, clean.shape)
        labels = np.arange(n, dtype=np.int32) // 2
        provenance = Provenance(
            model=model.key,
            timm_name=model.timm_name,
            model_sha256=model.sha256(),
            weights_sha256="1" * 64,
            study_sha256=run.study.settings_sha256(),
            images_sha256=identity(run.dir.images),
            attack=json.dumps(run.study.attack.model_dump(mode="json")),
            attack_code_sha256="2" * 64,
            batch_size=64,
            seed=0,
            precision="float32",
            engine="as built by timm",
            device="cpu",
            threads=1,
            torch="0",
            timm="0",
            container="none",
        )
        AdversarialSet(
            provenance=provenance,
            images=np.clip(clean + noise, 0, 255).astype(np.uint8),
            index=index,
            clean_pred=labels,
            clean_margin=np.ones(n, dtype=np.float16),
            clean_probabilities=np.eye(20, dtype=np.float16)[labels],
            adv_pred=(labels[index] + 1).astype(np.int32),
            n_fooled=len(index),
        ).save(run.dir.adversarial(model.key))
