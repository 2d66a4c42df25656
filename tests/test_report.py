"""The report of a run: what it tells, that it stands alone, and how it looks in a browser."""

import dataclasses
import json
import os
import re
import shutil
import socket
import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pytest
from browser import chromium
from jobs import TINY, Recorder
from markupsafe import escape
from scipy.stats import ttest_ind
from torch import nn
from typer.testing import CliRunner

import nas
from nas.cell import Cell
from nas.cli import app
from nas.errors import ConfigError
from nas.files.atomic import write_json
from nas.files.manifest import check_manifest, update_manifest, write_manifest
from nas.goals import parse_goals
from nas.report import REPORT, render, write_report
from nas.report.curves import anytime, expected, order_statistics, thinned
from nas.report.energy import assumed_watts
from nas.report.history import Past, Work, read_studies
from nas.report.importance import decisions, operations
from nas.report.lineage import ancestors
from nas.report.page import render_run
from nas.report.pareto import front
from nas.report.run import read
from nas.report.words import metric, setting
from nas.report.working import timeline
from nas.space import Space
from nas.training.resumable import Stopped
from nas.types import Decision, Trial

EVIL = "<script>document.title='evil'</script>"
SETTINGS = {**TINY, "trials": 10, "baselines": True, "space_settings": {}}
MOST_BYTES = 3_000_000
SECTIONS = re.compile(r'<section id="(\w+)"')


def evil_space(width=4):
    """The toy space, an operation of which has a hostile name."""

    def build(choose):
        options = {
            EVIL: nn.Identity,
            "skip_connect": nn.Identity,
            "nor_conv_3x3": lambda: nn.Conv2d(width, width, 3, padding=1),
        }
        cell = Cell("cell", 1, 2, lambda i, j: choose.op(f"{i}->{j}", options))
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
        return nn.Sequential(nn.Conv2d(1, width, 1), cell, *head)

    return Space(f"space {EVIL}", build)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def pareto(place):
    """A search for two objectives, in a folder, on a task and in a space of hostile names."""
    task = dataclasses.replace(nas.load_task("digits"), name=f"task {EVIL}")
    settings = {**SETTINGS, "objective": ["val_acc", "-params"], "searcher": {"population": 4}}
    settings |= {"pictures": True, "seed": 2}
    found = nas.search(evil_space(), task, "nsga2", out=place / "pareto", settings=settings)
    # A slash is the only character that the name of a folder cannot have.
    folder = found.folder.rename(place / EVIL.replace("</", "<!--"))
    write_report([folder], folder / REPORT, space=evil_space())
    update_manifest(folder, [REPORT])
    return folder


@pytest.fixture(scope="module")
def gradients(place):
    settings = {**TINY, "epochs": 3, "pictures": True}
    return nas.search("toy", "digits", "darts", out=place / "gradients", settings=settings).folder


@pytest.fixture(scope="module")
def unfinished(place):
    """A search by evolution that was stopped on its way."""
    folder = place / "unfinished"
    settings = {**TINY, "trials": 12, "searcher": {"population": 3, "tournament": 2}}
    told = Recorder()
    with pytest.raises(Stopped):
        nas.search(
            "toy",
            "digits",
            "evolution",
            out=folder,
            settings=settings,
            progress=told,
            stop=lambda: len(told.lines) >= 6,
        )
    return folder


@pytest.fixture(scope="module")
def comparison(place, pareto, gradients):
    write_report([pareto, gradients], place / "both.html")
    return place / "both.html"


def text_of(folder):
    return (folder / REPORT).read_text()


def test_a_finished_search_has_a_report_that_its_manifest_lists(pareto):
    assert REPORT in json.loads((pareto / "manifest.json").read_text())["files"]
    assert check_manifest(pareto) == []
    # A winner of the first generation has no ancestors.
    assert [section for section in SECTIONS.findall(text_of(pareto)) if section != "lineage"] == [
        *("summary", "cells", "network", "evolving", "anytime", "front"),
        *("importance", "timeline", "energy", "reproduce"),
    ]


def test_a_search_by_gradients_shows_alphas_and_health(gradients):
    found = SECTIONS.findall(text_of(gradients))
    assert {"cells", "evolving", "anytime", "alphas", "health"} <= set(found)
    assert {"front", "failures", "lineage", "importance"} & set(found) == set()


