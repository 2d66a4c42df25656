"""Generated source: torch alone, the same numbers to the bit, each kind of part once."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.errors import SpaceError
from nas.export.source import name_of, source_of, wrapped
from nas.seeding import rng
from nas.space.loading import bundled, load

HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"


def rebuilt(network, x):
    """The network that the source makes, with the weights of the given one."""
    source = source_of(network, x)
    names = {}
    exec(HEAD + source, names)
    new = names[name_of(source)]().eval()
    weights = network.state_dict()
    new.load_state_dict({name: weights[name] for name in new.state_dict()})
    return new, source


@pytest.mark.parametrize("name", bundled())
@pytest.mark.parametrize("seed", range(3))
def test_every_space_comes_back_to_the_bit(name, seed):
    space = load(name, {"in_channels": 3, "image_size": 32, "classes": 7})
    torch.manual_seed(seed)
    network, x = space.network(space.sample(rng(seed))), torch.randn(2, 3, 32, 32)
    network.train()
    network(x)  # so that batch-norm has seen something
    network.eval()
    new, source = rebuilt(network, x)
    with torch.no_grad():
        assert torch.equal(new(x), network(x))
        assert torch.equal(new(x[:1]), network(x[:1]))
    assert "nas" not in source.replace("nasbench", "")


@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_cells_in_which_a_node_has_no_connection_come_back(name):
    space = load(name, {"in_channels": 3, "image_size": 32, "classes": 7})
    network, x = (
        space.network((space.decisions[0].options.index("none"),) * len(space.decisions)),
        torch.randn(2, 3, 32, 32),
    )
    new, source = rebuilt(network.eval(), x)
    with torch.no_grad():
        assert torch.equal(new(x), network(x))
    assert "Zero" in source


def test_modules_are_left_as_they_were():
    space = load("toy", {"in_channels": 1, "image_size": 8, "classes": 3})
    network = space.network(space.sample(rng(0))).train()
    source_of(network, torch.zeros(2, 1, 8, 8))
    assert all(module.training for module in network.modules())
    assert not any(module._forward_pre_hooks for module in network.modules())


class Scaled(nn.Module):
    """Everything a forward may hold: methods, functions, slices, a parameter, numbers."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, (1, 3), padding=(0, 1))
        self.scale = nn.Parameter(torch.randn(c_out, 1, 1))
        self.c_out = c_out

    def forward(self, x):
        y = self.conv(F.leaky_relu(x, 0.2)) * self.scale
        y = y[:, : self.c_out, ::2, 1:] - 2 * (y[:, : self.c_out, ::2, 1:] + 1.5)
        return torch.sigmoid(y) + y.clamp(min=-1, max=1) / (1 + y.abs())


def test_a_module_of_ones_own_comes_back():
    torch.manual_seed(0)
    network = nn.Sequential(Scaled(3, 4), Scaled(4, 6), nn.Dropout(0.3), nn.GroupNorm(2, 6)).eval()
    x = torch.randn(2, 3, 9, 9)
    new, source = rebuilt(network, x)
    assert torch.equal(new(x), network(x))
    assert source.count("class Scaled") == 1
    assert "self.c_out = c_out" in source


class Deciding(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Holding(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.table = torch.ones(2)

    def forward(self, x):
        return self.inner(x) + self.table


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Deciding(), "Deciding.forward decides by the values of its maps"),
        (Holding(), "a Tensor that is no parameter cannot be written"),
        (nn.Sequential(nn.Linear(2, 2), nn.TransformerEncoderLayer(2, 1)), "TransformerEncoderLayer"),
    ],
)
def test_what_cannot_be_written_is_named(module, message):
    with pytest.raises(SpaceError, match=re.escape(message)):
        source_of(module, torch.ones(3, 2))


def test_long_lines_are_broken_at_their_arguments():
    line = "    x = f(" + ", ".join(f"argument_{i}(1, [2, 3])" for i in range(6)) + ")"
    assert wrapped(line).splitlines()[:2] == ["    x = f(", "        argument_0(1, [2, 3]),"]
    assert max(map(len, wrapped(line).splitlines())) <= 100
    assert wrapped("    short(1, 2)") == "    short(1, 2)"


@pytest.mark.parametrize(
    "line",
    [
        "x = " + " + ".join(f"parts['{i}']['0'](a)" for i in range(9)),
        "x = (" + " + ".join(["a"] * 60) + ") * a",
        "x = parts['" + "k" * 100 + "']['0'](a)",
        "x = (" + "a, " * 60 + ")",
        "x = [" + "a + a, " * 30 + "]",
        "x = len([" + "+ a" * 60 + "])",
    ],
)
def test_a_broken_line_means_the_same(line):
    parts = {str(i): {"0": lambda a: a} for i in range(9)}
    parts["k" * 100] = parts["1"]
    found = []
    for text in (line, wrapped(line)):
        names = {"parts": parts, "a": 1.5}
        exec(text, names)
        found.append(names["x"])
    assert found[0] == found[1]
