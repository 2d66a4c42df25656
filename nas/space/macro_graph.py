"""The whole network as a graph of blocks: what feeds what, and the shape of every map in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nas.space.cell import CELLS
from nas.space.graph import Graph


def skeleton(network: nn.Module, image_shape: Sequence[int]) -> Graph:
    """Runs one image `[1, C, H, W]` through `network` and records its blocks in the order they ran.

    A block is a cell, or the largest module without a cell inside. Node attributes: `label` (its name and
    class; of a sequence, the classes of the first and the last layer), `shape` ("16x32x32"), `kind` (the
    cell's kind, else `stem`, `block` or `head` by its place).
    """
    recorder = _Recorder()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    x = torch.zeros(1, *image_shape, device=device)
    graph = recorder.graph
    graph.add_node("input", label="input", shape=_shape(x), kind="input")
    recorder.produced[id(x)] = "input"
    recorder.kept.append(x)
    training = network.training
    hooks = [
        module.register_forward_hook(_hook(recorder, name, module)) for name, module in _blocks(network, "")
    ]
    try:
        with torch.no_grad():
            network.eval()(x)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    _name_ends(graph)
    return graph


@dataclass
class _Recorder:
    """What has run so far; tensors are kept so that their identities stay unique."""

    graph: Graph = field(default_factory=Graph)
    produced: dict[int, str] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)
    last: str = "input"


def _hook(
    recorder: _Recorder, name: str, module: nn.Module
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sources = {recorder.produced[id(x)] for x in inputs if id(x) in recorder.produced} or {recorder.last}
        kind = module.kind if isinstance(module, CELLS) else "block"
        recorder.graph.add_node(name, label=_label(name, module), shape=_shape(output), kind=kind)
        for source in sorted(sources):
            recorder.graph.add_edge(source, name)
        recorder.produced[id(output)] = recorder.last = name
        recorder.kept.append(output)

    return record


def _blocks(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        where = f"{path}.{name}" if path else name
        has_cell = any(isinstance(m, CELLS) for m in child.modules())
        if isinstance(child, CELLS) or not (has_cell or isinstance(child, nn.ModuleList)):
            yield where, child
        else:
            yield from _blocks(child, where)


def _label(name: str, module: nn.Module) -> str:
    if isinstance(module, CELLS):
        return f"{name}\n{module.kind}"
    text = type(module).__name__
    if type(module) is nn.Sequential:
        leaves = [type(m).__name__ for m in module.modules() if not any(True for _ in m.children())]
        text = leaves[0] if len(leaves) == 1 else f"{leaves[0]}..{leaves[-1]}"
    return f"{name}\n{text}"


def _shape(x: Tensor) -> str:
    return "×".join(str(side) for side in x.shape[1:])


def _name_ends(graph: Graph) -> None:
    """Blocks before the first cell are the stem, those after the last one the head."""
    order = [n for n in graph.nodes if n != "input"]
    cells = [i for i, n in enumerate(order) if graph.nodes[n]["kind"] != "block"]
    for i, node in enumerate(order):
        if cells and graph.nodes[node]["kind"] == "block":
            graph.nodes[node]["kind"] = "stem" if i < cells[0] else "head" if i > cells[-1] else "block"
