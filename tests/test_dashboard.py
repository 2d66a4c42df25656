"""The live view over HTTP: the report follows the run, Optuna shows its trials, nothing can be changed."""

import contextlib
import http.client
import json
import os
import signal
import threading
import urllib.request

import pytest
from jobs import SMALL, Recorder
from typer.testing import CliRunner

import nas
from nas.__main__ import app
from nas.errors import ConfigError
from nas.show.dashboard import Live, serve


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A search that was stopped after two of its three trials."""
    folder, recorder = tmp_path_factory.mktemp("live") / "run", Recorder()
    with pytest.raises(nas.Stopped):
        nas.search(
            *("toy", "digits", "random"),
            out=folder,
            settings=SMALL,
            progress=recorder,
            stop=lambda: len(recorder.lines) >= 2,
        )
    return folder


@contextlib.contextmanager
def served(view):
    """What asks a view over HTTP while it is served, and its port."""
    begun, stop, urls = threading.Event(), threading.Event(), []

    def ready(url):
        urls.append(url)
        begun.set()

    work = {"ready": ready, "stop": stop.is_set}
    thread = threading.Thread(target=serve, args=(view, "127.0.0.1", 0), kwargs=work)
    thread.start()
    assert begun.wait(60)
    port = int(urls[0].split(":")[2].strip("/"))

    def get(path, method="GET", host="127.0.0.1"):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request(method, path, headers={"Host": f"{host}:{port}"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    yield get, port
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_the_report_is_drawn_anew_when_the_run_has_changed(run):
    drawn = []

    def render(folder):
        drawn.append(folder)
        return f"<p>report {len(drawn)} of {folder.name}"

    with served(Live(run, render)) as (get, _):
        status, shell = get("/")
        assert status == 200 and 'src="/report"' in shell
        first = json.loads(get("/state")[1])
        assert first["run"] == "run"
        assert get("/report")[1] == get("/report")[1] == "<p>report 1 of run"
        (run / "metrics.json").write_text("{}")
        assert json.loads(get("/state")[1])["state"] != first["state"]
        assert get("/report")[1] == "<p>report 2 of run"
        (run / "metrics.json").unlink()


def test_the_trials_are_shown_in_optunas_dashboard_and_cannot_be_changed(run):
    pytest.importorskip("optuna_dashboard", reason="needs the extra dashboard")
    with served(Live(run, str)) as (get, _):
        status, text = get("/dashboard")
        assert status == 200 and "<script" in text
        (study,) = json.loads(get("/api/studies")[1])["study_summaries"]
        assert study["study_name"] == "search"
        trials = json.loads(get(f"/api/studies/{study['study_id']}")[1])["trials"]
        assert [trial["state"] for trial in trials][:2] == ["Complete", "Complete"]
        for method in ("POST", "PUT", "DELETE"):
            assert get(f"/api/studies/{study['study_id']}", method)[0] == 405


def test_pages_of_other_sites_and_a_port_in_use_are_refused(run):
    with served(Live(run, str)) as (get, port):
        assert get("/state", host="evil.example")[0] == 403
        assert get("/state", host="localhost")[0] == 200
        with pytest.raises(ConfigError, match="choose another --port"):
            serve(Live(run, str), "127.0.0.1", port, ready=lambda _: None, stop=lambda: True)


def test_a_run_without_trials_says_so_and_a_folder_that_goes_is_no_traceback(tmp_path):
    (tmp_path / "run").mkdir()
    with served(Live(tmp_path / "run", lambda _: "report")) as (get, _):
        assert get("/dashboard")[0] == 503 and "no trials yet" in get("/dashboard")[1]
        (tmp_path / "run").rmdir()
        assert get("/state")[0] == 503


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_the_report_until_it_is_asked_to_stop(run, number, monkeypatch):
    pytest.importorskip("optuna_dashboard", reason="needs the extra dashboard")
    seen = []

    def look(url):
        with urllib.request.urlopen(f"{url}report", timeout=60) as answer:
            seen.append(answer.read().decode())
        os.kill(os.getpid(), number)

    monkeypatch.setattr("webbrowser.open", lambda url: threading.Thread(target=look, args=(url,)).start())
    done = CliRunner().invoke(app, ["dashboard", str(run), "--port", "0"])
    assert done.exit_code == 0 and "http://127.0.0.1:" in done.output
    assert "<html" in seen[0]


def test_other_machines_are_let_in_with_a_warning_only(run, monkeypatch):
    pytest.importorskip("optuna_dashboard", reason="needs the extra dashboard")
    seen = []
    monkeypatch.setattr("nas.show.dashboard.serve", lambda live, host, port, **_: seen.append(live.local))
    open_to_all = CliRunner().invoke(app, ["dashboard", str(run), "--host", "0.0.0.0"])
    assert "WARNING" in open_to_all.output and "password" in open_to_all.output
    assert "WARNING" not in CliRunner().invoke(app, ["dashboard", str(run)]).output
    assert seen == [False, True]
