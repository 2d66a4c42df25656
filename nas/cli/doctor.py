"""`nas doctor`: what this machine offers to the engine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from nas.cli.app import Json, app, say
from nas.errors import NasError

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


@app.command(short_help="Say what this machine offers: versions, devices, data, extras.")
def doctor(as_json: Json = False) -> None:
    """Say what this machine offers: versions, devices, data sets and tables that can be loaded, extras."""
    findings = examine()
    if as_json:
        say(json.dumps(findings))
    else:
        say("\n".join(f"{name:19} {value}" for name, value in findings.items()))


def examine() -> dict[str, str]:
    """Versions, devices, memory, data sets and tables that can be loaded, and extras, each in words."""
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
        findings[f"task {name}"] = _tried(
            name, lambda name: f"{len(datasets.read(name).x_train):,} training images"
        )
    for name in FILES:
        findings[f"table {name}"] = _tried(name, lambda name: str(table_file(name)))
    return findings | _extras()


def _tried(name: str, look: Callable[[str], str]) -> str:
    """Whether there is what `look` looks for, and else what to do."""
    try:
        return f"yes, {look(name)}"
    except NasError as error:
        return f"no: {str(error).removeprefix(f'{name}: ')}"


def _extras() -> dict[str, str]:
    missing = {extra: [p for p in packages if not _installed(p)] for extra, packages in EXTRAS.items()}
    found = {"extras": ", ".join(extra for extra, packages in missing.items() if not packages) or "none"}
    lacking = {extra: packages for extra, packages in missing.items() if packages}
    if lacking:
        words = ", ".join(f"{extra} (without {', '.join(packages)})" for extra, packages in lacking.items())
        found["extras lacking"] = f"{words}; e.g. pip install 'nas-engine[{next(iter(lacking))}]'"
    return found


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
