"""Launches of the kernels' programs by Triton's launcher, as on a GPU, on a driver that runs nothing."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

HERE = Path(__file__).parent
DENSE = {"convolve_forward", "convolve_input_gradient", "convolve_weight_gradient"}
DEPTHWISE = {"depthwise_forward", "depthwise_input_gradient", "depthwise_weight_gradient"}
NODES = {"node_forward", "node_sums", "branch_gradient", "pool_forward", "pool_gradient", "leaving_gradient"}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Name, grid, threads and stream of each launch."""
    if torch.cuda.is_available():
        pytest.skip("a GPU has a driver of its own")
    if shutil.which("gcc") is None or not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        pytest.skip("Triton cannot compile its launchers without gcc and Python's headers")
    folder = tmp_path_factory.mktemp("driver")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    made = ["-shared", "-fPIC", f"-I{headers}", HERE / "driver_on_cpu.c", "-o", folder / "libcuda.so.1"]
    subprocess.run(["gcc", "-Wl,-soname,libcuda.so.1", *made], check=True)
    own = {"LD_LIBRARY_PATH": str(folder), "TRITON_CACHE_DIR": str(folder / "cache")}
    own |= {"TRITON_LIBCUDA_PATH": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | own
    done = subprocess.run(
        [sys.executable, HERE / "launching.py"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line.split() for line in done.stdout.splitlines()]


def test_all_launches_reach_the_driver_on_the_stream_of_torch(launched):
    names = Counter(name for name, *_ in launched)
    assert names.keys() >= DENSE | DEPTHWISE | NODES
    assert {stream for *_, stream in launched} == {"0x1234"}
    for _, *sizes, _ in launched:
        x, y, z, threads = map(int, sizes)
        assert x > 0 and 0 < y < 2**16 and 0 < z < 2**16 and threads == 128
