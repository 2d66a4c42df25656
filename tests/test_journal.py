import errno
import json
import logging
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import optuna
import pytest
from killing import MODULES
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from nas.errors import ConfigError
from nas.files import kernel_lock
from nas.files.kernel_lock import KernelLock
from nas.files.stopped_holder import holders, wake
from nas.storage.journal import journal_storage
from nas.storage.journal_file import SafeJournalBackend
from nas.storage.patience import PATIENT, Patience

optuna.logging.set_verbosity(optuna.logging.WARNING)

# Children are forked from a server that has loaded everything already: starting one takes milliseconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(MODULES)

CHOICES = CategoricalDistribution(("conv", "skip"))


def open_study(path, patience=PATIENT):
    return optuna.create_study(
        storage=journal_storage(path, patience=patience),
        study_name="s",
        sampler=optuna.samplers.RandomSampler(seed=0),
        load_if_exists=True,
    )


def finished(value):
    return create_trial(params={"op": "conv"}, distributions={"op": CHOICES}, value=value)


def values(path):
    return [trial.value for trial in open_study(path).trials]


def record(number):
    return {"op_code": 2, "worker_id": "w", "study_id": 9, "number": number, "text": "é\n"}


def numbers(path):
    return [log["number"] for log in SafeJournalBackend(path).read_logs(0)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.log"


def test_study_comes_back(path):
    study = open_study(path)
    for value in (0.5, 0.25):
        study.add_trial(finished(value))
    trial = study.ask({"op": CHOICES})
    study.tell(trial, 0.75)
    assert values(path) == [0.5, 0.25, 0.75]
    assert not list(path.parent.glob("*.lock"))


def test_two_storages_follow_each_other(path):
    first, second = open_study(path), open_study(path)
    for value in range(4):
        (first if value % 2 else second).add_trial(finished(value))
    assert [t.value for t in first.trials] == [t.value for t in second.trials] == [0, 1, 2, 3]


def test_stock_optuna_reads_our_journal(path):
    open_study(path).add_trial(finished(0.5))
    stock = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    assert optuna.load_study(study_name="s", storage=stock).best_value == 0.5


def test_records_are_read_from_any_number(path):
    backend = SafeJournalBackend(path)
    backend.append_logs([record(0), record(1)])
    backend.append_logs([])
    backend.append_logs([record(2)])
    for reader in (backend, SafeJournalBackend(path), pickle.loads(pickle.dumps(backend))):
        assert [log["number"] for log in reader.read_logs(1)] == [1, 2]
        assert [log["number"] for log in reader.read_logs(3)] == []
        assert list(reader.read_logs(0)) == [record(0), record(1), record(2)]


def test_torn_tail_at_every_byte_is_cut_off_and_kept(path, caplog):
    SafeJournalBackend(path).append_logs([record(0), record(1)])
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    torn_path = path.with_name("study.log.torn")
    for end in range(start + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        torn_path.unlink(missing_ok=True)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="nas"):
            backend = SafeJournalBackend(path)
        assert path.read_bytes() == whole[:start]
        assert torn_path.read_bytes() == whole[start:end] + b"\n"
        assert f"{end - start} bytes" in caplog.text
        backend.append_logs([record(2)])
        assert numbers(path) == [0, 2]


@pytest.mark.parametrize("last", [b"", b"J", b"\0"])
def test_last_record_that_lacks_only_its_newline_is_kept(path, caplog, last):
    SafeJournalBackend(path).append_logs([record(0), record(1)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + last)
    backend = SafeJournalBackend(path)
    assert path.read_bytes() == whole and "newline" in caplog.text
    assert not path.with_name("study.log.torn").exists()
    backend.append_logs([record(2)])
    assert numbers(path) == [0, 1, 2]


def test_tail_torn_under_an_open_backend_is_cut_off_before_the_next_append(path):
    backend = SafeJournalBackend(path)
    backend.append_logs([record(0)])
    assert len(list(backend.read_logs(0))) == 1
    with path.open("ab") as file:
        file.write(b'{"op_code":2,"num')
    assert list(backend.read_logs(1)) == []
    backend.append_logs([record(1)])
    assert [log["number"] for log in backend.read_logs(0)] == [0, 1]


@pytest.mark.parametrize("tail", [b"\0" * 200_000, b'{"op_code":' + b"1" * 200_000])
def test_long_torn_tail_is_cut_off(path, tail):
    SafeJournalBackend(path).append_logs([record(0)])
    with path.open("ab") as file:
        file.write(tail)
    assert numbers(path) == [0]
    assert path.with_name("study.log.torn").read_bytes() == tail + b"\n"


def test_torn_first_record_leaves_an_empty_journal(path):
    path.write_bytes(b'{"op_code":0,"stu')
    assert numbers(path) == []
    assert path.read_bytes() == b""


def test_a_file_that_is_no_journal_is_left_alone(path):
    path.write_bytes(b"a poem\nwithout an end")
    with pytest.raises(ConfigError, match="is not a journal"):
        SafeJournalBackend(path)
    assert path.read_bytes() == b"a poem\nwithout an end"


def test_torn_tail_on_a_full_disk_can_still_be_read(path, monkeypatch, caplog):
    SafeJournalBackend(path).append_logs([record(0)])
    with path.open("ab") as file:
        file.write(b"{")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        backend = SafeJournalBackend(path, patience=Patience(0))
        assert [log["number"] for log in backend.read_logs(0)] == [0]
        with pytest.raises(ConfigError, match="No space left"):
            backend.append_logs([record(1)])
    assert "cannot repair" in caplog.text
    backend.append_logs([record(1)])
    assert numbers(path) == [0, 1]


@pytest.mark.parametrize("damage", [b"#", b"\0", b"\xff", b"\n"])
def test_damage_in_the_middle_names_file_and_offset(path, damage):
    SafeJournalBackend(path).append_logs([record(0), record(1), record(2)])
    data = path.read_bytes()
    second = data.index(b"\n") + 1
    path.write_bytes(data[: second + 4] + damage + data[second + 5 :])
    with pytest.raises(ConfigError, match=rf"study\.log is damaged at byte {second} \(record 1\)"):
        numbers(path)
    with pytest.raises(ConfigError, match=f"byte {second} "):
        journal_storage(path)


def test_lines_that_are_no_records_are_damage(path):
    for line in ("3\n", "[]\n", "{}\n"):
        path.write_text(line)
        with pytest.raises(ConfigError, match=r"not a (table|journal record)"):
            numbers(path)


def test_journal_cut_under_a_reader_is_noticed(path):
    backend = SafeJournalBackend(path)
    backend.append_logs([record(0), record(1)])
    assert len(list(backend.read_logs(0))) == 2
    os.truncate(path, 0)
    with pytest.raises(ConfigError, match="was cut or replaced"):
        list(backend.read_logs(2))


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_full_disk_undoes_the_append(path, monkeypatch, call):
    study = open_study(path, Patience(0))
    study.add_trial(finished(0.5))
    before = path.read_bytes()
    write = os.write

    def fail(descriptor, data=b""):
        if call == "write" and len(data) > 10:
            return write(descriptor, bytes(data[:10]))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(ConfigError, match=r"cannot use the journal .*study\.log on /.*No space left"):
            study.add_trial(finished(0.25))
    assert path.read_bytes() == before
    study.add_trial(finished(0.75))
    assert values(path) == [0.5, 0.75]


def test_what_was_appended_is_on_the_disk_before_it_counts(path, monkeypatch):
    """What a power loss leaves cannot be seen in a test; the order of the calls can."""
    real, synced = os.fsync, []

    def fsync(descriptor):
        real(descriptor)
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((name, path.read_bytes() if path.exists() else b""))

    monkeypatch.setattr(os, "fsync", fsync)
    backend = SafeJournalBackend(path)
    assert synced[0][0] == path.parent  # a new file is lost without its folder
    backend.append_logs([record(0), record(1)])
    assert synced[-1] == (path, path.read_bytes()) and path.read_bytes().count(b"\n") == 2


# -- faults that pass -----------------------------------------------------------------------------------

QUICK = Patience(10, pause_s=0.01, longest_s=0.02)


@pytest.mark.parametrize("fault", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ESTALE", "ENOLCK"])
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_fault_that_passes_is_waited_for(path, monkeypatch, caplog, fault, call):
    study, real, left = open_study(path, QUICK), getattr(os, call), [3]

    def fail(*arguments):
        if left[0] == 0:
            return real(*arguments)
        left[0] -= 1
        raise OSError(getattr(errno, fault), "not now")

    monkeypatch.setattr(os, call, fail)
    study.add_trial(finished(0.5))
    assert caplog.messages[0].endswith("study.log: not now; trying again for up to 10 s")
    assert "works again after" in caplog.messages[1] and len(caplog.messages) == 2
    assert values(path) == [0.5]


def test_reading_waits_too(path, monkeypatch, caplog):
    study, real, left = open_study(path, QUICK), Path.open, [2]

    def fail(file, *arguments):
        if file.name != "study.log" or left[0] == 0:
            return real(file, *arguments)
        left[0] -= 1
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "open", fail)
    assert study.trials == [] and "Stale file handle; trying again" in caplog.text


def test_a_record_whose_writing_and_undoing_both_failed_is_there_once(path, monkeypatch):
    study, left = open_study(path, QUICK), [2]
    fsync, truncate = os.fsync, os.ftruncate

    def fail(real):
        def call(*arguments):
            if left[0] == 0:
                return real(*arguments)
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")

        return call

    monkeypatch.setattr(os, "fsync", fail(fsync))
    monkeypatch.setattr(os, "ftruncate", fail(truncate))
    study.add_trial(finished(0.5))
    assert left == [0] and values(path) == [0.5]


def test_when_the_patience_ends_the_error_names_file_and_mount(path, monkeypatch):
    study = open_study(path, Patience(0.05, pause_s=0.01))

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(ConfigError, match=rf"journal {path} on /.*: Input/output error; put that right"):
            study.add_trial(finished(0.5))
    assert values(path) == []


def test_a_journal_that_was_removed_is_not_waited_for(path):
    study = open_study(path)
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        study.add_trial(finished(0.5))


def add_under_limit(path: Path, told: Connection) -> None:
    study = open_study(path, QUICK)
    limit = path.stat().st_size + 1500
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    everything = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    threading.Timer(0.2, resource.setrlimit, (resource.RLIMIT_FSIZE, everything)).start()
    for number in range(20):
        study.add_trial(finished(number))
    told.send_bytes(str(path.stat().st_size - limit).encode())


def test_a_file_size_limit_is_waited_for(path):
    told, teller = processes.Pipe(duplex=False)
    writer = processes.Process(target=add_under_limit, args=(path, teller))
    writer.start()
    assert told.poll(120) and int(told.recv_bytes()) > 0
    writer.join()
    assert values(path) == list(range(20))


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_waited_for(small_disk, caplog):
    path, filler = small_disk / "study.log", small_disk / "filler"
    study = open_study(path, QUICK)
    study.add_trial(finished(0.5))
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1000))
    timer = threading.Timer(0.2, filler.unlink)
    timer.start()
    for number in range(20):  # more than is left in the last page
        study.add_trial(finished(number))
    timer.join()
    assert "No space left on device; trying again" in caplog.text and "works again" in caplog.text
    assert values(path) == [0.5, *range(20)]


