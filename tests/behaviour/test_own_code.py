"""Code of the user's own: put in as docs/plug.md shows, and when it fails, its trial fails with its line."""

import json
import os
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from optuna.storages import InMemoryStorage
from torch import nn
from using import AS_OPTIONS, LEARNING, TINY, Told, nas_command, refused

import nas

MANY = TINY | {"trials": 6}


class Faulty(nn.Module):
    """An operation whose forward does what it is told."""

    def __init__(self, deed, *, large=True):
        super().__init__()  # larger than all others, so that memory that it lacks is not lacking there
        wide = nn.Sequential(nn.Conv2d(4, 64, 1), nn.Conv2d(64, 4, 1))
        self.layer, self.deed = wide if large else nn.Conv2d(4, 4, 1), deed

    def forward(self, x):
        return self.deed(self.layer(x)) if self.training and not x.is_meta and len(x) > 4 else self.layer(x)


def _space(**options):
    """Two decisions of which one has options that misbehave."""

    def build(choose):
        sound = {f"conv_{k}": partial(nn.Conv2d, 4, 4, k, padding=k // 2) for k in (1, 3)}
        body = [choose.op("first", sound | options), choose.op("second", sound)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)]
        return nn.Sequential(nn.Conv2d(1, 4, 3), *body, *head)

    return nas.Space("mine", build)


def _raises(x):
    raise ValueError("my operation broke")


def _exhausts(x):
    return torch.empty(2**52)


def _diverges(x):
    return x * torch.nan


def _refuses(x):
    raise MemoryError


@pytest.mark.parametrize(
    ("deed", "reason", "words"),
    [
        (_raises, "error", "my operation broke"),
        (_diverges, "nan", "finite"),
        (_exhausts, "oom", ""),
        (_refuses, "oom", ""),
    ],
    ids=["raises", "nan", "out of memory", "MemoryError"],
)
def test_what_an_operation_does_fails_its_trials_alone_with_a_reason(tmp_path, deed, reason, words):
    space = _space(bad=partial(Faulty, deed))
    result = nas.search(space, "digits", "random", out=tmp_path / "run", settings=MANY)
    bad = [trial for trial in result.history if space.choices(trial.genotype)["first"] == "bad"]
    assert len(result.history) == 6
    assert bad
    assert {trial.state for trial in bad} == {"failed"}
    assert {trial.state for trial in result.history if trial not in bad} == {"done"}
    assert all(trial.reason.startswith(reason) for trial in bad), bad[0].reason
    assert all(words in trial.reason for trial in bad if trial.reason.split(":")[0] == reason)
    assert sum(result.failures.values()) == len(bad) == result.metrics["failed_trials"]
    assert space.choices(result.genotype)["first"] != "bad"
    again = nas.load_result(tmp_path / "run", space=space)
    assert [trial.reason for trial in again.history] == [trial.reason for trial in result.history]


def test_an_operation_that_lacks_memory_for_itself_alone_does_not_end_the_search(tmp_path):
    space = _space(bad=partial(Faulty, _exhausts, large=False))
    result = nas.search(space, "digits", "random", out=tmp_path / "run", settings=MANY)
    assert space.choices(result.genotype)["first"] != "bad"


def test_what_the_users_code_prints_cannot_steer_the_terminal(tmp_path):
    text = SPACE.replace(
        "    def build(choose):\n", "    def build(choose):\n        print('\\x1b[31mred\\x07')\n"
    )
    (tmp_path / "space.py").write_text(text)
    said = nas_command(
        *("search", "--space", f"{tmp_path}/space.py:make", "--method", "random", *AS_OPTIONS),
        *("--out", tmp_path / "run"),
    )
    assert said.code == 0
    assert not set(said.out + said.err) & {"\x1b", "\x07"}


def test_the_line_of_the_user_is_in_the_reason(tmp_path):
    result = nas.search(
        _space(bad=partial(Faulty, _raises)), "digits", "random", out=tmp_path / "run", settings=MANY
    )
    failed = [trial for trial in result.history if trial.state == "failed"]
    assert "test_own_code.py" in failed[0].reason
    assert 'raise ValueError("my operation broke")' in failed[0].reason


def test_a_search_of_which_nothing_works_ends_with_a_diagnosis(tmp_path):
    space = _space()
    broken = nas.Space("mine", lambda choose: nn.Sequential(space.build(choose), Last()))
    words = refused(
        lambda: nas.search(
            broken,
            "digits",
            "random",
            out=tmp_path / "run",
            settings=TINY | {"trials": 4, "max_failures": 3},
        ),
        "error",
        "my head broke",
        by=nas.NoModelError,
    )
    assert "3" in words


class Last(nn.Module):
    """A head that breaks in training."""

    def forward(self, x):
        if self.training and len(x) > 4:
            raise ValueError("my head broke")
        return x


SPACE = """
from functools import partial
import nas
from torch import nn


def conv(channels, kernel):
    return nn.Sequential(nn.Conv2d(channels, channels, kernel, padding=kernel // 2), nn.ReLU())


def make(width=4, classes=10, in_channels=1):
    def build(choose):
        options = {f"conv_{k}": partial(conv, width, k) for k in (1, 3)} | {"skip": nn.Identity}
        body = [choose.op(f"block{i}", options) for i in range(2)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
        return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), *body, *head)

    return nas.Space("theirs", build)
"""
METHOD = """
import nas
from dataclasses import dataclass


@dataclass(frozen=True)
class Sharp(type(nas.Method().relaxation)):
    def mix(self, alphas, progress):
        return (alphas / 0.5).softmax(-1)


def make():
    return nas.Method("sharp", relaxation=Sharp())
"""


@pytest.fixture
def theirs(tmp_path):
    """The path of a space and of a method in files, as the command takes them."""
    (tmp_path / "space.py").write_text(SPACE)
    (tmp_path / "method.py").write_text(METHOD)
    return f"{tmp_path}/space.py:make", f"{tmp_path}/method.py:make"


@pytest.mark.parametrize("method", ["evolution", "spos", "own"])
def test_a_space_and_a_method_in_files_are_searched_by_the_command(theirs, tmp_path, method):
    space, own = theirs
    options = AS_OPTIONS[2:] if method == "own" else AS_OPTIONS
    run = tmp_path / "run"
    asked = ["--space", space, "--method", own if method == "own" else method]
    said = nas_command("search", *asked, *options, "--set", "space_settings.width=6", "--out", run, "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert set(told["choices"]) == {"block0", "block1"}
    result = nas.load_result(run, space=space)
    assert result.space.choices(result.genotype) == told["choices"]
    assert result.metrics == told["metrics"]
    images = nas.load_task("digits").test
    rate = float(np.mean(result.predict(images.x) == images.y.numpy()))
    assert rate == pytest.approx(told["metrics"]["test_acc"], abs=1e-6)


def test_somebody_elses_run_does_not_run_their_code_until_it_is_named(theirs, tmp_path):
    space, run = theirs[0], tmp_path / "run"
    assert nas_command("search", "--space", space, "--method", "random", *AS_OPTIONS, "--out", run).code == 0
    with (tmp_path / "space.py").open("a") as file:
        file.write(f"\nimport pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    refused(lambda: nas.load_result(run), "space")
    for command in (["predict", run, "cat.png"], ["export", run]):
        assert nas_command(*command).code == 2
    for command in (["draw", run, "--out", tmp_path / "drawn"], ["check", run]):
        assert nas_command(*command).code == 0
    assert nas_command("report", run, "--out", tmp_path / "page.html").code == 0
    assert not (tmp_path / "ran").exists()
    nas.load_result(run, space=space)
    assert (tmp_path / "ran").exists()


def test_a_method_put_together_in_python_mixes_by_its_own_relaxation(tmp_path):
    seen = []

    @dataclass(frozen=True)
    class Sharp(type(nas.Method().relaxation)):
        def mix(self, alphas, progress):
            seen.append((tuple(alphas.shape), float(progress)))
            return (alphas / 0.5).softmax(-1)

    settings = {name: value for name, value in TINY.items() if name != "trials"} | {"epochs": 2}
    method = nas.Method("sharp", relaxation=Sharp())
    result = nas.search(_space(), "digits", method, out=tmp_path / "run", settings=settings)
    shapes, shares = zip(*seen, strict=True)
    assert set(shapes) == {(2, 2)}  # two decisions of two options
    assert min(shares) == 0 < max(shares) <= 1
    assert len(result.history) == 2
    assert len(result.genotype) == 2
    assert result.by_gradients
    another = nas.Method("blunt", relaxation=Sharp())
    refused(lambda: nas.search(_space(), "digits", another, out=tmp_path / "run", settings=settings), "blunt")


class Climb:
    """The searcher of docs/plug.md: mutates the best so far."""

    def ask(self, space, history, rng):
        done = [trial for trial in history if trial.state == "done"]
        tried = {trial.genotype for trial in history}
        best = max(done, key=lambda trial: trial.metrics["val_acc"]).genotype if done else None
        for _ in range(1000):
            child = space.sample(rng) if best is None else space.mutate(best, rng)
            if child not in tried:
                return child
            best = best if rng.random() < 0.5 else None
        return space.sample(rng)


def _counting(trial, rng):
    return {"val_acc": sum(trial.genotype) / 10}


def test_a_searcher_of_ones_own_drives_a_study(tmp_path):
    space = nas.load("toy")
    study = nas.Study(space, nas.Fixed(Climb(), epochs=1), InMemoryStorage(), name="mine")
    study.run(_counting, trials=20)
    assert len({trial.genotype for trial in study.history}) == 20
    assert study.best()[0].genotype == max((t.genotype for t in study.history), key=sum)
    task = nas.load_task("digits").reduced(60)
    trained = nas.Study(space, nas.Fixed(Climb(), epochs=1), InMemoryStorage(), name="trained")
    trained.run(nas.Trained(space, task, nas.Recipe(epochs=1, batch=16, lr=0.1, weight_decay=3e-4)), trials=2)
    assert all(0 <= trial.metrics["val_acc"] <= 1 for trial in trained.history)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (None, "NoneType"),
        ("good", "str"),
        ({"val_acc": "1.5"}, "val_acc"),
        ({"val_acc": float("nan")}, "val_acc"),
        ({"val_acc": float("inf")}, "val_acc"),
        ({"accuracy": 1.0}, "val_acc"),
    ],
    ids=str,
)
def test_an_evaluator_that_gives_no_number_is_told_what_was_wrong(answer, name):
    study = nas.Study(nas.load("toy"), nas.Fixed(nas.RandomSearch()), InMemoryStorage(), name="mine")
    try:
        study.run(lambda trial, rng: answer if trial.number else {"val_acc": 0.5}, trials=3)
    except nas.NasError as error:
        words = str(error)
    else:
        words = study.history[1].reason
        assert {trial.state for trial in study.history[1:]} == {"failed"}
    assert name in words
    assert study.best()[0].metrics["val_acc"] == 0.5


def test_an_evaluator_may_give_numbers_of_any_library():
    study = nas.Study(nas.load("toy"), nas.Fixed(nas.RandomSearch()), InMemoryStorage(), name="mine")
    kinds = [np.float32(0.5), torch.tensor(0.5), 1, np.int64(1)]
    study.run(lambda trial, rng: {"val_acc": kinds[trial.number]}, trials=4)
    assert [trial.metrics["val_acc"] for trial in study.history] == [0.5, 0.5, 1, 1]


def test_an_evaluator_that_raises_fails_its_trial_with_the_line():
    def evaluate(trial, rng):
        if trial.number == 1:
            raise KeyError("my key")
        return {"val_acc": 0.5}

    study = nas.Study(nas.load("toy"), nas.Fixed(nas.RandomSearch()), InMemoryStorage(), name="mine")
    study.run(evaluate, trials=3)
    assert [trial.state for trial in study.history] == ["done", "failed", "done"]
    assert 'raise KeyError("my key")' in study.history[1].reason


class Repeats(Climb):
    def ask(self, space, history, rng):
        return (0,) * len(space.decisions)


class Draws(Climb):
    def ask(self, space, history, rng):
        return space.sample(np.random.default_rng(len(os.urandom(1)) + next(COUNT)))


class Raises(Climb):
    def ask(self, space, history, rng):
        return max(history, key=lambda trial: trial.metrics["val_acc"]).genotype


class Outside(Climb):
    def ask(self, space, history, rng):
        return (99,) * len(space.decisions)


class Changes(Climb):
    def ask(self, space, history, rng):
        proposal = nas.RandomSearch().ask(space, history, rng)
        history.clear()
        return proposal


class Lists(Climb):
    def ask(self, space, history, rng):
        return list(nas.RandomSearch().ask(space, history, rng))


COUNT = iter(range(10**6))


@pytest.mark.parametrize("searcher", [Repeats, Draws, Raises, Outside, Changes, Lists])
def test_what_is_wrong_with_a_searcher_is_named(searcher):
    refused(lambda: nas.check_searcher(searcher(), nas.load("toy")), searcher.__name__)


def test_searchers_that_keep_their_promises_pass():
    for searcher in (nas.RandomSearch(), nas.RegularizedEvolution(), nas.LocalSearch(), nas.Guided(init=4)):
        nas.check_searcher(searcher, nas.load("toy"), trials=12)


def test_progress_hears_of_all_phases_and_trials(tmp_path):
    told = Told()
    nas.search("toy", "digits", "evolution", out=tmp_path / "run", settings=LEARNING, progress=told)
    assert [name for name, _ in told.done].count("search") == 3
    assert told.phases[0] == "search"
    assert len(set(told.phases)) >= 3
    assert any("seed" in note for note in told.notes)


class Remembers:
    """A tracker, as docs/tracking.md shows."""

    def __init__(self):
        self.points, self.files, self.ends, self.known = [], [], [], set()

    def begin(self, run):
        return {(point.series, point.step) for point in self.points}

    def track(self, points):
        self.points += points

    def keep(self, folder, files):
        self.files += files

    def end(self, status):
        self.ends.append(status)


def test_a_tracker_is_told_every_trial_once_also_over_a_resumption(tmp_path):
    tracker, told = Remembers(), Told()
    settings, out = TINY | {"trials": 4}, tmp_path / "run"
    with pytest.raises(nas.Stopped):
        nas.search(
            *("toy", "digits", "random"),
            out=out,
            settings=settings,
            progress=told,
            trackers=[tracker],
            stop=lambda: len(told.done) >= 2,
        )
    result = nas.search("toy", "digits", "random", out=out, settings=settings, trackers=[tracker])
    steps = [point.step for point in tracker.points if point.series == "search"]
    assert sorted(steps) == [0, 1, 2, 3]
    values = {point.step: point.values for point in tracker.points if point.series == "search"}
    assert all(values[t.number]["val_acc"] == t.metrics["val_acc"] for t in result.history)
    final = [point.values for point in tracker.points if point.series == "final"]
    assert final[-1]["test_acc"] == result.metrics["test_acc"]
    assert "metrics.json" in tracker.files
    assert len(tracker.ends) == 2


class Breaks(Remembers):
    def track(self, points):
        raise OSError("the server is down")


def test_a_tracker_that_fails_is_given_up_with_one_word_and_the_search_goes_on(tmp_path, caplog):
    told = Told()
    result = nas.search(
        *("toy", "digits", "random"), out=tmp_path / "run", settings=TINY, trackers=[Breaks()], progress=told
    )
    assert len(result.history) == 2
    heard = caplog.text + "\n".join(told.notes)
    assert heard.count("the server is down") == 1
