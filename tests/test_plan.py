import dataclasses

import pytest

from nas.errors import ConfigError
from nas.run.config import Config, make_config
from nas.run.presets import preset
from nas.run.resolved_config import change, make_plan
from nas.training.recipe import Recipe


def plan(**values):
    return make_plan(make_config({"method": "evolution", **values}))


def refused(**values):
    with pytest.raises(ConfigError) as caught:
        plan(**values)
    return str(caught.value)


# -- presets ---------------------------------------------------------------------------------------------


def test_standard_is_darts_as_published():
    """Liu et al. 2019, sections 3.1 and 3.2, and the released code."""
    standard = plan(preset="standard", method="darts")
    weights, final = standard.search.weights, standard.final
    assert (weights.epochs, weights.batch, weights.lr, weights.lr_min) == (50, 64, 0.025, 0.001)
    assert (weights.momentum, weights.weight_decay, weights.clip) == (0.9, 3e-4, 5.0)
    assert (weights.nesterov, weights.schedule) == (False, "epoch")
    search = standard.search
    update = search.update
    assert (update.lr, update.betas, update.weight_decay) == (pytest.approx(3e-4), (0.5, 0.999), 1e-3)
    own = {"nesterov": False, "schedule": "epoch", "clip": 5.0}
    own |= {"auxiliary": 0.4, "drop_path": 0.2, "cutout": 16}
    assert final == Recipe(epochs=600, batch=96, lr=0.025, weight_decay=3e-4, **own)
    assert standard.full_size and standard.search_images is None


def test_nasbench201_is_that_benchmark():
    """Dong & Yang 2020, table 1, and the released code, whose cosine looks at the epoch alone."""
    final = plan(preset="nasbench201").final
    assert final == Recipe(epochs=200, batch=256, lr=0.1, weight_decay=5e-4, schedule="epoch")
    assert (final.momentum, final.nesterov, final.lr_min, final.label_smoothing) == (0.9, True, 0.0, 0.0)
    twelve = plan(preset="nasbench201-12")
    assert twelve.final == dataclasses.replace(final, epochs=12)
    assert twelve.trial == dataclasses.replace(twelve.final, schedule="step")


# -- settings --------------------------------------------------------------------------------------------

BLACK_BOX = {"method": "evolution"}
SHARED = {"method": "evolution", "evaluator": "shared"}
DARTS = {"method": "darts"}
HALVING = {**BLACK_BOX, "scheduler": "successive-halving", "epochs": 9}
CHANGES = {
    "method": (BLACK_BOX, "random"),
    "preset": (BLACK_BOX, "standard"),
    "execution": (BLACK_BOX, "plain"),
    "graph": (BLACK_BOX, False),
    "trials": (BLACK_BOX, 7),
    "epochs": (BLACK_BOX, 7),
    "top_k": (BLACK_BOX, 7),
    "top_k_epochs": (BLACK_BOX, 7),
    "search_images": (BLACK_BOX, 77),
    "trial": (BLACK_BOX, {"lr": 0.7}),
    "supernet": (SHARED, {"lr": 0.7}),
    "search": (DARTS, {"lr": 0.7}),
    "retrain": (DARTS, {"lr": 0.7}),
    "alphas": (DARTS, {"lr": 0.7}),
    "method_settings": ({"method": "pcdarts"}, {"parts": 2}),
    "alpha_lr_scale": (DARTS, 2.0),
    "guard": (DARTS, False),
    "guard_settings": (DARTS, {"ratio": 1.7}),
    "selection": (DARTS, "perturbation"),
    "sharing": (SHARED, {"sampling": "fair"}),
    "warm_start": (BLACK_BOX, "parent"),
    "searcher": (BLACK_BOX, {"population": 7}),
    "objective": (BLACK_BOX, ["-params"]),
    "constraint": (BLACK_BOX, "params<=3e6"),
    "scheduler": (BLACK_BOX, "hyperband"),
    "rungs": (HALVING, "epochs=2; epochs=4"),
    "eta": (HALVING, 2),
    "fidelity": (BLACK_BOX, "epochs=3,width=0.5"),
    "repeats": (BLACK_BOX, 7),
}
ELSEWHERE = {
    *("space", "task", "evaluator", "seed", "device", "deterministic", "space_settings", "final_settings"),
    *("calibration", "latency_table", "max_failures", "memory", "seed_alphas", "rank_timeout"),
    *("storage", "storage_patience", "workers", "executor", "gpus_per_trial", "asynchronous"),
    *("trial_timeout", "pictures", "budget", "early_stop", "baselines"),
    *("export", "audit", "augment", "exclude", "tensorboard", "mlflow"),
}
"""Read by the job itself, see test_search_run.py."""


