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

from nas.__main__ import app
from nas.errors import ConfigError, TrialError
from nas.evaluate.benchmarks import DATASETS, Tabular, load_benchmark, load_nasbench201
from nas.evaluate.replay import (
    UNBOUNDED,
    Replay,
    exact_front,
    incumbents,
    reference_point,
    run_replays,
    volumes,
)
from nas.files.atomic import read_json
from nas.searchers.factory import make_searcher
from nas.searchers.goals import Goals, parse_goals
from nas.searchers.scheduler import Fixed
from nas.show.benchmark import lines, to_dict, write_comparison
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
def benches(folder):
    """The benchmark of that table for each data set."""
    return {name: load_benchmark("nasbench201", dataset=name, folder=folder) for name in DATASETS}


@pytest.fixture(scope="module")
def bench(benches):
    return benches["cifar10"]


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


def test_hardware_figures_are_of_the_data_set_and_of_what_runs(benches):
    bench, other, third = (benches[name] for name in ("cifar10", "cifar100", "imagenet16"))
    assert bench.metrics((0,) * 6, 12)["tpu_latency"] == 0
    assert "tpu_latency" not in bench.metrics(GOOD, 12)
    found = other.metrics(SOME, 12)
    assert (found["edge_latency"], "tpu_latency" in found) == (1300, False)
    assert not [name for name in third.metrics(SOME, 12) if "latency" in name]


@pytest.mark.parametrize(("dataset", "factor"), [("cifar10", 1), ("cifar100", 2), ("imagenet16", 6.068)])
def test_seconds_are_linear_in_epochs_and_grow_with_the_data_set(benches, dataset, factor):
    assert benches[dataset].seconds(SOME, 200) == pytest.approx(factor * 1700)
    assert benches[dataset].seconds(SOME, 12) == pytest.approx(factor * 1700 * 12 / 200)


def test_a_missing_figure_fails_the_trial(benches):
    assert benches["cifar100"].metrics(GOOD, 12)["val_acc"] == pytest.approx(105 / 200)
    with pytest.raises(TrialError, match=r"nasbench201 has no c100_valid_200_v10") as caught:
        benches["cifar100"].metrics(GOOD, 200)
    assert caught.value.reason == "missing"


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
    "infinite": (change(",1000,", ",inf,"), "'inf' is no finite number"),
    "twice": (change(SECOND, FIRST), "stands there twice"),
    "no column": (change("c10_valid_12", "c10_valid_13"), "it has no column 'c10_valid_12'"),
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


def archive(**arrays):
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a zip"),
        (archive(values=np.zeros((15_625, 1))), "columns"),
        (archive(columns=["a"], values=np.zeros((9, 1))), "wanted float"),
        (archive(columns=["a"], values=np.array([None])), "Object arrays"),
    ],
    ids=["empty", "no columns", "rows", "objects"],
)
def test_damaged_hardware_figures_are_refused(made, tmp_path, data, message):
    path = save(tmp_path, made)
    (tmp_path / "nasbench201_hardware.npz").write_bytes(data)
    with pytest.raises(ConfigError, match=f"nasbench201_hardware.npz is damaged: .*{message}"):
        load_nasbench201(path)


# -- where tables are looked for ----------------------------------------------------------------------


def test_the_folder_is_the_argument_then_the_variable_then_here(folder, tmp_path, monkeypatch):
    here = tmp_path / "benchmarks"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NAS_BENCHMARKS", raising=False)
    with pytest.raises(ConfigError, match="set NAS_BENCHMARKS") as caught:
        load_benchmark("nasbench201")
    assert f"looked for {here / 'nasbench201.csv.gz'})" in str(caught.value)
    here.symlink_to(folder)
    assert load_benchmark("nasbench201").name == "nasbench201"
    monkeypatch.setenv("NAS_BENCHMARKS", str(tmp_path))
    with pytest.raises(ConfigError, match="looked for"):
        load_benchmark("nasbench201")
    monkeypatch.setenv("NAS_BENCHMARKS", str(folder))
    assert load_benchmark("nasbench201").dataset == "cifar10"


# -- replayed searches --------------------------------------------------------------------------------


def planned(folder, searcher="random", *, trials=30, goals=VAL, fidelity=200, **more):
    return Replay("nasbench201", searcher, goals, fidelity, trials, folder=folder, **more)


