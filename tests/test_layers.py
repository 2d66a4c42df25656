"""Imports point one way, to layers strictly below, and the engine names no space."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas.registry import bundled

ROOT = Path(__file__).parents[1]
LAYERS = [
    "text",
    # plain values, errors, random streams
    "averaging captured errors strictjson types seeding progress signals console patience peak sealing",
    "streams resting curve method_names pixels oneshot oneshot.gradients",
    "workers workers.identity workers.silence workers.pulse workers.turns",
    "kernel_lock storage storage.address storage.finishing storage.forwarding storage.under_way",
    "oneshot.regularizers oneshot.fused oneshot.fused.depthwise oneshot.fused.stack team launch",
    "oneshot.fused.kernels oneshot.fused.kernels.programs oneshot.fused.kernels.maps",
    "oneshot.fused.kernels.programs.pixels oneshot.fused.kernels.native",
    "oneshot.fused.kernels.programs.dense oneshot.fused.kernels.programs.depthwise",
    "oneshot.fused.kernels.programs.nodes oneshot.fused.kernels.programs.norms",
    "oneshot.fused.rules",
    "oneshot.fused.stages",
    "oneshot.fused.groups",
    "oneshot.fused.families",
    "oneshot.fused.layout",
    "oneshot.fused.laying_out",
    # files, arrays, settings, primitives
    "paths records spellings tomlfile",
    "failures metrics files arrays learning_curves comparison recipe config devices ops pareto surrogate",
    "oneshot.guards oneshot.perturbations oneshot.relaxations oneshot.stages oneshot.updates",
    "workers.slots workers.probe unpacking pictures folder_lock folders manifest",
    "workers.pool",
    "serving serving.served serving.answers serving.page serving.queue",
    "serving.inputs serving.session",
    "serving.app",
    "serving.serve",
    "arithmetic criterion descent",
    "calibration cell choosers checkpoint goals journal_file splits imagefolder draw.series draw.slots",
    "draw.style drop_path journal storage.database storage.parked",
    "storage.patient",
    "storage.run salvage",
    "rebuild",
    "repair",
    "draw.layout draw.alphas draw.anytime draw.curves draw.front draw.health_series draw.network draw.trust",
    "draw.health_panels",
    "draw.health",
    "changing",
    # spaces and data
    "oneshot.mixed",
    "oneshot.fused.plan oneshot.fused.kernels.launch",
    "oneshot.fused.kernels.mixing_launch oneshot.fused.kernels.choice",
    "oneshot.fused.kernels.slots oneshot.fused.kernels.family oneshot.fused.kernels.parameters",
    "oneshot.fused.kernels.backward",
    "oneshot.fused.kernels.node oneshot.fused.kernels.leaving",
    "oneshot.fused.kernels.passage",
    "oneshot.fused.trust",
    "oneshot.fused.cells",
    "oneshot.fused.execution",
    "oneshot.fused.comparing",
    "oneshot.fused.floor",
    "genotypes space_size oneshot.places",
    "oneshot.keeping space resumable datasets mapdataset draw.cells workers.turn_in_database",
    "workers.turn study_record clock images",
    "workers.claims",
    "guard oneshot.extraction oneshot.identities oneshot.watch distributed",
    "acquisition registry graph cost listing probing task oneshot.supernet searchers.searcher draw",
    "alphas morph",
    "augment encodings fidelity latency skeleton searchers.bounded searchers.evolution searchers.local",
    "searchers.random_search searchers.optuna_search searchers.guided searchers.nsga2 searchers.generational",
    # the parts of a differentiable method
    "oneshot.freezing oneshot.recompute oneshot.selection oneshot.expected",
    "oneshot.method oneshot.sampling",
    "oneshot.methods",
    # training and searching
    "accuracy batches",
    "loop ranks searchers",
    "accumulation searchers.named proxies.batch steps",
    "easing oneshot.path_steps proxies.measure proxies.ranks proxies.watch",
    "proxies.activations proxies.gradients proxies.jacobian proxies.magnitude proxies.synflow proxies.zen",
    "needs proxies.zico",
    "proxies",
    "budget schedule halving train testing oneshot.bilevel",
    "oneshot.fused.workloads",
    "ledger proposal",
    "study scored oneshot.paths oneshot.singlepath presets",
    "workers.rehearsal workers.coordinate",
    "oneshot.choosing oneshot.fewshot oneshot.health",
    "oneshot.memory oneshot.record oneshot.shrinking",
    "oneshot.differentiable",
    # what is told to experiment trackers
    "tracking tracking.tracker",
    "tracking.feed tracking.mlflow tracking.points tracking.tensorboard",
    "tracking.tracking",
    "tracking.choice",
    # tables of trained architectures
    "benchmarks.nasbench101 benchmarks.nasbench201",
    "benchmarks.benchmark",
    "benchmarks",
    "benchmarks.simulate",
    "benchmarks.race",
    "benchmarks.contest benchmarks.outcome",
    # whole jobs
    "evaluate plan inputs",
    "architecture_file environment suited validate measured laddered grown learned",
    "run_folder",
    "report.words report.section report.embed report.history",
    "final_network report.run",
    "report.architecture report.curves report.oneshot report.lineage report.importance report.energy",
    "report.summary report.pareto report.working",
    "report.compare",
    "report.page",
    "report",
    "result",
    "result_files",
    # the found model without the engine
    "bundle bundle.pieces bundle.layout bundle.run_form",
    "bundle.constructors",
    "bundle.tracing bundle.proof",
    "bundle.source",
    "bundle.forms bundle.card",
    "bundle.bundle",
    "bundle.at_end bundle.predicting",
    "suspects",
    "doctor final_training",
    "retrain_run",
    "audit.features audit.findings audit.neighbours audit.planted audit.pool audit.predictions audit.sheet",
    "audit.balance audit.duplicates audit.labels audit.outliers",
    "audit.run",
    "audit",
    "job",
    "gradient_search shared_weights",
    "trial_setup",
    "pace",
    "preview",
    "preview_phases",
    "preview_run",
    "timing",
    "trial_search",
    "workers.start",
    "phases",
    "baselines rerank following",
    "preparation whole_job",
    "search_run",
    "cheap_estimates",
    "calibrate_run workers.join workers.sample",
    # what users call
    "cli.app time_allowed",
    "classifier",
    "cluster cluster.worker_command",
    "cluster.on_ray cluster.slurm",
    "dashboard dashboard.live dashboard.server",
    "cli.audit cli.dashboard cli.deploy cli.export cli.launch",
    "cli.look cli.measure cli.mend cli.report cli.workers",
    "cli.job",
    "cli.retrain cli.search",
    "cli",
    "__main__",
]
RANK = {f"nas.{name}": rank for rank, layer in enumerate(LAYERS) for name in layer.split()}
RANK["nas"] = len(LAYERS)

# Where the name of a bundled space also names a published method, recipe or preset, or is a default.
NAMED = {
    "nas.benchmarks.benchmark": {"nasbench101", "nasbench201"},
    "nas.benchmarks.nasbench101": {"nasbench101"},
    "nas.benchmarks.nasbench201": {"nasbench201"},
    "nas.classifier": {"nasbench201"},
    "nas.cli.search": {"darts", "nasbench201"},
    "nas.cli.measure": {"darts", "nasbench101", "nasbench201"},
    "nas.config": {"darts"},
    "nas.method_names": {"darts"},
    "nas.oneshot.method": {"darts"},
    "nas.oneshot.methods": {"darts"},
    "nas.presets": {"darts", "nasbench201"},
    "nas.recipe": {"nasbench201"},
    "nas.search_run": {"darts"},
}

# All that the author of a space needs.
FOR_SPACES = {"nas.types", "nas.errors", "nas.ops", "nas.cell", "nas.choosers", "nas.space"}


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


def words(tree: ast.Module) -> Iterator[str]:
    """Every word in the strings and identifiers of `tree`, docstrings and other bare strings excepted."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield from re.findall(r"\w+", node.value)
        for field in ("id", "attr", "arg", "name"):
            if isinstance(text := getattr(node, field, None), str):
                yield text


