"""Whether kernels run unasked: tried in another process, remembered, and taken back after a fault."""

import json
import os
import select
import subprocess
import sys
import time
import warnings

import pytest
import torch

from nas.cell import Cell
from nas.errors import ConfigError, TrialError
from nas.files.kernel_lock import KernelLock
from nas.job import preparation
from nas.job.config import make_config
from nas.job.search_run import look
from nas.oneshot.fused import execution, settling, trying, verdict
from nas.oneshot.fused.cells import run, run_by_kernels
from nas.oneshot.fused.settling import BUSY, attempt, settle
from nas.oneshot.fused.verdict import Tried, Verdict, remembered
from nas.oneshot.supernet import Supernet
from nas.progress import Silent
from nas.seeding import isolated
from nas.speed.workloads import noise
from nas.training import loop as training
from nas.training.recipe import Recipe
from nas.user_code import user_errors

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FASTER = Tried(batched_ms=10.0, kernels_ms=2.0, difference=1e-4)
SLOWER = Tried(batched_ms=2.0, kernels_ms=2.0, difference=0.0)
WRONG = Tried(batched_ms=10.0, kernels_ms=2.0, difference=0.5)


class Told(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A machine that has a GPU and Triton, for all that is asked of it here."""
    path = tmp_path / "cache" / "kernels.json"
    monkeypatch.setattr(verdict, "lacking", lambda device: None if device.type == "cuda" else "it is no GPU")
    monkeypatch.setattr(verdict, "place_of", lambda device: path)
    monkeypatch.setattr(verdict, "_BY_VERDICT", set())
    return path


def finds(monkeypatch, *outcomes):
    """What trying will find out, one after the other; the calls are in the list returned."""
    calls, rest = [], list(outcomes)

    def attempt(device, *, stop):
        calls.append(device)
        return rest.pop(0)

    monkeypatch.setattr(settling, "attempt", attempt)
    return calls


# -- what a verdict means ---------------------------------------------------------------------------------


def test_a_user_without_a_home_has_no_memory_and_no_error(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(verdict, "lacking", lambda device: None)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(verdict.Path, "home", nowhere)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card without a home")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    verdict.place_of.cache_clear()
    notes = []
    assert remembered(GPU) is None
    assert settle(GPU, note=notes.append) is None
    assert "set HOME or XDG_CACHE_HOME" in notes[0]


def test_a_memory_in_a_folder_of_somebody_else_is_none(place, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(verdict.Path, "is_file", refuse)
    assert remembered(GPU) is None


@pytest.mark.parametrize(("tried", "passed"), [(FASTER, True), (SLOWER, False), (WRONG, False)])
def test_kernels_are_used_where_they_are_right_and_faster(tried, passed):
    found = Verdict({"search": tried})
    assert found.kernels("search") == passed
    assert not found.kernels("training")
    assert ("by kernels (" in str(found)) == passed


@pytest.mark.parametrize("difference", [float("nan"), float("inf")])
def test_losses_that_are_no_numbers_are_wrong(difference):
    assert not Tried(10.0, 2.0, difference).passed


def test_what_failed_is_not_used():
    found = Verdict({"search": FASTER}, failed="it ended with signal 6: abort")
    assert not found.kernels("search")
    assert "signal 6: abort" in str(found)


# -- one process tries, all others remember ---------------------------------------------------------------


def test_a_try_is_remembered(place, monkeypatch):
    calls, told = finds(monkeypatch, Verdict({"search": FASTER, "training": SLOWER})), Told()
    for _ in range(2):
        execution.try_kernels(GPU, told, stop=lambda: False)
    assert (len(calls), len(told.notes)) == (1, 2)
    assert "2.0 ms a step by kernels, 10.0 batched" in told.notes[1]
    assert execution.resolve("auto", GPU, "search") == "kernels"
    assert execution.resolve("auto", GPU, "training") == "batched"
    assert execution.resolve("auto", CPU, "search") == "batched"
    assert "search by kernels" in execution.explain(GPU)
    settle(GPU)
    assert len(calls) == 1


def test_a_network_without_mixtures_goes_by_trainings(place):
    place.parent.mkdir()
    verdict.keep(place, Verdict({"search": FASTER, "training": SLOWER}), None)
    space = trying.small_space(4)
    with isolated(0, "test"):
        mixed, alone = Supernet(space), space.network(trying.EVERY)
    for network, runs in ((mixed, run_by_kernels), (alone, run)):
        execution.execute_cells(network, "auto", GPU)
        assert {cell.execute for cell in network.modules() if isinstance(cell, Cell)} == {runs}


def test_a_short_training_is_not_worth_the_compilation(place, monkeypatch):
    place.parent.mkdir()
    verdict.keep(place, Verdict({"search": FASTER, "training": FASTER}), None)
    found = [execution.resolve("auto", GPU, "training", steps) for steps in (None, 1999, 2000)]
    assert found == ["kernels", "batched", "kernels"]
    assert execution.resolve("kernels", GPU, "training", 1) == "kernels"
    asked = []
    monkeypatch.setattr(training, "execute_cells", lambda *given: asked.append(given))
    task = noise(channels=3, side=8, images=32, device=CPU)
    network = trying.small_space(4).network(trying.EVERY)
    recipe = Recipe(epochs=3, batch=8, lr=0.1, weight_decay=0.0)
    loop = training.Loop(network, task, recipe, seed=0, split=task.train, forward=lambda net, x, _: net(x))
    assert asked == [(network, "auto", CPU, loop.steps)]


def test_nothing_is_known_before_a_try(place):
    assert verdict.remembered(GPU) is None
    assert execution.resolve("auto", GPU) == "batched"
    assert "--try-kernels" in execution.explain(GPU)


def test_a_try_that_tells_nothing_is_made_again(place, monkeypatch):
    calls = finds(monkeypatch, None, Verdict({"search": FASTER}))
    assert settle(GPU) is None
    assert not place.exists()
    assert settle(GPU).kernels("search")
    assert len(calls) == 2


def test_kernels_can_be_tried_anew(place, monkeypatch):
    finds(monkeypatch, Verdict(failed="it hung"), Verdict({"search": FASTER}))
    assert not settle(GPU).kernels("search")
    assert settle(GPU, anew=True).kernels("search")
    assert verdict.remembered(GPU).kernels("search")


def test_a_short_budget_is_not_spent_on_a_try(place, monkeypatch):
    calls, told = finds(monkeypatch, Verdict({"search": FASTER})), Told()
    execution.try_kernels(GPU, told, stop=lambda: False, budget_s=600.0)
    assert (calls, len(told.notes)) == ([], 1)
    execution.try_kernels(GPU, told, stop=lambda: False, budget_s=7200.0)
    assert calls == [GPU]


@pytest.fixture
def asked(monkeypatch):
    """Budgets of the jobs that would try kernels."""
    budgets = []
    monkeypatch.setattr(preparation, "try_kernels", lambda *_, budget_s, **__: budgets.append(budget_s))
    return budgets


JOB = {"space": "toy", "task": "digits", "method": "random", "trials": 1}


def test_a_preview_tries_nothing(asked, tmp_path):
    look(make_config(JOB))
    assert asked == []
    preparation.prepare(make_config(JOB | {"budget": "2h"}), tmp_path)
    preparation.prepare(make_config(JOB | {"execution": "batched"}), tmp_path)
    assert asked == [7200.0]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "\x00", '{"tried": {"search": 1}, "failed": ""}'),
        '{"tried": {"search": {"ms": 1}}, "failed": ""}',
        '{"tried": {"search": {"batched_ms": "fast", "kernels_ms": 1, "difference": 0}}, "failed": ""}',
    ],
)
def test_a_damaged_memory_is_none(place, text):
    place.parent.mkdir()
    place.write_text(text)
    assert verdict.remembered(GPU) is None


def test_where_nothing_can_be_kept_nothing_is_tried(place, monkeypatch):
    calls, notes = finds(monkeypatch, Verdict({"search": FASTER})), []
    place.parent.write_text("a file")
    assert settle(GPU, note=notes.append) is None
    assert (calls, len(notes)) == ([], 1)
    assert notes[0].startswith("WARNING: ")


def test_without_a_gpu_nothing_is_tried(place, monkeypatch):
    calls = finds(monkeypatch)
    assert settle(CPU) is None
    execution.try_kernels(CPU, Told(), stop=lambda: False)
    assert calls == []


def test_doctor_tries_only_where_it_can(monkeypatch):
    from nas.doctor import examine

    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="kernels cannot be tried: the device is cpu"):
            examine(try_kernels=True)


@pytest.mark.parametrize("driver", [None, "570.86"])
def test_the_memory_is_of_a_card_and_of_versions(driver, monkeypatch, tmp_path):
    """And of the driver, where that tells its version."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verdict, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))

    def place(name, torch_version):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
        monkeypatch.setattr(verdict, "_version", lambda _: torch_version)
        verdict.place_of.cache_clear()
        return verdict.place_of(GPU)

    cards = (("H100", "2.11"), ("H100", "2.12"), ("A100", "2.11"))
    places = {place(*card) for card in cards}
    if driver is not None:
        for version in (driver, "580.65"):
            verdict.DRIVER.write_text(f"NVRM version: NVIDIA Kernel Module  {version}\nGCC version: 12\n")
            places |= {place(*card) for card in cards}
    verdict.place_of.cache_clear()
    assert len(places) == (3 if driver is None else 9)
    assert {path.parent for path in places} == {tmp_path / "nas"}


# -- a fault of the GPU -----------------------------------------------------------------------------------


def fault():
    with user_errors():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_a_fault_ends_the_use_of_kernels(place):
    place.parent.mkdir()
    verdict.keep(place, Verdict({"search": FASTER}), None)
    assert execution.resolve("auto", GPU) == "kernels"
    with pytest.raises(TrialError, match="nas doctor --try-kernels") as caught:
        fault()
    assert caught.value.reason == "device"
    assert execution.resolve("auto", GPU) == "batched"
    assert "illegal memory access" in str(verdict.remembered(GPU))


def test_a_fault_without_kernels_blames_nothing(place):
    with pytest.raises(TrialError) as caught:
        fault()
    assert "; kernels ran" not in str(caught.value)  # the path of this file may say kernels, too
    assert not place.exists()


# -- the process that tries -------------------------------------------------------------------------------


def tries(code, **how):
    return attempt(CPU, program=(sys.executable, "-c", code), **how)


def test_what_the_other_process_finds_is_read():
    kept = {
        "tried": {"search": {"batched_ms": 3.0, "kernels_ms": 1.0, "difference": 0.0}},
        "failed": "",
    }
    found = tries(f"import sys; open(int(sys.argv[2]), 'w').write({json.dumps(kept)!r})")
    assert found == Verdict({"search": Tried(3.0, 1.0, 0.0)})


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.abort()", "signal 6"),
        ("raise RuntimeError('no kernel image')", "status 1: RuntimeError: no kernel image"),
        ("pass", "it wrote no outcome"),
        ("import sys; open(int(sys.argv[2]), 'w').write('{')", "it wrote no outcome"),
    ],
)
def test_whatever_happens_to_it_is_a_verdict(code, words):
    assert words in tries(code).failed


