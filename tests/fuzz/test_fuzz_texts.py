"""Whatever is typed or written into a text file gives a value or one of the engine's own errors, in time."""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import pytest
from hostile import fuzzed, mutated_bytes, mutated_text, scalars, survived, texts, values
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import NasError
from nas.files.atomic import override, read_toml, write_toml
from nas.files.folder import check_name
from nas.run.config import Config, make_config
from nas.run.resolved_config import make_plan
from nas.searchers.fidelity import Ladder, parse_fidelity, parse_ladder
from nas.searchers.goals import Goals, parse_goals
from nas.searchers.method_names import METHODS
from nas.space.loading import bundled, load
from nas.training.recipe import Recipe

FILE = Path("fuzz.toml")
RECIPE = [field.name for field in dataclasses.fields(Recipe)]
INNER = [*RECIPE, "population", "tournament", "init", "proxies", "sampling", "splits", "skip_cap", "parts"]

some_texts = texts | st.sampled_from(
    ["", "auto", "cpu", "cuda:9", "epochs=1", "val_acc", "params<=3", "30m", "8GiB"]
)
entries = st.dictionaries(
    st.sampled_from([*Config.model_fields, "unknown"]),
    st.dictionaries(st.sampled_from(INNER) | texts, scalars, max_size=3) | some_texts | values,
    max_size=4,
)
configs = st.builds(
    lambda method, preset, entries: {"method": method, "preset": preset, **entries},
    st.sampled_from(METHODS),
    st.sampled_from(["quick", "standard", "nasbench201"]),
    entries,
)


@pytest.fixture(autouse=True, scope="module")
def _elsewhere(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield


@fuzzed
@given(values=configs)
def test_any_settings(values):
    config = survived(make_config, values)
    if isinstance(config, NasError):
        return
    survived(make_plan, config)
    assert make_config(read_toml(_written(write_toml(config.model_dump())))) == config


def _written(content):
    FILE.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return FILE


TOML = """method = "evolution"
budget = "30m"
objective = ["val_acc", "-params"]
[trial]
lr = 0.1
epochs = 3
"""


@fuzzed
@given(
    content=mutated_bytes(TOML.encode())
    | mutated_text(TOML, ["[", "{", "'''", '"""', "\n", "=", ".", "0x", "inf", "2020-01-01", "a.b.c"])
)
def test_any_toml(content):
    found = survived(lambda: make_config(read_toml(_written(content)), where="file"))
    assert isinstance(found, Config | NasError)


@fuzzed
@given(
    assignments=st.lists(
        st.builds(
            "{}={}".format,
            st.sampled_from(["epochs", "trial.lr", "searcher.population", "a.b.c", "space", "seed.x", ""])
            | texts,
            (st.floats() | st.integers()).map(repr) | texts | st.text("[]{}'\"#=,.0x\n", max_size=9),
        )
        | texts,
        max_size=3,
    )
)
def test_any_assignments(assignments):
    merged = survived(override, {"seed": 3, "trial": {"lr": 0.1}}, assignments)
    if not isinstance(merged, NasError):
        survived(make_config, merged)


@functools.cache
def written(name):
    """A space and the text of one of its genotypes."""
    space = load(name)
    return space, space.notation.write(space.sample(np.random.default_rng(0)))


@pytest.mark.parametrize("name", [name for name in bundled() if load(name).notation is not None])
@fuzzed
@given(data=st.data())
def test_any_genotype_text(name, data):
    space, valid = written(name)
    text = data.draw(
        mutated_text(valid, ["normal=[", "_concat=[", "|", "+", "none~0", "[[", '"ops"', "null", "1e999"])
    )
    found = survived(space.notation.read, text)
    if isinstance(found, tuple):
        space.check(found)


terms = st.lists(
    st.sampled_from(
        ["val_acc", "params", "-", "+", "*", "<=", ">=", " ", "1e999", "0", ".5", "1e-300", "9" * 400, "é"]
    ),
    max_size=9,
).map("".join)


@fuzzed
@given(objectives=st.lists(terms | texts, max_size=3), constraints=st.lists(terms | texts, max_size=2))
def test_any_goals(objectives, constraints):
    goals = survived(parse_goals, objectives, constraints)
    if isinstance(goals, Goals):
        assert Goals.from_dict(goals.to_dict()) == goals
        metrics = dict.fromkeys(goals.metrics, 0.5)
        assert not any(map(math.isnan, (*goals.scores(metrics), goals.violation(metrics))))


rungs = st.lists(
    st.sampled_from(
        ["epochs=", "width=", "images", "=", ",", ";", "1", "0.5", "nan", "inf", "-1", "9" * 5000, " "]
    ),
    max_size=9,
).map("".join)


@fuzzed
@given(text=rungs | texts | mutated_text("epochs=1,width=0.5; epochs=3", [";", ","]))
def test_any_ladder(text):
    found = survived(parse_ladder, text)
    if isinstance(found, Ladder):
        assert parse_ladder(str(found)) == found
        assert found.granted
    survived(parse_fidelity, text)


@fuzzed
@given(name=texts)
def test_any_name(name):
    if survived(check_name, name, "run") is None:
        assert 0 < len(name) <= 100 and name.isprintable() and "/" not in name and name.strip(" .") == name
