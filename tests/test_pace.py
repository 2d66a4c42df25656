"""How long a step takes, on devices that do steps later than they are handed them."""

from nas.training.pace import Pace


def pace(*times):
    moments = iter(times)
    return Pace(lambda: next(moments))


def test_a_step_that_was_waited_for_takes_what_it_took():
    timed = pace()
    assert timed.step_s == 0
    timed.took(2.0)
    assert timed.step_s == 2


def test_steps_that_are_handed_over_take_what_passes_between_two_waits():
    timed = pace(10.0, 15.0, 21.0)
    for step in range(3, 13):
        timed.handed_over(step, waited=step in (8, 12))
        assert timed.step_s == (0 if step < 8 else 1.0 if step < 12 else 1.5)


def test_what_comes_between_does_not_count():
    timed = pace(0.0, 4.0, 100.0, 102.0)
    timed.handed_over(1, waited=False)
    timed.handed_over(3, waited=True)
    timed.forget()
    timed.handed_over(4, waited=True)
    assert timed.step_s == 2
    timed.handed_over(8, waited=True)
    assert timed.step_s == 0.5


def test_nothing_is_divided_by_no_steps():
    timed = pace(0.0)
    timed.handed_over(1, waited=True)
    timed.handed_over(1, waited=True)
    assert timed.step_s == 0
