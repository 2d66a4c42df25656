"""Imports have no circle and point down, and the engine imports and names no space."""

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

import networkx

from nas.space.loading import bundled

ROOT = Path(__file__).parents[1]

# From the ground up: each row imports from itself and from those above it here.
LAYERS = (
    ("errors", "types", "seeding", "user_code", "devices"),
    ("files",),
    ("space",),
    ("data",),
    ("training",),
    ("searchers",),
    ("oneshot",),
    ("testing",),
    ("evaluate",),
    ("study",),
    ("results",),
    ("show",),
    ("audit",),
    ("export",),
    ("run",),
    ("classifier", "cli", "__main__"),
)

# All that the author of a space needs.
FOR_SPACES = {
    "nas.types",
    "nas.errors",
    "nas.space.ops",
    "nas.space.cell",
    "nas.space.choosers",
    "nas.space.space",
}

# Where the name of a bundled space also names a published method, recipe or preset, or is a default.
NAMED = {
    "nas.evaluate.benchmarks": {"nasbench101", "nasbench201"},
    "nas.classifier": {"convnet"},
    "nas.cli.benchmark": {"nasbench101", "nasbench201"},
    "nas.run.config": {"darts", "nasbench201"},
    "nas.searchers.method_names": {"darts"},
    "nas.oneshot.methods": {"darts"},
    "nas.run.presets": {"darts", "nasbench201"},
    "nas.training.recipe": {"nasbench201"},
    "nas.run.pipeline": {"darts"},
}


def modules(package: str) -> dict[str, ast.Module]:
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


NAS, SPACES = modules("nas"), modules("spaces")


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module imported anywhere in `tree`, inside functions and for type checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "wanted absolute imports"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                # The version is a constant that stands in the package itself.
                if inner != "nas.__version__":
                    yield inner if inner in NAS or inner in SPACES else str(node.module)


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_imports_have_no_circle():
    graph = networkx.DiGraph((module, other) for module in NAS for other in imports(NAS[module]))
    assert networkx.is_directed_acyclic_graph(graph), networkx.find_cycle(graph)


def test_imports_point_down():
    """And none of a space, which is in no row."""
    row = {name: number for number, names in enumerate(LAYERS) for name in names}
    for module, tree in NAS.items():
        own = row.get(module.partition(".")[2].partition(".")[0], len(LAYERS))  # `nas` itself is above all
        for imported in imports(tree):
            if inside(imported, "nas") and imported != "nas":
                assert row.get(imported.split(".")[1], math.inf) <= own, f"{module} imports {imported}"


def test_spaces_import_only_what_authors_need():
    for module, tree in SPACES.items():
        own = [imported for imported in imports(tree) if inside(imported, "nas")]
        assert set(own) <= FOR_SPACES, module


def words(tree: ast.Module) -> Iterator[str]:
    """Every word in the strings of `tree`, docstrings and other bare strings excepted."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield from re.findall(r"\w+", node.value)


def test_the_engine_names_no_space():
    for module, tree in NAS.items():
        assert set(words(tree)) & set(bundled()) == NAMED.get(module, set()), module