def test_what_cannot_be_written_as_json_changes_nothing(path):
    backend = SafeJournalBackend(path)
    with pytest.raises(TypeError):
        backend.append_logs([record(0), {"op_code": object()}])
    assert path.read_bytes() == b""


def test_relative_path_and_link_mean_one_journal(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    backend = SafeJournalBackend(Path("link/study.log"))
    monkeypatch.chdir("/")
    backend.append_logs([record(0)])
    (tmp_path / "link").unlink()
    backend.append_logs([record(1)])
    assert numbers(tmp_path / "real/study.log") == [0, 1]


def test_journal_that_cannot_be_opened_is_a_clear_error(tmp_path):
    for bad in (tmp_path, tmp_path / "absent/study.log"):
        with pytest.raises(ConfigError, match="cannot open the journal"):
            SafeJournalBackend(bad)


def test_threads_exclude_each_other(path):
    backend = SafeJournalBackend(path)

    def work(first):
        for number in range(first, first + 25):
            backend.append_logs([record(number)])

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers(path)) == [first + i for first in (0, 100, 200) for i in range(25)]


def test_held_lock_is_waited_for_and_never_taken(path):
    path.touch()
    holder, other = KernelLock(str(path)), KernelLock(str(path), patience_s=0.05)
    holder.acquire()
    with pytest.raises(ConfigError, match=r"study\.log has been locked"):
        other.acquire()
    timer = threading.Timer(0.02, holder.release)
    timer.start()
    assert KernelLock(str(path)).acquire()
    timer.join()
    with pytest.raises(RuntimeError, match="not held"):
        other.release()


