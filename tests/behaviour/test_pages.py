"""What a user looks at: the report in a real browser, and the pictures of a run."""

import contextlib
import json
import re
import shutil
from functools import partial
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from browser import chromium
from torch import nn
from using import TINY, begun, nas_command

import nas

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

HOSTILE = "<script>window.hit=1</script>"
IMAGE = '"><img src=x onerror=window.hit=1>'


@pytest.fixture(scope="module")
def browser():
    """For all tests here."""
    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser):
    """Opens a file at a width; it must neither complain, nor ask for anything else, nor be too wide."""

    @contextlib.contextmanager
    def look(path, width):
        said, asked = [], []
        context = browser.new_context(viewport={"width": width, "height": 900})
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        yield page
        assert not said
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.body.scrollWidth") <= width
        context.close()

    return look


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["evolution", "darts", "pareto"])
def test_a_report_tells_the_result_alone_and_at_any_width(runs, opened, name, width):
    folder = runs(name)
    result = nas.load_result(folder)
    with opened(folder / "report.html", width) as page:
        words = page.locator("body").inner_text()
        assert f"{100 * result.metrics['test_acc']:.2f}" in words
        assert result.space.name in words
        assert page.locator("svg:visible").count() >= 3
        assert page.locator("h2:visible").count() >= 5
        for option in set(result.space.choices(result.genotype).values()):
            assert option in page.content()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run whose classes and options have the names of somebody with bad intentions."""
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 255, (60, 8, 8)).astype(np.uint8), np.arange(60) % 3

    def build(choose):
        options = {HOSTILE: partial(nn.Conv2d, 4, 4, 1), IMAGE: partial(nn.Conv2d, 4, 4, 3, padding=1)}
        body = [choose.op(f"{HOSTILE}{place}", options) for place in range(2)]
        return nn.Sequential(
            nn.Conv2d(1, 4, 1), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )

    task = nas.task_from_arrays(x, y, classes=[HOSTILE, IMAGE, "$x^2$ & ]]>"])
    out = tmp_path_factory.mktemp("hostile") / "run"
    settings = TINY | {"trials": 3, "pictures": True}
    return nas.search(nas.Space(HOSTILE, build), task, "random", out=out, settings=settings)


def test_names_in_a_report_are_text_and_do_nothing(hostile, opened):
    for width in (1280, 400):
        with opened(hostile.folder / "report.html", width) as page:
            page.wait_for_timeout(100)
            assert page.evaluate("window.hit") is None
            assert page.locator("img[src=x]").count() == 0
            assert HOSTILE in page.locator("body").inner_text()


def test_names_in_pictures_and_on_the_terminal_are_text(hostile):
    folder = hostile.folder
    for path in folder.glob("*.svg"):
        tags = {element.tag.rsplit("}", 1)[-1] for element in ET.parse(path).iter()}
        assert not tags & {"script", "img", "foreignObject"}
    assert json.loads((folder / "architecture.json").read_text())["choices"][f"{HOSTILE}0"] in (
        HOSTILE,
        IMAGE,
    )
    assert nas_command("draw", folder, "--out", folder / "drawn").code == 0


def test_two_runs_are_compared_on_one_page(runs, opened, tmp_path):
    page_file = tmp_path / "comparison.html"
    said = nas_command("report", runs("evolution"), runs("darts"), "--out", page_file)
    assert said.code == 0, said.err
    for width in (1280, 400):
        with opened(page_file, width) as page:
            words = page.locator("body").inner_text()
            for name in ("evolution", "darts"):
                assert name in words
                rate = nas.load_result(runs(name)).metrics["test_acc"]
                assert f"{100 * rate:.2f}" in words


def test_a_run_that_is_under_way_has_a_report_that_needs_none_of_what_is_missing(opened, tmp_path):
    folder = begun(tmp_path / "run", units=2, settings=TINY | {"trials": 5})
    said = nas_command("report", folder)
    assert said.code == 0, said.err
    with opened(folder / "report.html", 400) as page:
        assert "toy" in page.locator("body").inner_text()


def test_a_report_written_again_keeps_the_folder_true(copied):
    folder = copied("spos")
    assert nas_command("report", folder, "--watts", "100").code == 0
    assert (folder / "report.html").stat().st_size > 10_000
    assert nas_command("check", folder).code == 0
    nas.load_result(folder)


PICTURES = {
    "evolution": ("cells", "network", "search"),
    "darts": ("cells", "network", "search", "alphas", "health"),
    "pareto": ("cells", "network", "search", "front"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_real_and_show_something(runs, name):
    for picture in PICTURES[name]:
        with Image.open(runs(name) / f"{picture}.png") as image:
            image.load()
            assert image.format == "PNG"
            assert all(200 <= side <= 10_000 for side in image.size), picture
            pixels = np.asarray(image.convert("L"))
        assert (pixels > 240).mean() > 0.2, picture  # paper
        assert (pixels < 140).mean() > 0.001, picture  # ink
        root = ET.parse(runs(name) / f"{picture}.svg").getroot()
        assert root.tag.endswith("svg")
        assert len(list(root.iter())) > 20
        text = (runs(name) / f"{picture}.svg").read_text()
        assert not re.search(r"""(href|src)=["']https?:""", text)


@pytest.mark.parametrize("name", ["evolution", "darts"])
def test_cells_show_the_operations_that_were_found_and_no_others(runs, name):
    result = nas.load_result(runs(name))
    shown = "".join((runs(name) / "cells.svg").read_text().split())
    every = {option for decision in result.space.decisions for option in decision.options}
    found = set(result.space.choices(result.genotype).values())
    drawn = {data["op"] for *_, data in result.graph.edges(data=True)}
    assert drawn - {"none"} <= found | {"none"}
    words = {option: [word for word in re.split(r"[_ ]", option) if len(word) > 2] for option in every}
    for option in drawn:
        assert any(word in shown for word in words[option]), option


def test_an_architecture_alone_can_be_drawn(runs, tmp_path):
    shutil.copy(runs("darts") / "architecture.json", tmp_path)
    said = nas_command("draw", tmp_path / "architecture.json", "--out", tmp_path / "pictures")
    assert said.code == 0, said.err
    again = nas_command("draw", runs("darts"), "--out", tmp_path / "others")
    assert again.code == 0, again.err
    pair = [Image.open(tmp_path / place / "cells.png") for place in ("pictures", "others")]
    assert np.array_equal(*map(np.asarray, pair))
    for image in pair:
        image.close()
