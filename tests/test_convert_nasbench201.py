"""The converted official results are a table that the engine reads."""

import importlib.util
from pathlib import Path

import pytest

import nas
from nas.evaluate.benchmarks import DATASETS, load_nasbench201
from nas.space.loading import load

FILE = Path(nas.__file__).parent.parent / "scripts" / "convert_nasbench201.py"
SPACE = load("nasbench201")
CELLS = list(SPACE.enumerate())
STEPS = {"cifar10-valid": 0, "cifar10": 1, "cifar100": 2, "ImageNet16-120": 3}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("convert_nasbench201", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Api:
    """Answers as the official packages do, with a figure of its own for everything asked."""

    def __init__(self, cells=CELLS):
        self.cells = cells

    def __len__(self):
        return len(self.cells)

    def arch(self, index):
        return SPACE.notation.write(self.cells[index])

    def get_cost_info(self, index, dataset, hp="12"):
        assert dataset == "cifar10"
        return {"flops": 1 + index / 8, "params": 0.073306 + index * 1e-6, "latency": 0.01}

    def get_more_info(self, index, dataset, iepoch=None, hp="12", is_random=True):  # noqa: FBT002
        assert not is_random, "wanted the mean over all seeds"
        accuracy = 10 + 10 * STEPS[dataset] + index / 2000 + int(hp) / 1000
        info = {"train-accuracy": 99.0, "train-loss": 0.1, "train-all-time": float(index + int(hp))}
        info |= {} if dataset == "cifar10" else {"valid-accuracy": accuracy}
        return info | ({} if dataset == "cifar10-valid" else {"test-accuracy": accuracy + 1})


def test_every_cell_becomes_one_row_of_official_figures(script):
    (row,) = script.rows(Api([(3, 0, 1, 2, 4, 3)]))
    assert tuple(row) == script.COLUMNS
    assert row == {
        "arch": "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|",
        "params": 73_306,
        "flops_c10_M": 1.0,
        "c10_valid_12": 10.012,
        "c10_test_12": 21.012,
        "c100_valid_12": 30.012,
        "c100_test_12": 31.012,
        "in16_valid_12": 40.012,
        "in16_test_12": 41.012,
        "c10_valid_200": 10.2,
        "train_s_c10v_200_v10_est": 200.0,
        "c10_test_200_nats": 21.2,
        "c100_valid_200_v10": 30.2,
        "c100_test_200": 31.2,
        "in16_valid_200_v10": 40.2,
        "in16_test_200": 41.2,
    }


def test_the_engine_reads_the_converted_table(script, tmp_path):
    path = tmp_path / "new" / "nasbench201.csv.gz"
    script.convert(Api(), path)
    for dataset, valid, test in [("cifar10", 0, 1), ("cifar100", 2, 2), ("imagenet16", 3, 3)]:
        benchmark, factor = load_nasbench201(path, dataset=dataset), DATASETS[dataset].seconds
        for index, epochs in [(0, 12), (1, 200), (9999, 12), (15_624, 200)]:
            figures = benchmark.metrics(CELLS[index], epochs)
            accuracy = 10 + 10 * valid + index / 2000 + epochs / 1000
            assert figures["val_acc"] == pytest.approx(accuracy / 100)
            assert figures["test_acc"] == pytest.approx((11 + 10 * test + index / 2000 + 0.2) / 100)
            assert figures["params"] == 73_306 + index
            assert figures["macs"] == 1e6 * (1 + index / 8)
            assert benchmark.seconds(CELLS[index], 12) == pytest.approx(factor * (index + 200) * 12 / 200)
