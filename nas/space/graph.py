"""Architectures as graphs: cells (nodes are feature maps, edges are operations), and networks of blocks.

The graph of a cell is read off the space's own wiring: whatever `Cell` the build function makes, its edges
say which decision sits between which maps. In a `VertexCell` operations stand on the nodes and edges are
plain. Decisions outside any cell form a chain, in the order asked. The graph of a network (`skeleton`) is
read off what runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import networkx as nx
import torch
from torch import Tensor, nn

from nas.devices import evaluating
from nas.errors import ConfigError
from nas.space.cell import CELLS, Cell, VertexCell
from nas.space.choosers import FixedChooser, Role, Slot
from nas.space.space import Space, remembered
from nas.types import Genotype

if TYPE_CHECKING:
    Graph = nx.DiGraph[str]
else:
    Graph = nx.DiGraph
Edge = tuple[str, str, str]
AnyCell = Cell | VertexCell
Roles = Mapping[str, Mapping[str, Role]]
CHAIN, CONNECT = "network", "connect"
_NODE_KEYS = ("role", "label", "op", "decision")


def cell_graphs(space: Space, genotype: Genotype) -> dict[str, Graph]:
    """One graph for each kind of cell, live parts only; without cells, the one chain `"network"`.

    Node attributes: `role` (`input`, `node`, `output`) and `label`. Edge attributes: `op` (the option),
    `decision` and `role` (`op` or `identity`); edges into a concatenated output have `op="concat"`. Where
    operations stand on nodes, it is those that have `op` and `decision`, and all edges have `op="connect"`.
    Options of decisions that are plain values, other than which edges there are, stand in
    `graph.graph["values"]`.
    """
    genotype = space.canonical(genotype)
    choices, cells = space.choices(genotype), _cells(space, genotype)
    inside = {name for cell in (*outline_cells(space).values(), *cells.values()) for name in _decisions(cell)}
    roles = space.trace.roles
    graphs = {kind: prune(_graph(kind, cell, choices, roles)) for kind, cell in cells.items()}
    outside = {name: option for name, option in space.asked(genotype).items() if name not in inside}
    values = {d.name: outside.pop(d.name) for d in space.decisions if not d.mixable and d.name in outside}
    if outside or not graphs:
        graphs[CHAIN] = _chain(outside or {name: f"{name} = {value}" for name, value in values.items()})
    for graph in graphs.values():
        graph.graph["values"] = values
    return graphs


def prune(graph: Graph) -> Graph:
    """The part of a graph that lies on a path from an input to the output; inputs and output always stay."""
    roles = _roles(graph)
    sources = [n for n, role in roles.items() if role == "input"]
    sinks = [n for n, role in roles.items() if role == "output"]
    below = set(sources).union(*(nx.descendants(graph, n) for n in sources))
    above = set(sinks).union(*(nx.ancestors(graph, n) for n in sinks))
    return graph.subgraph((below & above) | {*sources, *sinks}).copy()


@remembered
def architecture_hash(space: Space, genotype: Genotype) -> str:
    """A name of 16 hex digits that two genotypes share exactly if their simplified graphs are isomorphic.

    Simplified: an option of zeros removes its edge, dead parts are pruned, and an identity that is the only
    edge into a node makes that node one with its source. Over NAS-Bench-201 this gives 6,985 classes; the
    paper's 6,466 (`spaces.nasbench201.unique_string`) also merges graphs that are not isomorphic, because it
    compares unrolled expressions: `conv(a) + conv(b)` with `a` and `b` two convolutions of the input is there
    the same as with one convolution used twice.
    """
    graphs = cell_graphs(space, genotype)
    values = next(iter(graphs.values())).graph["values"]
    parts = {kind: canonical_form(graph) for kind, graph in graphs.items()}
    text = json.dumps([parts, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical_form(graph: Graph) -> list[list[object]]:
    """The edges `[src, dst, op]` of a graph under the numbering of inner nodes that sorts them first.

    Nodes are first told apart by colour refinement (Weisfeiler & Leman 1968); what remains equal is permuted,
    so that the form is exact. A node's own operation, where it has one, follows its number.
    """
    edges = _contract(graph)
    roles = _roles(graph)
    fixed = {n: n for n in graph.nodes if roles[n] != "node"}
    inner = sorted({n for a, b, _ in edges for n in (a, b)} - fixed.keys())
    ops = {n: str(graph.nodes[n].get("op", "")) for n in inner}
    colours = _refine(edges, fixed, ops)
    groups = [sorted(n for n in inner if colours[n] == c) for c in sorted({colours[n] for n in inner})]
    forms = []
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        number = fixed | {n: f"#{i} {ops[n]}".rstrip() for i, n in enumerate(itertools.chain(*orders))}
        forms.append(sorted([number[a], number[b], op] for a, b, op in edges))
    return cast(list[list[object]], min(forms))


def merged(graphs: Mapping[str, Graph]) -> Graph:
    """All cells in one graph, its nodes named `kind/node`, with plain attributes that GraphML can hold."""
    union = Graph()
    for kind, graph in graphs.items():
        for node, data in graph.nodes(data=True):
            union.add_node(f"{kind}/{node}", cell=kind, **data)
        for a, b, data in graph.edges(data=True):
            union.add_edge(f"{kind}/{a}", f"{kind}/{b}", **data)
        union.graph |= {f"value {name}": value for name, value in graph.graph["values"].items()}
    return union


def to_dict(graph: Graph) -> dict[str, object]:
    """A graph as plain values for JSON; the inverse of `from_dict`."""
    return {
        "kind": graph.graph["kind"],
        "values": graph.graph.get("values", {}),
        "nodes": [{"id": n, **data} for n, data in graph.nodes(data=True)],
        "edges": [{"src": a, "dst": b, **data} for a, b, data in graph.edges(data=True)],
    }


def from_dict(data: Mapping[str, object]) -> Graph:
    """The graph that `to_dict` wrote down.

    Raises:
        ConfigError: when two nodes have one name, or an edge leads where none may.
    """
    graph = Graph(kind=data["kind"], values=data["values"])
    nodes = cast(Sequence[dict[str, str]], data["nodes"])
    for node in nodes:
        graph.add_node(node["id"], **{key: node[key] for key in _NODE_KEYS if node.get(key) is not None})
    for edge in cast(Sequence[dict[str, str]], data["edges"]):
        graph.add_edge(edge["src"], edge["dst"], op=edge["op"], decision=edge["decision"], role=edge["role"])
    roles = _roles(graph)
    named = len(roles) == len(nodes) and all(roles.values())
    if (
        not named
        or any(roles[src] == "output" or roles[dst] == "input" for src, dst in graph.edges)
        or not nx.is_directed_acyclic_graph(graph)
    ):
        raise ConfigError(
            f"the cell is damaged: it has {len(nodes)} nodes and {len(graph.edges)} edges, wanted nodes of "
            "different names, and edges between these, in no circle, none into an input or out of an output"
        )
    return graph


def _roles(graph: Graph) -> dict[str, str]:
    return {node: data.get("role", "") for node, data in graph.nodes(data=True)}


def _cells(space: Space, genotype: Genotype) -> dict[str, AnyCell]:
    """The cells of one architecture, whose wiring decisions that are plain values may shape."""
    if all(decision.mixable for decision in space.decisions):
        return outline_cells(space)
    with torch.device("meta"):
        chooser = FixedChooser(space.choices(genotype), outline=True, nested=frozenset(space.trace.nested))
        return _distinct(space.build(chooser))


@remembered
def outline_cells(space: Space) -> dict[str, AnyCell]:
    """The first cell of each kind in a space's outline, with a `Slot` for each operation."""
    return _distinct(space.outline)


