"""What is particular to `nas.ImageClassifier`; what its users see is in tests/behaviour/test_budgets.py."""

import math
import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks

import nas
from nas import ImageClassifier
from nas.data.preprocessing import PixelLayout, layout
from nas.errors import ConfigError
from nas.export.bundle import record_of
from nas.run.budget import allows_audit
from nas.training.evaluate import evaluate

FAST = {
    "search_images": 100,
    "top_k": 1,
    "space_settings": {"width": 4},
    "retrain": {"epochs": 4},
    "trials": 1,
    "audit": False,
}
X, NUMBERS = load_digits(return_X_y=True)
IMAGES = (X.reshape(-1, 8, 8) * 15).astype(np.uint8)[:300]
NUMBERS = NUMBERS[:300]


def classifier(**more):
    settings = FAST | more.pop("settings", {})
    return ImageClassifier(
        more.pop("time_budget", "1m"), space="toy", method="random", settings=settings, **more
    )


@pytest.fixture(scope="module")
def fitted():
    return classifier().fit(IMAGES[:200], NUMBERS[:200])


def test_images_are_audited_where_there_is_time(fitted):
    doubled = np.concatenate([IMAGES[:90], IMAGES[:5]])
    settings = {name: value for name, value in FAST.items() if name != "audit"}
    model = ImageClassifier("1m", space="toy", method="random", settings=settings)
    model.fit(doubled, np.concatenate([NUMBERS[:90], NUMBERS[:5]]))
    copies = model.audit_["suspects"]["duplicate"] + model.audit_["suspects"]["leak"]
    assert copies >= 5
    assert fitted.audit_ is None
    task = nas.load_task("digits")
    assert not allows_audit(task, 20.0) and allows_audit(task, 180.0)
    few = nas.task_from_arrays(IMAGES[:90], NUMBERS[:90], flip=False)
    assert not allows_audit(few, 20.0) and allows_audit(few, 60.0)


def test_a_copy_has_a_folder_of_its_own_and_no_images_but_those_of_the_test(fitted):
    same = pickle.loads(pickle.dumps(fitted))
    assert same.result_.folder != fitted.result_.folder and len(same.result_.history) == 1
    assert len(same.task_.test) == 20 and not len(same.task_.train) and not len(same.task_.val)
    for split in (fitted.task_.train, fitted.task_.val):
        assert split.x.untyped_storage().nbytes() == split.y.untyped_storage().nbytes() == 0
    folder = same.result_.folder
    assert folder.exists()
    del same
    assert not folder.exists()


def test_the_model_can_be_exported(fitted, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("nas.classifier.bundle", lambda result, task: told.append((result, task)))
    folder = fitted.export(tmp_path / "out")
    ((result, task),) = told
    assert result.folder == folder and result.genotype == fitted.result_.genotype
    assert task.fingerprint == record_of(folder)["task"]["fingerprint"] and len(task.test) == 20
    assert evaluate(result.network, task, task.test)[1] == pytest.approx(result.metrics["test_acc"], abs=1e-5)
    with pytest.raises(ConfigError, match="is not empty"):
        fitted.export(folder)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="or a file"):
        fitted.export(tmp_path / "file")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "darts"}, "method is 'darts'"),
        ({"budget": "1h"}, "budget is given, but fit keeps to time_budget"),
    ],
)
def test_settings_that_contradict_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        classifier(settings=settings).fit(IMAGES, NUMBERS)


# -- the checks of scikit-learn ----------------------------------------------------------------------------

BRIEF = {"time_budget": 0.2, "space": "toy", "method": "random", "settings": FAST | {"search_images": 0}}
NOT_MET = {
    "check_classifiers_train": "wants an accuracy of 0.83, of four epochs at the most here",
    "check_dataframe_column_names_consistency": "gives tables with named columns, which are no images",
}
UNHURRIED = "check_fit_idempotent"
"""Fits twice and wants the same."""


class Filled(PixelLayout):
    """Rows of any number of features as square images, filled up with zeros."""

    @classmethod
    def of(cls, shape, features):
        side = max(8, math.isqrt(features - 1) + 1)
        return layout(shape, features) if shape is not None else cls((side, side, 1))

    def shaped(self, rows):
        return super().shaped(np.pad(rows, ((0, 0), (0, math.prod(self.shape) - rows.shape[1]))))


@parametrize_with_checks(
    [ImageClassifier(**BRIEF)], expected_failed_checks=lambda _: NOT_MET, xfail_strict=True
)
def test_the_conventions_of_scikit_learn(estimator, check, monkeypatch):
    """But for the tables of a few features that the checks are made with, which are refused otherwise."""
    monkeypatch.setattr("nas.classifier.layout", Filled.of)
    if check.func.__name__ == UNHURRIED:
        pytest.skip("time decides how much is learned")
    check(estimator)
