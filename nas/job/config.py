"""What a user asks for: the settings of a job as one checked value, from TOML, command line or Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainValidator,
    ValidationError,
)

from nas.errors import ConfigError, unknown
from nas.job.method_names import METHODS, SHARED, by_gradients
from nas.job.spellings import Count, Table, Text, Texts, address, count, number, seconds, size, switched
from nas.study.address import Address
from nas.text import shown
from nas.types import MOST

_BY_GRADIENTS = frozenset(
    ("alphas", "alpha_speed", "search", "method_settings", "guard", "guards", "selection", "seed_alphas")
) | {"memory"}


class Config(BaseModel):
    """The settings of one job. `None` means the preset's value.

    space: name, `module:function` or `file.py:function`; task: see `nas.load_task`.
    method: one of `METHODS`, `optuna:` and the name of a sampler, or a function of your own that returns a
      `nas.Method`, as `module:function` or `file.py:function`.
    evaluator: for black-box methods, how to measure a trial: `trained` from scratch, or with weights
      `shared` in a supernet; `spos` does the latter always.
    trials: black-box trials. epochs: of one trial, of the supernet (`shared`), or of a differentiable search.
    budget: seconds of the whole job, as a number or "30m": a hard end, see docs/budget.md.
    top_k, top_k_epochs: how many of the best are trained again with fresh seeds, and for how long.
    search_images: at most so many images before the last training; 0 means all.
    objective: what is optimised: metrics or weighted sums, with several a Pareto front; default `val_acc`.
    constraint: bounds on metrics, e.g. "params<=3e6". latency_table: a file that `latency_ms` comes from.
    scheduler: `fixed`, `successive-halving` or `hyperband`. ladder: their rungs, e.g. "epochs=1; epochs=3";
      by default epochs that grow by `eta` up to those of a trial.
    fidelity: what one trial of the `fixed` scheduler may spend, e.g. "epochs=3,width=0.5", or `auto` for the
      cheapest one that the folder of `nas calibrate` in `calibration` found trustworthy.
    max_failures: so many trials that fail one after the other end the search.
    early_stop: a trial ends when its chance to beat the best so far falls below this; 0 means never.
    baselines: whether random search at equal cost is run too and compared with.
    seeds: how often each of the best is trained again.
    export: whether the found model is written at the end as source, program and ONNX, see docs/deploy.md.
    pictures: whether the result is drawn, report.html included.
    deterministic: on CUDA, use only what gives the same bits on every run; a CPU does so anyway.
    execution, graph: how cells and steps are run in all phases, see `nas.training.recipe.Recipe`.
    rank_timeout: under torchrun, seconds that a rank waits for the others within a step before it gives up.
    space_settings: passed to the space; final_settings: to the space of the last training, on top of these.
    trial, shared, search, retrain: changes to the recipe of that phase.
    alphas: changes to how the alphas move: lr, weight_decay. alpha_speed: a factor on the method's own lr,
      for searches of fewer steps than the published ones.
    method_settings: of a differentiable method, e.g. `parts` of pcdarts (see `nas.oneshot.methods`).
    guard: whether a differentiable search is watched and put right when it collapses. guards: settings of
      `nas.oneshot.guards.Guards`, e.g. skip_cap.
    selection: how a differentiable search chooses in the end: `argmax` of the alphas or by `perturbation`.
    seed_alphas: folder of an earlier run with trials of the same space; its best architectures are what the
      alphas start from.
    memory: what a supernet may take, e.g. "8GiB"; batch, precision, checkpointing and method are chosen by
      it.
    sharing: settings of `nas.oneshot.singlepath.Sharing`, e.g. sampling="fair".
    warm_start: what a training begins with: `none`, the weights of a `parent` that this architecture extends
      (evolution), or those of the `supernet` (re-evaluation after trials on shared weights).
    searcher: settings of the method, e.g. population and tournament of evolution.
    workers: processes that evaluate trials; `auto` is the number of cores or GPUs, and with 0 all is done in
      this process. executor: an engine that evaluates them instead, `workers` at a time: see
      `nas.study.clusters.KINDS`. gpus_per_trial: what it reserves for each.
    asynchronous: propose by whatever has ended, and not in an order that the same seed repeats.
    trial_timeout: a trial that takes more seconds is begun once more, and then has failed.
    augment: how training images are varied in all phases: `none`, or parts of `crop+flip+cutout`; unless
      given, they are cropped, and mirrored where the task is known to bear it (CIFAR).
    exclude: a suspects.json of `nas audit`, or `PATH:KINDS`; the images that it names leave their splits.
    audit: whether the images and labels are audited before a search (see docs/audit.md).
    storage: the URL of a database for the trials (see docs/storage.md); the journal in the run's folder where
      there is none, here or in the environment variable NAS_STORAGE.
    storage_patience: how long a storage that cannot be used, a database that is away or a disk that is full,
      is waited for, as a number of seconds or "10m".
    tensorboard: folder for event files of this run and others; true or "auto" is one in the run's folder.
    mlflow: URI of an MLflow server or database to track the run on; true or "auto" leaves it to MLflow, which
      reads MLFLOW_TRACKING_URI.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: Text = "darts"
    task: Text = "digits"
    method: Text = "is-darts"
    evaluator: Literal["trained", "shared"] = "trained"
    preset: Text = "quick"
    trials: Count | None = None
    epochs: Count | None = None
    budget: Annotated[FiniteFloat, Field(gt=0), BeforeValidator(seconds)] | None = None
    top_k: Count | None = None
    top_k_epochs: Count | None = None
    seeds: Count | None = None
    search_images: Annotated[int, Field(ge=0, le=MOST), BeforeValidator(number)] | None = None
    objective: Texts = ()
    constraint: Texts = ()
    latency_table: Text | None = None
    scheduler: Literal["fixed", "successive-halving", "hyperband"] = "fixed"
    ladder: Text | None = None
    eta: Annotated[int, Field(ge=2, le=1000), BeforeValidator(number)] = 3
    fidelity: Text | None = None
    calibration: Text | None = None
    max_failures: Count = 10
    early_stop: Annotated[FiniteFloat, Field(ge=0, lt=1), BeforeValidator(number)] = 0.0
    baselines: bool = True
    export: bool = True
    pictures: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(number)] = 0
    device: Text = "auto"
    deterministic: bool = False
    execution: Literal["auto", "plain", "batched"] = "auto"
    graph: bool = True
    rank_timeout: Annotated[FiniteFloat, Field(gt=0), BeforeValidator(seconds)] = 600.0
    space_settings: Table = {}
    final_settings: Table = {}
    trial: Table = {}
    shared: Table = {}
    search: Table = {}
    retrain: Table = {}
    alphas: Table = {}
    alpha_speed: Annotated[FiniteFloat, Field(gt=0), BeforeValidator(number)] | None = None
    method_settings: Table = {}
    guard: bool = True
    guards: Table = {}
    selection: Literal["argmax", "perturbation"] = "argmax"
    seed_alphas: Text | None = None
    memory: Annotated[int, Field(gt=0), BeforeValidator(size)] | None = None
    sharing: Table = {}
    warm_start: Literal["none", "parent", "supernet"] = "none"
    searcher: Table = {}
    workers: Annotated[Annotated[int, Field(ge=0, le=1024)] | Literal["auto"], BeforeValidator(count)] = 1
    executor: Text | None = None
    gpus_per_trial: Annotated[FiniteFloat, Field(ge=0), BeforeValidator(number)] = 0.0
    asynchronous: bool = False
    trial_timeout: Annotated[FiniteFloat, Field(gt=0), BeforeValidator(seconds)] | None = None
    augment: Text | None = None
    exclude: Text | None = None
    audit: bool = False
    storage: Annotated[Address | None, PlainValidator(address)] = None
    storage_patience: Annotated[FiniteFloat, Field(ge=0), BeforeValidator(seconds)] = 600.0
    tensorboard: Annotated[Text | None, BeforeValidator(switched)] = None
    mlflow: Annotated[Text | None, BeforeValidator(switched)] = None

    @property
    def is_differentiable(self) -> bool:
        """Whether the method searches by gradients."""
        return by_gradients(self.method)

    @property
    def shares_weights(self) -> bool:
        """Whether trials are measured with weights of a supernet."""
        return self.evaluator == "shared" or self.method in SHARED


