"""Tables of trained architectures: what they hold, searches replayed on them, and what is told of these."""

import csv
import functools
import gzip
import io
import json
import math

import numpy as np
import optuna
import pytest
from published import table
from typer.testing import CliRunner

from nas.cli import app
from nas.errors import ConfigError, ExhaustedError, NoModelError, TrialError
from nas.evaluate.benchmarks import Tabular, load_benchmark
from nas.evaluate.benchmarks.nasbench201 import DATASETS, load_nasbench201
from nas.evaluate.benchmarks.race import (
    Race,
    Runs,
    _volumes,
    check_race,
    exact_front,
    reference_point,
    run_race,
)
from nas.evaluate.benchmarks.replay import UNBOUNDED, Protocol, incumbents, looked_up, simulate
from nas.files.atomic import read_json
from nas.searchers import LocalSearch, RandomSearch, RegularizedEvolution
from nas.searchers.factory import make_searcher
from nas.searchers.goals import Goals, parse_goals
from nas.searchers.scheduler import Fixed
from nas.show.benchmark import bands, describe, lines, to_dict, write_outcome
from nas.space.loading import load
from nas.study.study import Study
from nas.types import Objective, Trial

SPACE = load("nasbench201")
CELLS = list(SPACE.enumerate())
VAL = Goals((Objective("val_acc"),))
PARETO = parse_goals(["-test_err", "-params"])
UNKNOWN = 4
"""Every cell with this option on its first edge lacks CIFAR-100's validation accuracy after 200 epochs."""


# -- a table made up ----------------------------------------------------------------------------------


def row(genotype):
    """Figures that can be worked out: each edge adds to accuracy, size and seconds by its option."""
    points, size = sum((o + 1) * (i + 1) for i, o in enumerate(genotype)), sum(genotype)
    known = genotype[0] != UNKNOWN
    return {
        "arch": SPACE.notation.write(genotype),
        "params": 1000 * (1 + size),
        "flops_c10_M": 0.5 + size,
        **{columns.val[12]: points / 2 for columns in DATASETS.values()},
        "c10_valid_200": points * 0.8,
        "c100_valid_200_v10": points * 0.6 if known else "",
        "in16_valid_200_v10": points * 0.4,
        **{columns.test: points * 0.7 for columns in DATASETS.values()},
        "train_s_c10v_200_v10_est": 400 + 100 * size,
    }


