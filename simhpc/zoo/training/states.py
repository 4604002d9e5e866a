"""`partial/train/<model>/<identity>/step-*.pt`: where a training that is not finished can go on from."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from simhpc.errors import BadFileError, NoSpaceError
from simhpc.store.atomic import replacing

KIND, VERSION = "simhpc-training-state", 1
_KEPT = 2


@dataclass(frozen=True)
class States:
    """The saved states of one training.

    Attributes:
        folder: of the model; states of another identity lie beside each other in it.
        identity: SHA-256 over what decides how the training goes on.
    """

    folder: Path
    identity: str

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a state atomically, read it back, and keep the last few alone. Tensors and plain values only."""
        path = self._path(step)
        try:
            self._write(path, state)
        except NoSpaceError:
            raise
        except Exception:
            # Another copy of this training may have ended, and removed the folder under our hands: once.
            self._write(path, state)
        # Later ones, which were damaged or are another copy's, take no place from those that are good.
        for older in [held for held in self._paths() if _step_of(held) <= step][:-_KEPT]:
            older.unlink(missing_ok=True)
        return path

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        with replacing(path, verify=self._read) as temporary:
            torch.save({"format": KIND, "format_version": VERSION, "identity": self.identity, **state}, temporary)

    def last(self) -> int:
        """The step of the newest state that is whole; 0 if there is none."""
        for path in reversed(self._paths()):
            try:
                self._read(path)
            except BadFileError:
                continue
            return _step_of(path)
        return 0

    def load(self, step: int) -> dict[str, Any]:
        """The state of a step.

        Raises:
            BadFileError: it is not there, damaged, or another training's.
        """
        return self._read(self._path(step))

    def path_of_last(self) -> Path | None:
        """The file of `last`."""
        step = self.last()
        return self._path(step) if step else None

    def _path(self, step: int) -> Path:
        return self._own / f"step-{step:09d}.pt"

    def _paths(self) -> list[Path]:
        return sorted(self._own.glob("step-*.pt"))

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(path) as archive:
                # torch reads over a wrong checksum.
                if (wrong := archive.testzip()) is not None:
                    raise BadFileError(f"the checksum of {wrong} in it is wrong")
            # Tensors and plain values: nothing that a file could make this process execute.
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch each have their own for damage
            raise BadFileError(f"{path} cannot be read, it may be truncated or damaged: {error}") from None
        found = state if isinstance(state, dict) else {}
        if (found.get("format"), found.get("format_version")) != (KIND, VERSION) or (
            found.get("identity") != self.identity
        ):
            raise BadFileError(f"{path} is no state of this training (format version {VERSION})")
        return found

    @property
    def _own(self) -> Path:
        return self.folder / self.identity[:16]


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
