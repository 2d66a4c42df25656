"""The polite stop: one signal asks, a second one insists."""

import os
import signal

import pytest

from nas.cli.app import StopRequest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_asks_to_stop_and_a_second_stops_now(number, code):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.exit_code == code
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            signal.pause()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_batch_systems_warning_is_a_polite_request_that_later_ones_do_not_turn_into_a_kill(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        for again in (number, number, signal.SIGTERM):
            os.kill(os.getpid(), again)
            assert stop.number == number
        assert stop.exit_code == 143
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
    assert signal.getsignal(number) is before


def test_an_interrupt_insists_whatever_came_before():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
        assert stop.exit_code == 143