def lock_and_sleep(path: Path, told: Connection) -> None:
    KernelLock(str(path)).acquire()
    told.send_bytes(b"locked")
    time.sleep(60)


def test_lock_of_a_killed_writer_is_free_at_once(path):
    backend = SafeJournalBackend(path)
    told, teller = processes.Pipe(duplex=False)
    holder = processes.Process(target=lock_and_sleep, args=(path, teller))
    holder.start()
    assert told.poll(120)
    holder.kill()
    holder.join()
    start = time.monotonic()
    backend.append_logs([record(0)])
    assert time.monotonic() - start < 20  # the holder would have slept for a minute


def tell_forever(path: Path, told: Connection) -> None:
    study = open_study(path)
    number = len(study.trials)
    while True:
        study.add_trial(finished(number))
        told.send_bytes(str(number).encode())
        number += 1


def test_every_told_trial_survives_kills_at_random_moments(path):
    moments = random.Random(0)
    for _ in range(10):
        told, teller = processes.Pipe(duplex=False)
        writer = processes.Process(target=tell_forever, args=(path, teller))
        writer.start()
        teller.close()
        last = int(told.recv_bytes())
        time.sleep(moments.uniform(0, 0.03))
        writer.kill()
        writer.join()
        while told.poll():
            try:
                last = int(told.recv_bytes())
            except EOFError:
                break
        present = values(path)
        assert present == list(range(len(present)))
        assert len(present) - 1 in (last, last + 1)  # one more may have been written but not yet told
        for line in path.read_text().splitlines():
            json.loads(line)


