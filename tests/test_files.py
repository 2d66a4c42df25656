import errno
import json
import multiprocessing
import os
import shutil
import socket
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import ConfigError
from nas.files.atomic import (
    TEMPORARY,
    prepare_folder,
    read_json,
    replacing,
    sha256,
    write_bytes,
    write_json,
    write_text,
)
from nas.files.lock import FolderLock
from nas.files.manifest import check_manifest, write_manifest

processes = multiprocessing.get_context("forkserver")


@pytest.fixture
def full_disk(monkeypatch):
    """Every write takes three bytes and then finds the disk full."""
    write = os.write

    def fail(descriptor, data):
        if len(data) <= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, bytes(data[:3]))

    monkeypatch.setattr(os, "write", fail)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert names(tmp_path) == ["a.txt"]


def test_write_continues_after_a_short_write(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:7])))
    write_bytes(tmp_path / "a", bytes(range(100)))
    assert (tmp_path / "a").read_bytes() == bytes(range(100))


def test_written_files_have_the_usual_permissions(tmp_path):
    write_bytes(tmp_path / "ours", b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_full_disk_keeps_the_old_file_and_names_it(tmp_path, request):
    path = tmp_path / "model.bin"
    write_bytes(path, b"the old content")
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match=r"model\.bin: No space left on device; free some space on /"):
        write_bytes(path, b"the new content")
    assert path.read_bytes() == b"the old content"
    assert names(tmp_path) == ["model.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failing_system_call_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output"):
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


def test_replacing_keeps_the_suffix_and_the_old_file_on_failure(tmp_path):
    path = tmp_path / "cell.svg"
    with replacing(path) as temporary:
        assert (temporary.suffix, temporary.parent) == (".svg", tmp_path)
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="boom"), replacing(path) as temporary:
        temporary.write_text("two")
        raise RuntimeError("boom")
    assert path.read_text() == "one"
    assert names(tmp_path) == ["cell.svg"]


def test_json_round_trip_keeps_order(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"é": "\n"}}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert list(read_json(tmp_path / "a.json")) == ["b", "a"]
    assert read_json(tmp_path / "a.json") == value
    assert text.startswith('{\n  "b"')
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_json_refuses_to_write_what_is_no_number(tmp_path, value):
    with pytest.raises(ValueError, match=r"a\.json"):
        write_json(tmp_path / "a.json", value)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1 column 1"),
        (b'{\n "a": 1,\n "b" 2}', "line 3 column 6"),
        (b'{"a": NaN}', "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "1e999"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice"),
        (b'["\xff"]', "position 2"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'"' + b"a" * 2000 + b'"', "more than the 1000 bytes"),
    ],
)
def test_broken_json_is_refused_with_its_place(tmp_path, data, message):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"a\.json") as caught:
        read_json(path, max_bytes=1000 if b"aaa" in data else 1 << 20)
    assert message in str(caught.value)


