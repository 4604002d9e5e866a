"""The report in a real headless Chromium: it answers to mouse and keyboard, loads nothing, and fits its window.

`make test-browser` runs these; a browser that is missing is a failure.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
from report.synthetic import synthetic_run

from simhpc.offline import analyze
from simhpc.offline import report as stage
from simhpc.offline.inputs import Settings, inputs_of_files, inputs_of_run
from simhpc.rundir import RunDir, open_run
from simhpc.store import similarity
from simhpc.study import Boosting

pytestmark = pytest.mark.browser

N_MODELS = 14
UNKNOWN = (3, 8)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "there is no Chromium on this machine: apt-get install chromium"
    # Its sandbox cannot be made by root.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=options)
        yield started
        started.close()


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Fourteen of the paper's models with a made-up matrix, one pair of which is unknown; analysed and reported."""
    made = synthetic_run(tmp_path_factory.mktemp("browser") / "run", n_models=N_MODELS, n_attacked=3)
    matrix = similarity.load(made.dir.similarity)
    for cells in (matrix.sat, matrix.ci_low, matrix.ci_high):
        cells[UNKNOWN] = cells[UNKNOWN[::-1]] = np.nan
    matrix.n_fooled[UNKNOWN] = matrix.n_fooled[UNKNOWN[::-1]] = -1
    matrix.notes.append("a note with <b>markup</b>")
    matrix.save(made.dir.similarity)
    inputs = inputs_of_run(made, made.dir)
    for name in ("importance", "clusters"):
        analyze.ANALYSES[name](inputs, made.dir, Settings(boosting=Boosting(stages=5, max_depth=2)))
    stage.write(made, made.dir.report)
    return made


@pytest.fixture(scope="session")
def matrix(run):
    return similarity.load(run.dir.similarity)


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """All 69, not analysed."""
    made = synthetic_run(tmp_path_factory.mktemp("large") / "run", n_attacked=0)
    stage.write(made, made.dir.report)
    return open_run(made.dir.root)