def test_epochs_of_a_supernet_are_not_called_trials(gradients):
    text = text_of(gradients)
    assert "Each dot is an epoch of the supernet" in text and "Each dot is a trial" not in text
    run, expected = read(gradients), [("epoch", "1"), ("epoch", "2"), ("epoch", "3")]
    section = anytime(run)
    assert [lines[0] for lines in section.tips["trials"].values()] == expected
    assert "· epoch" in section.drawings[0].svg and "evaluation time" in section.drawings[0].svg
    assert [lines[0] for lines in timeline(run).tips["timeline"].values()][:3] == expected
    assert repr(nas.load_result(gradients)).endswith("3 epochs>")


def test_the_summary_says_how_the_method_measures(pareto, gradients):
    assert "by trained trials" in text_of(pareto) and "by gradients" not in text_of(pareto)
    assert "by gradients" in text_of(gradients)


def test_an_unfinished_run_shows_what_there_is(unfinished):
    text = render([unfinished])
    assert "has not finished" in text
    found = SECTIONS.findall(text)
    assert {"summary", "anytime", "timeline", "energy", "reproduce"} <= set(found)
    assert {"cells", "network"} & set(found) == set()
    assert not (unfinished / REPORT).exists()


def test_a_retraining_has_a_report(gradients, place):
    settings = {"retrain": {"epochs": 1}}
    folder = nas.retrain(gradients, "digits", out=place / "retrained", settings=settings).folder
    assert SECTIONS.findall(text_of(folder)) == ["summary", "cells", "network", "energy", "reproduce"]
    assert "Report of a training" in text_of(folder)


def test_reference_runs_of_earlier_versions_have_one(pytestconfig):
    for name in ("reference-evolution-nasbench201-digits", "reference-collapsed"):
        text = render([pytestconfig.rootpath / "results" / name])
        found = SECTIONS.findall(text)
        assert {"summary", "cells", "network", "anytime", "energy", "reproduce"} <= set(found)
        assert len(text.encode()) < MOST_BYTES


def test_the_page_stands_alone_and_is_small(pareto, gradients):
    for folder in (pareto, gradients):
        text = text_of(folder)
        assert len(text.encode()) < 500_000
        markup = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
        assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', markup)
        assert not re.search(r"\sstyle=|\son\w+=|url\((?!#)", markup)


def test_pictures_are_whole_and_their_ids_are_unique(pareto, gradients):
    for folder in (pareto, gradients):
        text = text_of(folder)
        pictures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
        assert len(pictures) > 5
        for picture in pictures:
            ET.fromstring(picture)
        ids = Counter(re.findall(r'\sid="([^"]*)"', text))
        assert [name for name, count in ids.items() if count > 1] == []
        assert set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', text)) <= ids.keys() | {"content"}


def test_hostile_names_are_text(pareto):
    text = text_of(pareto)
    assert EVIL not in text
    assert str(escape(f"task {EVIL}")) in text
    assert str(escape(f"space {EVIL}")) in text
    assert text.count("<script") == 2


def test_names_that_cannot_be_written_are_shown_as_escapes(pareto, place):
    copy = shutil.copytree(pareto, place / "copy")
    record = json.loads((copy / "run.json").read_text())
    record["task"]["name"] = "\ud800 lone \u202e right to left \x1b[31m"
    write_json(copy / "run.json", record)
    write_manifest(copy)
    text = render([copy])
    assert "\\ud800 lone \\u202e right to left \\x1b[31m" in text
    text.encode()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("environment", []),
        ("begun", 3),
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
        assert "summary" in SECTIONS.findall(render([tmp_path]))
        return
    with pytest.raises(ConfigError, match="damaged"):
        render([tmp_path])


def test_a_changed_file_of_a_finished_run_is_refused(gradients, tmp_path):
    copy = shutil.copytree(gradients, tmp_path / "copy")
    (copy / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"metrics\.json: differs"):
        render([copy])


def test_the_size_of_the_trained_network_is_told_beside_that_of_the_search(pytestconfig):
    text = render([pytestconfig.rootpath / "results" / "reference-evolution-nasbench201-digits"])
    assert "of the trained network</dt><dd><code>width 16</code></dd>" in text


def test_two_runs_are_compared(comparison):
    text = comparison.read_text()
    assert SECTIONS.findall(text) == ["settings", "metrics", "curves", "cells"]
    assert '<tr class="differs"><th scope="row">method</th>' in text
    assert EVIL not in text