def studied(bench, searcher, *, trials, seed):
    storage = optuna.storages.InMemoryStorage()
    study = Study(bench.space, Fixed(searcher, 200), storage, name="benchmark", seed=seed, announce=False)
    study.run(Tabular(bench), trials=trials)
    return study.history


def plain(history):
    return [(t.number, t.genotype, t.fidelity, t.state, t.metrics, t.reason) for t in history]


@pytest.mark.parametrize("searcher", ["random", "evolution", "local"])
def test_a_replay_is_the_study_of_the_same_name(folder, benches, searcher):
    """Trials that the table does not hold have failed."""
    bench = benches["cifar100"]
    search = planned(folder, searcher, trials=40, dataset="cifar100")
    found = search.run(3)
    assert plain(found) == plain(studied(bench, make_searcher(searcher), trials=40, seed=3))
    assert len({t.genotype for t in found}) == 40
    for trial in found:
        assert (trial.state == "failed") == (trial.genotype[0] == UNKNOWN)


def test_no_evaluation_starts_after_the_budget_and_the_last_is_finished(folder, bench):
    def costs(budget_s, trials=UNBOUNDED):
        found = planned(folder, trials=trials, fidelity=12, budget_s=budget_s).run(0)
        assert budget_s is None or [t.cost_s for t in found] == [bench.seconds(t.genotype, 12) for t in found]
        return [trial.cost_s for trial in found]

    every = costs(2000)
    assert sum(every[:-1]) < 2000 <= sum(every)
    assert len(costs(sum(every[:5]))) == 5
    assert len(costs(2000, trials=3)) == 3
    assert costs(None, trials=9) == [0.0] * 9


def test_a_trial_without_a_needed_metric_fails(folder):
    for trial in planned(folder, goals=parse_goals(["val_acc"], ["tpu_latency<=9"]), fidelity=12).run(0):
        assert (trial.state == "done") == (sum(trial.genotype) < 12)


def told(number, val=None, **more):
    if val is None:
        return Trial(number, (number,), state="failed", reason="nan: no")
    return Trial(number, (number,), state="done", metrics={"val_acc": val, **more})


def test_incumbents_by_hand():
    rows = [(None, 0), (0.5, 0.9), (0.4, 1.0), (0.6, 0.1), (None, 0), (0.6, 0.8), (0.7, 0.3)]
    history = [told(i, val, test_acc=test) for i, (val, test) in enumerate(rows)]
    values = incumbents(history, VAL, "test_acc")
    assert math.isnan(values[0]) and values.tolist()[1:] == [0.9, 0.9, 0.1, 0.1, 0.1, 0.3]
    history = [told(i, v, params=p, test_acc=v) for i, (v, p) in enumerate([(0.9, 5), (0.2, 2), (0.8, 3)])]
    for goals in (parse_goals(["val_acc"], ["params<=2"]), parse_goals(["-params"])):
        assert incumbents(history, goals, "test_acc").tolist() == [0.9, 0.2, 0.2]


def test_volumes_by_hand():
    goals = parse_goals(["val_acc", "-params"], ["params<=4"])
    rows = [(0.9, 5), (0.5, 3), (0.1, 4), (0.6, 1)]
    history = [told(0), *(told(i + 1, val, params=p) for i, (val, p) in enumerate(rows))]
    values = volumes(history, goals, (0.0, 4.0))
    assert math.isnan(values[0])
    assert values[1:] == pytest.approx([0, 0.5, 0.5, 1.8])


# -- repeats ------------------------------------------------------------------------------------------


