"""The pool of workers: signs of life, replacements, memory, broken GPUs, grace."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nas.errors import ConfigError, DeviceError, WorkersError
from nas.workers import pool as module
from nas.workers.pool import Pool
from nas.workers.pulse import Pulse
from nas.workers.slots import Slot, gpus_of, make_slots

BEATING = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from nas.workers.pulse import Pulse
asked = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: asked.append(1))
with Pulse(int(sys.argv[1]), ask_to_stop=lambda: asked.append(1), grace_s=600):
    {body}
    while not asked:
        time.sleep(0.01)
sys.exit(143)
"""
HERE, ROOT = str(Path(__file__).parent), str(Path(module.__file__).parents[2])
LIMIT_S = 120


def slots(count, gpus=()):
    return make_slots(count, gpus)


def running(body="pass"):
    """Starts a small worker that beats, does `body` and then waits to be asked to end."""
    started = []

    def start(slot, descriptor):
        code = BEATING.format(root=ROOT, body=body)
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(descriptor)], pass_fds=(descriptor,), start_new_session=True
        )
        started.append((slot, child))
        return child

    start.started = started
    return start


def until(condition, pool=None):
    limit = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        if pool is not None:
            pool.tend()
        time.sleep(0.01)


def heard(pool):
    return all(post.heard for post in pool._posts)


class Ended:
    """A process that has ended before anybody looks."""

    def __init__(self, code):
        self.pid, self.code = 2**22 + 1, code

    def poll(self):
        return self.code


class Alive(Ended):
    """One that runs until it is killed by name."""

    def __init__(self):
        super().__init__(None)


def scripted(*codes):
    """Starts processes that end with one code after the other; the rest run on."""
    left, places = list(codes), []

    def start(slot, descriptor):
        places.append(slot)
        return Ended(left.pop(0)) if left else Alive()

    start.places = places
    return start


@pytest.fixture(autouse=True)
def _no_signals_to_strangers(monkeypatch):
    """Made-up processes have ids that no real one has, and end when they are killed."""

    def killed(post, number):
        if isinstance(post.child, Ended):
            post.child.code = -number if post.child.code is None else post.child.code
        else:
            real(post, number)

    real = module._signal
    monkeypatch.setattr(module, "_signal", killed)


# -- real processes -----------------------------------------------------------------------------------------


def test_workers_live_until_they_are_drained():
    start = running()
    with Pool(slots(2), start, lease_s=600) as pool:
        until(lambda: heard(pool), pool)
        pids = pool.pids
        pool.drain()
        assert pool.finished
    assert [child.poll() for _, child in start.started] == [143, 143]
    assert pids == [child.pid for _, child in start.started]


def test_a_worker_that_does_not_end_in_time_is_killed_with_its_children(tmp_path):
    told = tmp_path / "pid"
    body = (
        "asked = (); signal.signal(signal.SIGTERM, signal.SIG_IGN); import subprocess; "
        f"open({str(told)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid) + ';')"
    )
    start = running(body)
    with Pool(slots(1), start, lease_s=600, grace_s=0.2) as pool:
        until(lambda: told.exists() and told.read_text().endswith(";"))
        grandchild = int(told.read_text().strip(";"))
        assert alive(grandchild)
        pool.drain()
    assert start.started[0][1].poll() == -signal.SIGKILL
    until(lambda: not alive(grandchild))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_leaving_the_pool_in_any_way_leaves_nobody_behind():
    start = running()
    with pytest.raises(KeyboardInterrupt), Pool(slots(2), start, lease_s=600):
        raise KeyboardInterrupt
    assert [child.poll() for _, child in start.started] == [-signal.SIGKILL] * 2


def test_a_dead_worker_is_replaced(caplog):
    start, notes = running(), []
    with Pool(slots(2), start, lease_s=600, note=notes.append) as pool:
        until(lambda: heard(pool), pool)
        os.kill(pool.pids[0], signal.SIGKILL)
        until(lambda: len(start.started) == 3, pool)
        assert [slot.number for slot, _ in start.started] == [0, 1, 0]
        assert notes == ["worker 0 ended with SIGKILL and is replaced"]


def test_a_frozen_worker_is_killed_and_replaced():
    start, notes = running(), []
    with Pool(slots(1), start, lease_s=4, note=notes.append) as pool:
        until(lambda: heard(pool), pool)
        frozen = pool.pids[0]
        os.kill(frozen, signal.SIGSTOP)
        silent = []
        until(lambda: silent.extend(pool.tend()) or silent)
        assert silent == [frozen]
        until(lambda: len(start.started) == 2, pool)
    assert "worker 0 gave no sign of life for" in notes[0] and len(notes) == 1


