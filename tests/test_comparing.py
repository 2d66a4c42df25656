"""Paths of execution compared with each other: steps, launches, and how near they are to the floor."""

import copy
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tape import Tape
from torch import nn
from torch.autograd import DeviceType

from nas.errors import ConfigError
from nas.oneshot.methods import METHODS
from nas.registry import load
from nas.speed import comparing
from nas.speed.comparing import (
    COMPILED,
    PATHS,
    WARMING,
    Run,
    compare,
    count_kernels,
    difference_in_float64,
    paths_of,
)
from nas.speed.floor import bytes_moved, copy_bandwidth
from nas.speed.table import fastest
from nas.speed.workloads import measure, noise, searching, training
from nas.training import loop
from nas.training.recipe import preset

CPU = torch.device("cpu")
SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def network():
    return load("toy", width=4, classes=10, in_channels=3).network((0, 1, 2)).train()


@pytest.fixture(scope="module")
def task():
    return noise(channels=3, side=8, images=20, device=CPU)


RECIPE = dataclasses.replace(preset("quick"), batch=8, precision="float32", cutout=2)


def method(name):
    return dataclasses.replace(METHODS[name](), weights=RECIPE)


# -- steps ----------------------------------------------------------------------------------------------


def test_every_path_of_the_device_is_measured_on_a_copy(network, task):
    before = copy.deepcopy(network.state_dict())
    rows = measure(training(network, task, RECIPE), steps=3, bandwidth=1e9)
    assert list(rows) == paths_of(CPU) == ["plain", "plain, channels last", "batched"]
    assert rows["plain"]["ratio"] == 1.0
    for row in rows.values():
        assert all(row[name] > 0 for name in ("ms", "calls", "peak_MiB", "images_per_s"))
        assert 0 < row["input_share"] < 1
        assert row["floor_ms"] == pytest.approx(row["GiB"] * 2**30 / 1e9 * 1e3)
        assert row["floor_share"] == pytest.approx(row["floor_ms"] / row["ms"])
        assert row["GiB"] == rows["plain"]["GiB"]
    assert rows["plain"]["loss_difference"] == 0.0
    assert rows["batched"]["loss_difference"] < 1e-3
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["darts", "gdas", "pcdarts", "darts2"])
def test_a_step_of_every_mode_is_the_same_on_all_paths(task, name):
    work = searching(load("toy", width=4, in_channels=3), task, method(name))
    rows = measure(work, steps=2, bandwidth=1e9)
    assert 0 < max(row["input_share"] for row in rows.values()) < 1
    assert rows["batched"]["loss_difference"] < 1e-3
    assert (
        difference_in_float64(work.network, task.normalise(task.train.x[:4]), task.train.y[:4], steps=3)
        < 1e-12
    )


def test_the_reference_sees_maps_with_channels_first(network, task):
    work, seen = training(network, task, RECIPE), {}
    network[0].register_forward_pre_hook(lambda module, args: seen.update(now=args[0]))
    for path in paths_of(CPU):
        work.begin(path).advance()
        seen[path] = seen.pop("now")
    last = {path: not x.is_contiguous() for path, x in seen.items()}
    assert last == {"plain": False, "plain, channels last": True, "batched": True}


@pytest.mark.parametrize("what", ["search", "training"])
def test_steps_as_graphs_are_those_of_the_same_path(monkeypatch, network, task, what):
    space = load("toy", width=4, in_channels=3)
    work = training(network, task, RECIPE) if what == "training" else searching(space, task, method("darts"))
    tapes = []
    monkeypatch.setattr(loop, "recorder", lambda device: tapes.append(Tape()) or tapes[-1])
    losses = []
    for path in ("batched", "batched, graph"):
        run, found = work.begin(path), []
        for _ in range(WARMING["cuda"] + 1):
            run.advance()
            found.append(run.loss())
        losses.append(found)
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    (tape,) = tapes
    assert (tape.captured, tape.replayed) == (1, WARMING["cuda"] - 1)


def test_the_loss_of_a_run_is_that_of_its_last_step(network, task):
    """Wherever in an epoch that is."""
    work, beside = training(network, task, RECIPE), copy.deepcopy(network)
    twin = loop.Loop(beside, task, RECIPE, seed=0, split=task.train, forward=lambda net, x, _: net(x))
    run = work.begin("batched")
    for _ in range(3):
        expected = twin.loss().item()
        twin.advance()
        run.advance()
        assert run.loss() == pytest.approx(expected, rel=1e-4)


