"""The report's HTML, without a browser: its parts, what is embedded, and that no text of the data is ever markup."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from report.html_page import Page
from report.synthetic import content_of

from simhpc.report.figure import COLOURS
from simhpc.report.page import document
from simhpc.report.page.content import Analysis, Attacked, Example, Examples, File, ModelRow, Table

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \" ' & \u2028"


@pytest.fixture(scope="module")
def small():
    return content_of(12)


def test_structure_names_and_policy(small):
    page = Page(document.render(small))
    assert page.one("html")["lang"] == "en"
    assert page.all("title")[0].text == "imagenet69: similarity of 12 models"
    headings = [int(element.tag[1]) for element in page.elements if re.fullmatch("h[1-6]", element.tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    ids = [element["id"] for element in page.elements if element["id"]]
    assert len(set(ids)) == len(ids)
    links = [element["href"] for element in page.inside(page.one("nav"), "a")]
    assert links
    assert {link.removeprefix("#") for link in [*links, page.one("a", class_="skip")["href"]]} <= set(ids)
    for section in page.all("section"):
        assert page.one(id=section["aria-labelledby"]).tag == "h2"
    for control in [*page.all("select"), *page.all("input")]:
        assert page.one("label", for_=control["id"]).text
    for region in page.all(role="region"):
        assert region["aria-label"]
        assert region["tabindex"] == "0"
    for image in [*page.all("img"), *page.all("svg", role="img")]:
        assert image["alt"] or image["aria-label"]
    script, style = page.all("script")[-1].text, page.one("style").text
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"})["content"]
    for kind, text in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_nothing_is_loaded_and_nothing_is_inline_but_script_and_style(small):
    source = document.render(small)
    page = Page(source)
    assert not re.search(r"https?://", source)
    assert page.all("link") == page.all("iframe") == []
    for element in page.elements:
        assert not [name for name in element.attributes if name.startswith("on") or name in ("style", "srcset")]
        for name in ("src", "href"):
            assert not element[name] or element[name].startswith(("#", "data:"))


def test_the_data_are_the_matrix():
    small = content_of(12)
    matrix = small.matrix
    matrix.sat[2, 5] = matrix.sat[5, 2] = np.nan
    page = Page(document.render(small))
    data = json.loads(page.one("script", id="data").text)
    assert [model["key"] for model in data["models"]] == matrix.models
    assert data["orders"] == small.orders
    upper = list(zip(*np.triu_indices(12), strict=True))
    assert len(data["sat"]) == len(data["nCommon"]) == len(upper) == 78
    for k, (a, b) in enumerate(upper):
        # All digits: 2.68499, rounded to 2.685 here and then by the script, would be read as 2.69.
        assert data["sat"][k] == (None if (a, b) == (2, 5) else matrix.sat[a, b])
        assert data["ciLow"][k] == matrix.ci_low[a, b]
        assert data["nCommon"][k] == matrix.n_common[a, b]
    assert data["nFooled"] == matrix.n_fooled.ravel().tolist()
    between = matrix.sat[np.triu_indices(12, 1)]
    assert (data["scale"]["low"], data["scale"]["high"]) == (np.nanmin(between), np.nanmax(between))
    assert data["scale"]["colours"][0] == "#00224e"  # cividis
    assert data["scale"]["colours"][255] == "#fee838"
    # One of the two is left out of the plane, and that is said.
    assert len([g for g in page.inside(page.one("svg", id="plane"), "g") if g["data-model"]]) == 11
    assert "1 model(s) with unknown similarities are left out" in page.one("section", id="clusters").text


def test_a_number_looks_alike_in_the_table_and_where_the_script_writes_it():
    """Python rounds halves to even digits, JavaScript away from 0: 393 of 400 was 98.2 % here and 98.3 % there."""
    cases = [(0.125, 2, "0.13"), (-0.125, 2, "-0.13"), (2.675, 2, "2.67"), (98.25, 1, "98.3"), (2.0, 2, "2.00")]
    for value, decimals, text in cases:
        assert document.fixed(value, decimals) == text
    assert document.percent(393 / 400) == "98.3 %"
    assert document.percent(1157 / 2000) == "57.9 %"  # 57.849999999999994 in binary
    content = content_of(3, examples=Examples(absent="none"))
    content.matrix.clean_accuracy[0] = 393 / 400
    content.matrix.sat[0, 1:] = content.matrix.sat[1:, 0] = 2.125
    page = Page(document.render(content))
    cells = [cell.text for cell in page.inside(page.inside(page.one("section", id="models"), "tr")[1], "td")]
    assert cells[3] == json.loads(page.one("script", id="data").text)["models"][0]["accuracy"] == "98.3 %"
    assert cells[5:7] == ["2.13", f"{content.matrix.models[1]} (2.13)"]


def test_hostile_text_stays_text(small):
    """Titles, notes, class names, cells and file names are anybody's."""
    hostile = dataclasses.replace(
        small,
        title=HOSTILE,
        matrix=dataclasses.replace(small.matrix, notes=[HOSTILE], problems=[HOSTILE]),
        facts=[(HOSTILE, HOSTILE)],
        provenance=[(HOSTILE, HOSTILE)],
        hashes=[(HOSTILE, HOSTILE)],
        models=[ModelRow(row.key, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE) for row in small.models],
        orders={HOSTILE: list(range(12))},
        analyses=[
            *small.analyses,
            Analysis(
                "x", HOSTILE, HOSTILE, facts=[(HOSTILE, HOSTILE)], notes=[HOSTILE], settings=[(HOSTILE, HOSTILE)],
                tables=[Table(HOSTILE, [HOSTILE], [[HOSTILE]])],
            ),
            Analysis("y", "Y", "", absent=HOSTILE),
        ],
        examples=Examples(
            examples=[Example(HOSTILE, HOSTILE, [Attacked(HOSTILE, "data:,", "data:,", "data:,", HOSTILE, True)])]
        ),
    )  # fmt: skip
    page = Page(document.render(hostile))
    plain = Page(document.render(small))
    assert len(page.all("script")) == len(plain.all("script")) == 2
    assert page.one("h1").text == HOSTILE
    assert {element.tag for element in page.elements} <= {element.tag for element in plain.elements} | {
        "figure", "figcaption", "b", "img", "details", "summary", "ul", "li", "thead",
    }  # fmt: skip
    assert not [element for element in page.elements if "onerror" in element.attributes]
    assert json.loads(page.one("script", id="data").text)["models"][0]["timm"] == HOSTILE
    assert page.all("td", class_="long")[0].text == HOSTILE


