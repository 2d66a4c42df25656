import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import ConfigError
from nas.files.atomic import override, read_toml, write_toml
from nas.run.config import make_config
from nas.run.preparation import with_names


def refused(values):
    with pytest.raises(ConfigError) as caught:
        make_config(values)
    return str(caught.value)


def read(tmp_path, content):
    path = tmp_path / "c.toml"
    path.write_bytes(content.encode())
    return read_toml(path)


# -- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"evaluator": "share", "method": "random"}, "evaluator is 'share'"),
        ({"space": False}, "write text in quotes"),
        ({"trial": {"lr": [1]}}, "trial.lr is [1]: wanted text, a number, true or false"),
        ({"space_settings": {"a": {"b": 1}}}, "wanted text, a number, true or false"),
    ],
)
def test_wrong_values_are_refused_with_what_was_wanted(values, words):
    assert words in refused(values)


def test_every_wrong_value_is_named_at_once():
    message = refused({"epochs": 0, "top_k": -1, "seed": "x"})
    assert all(word in message for word in ("epochs is 0", "top_k is -1", "seed is 'x'"))


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("epochs", 3.0, 3),
        ("budget", 90, 90.0),
        ("budget", "30m", 1800.0),
        ("budget", " 1.5 h ", 5400.0),
        ("budget", "2d", 172_800.0),
        ("seed", 2**63 - 1, 2**63 - 1),
    ],
)
def test_numbers_may_be_written_in_several_ways(name, given, taken):
    found = getattr(make_config({name: given}), name)
    assert (found, type(found)) == (taken, type(taken))


@pytest.mark.parametrize(
    "values",
    [
        {"method": "evolution", "warm_start": "supernet"},
        {"method": "evolution", "sharing": {"sampling": "fair"}},
        {"method": "darts", "latency_table": "x.json"},
        {"method": "evolution", "search": {"lr": 0.1}},
        {"method": "darts", "guard": False, "guard_settings": {"skip_cap": 1}},
        {"method": "evolution", "evaluator": "shared", "scheduler": "hyperband"},
        {"method": "evolution", "rungs": "epochs=1; epochs=2"},
        {"method": "evolution", "scheduler": "hyperband", "early_stop": 0.1},
        {"method": "evolution", "calibration": "results/c"},
    ],
)
def test_settings_that_the_method_does_not_read_are_refused(values):
    name = list(values)[-1]
    assert f"{name} is set, but method {values['method']!r}" in refused(values)


def test_sizes_may_be_written_in_several_ways():
    found = [
        make_config({"method": "darts", "memory": text}).memory
        for text in ("8GiB", "500 MB", "2g", 4096, "1.5KiB")
    ]
    assert found == [8 * 2**30, 500 * 10**6, 2 * 10**9, 4096, 1536]
    for text in ("lots", "-3GiB", True, "3 parsecs", 0):
        assert "memory is" in refused({"memory": text})


def test_spos_is_a_search_on_shared_weights_and_methods_of_ones_own_are_differentiable():
    assert make_config({"method": "spos"}).shares_weights
    assert not make_config({"method": "spos"}).is_differentiable
    for own in ("mine.py:make", "package.module:make", "own:mine"):
        assert make_config({"method": own}).is_differentiable
    assert not make_config({"method": "optuna:TPESampler"}).is_differentiable


def test_arguments_and_settings_may_agree_but_not_differ():
    assert with_names({"seed": 1, "task": "digits"}, {"task": "digits"}) == {"seed": 1, "task": "digits"}
    assert with_names(None, {"task": "digits"}) == {"task": "digits"}
    with pytest.raises(ConfigError, match="method is 'random', but the argument says 'darts'; give one"):
        with_names({"method": "random"}, {"method": "darts"})


# -- assignments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("epochs=3", 3),
        ('preset="quick"', "quick"),
        ("task=npz:/a/b=c.npz", "npz:/a/b=c.npz"),
        ("x=true", True),
        ("x=no", "no"),
        ("x=1e-3", 1e-3),
    ],
)
def test_an_assignment_is_toml_or_bare_text(text, value):
    (found,) = override({}, [text]).values()
    assert (found, type(found)) == (value, type(value))


def test_assignments_go_into_tables_and_before_what_was_there():
    values = {"trial": {"lr": 1, "batch": 2}, "seed": 3}
    assert override(values, ["trial.lr=5", "seed=4", "seed=5", "retrain.epochs=6"]) == {
        "trial": {"lr": 5, "batch": 2},
        "seed": 5,
        "retrain": {"epochs": 6},
    }
    assert values == {"trial": {"lr": 1, "batch": 2}, "seed": 3}


@pytest.mark.parametrize("text", ["epochs", "=3", "trial.=3", "a.b.c=3", ""])
def test_a_malformed_assignment_is_refused(text):
    with pytest.raises(ConfigError, match=r"wanted KEY=VALUE or TABLE\.KEY=VALUE"):
        override({}, [text])


# -- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("epochs: 3\nseed: 1\n", "the file looks like YAML, but configs are TOML: key = value"),
        ("a" + ".a" * 400_000 + " = 1", "nested deeper than"),
        ("a = '\x00'", "line 1"),
    ],
)
def test_a_file_that_is_no_toml_is_refused_with_the_place_in_bounded_time(tmp_path, content, words):
    start = time.process_time()
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "c.toml") in str(caught.value)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "text", ["\ufeffseed = 3\r\n[trial]\r\nlr = 0.5\r\n", "seed = 3\ntrial = {lr = 0.5}"]
)
def test_marks_and_line_ends_of_other_systems_are_taken(tmp_path, text):
    assert read(tmp_path, text) == {"seed": 3, "trial": {"lr": 0.5}}


SCALARS = st.one_of(st.text(), st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False))


@given(st.dictionaries(st.text(min_size=1), SCALARS), st.text(min_size=1))
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory, values, name):
    path = tmp_path_factory.getbasetemp() / "back.toml"
    everything = {**values, name: values} if values else {"seed": 1}
    path.write_text(write_toml(everything), newline="")
    assert read_toml(path) == everything