@pytest.fixture
def opened(browser):
    """Open a report; at the end nothing may have been written on the console, asked of a network or raised."""
    contexts, complaints = [], []

    def opened(run, viewport=WIDE, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if not is_local(request.url) else None)
        page.goto(run.dir.report.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def is_local(url):
    return url.startswith(("file:///", "data:"))


def names(page, axis="row"):
    return page.locator(f"#{axis}-names .name").all_text_contents()


def cell_centre(page, row, column):
    """Of the cell of two models, in the order that is shown, on the page."""
    order = names(page)
    page.evaluate(
        "([row, column]) => { const box = document.getElementById('matrix-box');"
        " const middle = (place) => place * document.getElementById('canvas').offsetWidth - box.clientHeight / 2;"
        " box.scrollTop = middle(row); box.scrollLeft = middle(column);"
        " box.scrollIntoView({block: 'center'}) }",
        [(order.index(name) + 0.5) / len(order) for name in (row, column)],
    )
    box = page.locator("#canvas").bounding_box()
    side = box["width"] / len(order)
    return box["x"] + (order.index(column) + 0.5) * side, box["y"] + (order.index(row) + 0.5) * side


def expected_text(matrix, a, b):
    one, other, common = matrix.models[a], matrix.models[b], matrix.n_common[a, b]

    def direction(source, target):
        fooled = matrix.n_fooled[source, target]
        return f"{100 * fooled / common:.1f} % ({fooled} of {common} images)"

    return (
        f"{one} and {other}: SAT {matrix.sat[a, b]:.2f} (95 % interval {matrix.ci_low[a, b]:.2f} to "
        f"{matrix.ci_high[a, b]:.2f}). Attacks on {one} fool {other}: {direction(a, b)}. "
        f"Attacks on {other} fool {one}: {direction(b, a)}."
    )


@pytest.mark.parametrize(("a", "b"), [(0, 5), (5, 0), (13, 2)])
def test_pointing_at_a_cell_tells_its_numbers(opened, run, matrix, a, b):
    page = opened(run)
    page.mouse.move(*cell_centre(page, matrix.models[a], matrix.models[b]))
    assert page.locator("#readout").text_content() == expected_text(matrix, a, b)
    assert page.locator("#row-names .current").all_text_contents() == [matrix.models[a]]
    assert page.locator("#column-names .current").all_text_contents() == [matrix.models[b]]


def test_the_diagonal_and_an_unknown_pair(opened, run, matrix):
    page = opened(run)
    own = matrix.models[4]
    page.mouse.move(*cell_centre(page, own, own))
    fooled, common = matrix.n_fooled[4, 4], matrix.n_common[4, 4]
    text = page.locator("#readout").text_content()
    assert text.startswith(f"{own} with itself: SAT {matrix.sat[4, 4]:.2f} (95 % interval")
    assert text.endswith(f"Attacks on it fool it itself: {100 * fooled / common:.1f} % ({fooled} of {common} images).")
    one, other = (matrix.models[k] for k in UNKNOWN)
    page.mouse.move(*cell_centre(page, one, other))
    assert page.locator("#readout").text_content() == (
        f"{one} and {other}: SAT unknown. Attacks on {one} fool {other}: unknown. "
        f"Attacks on {other} fool {one}: unknown."
    )
    assert page.locator("#legend-unknown").is_visible()


def colours_at(page, shares):
    """Of the matrix's picture, at places given as shares of its width and height; read once."""
    return page.evaluate(
        "(shares) => { const {width, height} = canvas;"
        " const {data} = canvas.getContext('2d').getImageData(0, 0, width, height);"
        " return shares.map(([x, y]) => {"
        "  const first = 4 * (Math.floor(y * height) * width + Math.floor(x * width));"
        "  return [...data.slice(first, first + 3)] }) }",
        shares,
    )


def test_colours_are_those_of_the_scale(opened, run, matrix):
    page = opened(run)
    data = json.loads(page.locator("#data").text_content())
    scale, order = data["scale"], names(page)
    cells = [(0, 1), (2, 9), (6, 6), UNKNOWN]
    # Beside the number that stands in the middle.
    places = [[(order.index(matrix.models[k]) + 0.2) / N_MODELS for k in (b, a)] for a, b in cells]
    *known, unknown = colours_at(page, places)
    for (a, b), got in zip(cells, known, strict=False):
        share = min(1.0, (matrix.sat[a, b] - scale["low"]) / (scale["high"] - scale["low"]))
        expected = scale["colours"][int(share * 255 + 0.5)]
        assert np.abs(np.array(got) - [int(expected[k : k + 2], 16) for k in (1, 3, 5)]).max() <= 3
    assert len(set(unknown)) == 1  # grey, which cividis has nowhere


def test_every_order_moves_rows_columns_and_cells(opened, run, matrix):
    page = opened(run)
    orders = json.loads(page.locator("#data").text_content())["orders"]
    assert {"cluster", "family", "accuracy", "as given"} <= set(orders)
    seen = set()
    for name, order in orders.items():
        page.select_option("#order", name)
        expected = [matrix.models[k] for k in order]
        assert names(page, "row") == names(page, "column") == expected
        tops = [label.bounding_box()["y"] for label in page.locator("#row-names .name").all()]
        assert tops == sorted(tops)
        page.mouse.move(*cell_centre(page, matrix.models[7], matrix.models[1]))
        assert page.locator("#readout").text_content() == expected_text(matrix, 7, 1)
        seen.add(tuple(expected))
    assert len(seen) > 2
    page.select_option("#order", "accuracy")
    assert names(page)[0] == matrix.models[int(np.argmax(matrix.clean_accuracy))]


def test_what_is_pointed_at_stays_when_the_order_changes(opened, run, matrix):
    page = opened(run)
    page.select_option("#order", "as given")
    page.mouse.move(*cell_centre(page, matrix.models[2], matrix.models[6]))
    page.select_option("#order", "accuracy")
    assert page.locator("#readout").text_content() == expected_text(matrix, 2, 6)
    frame = page.locator("#frame").bounding_box()
    x, y = cell_centre(page, matrix.models[2], matrix.models[6])
    assert frame["x"] < x < frame["x"] + frame["width"]
    assert frame["y"] < y < frame["y"] + frame["height"]


def test_a_page_that_is_come_back_to_shows_the_order_that_its_list_says(opened, run):
    """Browsers put back what was chosen, and tell no script."""
    page = opened(run)
    first = names(page)
    page.select_option("#order", "accuracy")
    assert names(page) != first
    page.goto("about:blank")
    page.go_back()
    assert (names(page) == first) == (page.locator("#order").input_value() == "cluster")


def test_the_keyboard_moves_through_the_matrix(opened, run, matrix):
    page = opened(run)
    page.select_option("#order", "as given")
    page.locator("#matrix-box").focus()
    for key, (a, b) in (
        ("", (0, 1)), ("ArrowDown", (1, 1)), ("ArrowRight", (1, 2)), ("End", (1, 13)), ("ArrowRight", (1, 13)),
        ("PageDown", (13, 13)), ("ArrowUp", (12, 13)), ("Home", (12, 0)), ("ArrowLeft", (12, 0)), ("PageUp", (0, 0)),
    ):  # fmt: skip
        if key:
            page.keyboard.press(key)
        assert page.locator("#row-names .current").all_text_contents() == [matrix.models[a]]
        assert page.locator("#column-names .current").all_text_contents() == [matrix.models[b]]
    assert page.locator("#readout").get_attribute("aria-live") == "polite"
    assert page.locator("#readout").text_content().startswith(f"{matrix.models[0]} with itself")
    before = page.evaluate("scrollY")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("scrollY") == before  # the page itself does not move


def test_the_cell_that_the_keyboard_is_at_is_in_view(opened, large):
    page = opened(large, NARROW)
    page.locator("#matrix-box").focus()
    for key in ("End", "PageDown", "Home", "PageUp"):
        page.keyboard.press(key)
        frame, box = page.locator("#frame").bounding_box(), page.locator("#matrix-box").bounding_box()
        corner = page.locator("#corner").bounding_box()
        assert corner["x"] + corner["width"] - 1 <= frame["x"]
        assert frame["x"] + frame["width"] <= box["x"] + box["width"] + 1
        assert corner["y"] + corner["height"] - 1 <= frame["y"]
        assert frame["y"] + frame["height"] <= box["y"] + box["height"] + 1


def test_a_model_is_found_in_matrix_plane_and_tree(opened, run, matrix):
    page = opened(run)
    wanted = matrix.models[5]
    page.fill("#search", wanted.upper())
    assert page.locator("#search-status").text_content() == f"Found: {wanted}"
    for place in ("#row-names", "#column-names"):
        assert page.locator(f"{place} .found").all_text_contents() == [wanted]
    assert page.locator(".band").count() == 2
    for drawing in ("#plane", "#tree"):
        assert page.locator(f"{drawing} .found").get_attribute("data-model") == "5"
    both = [key + timm for key, timm in zip(matrix.models, matrix.timm_names, strict=True)]
    part = next(key[:4] for key in matrix.models if 1 < sum(key[:4] in text for text in both) < N_MODELS)
    matches = [key for key, text in zip(matrix.models, both, strict=True) if part in text]
    assert len(matches) > 1
    page.fill("#search", part)
    assert set(page.locator("#row-names .found").all_text_contents()) == set(matches)
    page.fill("#search", "no such model")
    assert page.locator("#search-status").text_content() == "No model matches."
    page.fill("#search", "")
    assert page.locator(".found").count() == 0
    assert page.locator("#search-status").text_content() == ""


def test_a_model_is_picked_in_the_drawings(opened, run, matrix):
    page = opened(run)
    nearest = [k for k in np.argsort(-matrix.sat[6]) if k != 6][:3]
    alike = ", ".join(f"{matrix.models[k]} (SAT {matrix.sat[6, k]:.2f})" for k in nearest)
    page.select_option("#pick", "6")
    told = page.locator("#picked").text_content()
    assert told.startswith(f"{matrix.models[6]}: ")
    assert told.endswith(f"most alike: {alike}")
    assert f"accuracy {100 * matrix.clean_accuracy[6]:.1f} %" in told
    assert page.locator("#plane .current, #tree .current").count() == 2
    page.locator("#tree [data-model='2'] text").click()
    assert page.locator("#pick").input_value() == "2"
    page.locator("#plane [data-model='9'] .mark").hover()
    assert page.locator("#picked").text_content().startswith(f"{matrix.models[9]}: ")
    assert page.locator("#plane [data-model='9'] text").evaluate("e => getComputedStyle(e).visibility") == "visible"
    # Once nothing is pointed at it is again the model that the list names.
    chosen = matrix.models[int(page.locator("#pick").input_value())]
    page.locator("#clusters-title").hover()
    assert page.locator("#picked").text_content().startswith(f"{chosen}: ")
    page.select_option("#pick", "")
    assert page.locator(".current[data-model]").count() == 0


def test_tables_are_downloaded_as_they_are(opened, run):
    page = opened(run)
    with page.expect_download() as download:
        page.locator("a[download='similarity.csv']").click()
    got = download.value.path().read_bytes()
    assert download.value.suggested_filename == "similarity.csv"
    assert got == run.dir.similarity_csv.read_bytes()


def test_everything_that_answers_is_reached_by_tab_and_has_a_name(opened, run):
    page = opened(run)
    wanted = page.evaluate(
        "[...document.querySelectorAll('a[href], select, input, summary, [tabindex=\"0\"]')]"
        ".filter(e => e.checkVisibility()).length"
    )
    reached = []
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "(() => { const e = document.activeElement;"
            " if (e === document.body) return null;"
            " const name = e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent;"
            " const style = getComputedStyle(e); const box = e.getBoundingClientRect();"
            " return {tag: e.tagName, id: e.id, name: name.trim(), outline: style.outlineStyle, width: box.width,"
            "  inView: box.bottom > 0 && box.top < innerHeight,"
            "  key: [...document.querySelectorAll('*')].indexOf(e)} })()"
        )
        if found is None:
            break
        reached.append(found)
    assert len({each["key"] for each in reached}) == wanted
    for each in reached:
        assert each["name"], each
        assert each["outline"] != "none", each
        assert each["width"] > 0, each
        assert each["inView"], each
    assert [each["key"] for each in reached] == sorted(each["key"] for each in reached)  # in the order of reading
    assert {"order", "search", "matrix-box", "pick"} <= {each["id"] for each in reached}
    page.goto(run.dir.report.as_uri())
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


