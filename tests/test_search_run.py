"""Whole jobs: what they refuse before anything, learn from, keep and say."""

import numpy as np
import pytest
import torch
from jobs import SMALL, TINY, Recorder, outcome
from torch import nn

import nas
from nas.data.loading import load_task, task_from_arrays
from nas.errors import ConfigError, SpaceError, Stopped, TrialError
from nas.results.result import load_result
from nas.run.black_box import front_first
from nas.run.config import make_config
from nas.run.final_network import final_recipe, final_space
from nas.run.pipeline import search
from nas.run.resolved_config import make_plan
from nas.searchers.goals import Goals, parse_goals
from nas.searchers.scheduler import finalists
from nas.searchers.searcher import RandomSearch
from nas.space.latency import LatencyTable
from nas.space.loading import load
from nas.space.space import Space
from nas.study.study import Study
from nas.types import Trial

TASK = load_task("digits")
ONE = {**SMALL, "trials": 1, "top_k": 1, "top_k_epochs": None, "repeats": None}
"""Settings of a job of one trial and the last training."""


def evolve(out, *, space="toy", **settings):
    settings = SMALL | ({} if isinstance(space, str) else {"space_settings": {}}) | settings
    return search(space, TASK, "evolution", out=out, settings=settings)


# -- every setting of the job does something ---------------------------------------------------------------


def test_a_deterministic_job_is_so_to_its_end_and_no_longer(tmp_path):
    seen = []

    def stop():
        seen.append(torch.are_deterministic_algorithms_enabled())
        return False

    settings = ONE | {"deterministic": True}
    search("toy", TASK, "random", out=tmp_path / "run", settings=settings, stop=stop)
    assert set(seen) == {True}
    assert not torch.are_deterministic_algorithms_enabled()


# -- what the last training takes --------------------------------------------------------------------------

LARGE = task_from_arrays(np.arange(40 * 32 * 32).reshape(40, 32, 32) % 251 / 251.0, np.arange(40) % 4)


def test_sizes_go_from_weak_to_strong():
    darts = load("darts", width=2, cells=3)

    def sizes(**settings):
        config = make_config(settings)
        found = final_space(config, make_plan(config), darts, LARGE).settings
        return found["width"], found["cells"], found["auxiliary"]

    assert sizes(preset="nasbench201") == (2, 3, False)
    assert sizes(preset="quick") == (16, 3, False)
    assert sizes(preset="standard") == (36, 20, True)
    assert sizes(preset="standard", space_settings={"width": 5}) == (5, 20, True)
    both = {"space_settings": {"width": 5, "cells": 6}, "final_settings": {"width": 7}}
    assert sizes(preset="standard", **both) == (7, 6, True)
    assert sizes(preset="quick", **both) == (7, 6, False)


def test_standard_leaves_out_what_a_space_does_not_have():
    config = make_config({"preset": "standard"})
    plan = make_plan(config)
    recipe, notes = final_recipe(config, plan, load("toy"), LARGE)
    assert (recipe.auxiliary, recipe.drop_path) == (0.0, 0.2)
    assert notes == ["space 'toy' has no auxiliary head here: auxiliary off"]
    recipe, notes = final_recipe(config, plan, plain_space(), TASK)
    assert (recipe.auxiliary, recipe.drop_path) == (0.0, 0.0)
    assert notes == [
        "space 'plain' has no cells here: drop_path off",
        "space 'plain' has no auxiliary head here: auxiliary off",
        "a square of 16 pixels blanks images of 8: cutout off",
    ]
    assert recipe.cutout == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"retrain": {"auxiliary": 0.4}},
            "retrain.auxiliary is set, but space 'plain' has no auxiliary head",
        ),
        ({"trial": {"drop_path": 0.1}}, "trial.drop_path is set, but space 'plain' has no cells here"),
        ({"retrain": {"cutout": 8}}, "retrain.cutout is set, but a square of 8 pixels blanks images of 8"),
        ({"final_settings": {"width": 4}}, "a space made by hand has one size only"),
        ({"space_settings": {"width": 4}}, "the space is made already"),
        ({"search_images": 5}, "5 images are too few for 10 classes"),
    ],
)
def test_what_the_last_phases_would_refuse_is_refused_before_the_first(tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words):
        evolve(tmp_path / "a", space=plain_space(), **settings)
    assert not (tmp_path / "a").exists()