def run_trials(path: Path, worker: int) -> None:
    study = open_study(path)
    for number in range(50):
        if number % 2:
            study.add_trial(finished(1000 * worker + number))
        else:
            study.tell(study.ask({"op": CHOICES}), 1000 * worker + number)


def test_concurrent_writers_lose_nothing(path):
    open_study(path)
    writers = [processes.Process(target=run_trials, args=(path, worker)) for worker in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    trials = open_study(path).trials
    assert sorted(t.value for t in trials) == [1000 * worker + n for worker in (0, 1) for n in range(50)]
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert [t.number for t in trials] == list(range(100))


def test_of_two_ends_told_at_the_same_moment_the_first_counts(path, monkeypatch):
    """Each has seen the trial running when it writes."""
    study = open_study(path)
    study.ask({"op": CHOICES})
    one, two = journal_storage(path), journal_storage(path)
    first, second = finished(0.25), finished(0.75)
    append, told = one._backend.append_logs, []

    def late(logs):
        told.append(two.finish_trial(0, 0, first))
        append(logs)

    monkeypatch.setattr(one._backend, "append_logs", late)
    assert one.finish_trial(0, 0, second) is False and told == [True]
    assert values(path) == [0.25]
    monkeypatch.undo()
    size = path.stat().st_size
    assert one.finish_trial(0, 0, first) is True  # told again, as after a doubtful first time
    assert one.finish_trial(0, 0, second) is False
    assert path.stat().st_size == size


# -- writers that are stopped ---------------------------------------------------------------------------


def stop_while_writing(path: Path, told: Connection) -> None:
    backend = SafeJournalBackend(path)
    write = os.write

    def half(descriptor, data):
        os.write = write
        written = write(descriptor, bytes(data[:20]))
        told.send_bytes(b"half")
        os.kill(os.getpid(), signal.SIGSTOP)
        return written

    os.write = half
    backend.append_logs([record(7)])
    told.send_bytes(b"whole")
    assert told.recv_bytes() == b"go on"
    backend.append_logs([record(8)])


def state(process):
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def until(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def stopped(path):
    """A process that was stopped with half of a record written, and the end of a pipe to it."""
    if not Path("/proc/locks").exists():
        pytest.skip("the system does not tell who has a lock")
    SafeJournalBackend(path).append_logs([record(0)])
    told, teller = processes.Pipe()
    writer = processes.Process(target=stop_while_writing, args=(path, teller))
    writer.start()
    assert told.recv_bytes() == b"half"
    until(lambda: state(writer) == "T")
    yield writer, told
    writer.kill()
    writer.join()


def test_a_writer_that_was_stopped_finishes_what_it_writes_and_is_stopped_again(path, stopped, caplog):
    writer, told = stopped
    backend = SafeJournalBackend(path)
    start = time.monotonic()
    backend.append_logs([record(1)])
    assert time.monotonic() - start < 30
    assert numbers(path) == [0, 7, 1] and not path.with_name("study.log.torn").exists()
    assert f"process {writer.pid} was stopped while it was writing" in caplog.text
    until(lambda: state(writer) == "T")
    backend.append_logs([record(2)])
    os.kill(writer.pid, signal.SIGCONT)
    assert told.recv_bytes() == b"whole"
    told.send_bytes(b"go on")
    writer.join(30)
    assert writer.exitcode == 0
    assert numbers(path) == [0, 7, 1, 2, 8]


def test_many_wait_for_a_writer_that_was_stopped(path, stopped):
    threads = [
        threading.Thread(target=SafeJournalBackend(path).append_logs, args=([record(number)],))
        for number in range(1, 6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(path)[:2] == [0, 7] and sorted(numbers(path)) == [0, 1, 2, 3, 4, 5, 7]
    until(lambda: state(stopped[0]) == "T")


def test_whoever_has_the_lock_for_too_long_is_named(path, stopped):
    with pytest.raises(ConfigError, match=f"locked by process {stopped[0].pid} for 0.05 s"):
        KernelLock(str(path), patience_s=0.05).acquire()


def test_nobody_is_woken_who_has_not_the_lock_or_is_not_stopped(path, stopped):
    writer, told = stopped
    path.with_name("other").touch()
    with path.with_name("other").open("rb") as file:
        assert holders(file.fileno()) == [] and wake(file.fileno()) is None
    with path.open("rb") as file:
        assert holders(file.fileno()) == [writer.pid]
        os.kill(writer.pid, signal.SIGCONT)
        assert told.recv_bytes() == b"whole"
        assert holders(file.fileno()) == [] and wake(file.fileno()) is None
    lock = KernelLock(str(path))
    lock.acquire()
    with path.open("rb") as file:
        assert wake(file.fileno()) is None
    lock.release()


# -- journals that are replaced -------------------------------------------------------------------------


def test_a_journal_that_was_replaced_by_a_longer_one_is_noticed(path):
    backend = SafeJournalBackend(path)
    backend.append_logs([record(0), record(1)])
    assert len(list(backend.read_logs(0))) == 2
    other = path.with_name("other.log")
    SafeJournalBackend(other).append_logs([record(10 + n) for n in range(20)])
    before = other.read_bytes()
    other.replace(path)
    for use in (lambda: list(backend.read_logs(2)), lambda: backend.append_logs([record(2)])):
        with pytest.raises(ConfigError, match=r"cut or replaced while in use; start this process again"):
            use()
    assert path.read_bytes() == before


def test_whoever_waits_while_a_journal_is_replaced_writes_to_the_new_one(path, monkeypatch):
    backend = SafeJournalBackend(path)
    backend.append_logs([record(0)])
    lock = KernelLock(str(path))
    lock.acquire()
    waits, try_lock = threading.Event(), kernel_lock._try_lock

    def trying(descriptor):
        locked = try_lock(descriptor)
        if not locked:
            waits.set()
        return locked

    monkeypatch.setattr(kernel_lock, "_try_lock", trying)
    writer = threading.Thread(target=backend.append_logs, args=([record(1)],))
    writer.start()
    assert waits.wait(120)
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    second = KernelLock(str(path), patience_s=0.05)
    second.acquire()  # of the new file
    lock.release()
    writer.join(0.2)
    assert writer.is_alive() and numbers(path) == [0]
    second.release()
    writer.join()
    assert numbers(path) == [0, 1]
