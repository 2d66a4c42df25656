"""Generated source: torch alone, the same numbers to the bit, each kind of part once."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.errors import SpaceError
from nas.export.source import name_of, source_of
from nas.seeding import rng
from nas.space.loading import bundled, load

HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"


def rebuilt(network):
    """The network that the source makes, with the weights of the given one."""
    source = source_of(network)
    names = {}
    exec(HEAD + source, names)
    new = names[name_of(source)]().eval()
    weights = network.state_dict()
    new.load_state_dict({name: weights[name] for name in new.state_dict()})
    return new, source


@pytest.mark.parametrize("name", bundled())
@pytest.mark.parametrize("seed", range(2))
def test_every_space_comes_back_to_the_bit(name, seed):
    space = load(name, {"in_channels": 3, "image_size": 32, "classes": 7})
    torch.manual_seed(seed)
    network, x = space.network(space.sample(rng(seed))), torch.randn(2, 3, 32, 32)
    network.train()
    network(x)  # so that batch-norm has seen something
    new, source = rebuilt(network)
    assert all(module.training for module in network.modules()), "it was left as it was"
    network.eval()
    with torch.no_grad():
        assert torch.equal(new(x), network(x))
        assert torch.equal(new(x[:1]), network(x[:1]))
    assert "nas" not in source.replace("nasbench", "")


@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_cells_in_which_a_node_has_no_connection_come_back(name):
    space = load(name, {"in_channels": 3, "image_size": 32, "classes": 7})
    none = space.decisions[0].options.index("none")
    network, x = space.network((none,) * len(space.decisions)).eval(), torch.randn(2, 3, 32, 32)
    new, source = rebuilt(network)
    with torch.no_grad():
        assert torch.equal(new(x), network(x))
    assert "Zero" in source


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


class Model(nn.Module):
    """Has the name of a class of model.py's own."""

    def forward(self, x):
        return F.gelu(x)


def test_modules_of_ones_own_come_back_as_a_person_would_write_them():
    torch.manual_seed(0)
    layers = [Scaled(3, 4), Scaled(4, 6), Model(), nn.Dropout(0.3), nn.GroupNorm(2, 6)]
    network, x = nn.Sequential(*layers).eval(), torch.randn(2, 3, 9, 9)
    new, source = rebuilt(network)
    assert torch.equal(new(x), network(x))
    assert source.count("class Scaled") == 1 and "class Model(" not in source
    assert "self.c_out = c_out" in source and "Scaled(3, 4)" in source
    assert "F.leaky_relu(x, negative_slope=0.2)" in source
    assert "[:, :self.c_out, ::2, 1:]" in source and "None" not in source


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
        source_of(module)