def test_every_setting_changes_the_plan():
    assert CHANGES.keys() | ELSEWHERE == Config.model_fields.keys()
    for name, (base, value) in CHANGES.items():
        assert make_plan(make_config({**base, name: value})) != make_plan(make_config(base)), name


@pytest.mark.parametrize("base", [BLACK_BOX, SHARED, DARTS])
def test_execution_holds_for_every_phase_unless_one_says_otherwise(base):
    found = make_plan(make_config({**base, "execution": "plain", "retrain": {"execution": "batched"}}))
    assert {found.trial.execution, found.supernet.execution} == {"plain"}
    assert found.final.execution == "batched"
    assert make_plan(make_config({**DARTS, "execution": "plain"})).search.weights.execution == "plain"
    found = make_plan(make_config({**base, "graph": False, "retrain": {"graph": True}}))
    assert (found.trial.graph, found.supernet.graph, found.final.graph) == (False, False, True)


def test_epochs_belong_to_what_the_method_trains_first():
    assert plan(epochs=7).trial.epochs == 7
    shared = plan(epochs=7, evaluator="shared")
    assert (shared.supernet.epochs, shared.trial.epochs) == (7, preset("quick").trial.epochs)
    assert plan(epochs=7, method="darts").search.weights.epochs == 7
    assert plan(epochs=7, trial={"epochs": 3}).trial.epochs == 3


def test_epochs_of_the_last_training_lift_the_bound_on_its_images():
    assert plan(retrain={"lr": 0.1}).final_images == plan().final_images == preset("quick").final_images
    assert plan(retrain={"epochs": 30}).final_images is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"retrain": {"epochs": 2.5}}, "retrain.epochs is 2.5, but must be a whole number"),
        ({"trial": {"lr": "[" * 50_000}}, "but must be a number"),
        ({"trial": {"warmup_epochs": 99}}, "warmup_epochs is 99.0, but must be below epochs"),
        ({"objective": ["val_acc", "-params"]}, "evolution has one objective"),
        ({"early_stop": 0.1, "objective": "-params"}, "early_stop forecasts val_acc"),
        ({"searcher": {"proxies": "params"}}, "use guided"),
        ({"method": "darts", "alphas": {"lrs": 1}}, "alphas: no setting 'lrs'; did you mean 'lr'?"),
        ({"method": "darts", "alphas": {"lr": True}}, "alphas.lr is True, but must be a number"),
        ({"method": "is-darts", "alphas": {"lr": 1}}, "alphas is set, but method 'is-darts' learns no"),
        ({"method": "is-darts", "seed_alphas": "x"}, "seed_alphas is set, but method 'is-darts' learns no"),
        ({"method": "is-darts", "constraint": ["params<=5e4"]}, "method 'is-darts' learns no alphas"),
        ({"evaluator": "shared", "sharing": {"sampling": "even"}}, "sharing: no sampling 'even'"),
        ({"latency_table": "t.json"}, "nothing decides by latency_ms"),
        ({"early_stop": 0.1, "epochs": 2}, "trials of at least 3 epochs at full size, got epochs=2"),
        ({"early_stop": 0.1, "fidelity": "epochs=5,width=0.5"}, "got epochs=5,width=0.5"),
    ],
)
def test_wrong_settings_name_their_table_and_the_rule(values, words):
    message = refused(**values)
    assert words in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"top_k": 1, "top_k_epochs": 3}, "top_k_epochs is set, but with top_k 1"),
        ({"method": "darts", "trial": {"epochs": 3}}, "trial.epochs is set, but here"),
        ({"evaluator": "shared", "trial": {"epochs": 3}}, "trial.epochs is set, but here"),
    ],
)
def test_settings_of_trainings_that_will_not_happen_are_refused(values, words):
    assert words in refused(**values, baselines=False)


RECIPE = Recipe(epochs=10, batch=4, lr=0.1, weight_decay=0.0, warmup_epochs=2.0)


def test_new_epochs_compress_the_schedule_unless_its_warm_up_is_given():
    assert change(RECIPE, {"epochs": 5}, "trial") == dataclasses.replace(RECIPE, epochs=5, warmup_epochs=1.0)
    longer = change(RECIPE, {"epochs": 5, "warmup_epochs": 3}, "trial")
    assert (longer.epochs, longer.warmup_epochs) == (5, 3.0)
