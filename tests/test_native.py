"""Depthwise kernels in CUDA C++, without a GPU: a C++ compiler gives their numbers, NVRTC their registers."""

import ctypes
import io
import re
import shutil
import subprocess
import tomllib
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from depthwise_cases import Case, cases

from nas.oneshot.extraction import as_searched
from nas.oneshot.fused import execution, trust
from nas.oneshot.fused.kernels import choice, launch, native
from nas.oneshot.fused.kernels.maps import Norm, Source
from nas.oneshot.fused.kernels.native import NativeError, Variant
from nas.ops import PRIMITIVES

CASES = list(cases())
CASE = Case(3, 1, 1, 2, 4, shared=False, sides=(6, 9))
KERNELS = files("nas.oneshot.fused.kernels")
SHIM = Path(__file__).parent / "cuda_on_cpu.h"
LAUNCH = """
extern "C" bool launch(
    int which, const unsigned* shape, void** arguments, const std::size_t* sizes, int count,
    bool backwards) {{
  gridDim = {{shape[0], shape[1], shape[2]}};
  blockDim = {{shape[3], shape[4], 1}};
  values = arguments;
  const std::vector<std::size_t> given(sizes, sizes + count);
  switch (which) {{
{cases}
  }}
  return false;
}}
"""


@dataclass
class Processor:
    """Takes launches in place of a GPU: first notes down which kernels are wanted, then computes them.

    backwards: whether the threads of a block run from the last to the first.
    """

    library: ctypes.CDLL | None = None
    wanted: list[str] = field(default_factory=list)
    backwards: bool = False

    def launch(self, function, variant, grid, arguments):
        expression = variant.expression(function)
        if self.library is None:
            self.wanted.append(expression)
            return
        values = [
            ctypes.c_int64(a.data_ptr()) if isinstance(a, Tensor) else np.ctypeslib.as_ctypes(np.asarray(a))
            for a in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        sizes = (ctypes.c_size_t * len(values))(*map(ctypes.sizeof, values))
        shape = (ctypes.c_uint * 5)(*grid, *variant.block)
        which = self.wanted.index(expression)
        assert self.library.launch(which, shape, pointers, sizes, len(values), self.backwards), expression

    def compile(self, folder):
        self.wanted = sorted(set(self.wanted))
        lines = [
            f"    case {i}: return launch<{name}>({name}, given, backwards);"
            for i, name in enumerate(self.wanted)
        ]
        source, library = folder / "kernels.cpp", folder / "kernels.so"
        parts = [f'#include "{SHIM}"', f'#include "{KERNELS / "depthwise.cu"}"', LAUNCH]
        source.write_text("\n".join(parts).format(cases="\n".join(lines)))
        command = [
            "g++",
            "-std=c++17",
            "-O0",
            "-Wall",
            "-Werror",
            "-Wno-unknown-pragmas",
            "-fno-strict-aliasing",
        ]
        done = subprocess.run(
            [*command, "-fno-strict-aliasing", "-shared", "-fPIC", source, "-o", library],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        self.library = ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    processor = Processor()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_launch", processor.launch)
        for case in CASES:
            case.computed()
    processor.compile(tmp_path_factory.mktemp("kernels"))
    return processor


@pytest.fixture
def processor(compiled, monkeypatch):
    """Kernels run on the processor, as if it were a GPU that nothing was tried on yet."""
    monkeypatch.setattr(native, "_launch", compiled.launch)
    monkeypatch.setattr(native, "_OFF", [])
    monkeypatch.setattr(native, "problem", lambda device: native._OFF[-1] if native._OFF else None)
    monkeypatch.setattr(choice, "_RIGHT", set())
    monkeypatch.setattr(compiled, "backwards", False)
    return compiled


# -- numbers ----------------------------------------------------------------------------------------------


def test_every_kind_of_kernel_gives_the_numbers_of_float64(processor):
    for case in CASES:
        case.check(case.computed())


def test_the_order_of_threads_does_not_matter(processor):
    for case in CASES[::7]:
        processor.backwards = False
        forwards = case.computed()
        processor.backwards = True
        assert all(map(torch.equal, forwards, case.computed())), case


def test_a_gradient_of_weights_in_several_blocks_of_several_strips(processor, monkeypatch):
    monkeypatch.setattr(native, "BLOCKS", 6)
    for case in CASES[-24:]:
        case.check(case.computed())


def test_bfloat16_is_rounded_to_the_nearest_with_ties_to_even(processor):
    case = next(c for c in CASES if c.dtype == torch.bfloat16 and c.stride == 1 and c.kernel == 3)
    source, weight, window, _ = case.given()
    source.x.copy_(source.x.round().exp2())
    weight.zero_()[:, 4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, torch.nan])[:, None]
    exact = source.x.float() * weight[:, 4, None]
    expected, found = exact.bfloat16(), native.depthwise(source, weight, window)
    assert torch.equal(expected.isnan(), found.isnan())
    assert torch.equal(expected.nan_to_num(), found.nan_to_num())


def test_only_what_kernels_know_has_a_variant():
    source, weight, window, grad = CASE.given()
    assert Variant.of(window, source, weight, grad) is not None
    assert Variant.of(window, source, weight.half(), grad) is None
    assert Variant.of(window, source, weight, grad.bfloat16()) is None
    assert Variant.of(Case(9, 1, 1, 2, 4, shared=False, sides=(6, 9)).given()[2], source, weight) is None
    odd = torch.empty(source.x.numel() + 1)[1:].view_as(source.x)
    assert (Variant.of(window, source, weight).lanes, Variant.of(window, source, weight, odd).lanes) == (2, 1)


@pytest.mark.parametrize("shared", [True, False])
def test_operations_that_are_not_on_are_not_computed(processor, shared):
    case = next(c for c in CASES if c.shared == shared and c.kernel == 3 and c.dtype == torch.float32)
    source, weight, window, grad = replace(case, groups=3).given()
    some, on = torch.tensor([0, 2]), torch.tensor([1, 0, 1], dtype=torch.int32)
    rest = Source(
        source.x if shared else source.x[some], source.relu, None if source.norm is None else
        Norm(*(t[some] for t in (source.norm.mean, source.norm.var, source.norm.inv)))
    )  # fmt: skip
    source = replace(source, on=on)
    assert torch.equal(native.depthwise(source, weight, window)[some],
                       native.depthwise(rest, weight[some], window))  # fmt: skip
    dx, dw = native.depthwise_gradients(grad, source, weight, window, wanted=(True, True))
    of_some = native.depthwise_gradients(grad[some], rest, weight[some], window, wanted=(True, True))
    assert torch.equal(dx if shared else dx[some], of_some[0])
    assert torch.equal(dw[some], of_some[1])
    assert not dw[1].any()


# -- what runs --------------------------------------------------------------------------------------------


@pytest.fixture
def triton(processor, monkeypatch):
    """The names of calls of Triton, in whose place stand kernels that are right but for the last bits."""
    asked, kernels, gradients = [], native.depthwise, native.depthwise_gradients

    def depthwise(*args):
        asked.append("depthwise")
        return kernels(*args) * (1 + 1e-6)

    def depthwise_gradients(*args, wanted):
        asked.append("gradients")
        return tuple(d * (1 + 1e-6) for d in gradients(*args, wanted=wanted))

    monkeypatch.setattr(launch, "depthwise", depthwise)
    monkeypatch.setattr(launch, "depthwise_gradients", depthwise_gradients)
    return asked


def by_choice(case):
    source, weight, window, grad = case.given()
    out = choice.depthwise(source, weight, window)
    return [out, *choice.depthwise_gradients(grad, source, weight, window, wanted=(True, True))]


def by_triton(case):
    source, weight, window, grad = case.given()
    out = launch.depthwise(source, weight, window)
    return [out, *launch.depthwise_gradients(grad, source, weight, window, wanted=(True, True))]


def equal(ours, theirs):
    return all(map(torch.equal, ours, theirs))


def test_kernels_give_what_triton_gives(processor):
    case = replace(CASE, groups=1, batch=1, sides=(3, 2))
    case.check(by_choice(case))
    assert native.problem(torch.device("cpu")) is None
    assert len(choice._RIGHT) == 2


def test_kernels_are_compared_with_triton_once_and_give_the_same_bits_from_the_first_call(triton):
    expected = CASE.computed()
    assert equal(by_choice(CASE), expected)
    assert equal(by_choice(CASE), expected)
    assert triton == ["depthwise", "gradients"]


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_kernels_that_are_wrong_are_not_used_again(triton, monkeypatch, wrong):
    known = native.depthwise
    monkeypatch.setattr(native, "depthwise", lambda *args: wrong * known(*args))
    with pytest.warns(UserWarning, match="CUDA C\\+\\+ are not used .*differs from Triton by") as said:
        found = by_choice(CASE)
    assert len(said) == 1
    assert equal(found, by_triton(CASE))
    assert "differs from Triton" in native.explain(torch.device("cpu"))


@pytest.mark.parametrize("calls", [0, 1])
def test_kernels_that_fail_sooner_or_later_are_not_used_again(triton, monkeypatch, calls):
    known, count = native.depthwise, iter(range(9))

    def fail(*args):
        if next(count) < calls:
            return known(*args)
        raise NativeError("no memory")

    monkeypatch.setattr(native, "depthwise", fail)
    for _ in range(calls):
        by_choice(CASE)
    with pytest.warns(UserWarning, match="not used \\(no memory\\); those in Triton are"):
        found = by_choice(CASE)
    assert equal(found, by_triton(CASE))
    assert equal(by_choice(CASE), found)


def test_zeros_tell_nothing(triton):
    source, weight, window, _ = CASE.given()
    choice.depthwise(source, torch.zeros_like(weight), window)
    assert not choice._RIGHT
    choice.depthwise(source, weight, window)
    assert choice._RIGHT


def test_nothing_new_is_tried_while_a_graph_is_captured(triton, monkeypatch):
    monkeypatch.setattr(choice, "_captured", lambda device: True)
    assert equal(by_choice(CASE), by_triton(CASE))
    assert not choice._RIGHT


@pytest.mark.parametrize("right", [True, False])
def test_a_chain_falls_back_to_triton_as_a_whole(triton, monkeypatch, right):
    """Where kernels are wrong in a way that the comparison of one call does not see."""
    monkeypatch.setattr(trust, "_TRIED", {})
    if not right:
        known = native.depthwise
        monkeypatch.setattr(native, "depthwise", lambda *args: 1.01 * known(*args))
        monkeypatch.setattr(choice, "_difference", lambda *_: 0.0)
    op = PRIMITIVES["dil_conv_3x3"](4, 4, 1).train()
    as_searched(op, [""])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert trust.known(op, kernels=True).form is not None
    assert [("CUDA C++ are not used" in str(w.message)) for w in said] == [True] * (not right)
    assert (native.problem(torch.device("cpu")) is None) == right


def test_why_triton_runs_is_explained(monkeypatch):
    cuda = torch.device("cuda")
    assert native.problem(torch.device("cpu")) == "the device is cpu"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(native, "_import_problem", lambda: None)
    assert "depthwise ones in CUDA C++" in execution.explain(cuda)
    with native.switched_off():
        assert "depthwise ones in Triton, since CUDA C++ is switched off" in execution.explain(cuda)
    monkeypatch.setattr(native, "_import_problem", lambda: "cuda-core cannot be imported")
    assert "in Triton, since cuda-core cannot be imported" in execution.explain(cuda)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "in Triton, since PyTorch is not built for CUDA" in execution.explain(cuda)


# -- launches ---------------------------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch):
    """What cuda-core is asked to launch: stream, configuration, kernel, arguments."""
    core, made = pytest.importorskip("cuda.core", reason="cuda-core is not installed"), []
    monkeypatch.setattr(core, "launch", lambda *given: made.append(given))
    monkeypatch.setattr(native, "_kernel", lambda *key: key)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=1234))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return made


