"""Mutations that keep what a network computes: an operation is added whose output is zero at first.

A child then begins with all that its parent has learnt (Chen et al., ICLR 2016, Net2Net; Elsken et al. 2018,
network morphisms). There, a layer is inserted as the identity; here, a decision for no connection becomes one
for an operation whose last batch-norm starts at weight 0 and bias 0 (Goyal et al. 2017, §5.1). The gradient
to that weight is not zero, so the addition learns at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.space.choosers import FixedChooser, Zero
from nas.space.graph import Graph, cell_graphs
from nas.space.ops import FactorizedReduce
from nas.space.space import Space, remembered
from nas.types import Genotype


def additions(space: Space, genotype: Genotype) -> list[Genotype]:
    """Every architecture with one addition more, each once, in canonical form and a fixed order.

    An addition is one decision, at all places that ask it, that was no connection (`nas.space.ops.Zero`) and
    becomes an operation that ends in a batch-norm (see `last_norm`). In a `Cell`, the node that it leads to
    must have another input: alone in front of a ReLU, which passes no gradient at 0, an addition would stay
    zero for ever.

    Decisions that only the addition asks are at their first option. Architectures that `project` would change
    are left out, so there are none in a space of a fixed number of connections.
    """
    return list(_additions(space, space.canonical(genotype)))


@remembered
def _additions(space: Space, parent: Genotype) -> list[Genotype]:
    children = set()
    for i, decision in enumerate(space.decisions):
        roles = space.trace.roles.get(decision.name, {})
        if roles.get(decision.options[parent[i]]) == "zero":
            opened = (option for option, name in enumerate(decision.options) if roles[name] == "op")
            children |= {space.canonical(_changed(parent, i, option)) for option in opened}
    valid = (c for c in children if space.canonical(space.nearest(space.one_hot(c))) == c)
    return sorted(child for child in valid if is_addition(space, parent, child))


def is_addition(space: Space, parent: Genotype, child: Genotype) -> bool:
    """Whether `child` is `parent` with one addition; what only this one asks may be at any option."""
    return bool(_places(space, parent, child))


def graft(
    space: Space, child: Genotype, network: nn.Module, *, parent: Genotype, weights: Mapping[str, Tensor]
) -> None:
    """Gives the child's fresh `network` the parent's weights, and makes the addition's output zero.

    weights: the `state_dict` of the parent's network, batch-norm statistics included.

    Raises:
        SpaceError: when `child` is no addition of `parent`, or the weights do not fit; nothing changes then.
    """
    places = _places(space, parent, child)
    if not places:
        raise SpaceError(
            f"space {space.name!r}: {space.choices(child)} is no addition to {space.choices(parent)}; wanted "
            "one decision for no connection changed to an operation that ends in a batch-norm and can learn"
        )
    added = tuple(f"{place}." for place in places)
    shared = {name: value for name, value in network.state_dict().items() if not name.startswith(added)}
    if differing := mismatch(shared, weights):
        raise SpaceError(
            f"space {space.name!r}: the weights given and those of {space.choices(parent)} differ in "
            f"{differing[:3]}; give all of the parent's, and let build wire both networks alike"
        )
    network.load_state_dict(weights, strict=False)
    for place in places:
        if (norm := last_norm(network.get_submodule(place))) is not None:
            nn.init.zeros_(norm.weight)
            nn.init.zeros_(norm.bias)


def last_norm(module: nn.Module) -> nn.BatchNorm2d | None:
    """The affine batch-norm whose output is the module's own, where its type tells.

    These are a norm itself, a plain `nn.Sequential` with a norm at its end, and `FactorizedReduce`. Write
    another operation as `nn.Sequential(operation, nn.BatchNorm2d(channels))` to make it one.
    """
    if type(module) is nn.Sequential and len(module):
        return last_norm(module[-1])
    if type(module) is FactorizedReduce:
        return module.norm
    return module if type(module) is nn.BatchNorm2d and module.affine else None


def mismatch(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that only one of two `state_dict`s has, or that differ in shape."""
    shapes = ({(name, value.shape) for name, value in weights.items()} for weights in (wanted, got))
    return sorted({name for name, _ in set.symmetric_difference(*shapes)})


def _changed(genotype: Genotype, i: int, option: int) -> Genotype:
    return (*genotype[:i], option, *genotype[i + 1 :])


def _places(space: Space, parent: Genotype, child: Genotype) -> list[str]:
    """Paths of the operations that the child adds; none when it is no addition."""
    space.check(parent)
    space.check(child)
    parent, child = space.canonical(parent), space.canonical(child)
    differing = (i for i, (old, new) in enumerate(zip(parent, child, strict=True)) if old != new)
    # Another option of a decision that the parent does not ask is no other architecture.
    asked = [i for i in differing if space.canonical(_changed(parent, i, child[i])) != parent]
    name = space.decisions[asked[0]].name if len(asked) == 1 else ""
    if not name or not _learns(space, parent, child, name):
        return []
    before, after = (_outline(space, genotype, name) for genotype in (parent, child))
    places = [path for path, module in before.items() if isinstance(module, Zero) and path in after]
    places = [path for path in places if not isinstance(after[path], Zero)]
    ends_well = all(last_norm(after[path]) is not None for path in places)
    return places if ends_well else []


def _learns(space: Space, parent: Genotype, child: Genotype, name: str) -> bool:
    """Whether a gradient reaches the addition: what it is added to is in use, and not zero without it."""
    before = cell_graphs(space, parent)
    for kind, graph in cell_graphs(space, child).items():
        fed = {dst for _, dst, edge in graph.edges(data=True) if edge["decision"] == name}
        fed |= {node for node, data in graph.nodes(data=True) if data.get("decision") == name}
        known = before.get(kind, Graph())
        if any(node in known and known.in_degree(node) for node in fed):
            return True
    return False


def _outline(space: Space, genotype: Genotype, real: str) -> dict[str, nn.Module]:
    """An architecture's modules by path, on the meta device, with the operations of one decision in place."""
    nested = frozenset(space.trace.nested)
    chooser = FixedChooser(space.choices(genotype), outline=real not in nested, nested=nested | {real})
    with torch.device("meta"):
        return dict(space.build(chooser).named_modules(remove_duplicate=False))
