"""The report of a run: what it tells, that it stands alone, and that a browser shows it."""

import base64
import dataclasses
import json
import os
import re
import shutil
import socket
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from browser import chromium
from jobs import TINY, Recorder
from typer.testing import CliRunner

import nas
from nas.__main__ import app
from nas.errors import ConfigError, Stopped
from nas.files.atomic import write_json
from nas.files.folder import check_manifest, write_manifest
from nas.show.report import REPORT, render, render_run, write_report
from nas.show.report.run import JOB, History, Work, read, read_studies
from nas.show.report.section import metric
from nas.show.report.sections import (
    anytime,
    decisions,
    expected,
    front,
    operations,
    order_statistics,
)
from nas.types import Decision, Trial

MOST_BYTES = 3_000_000


def sections(text):
    return re.findall(r'<section id="(\w+)"', text)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def pareto(place):
    """A search for two objectives, beside random search at equal cost."""
    settings = {**TINY, "trials": 10, "baselines": True, "searcher": {"population": 4}, "pictures": True}
    settings |= {"objective": ["val_acc", "-params"], "seed": 2}
    return nas.search("toy", "digits", "nsga2", out=place / "pareto", settings=settings).folder


@pytest.fixture(scope="module")
def gradients(place):
    settings = {**TINY, "epochs": 3, "pictures": True}
    return nas.search("toy", "digits", "darts", out=place / "gradients", settings=settings).folder


@pytest.fixture(scope="module")
def retrained(place, gradients):
    settings = {"retrain": {"epochs": 2}, "pictures": True}
    return nas.retrain(gradients, "digits", out=place / "retrained", settings=settings).folder


@pytest.fixture(scope="module")
def unfinished(place):
    """A search by evolution that was stopped on its way."""
    told, searcher = Recorder(), {"population": 3, "tournament": 2}
    with pytest.raises(Stopped):
        nas.search(
            *("toy", "digits", "evolution"),
            out=place / "unfinished",
            settings={**TINY, "trials": 12, "searcher": searcher},
            progress=told,
            stop=lambda: len(told.lines) >= 6,
        )
    return place / "unfinished"


def picture(address):
    """The SVG that an image's address holds."""
    return base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")).decode()


def text_of(folder):
    return (folder / REPORT).read_text()


def test_every_kind_of_run_has_the_sections_that_it_has_data_for(pareto, gradients, retrained, unfinished):
    assert REPORT in json.loads((pareto / "manifest.json").read_text())["files"]
    assert check_manifest(pareto) == []
    assert sections(text_of(pareto)) == [
        *("summary", "cells", "network", "evolving", "anytime", "front", "importance", "timeline", "cost"),
        "reproduce",
    ]
    assert {"cells", "evolving", "anytime", "alphas", "health"} <= set(sections(text_of(gradients)))
    assert {"front", "failures", "importance"}.isdisjoint(sections(text_of(gradients)))
    assert sections(text_of(retrained)) == ["summary", "cells", "network", "cost", "reproduce"]
    assert "Report of a training" in text_of(retrained)
    text = render([unfinished])
    assert "has not finished" in text and not (unfinished / REPORT).exists()
    assert {"summary", "anytime", "timeline", "cost", "reproduce"} <= set(sections(text))
    assert {"cells", "network"}.isdisjoint(sections(text))


def test_epochs_are_not_called_trials(pareto, gradients):
    assert "by trained trials" in text_of(pareto) and "by gradients" in text_of(gradients)
    found = anytime(read(gradients))
    assert [lines[0] for lines in found["tips"]["trials"].values()] == [("epoch", f"{i}") for i in (1, 2, 3)]
    assert "· epoch" in picture(found["drawings"][0].image)


@pytest.mark.parametrize("name", ["reference-evolution-nasbench201-digits", "reference-collapsed"])
def test_reference_runs_of_earlier_versions_have_one(name, pytestconfig):
    text = render([pytestconfig.rootpath / "results" / name])
    assert {"summary", "cells", "network", "anytime", "cost", "reproduce"} <= set(sections(text))
    assert len(text.encode()) < MOST_BYTES
    if "evolution" in name:  # trained at another size than searched
        assert "of the trained network</dt><dd><code>width 16</code></dd>" in text


def test_the_page_stands_alone_and_its_pictures_are_whole(pareto, gradients):
    for text in map(text_of, (pareto, gradients)):
        assert len(text.encode()) < 500_000
        markup = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
        assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', markup)
        assert not re.search(r"\sstyle=|\son\w+=|url\((?!#)", markup)
        pictures = [picture(found) for found in re.findall(r'(?:src|href)="(data:image[^"]*)"', markup)]
        assert len(pictures) > 5 and all(ET.fromstring(picture) is not None for picture in pictures)
        ids = re.findall(r'\sid="([^"]*)"', markup)
        assert len(ids) == len(set(ids))


