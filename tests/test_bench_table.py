"""The table of what is asked of a GPU: rows as processes, failures, resumption, and the benches behind it."""

import importlib.util
import json
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nas import environment
from nas.errors import ConfigError
from nas.registry import load
from nas.speed import in_turn as turns
from nas.speed.in_turn import Pace, bytes_of_candidates, in_turn
from nas.speed.table import Row, cells, fastest, fill, kept, table
from nas.speed.workloads import bytes_of_a_step, noise, noisy, training
from nas.task import load_task
from nas.training.recipe import preset
from nas.workers.probe import Tried

SCRIPTS = Path(__file__).parents[1] / "scripts"
MACHINE = {"hardware": "a card", "torch": "2.11", "cuda": "13.0", "triton": "3.6.0", "cuda-core": None}
PLAIN = {"ms": 800.0, "ratio": 1.0, "peak_MiB": 8192.0, "kernels_launched": 40_600, "floor_share": 0.005}
OURS = {"ms": 10.0, "ratio": 80.0, "peak_MiB": 2048.0, "kernels_launched": 1412, "floor_share": 0.4}
PATHS = {"plain": PLAIN, "plain, channels last": PLAIN | {"ratio": 90.0}, "kernels, graph": OURS}
FOUND = {"machine": MACHINE, "darts": {"paths": PATHS | {"batched": PLAIN | {"ratio": 2.0}}}}
BENCH = """
import json, pathlib, sys
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:-2]) + "\\n")
print("UserWarning: execution: a pool on cuda is not batched what it is alone", file=sys.stderr)
pathlib.Path(sys.argv[-1]).write_text({found!r})
"""
HANGS = """
import subprocess, sys, time
print("compiling", flush=True)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
time.sleep(600)
"""


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rows(tmp_path):
    """Rows of which one works, one crashes, one hangs, and two count tests."""
    bench = BENCH.format(log=str(tmp_path / "runs"), found=json.dumps(FOUND))
    for name, text in {"works": bench, "crashes": "raise SystemExit('no card')", "hangs": HANGS}.items():
        (tmp_path / f"bench_{name}.py").write_text(text)
    (tmp_path / "test_some.py").write_text("def test_one():\n    pass\ndef test_two():\n    assert 0\n")
    return {
        "hangs": Row("one that hangs", f"{tmp_path}/bench_hangs.py", limit_s=3.0),
        "crashes": Row("one that crashes", f"{tmp_path}/bench_crashes.py", must={"ms": 1}),
        "works": Row("one that works", f"{tmp_path}/bench_works.py", must={"ms": 15, "peak_GiB": 3}),
        "tests": Row("tests", f"-m pytest {tmp_path}/test_some.py", must={"failed": 0, "passed": 1}),
        "itself": Row("a program", '-c "print(3)"', must={"failed": 0, "passed": 1}),
        "unasked": Row("not asked for", f"{tmp_path}/bench_works.py"),
    }


def test_a_row_that_crashes_or_hangs_costs_itself_only_and_a_table_is_gone_on_with(rows, tmp_path):
    folder, said, begun = tmp_path / "speed" / "gpu", [], time.monotonic()
    how = {"asked": [*rows][:-1], "more": {"bench_works": ["--device", "cuda"]}, "say": said.append}
    fill(rows, folder, **how)
    assert time.monotonic() - begun < 300  # the one that hangs would take ten minutes
    names = {"hangs", "crashes", "works", "tests", "itself"}
    assert {path.stem for path in folder.glob("*.json")} == names
    there = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    assert "did not end in 3 s: compiling" in there["hangs"]["error"]
    assert "status 1: no card" in there["crashes"]["error"]
    assert there["works"]["found"] == FOUND and there["works"]["command"].endswith("--device cuda")
    assert there["tests"]["counts"] == {"failed": 1, "passed": 1}
    assert there["itself"]["counts"] == {"passed": 1, "failed": 0}
    assert len(said) == 5 and said[-1] == (folder / "table.md").read_text()
    lines = said[-1].splitlines()
    assert [line.split(" | ")[0] for line in lines[2:7]] == [f"| {row.work}" for row in [*rows.values()][:-1]]
    assert "| one that hangs |  | failed |" in lines[2]
    assert "- a card, torch 2.11, CUDA 13.0, Triton 3.6.0: works" in lines
    assert "- works: UserWarning: execution: a pool on cuda is not batched what it is alone" in lines

    (tmp_path / "bench_crashes.py").write_text((tmp_path / "bench_works.py").read_text())
    fill(rows, folder, **how | {"asked": ["crashes", "works"]})
    assert (tmp_path / "runs").read_text().splitlines() == ["--device cuda", ""]
    assert "no card" not in said[-1] and "| one that hangs |" in said[-1]
    count = len(said)
    fill(rows, folder, **how | {"asked": ["works"]})
    assert said[count:] == [said[-1]], "nothing was left to run"
    fill(rows, folder, **how | {"asked": ["works"]}, again=True)
    assert len((tmp_path / "runs").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("wrote", "error"),
    [
        ({"machine": MACHINE, "darts": {"paths": {"plain": PLAIN}}}, "it timed no path but plain"),
        ({"machine": MACHINE, "darts": {}}, "no row of a table (KeyError('paths'))"),
        (
            {"machine": MACHINE, "darts": {"paths": {"plain": {}, "kernels": {}}}},
            "no row of a table (KeyError('ratio'))",
        ),
        (FOUND | {"more": FOUND["darts"]}, "no row of a table (ValueError("),
        ([], "no row of a table (AttributeError("),
    ],
)
def test_a_bench_that_wrote_no_row_has_failed_and_the_table_goes_on(rows, tmp_path, wrote, error):
    text = BENCH.format(log=str(tmp_path / "runs"), found=json.dumps(wrote))
    (tmp_path / "bench_works.py").write_text(text)
    fill(rows, tmp_path / "gpu", asked=["works", "itself"], more={}, say=lambda _: None)
    assert error in json.loads((tmp_path / "gpu" / "works.json").read_text())["error"]
    assert (tmp_path / "gpu" / "itself.json").exists()