def test_embedded_json_holds_nothing_that_ends_it():
    text = document.embedded_json({"a": HOSTILE, "b": [None, 1.5]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": HOSTILE, "b": [None, 1.5]}


def test_the_same_content_gives_the_same_bytes():
    assert document.render(content_of(5)) == document.render(content_of(5))


def file_of(path, n_bytes):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes([32]) * n_bytes)
    return File(f"{path.parent.name}/{path.name}", path, n_bytes)


def test_files_are_embedded_whole_and_can_be_had(small, tmp_path):
    table = tmp_path / "analysis" / "t.csv"
    table.parent.mkdir()
    table.write_text("a,b\n1,ü\n")
    page = Page(document.render(dataclasses.replace(small, files=[File("analysis/t.csv", table, 10)])))
    link = page.one("a", download="t.csv")
    assert link.text == "analysis/t.csv"
    kind, _, data = link["href"].partition(",")
    assert (kind, base64.b64decode(data)) == ("data:text/csv;base64", table.read_bytes())


def test_the_largest_files_are_left_out_where_the_page_would_be_too_large(small, tmp_path):
    files = [file_of(tmp_path / "analysis" / f"{size}.csv", size) for size in (3_000_000, 100, 2_500_000, 4_000_000)]
    figure = file_of(tmp_path / "figures" / "big.svg", 5_000_000)
    analysis = Analysis("x", "X", "", figure=figure, files=files[:2])
    source = document.render(dataclasses.replace(small, analyses=[*small.analyses, analysis], files=files[2:]))
    page = Page(source)
    assert len(source.encode()) <= document.MOST_BYTES < 9_100_000
    had = {link["download"] for link in page.all("a") if link["download"]}
    assert had == {"100.csv", "2500000.csv", "3000000.csv"}
    assert "analysis/4000000.csv (4.0 MB): too large for this page" in page.one("section", id="files").text
    assert "figures/big.svg (5.0 MB) is too large for this page" in page.one("section", id="x").text
    assert page.inside(page.one("section", id="x"), "img") == []


def test_sixty_nine_models_are_all_there_and_small():
    content = content_of(69)
    source = document.render(content)
    page = Page(source)
    assert len(source.encode()) < 600_000
    assert len([g for g in page.inside(page.one("svg", id="tree"), "g") if g["data-model"]]) == 69
    assert len(page.inside(page.one("select", id="pick"), "option")) == 70
    assert len(page.inside(page.one("section", id="models"), "tr")) == 70


@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_models(n):
    study_like = content_of(3)
    matrix = study_like.matrix
    fewer = dataclasses.replace(
        matrix,
        models=matrix.models[:n],
        timm_names=matrix.timm_names[:n],
        clean_accuracy=matrix.clean_accuracy[:n],
        **{
            name: getattr(matrix, name)[:n, :n]
            for name in ("sat", "ci_low", "ci_high", "n_common", "n_fooled", "n_both")
        },
    )
    content = dataclasses.replace(
        study_like, matrix=fewer, models=study_like.models[:n], orders={"as given": list(range(n))}, grouping=None
    )
    page = Page(document.render(content))
    assert page.all("svg", id="plane") == []  # one pair is the most alike one: its distance is 0
    assert page.all("svg", id="tree") == []
    row = page.inside(page.one("section", id="models"), "tr")[1]
    assert ("unknown" in row.text) == (n == 1)  # the mean SAT over no others


def test_a_matrix_of_which_nothing_is_known():
    content = content_of(3)
    content.matrix.sat[:] = np.nan
    page = Page(document.render(dataclasses.replace(content, grouping=None)))
    data = json.loads(page.one("script", id="data").text)
    assert set(data["sat"]) == {None}
    assert data["scale"]["low"] < data["scale"]["high"]


def test_clusters_are_coloured_alike_everywhere(small):
    page = Page(document.render(small))
    style = page.one("style").text
    for k, colour in enumerate(COLOURS):
        assert f".c{k} {{ color: {colour.lower()}; fill: {colour.lower()}; }}" in style
    clusters = small.grouping.cluster_of
    for drawing in ("plane", "tree"):
        groups = [g for g in page.inside(page.one("svg", id=drawing), "g") if g["data-model"]]
        assert len(groups) == 12
        for group in groups:
            key = small.matrix.models[int(group["data-model"])]
            (mark,) = [e for e in page.elements if group in e.parents and e["class"].startswith("mark")]
            assert mark["class"] == f"mark c{(clusters[key] - 1) % len(COLOURS)}"


def test_more_clusters_than_colours_are_told_apart(small):
    """The paper has ten. Six colours, each whole, as an outline, and pale; the list of clusters shows the same."""
    keys = small.matrix.models
    grouping = dataclasses.replace(small.grouping, cluster_of={key: k for k, key in enumerate(keys, 1)})
    page = Page(document.render(dataclasses.replace(small, grouping=grouping)))
    looks = {}
    for drawing in ("plane", "tree"):
        looks[drawing] = {
            keys[int(group["data-model"])]: mark["class"]
            for group in page.inside(page.one("svg", id=drawing), "g")
            for mark in page.elements
            if group in mark.parents and mark["class"].startswith("mark")
        }
        assert len(set(looks[drawing].values())) == 12
    assert looks["plane"] == looks["tree"]
    listed = [rect["class"] for rect in page.inside(page.one("ul", **{"aria-label": "Clusters"}), "rect")]
    assert listed == [looks["tree"][key] for key in keys]


def test_a_shape_that_two_families_share_is_told(small):
    told = "There are more families than shapes"
    assert told not in document.render(small)
    models = [dataclasses.replace(row, family=f"family {k}") for k, row in enumerate(small.models)]
    assert told in document.render(dataclasses.replace(small, models=models))


def test_what_only_a_run_has_is_no_column_of_a_matrix_from_elsewhere(small):
    for examples, columns in ((None, 5), (Examples(absent="none"), 9)):
        page = Page(document.render(dataclasses.replace(small, examples=examples)))
        rows = page.inside(page.one("section", id="models"), "tr")
        for row in rows:
            assert len(page.inside(row, "th") + page.inside(row, "td")) == columns
        assert ("self-fooling" in page.one("section", id="models").text) == (examples is not None)


def contrast(one, other):
    """WCAG 2.1's contrast ratio of two `#rrggbb`."""

    def luminance(colour):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_has_the_contrast_of_wcag_aa_in_both_colour_schemes(small):
    assert contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.01)  # the well-known limit
    style = Page(document.render(small)).one("style").text
    schemes = re.findall(r":root \{(.*?)\}", style, re.S)[:2]
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        for ground in ("background", "panel"):
            for text in ("text", "muted", "link"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert contrast(colours["text"], colours["found"]) >= 4.5
        assert contrast(colours["focus"], colours["background"]) >= 3


def test_every_part_of_the_page_is_packaged():
    """An installed simhpc has no source tree to find them in."""
    root = Path(document.__file__).parents[2]
    with (root.parent / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["simhpc"]
    parts = {path for path in Path(document.__file__).parent.iterdir() if path.suffix in (".jinja", ".css", ".js")}
    assert len(parts) == 3
    assert parts <= {path for pattern in patterns for path in root.glob(pattern)}