def test_one_that_hangs_is_ended():
    started = time.monotonic()
    assert "did not end in 0.3 s" in tries("import time; time.sleep(60)", limit_s=0.3).failed
    assert time.monotonic() - started < 20


def test_one_that_is_stopped_or_has_no_memory_tells_nothing():
    assert tries("import time; time.sleep(60)", stop=lambda: True) is None
    assert tries(f"import sys; sys.exit({BUSY})") is None


def test_it_ends_with_the_process_that_waits_for_it_however_that_one_ends(tmp_path):
    """And nothing is left of its files."""
    os.mkfifo(tmp_path / "life")
    (tmp_path / "temporary").mkdir()
    child = f"""
import sys, time
from nas.oneshot.fused import trying
def forever(device):
    with open({str(tmp_path / "life")!r}, "w") as life:
        print("begun", file=life, flush=True)
        time.sleep(600)
trying.find_out = forever
trying.awaited(*sys.argv[1:])
"""
    code = f"""
import sys, torch
from nas.oneshot.fused.settling import attempt
attempt(torch.device("cpu"), program=(sys.executable, "-c", {child!r}))
"""
    life = os.open(tmp_path / "life", os.O_RDONLY | os.O_NONBLOCK)
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
        try:
            assert select.select([life], [], [], 60)[0] and os.read(life, 100) == b"begun\n"
        finally:
            parent.kill()
    assert select.select([life], [], [], 60)[0] and os.read(life, 100) == b""
    os.close(life)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