def test_every_module_has_exactly_one_layer():
    named = [name for layer in LAYERS for name in layer.split()]
    assert len(named) == len(set(named))
    assert RANK.keys() - NAS.keys() == set(), "these are in LAYERS but do not exist"
    assert NAS.keys() - RANK.keys() == set(), "give these a place in LAYERS"


@pytest.mark.parametrize("module", NAS)
def test_imports_point_strictly_down(module):
    for imported in imports(NAS[module]):
        if inside(imported, "nas"):
            assert RANK[imported] < RANK[module], f"{module} imports {imported}, which is not below it"


@pytest.mark.parametrize("module", NAS)
def test_the_engine_never_imports_a_space(module):
    assert not [imported for imported in imports(NAS[module]) if inside(imported, "spaces")]


@pytest.mark.parametrize("module", SPACES)
def test_spaces_import_only_what_authors_need(module):
    own = [imported for imported in imports(SPACES[module]) if inside(imported, "nas")]
    assert set(own) <= FOR_SPACES


@pytest.mark.parametrize("module", NAS)
def test_the_engine_names_no_space(module):
    assert set(words(NAS[module])) & set(bundled()) == NAMED.get(module, set())


def test_the_rules_find_what_they_should():
    tree = ast.parse('"""darts"""\nfrom nas import task\nx = f"a {toy} darts-2"\nimport spaces.toy\n')
    assert set(imports(tree)) == {"nas.task", "spaces.toy"}
    assert {"toy", "darts"} <= set(words(tree))
    assert "darts" not in set(words(ast.parse('"""darts"""\nx = 1\n"""darts"""\n')))
