"""Time: a budget is a hard end with a model, a preview writes nothing, and the estimator keeps its time."""

import copy
import json
import os
import pickle
import signal
import threading

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from using import begun, in_time, nas_command, refused

import nas

SMALL = {"export": False, "pictures": False}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("evolution", {"trials": 10**6, "epochs": 1}),
        ("darts", {"epochs": 3000}),
        ("spos", {"epochs": 3000, "trials": 10**6}),
    ],
    ids=["evolution", "darts", "spos"],
)
def test_a_budget_ends_a_job_in_time_with_a_tested_model(tmp_path, method, settings):
    """Without one these jobs take hours."""
    settings = SMALL | settings | {"budget": "3s", "retrain": {"epochs": 3000}}
    with in_time(30):
        result = nas.search("toy", "digits", method, out=tmp_path / "run", settings=settings)
    assert 0 <= result.metrics["test_acc"] <= 1
    assert nas.load_result(tmp_path / "run").metrics == result.metrics
    images = nas.load_task("digits").test
    rate = float(np.mean(result.predict(images.x) == images.y.numpy()))
    assert rate == pytest.approx(result.metrics["test_acc"], abs=1e-6)


def test_a_budget_that_is_far_too_small_still_gives_a_tested_model(tmp_path):
    with in_time(30):
        result = nas.search("toy", "digits", "random", out=tmp_path / "run", settings=SMALL | {"budget": 0.1})
    assert 0 <= result.metrics["test_acc"] <= 1
    assert nas_command("check", tmp_path / "run").code == 0


def test_a_budget_counts_over_all_processes_of_a_resumed_run(tmp_path):
    """What was spent before a stop is spent: a run whose time is over is not given the whole of it again."""
    fast = {"search_images": 100, "top_k": 1, "baselines": False}
    settings = SMALL | fast | {"budget": "40s", "trials": 10**6}
    begun(tmp_path / "run", units=3, settings=settings)
    time_file = tmp_path / "run" / "time.json"
    told = json.loads(time_file.read_text())
    assert told["spent_s"] > 0
    time_file.write_text(json.dumps(told | {"spent_s": 39.9}))
    with in_time(7):
        result = nas.search("toy", "digits", "evolution", out=tmp_path / "run", settings=settings)
    assert len(result.history) >= 3
    assert result.metrics["test_acc"] >= 0


def test_a_preview_says_what_a_search_would_cost_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["--space", "toy", "--method", "evolution", "--trials", "40", "--out", tmp_path / "run"]
    told = json.loads(nas_command("search", *asked, "--preview", "--json").out)
    assert told["seconds"] > 0
    assert sum(phase["seconds"] for phase in told["phases"]) == pytest.approx(told["seconds"], rel=0.2)
    assert any("40" in phase["planned"] for phase in told["phases"])
    assert int(told["architectures"]) == 27
    assert told["ranges"]["params"]["low"] < told["ranges"]["params"]["high"]
    assert not list(tmp_path.iterdir())


def test_a_preview_makes_no_database(tmp_path):
    storage = f"sqlite:///{tmp_path}/history.db"
    asked = ["--space", "toy", "--method", "random", "--storage", storage, "--out", tmp_path / "run"]
    assert nas_command("search", *asked, "--preview").code == 0
    assert not list(tmp_path.iterdir())


# -- the estimator -----------------------------------------------------------------------------------------

DRAW = np.random.default_rng(0)
Y = np.arange(240) % 3
X = np.clip(DRAW.integers(0, 60, (240, 8, 8)) + 80 * Y[:, None, None], 0, 255).astype(np.uint8)
NAMES = np.array(["dark", "grey", "light"])[Y]
FAST = SMALL | {
    "trials": 1,
    "top_k": 1,
    "baselines": False,
    "audit": False,
    "space_settings": {"width": 8},
    "retrain": {"epochs": 10, "lr": 0.2},
}


def _classifier(time_budget="5m", **more):
    return nas.ImageClassifier(time_budget, space="toy", method="random", settings=FAST, **more)


@pytest.fixture(scope="module")
def fitted():
    """An estimator that knows dark from light."""
    return _classifier().fit(X[:150], NAMES[:150])


