"""`nas benchmark`: searches replayed on a published table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.app import Json, Quiet, app, say
from nas.errors import ConfigError


@app.command(short_help="Replay searches on a published table.")
def benchmark(
    name: Annotated[str, typer.Argument(help="nasbench201 or nasbench101.")],
    searcher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>",
            help="random, evolution, local, nsga2, guided, tpe, gp, optuna:NAME; may be repeated.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Evaluations of each search. [default: 100]")] = None,
    repeats: Annotated[int, typer.Option(help="Searches with different seeds.")] = 100,
    time_budget: Annotated[
        str | None,
        typer.Option(help='Simulated time of each search instead, e.g. 12000 or "200m"; 12-epoch training.'),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of training. [default: the longest; with a time budget the shortest]"),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Of nasbench201: cifar10, cifar100 or imagenet16. [default: cifar10]")
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>", help="What is optimised, e.g. -test_err; two of them make a Pareto search."
        ),
    ] = None,
    constraint: Annotated[
        list[str] | None, typer.Option(metavar="<str>", help='E.g. "params<=0.5e6"; may be repeated.')
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help='Where hypervolume is measured from, e.g. "0.15,1.5m" (m: times the median).'),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Settings of all searchers, or of one: evolution.tournament=3."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Root of all randomness.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes. [default: one for each core]")] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Folder of the tables. [default: $NAS_BENCHMARKS, else benchmarks]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the outcome. [default: results/benchmark-NAME]")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Replay searches on a published table: mean and deviation of what they would have reported."""
    from nas.evaluate.replay import run_replays
    from nas.files.atomic import override
    from nas.files.folder import prepare_folder
    from nas.run.config import seconds
    from nas.searchers.goals import parse_goals
    from nas.show.benchmark import lines, plan_comparison, to_dict, write_comparison
    from nas.show.progress import reporter
    from nas.training.launch import refuse

    refuse("a benchmark")
    try:
        budget_s = None if time_budget is None else float(str(seconds(time_budget)))
    except ValueError as error:
        raise ConfigError(f"--time-budget {time_budget!r}: {error}") from error
    table, planned = plan_comparison(
        name,
        searcher or (),
        trials=trials,
        budget_s=budget_s,
        epochs=epochs,
        dataset=dataset,
        folder=tables,
        goals_by=lambda signal: parse_goals(objective or (), constraint or (), default=signal),
        reference=reference,
        settings=override({}, sets or []),
    )
    planned = [replace(replay, seed=seed) for replay in planned]
    folder = prepare_folder(out or Path("results") / f"benchmark-{name}")
    replays, parts = {}, min(10, repeats)
    with reporter(plain=as_json, quiet=quiet) as progress:

        def tell(done: int) -> None:
            """Says every tenth of the way how many repeats are done."""
            if (part := parts * done // repeats) > parts * (done - 1) // repeats:
                progress.advance(f"{done} of {repeats} repeats", done=part)

        for replay in planned:
            progress.phase(replay.searcher, parts)
            runs = run_replays(replay, repeats=repeats, workers=workers, on_repeat=tell)
            replays[replay.searcher] = (replay, runs)
    paths = write_comparison(folder, table, replays)
    if as_json:
        say(json.dumps(to_dict(table, replays)))
    else:
        say("\n".join([*lines(replays, table), *map(str, paths)]))
