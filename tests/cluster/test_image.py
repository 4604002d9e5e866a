"""Reading SIF files without Apptainer, and what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys

import pytest
from cluster.sif import write_sif
from hypothesis import given
from hypothesis import strategies as st

from simhpc import __version__
from simhpc.cluster import image
from simhpc.errors import ContainerError

X86 = {"x86_64"}


def test_what_an_image_says_of_itself(tmp_path):
    path = write_sif(tmp_path / "a.sif", {"hello": "world"}, identity=bytes(range(16)))
    found = image.read(path)
    assert found.path == path
    assert found.id == bytes(range(16)).hex()
    assert found.size_bytes == path.stat().st_size
    assert found.architecture == "x86_64"
    assert found.labels == {**image.labels(), "hello": "world"}
    assert found.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert image.check(found, X86) == []


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({image.VERSION: "0.0.9", "simhpc.git-commit": "abc"}, "holds simhpc 0.0.9, this is simhpc"),
        ({image.SCHEMA: "f" * 64}, "reads other studies (study schema ffffffffffff, here"),
    ],
)
def test_another_simhpc_in_the_image(tmp_path, labels, words):
    with pytest.raises(ContainerError) as refused:
        image.check(image.read(write_sif(tmp_path / "a.sif", labels)), X86)
    assert words in str(refused.value)
    assert str(tmp_path / "a.sif") in str(refused.value)
    assert "containers/build.sh" in str(refused.value)


def test_another_processor(tmp_path):
    found = image.read(write_sif(tmp_path / "a.sif", {}, arch=b"04"))
    with pytest.raises(ContainerError, match="is for aarch64, the nodes are x86_64"):
        image.check(found, X86)
    assert image.check(found, {"x86_64", "aarch64"}) == []


def test_what_is_worth_knowing(tmp_path):
    other_code = image.read(write_sif(tmp_path / "a.sif", {image.SOURCE: "0", "simhpc.git-commit": "abc"}))
    (note,) = image.check(other_code, X86)
    assert "another state of simhpc" in note
    assert "(commit abc)" in note
    (note,) = image.check(image.read(write_sif(tmp_path / "b.sif", {image.PYTHON_VERSION: "3.9"})), X86)
    assert "has Python 3.9" in note
    unknown = image.read(write_sif(tmp_path / "c.sif", None))
    assert unknown.labels is None
    (note,) = image.check(unknown, X86)
    assert "each task will check" in note


def test_an_image_of_something_else(tmp_path):
    path = write_sif(tmp_path / "a.sif", {})
    # As long as before, so that everything else stays where it is.
    path.write_bytes(path.read_bytes().replace(b"simhpc.", b"foreign"))
    with pytest.raises(ContainerError, match="is no image of simhpc"):
        image.check(image.read(path), X86)


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(ContainerError, match=r"is not a SIF image \(6 bytes\)"):
        image.read(tmp_path / "text")
    with pytest.raises(ContainerError, match="there is no image"):
        image.read(tmp_path / "missing.sif")
    with pytest.raises(ContainerError, match="is a folder"):
        image.read(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_sif(tmp_path_factory.mktemp("sif") / "a.sif", {}).read_bytes()


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_image_is_named(whole, tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cut") / "a.sif"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ContainerError, match="is truncated|is not a SIF image"):
        image.read(path)


@given(changes=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=20))
def test_no_damage_breaks_the_reader(whole, tmp_path_factory, changes):
    damaged = bytearray(whole)
    for position, value in changes:
        damaged[position] = value
    path = tmp_path_factory.mktemp("damaged") / "a.sif"
    path.write_bytes(damaged)
    # Anything but a ContainerError would fail the test.
    with contextlib.suppress(ContainerError):
        image.check(image.read(path), X86)


def test_the_schema_is_of_what_a_study_may_hold_not_of_its_prose():
    schema = {"title": "A", "properties": {"a": {"description": "x", "type": "int"}}}
    other = {"title": "B", "properties": {"a": {"description": "y", "type": "int"}}}
    assert image._bare(schema) == image._bare(other) == {"properties": {"a": {"type": "int"}}}
    assert len(image.schema_sha256()) == 64


def test_the_labels_that_an_image_is_built_with():
    """What containers/install.sh runs."""
    said = subprocess.run(
        [sys.executable, "-m", "simhpc.cluster.image"], capture_output=True, text=True, check=True
    ).stdout
    assert dict(line.split(" ", 1) for line in said.splitlines()) == image.labels()
    assert image.labels()[image.VERSION] == __version__