def test_byte_order_mark_and_crlf_are_accepted(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{\r\n"a": 1}\r\n')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_unreadable_json_names_the_path(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for name, message in [
        ("none.json", "No such file"),
        (".", "not a regular"),
        ("pipe.json", "not a regular"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_json(tmp_path / name)


@settings(deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_json_or_a_clear_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_bytes(data)
    try:
        value = read_json(path)
    except ConfigError:
        return
    json.dumps(value, allow_nan=False)


def result_folder(folder):
    for name in ("model.bin", "plots/a.svg", "checkpoint/step-1", "study.log", "study.log.torn", "run.lock"):
        write_bytes(prepare_folder((folder / name).parent) / Path(name).name, name.encode())
    (folder / ".tmp-0123.svg").write_text("unfinished")
    (folder / "link").symlink_to("model.bin")


def test_manifest_lists_results_only(tmp_path):
    result_folder(tmp_path)
    write_manifest(tmp_path)
    write_manifest(tmp_path)
    listed = read_json(tmp_path / "manifest.json")["files"]
    assert list(listed) == ["model.bin", "plots/a.svg", "study.log"]
    assert listed["model.bin"] == {"sha256": sha256(tmp_path / "model.bin"), "bytes": 9}
    assert check_manifest(tmp_path) == []


def test_known_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_manifest_takes_no_notice_of_what_others_remove_meanwhile(tmp_path, monkeypatch):
    for name in ("checkpoint/trial-1/step", "figures/old/cell.svg", "model.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    scan = os.scandir

    def late(folder):
        if str(folder).endswith(("trial-1", "old")):
            shutil.rmtree(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", late)
    write_manifest(tmp_path)
    assert list(read_json(tmp_path / "manifest.json")["files"]) == ["model.bin"]


def test_manifest_finds_a_flipped_bit_and_a_missing_file(tmp_path):
    result_folder(tmp_path)
    write_manifest(tmp_path)
    data = bytearray((tmp_path / "model.bin").read_bytes())
    data[3] ^= 1
    (tmp_path / "model.bin").write_bytes(data)
    (tmp_path / "plots/a.svg").unlink()
    assert check_manifest(tmp_path) == [
        "model.bin: differs from what was recorded",
        "plots/a.svg: missing",
    ]


def test_manifest_of_named_files(tmp_path):
    result_folder(tmp_path)
    write_manifest(tmp_path, ["model.bin"])
    assert list(read_json(tmp_path / "manifest.json")["files"]) == ["model.bin"]
    with pytest.raises(ConfigError, match="no such file"):
        write_manifest(tmp_path, ["absent"])


def test_foreign_manifest_is_refused(tmp_path):
    write_json(tmp_path / "manifest.json", {"files": {"../x": {}, "/etc/hosts": {}, "n" * 300: {}}})
    problems = check_manifest(tmp_path)
    assert [line.split(": ")[1] for line in problems] == ["outside the folder"] * 2 + ["File name too long"]
    write_json(tmp_path / "manifest.json", [1])
    with pytest.raises(ConfigError, match="not a manifest"):
        check_manifest(tmp_path)


def test_prepare_folder_makes_parents_and_takes_what_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = prepare_folder(Path("results/größe 1"))
    assert made == tmp_path.resolve() / "results/größe 1"
    write_text(made / "kept", "x")
    assert prepare_folder(made) == made
    assert names(made) == ["kept"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0b", "control character"),
        ("a\nb", "control character"),
        ("n" * 256, "256 bytes"),
        ("é" * 128, "256 bytes"),
        ("a\ud800", "cannot be encoded"),
        ("file", "is a file"),
        ("file/below", "is a file"),
        ("loop", "loop"),
        ("loop/below", "loop"),
        ("dangling", "leads nowhere"),
    ],
)
def test_prepare_folder_says_what_is_in_the_way(tmp_path, name, message):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=message):
        prepare_folder(tmp_path / name)


def test_prepare_folder_really_writes():
    with pytest.raises(ConfigError, match="/proc"):  # not even root can make a file there
        prepare_folder(Path("/proc/self"))


def hold_lock(folder: Path, told: Connection) -> None:
    lock = FolderLock(folder)
    lock.acquire()
    told.send(os.getpid())
    time.sleep(60)


def test_lock_refuses_a_second_process_and_is_free_after_sigkill(tmp_path):
    told, teller = processes.Pipe(duplex=False)
    owner = processes.Process(target=hold_lock, args=(tmp_path, teller))
    owner.start()
    try:
        assert told.poll(120)
        pid = told.recv()
        with pytest.raises(ConfigError, match=rf"in use by pid {pid} on host {socket.gethostname()}"):
            FolderLock(tmp_path).acquire()
    finally:
        owner.kill()
        owner.join()
    with FolderLock(tmp_path):
        assert read_json(tmp_path / "run.lock")["pid"] == os.getpid()


def test_lock_is_exclusive_within_a_process_and_given_back(tmp_path):
    with FolderLock(tmp_path), pytest.raises(ConfigError, match=f"pid {os.getpid()} "):
        FolderLock(tmp_path).acquire()
    lock = FolderLock(tmp_path)
    lock.acquire()
    lock.release()
    lock.release()
    with FolderLock(tmp_path):
        pass


def leave_child_behind(folder: Path, told: Connection) -> None:
    FolderLock(folder).acquire()
    if os.fork() == 0:
        told.send(os.getpid())
        time.sleep(60)
    time.sleep(60)


def test_lock_dies_with_its_owner_although_a_forked_child_lives(tmp_path):
    told, teller = processes.Pipe(duplex=False)
    owner = processes.Process(target=leave_child_behind, args=(tmp_path, teller))
    owner.start()
    assert told.poll(120)
    child = told.recv()
    try:
        with pytest.raises(ConfigError, match="in use"):
            FolderLock(tmp_path).acquire()
        owner.kill()
        owner.join()
        os.kill(child, 0)
        FolderLock(tmp_path).acquire()
    finally:
        owner.kill()
        os.kill(child, 9)


def test_lock_without_its_folder_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot open the lock"):
        FolderLock(tmp_path / "absent").acquire()