def test_settings_that_a_run_has_no_use_for_are_not_compared(pareto, gradients, place):
    folder = place / "trained again"
    nas.retrain(gradients, "digits", out=folder, settings={"retrain": {"epochs": 2}})

    def rows(*runs):
        return set(re.findall(r'<th scope="row">([^<]*)</th>', render(runs)))

    assert "final.epochs" in rows(folder, pareto) & rows(folder, gradients)
    assert {"searcher.population", "trial.epochs"} <= rows(folder, pareto)
    assert not {name for name in rows(folder, pareto) if name.startswith(("search.", "shared.", "sharing."))}
    assert "search.name" in rows(folder, gradients)
    assert not {name for name in rows(folder, gradients) if name.startswith(("searcher.", "shared."))}


def test_runs_of_one_name_are_told_apart(gradients, tmp_path):
    other = shutil.copytree(gradients, tmp_path / "other" / gradients.name)
    text = render([gradients, other])
    assert f"other/{gradients.name}" in text
    assert text.count('<th scope="col">') > 4


def test_no_run_at_all(tmp_path):
    with pytest.raises(ConfigError, match="no run"):
        render([])
    with pytest.raises(ConfigError, match="holds no run"):
        write_report([tmp_path], tmp_path / REPORT)


def test_the_command_writes_a_report_and_keeps_the_manifest_true(gradients, tmp_path):
    copy = shutil.copytree(gradients, tmp_path / "copy")
    done = CliRunner().invoke(app, ["report", str(copy), "--watts", "123"])
    assert done.exit_code == 0, done.output
    assert "123 W a device (as given with --watts)" in text_of(copy)
    assert check_manifest(copy) == []
    both = ["report", str(copy), str(gradients), "--out", str(tmp_path / "both.html")]
    assert CliRunner().invoke(app, both).exit_code == 0
    assert "Comparison of 2 runs" in (tmp_path / "both.html").read_text()
    refused = CliRunner().invoke(app, [*both, "--watts", "1"])
    assert refused.exit_code == 2
    assert "single run" in refused.output


def test_the_history_is_read_without_the_space(unfinished):
    past = read_studies(unfinished)["search"]
    own = nas.Study.read(unfinished, "search", nas.load("toy", width=4))
    assert list(past.trials) == own
    assert [len(work.worker) > 0 and work.begun_s > 0 for work in past.work] == [True] * len(own)
    assert read(unfinished).method == "evolution"


def test_trials_that_no_worker_could_have_done_are_those_of_the_job_itself(pareto):
    """Random search at equal cost, beside trials that workers could have joined."""
    rows = {name: {work.worker for work in past.work} for name, past in read_studies(pareto).items()}
    assert rows["random"] == {"the job itself"}
    assert rows["search"] == {f"{socket.gethostname()}, process {os.getpid()}"}
    text = text_of(pareto)
    assert "the job itself" in text and "one process" not in text


def test_a_long_history_of_many_decisions_with_long_names_stays_small(unfinished):
    draw = np.random.default_rng(0)
    names = [Decision(f"normal/{i} {'d' * 80}", ("a" * 90, "b" * 90, "c")) for i in range(28)]
    goals = nas.parse_goals(["val_acc", "-params"])
    values = {f"metric {i}": 0.1 for i in range(9)}
    trials = [
        Trial(
            i,
            tuple(draw.integers(3, size=28).tolist()),
            1,
            state,
            {"val_acc": draw.random(), "params": draw.random(), **values} if state == "done" else {},
            cost_s=1.0,
            reason="" if state == "done" else f"oom: {'x' * 300} at step {i}",
        )
        for i in range(4000)
        for state in ["failed" if i % 9 == 0 else "done"]
    ]
    work = [Work("w" * 200, float(i), i + 1.0) for i in range(4000)]
    run = dataclasses.replace(read(unfinished), search=Past(names, goals, trials, work))
    text = render_run(run)
    assert len(text.encode()) < MOST_BYTES
    assert {"front", "failures", "importance", "timeline"} <= set(SECTIONS.findall(text))
    assert "445 of 4000 trials of the search gave no value" in text


def trial(number, genotype, value, **settings):
    return Trial(number, genotype, 1, "done", {"val_acc": value}, **settings)


def past_of(trials, options=("a", "b", "c"), count=3):
    names = [Decision(f"d{i}", options) for i in range(count)]
    return Past(names, nas.Goals(), trials, ())


