"""Progress as people see it."""

import io

import pytest
from jobs import SMALL
from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

import nas
from nas.errors import ConfigError
from nas.show.progress import LiveProgress, PlainProgress, reporter, telling


def test_plain_lines_count_from_where_a_resumed_phase_begins(capsys):
    progress = PlainProgress()
    progress.note("two\nlines")
    progress.phase("search", 4, done=2)
    progress.advance("trial 2")
    progress.advance("trial 3")
    progress.phase("retrain", 60)
    progress.advance("epoch 31", done=31)
    progress.phase("random search", None, done=2)
    progress.advance("trial 2")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "two lines"
    begins = "search 3/4  trial 2  (", "search 4/4  trial 3  (0 s left)", "retrain 31/60  epoch 31  ("
    assert all(line.startswith(begin) for line, begin in zip(lines[1:4], begins, strict=True))
    assert lines[4] == "random search 3  trial 2"


def test_a_terminal_gets_a_bar_and_what_names_hold_is_not_markup():
    out = io.StringIO()
    bar = Bar(TextColumn("{task.description}"), MofNCompleteColumn(), console=Console(file=out, width=100))
    with bar:
        progress = LiveProgress(bar)
        progress.phase("search", 2)
        progress.advance("trial [bold]0[/bold]")
        progress.phase("retrain", 60)
        progress.advance("epoch 31", done=31)
        progress.note("done [red]")
        (task,) = bar.tasks
        assert (task.description, task.completed, task.total) == ("retrain", 31, 60)
        progress.phase("random search", None)
        progress.advance("trial 0")
    text = out.getvalue()
    assert "trial [bold]0[/bold]" in text and "done [red]" in text and "1/?" in text


@pytest.mark.parametrize(
    ("terminal", "settings", "kind"),
    [(True, {}, LiveProgress), (True, {"plain": True}, PlainProgress), (False, {}, PlainProgress)],
)
def test_where_lines_go_decides_how_they_look(terminal, settings, kind, monkeypatch):
    made = Console(file=io.StringIO(), force_terminal=terminal)
    monkeypatch.setattr("nas.show.progress.Console", lambda **_: made)
    with reporter(**settings) as progress:
        assert isinstance(progress, kind)


def test_quiet_says_warnings_alone(capsys):
    with reporter(quiet=True) as progress:
        progress.phase("search", 2)
        progress.advance("trial 0")
        progress.note("space toy: 3 decisions")
        progress.note("WARNING: the network is no better than guessing")
    assert capsys.readouterr().err == "WARNING: the network is no better than guessing\n"


class Own:
    """A user's progress."""

    phase = advance = note = staticmethod(print)


def test_a_caller_in_python_may_ask_for_progress(capsys, monkeypatch):
    for wanted, said in ((None, ""), (False, ""), (True, "hello\n")):
        with telling(wanted) as progress:
            progress.note("hello")
        assert capsys.readouterr().err == said
    own = Own()
    with telling(own) as progress:
        assert progress is own
    monkeypatch.setattr("nas.show.progress.follows", lambda: True)  # another rank speaks
    with telling(progress=True) as progress:
        progress.note("hello")
    assert capsys.readouterr().err == ""


def test_what_is_no_progress_is_named():
    for wanted in ("console", Own.note):
        with pytest.raises(ConfigError, match="progress"), telling(wanted):
            pass


def test_public_functions_tell_when_asked(tmp_path, capsys):
    result = nas.search("toy", "digits", "random", out=tmp_path / "a", settings=SMALL, progress=True)
    assert "search 3/3  trial 2" in capsys.readouterr().err
    nas.search("toy", "digits", "random", out=tmp_path / "a", settings=SMALL)
    assert capsys.readouterr().err == ""
    config = nas.make_config({**SMALL, "space": "toy", "task": "digits", "method": "random"})
    nas.run_job(config, out=tmp_path / "a", progress=True)
    assert "holds this run already, finished" in capsys.readouterr().err
    settings = {"retrain": {"epochs": 1}}
    nas.retrain(result.folder, "digits", out=tmp_path / "b", settings=settings, progress=True)
    assert "retrain 1/1" in capsys.readouterr().err
