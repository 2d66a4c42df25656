"""The named methods: their published settings, settings of a user, methods of one's own."""

import dataclasses

import pytest

from nas.errors import ConfigError
from nas.oneshot.early_stopping import Guards
from nas.oneshot.methods import METHODS, Method
from nas.oneshot.progressive import SingleStage
from nas.oneshot.regularizers import BetaDecay
from nas.run.config import make_config
from nas.run.resolved_config import make_plan
from nas.searchers.method_names import DIFFERENTIABLE


def published(name, preset, **settings):
    """A method as the preset runs it, without guards."""
    return make_plan(make_config({"method": name, "preset": preset, "guard": False, **settings})).search


def test_every_method_is_known_by_its_own_name():
    assert {name: make().name for name, make in METHODS.items()} == {name: name for name in DIFFERENTIABLE}


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "lr", "alpha_lr"),
    [
        ("darts", 50, 64, 0.025, 3e-4),
        ("gdas", 250, 64, 0.025, 3e-4),
        ("drnas", 50, 64, 0.1, 6e-4),
        ("pcdarts", 50, 256, 0.1, 6e-4),
        ("sdarts-rs", 50, 64, 0.025, 3e-4),
        ("fairdarts", 50, 128, 0.005, 3e-3),
        ("beta-darts", 50, 64, 0.025, 3e-4),
        ("gaea", 50, 256, 0.1, 0.1),
        ("oles", 50, 64, 0.025, 3e-4),
        ("is-darts", 50, 64, 0.025, 3e-4),
        ("pdarts", 75, 96, 0.025, 6e-4),
    ],
)
def test_the_published_settings_of_the_darts_space(name, epochs, batch, lr, alpha_lr):
    method = published(name, "standard")
    weights = method.weights
    assert (weights.epochs, weights.batch, weights.lr) == (epochs, batch, lr)
    assert method.update.lr == pytest.approx(alpha_lr)
    assert (weights.weight_decay, weights.clip) == (3e-4, 5.0)


@pytest.mark.parametrize(
    ("name", "epochs", "alpha_lr", "decay", "nesterov"),
    [
        ("darts", 50, 3e-4, 5e-4, True),
        ("gdas", 250, 3e-4, 5e-4, True),
        ("snas", 100, 3e-4, 3e-4, False),
        ("drnas", 100, 3e-4, 3e-4, False),
        ("sdarts-rs", 100, 3e-4, 3e-4, False),
        ("sdarts-adv", 100, 3e-4, 3e-4, False),
        ("beta-darts", 100, 3e-4, 3e-4, False),
        ("is-darts", 30, 3e-4, 3e-4, True),
        ("gaea", 25, 0.1, 3e-4, False),
    ],
)
def test_the_published_settings_of_nasbench201(name, epochs, alpha_lr, decay, nesterov):
    method = published(name, "nasbench201")
    assert (method.weights.epochs, method.weights.batch, method.weights.lr) == (epochs, 64, 0.025)
    assert (method.weights.weight_decay, method.weights.nesterov) == (decay, nesterov)
    assert (method.weights.lr_min, method.weights.schedule) == (0.001, "epoch")
    assert method.update.lr == pytest.approx(alpha_lr)


def test_guards_are_on_unless_turned_off():
    plan = make_plan(make_config({"method": "darts"}))
    assert plan.search.guards == Guards()
    assert published("darts", "quick").guards is None
    changed = make_plan(make_config({"method": "darts", "guard_settings": {"skip_cap": 1, "ratio": 1.5}}))
    assert changed.search.guards == Guards(skip_cap=1, ratio=1.5)


def test_settings_of_a_method():
    assert published("pcdarts", "quick", method_settings={"parts": "2"}).staging == SingleStage(2)
    assert published("beta-darts", "quick", method_settings={"end": 10}).regularizers == (BetaDecay(10.0),)
    changed = published("darts", "quick", alphas={"lr": "1e-2", "weight_decay": 0})
    assert (changed.update.lr, changed.update.weight_decay) == (0.01, 0.0)
    assert published("darts", "quick", selection="perturbation").selection is not None


@pytest.mark.parametrize(
    ("settings", "subject"),
    [
        ({"method_settings": {"part": 2}}, "'part'.*'parts'"),
        ({"method_settings": {"parts": 1.5}}, "method_settings.parts is 1.5"),
        ({"guard_settings": {"skip": 1}, "guard": True}, "guard_settings: .*'skip'.*'skip_cap'"),
        ({"guard_settings": {"skip_cap": 1}}, "guard_settings"),
    ],
)
def test_wrong_settings_are_refused(settings, subject):
    with pytest.raises(ConfigError, match=subject):
        published("pcdarts", "quick", **settings)


OWN = """
import nas
from nas.oneshot.methods import drnas
from nas.oneshot.regularizers import BetaDecay
from nas.oneshot.relaxations import GumbelSoft


def calm(strength=5.0):
    return nas.Method("calm", relaxation=GumbelSoft(5.0, 1.0), regularizers=(BetaDecay(strength),))
"""


def test_a_function_of_ones_own_is_a_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    method = published("mine.py:calm", "quick", method_settings={"strength": 2.0})
    assert method.name == "calm" and method.regularizers[0] == BetaDecay(2.0)
    assert method.update.lr == pytest.approx(0.0201)  # of the preset
    for name, message in [("mine.py:clam", "did you mean 'calm'"), ("yours.py:calm", "no file yours.py")]:
        with pytest.raises(ConfigError, match=f"method '{name}': .*{message}"):
            published(name, "quick")


def test_a_method_of_python_keeps_its_recipe():
    own = Method("own", regularizers=(BetaDecay(),))
    config = make_config({"method": "own:own", "search": {"epochs": 7}})
    method = make_plan(config, own).search
    assert method.weights == dataclasses.replace(own.weights, epochs=7)
    assert method.regularizers == own.regularizers and method.guards == Guards()
    with pytest.raises(ConfigError, match=r"was put together in Python; call nas\.search with it"):
        make_plan(config)