def test_order_statistics_are_those_of_all_orders():
    scores = np.array([0.1, 0.4, 0.2, 0.3])
    sizes, middle, low, high = order_statistics(scores)
    assert sizes.tolist() == [1, 2, 3, 4]
    # Of the six pairs three have 0.4 as their best, two 0.3 and one 0.2.
    assert middle.tolist() == [0.2, 0.3, 0.4, 0.4]
    assert low.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert high.tolist() == [0.4, 0.4, 0.4, 0.4]


def test_what_breaks_a_constraint_is_neither_on_the_front_nor_the_best_so_far(unfinished):
    """Though it was trained for longer and is better; the front is that of `Result.front`."""
    goals = parse_goals(["val_acc", "-params"], ["params<=5"])
    trials = [
        Trial(i, (i % 3, 0, 0), epochs, "done", {"val_acc": value, "params": params})
        for i, (epochs, value, params) in enumerate(
            [(1, 0.5, 4.0), (1, 0.6, 5.0), (1, 0.9, 9.0), (3, 0.95, 8.0)]
        )
    ]
    past = dataclasses.replace(past_of(trials), goals=goals)
    assert [t.number for t in past.longest] == [3]
    assert [t.number for t in past.allowed] == [0, 1]
    run = dataclasses.replace(read(unfinished), search=past)
    assert [row[0] for row in front(run).values["rows"]] == ["1", "0"]
    assert expected(run)["search"].mean.tolist() == [0.5, 0.6]
    assert "best 0.6 · trial 1<" in anytime(run).drawings[0].svg


def test_a_long_history_keeps_what_improved_on_all_that_keep_the_constraints():
    pairs = [(0.9, 9.0), (0.3, 1.0), (0.2, 1.0), (0.5, 1.0), (0.4, 1.0)]
    trials = [
        Trial(i, (i % 3, 0, 0), 1, "done", {"val_acc": value, "params": params})
        for i, (value, params) in enumerate(pairs)
    ]
    past = dataclasses.replace(past_of(trials), goals=parse_goals([], ["params<=5"]))
    assert {1, 3} <= {t.number for t in thinned(past, 2)}


