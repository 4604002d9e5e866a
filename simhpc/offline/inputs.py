"""What the analyses are done of, and what each gives: a run's matrix, or one from elsewhere. Offline."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simhpc import __version__
from simhpc.errors import AnalysisError, MissingInputError, ModelError
from simhpc.report.families import families
from simhpc.report.tables import write_csv
from simhpc.rundir import Run, RunDir
from simhpc.store import named_csv, similarity
from simhpc.store.named_csv import NamedTable
from simhpc.store.similarity import SimilarityMatrix
from simhpc.study import Analysis, Model, Study, Training, differences

Settings = Analysis
"""Options of all analyses: the study's `[analysis]`."""

_MOST_NAMED = 3


@dataclass(frozen=True)
class Other:
    """A finished run to compare the matrix with (`--against`).

    Attributes:
        title: the folder as it was given.
        names, sat: as in `Inputs`.
        differences: of its study from the run's, for the models that both have, one line each.
    """

    title: str
    names: list[str]
    sat: NDArray[np.float64]
    differences: list[str]


@dataclass(frozen=True)
class Inputs:
    """What is analysed.

    Attributes:
        title: for figures.
        names: N models.
        sat: float64 (N, N), symmetric, NaN unknown.
        columns: names of C components; none if there is no table.
        components: C values of each model that they are known of.
        is_table_given: whether those of a run are of a table that the user named (`--components`).
        notes, problems: what was found wrong with the input; a problem makes the exit code 1.
        run: the finished run that the matrix is of; None for a matrix from elsewhere.
        against: other runs to compare it with.
    """

    title: str
    names: list[str]
    sat: NDArray[np.float64]
    columns: list[str] = field(default_factory=list)
    components: dict[str, list[str]] = field(default_factory=dict)
    is_table_given: bool = False
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    run: Run | None = None
    against: tuple[Other, ...] = ()

    @property
    def families(self) -> list[str]:
        """The family of each of the N models, for colours: see `report.families`."""
        timm_names = {model.key: model.timm_name for model in self.run.study.models} if self.run is not None else {}
        return families(self.names, self.columns, self.components, timm_names)


@dataclass(frozen=True)
class Outcome:
    """What one analysis gives.

    Attributes:
        files: what was written.
        result: figures in words.
        notes: what needs a word.
        problems: what was missing or damaged, and done without; makes the exit code 1.
    """

    files: list[Path]
    result: dict[str, Any]
    notes: list[str]
    problems: list[str] = field(default_factory=list)


def inputs_of_run(
    run: Run, out: RunDir, components_csv: Path | None = None, against: Sequence[tuple[str, Run]] = ()
) -> Inputs:
    """The matrix of a finished run, and the components of its models.

    The components are read from the architectures, which takes a second or so each, and kept in
    `analysis/components.csv`; what stands there is believed.

    Args:
        out: where that file is.
        components_csv: a table to take in their place.
        against: names of other runs, and these.

    Raises:
        MissingInputError, BadFileError: the run has no matrix, or a damaged one.
        AnalysisError: the table that was given is wrong.
    """
    matrix = _matrix_of(run)
    others = tuple(_other(run, name, other) for name, other in against)
    problems = [f"the matrix is incomplete: {problem}" for problem in matrix.problems]
    if components_csv is not None:
        table, unread = _read_table(components_csv, matrix.models)
    else:
        wanted = set(matrix.models)
        table, unread = _read_components(
            [model for model in run.study.models if model.key in wanted], out.analysis("components.csv")
        )
    problems += unread
    return Inputs(
        title=run.study.name,
        names=matrix.models,
        sat=matrix.sat,
        columns=table.columns,
        components=of_models(table, matrix.models),
        is_table_given=components_csv is not None,
        notes=[*matrix.notes],
        problems=problems,
        run=run,
        against=others,
    )


def _matrix_of(run: Run) -> SimilarityMatrix:
    try:
        return similarity.load(run.dir.similarity)
    except MissingInputError:
        raise MissingInputError(f"{run.dir.similarity} does not exist: run `simhpc aggregate` first") from None


def _other(run: Run, name: str, other: Run) -> Other:
    matrix = _matrix_of(other)
    ours = [model.key for model in run.study.models if model.key in matrix.models]
    return Other(name, matrix.models, matrix.sat, _differences(run.study, other.study, ours))


def _differences(here: Study, there: Study, keys: Sequence[str]) -> list[str]:
    """What the studies differ in, one line each; what many models differ in is one line too."""

    def of(models: Sequence[str]) -> list[str]:
        # The students are not compared, and what [training] says stands in each model that it is for.
        ours, theirs = (
            study.model_copy(
                update={
                    "name": "",
                    "training": Training(),
                    "models": tuple(study.model(key) for key in models),
                    "distillations": (),
                }
            )
            for study in (here, there)
        )
        return differences(ours, theirs, names=("here", "there"))

    lines = of([])
    by_aspect: dict[str, dict[str, str]] = defaultdict(dict)
    for key in keys:
        for line in of([key])[len(lines) :]:
            by_aspect[line.removeprefix(f"models.{key}.").partition(":")[0]][key] = line
    for aspect, of_models in by_aspect.items():
        if len(of_models) <= _MOST_NAMED:
            lines += of_models.values()
        else:
            named = ", ".join([*of_models][:_MOST_NAMED])
            lines.append(f"{aspect}: differs for {len(of_models)} of {len(keys)} models ({named}, ...)")
    return lines