def test_a_gpu_has_all_paths(monkeypatch):
    assert paths_of(torch.device("cuda")) == [name for name in PATHS if name != COMPILED]
    monkeypatch.setattr(comparing, "find_spec", lambda name: None)
    assert not any("kernels" in name for name in paths_of(torch.device("cuda")))


def test_paths_that_differ_are_seen_to(network, task):
    x, y = task.normalise(task.train.x[:4]), task.train.y[:4]
    assert difference_in_float64(network, x, y, steps=3) < 1e-12

    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            run = any(module.execute for module in self.modules() if hasattr(module, "execute"))
            return self.network(x) + 0.5 * run * F.one_hot(y, 10)

    assert difference_in_float64(Wrong(), x, y, steps=1) > 0.1


def test_runs_take_turns_and_the_losses_are_those_of_the_timed_steps():
    done = []

    def run(name, shift):
        return Run(lambda: done.append(name), lambda: done.count(name) + shift * (done.count(name) == 2))

    rows = compare({"one": run("one", 0), "other": run("other", 0.5)}, steps=2, device=CPU)
    assert done[:6] == ["one", "other"] * 3
    assert rows["one"]["loss_last"] == rows["other"]["loss_last"] == 3
    assert rows["other"]["loss_difference"] == 0.5


def test_compiling_is_timed_apart(task, monkeypatch):
    compiled = []

    def compiles(network):
        compiled.append(network)

    monkeypatch.setattr(nn.Module, "compile", compiles)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    rows = measure(training(network, task, RECIPE), steps=1, bandwidth=1e9, also=[COMPILED])
    assert [*rows] == [*paths_of(CPU), COMPILED]
    assert len(compiled) == 1
    assert [name for name, row in rows.items() if "first_s" in row] == [COMPILED]


def test_the_noise_has_a_trace_of_its_class(task):
    sums = task.train.x.flatten(1).double().mean(1)
    assert torch.corrcoef(torch.stack([sums, task.train.y.double()]))[0, 1] > 0.5
    assert task.image_shape == (3, 8, 8) and min(len(task.train), len(task.val)) >= 16


def test_kernels_are_counted_without_copies_and_annotations():
    def event(name, device=DeviceType.CUDA, *, note=False):
        return SimpleNamespace(name=name, device_type=device, is_user_annotation=note)

    events = [
        event("void at::native::vectorized_elementwise_kernel"),
        event("sm90_xmma_gemm"),
        event("sm90_xmma_gemm"),
        event("Memcpy DtoD (Device -> Device)"),
        event("Memset (Device)"),
        event("Optimizer.step#SGD.step", note=True),
        event("aten::add", DeviceType.CPU),
    ]
    assert count_kernels(events) == 3


# -- the floor ------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Images [B, 3, 8, 8] to maps [B, 4, 8, 8], pooled [B, 4, 4, 4], [B, 6, 4, 4], pooled [B, 6, 2, 2]."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Conv2d(4, 6, 1)
        self.average = nn.AvgPool2d(2)
        self.head = nn.Linear(6 * 4, 5)

    def forward(self, x):
        x = self.pool(F.relu(self.norm(self.first(x))))
        return self.head(self.average(self.second(x)).flatten(1))


B = 7
IMAGE, MAP, HALF, WIDE, QUARTER = B * 3 * 64, B * 4 * 64, B * 4 * 16, B * 6 * 16, B * 6 * 4
FIRST, SECOND = 4 * 3 * 9, 6 * 4
FORWARD = (
    (IMAGE + FIRST + MAP)  # convolution
    + (MAP + MAP)  # batch-norm
    + (MAP + HALF)  # max-pool
    + (HALF + SECOND + WIDE)
    + (WIDE + QUARTER)  # average pool
)
BACKWARD = (
    (QUARTER + WIDE)  # average pool: gradients in and out
    + (WIDE + HALF + SECOND + HALF + SECOND)  # gradient, input, kernel, and the gradients of both
    + (HALF + MAP + MAP)  # max-pool: gradient, input, gradient
    + (MAP + MAP + MAP)  # batch-norm
    + (MAP + IMAGE + FIRST)  # nothing asks for the gradient of the image
)
WITHOUT_KERNELS = (QUARTER + WIDE) + (WIDE + SECOND + HALF) + (HALF + MAP + MAP) + (MAP + MAP)
"""Backward to the batch-norm's own weights: no input is read for a kernel, and no more maps are written."""


