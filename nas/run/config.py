"""What a user asks for: the settings of a job as one checked value, from TOML, command line or Python."""

from __future__ import annotations

import math
import re
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
from pydantic.fields import FieldInfo

from nas.errors import ConfigError, shown, unknown
from nas.searchers.method_names import BLACK_BOX, DIFFERENTIABLE, METHODS, SHARED, by_gradients
from nas.study.address import Address
from nas.types import MOST

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def scalar(value: object) -> object:
    """A setting inside a table: text, a finite number of at most 64 bits, true or false."""
    if not isinstance(value, bool | int | float | str):
        raise ValueError("wanted text, a number, true or false")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("wanted a finite number")
    return value if isinstance(value, bool | str) else number(value)


def number(value: object) -> object:
    """A number that is not written as true or false and has at most the 64 bits that TOML grants."""
    if isinstance(value, bool):
        raise ValueError("wanted a number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("wanted a number of at most 64 bits")
    return value


def encodable(value: object) -> object:
    """Text that can be written into a file; names of files that are no UTF-8 cannot."""
    try:
        return value.encode().decode() if isinstance(value, str) else value
    except UnicodeEncodeError:
        raise ValueError("wanted text that is UTF-8; rename the file") from None


def texts(value: object) -> object:
    """One text counts as a list of one."""
    return (value,) if isinstance(value, str) else value


def seconds(value: object) -> object:
    """`"90"`, `"30m"`, `"1.5h"` as seconds; anything else is left for the type to refuse."""
    if not isinstance(value, str):
        return number(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", value)
    if match is None:
        raise ValueError('wanted a time such as "90s", "30m" or "1.5h"')
    return float(match[1]) * _UNITS[match[2]]


def size(value: object) -> object:
    """`"8GiB"`, `"500MB"` or a number of bytes as bytes; anything else is left for the type to refuse."""
    if not isinstance(value, str):
        return number(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?\s*", value, re.I)
    if match is None:
        raise ValueError('wanted a size such as "8GiB" or "500MB"')
    step = 1024 if match[3] else 1000
    found = float(match[1]) * step ** " KMGT".index((match[2] or " ").upper())
    if not found < 2**63:
        raise ValueError("wanted a size of at most 64 bits")
    return round(found)


def count(value: object) -> object:
    """A number of processes, which may be spelt as text, or `auto`."""
    found = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 20 else number(value)
    if found != "auto" and not (isinstance(found, int) and 0 <= found <= 1024):
        raise ValueError("wanted a whole number from 0 to 1024, or auto")
    return found


def address(value: object) -> Address | None:
    """The URL of a database, which from here on shows its password to nobody."""
    if value is None or isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ConfigError(f"storage is a {type(value).__name__}, wanted the URL of a database as text")
    return Address(value)


def switched(value: object) -> object:
    """True as "auto" and false as nothing; anything else is left for the type to refuse."""
    return ("auto" if value else None) if isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(encodable)]
Table = dict[Text, Annotated[Any, BeforeValidator(scalar), BeforeValidator(encodable)]]
Count = Annotated[int, Field(ge=1, le=MOST), BeforeValidator(number)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(texts)]
Seconds = Annotated[FiniteFloat, Field(gt=0), BeforeValidator(seconds)]
Number = Annotated[FiniteFloat, BeforeValidator(number)]

SPACE = "A name (see nas spaces), module:function or file.py:function."
TASK = (
    "digits, fashion_mnist, cifar10, cifar100, npz:PATH, folder:PATH, or folder:PATH@64, which stretches its "
    "images."
)
METHOD = (
    f"By trials: {', '.join(BLACK_BOX)}, optuna:NAME. On shared weights: {', '.join(SHARED)}. By gradients: "
    f"{', '.join(DIFFERENTIABLE)}, or your own as FILE.py:FUNCTION."
)
PANELS = {
    "what": "What is searched",
    "trials": "Methods by trials",
    "gradients": "Methods by gradients",
    "comparison": "Comparison",
    "data": "Data",
    "machine": "Machine",
    "result": "Result",
}
"""The groups of options in the help of the command line."""


def says(description: str, panel: str = "", *, by: str = "", default: object = None) -> Any:  # noqa: ANN401 - pydantic's
    """A setting: what it does, and under which of `PANELS` it is an option; one without is given by `--set`.

    by: what alone reads it, `gradients`, `trials`, `trained` (trials from scratch), `fixed` (those without
      rungs), `rungs` or `shared` (weights); every job unless given.
    """
    return Field(default=default, description=description, json_schema_extra={"panel": panel, "by": by})


class Config(BaseModel):
    """The settings of one job; `None` means the preset's value. The command line is made from them.

    Example:
        nas.make_config({"space": "nasbench201", "method": "evolution", "retrain": {"lr": 0.1}})
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: Text = says(SPACE, "what", default="darts")
    task: Text = says(TASK, "what", default="digits")
    method: Text = says(METHOD, "what", default="auto")
    preset: Text = says(
        "How long phases take and how large networks are: quick (minutes), standard (as published), "
        "nasbench201 or nasbench201-12 (as for its table).",
        "what",
        default="quick",
    )
    evaluator: Literal["trained", "shared"] = says(
        "Trials are trained from scratch or on shared weights: trained or shared.",
        "trials",
        by="trials",
        default="trained",
    )
    trials: Count | None = says("Trials, of methods by trials.", "trials", by="trials")
    epochs: Count | None = says(
        "Epochs of a trial, of a shared supernet, or of a search by gradients.", "trials"
    )
    budget: Seconds | None = says(
        'Time for the whole job, e.g. "30m": a hard end, by when the best so far is trained.', "what"
    )
    top_k: Count | None = says("How many of the best are trained again with fresh seeds.", "comparison")
    top_k_epochs: Count | None = says("For how many epochs these are trained.", "comparison")
    repeats: Count | None = says("How often each of these is trained.", "comparison")
    search_images: Annotated[int, Field(ge=0, le=MOST), BeforeValidator(number)] | None = says(
        "At most so many images before the last training; 0 means all.", "trials"
    )
    objective: Texts = says(
        "What is optimised, e.g. val_acc, -latency_ms or 'val_acc - 0.01*latency_ms'; several make a Pareto "
        "search. [default: val_acc]",
        "trials",
        by="trials",
        default=(),
    )
    constraint: Texts = says('A bound, e.g. "params<=3e6"; may be repeated.', "trials", default=())
    latency_table: Text | None = says("A file that latency_ms comes from.", "trials")
    scheduler: Literal["fixed", "successive-halving", "hyperband"] = says(
        "How long trials are trained: fixed, successive-halving or hyperband.",
        "trials",
        by="trained",
        default="fixed",
    )
    rungs: Text | None = says(
        'The rungs of the latter two, e.g. "epochs=1; epochs=3"; by eta up to a trial\'s epochs.',
        "trials",
        by="rungs",
    )
    eta: Annotated[int, Field(ge=2, le=1000), BeforeValidator(number)] = says(
        "One in so many climbs a rung.", "trials", by="rungs", default=3
    )
    fidelity: Text | None = says(
        'What a trial may spend, e.g. "epochs=3,width=0.5", or auto.', "trials", by="fixed"
    )
    calibration: Text | None = says("Folder of nas calibrate, for fidelity auto.", "trials")
    max_failures: Count = says(
        "So many failed trials in a row end the search.", "trials", by="trials", default=10
    )
    early_stop: Annotated[Number, Field(ge=0, lt=1)] = says(
        "A trial ends when its chance to beat the best so far falls below this.",
        "trials",
        by="fixed",
        default=0.0,
    )
    baselines: bool = says("Whether to compare with random search at equal cost.", "comparison", default=True)
    export: bool = says("Whether to write model.py, model.pt2 and model.onnx.", "result", default=True)
    pictures: bool = says("Whether the result is drawn, report.html included.", "result", default=True)
    seed: Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(number)] = says(
        "Root of all randomness.", "what", default=0
    )
    device: Text = says("auto, cpu, cuda, cuda:1.", "machine", default="auto")
    deterministic: bool = says(
        "On CUDA, only what gives the same bits on every run; slower.", "machine", default=False
    )
    execution: Literal["auto", "plain", "batched"] = says(
        "How cells are run: plain, batched or auto.", "machine", default="auto"
    )
    graph: bool = says(
        "On CUDA, whether whole steps are replayed as one graph where they can be.", "machine", default=True
    )
    rank_timeout: Seconds = says(
        "Under torchrun, how long a rank waits for the others within a step.", "machine", default=600.0
    )
    space_settings: Table = says("Passed to the space.", default={})
    final_settings: Table = says("To the space of the last training, on top of these.", default={})
    trial: Table = says("Changes to the recipe of trials.", default={})
    supernet: Table = says("Changes to that of a supernet for trials.", by="shared", default={})
    search: Table = says("Changes to that of a search by gradients.", by="gradients", default={})
    retrain: Table = says("Changes to that of the last training.", default={})
    alphas: Table = says("Changes to how the alphas move: lr, weight_decay.", by="gradients", default={})
    alpha_lr_scale: Annotated[Number, Field(gt=0)] | None = says(
        "A factor on the alphas' own lr, for searches of fewer steps than the published ones.",
        "gradients",
        by="gradients",
    )
    method_settings: Table = says(
        "Of a method by gradients, e.g. parts of pcdarts.", by="gradients", default={}
    )
    guard: bool = says(
        "Whether a search by gradients is put right when it collapses.",
        "gradients",
        by="gradients",
        default=True,
    )
    guard_settings: Table = says(
        "Settings of nas.oneshot.early_stopping.Guards, e.g. skip_cap.", by="gradients", default={}
    )
    selection: Literal["argmax", "perturbation"] = says(
        "How the architecture is chosen in the end: argmax or perturbation.",
        "gradients",
        by="gradients",
        default="argmax",
    )
    seed_alphas: Text | None = says(
        "Folder of an earlier run, whose best architectures the alphas start from.",
        "gradients",
        by="gradients",
    )
    memory: Annotated[int, Field(gt=0), BeforeValidator(size)] | None = says(
        'What a step may take, e.g. "8GiB"; the method is changed to fit.', "gradients", by="gradients"
    )
    sharing: Table = says(
        "Settings of nas.oneshot.path_training.Sharing, e.g. sampling.", by="shared", default={}
    )
    warm_start: Literal["none", "parent", "supernet"] = says(
        "What a training begins with: none, the weights of a parent that it extends (evolution), or those of "
        "the supernet (fresh trainings after trials on shared weights).",
        "trials",
        default="none",
    )
    searcher: Table = says("Settings of the method, e.g. population of evolution.", by="trials", default={})
    workers: Annotated[Annotated[int, Field(ge=0, le=1024)] | Literal["auto"], BeforeValidator(count)] = says(
        "Processes that evaluate trials: a number, auto for the cores or GPUs, 0 for none.",
        "machine",
        default=1,
    )
    executor: Text | None = says(
        "Where trials are evaluated instead: ray, ray://HOST:PORT, dask://HOST:PORT or "
        "slurm:OPTION=VALUE,...",
        "machine",
        by="trained",
    )
    gpus_per_trial: Annotated[Number, Field(ge=0)] = says(
        "What an executor reserves.", "machine", default=0.0
    )
    asynchronous: bool = says(
        "Propose by whatever has ended; not repeatable, never waits.",
        "machine",
        by="trained",
        default=False,
    )
    trial_timeout: Seconds | None = says(
        'A trial that takes longer, e.g. "2h", is begun once more, and then fails.', "machine", by="trained"
    )
    augment: Text | None = says(
        "How training images are varied: none, or parts of crop+flip+cutout. [default: crop, of CIFAR "
        "crop+flip]",
        "data",
    )
    exclude: Text | None = says(
        "A suspects.json of nas audit, or PATH:KINDS: its images are left out.", "data"
    )
    audit: bool = says("Look for wrong labels, copies and leaks before the search.", "data", default=False)
    storage: Annotated[Address | None, PlainValidator(address)] = says(
        "Database for the trials, e.g. sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE. [default: "
        "$NAS_STORAGE, else a file in the run's folder]",
        "machine",
    )
    storage_patience: Annotated[FiniteFloat, Field(ge=0), BeforeValidator(seconds)] = says(
        "How long a storage that is away, or full, is waited for.", "machine", default=600.0
    )
    tensorboard: Annotated[Text | None, BeforeValidator(switched)] = says(
        "Write event files for TensorBoard, into the run's folder unless another is named.", "result"
    )
    mlflow: Annotated[Text | None, BeforeValidator(switched)] = says(
        "Track the run on an MLflow server, that of $MLFLOW_TRACKING_URI if none is named.", "result"
    )

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
    readers = {
        "": True,
        "gradients": gradients,
        "trials": not gradients,
        "trained": trained,
        "fixed": fixed,
        "rungs": config.scheduler != "fixed",
        "shared": shared,
    }
    together = {
        "guard_settings": config.guard,
        "warm_start": shared if config.warm_start == "supernet" else fixed and config.method == "evolution",
        "latency_table": not gradients or bool(config.constraint),
        "calibration": config.fidelity == "auto",
        "gpus_per_trial": config.executor is not None,
    }
    for name, field in Config.model_fields.items():
        by = _reader(field)
        if getattr(config, name) == field.default or (readers[by] and together.get(name, True)):
            continue
        default = "" if "method" in config.model_fields_set else ", the default,"
        raise ConfigError(
            f"{where}: {name} is set, but method {config.method!r}{default} with evaluator "
            f"{config.evaluator!r} and scheduler {config.scheduler!r} does not use it; remove it"
            f"{_users(by, config)}"
        )
    if config.fidelity == "auto" and config.calibration is None:
        raise ConfigError(
            f"{where}: fidelity is auto, which needs a calibration: run `nas calibrate` and set calibration "
            "to its folder"
        )


def _reader(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["by"]) if isinstance(extra, dict) else ""


def _users(by: str, config: Config) -> str:
    """Which other methods use a setting, where it is the method that speaks against it."""
    if by == "shared":
        return ", or choose a method on shared weights, e.g. 'spos'"
    if by == "gradients":
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