def test_repeats_do_not_depend_on_the_number_of_processes(folder):
    search = planned(folder, "evolution", budget_s=8000.0, fidelity=12, seed=5)
    heard = []
    one = run_replays(search, repeats=3, workers=1, on_repeat=heard.append)
    two = run_replays(search, repeats=3, workers=2)
    assert heard == [1, 2, 3]
    for name in ("values", "seconds", "counts"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    assert one.history == two.history
    some = run_replays(search, repeats=2, workers=1)
    assert np.array_equal(some.values[:, :20], one.values[:2, :20])
    assert len(np.unique(one.values[:, 0])) > 1


def test_a_share_of_the_exact_front(folder):
    search = planned(folder, "nsga2", trials=60, goals=PARETO, reference=(0.9, 20_000.0))
    runs = run_replays(search, repeats=2, workers=1)
    assert (np.diff(runs.values) >= 0).all()
    assert ((runs.values >= 0) & (runs.values < 1)).all()
    found = covered({(t.metrics["test_acc"], t.metrics["params"]) for t in runs.history})
    exact = covered({(row(g)["c10_test_200_nats"] / 100, row(g)["params"]) for g in CELLS})
    assert runs.values[0, -1] == pytest.approx(found / exact)


def covered(points):
    """The area between the points and test_acc 0.1, params 20,000, in columns of 1000 parameters."""
    best = [max([acc for acc, params in points if params <= x] + [0.1]) for x in range(1000, 20_000, 1000)]
    return sum(1000 * max(0.0, acc - 0.1) for acc in best)


def test_the_exact_front_keeps_constraints_and_leaves_out_what_is_missing(bench, benches):
    small = exact_front(bench, parse_goals(["val_acc", "-params"], ["params<=5000"]), 200)
    assert small[:, 1].min() == -5000
    top = exact_front(benches["cifar100"], parse_goals(["val_acc", "-params"]), 200)[:, 0].max()
    assert top == pytest.approx(0.006 * (105 - 1))
    with pytest.raises(ConfigError, match="keeps params <= 10"):
        exact_front(bench, parse_goals(["val_acc", "-params"], ["params<=10"]), 200)


@pytest.mark.parametrize("text", ["0.15", "0.15,big", "nan,1m"])
def test_another_reference_is_refused(bench, text):
    with pytest.raises(ConfigError, match=r"reference .*(wanted 2 numbers|is no number)"):
        reference_point(text, bench, PARETO, 200)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"goals": parse_goals([], ["param<=3"])}, "did you mean 'params'"),
        ({"goals": PARETO, "reference": (0.1, 9e9), "searcher": "evolution"}, "one objective"),
        ({"goals": PARETO, "reference": (0.1, 10.0)}, "no architecture of nasbench201 is better in every"),
    ],
)
def test_a_search_that_cannot_be_run_is_refused_at_once(folder, more, words):
    with pytest.raises(ConfigError, match=words):
        run_replays(planned(folder, **more), repeats=2, workers=2)


# -- the outcome --------------------------------------------------------------------------------------


def outcome_of(folder, searchers, repeats=3, **more):
    searches = [planned(folder, searcher, **more) for searcher in searchers]
    return {s.searcher: (s, run_replays(s, repeats=repeats, workers=1)) for s in searches}


def test_an_outcome_is_numbers_words_and_pictures(folder, bench, tmp_path):
    found = outcome_of(folder, ["random", "evolution"], trials=60)
    paths = write_comparison(tmp_path / "out", bench, found)
    assert [path.name for path in paths] == ["benchmark.json", "anytime.svg", "anytime.png"]
    assert all(path.is_file() for path in paths)
    record = read_json(paths[0])
    assert record == json.loads(json.dumps(to_dict(bench, found)))
    assert (record["benchmark"], record["fidelity"], record["trials"]) == ("nasbench201", 200, 60)
    one, last = record["searchers"]["evolution"], found["evolution"][1].values[:, -1]
    assert (one["searcher"], one["repeats"], one["mean_evaluations"]) == ("evolution", 3, 60)
    assert list(one["at"]) == ["25", "50", "60"]
    assert one["at"]["60"] == {"mean": last.mean(), "sd": last.std()}
    assert one["standard_error"] == pytest.approx(last.std(ddof=1) / 3**0.5)
    assert f"{100 * last.mean():.2f}" in lines(found, bench)[3]


@pytest.mark.parametrize("constraint", [[], ["params<=1000"]])
def test_two_objectives_also_give_a_front(folder, bench, tmp_path, constraint):
    """Also where nothing keeps the bounds."""
    goals = parse_goals(["-test_err", "-params"], constraint)
    found = outcome_of(folder, ["nsga2"], repeats=1, trials=3, goals=goals, reference=(1.0, 20_000.0))
    paths = write_comparison(tmp_path, bench, found)
    assert [path.name for path in paths[3:]] == ["front.svg", "front.png"]
    assert read_json(paths[0])["reference"] == [1.0, 20_000.0]


# -- the command --------------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments)])


