"""Finding spaces: bundled, in modules and in files, and what is said when a user's own code is wrong."""

import re

import pytest

from nas.errors import SpaceError
from nas.space.loading import load

GOOD = """
from torch import nn
from nas.space.space import Space


def make(width=4, *, classes=10):
    def build(choose):
        options = {"id": nn.Identity, "relu": nn.ReLU}
        return nn.Sequential(choose.op("x", options), nn.Linear(width, classes))
    return Space("mine", build)
"""


@pytest.fixture
def plugin(tmp_path):
    def write(code, function="make", name="my_space.py"):
        (tmp_path / name).write_text(code)
        return f"{tmp_path / name}:{function}"

    return write


def refusal(path, **settings):
    with pytest.raises(SpaceError) as caught:
        load(path, **settings)
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


def test_a_syntax_error(plugin):
    path = plugin("x = 1\n\ndef make(:\n    pass\n")
    message = refusal(path)
    assert f"syntax error in {path.removesuffix(':make')}, line 3: def make(:" in message


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("x = 1\ny = {}['gone']\n", 2),
        ("def f():\n    raise ValueError('no')\n\nf()\n", 2),
        ("import json\n\nx = json.loads('{')\n", 3),  # raised inside Python's own library
        ("import torch\nx = torch.zeros(2).view(3)\n", 2),  # raised inside an installed one
        (
            "from nas.space.ops import candidates\n\n\nx = candidates(['sep_conv'], 4, 4)\n",
            4,
        ),  # inside the engine
    ],
)
def test_a_file_that_raises_on_import_is_reported_with_the_users_line(plugin, code, line):
    message = refusal(plugin(code))
    assert "its file fails on import" in message
    assert re.search(rf"my_space\.py, line {line}: ", message)


def test_a_missing_function_names_the_nearest(plugin):
    assert "no function in" in (message := refusal(plugin(GOOD, "mak")))
    assert "'mak'; did you mean 'make'?" in message
    # Only the user's own names are offered, not what the file imports.
    assert refusal(plugin(GOOD, "Spaces")).endswith("known: make")


@pytest.mark.parametrize("signature", ["*args", "**settings", "width, /"])
def test_parameters_without_a_name(plugin, signature):
    message = refusal(plugin(f"def make({signature}):\n    pass\n"))
    assert "wanted a function with named parameters only, e.g. `def make(width=16)`" in message


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import nas\n\nmake = nas.Space('mine', lambda choose: None)\n",
            "'make' is a space, wanted a function",
        ),
        ("def make():\n    return {}\n", "returned dict, wanted a nas.Space"),
        (
            GOOD.replace("width=4", "width"),
            "needs the setting 'width'; give the parameter a default or a value",
        ),
        ("def make(width=4):\n    return width / 0\n", r"line 2: return width / 0\)"),
        ("make = 3\n", "no function in"),
    ],
)
def test_what_makes_no_space_is_refused(plugin, code, words):
    assert re.search(words, refusal(plugin(code)))
