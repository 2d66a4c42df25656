"""The file that says what an architecture is: written, read and built again without code of anybody."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.errors import ConfigError, shown
from nas.files.atomic import read_json, replacing
from nas.files.folder import check_contents, exists, require_intact
from nas.files.schemas import ArchitectureRecord, checked
from nas.space.graph import Graph, architecture_hash, cell_graphs, from_dict, to_dict
from nas.space.loading import is_plugin, load
from nas.space.space import Space
from nas.types import Genotype

ARCHITECTURE = "architecture.json"
FORMAT = 1
"""Grows when the meaning of architecture.json changes."""


def describe_architecture(
    space: Space, genotype: Genotype, metrics: Mapping[str, float]
) -> dict[str, object]:
    """The content of architecture.json: all that is needed to build or draw the architecture again."""
    choices = space.choices(genotype)
    genotype = tuple(map(int, genotype))  # JSON knows no integers of numpy
    return {
        "format": FORMAT,
        "space": space.origin or space.name,
        "settings": dict(space.settings),
        "genotype": list(genotype),
        "choices": choices,
        "notation": space.notation.write(genotype) if space.notation is not None else None,
        "hash": architecture_hash(space, genotype),
        "cells": {kind: to_dict(graph) for kind, graph in cell_graphs(space, genotype).items()},
        "metrics": dict(metrics),
    }


def read_architecture(path: Path) -> dict[str, Any]:
    """An architecture.json, or that of a run's folder; nothing of it is executed.

    Raises:
        ConfigError: when there is none, or the folder's manifest says that it is damaged.
    """
    if not exists(path):
        raise ConfigError(
            f"no architecture at {shown(str(path))}: wanted a finished run's folder or an "
            "architecture.json; the text of a genotype needs --space"
        )
    file = path / ARCHITECTURE if path.is_dir() else path
    if path.is_dir():
        check_contents(path)
    require_intact(file.parent, file.name)
    data = read_json(file)
    if not isinstance(data, dict) or not {"space", "settings", "choices", "cells"} <= data.keys():
        raise ConfigError(f"{file} describes no architecture")
    found = data.get("format", FORMAT)
    if isinstance(found, int) and found > FORMAT:
        raise ConfigError(
            f"{file} was written by a newer version (format {found}, this one reads {FORMAT}); "
            "upgrade nas-engine"
        )
    checked(ArchitectureRecord, data, file, "architecture")
    return data


def architecture_of(source: str, *, space: str | None) -> Mapping[str, Any]:
    """That of a run's folder or of a file; with a space also that of a genotype's text.

    Raises:
        ConfigError: when there is none, or the space has no notation for genotypes.
    """
    if exists(Path(source)) or space is None:
        return read_architecture(Path(source))
    loaded = load(space)
    if loaded.notation is None:
        raise ConfigError(
            f"space {space!r} has no notation for genotypes; give a folder or architecture.json"
        )
    return describe_architecture(loaded, loaded.notation.read(source), {})


def graphs_of(architecture: Mapping[str, Any]) -> dict[str, Graph]:
    """The cells of an architecture as read, without its space."""
    return {kind: from_dict(graph) for kind, graph in architecture["cells"].items()}


def load_architecture(
    path: Path, *, space: str | Space | None = None, **settings: object
) -> tuple[Space, Genotype]:
    """The space and genotype of an architecture.json.

    space: must be given where the architecture came from a user's own file, which is never run unasked.
    settings: changes to the space's settings, where it is loaded.

    Raises:
        ConfigError: when the space is a plug-in that was not named.
        SpaceError: when the space no longer has these decisions.
    """
    data = read_architecture(path)
    origin = str(data["space"])
    if space is None and is_plugin(origin):
        raise ConfigError(
            f"{path} was found in the space {origin!r}, which is code of your own; "
            "name it with --space to run it, in Python with space="
        )
    if not isinstance(space, Space):
        space = load(space or origin, **{**data["settings"], **settings})
    return space, space.genotype(data["choices"])


def write_graphml(path: Path, graph: Graph) -> None:
    """A graph for other programs; networkx escapes whatever names hold."""
    import networkx as nx

    with replacing(path) as temporary:
        nx.write_graphml(graph, temporary)