def _distinct(outline: nn.Module) -> dict[str, AnyCell]:
    """The first cell of each kind; cells of one kind that ask different decisions get a number each."""
    found: dict[tuple[str, tuple[str, ...]], AnyCell] = {}
    for module in outline.modules():
        if isinstance(module, CELLS):
            found.setdefault((module.kind, _decisions(module)), module)
    per_kind = Counter(kind for kind, _ in found)
    seen: Counter[str] = Counter()
    cells = {}
    for (kind, _), cell in found.items():
        seen[kind] += 1
        cells[kind if per_kind[kind] == 1 else f"{kind} {seen[kind]}"] = cell
    return cells


def _decisions(cell: AnyCell) -> tuple[str, ...]:
    if isinstance(cell, VertexCell):
        own = (op.decision for op in cell.vertices.values() if isinstance(op, Slot))
        return (*cell.decisions, *own)
    return tuple(op.decision for _, _, op in cell.edges() if isinstance(op, Slot))


def _graph(kind: str, cell: AnyCell, choices: Mapping[str, str], roles: Roles) -> Graph:
    """All of a cell but edges of zeros, whether or not it leads to the output."""
    graph = Graph(kind=kind)
    if isinstance(cell, VertexCell):
        names = {0: "in0"} | {v: str(v) for v in cell.sources} | {max(cell.sources): "out"}
        graph.add_node("in0", role="input", label="in")
        for vertex, op in zip(cell.sources, cell.vertices.values(), strict=True):
            label = names[vertex]
            decision, option = _chosen(op, choices)
            own = {} if label == "out" else {"op": option, "decision": decision}
            graph.add_node(label, role="output" if label == "out" else "node", label=label, **own)
        for src, dst in cell.edges():
            graph.add_edge(names[src], names[dst], op=CONNECT, decision="", role="op")
        return graph
    inputs = [f"in{i}" for i in range(cell.inputs)]
    labels = {1: ["in"], 2: ["c_{k-2}", "c_{k-1}"]}.get(cell.inputs, inputs)
    computed = [str(i) for i in range(len(cell.incoming))]
    for name, label in zip(inputs, labels, strict=True):
        graph.add_node(name, role="input", label=label)
    for name in computed:
        graph.add_node(name, role="node", label=name)
    graph.add_node("out" if cell.concat else computed[-1], role="output", label="out")
    for name in computed if cell.concat else ():
        graph.add_edge(name, "out", op="concat", decision="", role="op")
    for src, dst, op in cell.edges():
        decision, option = _chosen(op, choices)
        role = roles[decision][option] if decision else "op"
        if role != "zero":
            ends = [*inputs, *computed]
            graph.add_edge(ends[src], ends[dst], op=option, decision=decision, role=role)
    return graph


