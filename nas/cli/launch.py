"""`nas launch`: workers on a cluster, through SLURM or Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.app import app, errors


@app.command(short_help="Start workers on a cluster: SLURM or Ray.")
def launch(
    run: Annotated[
        str | None, typer.Argument(help="A run's folder that all machines see; else --study and a storage.")
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="As an array of SLURM jobs.")] = False,  # noqa: FBT002
    ray: Annotated[bool, typer.Option("--ray", help="As Ray actors.")] = False,  # noqa: FBT002
    workers: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    storage: Annotated[
        str | None, typer.Option(help="URL without a password; better the variable NAS_STORAGE.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study in that storage.")] = None,
    space: Annotated[
        str | None, typer.Option(help="The run's space, where it is your own code: FILE.py:FUNCTION.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="For each worker.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="For each worker.")] = 8,
    minutes: Annotated[int, typer.Option(help="SLURM: wall time, after which it is queued again.")] = 1440,
    memory_gb: Annotated[int, typer.Option(help="SLURM: memory of each job; 0 for the usual.")] = 0,
    at_once: Annotated[int, typer.Option(help="SLURM: jobs that run at the same time.")] = 256,
    partition: Annotated[str | None, typer.Option(help="SLURM: where to.")] = None,
    account: Annotated[str | None, typer.Option(help="SLURM: on whose account.")] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="SLURM: any other #SBATCH line.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help='Ray: of the cluster, e.g. "auto". [default: this machine]')
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="SLURM: only show the script.")] = False,  # noqa: FBT002
    logs: Annotated[Path, typer.Option(help="SLURM: folder for the workers' output.")] = Path("nas-workers"),
) -> None:
    """Start workers on a cluster. They join a search that runs, or go on with one that was stopped."""
    from nas.cluster.worker_command import worker_arguments
    from nas.errors import ConfigError

    with errors():
        if slurm == ray:
            raise ConfigError("launch: choose --slurm or --ray")
        if dry_run and ray:
            raise ConfigError("launch: --dry-run shows the script for SLURM; Ray has none")
        arguments = worker_arguments(run, storage=storage, study=study, space=space)
        if ray:
            from nas.cluster import on_ray
            from nas.storage.address import VARIABLE

            codes = on_ray.run(
                arguments,
                workers,
                gpus=gpus,
                cpus=cpus,
                address=address,
                environment=on_ray.environment_of_workers([VARIABLE]),
                tell=typer.echo,
            )
            raise typer.Exit(max(codes, key=abs))
        from nas.cluster.slurm import Wishes, script, submit

        wishes = Wishes(
            minutes=minutes,
            gpus=gpus,
            cpus=cpus,
            memory_gb=memory_gb,
            at_once=at_once,
            partition=partition,
            account=account,
            others=_pairs(sbatch or []),
        )
        if dry_run:
            typer.echo(script(arguments, workers, wishes, logs.absolute()))
            return
        for number in submit(arguments, workers, wishes, logs.absolute()):
            typer.echo(f"job {number}: {' '.join(arguments)}")


def _pairs(texts: list[str]) -> dict[str, str]:
    from nas.errors import ConfigError

    for text in texts:
        if "=" not in text:
            raise ConfigError(f"launch: --sbatch {text!r} is not NAME=VALUE, e.g. qos=high")
    return dict(text.split("=", 1) for text in texts)
