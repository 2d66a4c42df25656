"""Whole jobs that keep their history in a database: resumed, finished, read, the password never shown."""

import json
import logging
import threading

import optuna
import pytest
from jobs import SMALL, options, outcome
from postgres import PASSWORD, QUOTED, postgres
from typer.testing import CliRunner

import nas
from nas.cli import app
from nas.errors import ConfigError
from nas.files.manifest import check_manifest
from nas.files.tomlfile import read_toml, write_toml
from nas.job.calibrate_run import USED
from nas.job.config import make_config
from nas.job.search_run import run
from nas.progress import Silent
from nas.registry import load
from nas.storage.journal import JOURNAL, journal_storage
from nas.storage.run import open_storage
from nas.study import Study
from nas.training.resumable import Stopped

__all__ = ["postgres"]
JOB = {"space": "toy", "task": "digits", "method": "random"}


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("NAS_STORAGE", raising=False)


def search(out, storage=None, **changes):
    settings = SMALL | changes | ({} if storage is None else {"storage": storage})
    return nas.search("toy", "digits", "random", out=out, settings=settings)


def texts(folder):
    return {path: path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file()}


def silent(*said):
    for text in said:
        assert PASSWORD not in text and QUOTED not in text


def test_a_job_in_a_database_is_like_one_in_a_journal(postgres, tmp_path, capfd, caplog, monkeypatch):
    url = postgres.database()
    whole = search(tmp_path / "journal")
    caplog.set_level(logging.DEBUG)
    command = ["search", *options(SMALL | JOB), "--out", str(tmp_path / "run"), "--storage", url]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    silent(done.output, caplog.text, *capfd.readouterr(), *texts(tmp_path / "run").values())

    record = json.loads((tmp_path / "run" / "run.json").read_text())
    masked = f"postgresql+psycopg://searcher:***@{url.rpartition('@')[2]}"
    assert record["config"]["storage"] == read_toml(tmp_path / "run" / "config.toml")["storage"] == masked
    names = [study.study_name for study in open_storage(url).get_all_studies()]
    assert names == [f"{record['run']}/search", f"{record['run']}/rerank"]
    assert record["run"].startswith("run-")

    # A finished run needs no database any more, however its folder is used.
    postgres.stop()
    try:
        assert outcome(nas.load_result(tmp_path / "run")) == outcome(whole)
        monkeypatch.setenv("NAS_STORAGE", url)
        assert "finished" in CliRunner().invoke(app, command[:-2]).output
    finally:
        postgres.start()
    assert not check_manifest(tmp_path / "run")
    assert not (tmp_path / "run" / "parked").exists()


def test_a_stopped_job_goes_on_with_the_password_of_the_environment(tmp_path, postgres, monkeypatch):
    url, out = postgres.database(), tmp_path / "run"
    settings = SMALL | {"storage": url}
    with pytest.raises(Stopped):
        count = iter([False] * 24)
        nas.search("toy", "digits", "random", out=out, settings=settings, stop=lambda: next(count, True))
    space = load("toy", **json.loads((out / "run.json").read_text())["space"]["settings"])
    assert not (out / JOURNAL).exists()
    with pytest.raises(ConfigError, match="NAS_STORAGE"):
        Study.read(out, "search", space)
    with pytest.raises(ConfigError, match=r"storage: 'postgresql.*' in the folder, None now") as caught:
        search(out)
    silent(str(caught.value))
    with pytest.raises(ConfigError, match="NAS_STORAGE"):
        run(make_config(read_toml(out / "config.toml")), out=out)
    monkeypatch.setenv("NAS_STORAGE", url)
    begun = Study.read(out, "search", space)
    result = run(make_config(read_toml(out / "config.toml")), out=out)
    done = [trial for trial in begun if trial.state != "running"]
    assert done and list(result.history[: len(done)]) == done
    assert outcome(result) == outcome(search(tmp_path / "journal"))


def test_two_runs_of_one_name_share_a_database(tmp_path):
    url = f"sqlite:///{tmp_path / 'a.db'}"
    one, two = (search(tmp_path / where / "run", url, trials=2) for where in ("here", "there"))
    assert outcome(one) == outcome(two)
    assert len(open_storage(url).get_all_studies()) == 4


def test_what_cannot_be_connected_to_is_said_before_anything_is_written(tmp_path, capfd):
    url = f"postgresql://me:{QUOTED}@127.0.0.1:1/d"
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["search", *options(SMALL | JOB), "--out", str(out), "--storage", url])
    assert done.exit_code == 2 and "Connection refused" in done.output
    silent(done.output, *capfd.readouterr())
    assert not out.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"storage": f"mysql://me:{QUOTED}@h/d"},
        {"storage": [f"postgresql://me:{QUOTED}@h/d"]},
        {"storage": f"postgresql://me:{QUOTED}@h/d", "trials": -1},
        {"storage": f"postgresql://me:{QUOTED}@h:port/d"},
        {"storge": f"postgresql://me:{QUOTED}@h/d"},
    ],
)
def test_no_message_about_settings_shows_the_password(settings):
    with pytest.raises(ConfigError) as caught:
        make_config(settings)
    silent(str(caught.value), repr(caught.value))


def test_settings_show_the_address_without_its_password():
    config = make_config({"storage": f"postgresql://me:{QUOTED}@h/d", "storage_patience": "10m"})
    silent(repr(config), str(config.model_dump()), write_toml(config.model_dump()))
    assert config.storage_patience == 600 and PASSWORD in config.storage.passwords
    assert config.model_copy(update={"seed": 1}).storage.secret == config.storage.secret
    with pytest.raises(ConfigError, match="storage_patience"):
        make_config({"storage_patience": "-1"})


def test_a_calibration_takes_a_database_and_a_retraining_has_no_use_for_one(tmp_path):
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with pytest.raises(ConfigError, match="storage is set, but a retraining uses only"):
        nas.retrain(
            {"space": "toy", "settings": {}, "choices": {}},
            "digits",
            out=tmp_path / "r",
            settings={"storage": url},
        )
    assert {"storage", "storage_patience"} <= {*USED}


@pytest.mark.parametrize("method", ["darts", "spos"])
def test_other_methods_keep_their_history_in_a_database_too(tmp_path, method):
    settings = {k: v for k, v in SMALL.items() if k != "trials"} | {
        "storage": f"sqlite:///{tmp_path / 'a.db'}"
    }
    settings |= {} if method == "darts" else {"trials": 3}
    result = nas.search("toy", "digits", method, out=tmp_path / "run", settings=settings)
    stored = optuna.load_study(study_name="search", storage=journal_storage(tmp_path / "run" / JOURNAL))
    assert len(stored.trials) == len(result.history) > 0


def test_a_restarting_server_does_not_disturb_a_job(tmp_path, postgres):
    url = postgres.database()
    whole = search(tmp_path / "journal", trials=5)
    timers = []

    class Restarting(Silent):
        def advance(self, text, *, done=None):
            if text.startswith("trial 1:"):
                postgres.stop()
                timers.append(threading.Timer(0.5, postgres.start))
                timers[-1].start()

    settings = SMALL | {"storage": url, "trials": 5}
    result = nas.search(
        "toy", "digits", "random", out=tmp_path / "r", settings=settings, progress=Restarting()
    )
    assert timers and outcome(result) == outcome(whole)
    timers[0].join()
