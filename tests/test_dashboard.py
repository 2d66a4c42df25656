"""The live view over HTTP: the report follows the run, Optuna shows its trials, nothing can be changed."""

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
from nas.cli import app
from nas.cli import dashboard as command
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


class Page:
    """A served view, and what it answers."""

    def __init__(self, view):
        self.stopped, self.urls, begun = False, [], threading.Event()

        def ready(url):
            self.urls.append(url)
            begun.set()

        work = {"ready": ready, "stop": lambda: self.stopped}
        self.thread = threading.Thread(target=serve, args=(view, "127.0.0.1", 0), kwargs=work)
        self.thread.start()
        assert begun.wait(60)
        self.port = int(self.urls[0].split(":")[2].strip("/"))

    def get(self, path, method="GET", host="127.0.0.1"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, headers={"Host": f"{host}:{self.port}"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def close(self):
        self.stopped = True
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def drawn():
    return []


@pytest.fixture(scope="module")
def page(run, drawn):
    def render(folder):
        drawn.append(folder)
        return f"<p>report {len(drawn)} of {folder.name}"

    found = Page(Live(run, render))
    yield found
    found.close()


def test_the_report_is_drawn_anew_when_the_run_has_changed(page, run, drawn):
    status, shell = page.get("/")
    assert status == 200 and 'src="/report"' in shell
    first = json.loads(page.get("/state")[1])
    assert first["run"] == "run"
    assert page.get("/report")[1] == page.get("/report")[1] == f"<p>report {len(drawn)} of run"
    before = len(drawn)
    (run / "metrics.json").write_text("{}")
    assert json.loads(page.get("/state")[1])["state"] != first["state"]
    assert page.get("/report")[1] == f"<p>report {before + 1} of run"
    (run / "metrics.json").unlink()


def test_the_trials_are_shown_in_optunas_dashboard(page):
    pytest.importorskip("optuna_dashboard", reason="needs the extra dashboard")
    status, text = page.get("/dashboard")
    assert status == 200 and "<script" in text
    (study,) = json.loads(page.get("/api/studies")[1])["study_summaries"]
    assert study["study_name"] == "search"
    trials = json.loads(page.get(f"/api/studies/{study['study_id']}")[1])["trials"]
    assert [trial["state"] for trial in trials][:2] == ["Complete", "Complete"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(page, method):
    assert page.get("/api/studies/0", method)[0] == 405


def test_pages_of_other_sites_are_refused(page):
    assert page.get("/state", host="evil.example")[0] == 403
    assert page.get("/state", host="localhost")[0] == 200


def test_a_run_without_trials_says_so_and_a_folder_that_goes_is_no_traceback(tmp_path):
    (tmp_path / "run").mkdir()
    page = Page(Live(tmp_path / "run", lambda _: "report"))
    try:
        assert page.get("/dashboard")[0] == 503 and "no trials yet" in page.get("/dashboard")[1]
        (tmp_path / "run").rmdir()
        assert page.get("/state")[0] == 503
    finally:
        page.close()


def test_a_port_in_use_is_said(page, run):
    with pytest.raises(ConfigError, match="choose another --port"):
        serve(Live(run, str), "127.0.0.1", page.port, ready=lambda _: None, stop=lambda: True)


def test_a_folder_without_a_run_and_a_missing_package_are_said(run, tmp_path, monkeypatch):
    missing = CliRunner().invoke(app, ["dashboard", str(tmp_path / "nowhere")])
    assert missing.exit_code == 2 and "holds no run" in missing.output
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    bare = CliRunner().invoke(app, ["dashboard", str(run)])
    assert bare.exit_code == 2 and "pip install 'nas-engine[dashboard]'" in bare.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_the_report_until_it_is_asked_to_stop(run, number, monkeypatch):
    pytest.importorskip("optuna_dashboard", reason="needs the extra dashboard")
    pytest.importorskip("nas.show.report.page", reason="needs the report")
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
    served = []
    monkeypatch.setattr("nas.show.dashboard.serve", lambda live, host, port, **_: served.append(live.local))
    monkeypatch.setattr(command, "_renderer", lambda space: str)
    open_to_all = CliRunner().invoke(app, ["dashboard", str(run), "--host", "0.0.0.0"])
    assert "WARNING" in open_to_all.output and "password" in open_to_all.output
    assert "WARNING" not in CliRunner().invoke(app, ["dashboard", str(run)]).output
    assert served == [False, True]
