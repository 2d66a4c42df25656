"""Every kind of checkpoint damaged in every way: the one before is used, else the work is repeated."""

import dataclasses
import hashlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import DAMAGES, Attack, witness
from jobs import TINY, Recorder, last_job, outcome
from trainings import train_shared

import nas
from nas.errors import ConfigError, Stopped
from nas.evaluate.multi_fidelity import Laddered
from nas.evaluate.trained import Trained
from nas.oneshot.methods import Method
from nas.oneshot.search import search as search_by_gradients
from nas.oneshot.supernet import Supernet
from nas.results.run_record import CHECKPOINT
from nas.run.pipeline import search
from nas.run.retrain import train_final
from nas.searchers.fidelity import parse_ladder
from nas.seeding import isolated
from nas.training.checkpoint import Checkpoints
from nas.training.recipe import Recipe
from nas.types import Trial

DIGITS = nas.load_task("digits")
TASK = DIGITS.reduced(128)
TOY = nas.load("toy", width=4)
RECIPE = Recipe(epochs=3, batch=32, lr=0.05, weight_decay=1e-4)
CELLS = nas.load("nasbench201", width=2, cells=1, in_channels=1)
# The second is one addition to the first.
PARENT, CHILD = (3, 3, 0, 1, 0, 3), (3, 3, 3, 1, 0, 3)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of checkpoint.

    run: does the work in a folder, stopped when asked. place: of the checkpoints in that folder.
    begin: what leaves checkpoints behind. repeated: names of what differs when work is repeated.
    """

    run: Callable[..., object]
    place: str
    begin: Callable[[Path], object] | None = None
    repeated: tuple[str, ...] = ()


def stop_after(steps):
    asked = iter([False] * steps)
    return lambda: next(asked, True)


def rng(seed=0):
    return np.random.default_rng(seed)


def trial(folder, stop=None, space=TOY):
    return Trained(space, TASK, RECIPE, folder=folder, stop=stop)(Trial(0, (2, 0, 2), 3), rng())


def rung(folder, stop=None, space=TOY):
    ladder = parse_ladder("epochs=1; epochs=2")
    evaluate = Laddered(space, TASK, RECIPE, ladder, folder, stop=stop)
    return dict(evaluate(Trial(0, (2, 0, 2), 3), rng()))


def first_rung(folder):
    Laddered(TOY, TASK, RECIPE, parse_ladder("epochs=1; epochs=2"), folder)(Trial(0, (2, 0, 2), 1), rng())


def supernet(folder, stop=None, space=TOY):
    with isolated(0, "supernet"):
        shared = Supernet(space)
    curve = train_shared(shared, TASK, RECIPE, seed=1, checkpoints=Checkpoints(folder), stop=stop)
    return curve.train_loss, {name: value.tolist() for name, value in shared.state_dict().items()}


def by_gradients(folder, stop=None, space=TOY):
    method = Method(weights=RECIPE)
    found = search_by_gradients(space, TASK, method, seed=1, checkpoints=Checkpoints(folder), stop=stop)
    return found.selected, [row.tolist() for row in found.strengths], [e.train_loss for e in found.epochs]


def retrain(folder, stop=None, space=TOY):
    stop = stop or (lambda: False)
    job, last = last_job(space, TASK, RECIPE, folder, progress=Recorder(), stop=stop)
    network, metrics = train_final(job, (2, 0, 2), last)
    return metrics["test_loss"], {name: value.tolist() for name, value in network.state_dict().items()}


def grown(folder, stop=None, space=CELLS):
    trained = Trained(space, TASK, dataclasses.replace(RECIPE, epochs=1), stop=stop, weights=folder)
    parent = Trial(0, PARENT, 1, "done", {"val_acc": 0.5, "inherited_from": -1.0})
    return dict(trained(Trial(1, CHILD, 1), rng(), parent=parent))


def parent(folder):
    Trained(CELLS, TASK, dataclasses.replace(RECIPE, epochs=1), weights=folder)(Trial(0, PARENT, 1), rng())


LADDER = Laddered(TOY, TASK, RECIPE, parse_ladder("epochs=1"), Path()).place((2, 0, 2)).name
RESUMED = {
    "trial": Kind(trial, "trial-0"),
    "rung": Kind(rung, f"{LADDER}/rung-0", first_rung),
    "supernet": Kind(supernet, "."),
    "search": Kind(by_gradients, "."),
    "retrain": Kind(retrain, "."),
}
KINDS = {**RESUMED, "weights": Kind(grown, "weights-0", parent, ("inherited_from",))}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What an uninterrupted run of a kind gives, and the folder that an interrupted one left."""
    made = {}

    def prepare(name):
        if name not in made:
            kind, folder = KINDS[name], tmp_path_factory.mktemp(name)
            if kind.begin is not None:
                kind.begin(folder / "left")
            else:
                with pytest.raises(Stopped):
                    kind.run(folder / "left", stop_after(5))
                    raise AssertionError("it ended before it was stopped")
            made[name] = kind.run(folder / "whole"), folder / "left"
        return made[name]

    return prepare