def test_one_that_is_ended_from_outside_tells_nothing(name):
    default = "" if name == "SIGKILL" else f"signal.signal(signal.{name}, signal.SIG_DFL); "
    code = f"import os, signal; {default}os.kill(os.getpid(), signal.{name})"
    assert tries(code) is None


def test_another_process_that_cannot_be_begun_is_no_error(place, monkeypatch):
    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    notes = []
    monkeypatch.setattr(settling.subprocess, "Popen", refuse)
    assert settle(GPU, note=notes.append) is None
    assert "kernels cannot be tried: [Errno 12]" in notes[-1]
    assert not place.exists()


def test_who_is_stopped_waits_no_longer_for_the_try_of_another(place, monkeypatch):
    monkeypatch.setattr(settling, "PATIENCE_S", 0.01)
    place.parent.mkdir(parents=True)
    other = KernelLock(str(place.with_suffix(".lock")))
    place.with_suffix(".lock").touch()
    other.acquire()
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 3

    calls = finds(monkeypatch)
    assert settle(GPU, stop=stop) is None
    other.release()
    assert calls == []


# -- what it does -----------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(trying, "SIDE", 4)
    monkeypatch.setattr(trying, "BATCH", 4)
    monkeypatch.setattr(trying, "TIMED", 1)
    monkeypatch.setattr(trying, "COMPARED", 1)


