"""What the ranks other than the first do in a search: they join the trainings that rank 0 calls them to."""

from __future__ import annotations

from nas.job.final_training import RETRAIN, help_to_retrain
from nas.job.gradient_search import help_to_search
from nas.job.job import Job
from nas.job.ranks import help_all
from nas.job.run_folder import SEARCH
from nas.job.shared_weights import SHARED, help_with_weights
from nas.types import Genotype


def follow(job: Job) -> None:
    """Helps until the job ends; everything but these trainings is the business of rank 0."""

    def retrain(genotype: Genotype) -> None:
        help_to_retrain(
            job.final,
            tuple(genotype),
            job.task,
            job.recipe,
            seed=job.seed(RETRAIN),
            stop=job.stop,
            team=job.team,
        )

    phases = {
        SEARCH: lambda _: help_to_search(job),
        SHARED: lambda _: help_with_weights(job),
        RETRAIN: retrain,
    }
    help_all(job.team, phases)
