"""Groups of alike models: spectral clustering of the similarity matrix, and how far it can be trusted.

Method and readings: docs/analyses.md, "Clusters". k-means starts at random, and on a matrix without sharp groups the
start alone changes who is with whom. So it is run many times, and what is reported is the consensus of the runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from simhpc.errors import AnalysisError
from simhpc.seeds import derive_seed

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

_FEWEST_MODELS = 3
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Settings:
    """How models are clustered.

    Attributes:
        k: number of clusters; None: the one with the largest silhouette.
        most: largest number that is tried then.
        runs: of k-means, each from its own seed; the consensus is of these.
        starts: of each run, the best of which is the run's: scikit-learn's number.
        shuffles: of the pairs, to see what chance gives.
        seed: what theirs are derived from.
    """

    k: int | None = None
    most: int = 15
    runs: int = 100
    starts: int = 10
    shuffles: int = 99
    seed: int = 0


@dataclass(frozen=True)
class Choice:
    """What speaks for k clusters.

    Attributes:
        eigengap: the k-th largest eigenvalue of the normalised affinity minus the next.
        silhouette: mean over models, in [-1, 1], on the tree's distance (Rousseeuw 1987).
    """

    k: int
    eigengap: float
    silhouette: float


@dataclass(frozen=True)
class Clusters:
    """Clusters of the N models that could be used.

    Attributes:
        kept: int64 (N,), their positions in the matrix that was given; everything else is in this order.
        left_out: positions of those with unknown similarities.
        labels: int64 (N,), 1 to k; the largest cluster is 1, of equal ones the one with the first model comes first.
        stability: (N,) in [0, 1], see `stabilities`.
        coassignment: (N, N) in [0, 1], share of the runs that put two models together; the diagonal is 1.
        choices: what was found for each number of clusters; a k that was given is among them.
        p_value: whether there are groups at all, see `chance`; NaN where all pairs are equally similar.
        k_by_eigengap, k_by_silhouette: the number that each would choose; 1 where all pairs are equally similar.
        tree: (N - 1, 4), scipy's linkage: average linkage of `distances`.
        height_at_zero: SAT at height 0 of the tree; at height h two branches are on average `height_at_zero - h` alike.
        n_clipped: pairs whose similarity is below 0 and counts as 0.
        notes: what needs a word, one line each.
    """

    kept: Labels
    left_out: Labels
    labels: Labels
    stability: Matrix
    coassignment: Matrix
    choices: list[Choice]
    p_value: float
    k_by_eigengap: int
    k_by_silhouette: int
    tree: Matrix
    height_at_zero: float
    n_clipped: int
    notes: list[str]


def clusters(similarity: Matrix, settings: Settings) -> Clusters:
    """Cluster models by their similarities.

    Args:
        similarity: (M, M), symmetric, NaN unknown; the diagonal is not used.

    Raises:
        AnalysisError: fewer than three models can be used, or not as many as clusters are asked for.
    """
    kept = complete(similarity)
    left_out = np.setdiff1d(np.arange(len(similarity)), kept)
    n, known = len(kept), similarity[np.ix_(kept, kept)].copy()
    if n < _FEWEST_MODELS:
        raise AnalysisError(f"it takes {_FEWEST_MODELS} models whose similarities are all known, there are {n}")
    if settings.k is not None and not 2 <= settings.k < n:
        raise AnalysisError(f"{n} models can be put in 2 to {n - 1} clusters, not in {settings.k}")
    between = known[np.triu_indices(n, k=1)]
    np.fill_diagonal(known, between.max())
    n_clipped = int(np.count_nonzero(between < 0))
    notes = []
    if n_clipped:
        notes.append(
            f"{n_clipped} pair(s) of negative similarity (a fooling rate below 1 %) count as not alike at all, 0"
        )
    distance = distances(known)
    tree = hierarchy.linkage(squareform(distance, checks=False), method="average", optimal_ordering=True)
    if np.ptp(np.maximum(between, 0.0)) == 0:
        notes.append("all pairs count as equally similar: there is nothing to tell clusters by, all models are in one")
        return Clusters(
            kept=kept,
            left_out=left_out,
            labels=np.ones(n, dtype=np.int64),
            stability=np.ones(n),
            coassignment=np.ones((n, n)),
            choices=[],
            p_value=np.nan,
            k_by_eigengap=1,
            k_by_silhouette=1,
            tree=tree,
            height_at_zero=float(between.max()),
            n_clipped=n_clipped,
            notes=notes,
        )
    weights = affinity(known)
    n_parts = int(connected_components(weights > 0, directed=False)[0])
    eigenvalues, vectors = spectrum(weights)
    tried = sorted({*range(2, min(settings.most, n - 1) + 1), *([settings.k] if settings.k else [])})
    choices = []
    for k in tried:
        labels = k_means(
            embedding(vectors, k), k, starts=settings.starts, seed=derive_seed(settings.seed, "clusters", k)
        )
        silhouette = float(silhouette_score(distance, labels, metric="precomputed")) if len(set(labels)) > 1 else -1.0
        choices.append(Choice(k, float(eigenvalues[k - 1] - eigenvalues[k]), silhouette))
    k_by_silhouette = max(choices, key=lambda choice: (choice.silhouette, -choice.k)).k
    k = settings.k or k_by_silhouette
    if n_parts > 1:
        notes.append(f"the models fall into {n_parts} parts with no similarity above 0 between them")
        if n_parts > k:
            notes.append(f"that is more than {k} clusters: which parts share one is arbitrary; see the stability")
    p_value = chance(known, settings)
    if p_value > _SIGNIFICANT:
        notes.append(
            f"these groups may be chance (p = {p_value:.2g}): models that are alike to a third are hardly more alike "
            "than if the similarities were dealt to the pairs at random; the stability is of k-means alone"
        )
    coassignment = coassignments(embedding(vectors, k), k, settings)
    labels = consensus(coassignment, k)
    return Clusters(
        kept=kept,
        left_out=left_out,
        labels=labels,
        stability=stabilities(coassignment, labels),
        coassignment=coassignment,
        choices=choices,
        p_value=p_value,
        k_by_eigengap=max(choices, key=lambda choice: (choice.eigengap, -choice.k)).k,
        k_by_silhouette=k_by_silhouette,
        tree=tree,
        height_at_zero=float(between.max()),
        n_clipped=n_clipped,
        notes=notes,
    )


def complete(similarity: Matrix) -> Labels:
    """Positions of models with no unknown pair among them: the one with most unknown pairs is left out, and so on."""
    unknown = ~np.isfinite(similarity) & ~np.eye(len(similarity), dtype=bool)
    kept = np.arange(len(similarity))
    while (counts := unknown[np.ix_(kept, kept)].sum(axis=1)).any():
        # The last of equals, so that the first model of a study stays.
        kept = np.delete(kept, len(counts) - 1 - np.argmax(counts[::-1]))
    return kept


def affinity(similarity: Matrix) -> Matrix:
    """Non-negative weights (N, N) of the graph: the similarity itself, 0 where it is negative and on the diagonal."""
    weights = np.maximum(similarity, 0.0)
    np.fill_diagonal(weights, 0.0)
    return weights


def distances(similarity: Matrix) -> Matrix:
    """The largest similarity between two models, minus the similarity; 0 on the diagonal. (N, N), >= 0."""
    off_diagonal = ~np.eye(len(similarity), dtype=bool)
    distance: Matrix = similarity[off_diagonal].max() - similarity
    np.fill_diagonal(distance, 0.0)
    return distance


def spectrum(weights: Matrix) -> tuple[Matrix, Matrix]:
    """Eigenvalues, largest first, and eigenvectors (columns) of D^-1/2 W D^-1/2 (Ng, Jordan & Weiss 2002).

    A model with no similarity to any other is a part of its own, with eigenvalue 1.
    """
    degrees = weights.sum(axis=1)
    is_alone = degrees == 0
    scale = 1.0 / np.sqrt(np.where(is_alone, 1.0, degrees))
    values, vectors = np.linalg.eigh(scale[:, None] * weights * scale + np.diag(is_alone.astype(np.float64)))
    return values[::-1], vectors[:, ::-1]


def chance(similarity: Matrix, settings: Settings) -> float:
    """Are there groups at all? A permutation test of `transitivity`.

    What is dealt to the pairs at random is what `without_levels` leaves of their similarities, so that models which are
    more or less alike to all others are no groups. Nor is a pair of alike models: such pairs are in every matrix.

    Args:
        similarity: (N, N), symmetric, N >= 3; the diagonal is not used.

    Returns:
        p, the share of matrices that are as transitive, this one among them.
    """
    left = without_levels(similarity)
    i, j = np.triu_indices(len(left), k=1)
    random = np.random.default_rng(derive_seed(settings.seed, "clusters shuffles"))
    found, as_large = transitivity(left), 1
    for _ in range(settings.shuffles):
        shuffled = np.zeros_like(left)
        shuffled[i, j] = random.permutation(left[i, j])
        as_large += transitivity(without_levels(shuffled + shuffled.T)) >= found - 1e-9
    return as_large / (1 + settings.shuffles)


def without_levels(similarity: Matrix) -> Matrix:
    """What is left of each pair once a constant and a level of either model are fitted by least squares; diagonal 0."""
    n = len(similarity)
    own = similarity.copy()
    np.fill_diagonal(own, 0.0)
    mean = own.sum() / (n * (n - 1))
    level = (own.sum(axis=1) - (n - 1) * mean) / (n - 2)
    left: Matrix = own - mean - (level + level[:, None])
    np.fill_diagonal(left, 0.0)
    return left


def transitivity(left: Matrix) -> float:
    """Are models that are alike to a third also alike to each other? The sum of R_ij R_jk R_ki over all i, j and k.

    In units of the length of R, cubed; 0 where R is but rounding.
    """
    length = float(np.linalg.norm(left))
    return float(((left @ left) * left).sum()) / length**3 if length > 1e-9 * len(left) else 0.0


def embedding(vectors: Matrix, k: int) -> Matrix:
    """Points of the models: the k leading eigenvectors, each row scaled to length 1 (where it is not 0). (N, k)."""
    rows = vectors[:, :k]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    points: Matrix = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 1e-12)
    return points


def k_means(points: Matrix, k: int, *, starts: int, seed: int) -> Labels:
    """Labels (N,), 0 to k - 1, of the best of so many starts."""
    # A start is a millisecond of work; where other things run, threads would wait longer than that for each other.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Fewer different points than clusters: fewer clusters are found.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(n_clusters=k, n_init=starts, random_state=seed % 2**32).fit(points)
    labels: Labels = found.labels_.astype(np.int64)
    return labels


def coassignments(points: Matrix, k: int, settings: Settings) -> Matrix:
    """Share of the runs of k-means in which two models are together: (N, N)."""
    together = np.zeros((len(points), len(points)))
    for run in range(settings.runs):
        labels = k_means(points, k, starts=settings.starts, seed=derive_seed(settings.seed, "clusters", k, run))
        together += labels[:, None] == labels
    return together / settings.runs


def consensus(coassignment: Matrix, k: int) -> Labels:
    """The k clusters of average linkage on 1 - co-assignment (Fred & Jain 2005); numbered as in `Clusters.labels`."""
    tree = hierarchy.linkage(squareform(1.0 - coassignment, checks=False), method="average")
    return numbered(hierarchy.cut_tree(tree, n_clusters=[k])[:, 0])


def numbered(labels: NDArray[np.integer]) -> Labels:
    """The same clusters, numbered from 1 by falling size, then by their first model."""
    _, first, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(1, len(order) + 1)
    return number[inverse]


def stabilities(coassignment: Matrix, labels: Labels) -> Matrix:
    """How sure the runs of k-means are of where each model belongs: (N,) in [0, 1].

    The smaller of two shares: how often it is with the other members of its cluster (mean over them), and how often
    it is not with those of the cluster that it is most often with otherwise. A cluster of one has only the second.
    """
    is_member = labels[:, None] == np.unique(labels)
    counts = is_member.sum(axis=0) - is_member  # of others: a model is not counted with itself
    with_cluster = (coassignment - np.eye(len(labels))) @ is_member / np.maximum(counts, 1)
    inside = np.where((counts > 0) & is_member, with_cluster, 1.0).min(axis=1)
    outside = np.where(is_member, 0.0, with_cluster).max(axis=1)
    stability: Matrix = np.minimum(inside, 1.0 - outside)
    return stability


@dataclass(frozen=True)
class Word:
    """A component's value in one cluster.

    Attributes:
        share: of the cluster's models that have it.
        share_elsewhere: of all other models; NaN if there are none.
        n_clusters: clusters in which a model has it.
        tf_idf: share * ln(number of clusters / n_clusters); 0 for what occurs in all.
    """

    cluster: int
    component: str
    value: str
    share: float
    share_elsewhere: float
    n_clusters: int
    tf_idf: float


def distinctive(labels: Labels, values: Sequence[Sequence[str]], columns: Sequence[str]) -> list[Word]:
    """The components that set clusters apart, by TF-IDF: clusters are the documents, `component=value` the words.

    A document has the words of all its models. Its term frequency is the share of its models that have the word
    (each has one word per component, so counts divided by the document's length differ from it by a constant).

    Args:
        labels: int (N,).
        values: N rows of C values.

    Returns:
        every word that occurs in a cluster; by cluster, then by falling TF-IDF, then by falling share.
    """
    groups = np.unique(labels).tolist()
    table = np.array([list(row) for row in values])
    found = []
    for column, name in zip(table.T, columns, strict=True):
        for value in np.unique(column):
            has = column == value
            shares = {group: float(has[labels == group].mean()) for group in groups}
            n_clusters = sum(share > 0 for share in shares.values())
            for group, share in shares.items():
                if share > 0:
                    rest = has[labels != group]
                    found.append(
                        Word(
                            cluster=int(group),
                            component=name,
                            value=str(value),
                            share=share,
                            share_elsewhere=float(rest.mean()) if len(rest) else np.nan,
                            n_clusters=n_clusters,
                            tf_idf=share * float(np.log(len(groups) / n_clusters)),
                        )
                    )
    return sorted(found, key=lambda word: (word.cluster, -word.tf_idf, -word.share))