def test_losses_that_are_no_numbers_do_not_keep_a_row_from_its_file(rows, tmp_path):
    paths = {"plain": PLAIN, "kernels": OURS | {"loss_last": float("nan")}}
    text = json.dumps({"machine": MACHINE, "darts": {"paths": paths}})
    (tmp_path / "bench_works.py").write_text(BENCH.format(log=str(tmp_path / "runs"), found=text))
    fill(rows, tmp_path / "gpu", asked=["works"], more={}, say=lambda _: None)
    kept_row = json.loads((tmp_path / "gpu" / "works.json").read_text())["found"]
    assert kept_row["darts"]["paths"]["kernels"]["loss_last"] == "NaN"


def test_no_row_begins_when_the_time_is_over_and_none_has_more_than_is_left(rows, tmp_path):
    how = {"more": {}, "say": lambda _: None}
    fill(rows, tmp_path / "gpu", asked=["works"], within_s=0, **how)
    assert not list((tmp_path / "gpu").glob("*.json"))
    fill(rows | {"hangs": Row("long", rows["hangs"].command)}, tmp_path, asked=["hangs"], within_s=1, **how)
    assert "did not end in 1 s" in json.loads((tmp_path / "hangs.json").read_text())["error"]


# -- the numbers ----------------------------------------------------------------------------------------


def test_a_row_tells_the_reference_and_the_fastest_path_of_ours():
    row = Row("a step", "scripts/bench_x.py", must={"ms": 15, "peak_GiB": 3}, aim={"ms": 9})
    plain, path, ours = fastest(FOUND)
    assert (plain, path, ours["peak_GiB"]) == (PLAIN, "kernels, graph", 2.0)
    told = ["a step", "800 ms", "10 ms", "80x", "15 ms, 3 GiB", "9 ms", "must", "2.00", "1412", "40%"]
    assert cells(row, {"found": FOUND}) == [*told, "kernels, graph"]


def test_what_is_bounded_is_shown_too():
    paths = {name: values | {"times_first": 2.5} for name, values in PATHS.items()}
    row = Row("second", "scripts/bench_x.py", must={"times_first": 4}, aim={"times_first": 3})
    told = cells(row, {"found": {"machine": MACHINE, "darts": {"paths": paths}}})
    assert told[2:7] == [
        "10 ms, 2.5x the first order",
        "80x",
        "4x the first order",
        "3x the first order",
        "aim",
    ]


@pytest.mark.parametrize(
    ("must", "aim", "ours", "verdict"),
    [
        ({"ms": 15, "peak_GiB": 3}, {"ms": 9}, {"ms": 14, "peak_GiB": 3.1}, "no"),
        ({"ms": 15, "peak_GiB": 3}, {"ms": 9}, {"ms": 9, "peak_GiB": 3.0}, "aim"),
        ({"ms": 15, "peak_GiB": 3}, {"ms": 9}, {"ms": 9}, "no"),
        ({"images_per_s": 4000}, {"images_per_s": 8000}, {"images_per_s": 3999}, "no"),
        ({"images_per_s": 4000}, {"images_per_s": 8000}, {"images_per_s": 8000}, "aim"),
        ({"ratio": 10}, {"ratio": 30}, {"ratio": 10}, "must"),
        ({"failed": 0, "passed": 1}, {}, {"failed": 0, "passed": 0, "skipped": 5}, "no"),
        ({"failed": 0, "passed": 1}, {}, {"failed": 0, "passed": 5}, "must"),
        ({}, {}, {"ms": 1}, ""),
    ],
)
def test_what_is_kept(must, aim, ours, verdict):
    assert kept(Row("", "", must=must, aim=aim), ours) == verdict


