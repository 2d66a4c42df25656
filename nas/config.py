"""What a user asks for: the settings of a job as one checked value, from TOML, command line or Python."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
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
from nas.storage.address import Address
from nas.text import shown
from nas.types import MOST

DIFFERENTIABLE = (
    *("darts", "darts2", "gdas", "snas", "drnas", "pcdarts", "sdarts-rs", "sdarts-adv", "fairdarts"),
    *("beta-darts", "gaea", "oles", "is-darts", "pdarts"),
)
BLACK_BOX = ("random", "evolution", "local", "nsga2", "guided", "tpe", "gp")
SHARED = ("spos",)
"""Methods that are black-box searches on shared weights only."""
OPTUNA = "optuna:"
"""What stands before the name of an Optuna sampler where that is the method."""
METHODS = (*BLACK_BOX, *SHARED, *DIFFERENTIABLE)
MAX_BYTES = 1 << 20
MAX_DEPTH = 100
_BY_GRADIENTS = frozenset(
    ("alphas", "alpha_speed", "search", "method_settings", "guard", "guards", "selection", "seed_alphas")
) | {"memory"}
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
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", value, re.I)
        if isinstance(value, str)
        else None
    )
    if isinstance(value, str) and match is None:
        raise ValueError('wanted a size such as "8GiB" or "500MB"')
    if match is None:
        return number(value)
    step = 1024 if match[3] else 1000
    found = float(match[1]) * step ** " KMGT".index(match[2].upper() or " ")
    if not found < 2**63:
        raise ValueError("wanted a size of at most 64 bits")
    return round(found)


def count(value: object) -> object:
    """A number of processes, which may be spelt as text, or `auto`."""
    found = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 20 else number(value)
    if found != "auto" and not (isinstance(found, int) and 1 <= found <= 1024):
        raise ValueError("wanted a whole number from 1 to 1024, or auto")
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


def is_own(path: str, *, optuna: bool = True) -> bool:
    """Whether a method is a user's own function, or was given in Python.

    optuna: whether the samplers of Optuna are not, as for methods; a space has no such names.
    """
    return ":" in path and not (optuna and path.startswith(OPTUNA))


Text = Annotated[str, BeforeValidator(encodable)]
Table = dict[Text, Annotated[Any, BeforeValidator(scalar), BeforeValidator(encodable)]]
Count = Annotated[int, Field(ge=1, le=MOST), BeforeValidator(number)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(texts)]


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
    execution, graph: how cells and steps are run in all phases, see `nas.recipe.Recipe`.
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
    workers: processes that train the trials; `auto` tries how many this machine bears. More can join by
      `nas worker`. lease: a worker that shows no sign of life for so many seconds has lost its trial.
    trial_timeout: a trial that takes more seconds is begun once more, and then has failed.
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
    execution: Literal["auto", "plain", "batched", "kernels"] = "auto"
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
    workers: Annotated[Annotated[int, Field(ge=1, le=1024)] | Literal["auto"], BeforeValidator(count)] = 1
    lease: Annotated[FiniteFloat, Field(ge=1), BeforeValidator(seconds)] = 120.0
    trial_timeout: Annotated[FiniteFloat, Field(gt=0), BeforeValidator(seconds)] | None = None
    exclude: Text | None = None
    audit: bool = False
    storage: Annotated[Address | None, PlainValidator(address)] = None
    storage_patience: Annotated[FiniteFloat, Field(ge=0), BeforeValidator(seconds)] = 600.0
    tensorboard: Annotated[Text | None, BeforeValidator(switched)] = None
    mlflow: Annotated[Text | None, BeforeValidator(switched)] = None

    @property
    def is_differentiable(self) -> bool:
        """Whether the method searches by gradients."""
        return self.method in DIFFERENTIABLE or is_own(self.method)

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
    method = str(values.get("method", "darts"))
    if method not in METHODS and ":" not in method:
        raise ConfigError(f"{where}: {unknown('method', method, METHODS)}")
    try:
        config = Config.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from error
    _refuse_unused(config, where)
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        ConfigError: naming the path tried, or line and column of what is wrong.
    """
    raw = _read(path)
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    if max(text.count("["), text.count("{")) > MAX_DEPTH * 10 or _depth(text) > MAX_DEPTH:
        raise ConfigError(f"{path}: nested deeper than {MAX_DEPTH}; a config is a flat table of settings")
    try:
        values = tomllib.loads(text)
    except ValueError as error:  # also for an integer of thousands of digits
        raise ConfigError(f"{path}: {error}{_yaml_hint(text)}") from error
    if not values:
        raise ConfigError(f"{path}: empty config")
    return values


def write_toml(values: Mapping[str, object]) -> str:
    """Scalars first, then one table for each mapping; `None` is left out. The inverse of `read_toml`."""
    plain = {k: v for k, v in values.items() if v not in (None, ()) and not isinstance(v, Mapping)}
    lines = [f"{_key(k)} = {_literal(v)}" for k, v in plain.items()]
    for name, table in values.items():
        if isinstance(table, Mapping) and table:
            lines += ["", f"[{_key(name)}]", *(f"{_key(k)} = {_literal(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def with_names(settings: Mapping[str, object] | None, names: Mapping[str, str]) -> dict[str, object]:
    """Settings together with what a function's own arguments say.

    Raises:
        ConfigError: when a setting says something else than its argument.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"settings is a {type(settings).__name__}, wanted a mapping from names to values")
    for name, value in names.items():
        if settings and settings.get(name, value) != value:
            raise ConfigError(
                f"settings: {name} is {settings[name]!r}, but the argument says {value!r}; give one of them"
            )
    return {**(settings or {}), **names}


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`values` with `key=value` or `table.key=value` assignments on top, written as in TOML or bare."""
    merged = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        *tables, key = (part.strip() for part in path.split("."))
        if not equals or not key or len(tables) > 1:
            raise ConfigError(f"--set {shown(assignment)}: wanted KEY=VALUE or TABLE.KEY=VALUE")
        target = merged
        for table in tables:
            target = merged.setdefault(table, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {shown(assignment)}: {shown(table)} is no table")
        target[key] = _value(text.strip())
    return merged


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ConfigError(f"no config file {path} (looked for {Path.cwd() / path}, from {Path.cwd()})")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: {size:,} bytes, but a config has at most {MAX_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read config file {shown(str(path))}: {error.strerror}") from error


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
        "lease": trained,
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
    return f"{name} is {shown(got)}: {problem['msg'].removeprefix('Value error, ').lower()}{hint}"


def _depth(text: str) -> int:
    """How deep brackets or the dots of a key nest, at most."""
    depth, deepest = 0, max((line.count(".") for line in text.splitlines()), default=0)
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth = max(0, depth - 1)
    return deepest


def _yaml_hint(text: str) -> str:
    looks_yaml = re.search(r"^[ \t]*[\w-]+:\s", text, re.MULTILINE) is not None
    return "; the file looks like YAML, but configs are TOML: key = value" if looks_yaml else ""


def _value(text: str) -> object:
    if "\n" in text or "\r" in text:  # what follows the line would be read as another setting
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _literal(name)


def _literal(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"got {value}, wanted a finite number")
    if isinstance(value, tuple | list) and all(isinstance(item, str) for item in value):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, bool | int | float | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON may hold DEL, TOML not
    raise ConfigError(
        f"got {shown(value)} of type {type(value).__name__}, wanted text, a number, true or false"
    )
