"""Fetching weights for real: from a hub in miniature, into huggingface_hub's own cache, loaded by timm's own path."""

from __future__ import annotations

import functools
import hashlib

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load, save
from zoo import hub as hubs

from simhpc.errors import ModelError
from simhpc.study import Model
from simhpc.zoo import staging, weights

NAME = "test_resnet.r160_in1k"
FILE = f"{hubs.repository(NAME)}/model.safetensors"
MODEL = Model(key="m", timm="test_resnet", weights="pretrained:r160_in1k")


@functools.cache
def content() -> bytes:
    return hubs.weights_of(NAME)


def broken(seed: int = 5) -> bytes:
    """The same length, one bit of one weight another."""
    changed = bytearray(content())
    changed[-seed] ^= 1
    return bytes(changed)


def fetch():
    return staging.fetch(MODEL, lambda *_: None)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one model, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hubs.Hub({FILE: content()}).running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub


def downloads(hub) -> list[str]:
    return [each for each in hub.requests if each == f"GET {FILE}"]


def test_what_is_not_here_is_fetched_once_and_checked(hub):
    told = []
    assert not weights.is_staged(MODEL)
    first = staging.fetch(MODEL, lambda done, total: told.append((done, total)))
    assert first.how == "fetched"
    assert first.path.read_bytes() == content()
    assert first.size_bytes == len(content())
    assert first.checksum == f"sha256:{hashlib.sha256(content()).hexdigest()}"
    assert told[-1] == (len(content()), len(content()))
    assert weights.is_staged(MODEL)
    assert fetch().how == "here already"
    assert len(downloads(hub)) == 1


def test_a_damaged_file_is_named_and_fetched_again(hub):
    path = fetch().path
    path.resolve().write_bytes(broken())
    again = fetch()
    assert again.how == "fetched again"
    assert str(path) in again.damage
    assert "damaged or cut short" in again.damage
    assert path.read_bytes() == content()


@pytest.mark.parametrize("left", [0, 1000])
def test_a_file_that_was_cut_short_is_named_where_there_is_no_network(hub, monkeypatch, left):
    path = fetch().path
    path.resolve().write_bytes(content()[:left])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="damaged or cut short") as caught:
        fetch()
    assert str(path) in str(caught.value)
    assert "HF_HUB_OFFLINE is set" in str(caught.value)
    assert path.exists()


def test_a_download_that_is_cut_short_leaves_nothing_under_the_final_name(hub):
    hub.sent[FILE] = content()[:1000]
    with pytest.raises(ModelError, match="cannot be fetched: .*size"):
        fetch()
    assert not weights.is_staged(MODEL)
    del hub.sent[FILE]
    assert fetch().how == "fetched"


def test_a_download_of_the_right_length_and_the_wrong_bytes_is_not_kept(hub):
    hub.sent[FILE] = broken()
    with pytest.raises(ModelError, match="damaged or cut short.*just fetched, and is deleted"):
        fetch()
    assert not weights.is_staged(MODEL)


def test_weights_of_another_network_are_refused_as_published(hub):
    state = load(content())
    state["fc.bias"] = torch.zeros(7)
    hub.files[FILE] = save(state)
    with pytest.raises(ModelError, match="cannot be loaded: Error.*\n.*fc.bias"):
        fetch()
    hub.files[FILE] = save({**load(content()), "fc.bias": torch.full((1000,), float("nan"))})
    weights.staged_file(MODEL).unlink()
    with pytest.raises(ModelError, match="fc.bias holds NaN or infinity"):
        fetch()


def test_one_failure_stops_no_other(hub):
    missing = Model(key="missing", timm="test_vit", weights="pretrained:r160_in1k")
    unknown = Model(key="unknown", timm="test_resnet", weights="pretrained:r160_in2k")
    outcomes = [outcome for _, outcome in staging.fetch_all([missing, unknown, MODEL], lambda *_: None)]
    assert "holds none of model.safetensors, pytorch_model.bin" in str(outcomes[0])
    assert "timm has no weights 'test_resnet.r160_in2k'; did you mean 'r160_in1k'?" in str(outcomes[1])
    assert isinstance(outcomes[2], staging.Staged)