def test_rows_of_two_machines_are_told_apart():
    rows = {name: Row(name, "scripts/bench_x.py") for name in ("one", "other")}
    second = FOUND | {"machine": MACHINE | {"hardware": "another card"}}
    there = {"one": {"found": FOUND, "warnings": []}, "other": {"found": second, "warnings": []}}
    text = table(rows, there)
    assert "- a card, torch 2.11, CUDA 13.0, Triton 3.6.0: one\n- another card," in text


# -- the scripts ----------------------------------------------------------------------------------------


def test_every_row_asks_for_what_its_script_takes(monkeypatch, tmp_path):
    """Each bench parses its own row's arguments, and stops where it would begin."""
    bench, seen = script("bench_gpu"), {}
    monkeypatch.setattr(bench, "fill", lambda *args, **how: seen.update(how, rows=args[0], folder=args[1]))
    monkeypatch.setattr(bench.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["bench_gpu", "--out", str(tmp_path), "--within", "560"])
    bench.main()
    assert seen["asked"] == [*bench.ROWS][:-1] and seen["within_s"] == 560 and seen["folder"] == tmp_path

    class Begun(Exception):
        pass

    def begin(*_, **__):
        raise Begun

    for row in filter(lambda row: row.is_bench, seen["rows"].values()):
        path, *arguments = bench_command(row, seen["more"])
        module = script(Path(path).stem)
        monkeypatch.setattr(module, "noisy" if path.endswith("population.py") else "environment", begin)
        for name in {"copy_bandwidth", "noise"} & {*vars(module)} - {"noisy"}:
            monkeypatch.setattr(module, name, begin)
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        with pytest.raises(Begun):
            module.main()
    for row in seen["rows"].values():
        assert row.must and all(
            Path(part).exists() for part in row.command.split() if part.startswith("tests/")
        )


def bench_command(row, more):
    command = shlex.split(row.command)
    return [*command, *more[Path(command[0]).stem], "--out", "found.json"]


def test_the_script_fills_a_table_on_this_machine(monkeypatch, rows, tmp_path, capsys):
    bench = script("bench_gpu")
    monkeypatch.setattr(bench, "ROWS", {"works": rows["works"], "itself": rows["itself"]})
    monkeypatch.setattr(bench.signal, "signal", lambda *_: None)
    arguments = ["--rows", "works", "--device", "cpu", "--out", str(tmp_path / "speed")]
    monkeypatch.setattr(sys, "argv", ["bench_gpu", *arguments])
    bench.main()
    assert json.loads((tmp_path / "speed" / "works.json").read_text())["found"] == FOUND
    said = capsys.readouterr().out
    assert "| one that works | 800 ms | 10 ms |" in said and "a program" not in said


def test_the_bench_of_whole_searches_computes_them_from_epochs(monkeypatch, tmp_path):
    bench, out = script("bench_search"), tmp_path / "found.json"
    monkeypatch.setattr(bench, "copy_bandwidth", lambda _: 1e9)
    tiny = "--space toy --images 16 --side 8 --batch 8 --steps 1 --out"
    for words, whole in (("--timed 2", False), ("--whole --epochs 2", True)):
        monkeypatch.setattr(sys, "argv", ["bench_search", *words.split(), *tiny.split(), str(out)])
        bench.main()
        found = json.loads(out.read_text())
        plain, path, ours = fastest(found)
        first, second = ours["seconds"]
        epochs = 2 if whole else 50
        assert plain["minutes"] == pytest.approx(epochs * 2 * plain["ms"] / 60_000)
        assert ours["minutes"] == pytest.approx((first + (epochs - 1) * second) / 60)
        assert ours["ms"] == pytest.approx(1e3 * second / 2) and path == "batched"
        assert ours["ratio"] == pytest.approx(plain["minutes"] / ours["minutes"])
        assert list(found)[1] == ("2 epochs" if whole else "50 epochs, computed from 2")


SMALL = ["space=nasbench201", "space_settings.width=4", "space_settings.cells=1", "trial.batch=16"]


