"""What the report shows, as plain data: gathered by `simhpc.offline.report`, laid out by `document`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from simhpc.report.page.pictures import data_uri
from simhpc.store.similarity import SimilarityMatrix


@dataclass(frozen=True)
class ModelRow:
    """What is known of one model beside the matrix.

    Attributes:
        family: for marks and the order by family; empty unknown.
        weights: where its weights are from, in the study's words; empty unknown.
        weights_sha256, device, engine: of its predictions' provenance; empty unknown.
    """

    key: str
    timm_name: str
    family: str = ""
    weights: str = ""
    weights_sha256: str = ""
    device: str = ""
    engine: str = ""


@dataclass(frozen=True)
class Tree:
    """A dendrogram.

    Attributes:
        models: N keys.
        linkage: (N - 1, 4), scipy's.
        sat_at_height_0: see `analysis.clusters.Clusters.height_at_zero`.
    """

    models: list[str]
    linkage: list[list[float]]
    sat_at_height_0: float


@dataclass(frozen=True)
class Grouping:
    """The clusters of an analysis that is of this matrix.

    Attributes:
        cluster_of: number, from 1, by model key; models that were left out have none.
        stability: in [0, 1], by model key.
    """

    cluster_of: dict[str, int]
    stability: dict[str, float]
    tree: Tree


@dataclass(frozen=True)
class Table:
    """A small table; cells as they are to stand there."""

    caption: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class File:
    """A file that can be had from the page, unless that would grow too large (`document.render`).

    Attributes:
        name: with its folder, relative to the run.
    """

    name: str
    path: Path
    n_bytes: int

    @property
    def size(self) -> str:
        return f"{self.n_bytes / 1e6:.1f} MB" if self.n_bytes >= 1e6 else f"{max(1, round(self.n_bytes / 1e3))} kB"

    def uri(self) -> str:
        """The whole file as a `data:` URI."""
        kinds = {".csv": "text/csv", ".svg": "image/svg+xml", ".png": "image/png"}
        return data_uri(self.path.read_bytes(), kinds[self.path.suffix])


@dataclass(frozen=True)
class Analysis:
    """What one analysis found, or why that is not shown.

    Attributes:
        absent: why not; empty if it is shown.
        facts: its figures in words, name and value.
    """

    name: str
    title: str
    explanation: str
    absent: str = ""
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    settings: Sequence[tuple[str, str]] = ()
    figure: File | None = None
    files: Sequence[File] = ()


@dataclass(frozen=True)
class Attacked:
    """One image as one model sees it. The pictures are `data:` URIs of PNGs.

    Attributes:
        answer: class that the model gives the attacked image.
        is_fooled: whether that is wrong.
    """

    model: str
    clean: str
    adversarial: str
    difference: str
    answer: str
    is_fooled: bool


@dataclass(frozen=True)
class Example:
    """One image of the image set, attacked against several models.

    Attributes:
        name: its id.
        label: true class.
    """

    name: str
    label: str
    attacked: Sequence[Attacked]


@dataclass(frozen=True)
class Examples:
    """Attacked images.

    Attributes:
        absent: why there are none; empty if there are.
        magnification: by which differences are multiplied.
        step: of a picture's pixels every so many are shown, in both directions.
    """

    absent: str = ""
    examples: Sequence[Example] = ()
    magnification: int = 1
    step: int = 1


@dataclass(frozen=True)
class Content:
    """The whole report.

    Attributes:
        title: name of the study, or of the matrix.
        facts: summary, name and value.
        models: as many as the matrix has, in its order.
        orders: name to positions of all models; the first one is shown first.
        grouping: None if no clusters of this matrix are known.
        analyses: by name of its section; the one named `clusters` stands beside the tree.
        examples: None for a matrix from elsewhere.
        provenance: name and value.
        hashes: of what, and which.
        files: tables of the run itself.
    """

    title: str
    matrix: SimilarityMatrix
    facts: Sequence[tuple[str, str]]
    models: Sequence[ModelRow]
    provenance: Sequence[tuple[str, str]]
    hashes: Sequence[tuple[str, str]]
    files: Sequence[File]
    examples: Examples | None = None
    orders: dict[str, list[int]] = field(default_factory=dict)
    grouping: Grouping | None = None
    analyses: Sequence[Analysis] = ()

    def all_files(self) -> list[File]:
        """Figures and tables, those of the run and those of the analyses."""
        figures = [analysis.figure for analysis in self.analyses if analysis.figure]
        return [*figures, *(file for analysis in self.analyses for file in analysis.files), *self.files]