def written(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.fixture(scope="module")
def made():
    return written([row(genotype) for genotype in CELLS])


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    """A folder with the table and with hardware figures, of which one cannot run on half of the cells."""
    place = tmp_path_factory.mktemp("tables")
    (place / "nasbench201.csv.gz").write_bytes(gzip.compress(made.encode(), 1))
    sizes = np.array([sum(genotype) for genotype in CELLS], dtype=float)
    values = np.stack([sizes + 1, np.where(sizes < 12, sizes, -1.0), 100 * sizes], axis=1)
    columns = ["c10_edge_latency", "c10_tpu_latency", "c100_edge_latency"]
    np.savez(place / "nasbench201_hardware.npz", columns=columns, values=values)
    return place


@pytest.fixture(scope="module")
def bench(folder):
    return load_benchmark("nasbench201", folder=folder)


GOOD = (4, 4, 4, 4, 4, 4)
SOME = (3, 0, 1, 2, 4, 3)


def test_figures_of_one_cell(bench):
    points = 4 + 2 * 1 + 3 * 2 + 4 * 3 + 5 * 5 + 6 * 4
    expected = {"val_acc": 0.8 * points, "test_acc": 0.7 * points, "test_err": 100 - 0.7 * points}
    expected = {name: pytest.approx(value / 100) for name, value in expected.items()}
    expected |= {"params": 14_000, "macs": 13.5e6, "edge_latency": 14.0}
    assert bench.metrics(SOME, 200) == expected
    assert bench.metrics(SOME, 12) == expected | {"val_acc": pytest.approx(points / 200)}
    assert bench.optimum == pytest.approx(0.007 * 105)


def test_hardware_figures_are_of_the_data_set_and_of_what_runs(bench, folder):
    assert bench.metrics((0,) * 6, 12)["tpu_latency"] == 0
    assert "tpu_latency" not in bench.metrics(GOOD, 12)
    other = load_benchmark("nasbench201", dataset="cifar100", folder=folder).metrics(SOME, 12)
    assert (other["edge_latency"], "tpu_latency" in other) == (1300, False)
    third = load_benchmark("nasbench201", dataset="imagenet16", folder=folder).metrics(SOME, 12)
    assert not [name for name in third if "latency" in name]


@pytest.mark.parametrize(("dataset", "factor"), [("cifar10", 1), ("cifar100", 2), ("imagenet16", 6.068)])
def test_seconds_are_linear_in_epochs_and_grow_with_the_data_set(folder, dataset, factor):
    bench = load_benchmark("nasbench201", dataset=dataset, folder=folder)
    assert bench.seconds(SOME, 200) == pytest.approx(factor * 1700)
    assert bench.seconds(SOME, 12) == pytest.approx(factor * 1700 * 12 / 200)


def test_a_missing_figure_fails_the_trial(folder):
    bench = load_benchmark("nasbench201", dataset="cifar100", folder=folder)
    assert bench.metrics(GOOD, 12)["val_acc"] == pytest.approx(105 / 200)
    with pytest.raises(TrialError, match=r"nasbench201 has no c100_valid_200_v10 for \|avg_pool") as caught:
        bench.metrics(GOOD, 200)
    assert caught.value.reason == "missing"
    with pytest.raises(TrialError, match="has no tpu_latency") as caught:
        looked_up(bench, SOME, 200, ("val_acc", "tpu_latency"))
    assert caught.value.reason == "missing"


def test_other_epochs_are_refused(bench):
    for ask in (bench.metrics, bench.seconds):
        with pytest.raises(ConfigError, match=r"nasbench201 knows \(12, 200\) epochs, not 50"):
            ask(SOME, 50)


def test_an_empty_accuracy_is_missing_but_no_other_field_may_be_empty(made, tmp_path):
    rows = [row(genotype) for genotype in CELLS]
    rows[7]["c10_test_200_nats"] = ""
    bench = load_nasbench201(save(tmp_path, written(rows)))
    with pytest.raises(TrialError, match="has no c10_test_200_nats"):
        bench.metrics(CELLS[7], 12)
    assert bench.optimum == pytest.approx(0.735)


def save(place, text):
    path = place / "nasbench201.csv.gz"
    path.write_bytes(gzip.compress(text.encode(), 1))
    return path


def change(old, new):
    return lambda text: text.replace(old, new, 1)


FIRST = SPACE.notation.write(CELLS[0])
SECOND = SPACE.notation.write(CELLS[1])
DAMAGES = {
    "other operation": (change("none~0", "nine~0"), "SpaceError: no NAS-Bench-201 operation 'nine'"),
    "other form": (change(FIRST, "abc"), "SpaceError: got 'abc'"),
    "word": (change(",1000,", ",many,"), "could not convert .*many"),
    "infinite": (change(",1000,", ",inf,"), "'inf' is no finite number"),
    "no size": (change(",1000,", ",,"), "could not convert"),
    "twice": (change(SECOND, FIRST), "stands there twice"),
    "no cells": (change("arch,", "cell,"), "it has no column 'arch'"),
    "no column": (change("c10_valid_12", "c10_valid_13"), "it has no column 'c10_valid_12'"),
    "short row": (lambda text: text[: text.index(",1000,")] + text[text.index("\r\n", 500) :], "TypeError"),
    "empty": (lambda text: "", "0 different cells"),
    "cut rows": (lambda text: text[: text.index(SECOND)], "has 1 different cells, wanted 15,625"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_table_with_wrong_rows_is_refused(made, tmp_path, kind):
    damage, message = DAMAGES[kind]
    text = damage(made)
    assert text != made
    with pytest.raises(ConfigError, match=message) as caught:
        load_nasbench201(save(tmp_path, text))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"index,arch\n",
        lambda data: data[: len(data) // 2],
        lambda data: data[: len(data) // 2] + b"\x00" * 64 + data[len(data) // 2 + 64 :],
        lambda data: gzip.compress(b"arch\xff\xfe,x\n\xff"),
    ],
    ids=["empty", "no gzip", "cut", "overwritten", "no text"],
)
def test_a_damaged_file_is_refused(folder, tmp_path, damage):
    path = tmp_path / "nasbench201.csv.gz"
    path.write_bytes(damage((folder / path.name).read_bytes()))
    with pytest.raises(ConfigError, match=r"nasbench201\.csv\.gz (is damaged|has 0 different cells)"):
        load_nasbench201(path)


def archive(**arrays):
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a zip"),
        (archive(values=np.zeros((15_625, 1))), "columns"),
        (archive(columns=["a"], values=np.zeros((9, 1))), r"its values are \(9, 1\), wanted \(15625, 1\)"),
        (archive(columns=["a"], values=np.zeros((15_625, 1)))[:-900], "not a zip"),
        (archive(columns=["a"], values=np.array([None])), "Object arrays"),
    ],
    ids=["empty", "no columns", "rows", "cut", "objects"],
)
def test_damaged_hardware_figures_are_refused(made, tmp_path, data, message):
    path = save(tmp_path, made)
    (tmp_path / "nasbench201_hardware.npz").write_bytes(data)
    with pytest.raises(ConfigError, match=f"nasbench201_hardware.npz is damaged: .*{message}"):
        load_nasbench201(path)


# -- where tables are looked for ----------------------------------------------------------------------


def test_unknown_names_say_the_nearest(folder):
    with pytest.raises(ConfigError, match="no benchmark 'nasbench20'; did you mean 'nasbench201'"):
        load_benchmark("nasbench20", folder=folder)
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        load_benchmark("nasbench201", dataset="cifar", folder=folder)
    (folder / "nasbench101.npz").touch()
    with pytest.raises(ConfigError, match="has a single data set; leave dataset 'cifar10' out"):
        load_benchmark("nasbench101", dataset="cifar10", folder=folder)
    (folder / "nasbench101.npz").unlink()


def test_the_folder_is_the_argument_then_the_variable_then_here(folder, tmp_path, monkeypatch):
    here = tmp_path / "benchmarks"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NAS_BENCHMARKS", raising=False)
    with pytest.raises(ConfigError) as caught:
        load_benchmark("nasbench201")
    assert f"looked for {here / 'nasbench201.csv.gz'})" in str(caught.value)
    assert "set NAS_BENCHMARKS" in str(caught.value)
    here.symlink_to(folder)
    assert load_benchmark("nasbench201").name == "nasbench201"
    monkeypatch.setenv("NAS_BENCHMARKS", str(tmp_path))
    with pytest.raises(ConfigError, match="looked for"):
        load_benchmark("nasbench201")
    assert load_benchmark("nasbench201", folder=folder).dataset == "cifar10"
    monkeypatch.setenv("NAS_BENCHMARKS", str(folder))
    assert load_benchmark("nasbench201").dataset == "cifar10"


# -- replayed searches --------------------------------------------------------------------------------


def studied(bench, searcher, *, trials, seed, name="benchmark", epochs=200):
    storage = optuna.storages.InMemoryStorage()
    study = Study(bench.space, Fixed(searcher, epochs), storage, name=name, seed=seed, announce=False)
    study.run(Tabular(bench), trials=trials)
    return study.history


@pytest.mark.parametrize("searcher", [RandomSearch(), RegularizedEvolution(), LocalSearch(init=5)])
def test_a_simulation_is_the_study_of_the_same_name(bench, searcher):
    found = simulate(bench, searcher, Protocol(40, 200), seed=3)
    history = studied(bench, searcher, trials=40, seed=3)
    assert [(t.number, t.genotype, t.fidelity, t.state, t.metrics) for t in found] == [
        (t.number, t.genotype, t.fidelity, t.state, t.metrics) for t in history
    ]


def test_a_study_records_what_the_table_does_not_hold(folder):
    bench = load_benchmark("nasbench201", dataset="cifar100", folder=folder)
    history = studied(bench, RandomSearch(), trials=30, seed=0)
    assert {t.state for t in history} == {"done", "failed"}
    for trial in history:
        assert (trial.state == "failed") == (trial.genotype[0] == UNKNOWN)
        assert not trial.reason or trial.reason.startswith("missing: nasbench201 has no c100_valid_200_v10")
    found = simulate(bench, RandomSearch(), Protocol(30, 200), seed=0)
    assert [(t.state, t.reason) for t in found] == [(t.state, t.reason) for t in history]
    with pytest.raises(NoModelError, match=r"10 x missing: nasbench201 knows \(12, 200\) epochs, not 50"):
        studied(bench, RandomSearch(), trials=30, seed=0, epochs=50)


def test_a_simulation_depends_on_the_seed_alone(bench):
    def genotypes(seed):
        return [t.genotype for t in simulate(bench, RegularizedEvolution(), Protocol(60, 12), seed=seed)]

    assert genotypes(0) == genotypes(0)
    assert genotypes(0) != genotypes(1)
    assert len(set(genotypes(0))) == 60


def test_no_evaluation_starts_after_the_budget_and_the_last_is_finished(bench):
    heard = []
    protocol = Protocol(UNBOUNDED, 12, budget_s=2000)
    found = simulate(bench, RandomSearch(), protocol, seed=0, on_trial=heard.append)
    costs = [trial.cost_s for trial in found]
    assert costs == [bench.seconds(trial.genotype, 12) for trial in found]
    assert sum(costs[:-1]) < 2000 <= sum(costs)
    assert heard == found
    exactly = Protocol(UNBOUNDED, 12, budget_s=sum(costs[:5]))
    assert len(simulate(bench, RandomSearch(), exactly, seed=0)) == 5
    assert len(simulate(bench, RandomSearch(), Protocol(3, 12, budget_s=2000), seed=0)) == 3
    assert len(simulate(bench, RandomSearch(), Protocol(9, 12, budget_s=1e-9), seed=0)) == 1
    assert {t.cost_s for t in simulate(bench, RandomSearch(), Protocol(9, 12), seed=0)} == {0.0}


class Three:
    """Knows three architectures."""

    def ask(self, space, history, rng):
        if len(history) == 3:
            raise ExhaustedError("all three have been tried")
        return CELLS[len(history)]


def test_an_exhausted_space_ends_the_search(bench):
    found = simulate(bench, Three(), Protocol(10, 12), seed=0)
    assert [trial.genotype for trial in found] == CELLS[:3]


def test_a_trial_without_a_needed_metric_fails(bench):
    found = simulate(bench, RandomSearch(), Protocol(40, 12), seed=0, needed=("tpu_latency",))
    for trial in found:
        assert (trial.state == "done") == (sum(trial.genotype) < 12)
        assert trial.state == "done" or trial.reason.startswith("missing: nasbench201 has no tpu_latency")


@pytest.mark.parametrize(("trials", "budget_s"), [(0, None), (10, 0.0), (10, -1.0)])
def test_a_protocol_without_work_is_refused(trials, budget_s):
    with pytest.raises(ConfigError, match="wanted at least 1 and more than 0"):
        Protocol(trials, 12, budget_s)


def told(number, val=None, **more):
    if val is None:
        return Trial(number, (number,), state="failed", reason="nan: no")
    return Trial(number, (number,), state="done", metrics={"val_acc": val, **more})


def test_incumbents_by_hand():
    history = [
        told(0),
        told(1, 0.5, test_acc=0.9),
        told(2, 0.4, test_acc=1.0),
        told(3, 0.6, test_acc=0.1),
        told(4),
        told(5, 0.6, test_acc=0.8),
        told(6, 0.7, test_acc=0.3),
    ]
    values = incumbents(history, VAL, "test_acc")
    assert values.tolist()[1:] == [0.9, 0.9, 0.1, 0.1, 0.1, 0.3]
    assert math.isnan(values[0])
    assert incumbents([], VAL, "test_acc").shape == (0,)


def test_volumes_by_hand():
    goals = parse_goals(["val_acc", "-params"], ["params<=4"])
    rows = [(0.9, 5), (0.5, 3), (0.1, 4), (0.6, 1)]
    history = [told(0), *(told(i + 1, val, params=p) for i, (val, p) in enumerate(rows))]
    values = _volumes(history, goals, (0.0, 4.0), 2.0)
    assert math.isnan(values[0])
    assert values[1:] == pytest.approx([0, 0.25, 0.25, 0.9])


def test_incumbents_keep_constraints_first():
    history = [told(i, v, params=p, test_acc=v) for i, (v, p) in enumerate([(0.9, 5), (0.2, 2), (0.8, 3)])]
    goals = parse_goals(["val_acc"], ["params<=2"])
    assert incumbents(history, goals, "test_acc").tolist() == [0.9, 0.2, 0.2]
    smallest = parse_goals(["-params"])
    assert incumbents(history, smallest, "test_acc").tolist() == [0.9, 0.2, 0.2]


# -- races --------------------------------------------------------------------------------------------


def race(folder, searcher="random", *, trials=30, budget_s=None, goals=VAL, fidelity=200, **more):
    return Race("nasbench201", searcher, Protocol(trials, fidelity, budget_s), goals, folder=folder, **more)


def test_a_race_does_not_depend_on_the_number_of_processes(folder):
    planned = race(folder, "evolution", budget_s=8000.0, fidelity=12, seed=5)
    heard = []
    one = run_race(planned, repeats=3, workers=1, on_repeat=heard.append)
    two = run_race(planned, repeats=3, workers=2)
    assert heard == [1, 2, 3]
    assert np.array_equal(one.values, two.values)
    assert np.array_equal(one.seconds, two.seconds)
    assert np.array_equal(one.counts, two.counts)
    assert one.history == two.history


def test_the_first_repeats_do_not_depend_on_how_many_follow(folder):
    some, more = (run_race(race(folder), repeats=repeats, workers=1) for repeats in (2, 4))
    assert np.array_equal(some.values, more.values[:2])
    other = run_race(race(folder, seed=1), repeats=2, workers=1)
    assert not np.array_equal(some.values, other.values)
    assert len(np.unique(more.values[:, 0])) > 1


def test_curves_are_those_of_the_history(folder, bench):
    runs = run_race(race(folder), repeats=2, workers=1)
    assert runs.values.shape == runs.seconds.shape == (2, 30)
    assert runs.counts.tolist() == [30, 30]
    assert np.array_equal(runs.values[0], incumbents(list(runs.history), VAL, "test_acc"))
    assert np.array_equal(runs.at(7), runs.values[:, 6])
    for evaluations in (0, 31):
        with pytest.raises(ConfigError, match=f"got {evaluations} evaluations, wanted 1 to 30"):
            runs.at(evaluations)


def test_a_repeat_that_ended_early_keeps_its_last_value_and_second(folder):
    runs = run_race(race(folder, trials=UNBOUNDED, budget_s=3000.0, fidelity=12), repeats=6, workers=1)
    assert len(set(runs.counts.tolist())) > 1
    assert runs.values.shape == (6, runs.counts.max())
    for values, seconds, count in zip(runs.values, runs.seconds, runs.counts, strict=True):
        assert (np.diff(seconds[:count]) > 0).all()
        assert seconds[count - 1] >= 3000 > seconds[count - 2]
        assert set(values[count:]) <= {values[count - 1]}
        assert set(seconds[count:]) <= {seconds[count - 1]}


def runs_of(values, seconds=None):
    values = np.array(values, dtype=float)
    seconds = np.zeros_like(values) if seconds is None else np.array(seconds, dtype=float)
    return Runs(values, seconds, np.full(len(values), values.shape[1]), [])


def test_marks_are_told_and_the_end():
    runs = runs_of([np.arange(60.0), np.arange(60.0) + 2])
    assert runs.table() == {25: (25.0, 1.0), 50: (50.0, 1.0), 60: (60.0, 1.0)}
    assert list(runs_of(np.zeros((1, 25))).table()) == [25]
    assert list(runs_of(np.zeros((1, 501))).table()) == [25, 50, 100, 150, 200, 300, 500, 501]


def test_the_error_of_a_mean_needs_two_repeats(folder, bench):
    errors = [
        to_dict(bench, outcome_of(folder, ["random"], repeats=repeats, trials=5))["searchers"]["random"][
            "standard_error"
        ]
        for repeats in (1, 2)
    ]
    assert errors[0] is None and errors[1] > 0


def test_repeats_without_a_success_do_not_count():
    values = np.full((2, 30), np.nan)
    values[0, 26:] = 0.5
    assert runs_of(values).table() == {30: (0.5, 0.0)}


def test_a_race_in_which_everything_fails_says_why(folder):
    bounded = race(folder, trials=1, dataset="cifar100", seed=0)
    seeds = [s for s in range(60) if first_fails(folder, s)]
    with pytest.raises(
        NoModelError, match="every trial failed, the first by missing: nasbench201 has no c100"
    ):
        run_race(Race(**{**vars(bounded), "seed": seeds[0]}), repeats=1, workers=1)


def first_fails(folder, seed):
    try:
        run_race(race(folder, trials=1, dataset="cifar100", seed=seed), repeats=1, workers=1)
    except NoModelError:
        return True
    return False


def test_a_share_of_the_exact_front(folder, bench):
    goals = parse_goals(["-test_err", "-params"])
    planned = race(folder, "nsga2", trials=60, goals=goals, reference=(0.9, 20_000.0))
    runs = run_race(planned, repeats=2, workers=1)
    assert (np.diff(runs.values) >= 0).all()
    assert ((runs.values >= 0) & (runs.values < 1)).all()
    assert runs.values[0, -1] == pytest.approx(area(runs.history) / exact_area())


def area(history):
    return covered({(t.metrics["test_acc"], t.metrics["params"]) for t in history})


@functools.cache
def exact_area():
    return covered({(row(g)["c10_test_200_nats"] / 100, row(g)["params"]) for g in CELLS})


def covered(points):
    """The area between the points and test_acc 0.1, params 20,000, in columns of 1000 parameters."""
    best = [max([acc for acc, params in points if params <= x] + [0.1]) for x in range(1000, 20_000, 1000)]
    return sum(1000 * max(0.0, acc - 0.1) for acc in best)


def test_the_exact_front_by_brute_force(bench):
    found = exact_front(bench, PARETO, 200)
    best = {}
    for genotype in CELLS:
        metrics = bench.metrics(genotype, 200)
        size = metrics["params"]
        best[size] = min(best.get(size, 1.0), metrics["test_err"])
    expected, least = [], math.inf
    for size in sorted(best):
        if best[size] < least:
            expected.append((-best[size], -size))
            least = best[size]
    assert sorted(set(map(tuple, found.tolist()))) == sorted(expected)


def test_the_exact_front_keeps_constraints_and_leaves_out_what_is_missing(bench, folder):
    small = exact_front(bench, parse_goals(["val_acc", "-params"], ["params<=5000"]), 200)
    assert small[:, 1].min() == -5000
    other = load_benchmark("nasbench201", dataset="cifar100", folder=folder)
    top = exact_front(other, parse_goals(["val_acc", "-params"]), 200)[:, 0].max()
    assert top == pytest.approx(0.006 * (105 - 1))
    tpu = exact_front(bench, parse_goals(["val_acc", "-tpu_latency"]), 200)
    assert tpu[:, 1].min() == -11
    with pytest.raises(ConfigError, match="no architecture of nasbench201 keeps params <= 10; loosen them"):
        exact_front(bench, parse_goals(["val_acc", "-params"], ["params<=10"]), 200)


def test_a_reference_is_numbers_or_times_the_median(bench):
    median = np.median([row(genotype)["params"] for genotype in CELLS])
    assert reference_point("0.15,1.5m", bench, PARETO, 200) == (0.15, 1.5 * median)
    assert reference_point(" 2e-1 , 30000", bench, PARETO, 200) == (0.2, 30_000.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.15", "wanted 2 numbers"),
        ("0.15,1,2", "wanted 2 numbers"),
        ("0.15,big", "'big' is no number"),
        ("0.15,m", "'m' is no number"),
        ("nan,1m", "'nan' is no number"),
        ("0.15,inf", "'inf' is no number"),
    ],
)
def test_another_reference_is_refused(bench, text, message):
    with pytest.raises(ConfigError, match=message):
        reference_point(text, bench, PARETO, 200)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"searcher": "evolve"}, "no searcher 'evolve'; did you mean 'evolution'"),
        ({"settings": (("population", 5),)}, "random: got 'population', but there are no settings"),
        ({"searcher": "evolution", "settings": (("population", 1),)}, "population is 1"),
        ({"fidelity": 50}, "epochs, not 50"),
        ({"goals": parse_goals(["latency"])}, "no metric of nasbench201 'latency'"),
        ({"goals": parse_goals([], ["param<=3"])}, "did you mean 'params'"),
        ({"dataset": "cifar"}, "did you mean 'cifar10'"),
        ({"goals": PARETO, "reference": (0.1, 9e9), "searcher": "evolution"}, "one objective"),
        ({"goals": PARETO, "reference": (0.1, 10.0)}, "no architecture of nasbench201 is better in every"),
    ],
)
def test_a_race_that_cannot_be_run_is_refused_at_once(folder, more, message):
    with pytest.raises(ConfigError, match=message):
        run_race(race(folder, **more), repeats=2, workers=2)


