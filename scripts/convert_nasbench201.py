"""Makes the table of `nas benchmark nasbench201` from the official results; arguments: these, the table.

    python scripts/convert_nasbench201.py NATS-tss-v1_0-3ffb9-simple benchmarks/nasbench201.csv.gz

The results are NATS-Bench's topology part, as a folder or a .pickle.pbz2 file (`pip install nats_bench`), or
NAS-Bench-201-v1_1-096897.pth (`pip install nas-bench-201`; PyTorch from 2.6 reads it only with
TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 set). Each is a pickle, which can run any code: take the official one.

Accuracies are means over all seeds in percent, validation on the benchmark's split. Of CIFAR-10, validation
is after training on 25,000 images, test after training on all 50,000. The names of columns are those of the
published collections that the engine reads too: whatever they end in, the values are the official ones.
"""

import argparse
import csv
import gzip
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

VALID, TEST, SECONDS = "valid-accuracy", "test-accuracy", "train-all-time"
FIGURES: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("cifar10-valid", "12"): {"c10_valid_12": VALID},
    ("cifar10", "12"): {"c10_test_12": TEST},
    ("cifar100", "12"): {"c100_valid_12": VALID, "c100_test_12": TEST},
    ("ImageNet16-120", "12"): {"in16_valid_12": VALID, "in16_test_12": TEST},
    ("cifar10-valid", "200"): {"c10_valid_200": VALID, "train_s_c10v_200_v10_est": SECONDS},
    ("cifar10", "200"): {"c10_test_200_nats": TEST},
    ("cifar100", "200"): {"c100_valid_200_v10": VALID, "c100_test_200": TEST},
    ("ImageNet16-120", "200"): {"in16_valid_200_v10": VALID, "in16_test_200": TEST},
}
"""By data set and epochs, which figure of `get_more_info` goes into which column."""
COLUMNS = ("arch", "params", "flops_c10_M", *(name for names in FIGURES.values() for name in names))


def open_api(source: Path) -> Any:  # noqa: ANN401 - of packages without types
    """The official reader of these results, from a package that is installed for this only."""
    package, wheel = ("nas_201_api", "nas-bench-201") if source.suffix == ".pth" else ("nats_bench",) * 2
    try:
        module = import_module(package)
    except ImportError as error:
        raise SystemExit(f"{source} is read by the package {package}; pip install {wheel}") from error
    if package == "nas_201_api":
        return module.NASBench201API(str(source), verbose=False)
    return module.create(str(source), "tss", fast_mode=source.is_dir(), verbose=False)


def rows(api: Any) -> Iterator[dict[str, str | float]]:  # noqa: ANN401 - as above
    """One row for each architecture, in the official order; parameters and FLOPs come in millions."""
    for index in range(len(api)):
        cost = api.get_cost_info(index, "cifar10")
        row = {"arch": api.arch(index), "params": round(1e6 * cost["params"]), "flops_c10_M": cost["flops"]}
        for (dataset, epochs), names in FIGURES.items():
            found = api.get_more_info(index, dataset, hp=epochs, is_random=False)
            row |= {column: round(found[figure], 6) for column, figure in names.items()}
        yield row


def convert(api: Any, out: Path) -> None:  # noqa: ANN401 - as above
    """Writes the whole table to `out`, a .csv.gz file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(out, "wt", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows(api))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    convert(open_api(args.source), args.out)