LAYOUT = """() => {
  const problems = [];
  const seen = (e) => e.checkVisibility({visibilityProperty: true}) && e.getBoundingClientRect().width > 0;
  const inScroll = (e) => e.closest('.scroll');
  for (const e of document.querySelectorAll('body *')) {
    if (!seen(e) || inScroll(e) || e.closest('svg, .skip, noscript, datalist') || e.tagName === 'SCRIPT') continue;
    const box = e.getBoundingClientRect();
    if (box.left < -0.5 || box.right > innerWidth + 0.5) problems.push(['outside', e.outerHTML.slice(0, 80)]);
    if (e.children.length === 0 && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline')
      problems.push(['cut', e.outerHTML.slice(0, 80)]);
  }
  const blocks = [
    ...document.querySelectorAll('header > *, section > *, section dl > div, .drawings > div, footer'),
  ].filter(seen);
  for (const one of blocks) for (const other of blocks) {
    if (one === other || one.contains(other) || other.contains(one)) continue;
    const [a, b] = [one.getBoundingClientRect(), other.getBoundingClientRect()];
    if (a.left < b.right - 0.5 && b.left < a.right - 0.5 && a.top < b.bottom - 0.5 && b.top < a.bottom - 0.5)
      problems.push(['overlap', one.outerHTML.slice(0, 60), other.outerHTML.slice(0, 60)]);
  }
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll('text')) {
      if (!seen(text)) continue;
      const box = text.getBoundingClientRect();
      const isBeside = box.left < frame.left - 1 || box.right > frame.right + 1;
      if (isBeside || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        problems.push(['outside its drawing', text.textContent]);
    }
    const boxes = [...svg.querySelectorAll('text')].filter(seen).map((e) => [e.textContent, e.getBoundingClientRect()]);
    boxes.forEach(([name, a], k) => boxes.slice(k + 1).forEach(([next, b]) => {
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
        problems.push(['names overlap', name, next]);
    }));
  }
  const rows = [...document.querySelectorAll('#row-names .name')].map((e) => e.getBoundingClientRect());
  rows.slice(1).forEach((box, k) => { if (box.top < rows[k].bottom - 0.5) problems.push(['row names overlap', k]); });
  return problems;
}"""


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["1280", "400"])
@pytest.mark.parametrize("which", ["run", "large"])
def test_nothing_is_cut_overlaps_or_makes_the_page_scroll_sideways(opened, request, tmp_path, viewport, which):
    page = opened(request.getfixturevalue(which), viewport)
    for closed in page.locator("details").all():
        closed.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    assert page.evaluate(LAYOUT) == []
    picture = tmp_path / "page.png"
    page.screenshot(path=picture, full_page=True)
    from PIL import Image

    with Image.open(picture) as image:
        assert image.width == viewport["width"]
        # Not an empty page: cividis is there, and text.
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(0, 34, 78), (27, 29, 31), (255, 255, 255)} <= colours


