"""A job that is stopped and called again ends as if it never had been: to the bit, whatever it was doing.

How often a job asks whether to stop is learned from an uninterrupted run; the moments are spread over it, so
that they fall into the search, the trainings of the best, and the last training.
"""

import optuna
import pytest
import small_spaces
import surface

import nas

LAST = {"retrain": {"epochs": 2, "batch": 32}}
AGAIN = {"baselines": True, "top_k": 2, "repeats": 1, "top_k_epochs": 1}
JOBS = {
    "evolution": (
        "evolution",
        {"trials": 4, "searcher": {"population": 2}, "warm_start": "parent"} | AGAIN,
    ),
    "auto": ("auto", {"trials": 12, "searcher": {"init": 3}} | AGAIN),
    "halving": ("random", {"trials": 6, "scheduler": "successive-halving", "eta": 2}),
    "spos": ("spos", {"trials": 8, "epochs": 3}),
    "darts": ("darts", {"epochs": 3, "search": {"batch": 12}}),
    "darts2": ("darts2", {"epochs": 3, "search": {"batch": 16}}),
    "drnas": ("drnas", {"epochs": 3, "search": {"batch": 12}}),
}
"""By name: method and settings."""


@pytest.mark.parametrize("name", JOBS)
def test_a_search_that_is_stopped_again_and_again_equals_an_uninterrupted_one(tmp_path, name):
    method, settings = JOBS[name]
    settings = settings | LAST
    # A supernet takes a while to be made again.
    clock, pieces = surface.Alarm(), 2 if "search" in settings else 3
    whole = surface.search(tmp_path / "whole", method, stop=clock, **settings)
    resumed = surface.in_pieces(
        lambda stop: surface.search(tmp_path / "pieces", method, stop=stop, **settings), pieces, clock.asked
    )
    assert surface.outcome(resumed) == surface.outcome(whole)
    assert surface.manifest(resumed.folder).keys() == surface.manifest(whole.folder).keys()


def test_a_retraining_that_is_stopped_again_and_again_equals_an_uninterrupted_one(tmp_path):
    """With all that a recipe can do to the images and weights."""
    architecture = {
        "space": small_spaces.CELL,
        "settings": {},
        "choices": small_spaces.cell().choices((3, 1, 2, 3, 4, 3)),
    }
    recipe = {"epochs": 4, "batch": 16, "mixup": 0.2, "cutout": 2, "ema": 0.9, "drop_path": 0.2}

    def retrain(folder, stop):
        return nas.retrain(
            architecture,
            surface.task(),
            out=tmp_path / folder,
            space=small_spaces.CELL,
            settings={"retrain": recipe, "augment": "crop+flip", "export": False},
            stop=stop,
        )

    clock = surface.Alarm()
    whole = retrain("whole", clock)
    resumed = surface.in_pieces(lambda stop: retrain("pieces", stop), 4, clock.asked)
    assert surface.outcome(resumed) == surface.outcome(whole)


def test_a_job_that_is_stopped_says_so_and_is_no_finished_run(tmp_path):
    for after in (0, 3):
        with pytest.raises(nas.Stopped):
            surface.search(tmp_path / "run", "evolution", trials=4, stop=surface.Alarm(after))
        assert not surface.is_finished(tmp_path / "run")
        with pytest.raises(nas.NasError):
            nas.load_result(tmp_path / "run", space=small_spaces.CELL)
    result = surface.search(tmp_path / "run", "evolution", trials=4)
    assert surface.is_finished(result.folder) and len(result.history) == 4


def test_a_finished_job_is_not_done_again(tmp_path):
    first = surface.search(tmp_path, "darts")
    files = {path: surface.sha256(path) for path in tmp_path.iterdir() if path.suffix != ".lock"}
    clock = surface.Alarm()
    again = surface.search(tmp_path, "darts", stop=clock)
    assert surface.outcome(again) == surface.outcome(first)
    assert clock.asked <= 2
    for path, before in files.items():
        assert surface.sha256(path) == before, path.name


def test_a_folder_is_not_gone_on_with_by_another_job(tmp_path):
    with pytest.raises(nas.Stopped):
        surface.search(tmp_path, "evolution", trials=4, stop=surface.Alarm(4))
    for method, changed in (("evolution", {"seed": 1}), ("evolution", {"epochs": 3}), ("random", {})):
        with pytest.raises(nas.ConfigError):
            surface.search(tmp_path, method, trials=4, **changed)
    other = nas.task_from_arrays(*surface.stripes(seed=1), flip=False, name="stripes")
    with pytest.raises(nas.NasError):
        surface.search(tmp_path, "evolution", trials=4, on=other)
    assert not surface.is_finished(tmp_path)


@pytest.mark.parametrize("name", ["random", "evolution", "local", "nsga2", "guided", "tpe"])
def test_a_study_that_is_opened_again_equals_one_that_never_ended(name):
    """A searcher keeps nothing but the history, which holds failed trials as well."""

    def evaluate(trial, rng):
        if trial.number % 5 == 2:
            raise nas.TrialError("error", "on purpose")
        return {"val_acc": small_spaces.agreement(trial.genotype) + 0.01 * rng.random()}

    def run(storage, *ends):
        few = {"evolution": {"population": 5}, "nsga2": {"population": 5}, "guided": {"init": 5}}
        for end in ends:
            made = surface.study(
                small_spaces.planted(), nas.make_searcher(name, few.get(name)), seed=3, storage=storage
            )
            made.run(evaluate, trials=end)
        return [(t.number, t.genotype, t.state, dict(t.metrics)) for t in made.history]

    whole = run(optuna.storages.InMemoryStorage(), 15)
    pieces = run(optuna.storages.InMemoryStorage(), 1, 2, 8, 15)
    assert pieces == whole
    assert [state for _, _, state, _ in whole].count("failed") == 3
