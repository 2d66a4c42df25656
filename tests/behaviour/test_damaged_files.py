"""Files of a run that are cut, garbled or exchanged: named before they are used, and never executed."""

import json
import pickle
import shutil
import struct
import warnings

import pytest
from using import TINY, Attack, Told, begun, in_time, nas_command, refused, rewrite_manifest

import nas

LONGER = TINY | {"epochs": 2, "retrain": {"epochs": 3}}
READ = ("architecture.json", "metrics.json", "run.json", "model.safetensors", "baselines.json")
"""What a result is read from; the other files are for people."""


def _flip(content):
    place = 2 * len(content) // 3
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


DAMAGE = {
    "cut in half": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "garbled": lambda content: bytes(range(256)) * 4,
    "a flipped bit": _flip,
    "appended to": lambda content: content + b"\n",
    "a pickle": lambda content: pickle.dumps(["something"]),
}


@pytest.fixture
def heard(caplog):
    """Everything that is warned of, whatever the channel."""

    def hear(call):
        caplog.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        return caplog.text + "\n".join(str(warning.message) for warning in caught)

    return hear


@pytest.mark.parametrize("name", [*READ, "config.toml", "architecture.graphml", "report.html", "model.onnx"])
def test_a_damaged_file_is_named_by_check_and_not_used_in_silence(copied, heard, name):
    folder = copied("evolution")
    whole = (folder / name).read_bytes()
    assert nas_command("check", folder).code == 0
    assert not heard(lambda: nas.load_result(folder))
    for how, damage in DAMAGE.items():
        (folder / name).write_bytes(damage(whole))
        said = nas_command("check", folder)
        assert said.code == 2, how
        assert name in said.err, how
        if name in READ:
            refused(lambda: nas.load_result(folder), name)
        else:
            assert name in heard(lambda: nas.load_result(folder)), how
    (folder / name).unlink()
    assert name in nas_command("check", folder).err


def test_a_damaged_list_of_checksums_is_no_licence(copied):
    folder = copied("evolution")
    whole = (folder / "manifest.json").read_bytes()
    for how, damage in DAMAGE.items():
        if how == "appended to":  # a line end, which says nothing
            continue
        (folder / "manifest.json").write_bytes(damage(whole))
        assert nas_command("check", folder).code == 2, how
        if how != "a flipped bit":  # which may be in the checksum of a file that nothing is read from
            refused(lambda: nas.load_result(folder), folder)
    for entries in ({}, {"files": 3}, {"files": {"metrics.json": "?"}}, {"files": {"/etc/passwd": {}}}):
        (folder / "manifest.json").write_text(json.dumps(entries))
        assert nas_command("check", folder).code == 2, entries


@pytest.mark.parametrize(
    "command",
    ["predict", "report", "export", "draw", "serve", "retrain"],
)
def test_no_command_works_with_a_damaged_model_or_architecture(copied, tmp_path, command):
    folder = copied("evolution")
    more = {
        "predict": ["--npz", folder / "none.npz"],
        "report": ["--out", tmp_path / "page.html"],
        "draw": ["--out", tmp_path / "pictures"],
        "retrain": ["--task", "digits", "--out", tmp_path / "again"],
    }
    name = "model.safetensors" if command in ("predict", "export") else "architecture.json"
    name = "model.onnx" if command == "serve" else name
    (folder / name).write_bytes(_flip((folder / name).read_bytes()))
    before = sorted(tmp_path.rglob("*"))
    said = nas_command(command, folder, *more.get(command, []))
    assert said.code == 2
    assert name in said.err
    assert sorted(tmp_path.rglob("*")) == before


HOSTILE = {
    "NaN": b'"more": NaN',
    "infinity": b'"more": -Infinity',
    "beyond floats": b'"more": 1e999',
    "a huge number": b'"more": 1' + b"0" * 5_000,
    "a key twice": b'"more": 1, "more": 1',
    "deep": b'"more": ' + b"[" * 100_000 + b"]" * 100_000,
    "huge": b'"more": "' + b"1" * 20_000_000 + b'"',
    "no UTF-8": b'"more": "\xff\xfe"',
    "half": b'"more": [1, ',
}
"""What a record may not hold, beside all that it should."""


