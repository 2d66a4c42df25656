"""Progress as people see it."""

import io

import pytest
from jobs import SMALL
from rich.console import Console

import nas
from nas.errors import ConfigError
from nas.show.console import LiveProgress, PlainProgress, reporter, telling
from nas.show.progress import Wanted
from nas.text import counted


def test_plain_lines_count_from_where_a_resumed_phase_begins(capsys):
    with PlainProgress() as progress:
        progress.note("two\nlines")
        progress.phase("search", 4, done=2)
        progress.advance("trial 2")
        progress.advance("trial 3")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "two lines"
    assert lines[1].startswith("search 3/4  trial 2  (")
    assert lines[2].startswith("search 4/4  trial 3  (0 s left)")


def test_a_terminal_gets_a_bar_and_what_names_hold_is_not_markup():
    out = io.StringIO()
    with LiveProgress(Console(file=out, force_terminal=True, width=100)) as progress:
        progress.phase("search", 2)
        progress.advance("trial [bold]0[/bold]")
        progress.phase("retrain", 1)
        progress.advance("epoch 1")
        progress.note("done [red]")
    text = out.getvalue()
    assert "trial [bold]0[/bold]" in text
    assert "done [red]" in text
    assert "search" in text
    assert "retrain" in text


def test_a_pipe_gets_plain_lines(capsys):
    assert isinstance(reporter(), PlainProgress)


def test_quiet_says_warnings_alone_wherever_it_goes(capsys, monkeypatch):
    monkeypatch.setattr(
        "nas.show.console.Console", lambda **_: Console(file=io.StringIO(), force_terminal=True)
    )
    assert isinstance(reporter(), LiveProgress)
    assert isinstance(reporter(plain=True), PlainProgress)
    with reporter(quiet=True) as progress:
        progress.phase("search", 2)
        progress.advance("trial 0")
        progress.note("space toy: 3 decisions")
        progress.note("WARNING: the network is no better than guessing")
    assert capsys.readouterr().err == "WARNING: the network is no better than guessing\n"


def test_a_notebook_gets_plain_lines_though_it_says_that_it_is_a_terminal(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, force_jupyter=True)
    monkeypatch.setattr("nas.show.console.Console", lambda **_: console)
    assert isinstance(reporter(), PlainProgress)


YES: Wanted = True


class Own:
    """A user's progress."""

    phase = advance = note = staticmethod(print)


def test_a_caller_in_python_may_ask_for_progress(capsys, monkeypatch):
    for wanted in (None, False):
        with telling(wanted) as progress:
            progress.note("hello")
    assert capsys.readouterr().err == ""
    with telling(YES) as progress:
        progress.note("hello")
    assert capsys.readouterr().err == "hello\n"
    own = Own()
    with telling(own) as progress:
        assert progress is own
    monkeypatch.setattr("nas.show.console.follows", lambda: True)  # another rank speaks
    with telling(YES) as progress:
        progress.note("hello")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("wanted", ["console", 1, Own.note])
def test_what_is_no_progress_is_named(wanted):
    with pytest.raises(ConfigError, match=r"progress is .*, wanted True for lines or a bar"), telling(wanted):
        pass


def test_public_functions_tell_when_asked(tmp_path, capsys):
    result = nas.search("toy", "digits", "random", out=tmp_path / "a", settings=SMALL, progress=True)
    assert "search 3/3  trial 2" in capsys.readouterr().err
    nas.search("toy", "digits", "random", out=tmp_path / "a", settings=SMALL)
    assert capsys.readouterr().err == ""
    config = nas.make_config({**SMALL, "space": "toy", "task": "digits", "method": "random"})
    nas.run_job(config, out=tmp_path / "a", progress=True)
    assert "holds this run already, finished" in capsys.readouterr().err
    settings = {"retrain": {"epochs": 1}, "export": False}
    nas.retrain(result.folder, "digits", out=tmp_path / "b", settings=settings, progress=True)
    assert "retrain 1/1" in capsys.readouterr().err


def test_a_resumed_phase_says_the_true_number(capsys):
    with PlainProgress() as progress:
        progress.phase("retrain", 60)
        progress.advance("epoch 31", done=31)
    assert capsys.readouterr().err.startswith("retrain 31/60  epoch 31  (")


def test_how_many_there_will_be_may_be_unknown(capsys):
    with PlainProgress() as progress:
        progress.phase("random search", None, done=2)
        progress.advance("trial 2")
    assert capsys.readouterr().err == "random search 3  trial 2\n"
    out = io.StringIO()
    with LiveProgress(Console(file=out, force_terminal=True, width=100)) as live:
        live.phase("random search", None)
        live.advance("trial 0")
    assert "1/?" in out.getvalue()


def test_one_of_anything_is_no_plural():
    said = [
        counted(number, noun) for number, noun in ((1, "epoch"), (0, "trial"), (1438, "image"), (2, "class"))
    ]
    assert said == ["1 epoch", "0 trials", "1,438 images", "2 classes"]