def inputs_of_files(similarity_csv: Path, components_csv: Path | None) -> Inputs:
    """A matrix and a table from elsewhere. A table that lacks models of the matrix is a problem, and used all the same.

    Raises:
        AnalysisError: one of them is wrong.
    """
    matrix = named_csv.read_matrix(similarity_csv)
    table, problems = NamedTable([], {}), list[str]()
    if components_csv is not None:
        table, problems = _read_table(components_csv, matrix.names)
    return Inputs(
        title=similarity_csv.stem,
        names=matrix.names,
        sat=matrix.values,
        columns=table.columns,
        components=of_models(table, matrix.names),
        notes=[*matrix.notes, *doubts(matrix.values)],
        problems=problems,
    )


def keep_components(inputs: Inputs, out: RunDir) -> list[Path]:
    """Write the components that were given beside the analyses that are made of them: the report has them from there.

    Those of a run do not take the place of what was read from its architectures, or mended by hand. Without
    components, those of an earlier analysis are removed. Returns what was written.
    """
    path = out.analysis("components_given.csv" if inputs.run is not None else "components.csv")
    is_given = inputs.run is None or inputs.is_table_given
    if not (is_given and inputs.components):
        path.unlink(missing_ok=True)
        return []
    write_csv(path, ["Model name", *inputs.columns], ([name, *row] for name, row in inputs.components.items()))
    return [path]


def doubts(sat: NDArray[np.float64]) -> list[str]:
    """What makes a matrix from elsewhere look like something else than SAT."""
    notes, is_diagonal = [], np.eye(len(sat), dtype=bool)
    if np.nanmax(sat, initial=-np.inf) > _LARGEST_SAT + 1e-6:
        notes.append(
            f"the largest similarity is {np.nanmax(sat):.4g}, and no SAT is above ln 100 = {_LARGEST_SAT:.3f}: this is "
            "some other measure, and what is said of SAT and fooling rates does not hold"
        )
    between = sat[~is_diagonal & np.isfinite(sat)]
    if len(between) and np.isfinite(sat[is_diagonal]).all() and sat[is_diagonal].max() < between.min():
        notes.append("every model is less like itself than any two are like each other: are these distances?")
    return notes


_LARGEST_SAT = float(np.log(100.0))


def _read_table(path: Path, names: Sequence[str]) -> tuple[NamedTable, list[str]]:
    """A table that was given, and what is wrong with it for these models; without columns if it has none of them."""
    table = named_csv.read_table(path)
    lacking = table.lacks(names)
    if not lacking:
        return table, []
    problem = f"{path} has no row for {lacking}: what needs components is done without them"
    return (table if any(name in table.rows for name in names) else NamedTable([], {})), [problem]


def of_models(table: NamedTable, names: Sequence[str]) -> dict[str, list[str]]:
    """The rows of these models, in their order."""
    return {name: table.rows[name] for name in names if name in table.rows}


def table_of(out: RunDir) -> NamedTable:
    """The components that the analyses in a folder are of, if all was made in one go; empty if there are none."""
    for name in ("components_given.csv", "components.csv"):
        try:
            return named_csv.read_table(out.analysis(name))
        except AnalysisError:  # missing, or damaged
            continue
    return NamedTable([], {})


def made_from(inputs: Inputs) -> dict[str, str]:
    """What tells the files of one matrix from those that an earlier one has left: every summary begins with it."""
    similarity_of = json.dumps([inputs.names, inputs.sat.tolist()])
    components_of = json.dumps([inputs.columns, inputs.components], sort_keys=True)
    return {
        "created_by": f"simhpc {__version__}",
        "title": inputs.title,
        "similarity_sha256": hashlib.sha256(similarity_of.encode()).hexdigest(),
        "components_sha256": hashlib.sha256(components_of.encode()).hexdigest(),
    }


def without_root(run: Run, message: object) -> str:
    """A message without the folder that the run lies in: files are passed on, and are the same wherever it lies."""
    return str(message).replace(f"{run.dir.root}/", "")


def _read_components(models: Sequence[Model], cache: Path) -> tuple[NamedTable, list[str]]:
    """Components of models, from the file where they stand there; what was read anew is added to it."""
    problems: list[str] = []
    known = None
    if cache.exists():
        try:
            known = named_csv.read_table(cache)
        except AnalysisError as error:
            return NamedTable([], {}), [f"the components are unknown: {error}; mend or delete it"]
    missing = [model for model in models if known is None or model.key not in known.rows]
    if known is not None and not missing:
        return known, problems
    from simhpc.zoo.components import COLUMNS

    columns = list(COLUMNS)
    if known is not None and known.columns != columns:
        return known, [
            f"components of {', '.join(model.key for model in missing)} are unknown: {cache} has other columns than "
            "are read here; add the rows, or delete the file to have all read again"
        ]
    rows = dict(known.rows) if known is not None else {}
    for model in missing:
        try:
            rows[model.key] = _read_model(model)
        except ModelError as error:
            problems.append(f"components of {model.key} are unknown: {error}")
    if not rows:
        return NamedTable([], {}), problems
    write_csv(cache, ["Model name", *columns], ([name, *row] for name, row in rows.items()))
    return NamedTable(columns, rows), problems


def _read_model(model: Model) -> list[str]:
    from simhpc.zoo.components import find_entry, read, read_components

    if model.module is None:
        return list(read(find_entry(model)).row().values())
    from simhpc.zoo import own

    built = own.build(model, num_classes=2)
    size_px = model.data.input_size_px or own.data_config(model, built)["input_size"][-1]
    try:
        return list(read_components(built, (size_px, size_px)).row().values())
    except Exception as error:  # it is the user's code
        raise ModelError(f"{model.module} cannot be read: {type(error).__name__}: {error}") from error
