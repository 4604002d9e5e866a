"""Whatever is given, the answer is a message and exit code 2, or it is valid: never a traceback.

Studies, profiles, tables, lists and command lines that are nearly right, and some that are nowhere near.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny

from simhpc import image_list
from simhpc.cli import app
from simhpc.cluster.profile import load_profile
from simhpc.errors import SimhpcError
from simhpc.images.ground_truth import read_classes
from simhpc.images.labels import read_label_map
from simhpc.stages.prepare import check
from simhpc.store import named_csv
from simhpc.study import load_study

quick = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
slow = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])

ODD_TEXTS = st.sampled_from(
    [
        "", " ", ".", "..", "../../x", "/etc/passwd", "~", "~nobody-at-all/x", "x; rm -rf ~", "$(id)", "`id`", "a\nb",
        "a\x00b", "\x1b[31m", "[red]", "[/]", "%s%n", "{0}", "é" * 300, "\u202e", "NaN", "-1", "--help", "con", "train",
        "random", "pretrained:", "pretrained:../../x", "checkpoint:/dev/null", "checkpoint:.", "folder:/nowhere",
        "folder:\x00", "tar:/dev/null", "hf:/nowhere", "flat:x", "map:/dev/null", "map:\x00", "os:system",
        "vit_tiny_patch16_224", "a" * 5000,
    ]
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 300), st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400]), st.floats(width=64)
)
SCALARS = st.one_of(
    st.booleans(), NUMBERS, ODD_TEXTS, st.text(max_size=20), st.dates(), st.times(),
    st.datetimes(min_value=datetime.datetime(1900, 1, 1)),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@st.composite
def altered(draw: Any, base: dict[str, Any]) -> dict[str, Any]:
    """`base` with one to three values replaced, removed, added or repeated, at any depth."""
    raw = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        places: list[tuple[Any, Any]] = []

        def collect(node: Any, places: list[tuple[Any, Any]] = places) -> None:
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                if isinstance(node[key], dict | list):
                    collect(node[key])

        collect(raw)
        if not places:
            break
        node, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "repeat"]))
        if how == "replace":
            node[key] = draw(VALUES)
        elif how == "remove":
            del node[key]
        elif how == "add" and isinstance(node, dict):
            node[draw(st.sampled_from(sorted(node)) | st.text(max_size=10))] = draw(VALUES)
        elif isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
    return raw


def garbled(text: str) -> st.SearchStrategy[bytes]:
    """The text's bytes with some replaced, cut out or put in."""
    edits = st.lists(st.tuples(st.integers(0, len(text)), st.integers(0, 20), st.binary(max_size=6)), max_size=4)

    def apply(given: list[tuple[int, int, bytes]]) -> bytes:
        data = text.encode()
        for at, length, new in given:
            data = data[:at] + new + data[at + length :]
        return data

    return edits.map(apply) | st.binary(max_size=200)


def write(path: Path, raw: dict[str, Any]) -> Path:
    try:
        path.write_text(tomli_w.dumps(raw), encoding="utf-8")
    except (ValueError, TypeError):  # 10**400 and such: what TOML itself does not take
        path.write_text("n = ")
    return path


def is_answered(read: Callable[..., object], *arguments: object) -> None:
    """It returns, or raises what is shown as a message."""
    with contextlib.suppress(SimhpcError):
        read(*arguments)


STUDY = tiny(("cnn", "vit"), similarity={"floor_percent": 0.01}, precision="float32")
OWN = {**tiny(("cnn",)), "models": [{"key": "a", "module": "nothing.here:build", "args": {"x": [1, {"y": 2}]}}]}
FOLDER = {
    **tiny(("cnn",)),
    "images": {"source": "flat:x", "n": 3, "ground_truth": "g.txt", "labels": "map:m.csv", "size_px": 32},
}
PROFILE = {
    "defaults": {
        "partition": "cpu",
        "timeout_min": 10,
        "mem_gb": 4.0,
        "sbatch": {"constraint": "a"},
        "setup": ["true"],
    },
    "attack": {"gpus_per_node": 1, "array_parallelism": 4, "signal_delay_s": 5},
    "retry": {},
    "container": {"image": "x.sif", "binds": ["/a", {"source": "/b", "mode": "rw"}], "env": ["A"], "flags": ["--x"]},
}


@given(raw=altered(STUDY) | altered(OWN) | altered(FOLDER))
@quick
def test_studies(tmp_path, raw):
    is_answered(load_study, write(tmp_path / "s.toml", raw))


@given(data=garbled(tomli_w.dumps(STUDY)))
@quick
def test_study_files_that_are_garbled(tmp_path, data):
    (tmp_path / "s.toml").write_bytes(data)
    is_answered(load_study, tmp_path / "s.toml")


@given(raw=altered(STUDY))
@slow
def test_studies_that_parse_are_checked_against_what_there_is(tmp_path, raw):
    def read() -> None:
        check(load_study(write(tmp_path / "s.toml", raw)))

    is_answered(read)


@given(raw=altered(PROFILE))
@quick
def test_profiles(tmp_path, raw):
    is_answered(load_profile, write(tmp_path / "p.toml", raw))


MATRIX = "model,a,b,c\na,4.6,1.0,nan\nb,1.0,4.6,2.5\nc,,2.5,4.6\n"
TABLE = 'model,stem,"norm, kind"\na,patch,layer\nb,conv,batch\n'


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (MATRIX, named_csv.read_matrix),
        (TABLE, named_csv.read_table),
        ("# images\n\\#a\nx/b.png\n", image_list.read),
        ("n01440764,0\nn01443537,1\n", read_label_map),
        ('{"n01440764": 0, "n01443537": 1}', read_label_map),
        ("a.png,n01440764\nb.png,n01443537\n", lambda path: read_classes(path, ["a.png", "b.png"])),
        ("ImageId,PredictionString\na,n01440764 1 2 3 4\n", lambda path: read_classes(path, ["a.png"])),
    ],
    ids=["matrix", "table", "image list", "label map", "label map in JSON", "classes", "Kaggle's classes"],
)
@given(data=st.data())
@quick
def test_tables_and_lists(tmp_path, text, read, data):
    (tmp_path / "f").write_bytes(data.draw(garbled(text)))
    is_answered(read, tmp_path / "f")


# ----- command lines


def run(*arguments: str) -> tuple[int, str]:
    """Exit code, and all that was said, of one call of the program in this process."""
    said, before, code = io.StringIO(), sys.argv, 0
    sys.argv = ["simhpc", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            app.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
    return code, said.getvalue()


VERBS = [
    "validate", "run", "plan", "submit", "status", "logs", "cancel", "retry", "aggregate", "analyze", "components",
    "verify", "doctor", "models", "view", "",
]  # fmt: skip
WORDS = st.one_of(
    ODD_TEXTS.filter(lambda text: "\x00" not in text),
    st.sampled_from(
        [
            "--json", "--out", "--stages", "--run", "--deep", "--all", "--dry-run", "--profile", "--workers",
            "--clusters", "--similarity", "--components", "--encoding", "--seed", "--debug-not", "all", "vit",
            "study.toml", "none.toml", "list", "show", "1e9", "-5",
        ]
    ),
)  # fmt: skip
"""Nothing here is a study that could be run: `study.toml` is a wrong one."""


@given(verb=st.sampled_from(VERBS), words=st.lists(WORDS, max_size=4))
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_command_lines(tmp_path, monkeypatch, verb, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text("name = 3\n")
    code, said = run(*filter(None, [verb]), *words)
    assert code in (0, 1, 2), said
    assert "Traceback" not in said
    assert code == 0 or said.strip()
