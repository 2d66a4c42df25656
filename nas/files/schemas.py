"""What the JSON files of a run's folder must look like; a damaged or strange one is refused in words."""

from __future__ import annotations

from math import nan
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from nas.errors import ConfigError, shown

Word = Annotated[str, StringConstraints(max_length=1000)]
Side = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Counts = Annotated[tuple[Count, ...], Field(strict=False)]  # JSON has no tuples
R = TypeVar("R")
_TOLD = 3
"""Problems that an error lists."""


class _Record(BaseModel):
    """Types are taken as they stand; what a newer version may have added is left alone."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class NodeRecord(_Record):
    """A feature map; `op` and `decision` where operations stand on nodes."""

    id: Word
    role: Literal["input", "node", "output"]
    label: Word
    op: Word | None = None
    decision: Word | None = None


class EdgeRecord(_Record):
    """An operation between two nodes, or a plain connection."""

    src: Word
    dst: Word
    op: Word
    decision: Word
    role: Word


class GraphRecord(_Record):
    """A cell."""

    kind: Word
    values: dict[Word, Word]
    nodes: list[NodeRecord]
    edges: list[EdgeRecord]


class ArchitectureRecord(_Record):
    """The parts of architecture.json that are read back."""

    space: Word
    settings: dict[Word, Any]
    choices: dict[Word, Word]
    cells: dict[Word, GraphRecord]
    genotype: list[int] = []
    hash: Word = ""
    notation: str | None = None


class TaskRecord(_Record):
    """The parts of a run's task that are read back; see `nas.data.preprocessing.Inputs`.

    problem, metric, words, is_share: of its `nas.data.problem.Problem`.
    """

    name: str
    fingerprint: Word
    problem: Word = "classification"
    metric: Word = "acc"
    words: Word = "accuracy"
    is_share: bool = True
    classes: list[str]
    mean: list[FiniteFloat]
    std: list[Annotated[FiniteFloat, Field(gt=0)]]
    image_shape: Annotated[list[Side], Field(min_length=3, max_length=3)]
    pixels: Literal["uint8", "float32"] = "uint8"
    images: dict[Word, int] = {}
    notes: list[str] = []


class RunRecord(_Record):
    """The parts of run.json that are read back."""

    format: Side
    config: dict[str, Any]
    plan: dict[str, Any]
    architecture: list[int] | None
    space: dict[str, Any]
    task: TaskRecord
    environment: dict[Word, Any] = {}
    begun: str = ""


class ExportedRecord(_Record):
    """The further parts of run.json that an export tells of."""

    method: Annotated[str, Field(validation_alias=AliasPath("config", "method"))]
    task: Annotated[str, Field(validation_alias=AliasPath("config", "task"))]
    seed: Annotated[int, Field(validation_alias=AliasPath("config", "seed"))]
    space: Annotated[str, Field(validation_alias=AliasPath("space", "name"))]
    engine: Annotated[str, Field(validation_alias=AliasPath("environment", "nas-engine"))]
    recipe: Annotated[dict[str, Any], Field(validation_alias=AliasPath("plan", "final"))]
    images: Annotated[dict[Word, int], Field(validation_alias=AliasPath("task", "images"))]


class ScoredRecord(_Record):
    """The numbers of metrics.json that an export tells of; `score` is the test metric of the problem."""

    params: FiniteFloat
    macs: FiniteFloat
    score: FiniteFloat
    score_low: FiniteFloat
    score_high: FiniteFloat
    latency_ms: FiniteFloat
    retrain_epochs: FiniteFloat
    retrain_seconds: FiniteFloat


class MetricsRecord(_Record):
    """Content of metrics.json."""

    metrics: dict[Word, FiniteFloat]


class TrialRecord(_Record):
    """What a study keeps of a trial; see `nas.Trial`. worker: who evaluated it, in words."""

    number: Count
    genotype: Counts
    fidelity: Count
    metrics: dict[str, FiniteFloat] = {}
    cost_s: FiniteFloat = 0.0
    reason: str = ""
    beside: Counts = ()
    worker: str = ""


class StudyRecord(_Record):
    """What a study searches: decisions with their options. Its goals are a `GoalsRecord`."""

    # JSON has no tuples.
    decisions: list[Annotated[tuple[Word, list[Word]], Field(strict=False)]]


class GoalsRecord(_Record):
    """Objectives as (metric, maximize, added terms) and constraints as (metric, limit, at most)."""

    objectives: list[
        Annotated[
            tuple[str, bool, list[Annotated[tuple[str, FiniteFloat], Field(strict=False)]]],
            Field(strict=False),
        ]
    ]
    constraints: list[Annotated[tuple[str, FiniteFloat, bool], Field(strict=False)]] = []


class ComparedRecord(_Record):
    """Content of baselines.json."""

    found_by: Word
    choices: dict[Word, dict[Word, Word]]
    statements: list[Word]


class EpochRecord(_Record):
    """One epoch of a search by gradients in health.json; what was not measured is left out."""

    epoch: Annotated[int, Field(ge=0)]
    val_score: FiniteFloat = nan
    skip_share: FiniteFloat = nan
    alpha_entropy: FiniteFloat = nan
    eigenvalue: FiniteFloat = nan
    eigenvalue_mean: FiniteFloat = nan
    eigenvalue_alarm: FiniteFloat = nan
    gradient_matching: FiniteFloat = nan
    discretisation_gap: FiniteFloat = nan
    changes: FiniteFloat = 0.0
    skip_shares: dict[Word, FiniteFloat] = {}
    events: list[Word] = []


class HealthRecord(_Record):
    """Content of health.json."""

    epochs: list[EpochRecord]


class AlphasRecord(_Record):
    """The names in alphas.npz."""

    decisions: list[Word]
    options: list[list[Word]]


class DecisionRecord(_Record):
    """What was decided by measured time, under which budget."""

    value: Any
    budget_s: FiniteFloat | None


class TimeRecord(_Record):
    """How long a job has been at work, and what was decided by that."""

    spent_s: Annotated[FiniteFloat, Field(ge=0)]
    decided: dict[Word, DecisionRecord]


class NeededRecord(_Record):
    """The bytes that a step needs after what memory.json says has changed."""

    needed: Annotated[int, Field(ge=0)]


def check_format(data: object, newest: int, source: Path) -> None:
    """Raises ConfigError for a file of a newer version than this one can read."""
    found = data.get("format") if isinstance(data, dict) else None
    if isinstance(found, int) and found > newest:
        raise ConfigError(
            f"{source} was written by a newer version (format {found}, this one reads {newest}); upgrade "
            "nas-engine"
        )


def checked(kind: type[R], data: object, source: Path | str, what: str) -> R:
    """`data` as a record, or as another class whose fields say of what kind they are.

    Raises:
        ConfigError: naming the source, what it should be, and the first places that are wrong.
    """
    try:
        if issubclass(kind, BaseModel):
            return kind.model_validate(data)
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        told = "; ".join(_told(problem["loc"], problem["msg"]) for problem in problems[:_TOLD])
        raise ConfigError(f"{source} is damaged, it is no {what}: {told}") from error


def _told(place: tuple[int | str, ...], message: str) -> str:
    where = ".".join(shown(part) if isinstance(part, str) and len(part) > 40 else str(part) for part in place)
    return f"{where}: {message}" if where else message