def test_workers_of_a_coordinator_that_dies_end_by_themselves():
    code = f"""
import sys, time
sys.path[:0] = [{ROOT!r}, {HERE!r}]
import test_pool
pool = test_pool.Pool(test_pool.slots(2), test_pool.running(), lease_s=600)
pool.__enter__()
test_pool.until(lambda: test_pool.heard(pool), pool)
print(*pool.pids, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as coordinator:
        pids = [int(word) for word in coordinator.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        coordinator.kill()
    until(lambda: not any(map(alive, pids)))


def test_an_orphan_that_cannot_save_in_time_ends_all_the_same():
    code = f"""
import os, sys, time
sys.path.insert(0, {ROOT!r})
from nas.workers.pulse import Pulse
with Pulse(int(sys.argv[1]), ask_to_stop=lambda: print("asked", flush=True), grace_s=0.2):
    time.sleep(600)
"""
    reading, writing = os.pipe()
    command = [sys.executable, "-c", code, str(writing)]
    with subprocess.Popen(command, pass_fds=(writing,), stdout=subprocess.PIPE, text=True) as orphan:
        os.close(writing)
        assert os.read(reading, 1) == b"."
        os.close(reading)
        assert orphan.stdout.readline() == "asked\n"
        try:
            assert orphan.wait(60) == 143
        finally:
            orphan.kill()


def test_a_reader_that_is_frozen_does_not_hold_up_the_worker():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writing, b"." * 4096)
    with Pulse(writing, ask_to_stop=lambda: asked.append(1), grace_s=60):
        asked = []
        time.sleep(0.05)
    assert not asked
    os.close(reading)
    os.close(writing)


# -- conclusions --------------------------------------------------------------------------------------------


def test_a_worker_that_found_nothing_left_to_do_is_not_replaced():
    start = scripted(0, 4)
    with Pool(slots(2), start, lease_s=600) as pool:
        pool.tend()
        assert pool.finished
    assert len(start.places) == 2


@pytest.mark.parametrize("code", [2, 3, 5])
def test_a_users_error_ends_the_search_with_its_words(code):
    start = scripted(code)
    pool = Pool(slots(1), start, lease_s=600, last_words=lambda slot: f"error: no file x, says {slot.number}")
    with pool, pytest.raises(WorkersError, match="worker 0 ended: error: no file x, says 0") as caught:
        pool.tend()
    assert caught.value.exit_code == code


def test_workers_that_always_die_end_the_search():
    start = scripted(*[1] * 100)
    with (
        Pool(slots(2), start, lease_s=600, last_words=lambda _: "boom") as pool,
        pytest.raises(WorkersError, match=r"died 10 times without a trial being done.*exit code 1: boom"),
    ):
        for _ in range(100):
            pool.tend()
    start = scripted(*[1] * 100)
    with Pool(slots(2), start, lease_s=600) as pool:
        for _ in range(40):
            pool.tend()
            pool.progressed()


def test_half_the_workers_must_do_when_memory_ran_out_twice():
    kills, notes = iter([0, 1, 2, 3, 4]), []
    start = scripted(*[None] * 3, *[None] * 5)
    with Pool(slots(4), start, lease_s=600, note=notes.append, killed_for_memory=lambda: next(kills)) as pool:
        for _ in range(2):
            pool._posts[0].child.code = -9
            pool.tend()
        assert "memory ran out twice, so that 2 workers must do" in notes
        for post in pool._posts:
            if post.slot.number >= 2:
                post.child.code = 143
        pool.tend()
        assert sorted(post.slot.number for post in pool._posts) == [0, 1]


def test_workers_that_somebody_kills_say_nothing_of_memory():
    start = scripted(*[-9] * 8)
    with Pool(slots(2), start, lease_s=600, killed_for_memory=lambda: 7) as pool:
        for _ in range(4):
            pool.tend()
            pool.progressed()
        assert len(pool._slots) == 2


def test_where_there_is_no_telling_a_kill_counts_as_memory():
    with Pool(slots(2), scripted(-9, -9), lease_s=600, killed_for_memory=lambda: None) as pool:
        pool.tend()
        assert len(pool._slots) == 1


def test_a_gpu_that_failed_twice_is_not_used_again():
    notes = []
    start = scripted(DeviceError.exit_code, None, DeviceError.exit_code)
    with Pool(slots(2, ["0", "1"]), start, lease_s=600, note=notes.append) as pool:
        pool.tend()
        pool.tend()
        assert [post.slot.gpu for post in pool._posts] == ["1"]
    assert [slot.gpu for slot in start.places] == ["0", "1", "0"]
    assert "GPU 0 failed twice and is not used again" in notes


def test_without_a_gpu_left_the_search_ends():
    start = scripted(-signal.SIGABRT, DeviceError.exit_code)
    with Pool(slots(1, ["GPU-7f"]), start, lease_s=600, last_words=lambda _: "device-side assert") as pool:
        pool.tend()
        with pytest.raises(WorkersError, match="no GPU is left; the last worker said: device-side assert"):
            pool.tend()


def test_a_coordinator_that_was_frozen_accuses_nobody():
    now = [0.0]
    with Pool(slots(1), scripted(), lease_s=600, clock=lambda: now[0]) as pool:
        pool._posts[0].heard = True
        now[0] += 1e6
        assert pool.tend() == []
        for _ in range(3):
            now[0] += 70
            assert pool.tend() == []
        now[0] += 70
        assert pool.tend() == [pool._posts[0].child.pid]


def test_a_worker_may_take_its_time_to_begin():
    now = [0.0]
    with Pool(slots(1), scripted(), lease_s=4, clock=lambda: now[0]) as pool:
        for _ in range(500):
            now[0] += 0.5
            assert pool.tend() == []
        first = pool._posts[0].child
        for _ in range(200):
            now[0] += 0.5
            pool.tend()
        assert first.code == -9


# -- slots --------------------------------------------------------------------------------------------------


def test_cores_and_gpus_are_shared_out(monkeypatch):
    monkeypatch.setattr("nas.workers.slots.cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert [slot.threads for slot in make_slots(3, [])] == [2, 2, 2]
    assert [slot.gpu for slot in make_slots(5, ["4", "7"])] == ["4", "7", "4", "7", "4"]
    assert make_slots(20, [])[0].threads == 1
    environment = Slot(0, "7", 2).environment()
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["OMP_NUM_THREADS"]) == ("7", "2")
    assert (Slot(0, "7", 2).device, Slot(0, None, 2).device) == ("cuda", "cpu")
    assert [str(slot) for slot in (Slot(0, "7", 2), Slot(1, None, 2))] == ["worker 0 on GPU 7", "worker 1"]


def test_workers_get_the_gpus_that_this_process_sees(monkeypatch):
    assert gpus_of("cpu") == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus_of("auto") == gpus_of("cuda") == ["0", "1"]
    assert gpus_of("cuda:1") == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b")
    assert gpus_of("cuda") == ["GPU-a", "GPU-b"]
    assert gpus_of("cuda:1") == ["GPU-b"]
    monkeypatch.setattr("nas.devices.available", lambda: ["cpu", "mps"])
    with pytest.raises(ConfigError, match="workers compute on cpu or cuda, got device 'mps'"):
        gpus_of("mps")


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EMFILE])
def test_workers_that_cannot_be_started_end_the_search_in_words(monkeypatch, code):
    first = running()

    def start(slot, descriptor):
        if slot.number == 1:
            raise OSError(code, os.strerror(code))
        return first(slot, descriptor)

    with (
        pytest.raises(WorkersError, match=rf"worker 1 cannot be started: {os.strerror(code)}; raise the l"),
        Pool(slots(2), start, lease_s=600),
    ):
        pass
    assert [child.poll() for _, child in first.started] == [-signal.SIGKILL]


def test_nobody_gets_a_signal_who_has_the_number_of_a_worker_that_ended_before(monkeypatch):
    sent = []
    monkeypatch.setattr(module, "_signal", lambda post, number: sent.append((post.child.pid, number)))
    monkeypatch.setattr(module.os, "kill", lambda pid, number: sent.append((pid, number)))
    first, second = Ended(0), Alive()
    second.pid += 1
    children = [first, second]
    with Pool(slots(2), lambda *_: children.pop(0), lease_s=600, grace_s=0.0) as pool:
        pool._posts[0].poll()
        assert sent == [(first.pid, signal.SIGKILL)]  # the children that it left
        second.code = 143
        pool.drain()
        assert pool.finished
    assert sent == [(first.pid, signal.SIGKILL), (second.pid, signal.SIGKILL)]