def _chosen(op: nn.Module, choices: Mapping[str, str]) -> tuple[str, str]:
    """The decision that stands here and its option; without one, the name of the module's class."""
    return (op.decision, choices[op.decision]) if isinstance(op, Slot) else ("", type(op).__name__)


def _chain(choices: Mapping[str, str]) -> Graph:
    graph = Graph(kind=CHAIN)
    names = ["in", *map(str, range(len(choices) - 1)), "out"]
    for name in names:
        graph.add_node(name, role={"in": "input", "out": "output"}.get(name, "node"), label=name)
    for (src, dst), (decision, option) in zip(itertools.pairwise(names), choices.items(), strict=False):
        graph.add_edge(src, dst, op=option, decision=decision, role="op")
    return graph


def _contract(graph: Graph) -> list[Edge]:
    """The edges once every identity that alone feeds a node has made the node one with its source."""
    edges: list[Edge] = [(a, b, data["op"]) for a, b, data in graph.edges(data=True)]
    identities = {(a, b, d["op"]) for a, b, d in graph.edges(data=True) if d["role"] == "identity"}
    roles = _roles(graph)
    for node in nx.topological_sort(graph):
        into = [e for e in edges if e[1] == node]
        if len(into) != 1 or (edge := into[0]) not in identities:
            continue
        src = edge[0]
        if roles[node] == "output" and roles[src] != "node":
            continue
        # The output keeps its name; any other node takes its source's.
        old, new = (src, node) if roles[node] == "output" else (node, src)
        rename = {old: new}
        identities = {(rename.get(a, a), rename.get(b, b), op) for a, b, op in identities - {edge}}
        edges = [(rename.get(a, a), rename.get(b, b), op) for a, b, op in edges if (a, b, op) != edge]
    return edges


def _refine(edges: Iterable[Edge], fixed: Mapping[str, str], ops: Mapping[str, str]) -> dict[str, str]:
    """Colours of all nodes, where those of `fixed` are known and each inner one starts from its operation."""
    edges = list(edges)
    colours = {**fixed, **ops}
    for _ in ops:
        updated = {}
        for node in ops:
            into = sorted((colours[a], op) for a, b, op in edges if b == node)
            out = sorted((colours[b], op) for a, b, op in edges if a == node)
            updated[node] = hashlib.sha256(repr((colours[node], into, out)).encode()).hexdigest()
        colours |= updated
    return colours


# -- whole networks -----------------------------------------------------------------------------------


def skeleton(network: nn.Module, image_shape: Sequence[int]) -> Graph:
    """Runs one image `[1, C, H, W]` through `network` and records its blocks in the order they ran.

    A block is a cell, or the largest module without a cell inside. Node attributes: `label` (its name and
    class; of a sequence, the classes of the first and the last layer), `shape` ("16x32x32"), `kind` (the
    cell's kind, else `stem`, `block` or `head` by its place).
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    x = torch.zeros(1, *image_shape, device=device)
    graph = Graph()
    graph.add_node("input", label="input", shape=_shape(x), kind="input")
    made = {id(x): ("input", x)}  # with the tensors, so that their identities stay unique

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        last = list(graph)[-1]  # what is neither an input nor the output of a block came from there
        sources = {made[id(x)][0] for x in inputs if id(x) in made} or {last}
        kind = module.kind if isinstance(module, CELLS) else "block"
        graph.add_node(name, label=_label(name, module), shape=_shape(output), kind=kind)
        graph.add_edges_from((source, name) for source in sorted(sources))
        made[id(output)] = (name, output)

    hooks = [block.register_forward_hook(partial(record, name)) for name, block in _blocks(network, "")]
    try:
        with evaluating(network), torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    blocks = [data for _, data in graph.nodes(data=True)]
    cells = [i for i, data in enumerate(blocks) if data["kind"] not in ("input", "block")]
    for i, data in enumerate(blocks):
        if cells and data["kind"] == "block" and not cells[0] < i < cells[-1]:
            data["kind"] = "stem" if i < cells[0] else "head"
    return graph


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