def interrupted(prepared, name, folder):
    """The outcome that is wanted, and a copy of what was left, with its checkpoints from old to new."""
    whole, left = prepared(name)
    shutil.copytree(left, folder)
    files = sorted((folder / KINDS[name].place).glob("step-*.safetensors"))
    assert len(files) == (1 if KINDS[name].begin is not None else 2)
    return whole, files


def same(kind, one, other):
    if isinstance(one, dict) and kind.repeated:
        one, other = ({k: v for k, v in d.items() if k not in kind.repeated} for d in (one, other))
    return one == other


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", KINDS)
def test_the_newest_damaged(prepared, tmp_path, caplog, name, how):
    kind = KINDS[name]
    whole, files = interrupted(prepared, name, tmp_path / "run")
    DAMAGES[how](files[-1])
    again = kind.run(tmp_path / "run")
    if name != "weights":  # from other weights another network is trained
        assert same(kind, again, whole)
    assert f"{files[-1].name} is damaged (SHA-256 differs); trying the previous one" in caplog.text
    assert not witness(files[-1]).exists()


@pytest.mark.parametrize("name", KINDS)
def test_all_damaged_is_begun_again(prepared, tmp_path, caplog, name):
    kind = KINDS[name]
    whole, files = interrupted(prepared, name, tmp_path / "run")
    for file in files:
        DAMAGES["middle"](file)
    again = kind.run(tmp_path / "run")
    assert same(kind, again, whole) or name == "weights"
    assert caplog.text.count("is damaged") >= len(files)
    if name == "weights":
        assert again["inherited_from"] == -1 and "holds no weights of trial 0 to grow from" in caplog.text


@pytest.mark.parametrize("name", RESUMED)
def test_a_pickle_under_a_correct_name_is_refused_and_not_executed(prepared, tmp_path, name):
    _, files = interrupted(prepared, name, tmp_path / "run")
    data = pickle.dumps(Attack(witness(files[-1])))
    digest = hashlib.sha256(data).hexdigest()[:16]
    step, _ = files[-1].stem.rsplit("-", 1)
    files[-1].unlink()
    (files[-1].parent / f"{step}-{digest}.safetensors").write_bytes(data)
    with pytest.raises(ConfigError, match="is not a safetensors file, or is damaged"):
        KINDS[name].run(tmp_path / "run")
    assert not witness(files[-1]).exists()


@pytest.mark.parametrize("method", ["random", "darts"])
def test_a_whole_job_survives_the_loss_of_all_its_checkpoints(tmp_path, method):
    settings = TINY | {"epochs": 2} | ({"trials": 2} if method == "random" else {})
    asked = 0

    def stop():
        nonlocal asked
        asked += 1
        return asked > 5

    whole = search("toy", DIGITS, method, out=tmp_path / "whole", settings=settings)
    damaged = 0
    for _ in range(100):
        asked = 0
        try:
            result = search("toy", DIGITS, method, out=tmp_path / "parts", settings=settings, stop=stop)
            break
        except Stopped:
            files = list((tmp_path / "parts" / CHECKPOINT).rglob("step-*.safetensors"))
            newest = max(files, key=lambda f: f.stat().st_mtime_ns, default=None)
            if newest is not None and damaged < 3:
                DAMAGES["middle"](newest)
                damaged += 1
    assert damaged == 3
    assert outcome(result) == outcome(whole)
