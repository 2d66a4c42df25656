"""The report of a run: what it tells, that it stands alone, and that a browser shows it."""

import base64
import dataclasses
import json
import os
import re
import shutil
import socket

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
from nas.show.report.sections import anytime, decisions, expected, front, operations, order_statistics
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
    settings = {**TINY, "epochs": 3}
    folder = nas.search("toy", "digits", "darts", out=place / "gradients", settings=settings).folder
    write_report([folder], folder / REPORT)
    return folder


@pytest.fixture(scope="module")
def retrained(place, gradients):
    settings = {"retrain": {"epochs": 2}}
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
    assert sections(render([retrained])) == ["summary", "cells", "network", "cost", "reproduce"]
    text = render([unfinished])
    assert "has not finished" in text and not (unfinished / REPORT).exists()
    assert {"summary", "anytime", "timeline", "cost", "reproduce"} <= set(sections(text))
    assert {"cells", "network"}.isdisjoint(sections(text))


def test_reference_runs_of_earlier_versions_have_one(pytestconfig):
    for name in ("reference-evolution-nasbench201-digits", "reference-collapsed"):
        text = render([pytestconfig.rootpath / "results" / name])
        assert {"summary", "cells", "network", "anytime", "cost", "reproduce"} <= set(sections(text))
        assert len(text.encode()) < MOST_BYTES


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


def test_runs_are_compared_in_what_they_used(pareto, gradients, retrained, tmp_path):
    def rows(*runs):
        return set(re.findall(r'<th scope="row">([^<]*)</th>', render(runs)))

    by_trials, by_gradients = rows(retrained, pareto), rows(retrained, gradients)
    assert "final.epochs" in by_trials & by_gradients
    assert {"searcher.population", "trial.epochs"} <= by_trials
    assert not [name for name in by_trials if name.startswith(("search.", "supernet."))]
    assert "search.name" in by_gradients
    assert not [name for name in by_gradients if name.startswith(("searcher.", "supernet."))]
    other = shutil.copytree(gradients, tmp_path / "other" / gradients.name)
    assert f"other/{gradients.name}" in render([gradients, other])
    asked = ["report", str(gradients), str(retrained), "--out", str(tmp_path / "both.html"), "--watts", "1"]
    assert CliRunner().invoke(app, asked).exit_code == 2


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


def history(trials, goals):
    """Trials over three decisions with three options each."""
    return History([Decision(f"d{i}", ("a", "b", "c")) for i in range(3)], goals, trials)


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
    pairs = enumerate(zip(genotypes, values, strict=True))
    trials = [Trial(i, genotype, 1, "done", {"val_acc": value}) for i, (genotype, value) in pairs]
    return history(trials, nas.Goals()), trials, values


def test_a_decision_that_decides_everything_has_all_the_variance():
    values = np.array([0.5 + 0.1 * (i % 2) for i in range(12)])
    rows = decisions(*of_values([(i % 2, i // 2 % 2, 0) for i in range(12)], values), 100.0)
    assert [(row["name"], round(row["share"], 6)) for row in rows] == [("d0", 1.0), ("d1", 0.0)]
    assert rows[0]["best"] == ("b", "+10.00 ± 0.00")


def test_an_operation_that_helps_has_a_positive_correlation():
    values = np.array([0.1 * (i % 2 + i // 2 % 2) for i in range(12)])
    found = operations(*of_values([(i % 2, i // 2 % 2, 2) for i in range(12)], values))
    rows = {row["name"]: row for row in found}
    assert [rows[name]["rho"] for name in "ab"] == pytest.approx([-1.0, 1.0])
    assert rows.keys() == {"a", "b"} and rows["b"]["low"] > 0.9


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


def test_in_a_browser_pointing_at_a_trial_tells_of_it(pareto, page):
    page.goto((pareto / REPORT).as_uri())
    tip = page.locator("#tip")
    for part in ("#front circle", "#timeline rect"):
        spot = page.locator(f"{part}[data-tip]").first
        assert tip.is_hidden()
        spot.hover(force=True)
        assert "trial" in tip.inner_text() and "val_acc" in tip.inner_text()
        page.mouse.move(2, 2)
        assert tip.is_hidden()
        spot.focus()
        assert tip.is_visible()
        page.keyboard.press("Escape")
        assert tip.is_hidden()