def test_a_decision_that_decides_everything_has_all_the_variance():
    trials = [trial(i, (i % 2, i // 2 % 2, 0), 0.5 + 0.1 * (i % 2)) for i in range(12)]
    values = np.array([t.metrics["val_acc"] for t in trials])
    rows = decisions(past_of(trials), trials, values, 100.0)
    assert [(row["name"], round(row["share"], 6)) for row in rows] == [("d0", 1.0), ("d1", 0.0)]
    assert rows[0]["best"] == ("b", "+10.00 ± 0.00")


def test_the_interval_of_an_effect_is_welchs_however_few_trials_there_are():
    values = np.array([0.61, 0.72, *np.linspace(0.4, 0.6, 10)])
    trials = [trial(i, (int(i < 2), 0, 0), value) for i, value in enumerate(values)]
    best = decisions(past_of(trials), trials, values, 100.0)[0]["best"]
    interval = ttest_ind(values[:2], values[2:], equal_var=False).confidence_interval()
    half = 50 * (interval.high - interval.low)
    assert best == ("b", f"+16.50 ± {half:.2f}")
    assert half > 30  # two trials alone prove nothing


def test_an_operation_that_helps_has_a_positive_correlation():
    trials = [trial(i, (i % 2, i // 2 % 2, 2), 0.1 * (i % 2 + i // 2 % 2)) for i in range(12)]
    values = np.array([t.metrics["val_acc"] for t in trials])
    rows = {row["name"]: row for row in operations(past_of(trials), trials, values)}
    assert rows.keys() == {"a", "b"}
    assert rows["b"]["rho"] == pytest.approx(1.0)
    assert rows["a"]["rho"] == pytest.approx(-1.0)
    assert rows["b"]["low"] > 0.9


def test_ancestors_are_the_nearest_that_were_known():
    trials = [
        trial(0, (0,) * 8, 0.1),
        trial(1, (2,) * 8, 0.9),
        trial(2, (0,) * 7 + (1,), 0.2),
        trial(3, (0,) * 6 + (1, 1), 0.3),
        trial(4, (0,) * 5 + (1, 1, 1), 0.4, beside=(3,)),
    ]
    past = past_of(trials, count=8)
    assert [t.number for t in ancestors(past, trials[3])] == [0, 2, 3]
    assert [t.number for t in ancestors(past, trials[4])] == [0, 2, 4]
    assert [t.number for t in ancestors(past, trials[1])] == [1]


def test_power_is_assumed_by_the_device():
    assert assumed_watts({"device": "cpu", "threads": 4})[0] == 40
    assert assumed_watts({"device": "cuda:0", "hardware": "NVIDIA H100 80GB HBM3"})[0] == 700
    assert assumed_watts({"device": "cuda", "hardware": "NVIDIA H100 PCIe"})[0] == 350
    watts, why = assumed_watts({"device": "cuda", "hardware": "GPU of tomorrow"})
    assert (watts, "not known" in why) == (300, True)


@pytest.fixture(scope="module")
def browser():
    """For all tests here."""
    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser, request):
    """Opens a file in a window of a width; what the page said and asked for must be nothing at the end."""
    said, asked, contexts = [], [], []

    def open_page(path, width=1280, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda seen: asked.append(seen.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    others = [url for url in asked if not url.startswith(("file://", "data:"))]
    assert (others, sum(url.startswith("file://") for url in asked)) == ([], len(contexts))


def visible_frames(page):
    return page.locator(".frame:visible")


def test_in_a_browser_the_slider_moves_the_cell(gradients, opened):
    page = opened(gradients / REPORT)
    slider, now = page.locator(".evolving input"), page.locator(".evolving .now")
    assert visible_frames(page).count() == 1
    last, shown = now.inner_text(), visible_frames(page).get_attribute("data-label")
    assert last.startswith("epoch 3")
    slider.focus()
    page.keyboard.press("Home")
    assert now.inner_text().startswith("epoch 1")
    assert visible_frames(page).count() == 1
    assert visible_frames(page).get_attribute("data-label") != shown
    assert visible_frames(page).locator("svg").first.bounding_box()["width"] > 100
    page.get_by_label("one step on").click()
    assert now.inner_text().startswith("epoch 2")
    assert slider.get_attribute("aria-valuetext") == now.inner_text()


@pytest.mark.parametrize("part", ["front", "anytime"])
def test_in_a_browser_pointing_at_a_trial_tells_of_it(pareto, opened, part):
    page = opened(pareto / REPORT)
    tip, spot = page.locator("#tip"), page.locator(f"#{part} circle[data-tip]").first
    assert tip.is_hidden()
    spot.hover(force=True)
    assert tip.is_visible()
    assert "trial" in tip.inner_text()
    assert "val_acc" in tip.inner_text()
    page.mouse.move(2, 2)
    assert tip.is_hidden()
    spot.focus()
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_in_a_browser_hostile_names_do_nothing(pareto, opened):
    page = opened(pareto / REPORT)
    tips = json.loads(page.locator("#tips").inner_text())["trials"]
    number = next(n for n, lines in tips.items() if any("<script>" in value for _, value in lines))
    page.locator(f'#anytime circle[data-tip="{number}"]').hover(force=True)
    assert "<script>" in page.locator("#tip").inner_text()
    assert "evil" not in page.title().split(":")[1]
    assert page.title().endswith("Report of a search")
    assert page.locator("script").count() == 2
    assert page.locator("h1").inner_text() == pareto.name


@pytest.fixture
def pages(pareto, gradients, comparison):
    return pareto / REPORT, gradients / REPORT, comparison


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser_nothing_is_wider_than_the_screen(pages, opened, width, scheme):
    for path in pages:
        page = opened(path, width, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sizes = page.evaluate(
            "[...document.querySelectorAll('p, td, dd, li')].map(e => getComputedStyle(e).fontSize)"
        )
        assert min(float(size.removesuffix("px")) for size in sizes) >= 12


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("val_acc", 0.5, "50.00 %"),
        ("random_delta_low", -0.1148, "\u221211.48 points"),
        ("latency_ms", 51.83, "51.8 ms"),
        ("latency_p95_ms", 1560.0, "1.56 s"),
        ("peak_bytes", 29248.0, "29.2 kB"),
        ("params", 7226.0, "7.23 k"),
        ("search_seconds", 94.0, "1 min 34 s"),
        ("random_p", 0.39141, "0.3914"),
    ],
)
def test_metrics_have_the_units_that_their_names_tell(name, value, words):
    assert metric(name, value) == words


def test_settings_are_shown_without_digits_that_nobody_set():
    assert [setting(v) for v in (None, 2 / 15, 3e-4, 40, "x", True)] == [
        "–",
        "0.13333",
        "0.0003",
        "40",
        "x",
        "True",
    ]