def test_the_command_prints_one_json_object(folder, tmp_path):
    given = ["--trials", 30, "--repeats", 4, "--workers", 1, "--tables", folder, "--out", tmp_path]
    done = call("nasbench201", "--searcher", "random", *given, "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer == read_json(tmp_path / "benchmark.json")
    values = run_replays(planned(folder), repeats=4, workers=1).values
    assert answer["searchers"]["random"]["at"]["30"]["mean"] == values[:, 29].mean()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trials", 5, "--time-budget", 100], "--trials or --time-budget"),
        (["--searcher", "random", "--searcher", "evolve"], "no searcher 'evolve'"),
        (["--epochs", 0], "epochs, not 0"),
        (["--time-budget", "soon"], "--time-budget 'soon'"),
        (["--objective", "val_acc", "--objective=-params"], "--reference"),
        (["--repeats", 0], "got 0 repeats"),
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


# -- the published table ------------------------------------------------------------------------------


@functools.cache
def published(dataset="cifar10"):
    return load_nasbench201(table("nasbench201.csv.gz"), dataset=dataset)


@functools.cache
def published_rows():
    with gzip.open(table("nasbench201.csv.gz"), "rt", newline="") as file:
        return [SPACE.notation.read(row["arch"]) for row in csv.DictReader(file)]


def test_published_figures():
    everything = [published().metrics(genotype, 200)["val_acc"] for genotype in published_rows()]
    assert int(np.argmax(everything)) == 6111
    assert 100 * max(everything) == pytest.approx(91.607, abs=5e-4)
    first = published().metrics(published_rows()[0], 200)
    assert (first["macs"], first["val_acc"]) == (15.64737e6, pytest.approx(0.819827))
    assert published().seconds(published_rows()[0], 200) == 1481.9
    imagenet = published("imagenet16").seconds(published_rows()[0], 12)
    assert imagenet == pytest.approx(1481.9 * 12 / 200 * 151_700 / 25_000)


def reached(searcher, repeats, **more):
    """Test accuracies [R] in percent at the end of each repeat."""
    folder = table("nasbench201.csv.gz").parent
    search = planned(folder, searcher, **{"trials": 100} | more)
    return 100 * run_replays(search, repeats=repeats, workers=1).values[:, -1]


@pytest.mark.parametrize(
    ("searcher", "settings", "repeats", "mean", "sd"),
    [
        ("evolution", (("population", 10), ("tournament", 10)), 30, 94.17, 0.28),
        ("local", (), 30, 94.26, 0.24),
    ],
)
def test_searchers_reach_the_published_accuracy(searcher, settings, repeats, mean, sd):
    assert reached(searcher, repeats, settings=settings).mean() > mean - 3 * sd / repeats**0.5


def test_random_search_reaches_the_published_accuracy_and_guided_search_beats_all_after_60():
    found = reached("random", 60)
    assert found.mean() == pytest.approx(93.80, abs=3 * 0.27 / 60**0.5)
    assert found.std() == pytest.approx(0.27, abs=0.08)
    assert reached("guided", 2, trials=60).mean() >= 94.25


def test_evolution_within_the_published_seconds():
    """Random search within these is a test of the command's."""
    settings = (("population", 10), ("tournament", 3))
    found = reached("evolution", 40, trials=UNBOUNDED, fidelity=12, budget_s=12_000.0, settings=settings)
    assert found.mean() == pytest.approx(93.96, abs=3 * 0.37 / 40**0.5)


def test_random_search_reaches_the_published_share_of_the_front():
    table("nasbench201_hardware.npz")
    folder, goals = table("nasbench201.csv.gz").parent, parse_goals(["-test_err", "-raspi4_latency"])
    point = reference_point("0.15,1.5m", published(), goals, 200)
    search = planned(folder, trials=500, goals=goals, reference=point)
    shares = run_replays(search, repeats=6, workers=1).values[:, -1]
    assert shares.mean() == pytest.approx(0.932, abs=3 * 0.012 / 6**0.5)


def test_a_search_is_checked_against_what_the_table_can_answer():
    folder, goals = table("nasbench101.npz").parent, Goals((Objective("test_acc"),))
    for more, words in [
        ({"goals": goals, "budget_s": 100.0}, "has no training times"),
        ({"goals": PARETO, "reference": (0.2, 1e7)}, "too large for its exact front"),
    ]:
        with pytest.raises(ConfigError, match=words):
            search = Replay("nasbench101", "random", fidelity=108, trials=5, folder=folder, **more)
            run_replays(search, repeats=1, workers=1)
    search = Replay("nasbench101", "random", goals, 108, 5, folder=folder)
    values = run_replays(search, repeats=2, workers=1).values
    assert ((values > 0.8) & (values < 0.95)).all()
