"""The errors that a user can mend, as opposed to the bugs that we must."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SimhpcError(Exception):
    """A problem with what was given: shown as a message without a traceback, exit code 2."""


class StudyError(SimhpcError):
    """The study file is wrong, or contradicts what a run directory already holds."""


class ImageSourceError(SimhpcError):
    """An image folder, a label map or an image file cannot be used."""


class ModelError(SimhpcError):
    """A model cannot be built, or its weights cannot be loaded."""


class BadFileError(SimhpcError):
    """A file of a run is missing, damaged, or not what its name says."""


class ForeignFileError(BadFileError):
    """A file that may be whole, but does not belong in its place: of another kind, version, model, study or image set,
    or nothing that can be read. It is never deleted: it may be somebody's only one."""


class MissingInputError(SimhpcError):
    """A task's input does not exist yet: an earlier stage has to make it first."""


class NoSpaceError(SimhpcError):
    """A file could not be written for lack of space: a full disk, a quota, or a limit on the size of files."""


class ProfileError(SimhpcError):
    """The cluster profile is wrong."""


class ContainerError(SimhpcError):
    """The container image, or what is to be seen inside it, is not as it has to be."""


class AnalysisError(SimhpcError):
    """A matrix, a table or an option does not allow an analysis, or any."""


class SchedulerError(SimhpcError):
    """Slurm refused something; the message holds its own words."""


class SchedulerUnavailableError(SchedulerError):
    """Slurm could not be asked: a program is missing, or does not answer."""


def first_line(error: BaseException) -> str:
    """Of its message; its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str], most: int = 3) -> str:
    """`; did you mean 'x'?` for the names in `known` nearest to `name`, or an empty string."""
    matches = closest(name, known, most)
    return f"; did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""


def closest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Those of the names in `known` that `name` may have been meant to be, the nearest first."""
    return difflib.get_close_matches(name, list(known), n=most, cutoff=0.6)