def test_names_are_text_whatever_they_hold(pareto, tmp_path):
    """`tests/behaviour/test_pages.py` looks at those in spaces, tasks and pictures in a browser."""
    copy = shutil.copytree(pareto, tmp_path / "<b>copy")
    record = json.loads((copy / "run.json").read_text())
    record["task"]["name"] = "\ud800 <b>lone \u202e right to left \x1b[31m"
    write_json(copy / "run.json", record)
    write_manifest(copy)
    text = render([copy])
    assert "\\ud800 &lt;b&gt;lone \\u202e right to left \\x1b[31m" in text
    assert "<b>" not in text and text.count("<script") == 2


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("environment", []),
        ("task", {"images": "many"}),
        ("plan", {"goals": {"objectives": 3}}),
        ("space", {"settings": [1], "origin": 5}),
    ],
)
def test_a_damaged_record_is_refused_in_words_or_left_out(gradients, tmp_path, part, value):
    for name in ("run.json", "architecture.json", "metrics.json"):
        shutil.copy(gradients / name, tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    record[part] = {**record[part], **value} if isinstance(value, dict) else value
    write_json(tmp_path / "run.json", record)
    if part == "space":
        assert "summary" in sections(render([tmp_path]))
    else:
        with pytest.raises(ConfigError, match="damaged"):
            render([tmp_path])


def test_what_is_no_run_or_was_changed_is_refused(gradients, tmp_path):
    copy = shutil.copytree(gradients, tmp_path / "copy")
    (copy / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"metrics\.json: differs"):
        render([copy])
    with pytest.raises(ConfigError, match="no run"):
        render([])
    with pytest.raises(ConfigError, match="holds no run"):
        write_report([tmp_path], tmp_path / REPORT)


def test_runs_are_compared_in_what_they_used(pareto, gradients, retrained, tmp_path):
    text = render([pareto, gradients])
    assert sections(text) == ["settings", "metrics", "curves", "cells"]
    assert '<tr class="differs"><th scope="row">method</th>' in text

    def rows(*runs):
        return set(re.findall(r'<th scope="row">([^<]*)</th>', render(runs)))

    assert "final.epochs" in rows(retrained, pareto) & rows(retrained, gradients)
    assert {"searcher.population", "trial.epochs"} <= rows(retrained, pareto)
    assert not [name for name in rows(retrained, pareto) if name.startswith(("search.", "supernet."))]
    assert "search.name" in rows(retrained, gradients)
    assert not [name for name in rows(retrained, gradients) if name.startswith(("searcher.", "supernet."))]
    other = shutil.copytree(gradients, tmp_path / "other" / gradients.name)
    assert f"other/{gradients.name}" in render([gradients, other])


def test_the_command_writes_a_report_and_keeps_the_manifest_true(gradients, tmp_path):
    copy = shutil.copytree(gradients, tmp_path / "copy")
    done = CliRunner().invoke(app, ["report", str(copy), "--watts", "123"])
    assert done.exit_code == 0, done.output
    assert "123 W a device" in text_of(copy) and "Wh</td>" in text_of(copy)
    assert check_manifest(copy) == []
    both = ["report", str(copy), str(gradients), "--out", str(tmp_path / "both.html")]
    assert CliRunner().invoke(app, both).exit_code == 0
    assert "Comparison of 2 runs" in (tmp_path / "both.html").read_text()
    refused = CliRunner().invoke(app, [*both, "--watts", "1"])
    assert refused.exit_code == 2 and "single run" in refused.output


def test_the_history_is_read_without_the_space_and_says_who_did_what(unfinished, pareto):
    past = read_studies(unfinished)["search"]
    assert list(past.trials) == nas.Study.read(unfinished, "search", nas.load("toy", width=4))
    assert past.work.keys() == {trial.number for trial in past.trials}
    # One like an earlier one is answered from the history, by the job itself.
    own = f"{socket.gethostname()}, process {os.getpid()}"
    assert own in (workers := {w.worker for w in read_studies(pareto)["search"].work.values()})
    assert workers <= {own, JOB}


def test_a_long_history_of_many_decisions_with_long_names_stays_small(unfinished):
    draw = np.random.default_rng(0)
    names = [Decision(f"normal/{i} {'d' * 80}", ("a" * 90, "b" * 90, "c")) for i in range(28)]
    more = {f"metric {i}": 0.1 for i in range(9)}
    trials = []
    for i in range(4000):
        found = {"val_acc": draw.random(), "params": draw.random(), **more} if i % 9 else {}
        state, reason = ("done", "") if i % 9 else ("failed", f"oom: {'x' * 300} at step {i}")
        trials.append(Trial(i, tuple(draw.integers(3, size=28).tolist()), 1, state, found, 1.0, reason))
    work = {i: Work("w" * 200, float(i), i + 1.0) for i in range(4000)}
    past = History(names, nas.parse_goals(["val_acc", "-params"]), trials, work)
    text = render_run(dataclasses.replace(read(unfinished), search=past))
    assert len(text.encode()) < MOST_BYTES
    assert {"front", "failures", "importance", "timeline"} <= set(sections(text))
    assert "445 of 4000 trials of the search gave no value" in text


def history(trials, goals=None):
    """Trials over three decisions with three options each."""
    options = [Decision(f"d{i}", ("a", "b", "c")) for i in range(3)]
    return History(options, goals or nas.Goals(), trials)


def test_order_statistics_are_those_of_all_orders():
    sizes, middle, low, high = order_statistics(np.array([0.1, 0.4, 0.2, 0.3]))
    assert sizes.tolist() == [1, 2, 3, 4]
    # Of the six pairs three have 0.4 as their best, two 0.3 and one 0.2.
    assert middle.tolist() == [0.2, 0.3, 0.4, 0.4]
    assert low.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert high.tolist() == [0.4, 0.4, 0.4, 0.4]


def test_what_breaks_a_constraint_is_neither_on_the_front_nor_the_best_so_far(unfinished):
    """Though it was trained for longer and is better; the front is that of `Result.front`."""
    goals = nas.parse_goals(["val_acc", "-params"], ["params<=5"])
    rows = [(1, 0.5, 4.0), (1, 0.6, 5.0), (1, 0.9, 9.0), (3, 0.95, 8.0)]
    past = history(
        [
            Trial(i, (i % 3, 0, 0), epochs, "done", {"val_acc": value, "params": params})
            for i, (epochs, value, params) in enumerate(rows)
        ],
        goals,
    )
    assert [t.number for t in past.longest] == [3] and [t.number for t in past.allowed] == [0, 1]
    run = dataclasses.replace(read(unfinished), search=past)
    assert [row[0] for row in front(run)["rows"]] == [1, 0]
    assert expected(run)["search"].mean.tolist() == [0.5, 0.6]
    assert "best 0.6 · trial 1<" in picture(anytime(run)["drawings"][0].image)


def of_values(genotypes, values):
    return [
        Trial(i, genotype, 1, "done", {"val_acc": value})
        for i, (genotype, value) in enumerate(zip(genotypes, values, strict=True))
    ]


def test_a_decision_that_decides_everything_has_all_the_variance():
    values = np.array([0.5 + 0.1 * (i % 2) for i in range(12)])
    trials = of_values([(i % 2, i // 2 % 2, 0) for i in range(12)], values)
    rows = decisions(history(trials), trials, values, 100.0)
    assert [(row["name"], round(row["share"], 6)) for row in rows] == [("d0", 1.0), ("d1", 0.0)]
    assert rows[0]["best"] == ("b", "+10.00 ± 0.00")


def test_an_operation_that_helps_has_a_positive_correlation():
    values = np.array([0.1 * (i % 2 + i // 2 % 2) for i in range(12)])
    trials = of_values([(i % 2, i // 2 % 2, 2) for i in range(12)], values)
    rows = {row["name"]: row for row in operations(history(trials), trials, values)}
    assert [rows[name]["rho"] for name in "ab"] == pytest.approx([-1.0, 1.0])
    assert rows.keys() == {"a", "b"} and rows["b"]["low"] > 0.9


def test_metrics_have_the_units_that_their_names_tell():
    values = {"val_acc": 0.5, "random_delta_low": -0.1148, "latency_p95_ms": 1560.0, "peak_bytes": 29248.0}
    values |= {"params": 7226.0, "search_seconds": 94.0, "retrain_seconds": 1e300, "random_p": 0.39141}
    words = [
        "50.00 %",
        "\u221211.48 points",
        "1.56 s",
        "29.2 kB",
        "7.23 k",
        "1 min 34 s",
        "1e+300 s",
        "0.3914",
    ]
    assert [metric(name, value) for name, value in values.items()] == words


@pytest.fixture(scope="module")
def browser():
    """For all tests here; `tests/behaviour/test_pages.py` looks at widths and at hostile names."""
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser):
    """A page that must say nothing on its console."""
    said = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found = context.new_page()
    found.on("console", lambda message: said.append(message.text))
    found.on("pageerror", lambda error: said.append(str(error)))
    yield found
    context.close()
    assert said == []


def test_in_a_browser_the_slider_moves_the_cell(gradients, page):
    page.goto((gradients / REPORT).as_uri())
    slider, now, frames = (page.locator(f".evolving {part}") for part in ("input", ".now", ".frame:visible"))
    assert frames.count() == 1 and now.inner_text().startswith("epoch 3")
    slider.focus()
    page.keyboard.press("Home")
    assert frames.count() == 1 and now.inner_text().startswith("epoch 1")
    assert frames.locator("img").first.bounding_box()["width"] > 100
    page.get_by_label("one step on").click()
    assert now.inner_text().startswith("epoch 2")
    assert slider.get_attribute("aria-valuetext") == now.inner_text()


@pytest.mark.parametrize("part", ["#front circle", "#timeline rect"])
def test_in_a_browser_pointing_at_a_trial_tells_of_it(pareto, page, part):
    page.goto((pareto / REPORT).as_uri())
    tip, spot = page.locator("#tip"), page.locator(f"{part}[data-tip]").first
    assert tip.is_hidden()
    spot.hover(force=True)
    assert "trial" in tip.inner_text() and "val_acc" in tip.inner_text()
    page.mouse.move(2, 2)
    assert tip.is_hidden()
    spot.focus()
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
