"""The stand-alone network of one architecture of a supernet: its form, and whose weights go where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from nas.errors import SpaceError
from nas.oneshot.topology import outermost
from nas.space.cell import Cell
from nas.space.mixed_op import MixedOp
from nas.space.ops import MixtureNorm
from nas.space.space import Space
from nas.types import Genotype


def extracted(supernet: nn.Module, space: Space, genotype: Genotype) -> nn.Module:
    """The network of one architecture with a copy of its weights in the network of a supernet.

    It is built by the space anew and given the supernet's form (no affine part), so that loading the weights
    proves that both come from the same wiring.

    Raises:
        SpaceError: when they do not.
    """
    choices = space.choices(genotype)
    state = supernet.state_dict()
    shared = {to: state[key].clone() for key, to in used(supernet, choices) if key in state}
    network = space.network(genotype, meta=True)
    as_searched(network, outermost(supernet))
    if differing := sorted(shared.keys() ^ network.state_dict().keys()):
        raise SpaceError(
            f"space {space.name!r}: the supernet and the network of {choices} differ in {differing[:3]}; "
            "build must wire both alike"
        )
    network.load_state_dict(shared, assign=True)
    return network


def as_searched(network: nn.Module, places: Iterable[str] = ()) -> None:
    """Gives a network the form it has inside a supernet, in all its cells and at the paths in `places`.

    Batch-norm loses its affine part, and the norms that exist only in a mixture are switched on.
    """
    cells = [module for module in network.modules() if isinstance(module, Cell)]
    for root in [*cells, *(network.get_submodule(place) for place in places)]:
        for module in root.modules():
            if isinstance(module, MixtureNorm):
                module.active = True
            elif isinstance(module, nn.BatchNorm2d):
                module.affine = False
                module.weight = module.bias = None  # type: ignore[assignment]


def used(
    module: nn.Module, choices: Mapping[str, str], source: str = "", target: str = ""
) -> Iterator[tuple[str, str]]:
    """Names of the tensors that one architecture uses: in the supernet, and in the network of its own."""
    if isinstance(module, MixedOp):
        chosen = module.options.index(choices[module.decision])
        yield from used(module.ops[chosen], choices, f"{source}ops.{chosen}.", target)
        return
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    yield from ((source + name, target + name) for name, _ in own)
    for name, child in module.named_children():
        yield from used(child, choices, f"{source}{name}.", f"{target}{name}.")
