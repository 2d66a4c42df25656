"""Finding spaces: bundled, in modules and in files, and what is said when a user's own code is wrong."""

import re

import pytest

from nas.errors import SpaceError
from nas.space.loading import load


@pytest.fixture
def plugin(tmp_path):
    def write(code, function="make"):
        (tmp_path / "my_space.py").write_text(code)
        return f"{tmp_path}/my_space.py:{function}"

    return write


def refusal(path):
    with pytest.raises(SpaceError) as caught:
        load(path)
    return str(caught.value)


# -- what is found ------------------------------------------------------------------------------------


def test_a_bundled_space_knows_where_it_came_from():
    space = load("toy", width=4)
    assert (space.origin, space.settings) == ("toy", {"width": 4, "classes": 10, "in_channels": 1})


def test_a_module():
    space = load("spaces.toy:toy", classes=3)
    assert space.name == "toy" and space.origin == "spaces.toy:toy"


# -- mistakes -----------------------------------------------------------------------------------------


def test_an_unknown_name():
    assert refusal("nasbench21").startswith("no search space 'nasbench21'; did you mean 'nasbench201'?")
    assert "known: convnet, darts, nasbench101, nasbench201, toy" in refusal("zzz")
    assert "FILE.py:FUNCTION" in refusal("my_space.py")
    assert "no search space '__init__'" in refusal("__init__")


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("def f():\n    raise ValueError('no')\n\nf()\n", 2),
        # Raised inside Python's own library, an installed one, and the engine.
        ("import json\n\nx = json.loads('{')\n", 3),
        ("import torch\nx = torch.zeros(2).view(3)\n", 2),
        ("from nas.space.ops import candidates\n\n\nx = candidates(['sep_conv'], 4, 4)\n", 4),
    ],
)
def test_a_file_that_raises_on_import_is_reported_with_the_users_line(plugin, code, line):
    message = refusal(plugin(code))
    assert "its file fails on import" in message
    assert re.search(rf"my_space\.py, line {line}: ", message)


def test_a_missing_function_names_those_of_the_user(plugin):
    """Not those that the file imports."""
    code = "from nas.space.space import Space\n\n\ndef make():\n    return Space\n"
    assert refusal(plugin(code, "Spaces")).endswith("known: make")


def test_parameters_without_a_name(plugin):
    for signature in ("*args", "**settings", "width, /"):
        message = refusal(plugin(f"def make({signature}):\n    pass\n"))
        assert "wanted a function with named parameters only" in message, signature


def test_a_space_is_no_function(plugin):
    path = plugin("import nas\n\nmake = nas.Space('mine', lambda choose: None)\n")
    assert "'make' is a space, wanted a function" in refusal(path)
    assert "no function in" in refusal(plugin("make = 3\n"))