def test_a_launch_is_what_cuda_core_takes(launches):
    from cuda.core import LaunchConfig, Stream

    source, weight, window, _ = CASE.given()
    out = native.depthwise(source, weight, window)
    ((stream, config, kernel, *arguments),) = launches
    assert isinstance(stream, Stream)
    assert stream.__cuda_stream__() == (0, 1234)
    # Two images of six rows of two strips; two pairs of channels, so that a block has 64 strips.
    assert config == LaunchConfig(grid=(1, 1, 2), block=(2, 64))
    assert kernel == ("depthwise_forward<float, 2, 4, 3, 1, 1, 2, false>", "sm_90")
    pointers = [t.data_ptr() for t in (source.norm.mean, source.norm.inv, weight, out)]
    assert arguments == [source.x.data_ptr(), np.int64(source.group), *pointers, 0, 2, 6, 9, 6, 9]
    assert [type(a) for a in arguments] == [int, np.int64, *[int] * 4, np.int64, *[np.int32] * 5]


def test_a_launch_that_fails_says_which(launches, monkeypatch):
    import cuda.core
    from cuda.core._utils.cuda_utils import CUDAError

    def fail(*given):
        raise CUDAError("out of resources")

    monkeypatch.setattr(cuda.core, "launch", fail)
    with pytest.raises(NativeError, match=r"depthwise_forward<float, 2, .*: out of resources"):
        native.depthwise(*CASE.given()[:3])


