"""What a search is said to cost before it begins."""

import pytest

from nas.cli import search
from nas.run.budget import BASELINES, FINISH, FRESH, RETRAIN, SEARCH, Steps, planned, preview
from nas.run.config import make_config
from nas.run.job import Clock
from nas.run.preparation import prepare
from nas.show.progress import LiveProgress
from nas.training.evaluate import FORWARD
from tests.jobs import TINY, Recorder

VALUES = {**TINY, "space": "toy", "task": "digits", "method": "evolution", "trials": 7, "baselines": True}


def made(tmp_path, **more):
    return prepare(make_config(VALUES | more), tmp_path / "run", clock=Clock(more.get("budget")))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return preview(made(tmp_path_factory.mktemp("preview")))


def test_it_tells_the_space_its_networks_and_every_phase(found):
    assert (found.space, found.decisions, found.architectures, found.exact) == ("toy", 3, 27, True)
    assert 1 <= found.sample <= 27 and all(low <= high for low, high in found.ranges.values())
    assert {"params", "macs", "peak_bytes"} == found.ranges.keys()
    assert [name for name, _, _ in found.phases] == [SEARCH, BASELINES, FRESH, RETRAIN, FINISH]
    assert all(seconds > 0 for _, _, seconds in found.phases) and found.memory_bytes > 0
    text = "\n".join(found.lines())
    assert "7 trials, 2 epochs each" in text and "27 architectures" in text
    assert "random architectures at final size" in text


def test_its_times_follow_from_the_steps(tmp_path):
    steps = Steps(trial=0.1, search=0.2, final=1.0)
    for places in (1, 2):
        seconds = planned(made(tmp_path), steps, places=places).seconds
        assert seconds[BASELINES] == pytest.approx(seconds[SEARCH] / places)
        assert seconds[RETRAIN] == 1438 // 64
        assert seconds[FINISH] == pytest.approx(1 + FORWARD * 359 / 64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "darts"}, "2 epochs of a supernet"),
        ({"method": "spos"}, "2 epochs of a supernet, 7 trials"),
        ({"scheduler": "hyperband", "rungs": "epochs=1; epochs=2"}, "7 trials, on epochs=1; epochs=2"),
    ],
)
def test_every_kind_of_search_has_an_estimate(tmp_path, changes, words):
    values = {k: v for k, v in VALUES.items() if k != "trials" or changes.get("method") != "darts"}
    made_ = prepare(make_config({**values, **changes}), tmp_path)
    _, planned, seconds = preview(made_).phases[0]
    assert words in planned and seconds > 0


class Bar(LiveProgress):
    """Answers instead of a person."""

    def __init__(self, answer):
        self.answer, self.asked, self.lines = answer, 0, []

    def note(self, text):
        self.lines.append(text)

    def ask(self, question):
        self.asked += 1
        return self.answer


@pytest.mark.parametrize(
    "case", [(2, True, False, 1), (0.5, True, False, 0), (2, False, False, 0), (2, True, True, 0)]
)
def test_it_asks_on_a_terminal_only_and_only_beyond_an_hour(monkeypatch, found, case):
    hours, terminal, yes, asked = case
    monkeypatch.delenv(search.PREVIEW)
    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(type(found), "seconds", property(lambda _: hours * 3600))
    for answer in (True, False):
        bar = Bar(answer)
        assert search.teller(bar, yes=yes)(found) == (answer or not asked)
        assert bar.asked == asked and bar.lines
    assert search.teller(Recorder(), yes=yes)(found)


def test_a_setting_leaves_it_out(monkeypatch):
    monkeypatch.setenv(search.PREVIEW, "off")
    assert search.teller(Recorder(), yes=False) is None