def test_a_last_network_of_other_decisions_is_refused_before_the_search(tmp_path):
    (tmp_path / "s.py").write_text(
        "from torch import nn\nimport nas\n"
        "def make(n=2):\n"
        "    ops = {'a': nn.Identity, 'b': nn.ReLU}\n"
        "    build = lambda c: nn.Sequential(*[c.op(str(i), ops) for i in range(n)], nn.Flatten(),"
        " nn.Linear(64, 10))\n"
        "    return nas.Space('s', build)\n"
    )
    with pytest.raises(ConfigError, match="has other decisions at its final size"):
        evolve(tmp_path / "a", space=f"{tmp_path}/s.py:make", space_settings={}, final_settings={"n": 3})
    assert not (tmp_path / "a").exists()


# -- spaces of all kinds -----------------------------------------------------------------------------------


def plain_space(*, extra=None, decisions=1):
    """A space without cells; `extra` makes one more option of its first decision."""

    def build(choose):
        options = {
            "small": lambda: nn.Linear(64, 8),
            "wide": lambda: nn.Sequential(nn.Linear(64, 8), nn.Tanh()),
        }
        first = choose.op("body", options | ({"extra": extra} if extra else {}))
        others = [choose.op(f"act{i}", {"relu": nn.ReLU, "tanh": nn.Tanh}) for i in range(decisions - 1)]
        return nn.Sequential(nn.Flatten(), first, *others, nn.Linear(8, 10))

    return Space("plain", build)


def single_space():
    def build(choose):
        return nn.Sequential(nn.Flatten(), choose.op("body", {"only": lambda: nn.Linear(64, 10)}))

    return Space("single", build)


@pytest.mark.parametrize("method", ["evolution", "darts"])
def test_a_space_of_one_architecture_says_so_and_ends(tmp_path, method):
    progress = Recorder()
    settings = {**(TINY if method == "darts" else SMALL), "space_settings": {}}
    result = search(single_space(), TASK, method, out=tmp_path, settings=settings, progress=progress)
    assert any("single architecture" in note for note in progress.notes)
    assert result.genotype == (0,)
    assert result.metrics["trials"] == (0 if method == "darts" else 1)
    assert [name for name, *_ in progress.phases if name == "re-evaluation"] == []


def huge():
    return nn.Sequential(nn.Linear(64, 10**5), nn.Linear(10**5, 10**5), nn.Linear(10**5, 8))


@pytest.mark.parametrize("settings", [{"method": "darts"}, {"method": "random", "evaluator": "shared"}])
def test_a_supernet_too_large_for_memory_is_refused_before_it_is_made(tmp_path, settings):
    method = settings.pop("method")
    with pytest.raises(TrialError, match=r"10,0\d\d,\d\d\d,\d\d\d parameters need 1\d\d"):
        search(plain_space(extra=huge), TASK, method, out=tmp_path, settings=settings)


def test_a_network_that_overflows_only_in_the_test_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.run.retrain.judged", lambda *_: (float("inf"), torch.ones(5)))
    with pytest.raises(TrialError, match="test loss is inf"):
        evolve(tmp_path, **ONE)
    assert not (tmp_path / "metrics.json").exists()


# -- every method, scheduler and objective -----------------------------------------------------------------


def test_hyperband_promotes(tmp_path):
    settings = ONE | {"trials": 6, "epochs": 3, "eta": 2, "scheduler": "hyperband"}
    result = search("toy", TASK, "random", out=tmp_path, settings=settings)
    fidelities = [t.fidelity for t in result.history]
    assert len(set(fidelities)) > 1
    assert load_result(tmp_path).history == result.history