def test_it_learns_labels_of_any_kind_and_its_probabilities_are_some(fitted):
    assert fitted.score(X[150:], NAMES[150:]) > 0.9
    assert fitted.classes_.tolist() == ["dark", "grey", "light"]
    found, shares = fitted.predict(X[150:]), fitted.predict_proba(X[150:])
    assert shares.shape == (90, 3)
    assert np.allclose(shares.sum(1), 1)
    assert shares.min() >= 0
    assert np.array_equal(fitted.classes_[shares.argmax(1)], found)
    assert fitted.result_.metrics["test_acc"] > 0.5
    flags = _classifier().fit(X[:60], Y[:60] > 0)
    assert flags.classes_.tolist() == [False, True]
    assert flags.predict(X[:5]).dtype == bool
    numbers = _classifier().fit(X[:60], 10 * Y[:60] - 10)
    assert set(numbers.predict(X)) <= {-10, 0, 10}


def test_the_same_images_in_any_form_get_the_same_answer(fitted):
    wanted = fitted.predict_proba(X[:9])
    for same in (X[:9, ..., None], X[:9, None], torch.from_numpy(X[:9, None]), X[:9].tolist(), X[:9] / 1.0):
        assert fitted.predict_proba(same) == pytest.approx(wanted, abs=1e-6)


def test_it_can_be_cloned_copied_and_pickled(fitted):
    wanted = fitted.predict_proba(X[:9])
    for same in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert np.array_equal(same.predict_proba(X[:9]), wanted)
        assert same.result_.metrics == fitted.result_.metrics
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(X[:2])
    assert fresh.set_params(time_budget="3m").time_budget == "3m"


def test_it_works_within_scikit_learns_own_tools():
    assert cross_val_score(_classifier(), X[:90], Y[:90], cv=2).min() > 0.5


@pytest.mark.parametrize(
    ("x", "y", "subject"),
    [
        (X[:9], [0] * 8, "samples"),
        (X[:20], ["a"] * 20, "class"),
        (X[:7], ["a", "a", "a", "b", "b", "b", "c"], "'c'"),
        (np.full((9, 8, 8), np.nan), [0, 1, 2] * 3, "NaN"),
        (np.full((9, 8, 8), np.inf), [0, 1, 2] * 3, "inf"),
        (np.zeros((9, 8, 8, 8, 8)), [0, 1, 2] * 3, "5"),
        (X[:0], [], "0"),
        (np.array([["a"] * 64] * 9), [0, 1, 2] * 3, "\\w"),
        (X[:9], np.linspace(0, 1, 9), "continuous"),
        (X[:9], [None, 0, 1] * 3, "\\w"),
    ],
    ids=["lengths", "one class", "one image", "NaN", "infinite", "axes", "none", "text", "numbers", "None"],
)
def test_what_cannot_be_learned_from_is_a_value_error(x, y, subject):
    with pytest.raises(ValueError, match=subject):
        _classifier().fit(x, y)


def test_other_images_than_those_it_learned_from_are_a_value_error(fitted):
    for wrong in (X[:3, :4], X[:3].reshape(3, -1)[:, :60], np.zeros((3, 8, 8, 3)), X[:3] / 1.0 - 5):
        with pytest.raises(ValueError, match=r"\d"):
            fitted.predict(wrong)


@pytest.mark.parametrize("budget", [0, -1, "soon", float("nan"), float("inf"), True])
def test_a_time_that_is_none_is_refused(budget):
    refused(lambda: _classifier(budget).fit(X, Y), "time_budget")


def test_it_keeps_within_its_time():
    settings = SMALL | {"retrain": {"epochs": 3000}, "trials": 10**6}
    with in_time(30):
        model = nas.ImageClassifier("3s", space="toy", method="evolution", settings=settings).fit(X, Y)
    assert model.predict(X[:4]).shape == (4,)


def test_ctrl_c_delivers_the_best_so_far(tmp_path):
    settings = SMALL | {"trials": 10**6, "fidelity": "epochs=1", "audit": False, "top_k": 1}
    before = signal.getsignal(signal.SIGINT)
    model = nas.ImageClassifier("1h", space="toy", method="random", settings=settings, out=tmp_path / "run")
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with in_time(60):
        model.fit(X, Y)
    assert model.predict(X[:3]).shape == (3,)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_folder_of_its_own_stays_and_is_gone_on_with(tmp_path):
    first = _classifier(out=tmp_path / "run").fit(X[:90], Y[:90])
    stamp = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    again = _classifier(out=tmp_path / "run").fit(X[:90], Y[:90])
    assert again.result_.metrics == first.result_.metrics
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises((ValueError, nas.NasError)):
        _classifier(out=tmp_path / "run").fit(X[:90], (Y[:90] + 1) % 3)
