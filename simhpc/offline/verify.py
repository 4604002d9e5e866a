"""`simhpc verify`: every file of a run looked at, each in another process; and what can be made again removed.

Which file is of what kind is said by `_KINDS`; what is looked at, by `verify_files`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from simhpc.errors import BadFileError, MissingInputError, SimhpcError
from simhpc.offline import verify_files
from simhpc.offline.isolated import CallFailedError, Worker
from simhpc.rundir import Run, RunDir, open_run
from simhpc.stages import inputs, prepare
from simhpc.stages.task import ALL
from simhpc.store import image_set
from simhpc.store.atomic import is_left_over, is_temporary
from simhpc.store.checkpoint import file_sha256
from simhpc.study import Model

_MODEL = r"(?P<model>[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99})"
_KINDS: dict[str, tuple[str, str]] = {
    r"images\.h5": ("images", "images"),
    r"images\.txt": ("image list", "images"),
    r"frozen\.json": ("frozen", ""),
    rf"checkpoints/{_MODEL}\.safetensors": ("checkpoint", "train"),
    rf"adversarial/{_MODEL}\.h5": ("adversarial", "attack"),
    rf"predictions/{_MODEL}\.h5": ("predictions", "evaluate"),
    rf"representations/{_MODEL}\.h5": ("representations", "representations"),
    rf"answers/{_MODEL}-[0-9a-f]{{16}}\.h5": ("teacher's answers", "distill"),
    rf"partial/attack/{_MODEL}/[0-9a-f]{{16}}/\d{{7}}\.h5": ("attack part", "attack"),
    rf"partial/evaluate/{_MODEL}\.h5": ("partial predictions", "evaluate"),
    r"similarity\.h5": ("similarity", "aggregate"),
    r"(similarity|pairs|models)\.csv": ("table", "aggregate"),
    r"figures/similarity\.(png|svg)": ("picture", "aggregate"),
    r"figures/[\w.-]+\.(png|svg)": ("picture", "analyze"),
    r"analysis/[\w.-]+\.json": ("json", "analyze"),
    r"analysis/[\w.-]+\.csv": ("text", "analyze"),
    r"report\.html": ("text", "report"),
    rf"(progress|batch_size)/\w+/{_MODEL}\.json": ("json", "note"),
    r"slurm/ledger/[\w.-]+\.json": ("json", ""),
}
"""Path inside the run directory, to the kind of file and what makes it again."""

_KNOWN = re.compile(r"study\.toml|(slurm|partial/train|metrics|tensorboard)/.*")
"""Looked at elsewhere (study.toml by `open_run`), or of other programs and not looked into."""

_LEAST_S = 120.0
_BYTES_PER_S = 2e6
"""A file may take `_LEAST_S` and as long as a disk this slow needs for it."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        file: path inside the run directory.
        what: is wrong with it.
        todo: what to do about it.
        is_removable: nobody loses anything with it: it is damaged, and can be made again from what is whole.
        stamp: inode, size and time of what was looked at.
    """

    file: str
    what: str
    todo: str
    is_removable: bool = False
    stamp: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Report:
    """What a verification has found.

    Attributes:
        n_files: looked at.
        findings: in the order of their paths.
        notes: what is no fault: files that are not simhpc's, links that lead out of the run.
    """

    n_files: int
    findings: list[Finding]
    notes: list[str]


@dataclass(frozen=True)
class _Held:
    """A file of a run."""

    path: Path
    kind: str
    maker: str
    model: str


def verify(
    run: Run, *, deep: bool = False, worker: Worker | None = None, report: Callable[[str], None] = lambda _: None
) -> Report:
    """Look at every file of a run.

    Args:
        deep: read all data too, compare files with each other, and compute the matrix again.
        worker: a process to use; absent: one is started and ended.
        report: told each file's path before it is looked at.
    """
    if worker is None:
        with Worker() as own:
            return verify(run, deep=deep, worker=own, report=report)
    held, notes, findings = _survey(run)
    faults: list[tuple[_Held, str, bool]] = []
    models, students = run.study.models, run.study.students
    known = {"", ALL, *(model.key for model in models), *(student.key for student in students)}
    for file in held:
        name = _name(run, file.path)
        report(name)
        if file.model not in known:
            notes.append(f"{name} is of a model that the study does not have: left alone")
            continue
        limit_s = _LEAST_S + _size(file.path) / _BYTES_PER_S
        arguments = str(run.dir.root), file.kind, str(file.path), file.model, deep
        try:
            found = worker.call(verify_files.check, *arguments, timeout_s=limit_s)
        except CallFailedError as error:
            found = [(str(error), True)]
        faults += [(file, what, is_damage) for what, is_damage in found]
    can_redo = _Redoable(run, {file.path for file, _, is_damage in faults if is_damage})
    for file, what, is_damage in faults:
        is_removable = is_damage and file.path.is_file() and can_redo(file.maker, file.model)
        findings.append(
            Finding(
                _name(run, file.path),
                _short(run, file.path, what),
                _todo(file, is_damage=is_damage, is_removable=is_removable),
                is_removable,
                _stamp(file.path),
            )
        )
    return Report(len(held) + 1, sorted(findings, key=lambda finding: finding.file), notes)


def verify_root(
    root: Path, *, deep: bool = False, report: Callable[[str], None] = lambda _: None
) -> tuple[RunDir, Report]:
    """`verify` a folder whose frozen study may be damaged: that is a finding, and nothing else can be looked at.

    Raises:
        BadFileError: it is no run directory.
    """
    run_dir = RunDir(root.resolve())
    try:
        return run_dir, verify(open_run(root), deep=deep, report=report)
    except BadFileError as error:
        if not os.path.lexists(run_dir.study):
            raise
        what = _short_text(run_dir, str(error).removeprefix(f"{root} is not a readable run directory: "))
        todo = "put it back from a copy of the run; nothing else can be looked at without it"
        return run_dir, Report(1, [Finding("study.toml", what.removeprefix("study.toml").lstrip(": "), todo)], [])


def repair(run_dir: RunDir, findings: list[Finding]) -> list[str]:
    """Remove the files that can be made again; returns their paths. One that was replaced since is left."""
    removed = []
    for name in dict.fromkeys(finding.file for finding in findings if finding.is_removable):
        path = run_dir.root / name
        stamps = [finding.stamp for finding in findings if finding.file == name]
        if stamps[0] is not None and _stamp(path) == stamps[0]:
            path.unlink()
            removed.append(name)
    return removed


def _survey(run: Run) -> tuple[list[_Held], list[str], list[Finding]]:
    """All files of a run directory: those to look at, notes on others, and leftovers."""
    held: list[_Held] = []
    notes: list[str] = []
    findings: list[Finding] = []
    root = run.dir.root
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        # submitit links each of its batch scripts beside itself.
        if path.is_symlink() and not name.startswith("slurm/"):
            notes.append(f"{_shown(name)} is a link to {_shown(str(path.readlink()))}: read, and never written through")
        if is_temporary(path.name):
            findings += _leftover(path, name)
        elif match := next(filter(None, (re.fullmatch(pattern, name) for pattern in _KINDS)), None):
            kind, maker = _KINDS[match.re.pattern]
            held.append(_Held(path, kind, maker, match.groupdict().get("model") or ""))
        elif not _KNOWN.fullmatch(name) and not (path.is_symlink() and path.is_dir()):
            notes.append(f"{_shown(name)} is none of simhpc's files: left alone")
    # What others are compared with comes first.
    order = list(verify_files.CHECKS)
    return sorted(held, key=lambda file: (order.index(file.kind), file.path)), notes, findings


def _walk(folder: Path) -> Iterator[Path]:
    """Everything but folders, and folders that stand where a file should.

    Linked folders of the first level are entered: large ones are often kept on another disk.
    """
    for entry in sorted(folder.rglob("*")):
        if (
            not entry.is_dir()
            or entry.is_symlink()
            or any(re.fullmatch(pattern, entry.relative_to(folder).as_posix()) for pattern in _KINDS)
        ):
            yield entry
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink() and entry.is_dir():
            yield from (path for path in sorted(entry.rglob("*")) if not path.is_dir())


def _leftover(path: Path, name: str) -> list[Finding]:
    """A temporary file that its writer has left, as far as can be told from here."""
    stamp = _stamp(path)
    if stamp is None or not is_left_over(path):
        return []
    todo = "delete it, or let --repair do it"
    return [Finding(name, "is what a task that was killed has left", todo, path.is_file(), stamp)]


class _Redoable:
    """Whether something could be made again if it were deleted, from what is there and whole."""

    def __init__(self, run: Run, damaged: set[Path]) -> None:
        self._run, self._damaged = run, damaged
        self._known: dict[tuple[str, str], bool] = {}

    def __call__(self, maker: str, model: str) -> bool:
        key = maker, model
        if key not in self._known:
            self._known[key] = False  # until shown
            self._known[key] = self._find(maker, model)
        return self._known[key]

    def _find(self, maker: str, model: str) -> bool:
        run = self._run
        if maker == "note":  # progress and batch sizes: nothing is lost with them
            return True
        if maker == "images":
            return _can_be_drawn_again(run)
        entries = [entry for entry in run.study.models if entry.key == model]
        if maker == "train" and (of_student := [s for s in run.study.students if s.key == model]):
            return self("distill", of_student[0].teacher) and _all_exist(run, "distill", model)
        if maker == "distill":  # a teacher's answers
            return bool(entries) and self._has_images() and self._has_weights(entries[0])
        if maker == "train":
            return bool(entries) and self._has_images() and _all_exist(run, "train", model)
        if maker in ("attack", "representations"):
            return bool(entries) and self._has_images() and self._has_weights(entries[0])
        has_sets = all(self._is_whole(run.dir.adversarial(e.key)) or self("attack", e.key) for e in run.study.models)
        if maker == "evaluate":
            return bool(entries) and self._has_images() and self._has_weights(entries[0]) and has_sets
        if maker == "aggregate":
            return all(self._is_whole(run.dir.predictions(e.key)) or self("evaluate", e.key) for e in run.study.models)
        if maker in ("analyze", "report"):
            return self._is_whole(run.dir.similarity) or self("aggregate", "")
        return False

    def _is_whole(self, path: Path) -> bool:
        return path.is_file() and path not in self._damaged

    def _has_images(self) -> bool:
        return self._is_whole(self._run.dir.images) or self("images", "")

    def _has_weights(self, entry: Model) -> bool:
        run = self._run
        if entry.is_trained_here:
            return self._is_whole(run.dir.checkpoint(entry.key)) or self("train", entry.key)
        if entry.checkpoint_sha256 is not None:
            path = entry.checkpoint_path
            return path.is_file() and file_sha256(path) == entry.checkpoint_sha256
        if entry.is_pretrained:
            return not inputs.unstaged(run, "attack", [entry.key])
        return entry.module is None or _all_exist(run, "attack", entry.key)


def _all_exist(run: Run, stage: str, model: str) -> bool:
    return all(path.exists() for path in inputs.paths(run, stage, [model]))


def _can_be_drawn_again(run: Run) -> bool:
    """Whether the image set would be the same one; it is drawn to see."""
    from simhpc.images import build_image_set, open_source

    try:
        chosen = build_image_set(run.study.images, open_source(run.study.images), run.study.seed, "")
        stated = prepare.check_frozen(run)
    except (SimhpcError, OSError, MissingInputError):
        return False
    return stated == image_set.identity_of(chosen)


def _todo(file: _Held, *, is_damage: bool, is_removable: bool) -> str:
    if is_removable:
        return "delete it, or let --repair do it, and run again"
    if is_damage and file.maker:
        return "it cannot be made again from what is here: put it back from a copy"
    if is_damage:
        return "put it back from a copy, or move it away"
    if file.kind == "similarity":
        return "run `simhpc aggregate` again"
    return "move it to where it belongs; the same `simhpc run` or `submit` again makes this run's own"


def _short(run: Run, path: Path, what: str) -> str:
    """Without the path that stands before it anyway, and paths without the run directory's."""
    return _short_text(run.dir, what.removeprefix(str(path)).lstrip(": "))


def _short_text(run_dir: RunDir, text: str) -> str:
    return _shown(text.replace(f"{run_dir.root}/", ""))


def _shown(text: str) -> str:
    """One line: a file may be named with a line's end, or with what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _name(run: Run, path: Path) -> str:
    return path.relative_to(run.dir.root).as_posix()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
