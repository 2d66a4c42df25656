"""Imports point one way, to layers strictly below, and the engine names no space."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas.registry import bundled

ROOT = Path(__file__).parents[1]
LAYERS = [
    "architectures budget data evaluation files job results schedulers training",
    "text dispatch",
    # plain values, errors, random streams
    "training.averaging training.pace errors files.strictjson types seeding progress signals "
    "storage.patience training.peak storage.sealing",
    "devices",
    "training.captured",
    "training.streams training.resting training.curve job.method_names data.pixels oneshot oneshot.gradients",
    "workers workers.identity workers.silence workers.pulse workers.turns",
    "files.stopped_holder files.cached files.temporary",
    "files.kernel_lock storage storage.address storage.finishing storage.forwarding storage.under_way",
    "oneshot.regularizers oneshot.fused oneshot.fused.depthwise oneshot.fused.stack training.team "
    "training.launch",
    "oneshot.fused.kernels oneshot.fused.kernels.programs oneshot.fused.kernels.maps "
    "oneshot.fused.kernels.cubins oneshot.fused.kernels.tiles oneshot.fused.kernels.programs.blocks",
    "oneshot.fused.kernels.programs.pixels oneshot.fused.kernels.variant",
    "oneshot.fused.kernels.native",
    "oneshot.fused.kernels.programs.dense oneshot.fused.kernels.programs.depthwise",
    "oneshot.fused.kernels.programs.nodes oneshot.fused.kernels.programs.norms "
    "oneshot.fused.kernels.programs.pools",
    "oneshot.fused.rules",
    "oneshot.fused.stages",
    "oneshot.fused.groups",
    "oneshot.fused.families",
    "oneshot.fused.layout oneshot.fused.drafts",
    "oneshot.fused.laying_out",
    # files, arrays, settings, primitives
    "files.paths results.records job.spellings files.tomlfile console",
    "evaluation.failures evaluation.metrics files.atomic data.arrays evaluation.learning_curves "
    "evaluation.comparison training.recipe job.config ops pareto searchers.surrogate",
    "oneshot.guards oneshot.perturbations oneshot.relaxations oneshot.stages oneshot.updates",
    "workers.slots workers.probe data.unpacking data.pictures files.folder_lock files.folders files.manifest",
    "workers.pool results.run_record",
    "serving serving.served serving.answers serving.page serving.queue",
    "serving.inputs serving.session",
    "serving.app",
    "serving.serve",
    "training.arithmetic training.criterion training.descent",
    "evaluation.calibration cell choosers training.checkpoint goals storage.journal_file data.splits "
    "data.imagefolder draw.series draw.slots",
    "draw.style training.drop_path storage.journal storage.database storage.parked",
    "storage.patient",
    "storage.run storage.salvage",
    "storage.rebuild",
    "storage.repair",
    "draw.time_axis",
    "draw.tried",
    "draw.choices draw.layout draw.alphas draw.anytime draw.curves draw.front draw.health_series "
    "draw.network draw.trust",
    "draw.health_panels",
    "draw.health",
    "job.changing",
    # spaces and data
    "oneshot.mixed",
    "oneshot.fused.plan oneshot.fused.together oneshot.fused.kernels.launch",
    "oneshot.fused.kernels.mixing_launch oneshot.fused.kernels.choice",
    "oneshot.fused.kernels.slots oneshot.fused.kernels.family oneshot.fused.kernels.parameters",
    "oneshot.fused.kernels.running",
    "oneshot.fused.kernels.backward",
    "oneshot.fused.kernels.node oneshot.fused.kernels.leaving oneshot.fused.kernels.joining "
    "oneshot.fused.kernels.preparing",
    "oneshot.fused.kernels.passage",
    "oneshot.fused.trust",
    "oneshot.fused.inputs",
    "oneshot.fused.memory",
    "oneshot.fused.cells",
    "oneshot.fused.verdict",
    "oneshot.fused.settling",
    "oneshot.fused.execution",
    "speed speed.comparing",
    "speed.floor",
    "architectures.genotypes architectures.space_size oneshot.places",
    "oneshot.keeping space training.resumable data.datasets data.mapdataset draw.cells "
    "workers.turn_in_database",
    "workers.turn storage.study_record budget.clock data.images",
    "workers.claims",
    "user_code oneshot.extraction oneshot.identities oneshot.watch training.distributed",
    "searchers.acquisition registry graph cost architectures.listing architectures.probing task "
    "oneshot.supernet searchers.searcher draw",
    "results.alphas results.health architectures.morph",
    "data.augment architectures.encodings evaluation.fidelity latency architectures.skeleton "
    "searchers.bounded searchers.evolution searchers.local",
    "searchers.random_search searchers.optuna_search searchers.guided searchers.nsga2 searchers.generational",
    # the parts of a differentiable method
    "oneshot.freezing oneshot.recompute oneshot.selection oneshot.expected",
    "oneshot.method oneshot.sampling",
    "oneshot.methods job.arguments",
    # training and searching
    "training.accuracy training.batches training.soundness",
    "training.loop job.ranks searchers",
    "training.accumulation searchers.named proxies.batch training.steps oneshot.bilevel_passes",
    "training.easing oneshot.path_steps oneshot.bilevel_gradients",
    "proxies.measure proxies.ranks proxies.watch",
    "proxies.activations proxies.gradients proxies.jacobian proxies.magnitude proxies.synflow proxies.zen",
    "training.needs proxies.zico",
    "proxies",
    "budget.shares schedulers.scheduler schedulers.halving training.train testing oneshot.bilevel",
    "speed.workloads",
    "oneshot.fused.trying speed.in_turn speed.table",
    "storage.ledger schedulers.proposal",
    "study evaluation.scored oneshot.paths oneshot.singlepath job.presets",
    "speed.rehearsal workers.coordinate",
    "oneshot.choosing oneshot.fewshot oneshot.health",
    "oneshot.record oneshot.shrinking",
    "oneshot.course oneshot.memory",
    "oneshot.differentiable",
    # what is told to experiment trackers
    "tracking tracking.tracker",
    "tracking.feed tracking.mlflow tracking.points tracking.tensorboard",
    "tracking.tracking",
    "job.trackers",
    # tables of trained architectures
    "benchmarks.nasbench101 benchmarks.nasbench201",
    "benchmarks.benchmark",
    "benchmarks",
    "benchmarks.simulate",
    "benchmarks.race",
    "benchmarks.contest benchmarks.outcome",
    # whole jobs
    "evaluation.evaluators job.plan data.inputs",
    "results.architecture_file environment job.suited architectures.validate evaluation.measured "
    "evaluation.laddered evaluation.grown evaluation.memory_bound",
    "job.run_folder",
    "report.words report.section report.embed report.history",
    "job.final_network report.run",
    "report.architecture report.curves report.oneshot report.lineage report.importance report.energy",
    "report.summary report.pareto report.working",
    "report.compare",
    "report.page",
    "report",
    "results.result",
    "results.result_files",
    # the found model without the engine
    "bundle bundle.pieces bundle.layout bundle.run_form",
    "bundle.constructors",
    "bundle.tracing bundle.proof",
    "bundle.source",
    "bundle.forms bundle.card",
    "bundle.bundle",
    "bundle.at_end bundle.predicting",
    "data.suspects",
    "doctor",
    "audit.features audit.findings audit.neighbours audit.planted audit.pool audit.predictions audit.sheet",
    "audit.balance audit.duplicates audit.labels audit.outliers",
    "audit.run",
    "audit",
    "job.job",
    "job.gradient_search job.shared_weights",
    "job.trial_setup",
    "budget.pace",
    "budget.preview",
    "budget.preview_phases",
    "budget.preview_run",
    "budget.timing",
    "job.trial_search job.final_training",
    "workers.start",
    "job.search_phase",
    "job.baselines job.rerank job.lifecycle",
    "job.preparation job.whole_job",
    "job.search_run job.retrain_run",
    "job.cheap_estimates",
    "job.calibrate_run workers.join workers.sample",
    # what users call
    "cli.app budget.time_allowed",
    "classifier cli.job",
    "cluster cluster.worker_command",
    "cluster.on_ray cluster.slurm",
    "dashboard dashboard.live dashboard.server",
    "cli.audit cli.benchmark cli.calibrate cli.check cli.dashboard cli.doctor cli.draw cli.export cli.launch "
    "cli.predict cli.repair cli.report cli.retrain cli.search cli.serve cli.spaces cli.validate cli.worker",
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
    "nas.cli.benchmark": {"nasbench101", "nasbench201"},
    "nas.cli.calibrate": {"darts"},
    "nas.job.config": {"darts"},
    "nas.job.method_names": {"darts"},
    "nas.oneshot.method": {"darts"},
    "nas.oneshot.methods": {"darts"},
    "nas.job.presets": {"darts", "nasbench201"},
    "nas.training.recipe": {"nasbench201"},
    "nas.job.search_run": {"darts"},
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
