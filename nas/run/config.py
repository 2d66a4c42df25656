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
    if isinstance(value, str) and not _is_utf8(value):
        raise ValueError("wanted text that is UTF-8; rename the file")
    return value


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def texts(value: object) -> object:
    """One text counts as a list of one."""
    return (value,) if isinstance(value, str) else value


def seconds(value: object) -> object:
    """`"90"`, `"30m"`, `"1.5h"` as seconds; anything else is left for the type to refuse."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", value) if isinstance(value, str) else None
    if isinstance(value, str) and match is None:
        raise ValueError('wanted a time such as "90s", "30m" or "1.5h"')
    return float(match[1]) * _UNITS[match[2]] if match else number(value)


def size(value: object) -> object:
    """`"8GiB"`, `"500MB"` or a number of bytes as bytes; anything else is left for the type to refuse."""
    match = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?\s*", value, re.I)
        if isinstance(value, str)
        else None
    )
    if isinstance(value, str) and match is None:
        raise ValueError('wanted a size such as "8GiB" or "500MB"')
    if match is None:
        return number(value)
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


SPACE = "A name (see nas spaces), module:function or file.py:function."
TASK = (
    "digits, fashion_mnist, cifar10, cifar100, npz:PATH, folder:PATH, or folder:PATH@64, which stretches its "
    "images."
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


def says(description: str, panel: str = "") -> Any:  # noqa: ANN401 - pydantic's
    """What a setting does, and under which of `PANELS` it is an option; one without is given by `--set`."""
    return Field(description=description, json_schema_extra={"panel": panel})


_BY_GRADIENTS = frozenset(
    ("alphas", "alpha_speed", "search", "method_settings", "guard", "guards", "selection", "seed_alphas")
) | {"memory"}


class Config(BaseModel):
    """The settings of one job; `None` means the preset's value. The command line is made from them.

    Example:
        nas.make_config({"space": "nasbench201", "method": "evolution", "retrain": {"lr": 0.1}})
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: Annotated[Text, says(SPACE, "what")] = "darts"
    task: Annotated[Text, says(TASK, "what")] = "digits"
    method: Annotated[
        Text,
        says(
            f"By trials: {', '.join(BLACK_BOX)}, optuna:NAME. On shared weights: {', '.join(SHARED)}. By "
            f"gradients: {', '.join(DIFFERENTIABLE)}, or your own as FILE.py:FUNCTION.",
            "what",
        ),
    ] = "is-darts"
    preset: Annotated[
        Text,
        says(
            "How long phases take and how large networks are: quick (minutes), standard (as published), "
            "nasbench201 or nasbench201-12 (as for its table).",
            "what",
        ),
    ] = "quick"
    evaluator: Annotated[
        Literal["trained", "shared"],
        says("Trials are trained from scratch or on shared weights: trained or shared.", "trials"),
    ] = "trained"
    trials: Annotated[Count | None, says("Trials, of methods by trials.", "trials")] = None
    epochs: Annotated[
        Count | None,
        says("Epochs of a trial, of a shared supernet, or of a search by gradients.", "trials"),
    ] = None
    budget: Annotated[
        FiniteFloat | None,
        Field(gt=0),
        BeforeValidator(seconds),
        says('Time for the whole job, e.g. "30m": a hard end, by when the best so far is trained.', "what"),
    ] = None
    top_k: Annotated[
        Count | None, says("How many of the best are trained again with fresh seeds.", "comparison")
    ] = None
    top_k_epochs: Annotated[Count | None, says("For how many epochs these are trained.", "comparison")] = None
    seeds: Annotated[Count | None, says("How often each of these is trained.", "comparison")] = None
    search_images: Annotated[
        int | None,
        Field(ge=0, le=MOST),
        BeforeValidator(number),
        says("At most so many images before the last training; 0 means all.", "trials"),
    ] = None
    objective: Annotated[
        Texts,
        says(
            "What is optimised, e.g. val_acc, -latency_ms or 'val_acc - 0.01*latency_ms'; several make a "
            "Pareto search. [default: val_acc]",
            "trials",
        ),
    ] = ()
    constraint: Annotated[Texts, says('A bound, e.g. "params<=3e6"; may be repeated.', "trials")] = ()
    latency_table: Annotated[Text | None, says("A file that latency_ms comes from.", "trials")] = None
    scheduler: Annotated[
        Literal["fixed", "successive-halving", "hyperband"],
        says("How long trials are trained: fixed, successive-halving or hyperband.", "trials"),
    ] = "fixed"
    ladder: Annotated[
        Text | None,
        says(
            'The rungs of the latter two, e.g. "epochs=1; epochs=3"; by eta up to a trial\'s epochs.',
            "trials",
        ),
    ] = None
    eta: Annotated[
        int, Field(ge=2, le=1000), BeforeValidator(number), says("One in so many climbs a rung.", "trials")
    ] = 3
    fidelity: Annotated[
        Text | None, says('What a trial may spend, e.g. "epochs=3,width=0.5", or auto.', "trials")
    ] = None
    calibration: Annotated[Text | None, says("Folder of nas calibrate, for fidelity auto.", "trials")] = None
    max_failures: Annotated[Count, says("So many failed trials in a row end the search.", "trials")] = 10
    early_stop: Annotated[
        FiniteFloat,
        Field(ge=0, lt=1),
        BeforeValidator(number),
        says("A trial ends when its chance to beat the best so far falls below this.", "trials"),
    ] = 0.0
    baselines: Annotated[bool, says("Whether to compare with random search at equal cost.", "comparison")] = (
        True
    )
    export: Annotated[bool, says("Whether to write model.py, model.pt2 and model.onnx.", "result")] = True
    pictures: Annotated[bool, says("Whether the result is drawn, report.html included.", "result")] = True
    seed: Annotated[
        int, Field(ge=0, lt=2**63), BeforeValidator(number), says("Root of all randomness.", "what")
    ] = 0
    device: Annotated[Text, says("auto, cpu, cuda, cuda:1.", "machine")] = "auto"
    deterministic: Annotated[
        bool, says("On CUDA, only what gives the same bits on every run; slower.", "machine")
    ] = False
    execution: Annotated[
        Literal["auto", "plain", "batched"], says("How cells are run: plain, batched or auto.", "machine")
    ] = "auto"
    graph: Annotated[
        bool, says("On CUDA, whether whole steps are replayed as one graph where they can be.", "machine")
    ] = True
    rank_timeout: Annotated[
        FiniteFloat,
        Field(gt=0),
        BeforeValidator(seconds),
        says("Under torchrun, how long a rank waits for the others within a step.", "machine"),
    ] = 600.0
    space_settings: Annotated[Table, says("Passed to the space.")] = {}
    final_settings: Annotated[Table, says("To the space of the last training, on top of these.")] = {}
    trial: Annotated[Table, says("Changes to the recipe of trials.")] = {}
    shared: Annotated[Table, says("Changes to that of a supernet for trials.")] = {}
    search: Annotated[Table, says("Changes to that of a search by gradients.")] = {}
    retrain: Annotated[Table, says("Changes to that of the last training.")] = {}
    alphas: Annotated[Table, says("Changes to how the alphas move: lr, weight_decay.")] = {}
    alpha_speed: Annotated[
        FiniteFloat | None,
        Field(gt=0),
        BeforeValidator(number),
        says(
            "A factor on the alphas' own lr, for searches of fewer steps than the published ones.",
            "gradients",
        ),
    ] = None
    method_settings: Annotated[Table, says("Of a method by gradients, e.g. parts of pcdarts.")] = {}
    guard: Annotated[
        bool, says("Whether a search by gradients is put right when it collapses.", "gradients")
    ] = True
    guards: Annotated[Table, says("Settings of nas.oneshot.early_stopping.Guards, e.g. skip_cap.")] = {}
    selection: Annotated[
        Literal["argmax", "perturbation"],
        says("How the architecture is chosen in the end: argmax or perturbation.", "gradients"),
    ] = "argmax"
    seed_alphas: Annotated[
        Text | None,
        says("Folder of an earlier run, whose best architectures the alphas start from.", "gradients"),
    ] = None
    memory: Annotated[
        int | None,
        Field(gt=0),
        BeforeValidator(size),
        says('What a step may take, e.g. "8GiB"; the method is changed to fit.', "gradients"),
    ] = None
    sharing: Annotated[Table, says("Settings of nas.oneshot.path_training.Sharing, e.g. sampling.")] = {}
    warm_start: Annotated[
        Literal["none", "parent", "supernet"],
        says(
            "What a training begins with: none, the weights of a parent that it extends (evolution), or "
            "those of the supernet (fresh trainings after trials on shared weights).",
            "trials",
        ),
    ] = "none"
    searcher: Annotated[Table, says("Settings of the method, e.g. population of evolution.")] = {}
    workers: Annotated[
        Annotated[int, Field(ge=0, le=1024)] | Literal["auto"],
        BeforeValidator(count),
        says("Processes that evaluate trials: a number, auto for the cores or GPUs, 0 for none.", "machine"),
    ] = 1
    executor: Annotated[
        Text | None,
        says(
            "Where trials are evaluated instead: ray, ray://HOST:PORT, dask://HOST:PORT or "
            "slurm:OPTION=VALUE,...",
            "machine",
        ),
    ] = None
    gpus_per_trial: Annotated[
        FiniteFloat, Field(ge=0), BeforeValidator(number), says("What an executor reserves.", "machine")
    ] = 0.0
    asynchronous: Annotated[
        bool, says("Propose by whatever has ended; not repeatable, never waits.", "machine")
    ] = False
    trial_timeout: Annotated[
        FiniteFloat | None,
        Field(gt=0),
        BeforeValidator(seconds),
        says('A trial that takes longer, e.g. "2h", is begun once more, and then fails.', "machine"),
    ] = None
    augment: Annotated[
        Text | None,
        says(
            "How training images are varied: none, or parts of crop+flip+cutout. [default: crop, of CIFAR "
            "crop+flip]",
            "data",
        ),
    ] = None
    exclude: Annotated[
        Text | None, says("A suspects.json of nas audit, or PATH:KINDS: its images are left out.", "data")
    ] = None
    audit: Annotated[bool, says("Look for wrong labels, copies and leaks before the search.", "data")] = False
    storage: Annotated[
        Address | None,
        PlainValidator(address),
        says(
            "Database for the trials, e.g. sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE. "
            "[default: $NAS_STORAGE, else a file in the run's folder]",
            "machine",
        ),
    ] = None
    storage_patience: Annotated[
        FiniteFloat,
        Field(ge=0),
        BeforeValidator(seconds),
        says("How long a storage that is away, or full, is waited for.", "machine"),
    ] = 600.0
    tensorboard: Annotated[
        Text | None,
        BeforeValidator(switched),
        says("Write event files for TensorBoard, into the run's folder unless another is named.", "result"),
    ] = None
    mlflow: Annotated[
        Text | None,
        BeforeValidator(switched),
        says("Track the run on an MLflow server, that of $MLFLOW_TRACKING_URI if none is named.", "result"),
    ] = None

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