def test_the_bench_of_small_candidates_tells_trials_an_hour(monkeypatch, tmp_path, capsys):
    bench = script("bench_population")
    crowd = Crowd({1: 10.0, 2: 18.0})
    paces = {"plain": Pace(5.0, 72.0), "batched": Pace(20.0, 36.0)}
    monkeypatch.setattr(bench, "crowd_of", lambda *_: crowd)
    monkeypatch.setattr(bench, "copy_bandwidth", lambda _: 1e6)
    monkeypatch.setattr(bench, "bytes_of_candidates", lambda *_, **__: 1e4)
    monkeypatch.setattr(bench, "in_turn", lambda space, task, way, **_: paces[way.execution])
    arguments = ["--noise", "40", "--at-a-time", "2", "--out", str(tmp_path / "found.json")]
    settings = [part for text in ("device=cpu", "preset=nasbench201", *SMALL) for part in ("--set", text)]
    monkeypatch.setattr(sys, "argv", ["bench_population", *arguments, *settings])
    bench.main()
    found = json.loads((tmp_path / "found.json").read_text())
    ((name, row),) = [(name, row) for name, row in found.items() if name != "machine"]
    assert name == "nasbench201, trials of 12 epochs, batch 16" and row["probe"] == 2
    assert row["paths"]["plain"]["trials_per_hour"] == 50 and row["paths"]["batched"]["ratio"] == 2
    two = row["paths"]["2 at a time"]
    assert two["steps_per_s"] == 18 and two["trials_per_hour"] == pytest.approx(180)
    assert two["ratio"] == pytest.approx(3.6) and two["floor_share"] == pytest.approx(0.01 * 20 * 1.8)
    assert fastest(found)[1] == "2 at a time"


class Crowd:
    def __init__(self, rates):
        self.rates = rates

    def __call__(self, count):
        return Tried(count, self.rates[count], 1, 10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def small():
    return load("nasbench201", width=4, cells=1, classes=10, in_channels=3)


def test_the_pace_is_that_of_a_trials_parts(small, monkeypatch):
    """The clock is one of its own: training takes 3 s and then 1 s an epoch, validation half a second."""
    now = [0.0]

    def train(network, task, recipe, *, seed):
        seconds = [3.0] + [1.0] * (recipe.epochs - 1)
        now[0] += sum(seconds)
        return SimpleNamespace(seconds=seconds)

    def evaluate(*_):
        now[0] += 0.5

    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(turns, "train", train)
    monkeypatch.setattr(turns, "evaluate", evaluate)
    task = noise(channels=3, side=8, images=33, device=torch.device("cpu"))
    recipe = preset("nasbench201-12")
    pace = in_turn(small, task, recipe, candidates=2, epochs=3, trial_epochs=12)
    assert pace == Pace(steps_per_s=1.0, trial_s=2 + 12 + 0.5)
    with pytest.raises(ConfigError, match="epochs is 1, but must be at least 2"):
        in_turn(small, task, recipe, candidates=2, epochs=1, trial_epochs=12)


def test_candidates_are_trained_in_turn_and_their_bytes_counted(small):
    task = noise(channels=3, side=8, images=16, device=torch.device("cpu"))
    recipe = preset("nasbench201-12")
    pace = in_turn(small, task, recipe, candidates=1, epochs=2, trial_epochs=12)
    assert pace.steps_per_s > 0 and pace.trial_s > 12 / pace.steps_per_s
    _, network = turns._drawn(small, 2)
    assert bytes_of_candidates(small, task, recipe, candidates=1) == bytes_of_a_step(
        training(network, task, recipe), 1
    )


def test_noise_can_be_read_as_a_file(tmp_path):
    np.savez(tmp_path / "noise.npz", **noisy(channels=3, side=8, images=20))
    read, made = load_task(f"npz:{tmp_path}/noise.npz"), noise(channels=3, side=8, images=20, device="cpu")
    assert len(read.train) == len(made.train) == 20 and read.train.x.equal(made.train.x)


def test_a_comparison_of_precisions_asks_for_its_table_before_it_searches(monkeypatch, tmp_path):
    bench = script("bench_precision")

    def lacks(_):
        raise ConfigError("no table")

    monkeypatch.setattr(bench.nas, "load_benchmark", lacks)
    monkeypatch.setattr(bench.nas, "search", lambda *_, **__: pytest.fail("searched in vain"))
    monkeypatch.setattr(
        sys, "argv", ["bench", "digits", "--side", "8", "--method", "darts", "--out", str(tmp_path)]
    )
    with pytest.raises(ConfigError, match="no table"):
        bench.main()


def test_a_package_that_is_not_there_has_no_version(monkeypatch):
    def version(name):
        if name == "optuna":
            raise PackageNotFoundError
        return "1"

    monkeypatch.setattr(environment, "version", version)
    known = environment.environment(torch.device("cpu"))
    assert known["optuna"] is None and known["cuda-core"] == "1"