NAMES = [
    "<img src=x onerror=alert(1)>", 'a "quoted" & <b>bold</b> name', "x" * 150, "名前のモデル", "a comma, and 'quotes'",
    "-1", "WWWWWWWWWWWWWWWWWWWWWWWW", "@@@ @@@ @@@",
]  # fmt: skip


# Of the figure of the clusters, which is not on the page.
@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["1280", "400"])
def test_names_of_any_kind_fit(opened, tmp_path, viewport):
    values = np.random.default_rng(0).uniform(1, 4, (len(NAMES), len(NAMES)))
    with (tmp_path / "m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", *NAMES])
        writer.writerows([name, *row] for name, row in zip(NAMES, (values + values.T) / 2, strict=True))
    made = RunDir(tmp_path / "m-analysis")
    analyze.ANALYSES["clusters"](inputs_of_files(tmp_path / "m.csv", None), made, Settings())
    stage.write_of_files(tmp_path / "m.csv", made.root, made.report)
    page = opened(SimpleNamespace(dir=made), viewport)
    assert names(page) != []
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    assert page.evaluate(LAYOUT) == []
    page.fill("#search", "@@")
    assert page.locator("#search-status").text_content() == "Found: @@@ @@@ @@@"


def test_a_dark_screen_gets_a_dark_page(opened, run):
    page = opened(run, color_scheme="dark")
    background, text = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")

    def brightness(colour):
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert brightness(background) < 120
    assert brightness(text) > 600