@pytest.mark.parametrize("name", ["architecture.json", "metrics.json", "run.json"])
def test_json_that_is_not_strict_is_refused_though_its_checksum_is_right(copied, name):
    folder = copied("spos")
    whole = (folder / name).read_bytes()
    for how, content in HOSTILE.items():
        (folder / name).write_bytes(whole.rstrip()[:-1] + b"," + content + b"}")
        rewrite_manifest(folder)
        refused(lambda: nas.load_result(folder), name)
        with in_time():
            assert nas_command("report", folder, "--out", folder / "page.html").code == 2, how
    for content in (b"", b"[]", b"1", b'"format"', b"null", b"{"):
        (folder / name).write_bytes(content)
        rewrite_manifest(folder)
        refused(lambda: nas.load_result(folder), name)
    assert not (folder / "page.html").exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("metrics.json", lambda told: told | {"test_acc": "high"}),
        ("architecture.json", lambda told: told | {"choices": {}}),
        ("architecture.json", lambda told: told | {"choices": dict.fromkeys(told["choices"], "teleport")}),
        ("architecture.json", lambda told: told | {"settings": {"width": 10**9}}),
        ("architecture.json", lambda told: told | {"space": "nowhere"}),
        ("run.json", lambda told: {k: v for k, v in told.items() if k != "task"}),
        ("run.json", lambda told: told | {"config": 3}),
    ],
)
def test_a_record_that_says_something_impossible_is_refused_in_words(copied, name, change):
    folder = copied("spos")
    told = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(change(told)))
    rewrite_manifest(folder)
    refused(lambda: nas.load_result(folder))


@pytest.mark.parametrize("name", ["run.json", "architecture.json"])
def test_a_newer_format_asks_for_a_newer_engine(copied, name):
    folder = copied("spos")
    told = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(told | {"format": told["format"] + 1}))
    rewrite_manifest(folder)
    refused(lambda: nas.load_result(folder), folder, "version")