def passes(net, x, *, backward):
    def work():
        loss = net(x).sum()
        if backward:
            loss.backward()

    return work


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_the_bytes_of_a_small_network_are_those_counted_by_hand(dtype, size):
    net, x = Small().to(dtype), torch.randn(B, 3, 8, 8, dtype=dtype)
    assert bytes_moved(passes(net, x, backward=False)) == size * FORWARD
    assert bytes_moved(passes(net, x, backward=True)) == size * (FORWARD + BACKWARD)


def test_gradients_that_nobody_asks_for_move_nothing():
    net, x = Small(), torch.randn(B, 3, 8, 8)
    for convolution in (net.first, net.second):
        convolution.requires_grad_(False)  # noqa: FBT003 - torch's own
    assert bytes_moved(passes(net, x, backward=True)) == 4 * (FORWARD + WITHOUT_KERNELS)


def test_arithmetic_in_bfloat16_moves_half_the_bytes(task):
    found = []
    for precision in ("float32", "bfloat16"):
        recipe = dataclasses.replace(RECIPE, precision=precision)
        work = searching(
            load("toy", width=4, in_channels=3), task, dataclasses.replace(METHODS["darts"](), weights=recipe)
        )
        found.append(bytes_moved(work.begin("plain").advance))
    assert found[0] == 2 * found[1]


def test_one_sampled_operation_moves_less_than_all(task):
    found = {}
    for name in ("darts", "gdas"):
        work = searching(load("toy", width=4, in_channels=3), task, method(name))
        found[name] = bytes_moved(work.begin("plain").advance)
        assert work.alike == (name == "darts")
    assert 0 < found["gdas"] < found["darts"]


def test_a_pass_that_is_not_known_is_named():
    layer = nn.GroupNorm(2, 4)
    with pytest.raises(ConfigError, match="native_group_norm"):
        bytes_moved(lambda: layer(torch.randn(2, 4, 3, 3)))


def test_bandwidth_is_that_of_the_device():
    assert copy_bandwidth(CPU, size=2**20, repeats=2) > 0


# -- the scripts ----------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs a script with arguments; gives what it wrote."""

    def run(name, tiny, *arguments):
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for table, rows in tiny.items():
            monkeypatch.setattr(module, table, rows)
        monkeypatch.setattr(module, "copy_bandwidth", lambda device: 1e9)
        out = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", [name, "--steps", "1", "--out", str(out), *arguments])
        module.main()
        return json.loads(out.read_text())

    return run


TINY = {"tiny": {"space": "toy", "width": 4, "channels": 1, "side": 8, "batch": 4}}


@pytest.mark.parametrize("mode", ["mixed", "sampled", "partial", "second"])
def test_the_bench_of_searches_runs_every_mode(script, capsys, mode):
    found = script("bench_supernet", {"SIZES": TINY}, "--mode", mode, "--batch", "6")
    assert {"torch", "cuda", "triton", "hardware", "copied_GB_per_s"} <= found["machine"].keys()
    assert list(found)[1:] == [f"tiny, {mode}, batch 6"]
    row = found[f"tiny, {mode}, batch 6"]
    assert row["mode"] == mode and row["precision"] == "float32" and row["batch"] == 6
    assert row["loss_difference_float64"] < 1e-12
    assert all("times_first" in path for path in row["paths"].values()) == (mode == "second")
    assert '"floor_share"' in capsys.readouterr().out
    assert fastest(found)[1] == "batched"


def test_a_bench_times_only_the_paths_that_are_asked_for_and_there(script):
    asked = ("--path", "plain", "--path", "batched", "--path", "kernels, graph")
    found = script("bench_supernet", {"SIZES": TINY}, *asked)
    assert list(found["tiny, mixed, batch 4"]["paths"]) == ["plain", "batched"]


def test_the_bench_of_trainings_runs(script):
    cell = "|nor_conv_1x1~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
    tiny = {"tiny": ("nasbench201", cell, "standard", {"width": 4, "cells": 1}, 8, 4)}
    found = script("bench_retrain", {"NETWORKS": tiny}, "--precision", "bfloat16")
    assert list(found) == ["machine", "tiny, batch 4"]
    assert found["tiny, batch 4"]["precision"] == "bfloat16"
    assert list(found["tiny, batch 4"]["paths"]) == paths_of(CPU)
