"""The report of a run: gathers what there is, and writes one HTML file (docs/analyses.md, "The report"). Offline.

An analysis is shown if its JSON file is of the matrix and the components that are shown; its section says so where it
is not. A new analysis appears without a change here; `simhpc.report.page.about` has what it is called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from simhpc.analysis.similarity import fooling_rates, similarity_order
from simhpc.errors import AnalysisError, BadFileError, MissingInputError
from simhpc.offline.analyze import ANALYSES, NEED_A_RUN, NEED_COMPONENTS
from simhpc.offline.examples import examples
from simhpc.offline.inputs import Inputs, doubts, made_from, of_models, table_of, without_root
from simhpc.report.families import families
from simhpc.report.page import document, summary
from simhpc.report.page.about import ABOUT, NAMES, About
from simhpc.report.page.content import Analysis, Content, File, Grouping, ModelRow, Tree
from simhpc.rundir import Run, RunDir
from simhpc.store import named_csv, predictions, similarity
from simhpc.store.atomic import write_text
from simhpc.store.provenance import Provenance
from simhpc.store.similarity import SimilarityMatrix
from simhpc.study import Study

_MOST_SVG_BYTES = 500_000
"""A drawing with more than that is shown as its PNG, if that is smaller."""


def write(run: Run, path: Path) -> dict[str, Any]:
    """Write the report of a run.

    Returns:
        plain data: `file`, `bytes`, `sections` (`shown`, or why not, by name), `problems` (of the matrix).

    Raises:
        MissingInputError, BadFileError: the run has no matrix, or a damaged one.
    """
    try:
        matrix = similarity.load(run.dir.similarity)
    except MissingInputError:
        raise MissingInputError(f"{run.dir.similarity} does not exist: run `simhpc aggregate` first") from None
    problems = [_without_folders(without_root(run, problem)) for problem in matrix.problems]
    matrix = replace(matrix, problems=problems)
    made_by = _provenances(run, matrix)
    weights = {model.key: model.weights for model in run.study.models}
    rows = []
    for key, timm_name in zip(matrix.models, matrix.timm_names, strict=True):
        made = made_by.get(key)
        rows.append(
            ModelRow(
                key=key,
                timm_name=timm_name,
                weights=_without_folder(weights.get(key, "")),
                weights_sha256=made.weights_sha256 if made else "",
                device=made.device if made else "",
                engine=made.engine if made else "",
            )
        )
    tables = (run.dir.similarity_csv, run.dir.pairs_csv, run.dir.models_csv)
    content = _content(
        Content(
            title=run.study.name,
            matrix=matrix,
            facts=[("images", str(run.study.images.n)), ("attack", _attack(run.study)[0]), *_facts(matrix)],
            models=rows,
            examples=examples(run, matrix),
            provenance=_provenance(run, matrix, list(made_by.values())),
            hashes=[
                ("settings of the study", run.study.settings_sha256()),
                ("image set", _those(made_by.values(), "images_sha256")),
                ("code of the attack", _those(made_by.values(), "attack_code_sha256")),
                ("predictions that the matrix is of", matrix.inputs_sha256),
            ],
            files=[file for table in tables if (file := _file(table, run.dir.root))],
        ),
        run.dir,
        run,
    )
    return _write(content, path)


def write_of_files(similarity_csv: Path, analyses: Path, path: Path) -> dict[str, Any]:
    """Write the report of a matrix from elsewhere.

    Args:
        analyses: the folder to which `simhpc analyze --similarity` has written.

    Returns:
        as `write` does.

    Raises:
        AnalysisError: the matrix cannot be read.
    """
    read = named_csv.read_matrix(similarity_csv)
    n = len(read.names)
    unknown, none = np.full((n, n), np.nan), np.full((n, n), -1, dtype=np.int64)
    matrix = SimilarityMatrix(
        models=read.names,
        timm_names=[""] * n,
        sat=read.values,
        ci_low=unknown,
        ci_high=unknown,
        n_common=none,
        n_fooled=none,
        n_both=none,
        clean_accuracy=np.full(n, np.nan),
        n_images=0,
        floor_percent=0.0,
        confidence=0.0,
        inputs_sha256="",
        problems=[],
        notes=[*read.notes, *doubts(read.values)],
    )
    file = _file(similarity_csv, similarity_csv.parent)
    content = Content(
        title=similarity_csv.stem,
        matrix=matrix,
        facts=_facts(matrix),
        models=[ModelRow(name, "") for name in read.names],
        provenance=[("matrix", similarity_csv.name)],
        hashes=[],
        files=[file] if file else [],
    )
    return _write(_content(content, RunDir(analyses), None), path)


def _write(content: Content, path: Path) -> dict[str, Any]:
    page = document.render(content)
    write_text(path, page)
    return {
        "file": str(path),
        "bytes": len(page.encode()),
        "sections": {analysis.name: analysis.absent or "shown" for analysis in content.analyses},
        "problems": list(content.matrix.problems),
    }


def _content(begun: Content, where: RunDir, run: Run | None) -> Content:
    """The same with the analyses that lie in a folder, and what follows from them.

    Args:
        run: the finished run that the matrix is of; None for a matrix from elsewhere.
    """
    matrix, table = begun.matrix, table_of(where)
    inputs = Inputs(begun.title, matrix.models, matrix.sat, table.columns, of_models(table, matrix.models))
    shown = made_from(inputs)
    found = {name: _analysis(name, where, shown, _without(name, run)) for name in _names(where)}
    grouping = None
    if not found["clusters"].absent:
        try:
            grouping = _grouping(where)
        except (BadFileError, KeyError, TypeError, ValueError):
            found["clusters"] = replace(_nothing("clusters"), absent=_damaged("clusters"))
    timm_names = {key: timm for key, timm in zip(matrix.models, matrix.timm_names, strict=True) if timm}
    own = families(matrix.models, inputs.columns, inputs.components, timm_names)
    components = [_file(where.analysis(name), where.root) for name in ("components_given.csv", "components.csv")]
    return replace(
        begun,
        models=[replace(row, family=family) for row, family in zip(begun.models, own, strict=True)],
        orders=_orders(matrix, own, grouping),
        grouping=grouping,
        analyses=list(found.values()),
        hashes=[*begun.hashes, ("matrix", shown["similarity_sha256"])],
        files=[*begun.files, *[file for file in components if file][:1]],
    )


def _names(where: RunDir) -> list[str]:
    """Of the sections on analyses: those that `simhpc analyze` does, and whatever else lies there."""
    there = sorted(path.stem for path in where.analysis("").glob("*.json"))
    known = [name for name, about in ABOUT.items() if name in there or (name in ANALYSES and not about.is_optional)]
    return [*known, *(name for name in there if name not in ABOUT)]


def _nothing(name: str) -> Analysis:
    about = ABOUT.get(name, About(name.replace("_", " ").capitalize()))
    return Analysis(name=name, title=about.title, explanation=about.explanation)


def _damaged(name: str) -> str:
    return f"analysis/{name}.json is not what simhpc writes: delete it and make it again."


def _without(name: str, run: Run | None) -> str:
    """What is said where an analysis was not done."""
    if run is not None:
        return "Not done. The command simhpc analyze does it, or says why it cannot be done."
    if name in NEED_A_RUN:
        return "Not possible: it takes the predictions of a run, not only its matrix."
    also = " --components TABLE" if name in NEED_COMPONENTS else ""
    return f"Not done. The command simhpc analyze --similarity MATRIX{also} does it, or says why it cannot be done."


def _analysis(name: str, where: RunDir, shown: Mapping[str, str], without: str) -> Analysis:
    """One section.

    Args:
        shown: what `made_from` says of what the page shows. A file that says nothing of components knows none.
        without: what is said if the analysis was not done.
    """
    about, nothing = ABOUT.get(name, About(name)), _nothing(name)
    path = where.analysis(f"{name}.json")
    try:
        result = _without_folders(_read_json(path))
    except FileNotFoundError:
        return replace(nothing, absent=without)
    except BadFileError:
        return replace(nothing, absent=_damaged(name))
    if result.get("similarity_sha256") != shown["similarity_sha256"]:
        return replace(nothing, absent="Out of date: of another matrix than this one. Made anew by: simhpc analyze")
    if result.get("components_sha256", shown["components_sha256"]) != shown["components_sha256"]:
        return replace(
            nothing, absent="Out of date: with other components of the models than now. Made anew by: simhpc analyze"
        )
    svg, png = (_file(where.figure(f"{name}.{suffix}"), where.root) for suffix in ("svg", "png"))
    is_large = svg is not None and png is not None and png.n_bytes < svg.n_bytes > _MOST_SVG_BYTES
    files = [_file(where.analysis(file), where.root) for file in (f"{name}.csv", *about.files)]
    notes, names = result.get("notes"), {**NAMES, **about.names}
    return replace(
        nothing,
        facts=summary.facts(result, names, about.if_null),
        tables=summary.tables(result, names, about.if_null),
        notes=[str(note) for note in notes] if isinstance(notes, list) else [],
        settings=summary.settings(result, {**NAMES, **about.settings}, about.if_null),
        figure=None if not about.has_figure else png if is_large or svg is None else svg,
        files=[file for file in files if file],
    )


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        FileNotFoundError: there is none.
        BadFileError: it is something else.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise BadFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(read, dict):
        raise BadFileError(f"{path} holds no JSON object")
    return read


def _grouping(where: RunDir) -> Grouping:
    """The clusters as `simhpc analyze` has written them. Whatever is raised says that it was not that."""
    result = _read_json(where.analysis("clusters.json"))
    tree = result["tree"]
    try:
        table = named_csv.read_table(where.analysis("clusters.csv"))
        column = table.columns.index("stability")
        stability = {name: float(row[column]) for name, row in table.rows.items()}
    except AnalysisError:
        stability = {}
    return Grouping(
        cluster_of={name: int(each["cluster"]) for each in result["clusters"] for name in each["models"]},
        stability=stability,
        tree=Tree(
            models=[str(name) for name in tree["models"]],
            linkage=[[float(value) for value in row] for row in tree["linkage"]],
            sat_at_height_0=float(tree["sat_at_height_0"]),
        ),
    )


def _orders(matrix: SimilarityMatrix, own: Sequence[str], grouping: Grouping | None) -> dict[str, list[int]]:
    """Names of orders to positions of all models; within a group alike models stand side by side."""
    n = len(matrix.models)
    place = np.argsort(similarity_order(matrix.sat))
    orders: dict[str, list[int]] = {}
    if grouping is not None:
        cluster = [grouping.cluster_of.get(key, n) for key in matrix.models]
        orders["cluster"] = sorted(range(n), key=lambda k: (cluster[k], place[k]))
    orders["alike side by side"] = sorted(range(n), key=lambda k: place[k])
    if len(set(own)) > 1:
        orders["family"] = sorted(range(n), key=lambda k: (own[k].casefold(), own[k], place[k]))
    if np.isfinite(matrix.clean_accuracy).any():
        accuracy = np.nan_to_num(matrix.clean_accuracy, nan=-1.0)
        orders["accuracy"] = sorted(range(n), key=lambda k: (-accuracy[k], k))
    return {**orders, "as given": list(range(n))}


def _facts(matrix: SimilarityMatrix) -> list[tuple[str, str]]:
    n = len(matrix.models)
    rows, columns = np.triu_indices(n, k=1)
    between = matrix.sat[rows, columns]
    known = np.isfinite(between)
    facts = [("models", str(n)), ("pairs of different models", f"{known.sum()} known of {len(between)}")]
    if known.any():
        for name, k in (("most alike", int(np.nanargmax(between))), ("least alike", int(np.nanargmin(between)))):
            pair = f"{matrix.models[rows[k]]} and {matrix.models[columns[k]]}"
            facts.append((name, f"{pair} (SAT {document.fixed(between[k], 2)})"))
        facts.append(("mean SAT of different models", document.fixed(between[known].mean(), 2)))
    own = np.diag(fooling_rates(matrix.n_fooled, matrix.n_common))
    for name, values in (("accuracy on clean images", matrix.clean_accuracy), ("self-fooling", own)):
        if np.isfinite(values).any():
            low, high = (document.percent(float(end(values))) for end in (np.nanmin, np.nanmax))
            facts.append((name, low if low == high else f"{low} to {high}"))
    return facts


def _attack(study: Study) -> list[str]:
    """Name and radius, then what else there is to say."""
    attack = study.attack
    parts = [f"{attack.name}, ε = {attack.eps_255}/255"]
    if attack.steps is not None:
        parts.append(f"{attack.steps} step{'s' if attack.steps > 1 else ''}")
    if attack.step_size_eps is not None:
        parts.append(f"step size {attack.step_size_eps:g} ε")
    parts.append(f"{attack.restarts} start{'s' if attack.restarts > 1 else ''}")
    return [*parts, *(f"{name} = {value:g}" for name, value in attack.args.items())]


def _provenance(run: Run, matrix: SimilarityMatrix, made_by: Sequence[Provenance]) -> list[tuple[str, str]]:
    study = run.study
    frozen: dict[str, Any] = {}
    with suppress(FileNotFoundError, BadFileError):  # an offline copy of a run needs none
        frozen = _read_json(run.dir.frozen)
    versions = frozen.get("versions")
    begun = ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""
    return [
        ("attack", ", ".join(_attack(study))),
        ("images", f"{study.images.n} of {_without_folder(study.images.source)}"),
        ("labels", _without_folder(study.images.labels)),
        ("size of the stored images", f"{study.images.size_px or 8} px"),
        ("pixels attacked", study.attack.grid),
        ("precision", study.precision),
        ("seed", str(study.seed)),
        ("floor of the fooling rate", f"{matrix.floor_percent:g} %"),
        ("intervals", f"{100 * matrix.confidence:g} %, bootstrap over images"),
        ("devices", _those(made_by, "device")),
        ("torch", _those(made_by, "torch")),
        ("timm", _those(made_by, "timm")),
        ("container", _those(made_by, "container")),
        ("the run was begun with", begun or summary.UNKNOWN),
    ]


def _those(made_by: Iterable[Provenance], name: str) -> str:
    """The values of one attribute, each once."""
    return ", ".join(sorted({str(getattr(made, name)) for made in made_by})) or summary.UNKNOWN


def _provenances(run: Run, matrix: SimilarityMatrix) -> dict[str, Provenance]:
    """Of those models whose predictions can be read here."""
    found = {}
    for key in matrix.models:
        try:
            found[key] = predictions.header(run.dir.predictions(key)).provenance
        except (MissingInputError, BadFileError):
            continue
    return found


def _file(path: Path, root: Path) -> File | None:
    return File(path.relative_to(root).as_posix(), path, path.stat().st_size) if path.is_file() else None


def _without_folders(value: Any) -> Any:
    """Plain data, such as messages about files, with the last name only of folders from `/` on.

    A run may have lain elsewhere when they were written. What is in the run's own folders is named with these.
    """
    match value:
        case str():
            inside = re.sub(r"/\S*/(?=(?:adversarial|predictions|representations)/)", "", value)
            return re.sub(r"(?<![^\s:='\"(])/(?:[^\s/:;,'\"()]+/)+", "", inside)
        case list():
            return [_without_folders(each) for each in value]
        case dict():
            return {key: _without_folders(each) for key, each in value.items()}
    return value


def _without_folder(source: str) -> str:
    """`folder:/data/imagenet/val` as `folder:val`: a report is passed on, and where things lie is nobody's business."""
    kind, colon, path = source.partition(":")
    return f"{kind}:{Path(path).name}" if colon and "/" in path else source