def test_nothing_moves_by_itself(opened, run):
    page = opened(run)
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    assert page.evaluate("document.getAnimations().length") == 0


def test_a_window_that_is_resized_is_used(opened, run):
    page = opened(run)
    wide = page.locator("#canvas").bounding_box()["width"]
    page.set_viewport_size(NARROW)
    # Not wait_for_function: it evaluates a string in the page, which the page's policy forbids.
    deadline_s = time.monotonic() + 10
    while page.locator("#canvas").bounding_box()["width"] >= wide:
        assert time.monotonic() < deadline_s, "the matrix keeps the width of the larger window"
        page.wait_for_timeout(20)
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]


def test_it_can_be_printed(opened, run):
    page = opened(run)
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.locator("#order").is_hidden()
    assert page.locator("#canvas").is_visible()


PAPER = {"width": 718, "height": 1000}  # A4 less its margins


def test_all_sixty_nine_fit_on_paper(opened, large):
    page = opened(large, PAPER, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#grid").bounding_box()["width"] <= PAPER["width"] - 40
    rows = [label.bounding_box() for label in page.locator("#row-names .name").all()]
    assert all(before["y"] + before["height"] <= after["y"] + 0.5 for before, after in itertools.pairwise(rows))


def test_what_is_folded_is_open_on_paper(opened, run):
    page = opened(run)
    folded = page.locator("details").count()
    page.locator("details > summary").first.click()
    assert page.locator("details:not([open])").count() == folded - 1 > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details[open]").count() == folded
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 1


def test_without_scripts_it_says_so_and_the_rest_is_read(browser, run):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(run.dir.report.as_uri())
    assert page.locator("noscript p").is_visible()
    assert page.locator("#plane").is_visible()
    assert page.locator("#models table").is_visible()
    context.close()
