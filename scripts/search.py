"""Searches with evolution on a small space, through the public interface; arguments: task, folder."""

import sys

import nas


def main(task: str = "digits", out: str = "results/script-search") -> None:
    result = nas.search("nasbench201", task, "evolution", out=out, settings={"trials": 10, "epochs": 2})
    print(result.genotype, result.metrics["test_acc"])


if __name__ == "__main__":
    main(*sys.argv[1:])