def make_config(values: Mapping[str, object], *, where: str = "settings") -> Config:
    """A checked configuration from plain values.

    Raises:
        ConfigError: with every unknown key's nearest name, and for each wrong value what was wanted.
    """
    for key in values:
        if key not in Config.model_fields:
            raise ConfigError(f"{where}: {unknown('setting', str(key), Config.model_fields)}")
    method = str(values.get("method", Config.model_fields["method"].default))
    if method not in METHODS and ":" not in method:
        raise ConfigError(f"{where}: {unknown('method', method, METHODS)}")
    try:
        config = Config.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from error
    _refuse_unused(config, where)
    return config


def _refuse_unused(config: Config, where: str) -> None:
    """A setting that the chosen method does not read must not be accepted in silence."""
    gradients, shared = config.is_differentiable, config.shares_weights
    trained = not gradients and not shared
    fixed = trained and config.scheduler == "fixed"
    used = {
        "trials": not gradients,
        "max_failures": not gradients,
        "evaluator": not gradients or config.evaluator == "trained",
        "alphas": gradients,
        "alpha_speed": gradients,
        "search": gradients,
        "method_settings": gradients,
        "guard": gradients,
        "guards": gradients and config.guard,
        "selection": gradients,
        "seed_alphas": gradients,
        "memory": gradients,
        "shared": shared,
        "sharing": shared,
        "warm_start": shared if config.warm_start == "supernet" else fixed and config.method == "evolution",
        "searcher": not gradients,
        "objective": not gradients,
        "latency_table": not gradients or bool(config.constraint),
        "scheduler": trained,
        "ladder": config.scheduler != "fixed",
        "eta": config.scheduler != "fixed",
        "fidelity": fixed,
        "calibration": config.fidelity == "auto",
        "early_stop": fixed,
        "executor": trained,
        "gpus_per_trial": config.executor is not None,
        "asynchronous": trained,
        "trial_timeout": trained,
    }
    for name, is_used in used.items():
        if not is_used and getattr(config, name) != type(config).model_fields[name].default:
            default = "" if "method" in config.model_fields_set else ", the default,"
            raise ConfigError(
                f"{where}: {name} is set, but method {config.method!r}{default} with evaluator "
                f"{config.evaluator!r} and scheduler {config.scheduler!r} does not use it; remove it"
                f"{_users(name, config)}"
            )
    if config.fidelity == "auto" and config.calibration is None:
        raise ConfigError(
            f"{where}: fidelity is auto, which needs a calibration: run `nas calibrate` and set calibration "
            "to its folder"
        )


def _users(name: str, config: Config) -> str:
    """Which other methods use a setting, where it is the method that speaks against it."""
    if name in ("shared", "sharing"):
        return ", or choose a method on shared weights, e.g. 'spos'"
    if name in _BY_GRADIENTS:
        return "" if config.is_differentiable else ", or choose a method by gradients, e.g. 'darts'"
    return ", or choose a method by trials, e.g. 'evolution'" if config.is_differentiable else ""


def _explain(problem: Mapping[str, Any]) -> str:
    known = Config.model_fields.get(str(problem["loc"][0]))
    is_table = known is not None and isinstance(known.default, dict)  # elsewhere the rest names types
    name = ".".join(str(part) for part in (problem["loc"] if is_table else problem["loc"][:1]))
    got = problem["input"]
    hint = "; write text in quotes" if isinstance(got, bool) and "string" in problem["msg"] else ""
    words = problem["msg"].removeprefix("Value error, ")
    return f"{name} is {shown(got)}: {words[:1].lower()}{words[1:]}{hint}"
