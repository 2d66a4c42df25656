"""`nas validate`, `nas audit`, `nas spaces`, `nas doctor`: what is looked at before a search."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli.app import Json, Quiet, announce, app, say
from nas.errors import NasError, counted
from nas.run.config import SPACE, TASK

EXTRAS = {
    "vision": ("pillow",),
    "dashboard": ("optuna-dashboard",),
    "serve": ("fastapi", "uvicorn", "python-multipart", "onnxruntime", "pillow"),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow-skinny",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "postgres": ("psycopg",),
    "slurm": ("submitit",),
    "ray": ("ray",),
    "dask": ("distributed",),
}
"""What `pip install 'nas-engine[EXTRA]'` adds."""


@app.command(short_help="Check a space: does it work, how large is it, what will it cost.")
def validate(
    space: Annotated[str, typer.Argument(help=SPACE)],
    task: Annotated[str, typer.Option(help=TASK)] = "digits",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Settings of the space, e.g. width=8."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a space against a task: does every part of it work, how large is it, what will it cost."""
    from nas import devices
    from nas.data.loading import load_task
    from nas.evaluate.validate import validate as check
    from nas.files.atomic import override
    from nas.run.final_network import offer
    from nas.space.loading import load

    announce(space)
    data = load_task(task).to(devices.resolve(device))
    settings = override({}, [assignment.removeprefix("space_settings.") for assignment in sets or []])
    found = check(load(space, offer(data), **settings), data)
    say(json.dumps(found.to_dict()) if as_json else "\n".join(found.lines()))


@app.command(short_help="Look for copies, leaks, outliers and wrong labels in data.")
def audit(
    task: Annotated[str, typer.Argument(help=TASK)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the findings. [default: results/audit-TASK]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the splits, as in search, and of the predictions.")] = 0,
    limit: Annotated[int | None, typer.Option(help="At most so many training images. [default: all]")] = None,
    exclude: Annotated[
        str | None, typer.Option(help="A suspects.json, or PATH:KINDS, of images to leave out before.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Look for unequal classes, copies, leaks between splits, outliers, wrong labels and damaged files."""
    from nas.audit import audit_task, write_audit
    from nas.data.exclusions import without
    from nas.data.loading import load_task
    from nas.files.folder import prepare_folder, results_folder

    data = load_task(task, seed=seed, lenient=True)
    data = data if limit is None else data.reduced(limit)
    if exclude is not None:
        data = without(data, exclude)
    found = audit_task(data, seed=seed)
    place = out or results_folder("audit", task.removeprefix("folder:").removeprefix("npz:"))
    paths = write_audit(found, data, prepare_folder(place))
    if as_json:
        say(json.dumps({"folder": str(paths[0].parent), **found.to_dict()}))
        return
    if not quiet:
        say("\n".join(found.summary()))
    say("\n".join(f"{'' if number else 'written':<30} {path}" for number, path in enumerate(paths)))


@app.command()
def spaces(as_json: Json = False) -> None:
    """List the search spaces that come with the engine."""
    from nas.space.loading import about, bundled, load

    rows: list[dict[str, Any]] = []
    for name in bundled():
        space = load(name)
        settings = {k: v for k, v in space.settings.items() if k not in ("classes", "in_channels")}
        size = {"decisions": len(space.decisions), "size": str(space.size)}
        rows.append({"name": name, "about": about(name), **size, "settings": settings})
    if as_json:
        say(json.dumps(rows))
        return
    for row in rows:
        pairs = "  ".join(f"{name}={value}" for name, value in row["settings"].items())
        say(f"{row['name']:12}  {counted(row['decisions'], 'decision')}, {row['size']} architectures")
        say(f"{'':12}  {row['about']}\n{'':12}  settings: {pairs}")
    say("\nChange a setting by --set space_settings.NAME=VALUE. Your own space: --space FILE.py:FUNCTION.")


@app.command(short_help="Say what this machine offers: versions, devices, data, extras.")
def doctor(as_json: Json = False) -> None:
    """Say what this machine offers: versions, devices, data sets and tables that can be loaded, extras."""
    import torch

    from nas import devices
    from nas.data import datasets
    from nas.evaluate.benchmarks import FILES, table_file
    from nas.results.run_record import environment
    from nas.training import batched

    device = devices.resolve("auto")
    known = environment(device)
    threads, used = known.pop("threads"), known.pop("device")
    findings = {name: str(value) for name, value in known.items() if value is not None}
    findings["cores"] = f"{os.cpu_count()}; torch computes with {threads} thread{'' if threads == 1 else 's'}"
    findings["devices"] = f"{', '.join(devices.available())}; auto takes {used}"
    if device.type != "cuda":
        findings["gpu"] = f"no: {devices.without_cuda()}"
    findings["execution"] = batched.explain(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        findings["memory"] = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    for name in ("digits", "fashion_mnist", "cifar10", "cifar100"):
        found = _tried(name, lambda name: f"{len(datasets.read(name).x_train):,} training images")
        findings[f"task {name}"] = found
    for name in FILES:
        findings[f"table {name}"] = _tried(name, lambda name: str(table_file(name)))
    missing = {extra: [p for p in packages if not _installed(p)] for extra, packages in EXTRAS.items()}
    findings["extras"] = ", ".join(extra for extra, packages in missing.items() if not packages) or "none"
    if lacking := {extra: packages for extra, packages in missing.items() if packages}:
        words = ", ".join(f"{extra} (without {', '.join(packages)})" for extra, packages in lacking.items())
        findings["extras lacking"] = f"{words}; e.g. pip install 'nas-engine[{next(iter(lacking))}]'"
    lines = (f"{name:19} {value}" for name, value in findings.items())
    say(json.dumps(findings) if as_json else "\n".join(lines))


def _tried(name: str, look: Callable[[str], str]) -> str:
    """Whether there is what `look` looks for, and else what to do."""
    try:
        return f"yes, {look(name)}"
    except NasError as error:
        return f"no: {str(error).removeprefix(f'{name}: ')}"


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
