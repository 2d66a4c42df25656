"""Trains an architecture that was found before; arguments: its folder, the task, a folder for the result."""

import sys

import nas


def main(found: str, task: str = "digits", out: str = "results/script-retrain") -> None:
    result = nas.retrain(found, task, out=out, settings={"retrain": {"epochs": 60}})
    print(result.metrics["test_acc"])


if __name__ == "__main__":
    main(*sys.argv[1:])