def test_a_cache_without_links_is_checked_against_the_hub(hub, monkeypatch):
    """Some file systems know no links, and `cp -rL` follows them: then no name in the cache is a checksum."""
    path = fetch().path
    blob = path.resolve()
    path.unlink()
    blob.rename(path)
    assert fetch().checksum == f"sha256:{blob.name}"
    path.write_bytes(broken())
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert fetch().checksum == ""  # it is whole and fits: all that can be known
        path.write_bytes(content()[:-9])
        with pytest.raises(ModelError, match="cannot be loaded.*No checksum of it is known here.*and is kept"):
            fetch()
    assert fetch().how == "fetched again"
    assert len(downloads(hub)) == 2


def without_links(file):
    """As `cp -rL` leaves it: a file in place of the link, and no blob."""
    blob = file.resolve()
    file.unlink()
    blob.rename(file)
    return file


@pytest.mark.parametrize(("left", "args"), [(1000, {}), (None, {"no_such_argument": 1})], ids=["cut short", "whole"])
def test_what_may_be_whole_is_kept_where_the_hub_cannot_be_asked(hub, monkeypatch, left, args):
    path = without_links(fetch().path)
    path.write_bytes(content()[:left])
    hub.requests.clear()
    # Nothing listens there; HF_HUB_OFFLINE is not set.
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(staging, "hf_hub_download", lambda *_, **__: pytest.fail("it was to be fetched again"))
    with pytest.raises(ModelError, match="No checksum of it is known here, so it may be whole") as caught:
        staging.fetch(MODEL.model_copy(update={"args": args}), lambda *_: None)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content()[:left]


@pytest.mark.parametrize("is_linked", [True, False])
def test_a_damaged_file_stays_until_another_is_here(hub, is_linked):
    path = fetch().path if is_linked else without_links(fetch().path)
    path.resolve().write_bytes(broken())
    hub.sent[FILE] = content()[:1000]
    with pytest.raises(ModelError, match="damaged or cut short.*cannot be fetched, and stays as it is: .*size"):
        fetch()
    assert path.read_bytes() == broken()
    del hub.sent[FILE]
    again = fetch()
    assert (again.how, again.path) == ("fetched again", path)
    assert path.read_bytes() == content()


def test_so_does_one_from_another_place_than_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    name = f"net-{hashlib.sha256(content()).hexdigest()[:8]}.safetensors"
    monkeypatch.setattr(weights, "_source", lambda _: ("url", f"{hub.url}/place/resolve/main/{name}"))
    monkeypatch.setattr(staging, "load_pretrained", lambda *_: torch.nn.Identity())
    path = tmp_path / "torch" / "checkpoints" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(broken())
    with pytest.raises(ModelError, match="damaged or cut short.*cannot be fetched, and stays as it is: .*404"):
        fetch()
    assert path.read_bytes() == broken()
    hub.files[f"place/{name}"] = content()
    assert fetch().how == "fetched again"
    assert path.read_bytes() == content()


def test_weights_with_a_21k_head_are_fetched(hub):
    """What a study asks of a model's outputs is no question here."""
    name = "tiny_vit_5m_224.dist_in22k"
    hub.files[f"{hubs.repository(name)}/model.safetensors"] = hubs.weights_of(name)
    model = Model(key="m", timm="tiny_vit_5m_224", weights="pretrained:dist_in22k")
    assert staging.fetch(model, lambda *_: None).how == "fetched"


def test_small_files_have_gits_checksum(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "ce013625030ba8dba906f756967f9e9ca394464a").write_bytes(b"hello\n")  # git hash-object
    link = tmp_path / "model.safetensors"
    link.symlink_to("blobs/ce013625030ba8dba906f756967f9e9ca394464a")
    published = staging._published_checksum(MODEL, link)
    assert published == "git-sha1:ce013625030ba8dba906f756967f9e9ca394464a"
    assert staging._checksum_like(published, link) == published


def test_the_variables_say_where_it_lies(hub, tmp_path, monkeypatch):
    assert staging.node_environment([MODEL]) == {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert staging.node_environment([MODEL])["HF_HUB_CACHE"] == str(tmp_path / "elsewhere")