def test_other_numbers_of_objectives_and_references_are_refused(folder):
    with pytest.raises(ConfigError, match="got a reference of 0 numbers, wanted 2"):
        race(folder, goals=PARETO)
    with pytest.raises(ConfigError, match="got a reference of 1 numbers, wanted 0"):
        race(folder, reference=(1.0,))
    for repeats, workers in ((0, 1), (1, 0)):
        with pytest.raises(ConfigError, match="wanted at least 1"):
            run_race(race(folder), repeats=repeats, workers=workers)


# -- the outcome --------------------------------------------------------------------------------------


def test_bands_hold_a_mean_that_is_below_every_quantile():
    values = np.full((20, 3), 0.9)
    values[0] = 0.1
    curve = bands(runs_of(values), seconds=False)
    assert curve.mean == pytest.approx(0.86)
    assert (curve.low <= curve.mean).all()
    assert curve.high == pytest.approx(0.9)
    assert curve.x.tolist() == [1, 2, 3]


def test_bands_by_seconds_by_hand():
    runs = runs_of([[0.1, 0.2, 0.3], [0.5, 0.6, 0.6]], [[10, 20, 30], [5, 45, 45]])
    curve = bands(runs, seconds=True)
    assert (curve.x[0], curve.x[-1], len(curve.x)) == (10, 45, 200)
    at = dict(zip(curve.x.round(9).tolist(), curve.mean.tolist(), strict=True))
    assert at[10] == pytest.approx((0.1 + 0.5) / 2)
    assert at[45] == pytest.approx((0.3 + 0.6) / 2)
    middle = int(np.searchsorted(curve.x, 25))
    assert curve.mean[middle] == pytest.approx((0.2 + 0.5) / 2)
    single = bands(runs_of([[0.1], [0.2]], [[10], [12]]), seconds=True)
    assert single.x.tolist() == [12]


