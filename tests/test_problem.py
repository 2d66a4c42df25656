"""A problem of a user's own goes through whole searches: how much ink there is in a digit, by regression."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from jobs import TINY

import nas
from nas.export.formats import FILES, write_source


def loss(outputs, targets):
    return ((outputs[:, 0] - targets) ** 2).mean()


def error(outputs, targets):
    return (outputs[:, 0] - targets) ** 2


def value(outputs):
    return outputs[:, 0]


def spread(targets):
    return (targets - targets.mean()) ** 2


INK = nas.Problem(
    *("regression", "mse", "squared error", loss, error, value, value, spread),
    outputs=1,
    maximize=False,
    is_share=False,
)


def ink_of(x):
    """Of images `[N, 1, 8, 8]`, about 0 with a deviation of 1."""
    return (x.float().mean((1, 2, 3)) - 77.9) / 10.1


@pytest.fixture(scope="module")
def task():
    digits = nas.load_task("digits")
    parts = {name: dataclasses.replace(split, y=ink_of(split.x)) for name, split in digits.splits.items()}
    return dataclasses.replace(digits, name="ink", classes=(), problem=INK, **parts)


LONGER = {"epochs": 4, "retrain": {"epochs": 8, "batch": 64}}
OWN = {
    "evolution": {"trials": 3, "searcher": {"population": 2, "tournament": 1}, "baselines": True}
    | {"export": True, "pictures": True},
    "darts": {},
    "spos": {"trials": 3},
}


def source_alone(folder, model, inputs, *, title):
    """In place of all forms of a bundle, which know nothing of problems."""
    write_source(folder / FILES["source"], model.network, inputs, title=title)
    return ["source"], []


@pytest.mark.parametrize("method", OWN)
def test_a_search_for_less_error_ends_in_a_model_that_has_little(method, task, tmp_path, monkeypatch):
    """One of the searches with its pictures and a bundle."""
    monkeypatch.setattr("nas.export.bundle.write_forms", source_alone)
    settings = {**TINY, **LONGER, **OWN[method]}
    if method == "darts":
        del settings["trial"]
    result = nas.search("toy", task, method, out=tmp_path / "run", settings=settings)
    m = result.metrics
    assert 0 < m["test_mse"] < 0.5 * float(spread(task.test.y).mean())
    assert m["test_mse_low"] < m["test_mse"] < m["test_mse_high"]
    found = result.predict(task.test.x)
    assert found.shape == (len(task.test),)
    assert math.isclose(((found - task.test.y.numpy()) ** 2).mean(), m["test_mse"], rel_tol=1e-3)
    if method == "evolution":
        # Fresh trainings are judged alike: less error is better.
        assert m["rerank_val_mse"] <= min(m["first_val_mse"], m["random_val_mse"])
        assert "squared error" in (tmp_path / "run" / "report.html").read_text()
        proven = (tmp_path / "run" / "MODEL_CARD.md").read_text()
        assert "squared error" in proven and "classif" not in proven
    assert all(np.isfinite(t.metrics["val_mse"]) for t in result.history)
    assert not any("acc" in name.split("_") for name in m)
    # The same call finds it finished, and gives it back.
    again = nas.search("toy", task, method, out=tmp_path / "run", settings=settings)
    assert again.metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    with pytest.raises(nas.ConfigError, match="regression"):
        nas.load_result(tmp_path / "run")
    assert (nas.load_result(tmp_path / "run", problem=INK).predict(task.test.x) == found).all()


def test_what_a_problem_cannot_have_is_refused(task, tmp_path):
    with pytest.raises(nas.ConfigError, match="early_stop"):
        nas.search("toy", task, "random", out=tmp_path, settings={"early_stop": 0.1})
    with pytest.raises(nas.ConfigError, match="val_acc"):
        nas.search("toy", task, "random", out=tmp_path, settings={"objective": "val_acc"})
    with pytest.raises(nas.ConfigError, match="label_smoothing"):
        nas.search("toy", task, "random", out=tmp_path, settings={"trial": {"label_smoothing": 0.1}})
    with pytest.raises(nas.ConfigError, match="audit"):
        nas.audit_task(task)
    assert not list(tmp_path.iterdir())


def test_a_task_tells_what_it_is_for(task):
    assert "regression" in repr(task)
    assert (task.outputs, task.num_classes) == (1, 0)
    assert torch.equal(task.subset(0.5).train.y, ink_of(task.subset(0.5).train.x))
