"""Whatever a user's code raises, and wherever: its line is named, and only what depends on it fails."""

from pathlib import Path

import numpy as np
import pytest
import torch
from faulty import Raising, flat
from jobs import SMALL, TINY
from torch import nn

import nas
from nas.errors import ConfigError, DataError, DeviceError, NoModelError, SpaceError, TrialError
from nas.evaluate.multi_fidelity import Laddered
from nas.evaluate.trained import Trained
from nas.run.pipeline import search
from nas.searchers.fidelity import parse_ladder
from nas.searchers.scheduler import Fixed
from nas.space.loading import load
from nas.study.storage import open_storage
from nas.study.study import Study
from nas.training.recipe import Recipe
from nas.types import Trial

ENGINE = f"{Path(nas.__file__).parent}/"
DIGITS = nas.load_task("digits")
TASK = DIGITS.reduced(128)
RECIPE = Recipe(epochs=1, batch=32, lr=0.05, weight_decay=1e-4)
SETTINGS = SMALL | {"space_settings": {}}


def rng():
    return np.random.default_rng(0)


def failure(space, genotype=(0,)):
    with pytest.raises(TrialError) as caught:
        Trained(space, TASK, RECIPE)(Trial(0, genotype, 1), rng())
    return caught.value


def ours(text):
    """Whether the text names a line of these tests, and none of the engine."""
    return "tests/fault" in text and ENGINE not in text


# -- operations ------------------------------------------------------------------------------------------


class Unbuildable(nn.Linear):
    """Can be counted, but not built."""

    def __init__(self, error):
        super().__init__(64, 10)
        if not self.weight.is_meta:
            raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("k"), "build"),
        (NotImplementedError("no such kernel"), "unsupported"),
        (MemoryError(), "oom"),
        (RuntimeError("CUDA error: device-side assert triggered"), "device"),
    ],
)
def test_what_cannot_be_built_fails_its_trial_and_not_the_search(tmp_path, error, reason):
    space = flat(broken=lambda: Unbuildable(error), sound=lambda: nn.Linear(64, 10))
    found = failure(space)
    assert found.reason == reason and "raise error" in str(found)
    with pytest.raises(TrialError) as caught:
        ladder = parse_ladder("epochs=1; epochs=1")
        Laddered(space, TASK, RECIPE, ladder, tmp_path)(Trial(0, (0,), 1), rng())
    assert caught.value.reason == reason


class OnlyMeta(nn.Linear):
    def forward(self, x):
        if not x.is_meta:
            raise NotImplementedError("Could not run 'aten::special' with arguments from the 'CPU' backend.")
        return super().forward(x)


class OnlyReal(nn.Linear):
    def forward(self, x):
        if x.is_meta:
            raise NotImplementedError("aten::special: attempted to run this operator with Meta tensors")
        return super().forward(x)


@pytest.mark.parametrize("kind", [OnlyMeta, OnlyReal])
def test_an_operation_that_the_device_lacks_is_unsupported(kind):
    assert failure(flat(a=lambda: kind(64, 10))).reason == "unsupported"


def test_a_network_without_a_gradient_is_told():
    class Detached(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    assert failure(flat(a=lambda: Detached(64, 10))).reason == "no-grad"


def test_a_fault_of_the_gpu_ends_the_search_and_keeps_what_was_found(tmp_path):
    space = flat(
        fault=lambda: Raising(RuntimeError("CUDA error: device-side assert triggered")),
        **{f"sound{i}": lambda: nn.Linear(64, 10) for i in range(6)},
    )
    settings = SETTINGS | {"trials": 7}
    with pytest.raises(DeviceError, match="nothing more can be computed on the device in this process"):
        search(space, DIGITS, "random", out=tmp_path, settings=settings)
    resumed = search(space, DIGITS, "random", out=tmp_path, settings=settings)
    assert resumed.failures == {"device": 1} and len(resumed.history) == 7


class Drawing(nn.Linear):
    """Draws from torch's global stream, and leaves it somewhere else."""

    def forward(self, x):
        if not x.is_meta:
            torch.manual_seed(int(torch.randint(1000, ())))
        return super().forward(x + 0.1 * torch.rand_like(x))


def test_what_an_operation_does_to_the_global_stream_stays_within_its_trial():
    measure, trial = Trained(flat(a=lambda: Drawing(64, 10)), TASK, RECIPE), Trial(0, (0,), 1)
    first, before = measure(trial, rng()), torch.get_rng_state()
    torch.manual_seed(99)
    assert measure(trial, rng()) == first
    torch.set_rng_state(before)
    measure(trial, rng())
    assert torch.equal(torch.get_rng_state(), before)


# -- spaces ----------------------------------------------------------------------------------------------


def raising_space(where):
    def build(choose):
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 10), choose.op("a", {"x": nn.Tanh, "y": nn.ReLU, "z": nn.GELU})
        )
        if where == "build":
            raise ZeroDivisionError("in build")
        return network

    def project(decisions, scores):
        if where == "project":
            raise ZeroDivisionError("in project")
        return nas.space.space.argmax(decisions, scores)

    return nas.Space("raising", build, project)