# -- compilation ------------------------------------------------------------------------------------------


def test_the_source_is_part_of_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["nas"]
    package = Path(str(KERNELS)).parents[2]
    assert KERNELS / "depthwise.cu" in {path for pattern in patterns for path in package.glob(pattern)}


@pytest.mark.parametrize(
    "variant",
    [
        Variant("bf16", 2, 16, 3, 1, 1, 1, whole=True),
        Variant("bf16", 2, 64, 5, 1, 1, 2, whole=True),
        Variant("bf16", 1, 5, 7, 2, 1, 1, whole=False),
        Variant("float", 2, 36, 5, 2, 2, 1, whole=False),
        Variant("float", 2, 16, 7, 2, 2, 2, whole=False),
    ],
    ids=str,
)
def test_kernels_compile_for_a_gpu_that_is_not_there_and_spill_next_to_nothing(variant):
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="cuda-pathfinder is not installed")
    try:
        pathfinder.load_nvidia_dynamic_lib("nvrtc")
    except pathfinder.DynamicLibNotFoundError:
        pytest.skip("NVRTC is not installed")
    names = ["depthwise_forward", "depthwise_input_gradient", "depthwise_weight_gradient"]
    log = io.StringIO()
    made = native.compiled([variant.expression(name) for name in names], "sm_90", log=log)
    assert made.symbol_mapping.keys() == {variant.expression(name) for name in names}
    spilled = [int(size) for size in re.findall(r"(\d+) bytes spill stores", log.getvalue())]
    assert len(spilled) == len(names)
    assert max(spilled) <= 64