def test_it_times_and_compares_both_kinds_of_steps(few):
    found = trying.find_out(CPU, ways=("plain, channels last", "batched"), timed="{}")
    assert set(found.tried) == set(verdict.KINDS)
    for tried in found.tried.values():
        assert tried.difference < verdict.NEAR
        assert min(tried.batched_ms, tried.kernels_ms) > 0


def test_it_sees_what_is_wrong(few, monkeypatch):
    def wrong(cell, states):
        return [1.5 * state for state in cell.plain(states)]

    monkeypatch.setitem(execution._RUNS, "batched", wrong)
    found = trying.find_out(CPU, ways=("plain, channels last", "batched"), timed="{}")
    assert not any(tried.passed for tried in found.tried.values())


def test_it_writes_its_outcome(few, tmp_path, monkeypatch):
    monkeypatch.setattr(trying, "find_out", lambda device: Verdict({"search": FASTER}))
    with (tmp_path / "outcome.json").open("wb") as file:
        trying.main("cpu", str(os.dup(file.fileno())))
    assert verdict.read(tmp_path / "outcome.json") == Verdict({"search": FASTER})


def test_it_says_when_the_gpu_is_full(tmp_path, monkeypatch):
    def full(device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trying, "find_out", full)
    with pytest.raises(SystemExit) as ended:
        trying.main("cpu", "0")
    assert ended.value.code == BUSY


@pytest.mark.parametrize(
    ("words", "busy"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_a_gpu_that_others_use_tells_nothing(tmp_path, monkeypatch, words, busy):
    def fails(device):
        raise RuntimeError(words)

    monkeypatch.setattr(trying, "find_out", fails)
    with pytest.raises(SystemExit if busy else RuntimeError) as ended:
        trying.main("cpu", "0")
    assert getattr(ended.value, "code", None) == (BUSY if busy else None)


def test_every_operation_with_kernels_stands_in_its_architecture():
    space = trying.small_space()
    chosen = {space.decisions[i].options[o] for i, o in enumerate(trying.EVERY)}
    assert chosen == {*trying.OPTIONS} - {"none"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert space.network(trying.EVERY, meta=True) is not None