def test_bands_begin_at_the_first_success():
    curve = bands(runs_of([[np.nan, np.nan, 0.5], [np.nan, 0.1, 0.1]]), seconds=False)
    assert curve.x.tolist() == [2, 3]
    assert curve.mean == pytest.approx([0.1, 0.3])


def outcome_of(folder, searchers, repeats=3, **more):
    races = [race(folder, searcher, **more) for searcher in searchers]
    return {r.searcher: (r, run_race(r, repeats=repeats, workers=1)) for r in races}


def test_an_outcome_is_numbers_words_and_pictures(folder, bench, tmp_path):
    races = outcome_of(folder, ["random", "evolution"], trials=60)
    paths = write_outcome(tmp_path / "out", bench, races)
    assert [path.name for path in paths] == ["benchmark.json", "anytime.svg", "anytime.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(p.name for p in paths)
    record = read_json(paths[0])
    assert record == json.loads(json.dumps(to_dict(bench, races)))
    assert "optimum" in paths[1].read_text() and "val_acc" not in record
    assert paths[2].stat().st_size > 5000
    plain = {"benchmark": "nasbench201", "dataset": None, "fidelity": 200, "trials": 60, "seed": 0}
    plain |= {"time_budget_s": None, "reference": [], "goals": VAL.to_dict(), "optimum": bench.optimum}
    assert {name: record[name] for name in plain} == json.loads(json.dumps(plain))
    one, runs = record["searchers"]["evolution"], races["evolution"][1]
    assert (one["searcher"], one["repeats"], one["mean_evaluations"]) == ("evolution", 3, 60)
    assert list(one["at"]) == ["25", "50", "60"]
    assert one["at"]["60"] == {"mean": runs.at(60).mean(), "sd": runs.at(60).std()}
    assert one["standard_error"] == pytest.approx(runs.at(60).std(ddof=1) / 3**0.5)
    assert {len(column) for column in one["curve"].values()} == {60}
    told = lines(races, bench)
    assert told[0] == describe(bench, races["random"][0])
    assert told[1].split() == ["searcher", "25", "50", "60"]
    assert told[3].split()[0] == "evolution"
    assert told[3].endswith(f"{100 * runs.at(60).mean():.2f} +- {100 * runs.at(60).std():.2f}")


def test_an_outcome_by_seconds(folder, bench, tmp_path):
    races = outcome_of(folder, ["random"], trials=UNBOUNDED, budget_s=2000.0, fidelity=12)
    record = read_json(write_outcome(tmp_path, bench, races)[0])
    assert (record["trials"], record["time_budget_s"]) == (None, 2000.0)
    x, seconds = record["searchers"]["random"]["curve"]["x"], races["random"][1].seconds
    assert (x[0], x[-1]) == pytest.approx((seconds[:, 0].max(), seconds[:, -1].max()))
    assert x[-1] >= 2000
    head, line = lines(races, bench)[1:]
    assert head.split() == ["searcher", "evaluations", "at", "the", "end"]
    assert line.split()[1] == f"{races['random'][1].counts.mean():.1f}"


@pytest.mark.parametrize(("repeats", "budget_s"), [(1, None), (4, 1e-9)])
def test_the_smallest_outcomes_are_drawn(folder, bench, tmp_path, repeats, budget_s):
    races = outcome_of(folder, ["random"], repeats, trials=1, budget_s=budget_s, fidelity=12)
    assert all(path.is_file() for path in write_outcome(tmp_path, bench, races))


def test_an_outcome_with_failures_is_strict_json(folder, tmp_path):
    bench = load_benchmark("nasbench201", dataset="cifar100", folder=folder)
    races = outcome_of(folder, ["random"], repeats=30, trials=5, dataset="cifar100")
    values = races["random"][1].values
    assert np.isnan(values).any()
    paths = write_outcome(tmp_path, bench, races)
    assert read_json(paths[0])["dataset"] == "cifar100"
    assert "cifar100" in paths[1].read_text()


def test_two_objectives_also_give_a_front(folder, bench, tmp_path):
    races = outcome_of(folder, ["random", "nsga2"], goals=PARETO, reference=(0.9, 20_000.0))
    paths = write_outcome(tmp_path, bench, races)
    assert [path.name for path in paths[3:]] == ["front.svg", "front.png"]
    picture = paths[3].read_text()
    for word in ("nsga2", "test_err", "params", "exact front", "hypervolume"):
        assert word in picture, word
    assert read_json(paths[0])["reference"] == [0.9, 20_000.0]
    assert lines(races, bench)[0] == "min test_err, min params, 200 epochs"


def test_a_front_of_nothing_that_keeps_the_bounds(folder, bench, tmp_path):
    goals = parse_goals(["-test_err", "-params"], ["params<=1000"])
    races = outcome_of(folder, ["random"], repeats=1, trials=3, goals=goals, reference=(1.0, 20_000.0))
    assert races["random"][1].values.tolist() == [[0, 0, 0]]
    assert write_outcome(tmp_path, bench, races)[3].is_file()


def test_what_was_selected_is_said(folder, bench):
    def said(objectives, constraints=()):
        return describe(bench, race(folder, goals=parse_goals(objectives, constraints)))

    assert said(["val_acc"]).startswith(bench.note)
    assert "200 epochs" in said(["val_acc"])
    assert said(["-test_err"]) == "selected by min test_err after 200 epochs, reported by test_acc"
    for other in (["val_acc - 0.1*params"], ["-val_acc"]):
        assert said(other).startswith("selected by m")
    assert "params <= 5000" in said(["val_acc"], ["params<=5000"])


# -- the command --------------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments)])


def test_the_command_prints_one_json_object(folder, tmp_path):
    given = ["--trials", 30, "--repeats", 4, "--workers", 1, "--tables", folder, "--out", tmp_path]
    done = call("nasbench201", "--searcher", "random", *given, "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer == read_json(tmp_path / "benchmark.json")
    assert answer["trials"] == 30
    assert answer["searchers"]["random"]["repeats"] == 4
    assert "random 4/4  4 of 4 repeats" in done.stderr
    runs = run_race(race(folder), repeats=4, workers=1)
    assert answer["searchers"]["random"]["at"]["30"]["mean"] == runs.at(30).mean()


def test_a_quiet_command_prints_the_table_alone(folder, tmp_path):
    given = ["--trials", 30, "--repeats", 4, "--workers", 1, "--tables", folder, "--out", tmp_path, "--quiet"]
    done = call("nasbench201", "--searcher", "random", *given)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "anytime.png")


def test_the_command_prints_a_table_and_where_files_are(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_BENCHMARKS", str(folder))
    sets = ["--set", "population=6", "--set", "tournament=2"]
    given = ["--searcher", "evolution", "--trials", 12, "--repeats", 2, "--workers", 1, "--seed", 3, *sets]
    done = call("nasbench201", *given, "--dataset", "cifar100", "--epochs", 12)
    assert done.exit_code == 0, done.stderr
    out = tmp_path / "results" / "benchmark-nasbench201"
    assert done.stdout.splitlines()[-3:] == [
        str(out / name) for name in ("benchmark.json", "anytime.svg", "anytime.png")
    ]
    record = read_json(out / "benchmark.json")
    assert (record["seed"], record["fidelity"], record["dataset"]) == (3, 12, "cifar100")
    assert record["searchers"]["evolution"]["settings"] == {"population": 6, "tournament": 2}
    assert done.stdout.splitlines()[2].startswith("evolution ")


def test_a_time_budget_takes_the_shortest_training_and_no_number_of_trials(folder, tmp_path):
    given = ["--searcher", "random", "--repeats", 2, "--workers", 1, "--tables", folder, "--out", tmp_path]
    done = call("nasbench201", *given, "--time-budget", "30m", "--json")
    answer = json.loads(done.stdout)
    assert (answer["fidelity"], answer["trials"], answer["time_budget_s"]) == (12, None, 1800.0)
    assert answer["searchers"]["random"]["mean_evaluations"] > 10


def test_several_objectives_race_what_can_have_several(folder, tmp_path):
    given = ["--trials", 14, "--repeats", 1, "--workers", 1, "--tables", folder, "--out", tmp_path]
    goals = ["--objective=-test_err", "--objective=-params", "--constraint", "params<=20e3"]
    done = call("nasbench201", *given, *goals, "--reference", "0.9,1.5m", "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer["searchers"]) == ["random", "nsga2", "guided"]
    assert answer["description"] == "min test_err, min params, params <= 20000, 200 epochs"
    assert (tmp_path / "front.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trials", 5, "--time-budget", 100], "give --trials or --time-budget, not both"),
        (["--searcher", "random", "--searcher", "evolve"], "no searcher 'evolve'"),
        (["--epochs", 50], "nasbench201 knows (12, 200) epochs, not 50"),
        (["--epochs", 0], "nasbench201 knows (12, 200) epochs, not 0"),
        (["--trials", 0], "got 0 trials"),
        (["--time-budget", "0"], "a budget of 0.0 s"),
        (["--time-budget", "soon"], "--time-budget 'soon': wanted a time"),
        (["--objective", "val_acc", "--objective=-params"], "several objectives need --reference"),
        (["--objective", "val_ac"], "did you mean 'val_acc'"),
        (["--reference", "1,2"], "--reference is for several objectives"),
        (["--repeats", 0], "got 0 repeats"),
        (["--set", "speed=1"], "got 'speed', but there are no settings"),
        (["--dataset", "svhn"], "no data set of nasbench201 'svhn'"),
        ([w for i in range(9) for w in ("--searcher", f"optuna:S{i}")], "at most 8 curves"),
    ],
)
def test_bad_input_is_one_message_before_anything_is_run(folder, tmp_path, arguments, words):
    done = call("nasbench201", *arguments, "--tables", folder, "--out", tmp_path / "out")
    assert done.exit_code == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "out" / "benchmark.json").exists()