def test_pickles_are_never_loaded_whatever_the_file_is_called(copied, tmp_path):
    folder = copied("darts")
    attack = pickle.dumps(Attack(tmp_path / "ran"))
    for name in ("model.safetensors", "architecture.json", "run.json", "metrics.json", "alphas.npz"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(attack)
        rewrite_manifest(folder)
        if name == "alphas.npz":
            nas_command("report", folder, "--out", tmp_path / "page.html")
        else:
            refused(lambda: nas.load_result(folder), name)
        (folder / name).write_bytes(whole)
    unfinished = begun(tmp_path / "run", units=2, asks=2, settings=LONGER)
    for path in (unfinished / "checkpoint").rglob("*.*"):
        path.write_bytes(attack)
    nas.search("toy", "digits", "evolution", out=unfinished, settings=LONGER)
    assert not (tmp_path / "ran").exists()


def test_weights_that_promise_too_much_or_fit_another_network_are_refused(copied, runs):
    folder = copied("evolution")
    whole = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    first = next(name for name in header if name != "__metadata__")
    header[first]["shape"] = [2**40, 2**20]
    changed = json.dumps(header).encode()
    lies = struct.pack("<Q", len(changed)) + changed + whole[8 + size :]
    other = (runs("spos") / "model.safetensors").read_bytes()
    for content in (lies, struct.pack("<Q", 2**60) + whole[8:], other):
        (folder / "model.safetensors").write_bytes(content)
        rewrite_manifest(folder)
        refused(lambda: nas.load_result(folder))


def test_extreme_numbers_in_a_record_are_shown_or_refused_in_words(copied):
    folder = copied("spos")
    told = json.loads((folder / "metrics.json").read_text())
    extreme = dict.fromkeys(told, 1e300) | {"params": -1e300, "test_acc": 1e-300}
    (folder / "metrics.json").write_text(json.dumps(extreme))
    rewrite_manifest(folder)
    assert nas_command("report", folder, "--out", folder / "page.html").code in (0, 2)
    assert len(repr(nas.load_result(folder))) < 1000


def test_a_link_that_leads_out_of_the_folder_is_not_followed(copied, tmp_path):
    folder = copied("spos")
    (tmp_path / "secret.json").write_bytes((folder / "metrics.json").read_bytes())
    (folder / "metrics.json").unlink()
    (folder / "metrics.json").symlink_to(tmp_path / "secret.json")
    refused(lambda: nas.load_result(folder), "metrics.json")


# -- folders of something else -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small finished search; nobody may change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    nas.search("toy", "digits", "evolution", out=folder, settings=LONGER)
    return folder


@pytest.mark.parametrize(
    ("space", "method", "change", "named"),
    [
        ("toy", "random", {}, "method"),
        ("nasbench201", "evolution", {}, "space"),
        ("toy", "evolution", {"epochs": 3}, "epochs"),
        ("toy", "evolution", {"seed": 1}, "seed"),
        ("toy", "evolution", {"trials": 3}, "trials"),
        ("toy", "evolution", {"retrain": {"epochs": 3, "lr": 0.01}}, "retrain.lr"),
        ("toy", "evolution", {"space_settings": {"width": 4}}, "space_settings"),
        ("toy", "evolution", {"constraint": ["params<=5e4"]}, "constraint"),
        ("toy", "evolution", {"searcher": {"population": 3}}, "searcher"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_folder_of_other_settings_is_refused_and_they_are_named(finished, space, method, change, named):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != "run.lock"}
    settings = LONGER | change
    words = refused(lambda: nas.search(space, "digits", method, out=finished, settings=settings), named)
    assert str(finished) in words
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != "run.lock"}
    assert after == before


def test_a_folder_of_another_kind_or_other_data_is_refused(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    refused(lambda: nas.retrain(finished, "digits", out=folder, settings={"export": False}), folder)
    refused(lambda: nas.calibrate("toy", "digits", out=folder), folder)
    again = nas.load_task("digits", seed=1)
    refused(lambda: nas.search("toy", again, "evolution", out=folder, settings=LONGER), "digits")
    assert nas_command("check", folder).code == 0


def test_where_it_may_differ_a_finished_run_is_given_back_untouched(finished):
    stamp = (finished / "model.safetensors").stat().st_mtime_ns
    result = nas.search("toy", "digits", "evolution", out=finished, settings=LONGER | {"max_failures": 3})
    assert result.metrics == nas.load_result(finished).metrics
    assert (finished / "model.safetensors").stat().st_mtime_ns == stamp


# -- runs that are under way -------------------------------------------------------------------------------


@pytest.fixture
def same(finished):
    """Asserts that a run, gone on with, ends as the undisturbed one did."""

    def check(folder):
        result = nas.search("toy", "digits", "evolution", out=folder, settings=LONGER)
        assert [t.genotype for t in result.history] == [t.genotype for t in nas.load_result(finished).history]
        model = "model.safetensors"
        assert (folder / model).read_bytes() == (finished / model).read_bytes()
        assert nas_command("check", folder).code == 0

    return check


@pytest.mark.parametrize(
    ("how", "units"), [("cut in half", 1), ("a flipped bit", 2), ("garbled", 2), ("gone", 1)]
)
def test_damaged_checkpoints_cost_time_and_nothing_else(tmp_path, same, how, units):
    folder = begun(tmp_path / "run", units=units, asks=2, settings=LONGER)
    found = [path for path in (folder / "checkpoint").rglob("*") if path.is_file()]
    assert found
    for path in found:
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(DAMAGE[how](path.read_bytes()))
    same(folder)


def test_a_torn_last_line_of_the_history_is_made_up_for(tmp_path, same):
    folder = begun(tmp_path / "run", units=1, settings=LONGER)
    journal = folder / "study.log"
    journal.write_bytes(journal.read_bytes()[:-7])
    same(folder)


def test_damage_within_the_history_is_named(tmp_path):
    folder = begun(tmp_path / "run", units=2, settings=LONGER)
    lines = (folder / "study.log").read_bytes().splitlines(keepends=True)
    lines[len(lines) // 2] = b"\0" * len(lines[len(lines) // 2])
    (folder / "study.log").write_bytes(b"".join(lines))
    call = lambda: nas.search("toy", "digits", "evolution", out=folder, settings=LONGER)  # noqa: E731
    refused(call, "study.log")


def test_what_a_killed_process_left_half_written_is_gone_on_with(tmp_path, same, finished):
    folder = shutil.copytree(finished, tmp_path / "run")
    for name in ("manifest.json", "metrics.json", "architecture.json", "architecture.graphml", "config.toml"):
        (folder / name).unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    refused(lambda: nas.load_result(folder), folder)
    same(folder)


def test_nothing_is_trained_again_where_only_the_last_files_are_missing(tmp_path, finished):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "manifest.json").unlink()
    told = Told()
    nas.search("toy", "digits", "evolution", out=folder, settings=LONGER, progress=told)
    assert "search" not in {name for name, _ in told.done}
