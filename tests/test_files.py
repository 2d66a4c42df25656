"""Files are whole or not at all on the disk, folders have one owner, and damage is found."""

import errno
import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from nas.errors import ConfigError
from nas.files.atomic import TEMPORARY, read_json, sha256, write_bytes, write_json, write_text
from nas.files.folder import (
    alone_in,
    check_manifest,
    folder_lock,
    prepare_folder,
    update_manifest,
    write_manifest,
)

processes = multiprocessing.get_context("forkserver")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failing_system_call_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match=r"/a: No space left on device; free some space on /"):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_content_is_on_the_disk_before_its_name_and_the_name_before_it_counts(tmp_path, monkeypatch):
    """What a power loss leaves cannot be seen in a test; the order of the calls can."""
    calls = []

    def noted(call, real):
        def noting(what, *arguments):
            path = Path(f"/proc/self/fd/{what}").readlink() if call == "fsync" else Path(what)
            calls.append((call, "temporary" if path.name.startswith(TEMPORARY) else path.name))
            return real(what, *arguments)

        return noting

    for call in ("fsync", "replace"):
        monkeypatch.setattr(os, call, noted(call, getattr(os, call)))
    write_bytes(tmp_path / "a", b"new")
    assert calls == [("fsync", "temporary"), ("replace", "temporary"), ("fsync", tmp_path.name)]


def test_json_round_trip_keeps_order(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"é": "\n"}}
    write_json(tmp_path / "a.json", value)
    assert list(read_json(tmp_path / "a.json")) == ["b", "a"]
    assert read_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError, match=r"b\.json"):
        write_json(tmp_path / "b.json", {"a": [-float("inf")]})
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{\n "a": 1,\n "b" 2}', "line 3 column 6"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice"),
        (b'["\xff"]', "position 2"),
        (b"[" * 101 + b"]" * 101, "nested too deeply"),
        (b'"' + b"a" * 2000 + b'"', "more than the 1,000 bytes"),
    ],
)
def test_broken_json_is_refused_with_its_place(tmp_path, data, message):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"a\.json") as caught:
        read_json(path, max_bytes=1000 if b"aaa" in data else 1 << 20)
    assert message in str(caught.value)


def result_folder(folder):
    for name in ("model.bin", "plots/a.svg", "checkpoint/step-1", "study.log", "study.log.torn", "run.lock"):
        write_bytes(prepare_folder((folder / name).parent) / Path(name).name, name.encode())
    (folder / ".tmp-0123.svg").write_text("unfinished")
    (folder / "link").symlink_to("model.bin")


def test_the_manifest_lists_results_only_and_finds_what_is_changed_or_missing(tmp_path):
    result_folder(tmp_path)
    write_manifest(tmp_path)
    write_manifest(tmp_path)
    listed = read_json(tmp_path / "manifest.json")["files"]
    assert list(listed) == ["model.bin", "plots/a.svg", "study.log"]
    assert listed["model.bin"] == {"sha256": sha256(tmp_path / "model.bin"), "bytes": 9}
    assert check_manifest(tmp_path) == []
    data = bytearray((tmp_path / "model.bin").read_bytes())
    data[3] ^= 1
    (tmp_path / "model.bin").write_bytes(data)
    (tmp_path / "plots/a.svg").unlink()
    changed = "model.bin: differs from what was recorded"
    assert check_manifest(tmp_path) == [changed, "plots/a.svg: missing"]
    update_manifest(tmp_path, ["plots/a.svg"])
    assert check_manifest(tmp_path) == [changed]
    update_manifest(tmp_path, ["model.bin"])
    assert check_manifest(tmp_path) == []


def test_prepare_folder_makes_parents_takes_what_exists_and_leaves_nothing(tmp_path, monkeypatch):
    for maker in ("mkstemp", "NamedTemporaryFile"):  # of which a killed process would leave a file
        monkeypatch.setattr(tempfile, maker, lambda *_, **__: pytest.fail("a file with a name"))
    monkeypatch.chdir(tmp_path)
    made = prepare_folder(Path("results/größe 1"))
    assert made == tmp_path.resolve() / "results/größe 1"
    write_text(made / "kept", "x")
    assert prepare_folder(made) == made
    assert names(made) == ["kept"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\ud800", "cannot be printed"),
        ("é" * 128, "File name too long"),
        ("file/below", "file' is a file"),
        ("loop/below", "leads nowhere"),
        ("dangling", "leads nowhere"),
    ],
)
def test_prepare_folder_says_what_is_in_the_way(tmp_path, name, message):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=message):
        prepare_folder(tmp_path / name)


# -- owners ----------------------------------------------------------------------------------------------


def hold_lock(folder: Path, told: Connection) -> None:
    with folder_lock(folder):
        if os.fork() == 0:
            told.send(os.getpid())
        time.sleep(60)


def test_the_lock_of_a_folder_names_its_owner_and_dies_with_it_although_a_child_lives(tmp_path):
    told, teller = processes.Pipe(duplex=False)
    owner = processes.Process(target=hold_lock, args=(tmp_path, teller))
    owner.start()
    try:
        assert told.poll(120)
        pid = told.recv()
        words = rf"in use by pid {owner.pid} on host {socket.gethostname()}"
        with pytest.raises(ConfigError, match=words), folder_lock(tmp_path):
            pass
        owner.kill()
        owner.join()
        os.kill(pid, 0)
        with folder_lock(tmp_path):
            assert read_json(tmp_path / "run.lock")["pid"] == os.getpid()
    finally:
        owner.kill()
        os.kill(pid, 9)


def test_the_lock_of_a_folder_is_exclusive_within_a_process_and_given_back(tmp_path):
    for _ in range(2):
        with folder_lock(tmp_path), pytest.raises(ConfigError, match=f"pid {os.getpid()} "):
            folder_lock(tmp_path).__enter__()


def work_alone(folder: Path, told: Connection) -> None:
    with alone_in(folder):
        told.send("in")
        time.sleep(0.1)
        shutil.rmtree(folder)


def test_whoever_waits_for_a_folder_that_is_removed_in_the_end_makes_it_again(tmp_path):
    told, teller = processes.Pipe(duplex=False)
    first = processes.Process(target=work_alone, args=(tmp_path / "trial-1", teller))
    first.start()
    assert told.poll(120)
    with alone_in(tmp_path / "trial-1"):
        assert names(tmp_path / "trial-1") == ["lock"]
    first.join()
    assert first.exitcode == 0