def test_an_unknown_benchmark_and_a_missing_table_are_told(tmp_path):
    done = call("nasbench200", "--tables", tmp_path)
    assert (done.exit_code, "did you mean 'nasbench201'" in done.stderr) == (2, True)
    done = call("nasbench201", "--tables", tmp_path)
    assert (done.exit_code, str(tmp_path / "nasbench201.csv.gz") in done.stderr) == (2, True)


# -- the published table ------------------------------------------------------------------------------


@functools.cache
def published(dataset="cifar10"):
    return load_nasbench201(table("nasbench201.csv.gz"), dataset=dataset)


@functools.cache
def published_rows():
    with gzip.open(table("nasbench201.csv.gz"), "rt", newline="") as file:
        return [SPACE.notation.read(row["arch"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("dataset", "index", "test"),
    [("cifar10", 6111, 94.373), ("cifar100", 9930, 73.513), ("imagenet16", 857, 47.311)],
)
def test_the_best_cells_are_the_published_ones(dataset, index, test):
    bench, best = published(dataset), published_rows()[index]
    assert 100 * bench.optimum == pytest.approx(test, abs=5e-4)
    assert 100 * bench.metrics(best, 12)["test_acc"] == pytest.approx(test, abs=5e-4)
    everything = [bench.metrics(genotype, 12)["test_acc"] for genotype in published_rows()]
    assert int(np.argmax(everything)) == index


def test_the_best_cell_by_validation_is_the_published_one():
    found = [published().metrics(genotype, 200)["val_acc"] for genotype in published_rows()]
    assert int(np.argmax(found)) == 6111
    assert 100 * max(found) == pytest.approx(91.607, abs=5e-4)


def test_published_validation_figures_of_cifar100_are_few():
    counts = dict.fromkeys(("cifar100", "imagenet16"), 0)
    for dataset in counts:
        for genotype in published_rows():
            try:
                counts[dataset] += "val_acc" in published(dataset).metrics(genotype, 200)
            except TrialError as error:
                assert error.reason == "missing"
    assert counts == {"cifar100": 2516, "imagenet16": 2516}


def test_published_sizes_are_those_of_the_networks():
    from nas.space.cost import count_params

    for genotype in (published_rows()[0], published_rows()[6111], SOME):
        assert published().metrics(genotype, 12)["params"] == count_params(SPACE.network(genotype, meta=True))
    first = published().metrics(published_rows()[0], 200)
    assert (first["macs"], first["val_acc"]) == (15.64737e6, pytest.approx(0.819827))
    assert published().seconds(published_rows()[0], 200) == 1481.9
    imagenet = published("imagenet16").seconds(published_rows()[0], 12)
    assert imagenet == pytest.approx(1481.9 * 12 / 200 * 151_700 / 25_000)


def test_published_hardware_figures():
    table("nasbench201_hardware.npz")
    first = published().metrics(published_rows()[0], 200)
    assert first["edgegpu_latency"] == pytest.approx(5.8074183)
    assert first["raspi4_latency"] == pytest.approx(10.4819765)
    lacking = sum("edgetpu_latency" not in published().metrics(g, 12) for g in published_rows())
    assert lacking == 4699


def reached(searcher, repeats, protocol, **more):
    """Test accuracies [R] in percent at the end of each repeat."""
    folder = table("nasbench201.csv.gz").parent
    planned = Race("nasbench201", searcher, protocol, VAL, folder=folder, **more)
    runs = run_race(planned, repeats=repeats, workers=1)
    return 100 * runs.values[:, -1]


FULL = Protocol(100, 200)


def test_random_search_reaches_the_published_accuracy():
    found = reached("random", 100, FULL)
    assert found.mean() == pytest.approx(93.80, abs=3 * 0.27 / 10)
    assert found.std() == pytest.approx(0.27, abs=0.08)


def test_evolution_reaches_the_published_accuracy():
    found = reached("evolution", 80, FULL, settings=(("population", 10), ("tournament", 10)))
    assert found.mean() > 94.17 - 3 * 0.28 / 80**0.5


def test_local_search_reaches_the_published_accuracy():
    found = reached("local", 60, FULL)
    assert found.mean() > 94.26 - 3 * 0.24 / 60**0.5


def test_guided_search_beats_the_published_accuracy():
    """Already after 60 evaluations."""
    assert reached("guided", 4, Protocol(60, 200)).mean() >= 94.25


@pytest.mark.parametrize(
    ("searcher", "settings", "mean", "sd"),
    [("random", (), 93.75, 0.32), ("evolution", (("population", 10), ("tournament", 3)), 93.96, 0.37)],
)
def test_searches_within_the_published_seconds(searcher, settings, mean, sd):
    found = reached(searcher, 80, Protocol(UNBOUNDED, 12, 12_000.0), settings=settings)
    assert found.mean() == pytest.approx(mean, abs=3 * sd / 80**0.5)


def test_random_search_reaches_the_published_share_of_the_front():
    table("nasbench201_hardware.npz")
    folder, goals = table("nasbench201.csv.gz").parent, parse_goals(["-test_err", "-raspi4_latency"])
    point = reference_point("0.15,1.5m", published(), goals, 200)
    planned = Race("nasbench201", "random", Protocol(500, 200), goals, folder=folder, reference=point)
    shares = run_race(planned, repeats=6, workers=1).values[:, -1]
    assert shares.mean() == pytest.approx(0.932, abs=3 * 0.012 / 6**0.5)


def test_a_race_is_checked_against_what_the_table_can_answer():
    table("nasbench101.npz")
    folder = table("nasbench201.csv.gz").parent
    goals = Goals((Objective("test_acc"),))
    with pytest.raises(ConfigError, match="has no training times"):
        check_race(Race("nasbench101", "random", Protocol(5, 108, 100.0), goals, folder=folder))
    both = Race("nasbench101", "nsga2", Protocol(5, 108), PARETO, folder=folder, reference=(0.2, 1e7))
    with pytest.raises(ConfigError, match="too large for its exact front"):
        run_race(both, repeats=1, workers=1)
    with pytest.raises(ConfigError, match="too large for its exact front"):
        reference_point("0.1,1m", load_benchmark("nasbench101", folder=folder), PARETO, 108)
    runs = run_race(
        Race("nasbench101", "random", Protocol(5, 108), goals, folder=folder), repeats=2, workers=1
    )
    assert ((runs.values > 0.8) & (runs.values < 0.95)).all()


def test_a_searcher_may_start_with_the_largest(bench, folder):
    runs = run_race(race(folder, "guided", trials=3, settings=(("largest", 3),)), repeats=1, workers=1)
    sizes = [trial.metrics["params"] for trial in runs.history]
    assert min(sizes) > np.quantile([row(genotype)["params"] for genotype in CELLS], 0.95)
    assert make_searcher("guided", {"largest": 3}).largest == 3
