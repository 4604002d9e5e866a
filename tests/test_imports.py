"""Imports point one way (docs: the house). Read from the source, so that lazy imports count too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "simhpc"

# What each room may import of ours, besides itself, `errors`, `seeds` and the package's version.
ALLOWED = {
    "analysis": set(),
    "attacks": set(),
    "sections": set(),
    "image_list": set(),
    "study": {"image_list", "sections", "training_presets"},
    "training_presets": set(),
    "rundir": {"study"},
    "store": set(),
    "images": {"image_list", "study", "store", "zoo"},
    "zoo": {"study", "store"},
    "report": {"analysis", "store"},
    "stages": {"analysis", "attacks", "image_list", "images", "report", "rundir", "store", "study", "zoo"},
    "offline": {"analysis", "attacks", "image_list", "images", "report", "rundir", "stages", "store", "study", "zoo"},
    "cluster": {"rundir", "sections", "stages", "store", "study", "zoo"},
    "cli": {"cluster", "offline", "rundir", "stages", "store", "study", "zoo"},
    "errors": set(),
    "seeds": set(),
}
# Who may import these at all.
ONLY = {
    "submitit": {"cluster"},
    "typer": {"cli"},
    "rich": {"cli"},
    "torch": {"attacks", "zoo", "stages", "offline"},
    "timm": {"zoo"},
    "huggingface_hub": {"zoo"},
    "torchvision": {"zoo"},
    "h5py": {"store"},
    "pyarrow": {"images"},
    "pydantic": {"cluster", "sections", "study"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    if room == "__init__":
        return
    for name in imports_of(path):
        top, *rest = name.split(".")
        if top == "simhpc" and rest and rest[0] not in (room, "errors", "seeds", "__version__"):
            assert rest[0] in ALLOWED[room], f"{path.name} imports {name}"
        if top in ONLY:
            assert room in ONLY[top], f"{path.name} imports {name}"


def test_the_table_is_of_this_package():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == set(ALLOWED)