@pytest.mark.parametrize("where", ["build", "project"])
@pytest.mark.parametrize("method", ["random", "darts"])
def test_a_space_that_raises_is_refused_before_any_training(tmp_path, where, method):
    settings = {**(SETTINGS if method == "random" else TINY), "space_settings": {}}
    with pytest.raises(SpaceError, match=f"{where} failed: ZeroDivisionError: in {where}") as caught:
        search(raising_space(where), DIGITS, method, out=tmp_path / "out", settings=settings)
    assert ours(str(caught.value)) and f'raise ZeroDivisionError("in {where}")' in str(caught.value)
    assert not (tmp_path / "out").exists()


# -- searchers, tasks, methods, evaluators ---------------------------------------------------------------


class Searches:
    """A searcher of somebody else, which answers as told."""

    def __init__(self, answer):
        self.answer = answer

    def ask(self, space, history, rng):
        return self.answer(space)


def studied(tmp_path, answer):
    return Study(load("toy"), Fixed(Searches(answer), 1), open_storage(tmp_path / "s.log"), name="s")


def test_a_searcher_that_raises_is_named_with_its_line(tmp_path):
    with pytest.raises(ConfigError) as caught:
        studied(tmp_path, lambda space: 1 // 0).ask()
    text = str(caught.value)
    assert text.startswith("study 's': Fixed failed to propose trial 0: ZeroDivisionError")
    assert ours(text) and "check_searcher" in text


@pytest.mark.parametrize("answer", [(0,), (0, 0, 9), None, [0, 0, 0], "abc", (0.5, 0, 0), ("0", 0, 0)])
def test_a_proposal_that_is_no_architecture_is_refused_and_not_recorded(tmp_path, answer):
    study = studied(tmp_path, lambda space: answer)
    with pytest.raises((ConfigError, SpaceError)):
        study.ask()
    assert not study.history and not study.optuna_study.trials


def test_a_data_set_that_raises_is_named_with_its_line():
    class Broken:
        def __len__(self):
            return 10

        def __getitem__(self, index):
            if index == 3:
                raise OSError("the file is gone")
            return np.zeros((8, 8), np.uint8), index % 2

    with pytest.raises(
        DataError, match=r"mine: train: item 3 cannot be read: OSError: the file is gone"
    ) as caught:
        nas.task_from_datasets(Broken(), name="mine")
    assert ours(str(caught.value))


METHOD = """
import nas
import nas.oneshot.relaxations

def make():
    1 // 0

def wrong():
    return 3

class Raises(nas.oneshot.relaxations.Relaxation):
    def mix(self, alphas, progress):
        raise KeyError("in the relaxation")

def relaxed():
    return nas.Method("mine", relaxation=Raises())
"""


@pytest.mark.parametrize(
    ("function", "words", "line"),
    [
        ("make", "ZeroDivisionError", "1 // 0"),
        ("wrong", "returned int, wanted a nas.Method", ""),
        ("relaxed", "KeyError: 'in the relaxation'", 'raise KeyError("in the relaxation")'),
    ],
)
def test_a_method_that_raises_is_named_with_its_line(tmp_path, function, words, line):
    (tmp_path / "mine.py").write_text(METHOD)
    with pytest.raises((ConfigError, TrialError)) as caught:
        search("toy", DIGITS, f"{tmp_path / 'mine.py'}:{function}", out=tmp_path / "out", settings=TINY)
    assert words in str(caught.value) and line in str(caught.value)


# -- too many failures -----------------------------------------------------------------------------------


def test_the_diagnosis_counts_reasons_and_says_what_to_change(tmp_path):
    space = flat(
        **{f"raises{i}": lambda: Raising(KeyError("k")) for i in range(6)},
        **{f"large{i}": lambda: nn.Linear(63, 10) for i in range(3)},
    )
    settings = SETTINGS | {"trials": 9, "max_failures": 9}
    with pytest.raises(NoModelError) as caught:
        search(space, DIGITS, "random", out=tmp_path, settings=settings)
    text = str(caught.value)
    first, *lines = text.splitlines()
    assert first == "study 'search': the last 9 trials failed, so the search stops here:"
    assert [line.split(":")[0] for line in lines] == [
        *("  6 x error", "  3 x build", "what to do", "  error", "  build")
    ]
    assert "raise self.error" in text and "nas validate" in text