def test_of_trials_equal_in_the_first_objective_the_one_on_the_front_comes_first():
    goals = parse_goals(["val_acc", "-params"])
    found = [(0.9, 50), (0.8, 10), (0.9, 40), (0.7, 20)]
    trials = [Trial(i, (i,), 1, "done", {"val_acc": a, "params": float(p)}) for i, (a, p) in enumerate(found)]
    ranked = finalists(trials, Goals(goals.objectives[:1]))
    assert [t.number for t in ranked] == [0, 2, 1, 3]
    assert [t.number for t in front_first(ranked, goals)] == [2, 1, 0, 3]
    assert front_first(ranked, Goals(goals.objectives[:1])) == ranked
    assert front_first([], goals) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"space": Space}, r"space is a type, wanted a name or a nas.Space"),
        ({"method": RandomSearch()}, r"method is a RandomSearch, .* a searcher of your own runs in"),
        ({"settings": ["trials"]}, r"settings is a list, wanted a mapping"),
    ],
)
def test_what_cannot_be_searched_is_named(wrong, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        search(**{"space": "toy", "task": "digits", "method": "random"} | wrong, out=tmp_path)


def test_latency_from_a_table_bounds_what_is_tried(tmp_path):
    space = load("toy", width=4, in_channels=1)
    options = {f"{d.name}={o}": float(i) for d in space.decisions for i, o in enumerate(d.options)}
    table = LatencyTable("a stone", options, base=1.0)
    table.write(tmp_path / "table.json")
    told = {"latency_table": str(tmp_path / "table.json"), "constraint": "latency_ms<=3"}
    settings = SMALL | told | {"baselines": True}
    result = search("toy", TASK, "evolution", out=tmp_path / "run", settings=settings)
    for t in [*result.history, *Study.read(tmp_path / "run", "random", result.space)]:
        assert t.metrics["latency_ms"] == table.predict(space, t.genotype) <= 3


def test_a_table_that_cannot_be_used_is_refused_before_anything(tmp_path):
    LatencyTable("a stone", {"0->9=conv": 1.0}, base=1.0).write(tmp_path / "table.json")
    wrong = {"latency_table": str(tmp_path / "table.json"), "objective": ["-latency_ms"]}
    for settings, words in (
        (wrong, "not for space 'toy'"),
        (wrong | {"objective": ["val_acc"]}, "nothing decides by latency_ms"),
        ({"latency_table": str(tmp_path / "none.json"), "objective": ["-latency_ms"]}, "none.json"),
    ):
        with pytest.raises(ConfigError, match=words):
            search("toy", TASK, "random", out=tmp_path / "run", settings=SMALL | settings)
        assert not (tmp_path / "run").exists()


def test_constraints_do_not_stop_at_architectures_that_cannot_be_built(tmp_path):
    space = plain_space(extra=lambda: nn.Linear(63, 8), decisions=3)
    few = {"top_k": 1, "top_k_epochs": None, "repeats": None}
    result = evolve(tmp_path, space=space, trials=12, constraint="params<=1e6", **few)
    failed = [t for t in result.history if t.state == "failed"]
    assert {t.genotype for t in failed} == {t.genotype for t in result.history if t.genotype[0] == 2} != set()
    assert all(t.reason.startswith("build: images of (1, 8, 8) fail") for t in failed)
    assert result.metrics["failed_trials"] == len(failed)


def test_trials_without_hope_end_early(tmp_path):
    """Also where the search is stopped again and again."""
    settings = ONE | {"trials": 6, "epochs": 5, "early_stop": 0.9}
    result = search("toy", TASK, "random", out=tmp_path / "a", settings=settings)
    trained = [t.metrics["epochs_trained"] for t in result.history]
    assert trained[0] == 5
    assert min(trained) < 5
    for steps in (7, 40, 25):
        left = iter([False] * steps + [True])
        with pytest.raises(Stopped):
            search("toy", TASK, "random", out=tmp_path / "b", settings=settings, stop=lambda a=left: next(a))
    again = search("toy", TASK, "random", out=tmp_path / "b", settings=settings)
    assert outcome(again) == outcome(result)


def test_a_guided_search_learns_from_an_earlier_run_and_from_proxies(tmp_path):
    few = ONE | {"epochs": 1}
    search("toy", TASK, "random", out=tmp_path / "a", settings=few | {"trials": 8})
    found = {}
    for name, more in {
        "plain": {},
        "earlier": {"earlier": str(tmp_path / "a")},
        "proxies": {"proxies": "params, l2_norm"},
    }.items():
        settings = few | {"trials": 4, "searcher": {"init": 2} | more}
        result = search("toy", TASK, "guided", out=tmp_path / name, settings=settings)
        found[name] = [t.genotype for t in result.history]
    assert found["earlier"][:2] == found["plain"][:2] == found["proxies"][:2]
    assert found["earlier"] != found["plain"]


@pytest.mark.parametrize(
    ("searcher", "words"),
    [
        ({"earlier": "nowhere"}, "searcher.earlier: nowhere holds no finished trial to learn from"),
        ({"proxies": "parms"}, "no proxy 'parms'; did you mean 'params'"),
        ({"earlier": "run"}, "searched by gradients, .* name a run by trials"),
    ],
)
def test_what_a_guided_search_cannot_learn_from_is_refused_before_anything(tmp_path, searcher, words):
    if searcher.get("earlier") == "run":
        searcher = {"earlier": str(tmp_path / "run")}
        search("toy", TASK, "darts", out=tmp_path / "run", settings=TINY)
    with pytest.raises(ConfigError, match=words):
        search("toy", TASK, "guided", out=tmp_path / "r", settings=SMALL | {"searcher": searcher})
    assert not (tmp_path / "r").exists()


# -- a user's own space ------------------------------------------------------------------------------------

OWN = """
import nas
from torch import nn

def make(width=12, classes=10, in_channels=1):
    def build(choose):
        options = nas.candidates(("skip_connect", "nor_conv_3x3"), width, width)
        stem = nn.Conv2d(in_channels, width, 1)
        body = [choose.op(f"block{i}", options) for i in range(2)]
        return nn.Sequential(stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return nas.Space("own", build)
"""
BRIEF = {k: v for k, v in ONE.items() if k != "space_settings"}


def test_the_size_that_an_author_gave_is_kept(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    result = search(f"{tmp_path}/own.py:make", TASK, "random", out=tmp_path / "run", settings=BRIEF)
    assert result.space.settings["width"] == 12
    space = load("toy", width=6, in_channels=1)
    result = search(space, TASK, "random", out=tmp_path / "toy", settings=BRIEF)
    assert result.space.settings["width"] == 6
    again = nas.retrain(tmp_path / "toy", TASK, out=tmp_path / "again", settings={"retrain": {"epochs": 1}})
    assert again.metrics["params"] == result.metrics["params"]


def test_a_changed_space_file_is_not_mixed_into_a_run(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    path, asked = f"{tmp_path}/own.py:make", iter(range(100))
    with pytest.raises(Stopped):
        search(path, TASK, "random", out=tmp_path / "r", settings=BRIEF, stop=lambda: next(asked) > 3)
    (tmp_path / "own.py").write_text(OWN.replace("width, 1)", "width, 3)"))
    with pytest.raises(ConfigError, match=r"space\.file_sha256"):
        search(path, TASK, "random", out=tmp_path / "r", settings=BRIEF)


def test_of_a_space_that_does_not_fit_the_option_at_fault_is_named(tmp_path):
    def build(choose):
        options = {"half": lambda: nn.Conv2d(1, 2, 1), "other": lambda: nn.Conv2d(1, 3, 1)}
        return nn.Sequential(choose.op("a", options), nn.Flatten(), nn.Linear(64, 10))

    message = r"does not fit task 'digits', .*: decision 'a', option 'other': input .* all options of"
    with pytest.raises(SpaceError, match=message):
        search(Space("mine", build), "digits", "random", out=tmp_path / "r", settings=BRIEF)


def test_progress_goes_on_where_a_killed_training_was(tmp_path):
    class Numbers(Recorder):
        def advance(self, text, *, done=None):
            self.lines.append((text.split(":")[0], done))

    settings, asked = ONE | {"retrain": {"epochs": 4}}, iter(range(1000))
    with pytest.raises(Stopped):
        search("toy", TASK, "random", out=tmp_path, settings=settings, stop=lambda: next(asked) > 90)
    progress = Numbers()
    search("toy", TASK, "random", out=tmp_path, settings=settings, progress=progress)
    assert progress.lines[-1] == ("epoch 4", 4)
    assert 0 < len(progress.lines) < 4


def test_a_network_that_learned_nothing_is_told_of(tmp_path):
    heard = {rate: Recorder() for rate in (1e-9, 0.1)}
    for rate, progress in heard.items():
        settings = {**ONE, "retrain": {"epochs": 2, "lr": rate}}
        search("toy", "digits", "random", out=tmp_path / str(rate), settings=settings, progress=progress)
    told = {
        rate: [n for n in h.notes if "network is no better than guessing" in n] for rate, h in heard.items()
    }
    assert len(told[1e-9]) == 1
    assert not told[0.1]
