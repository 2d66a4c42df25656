"""Depthwise kernels in CUDA C++, without a GPU: a C++ compiler gives their numbers, NVRTC their registers."""

import builtins
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

from depthwise_cases import ALL, cases

from nas.oneshot.extraction import as_searched
from nas.oneshot.fused import execution, trust, verdict
from nas.oneshot.fused.kernels import choice, cubins, launch, native
from nas.oneshot.fused.kernels.cubins import Cubin
from nas.oneshot.fused.kernels.native import NativeError
from nas.oneshot.fused.kernels.variant import Variant
from nas.ops import PRIMITIVES

CASES = list(cases())
CASE = next(c for c in CASES if (c.kinds, c.stride, c.pre, c.channels) == (ALL, 1, 2, 4))
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
        # What only generic lambdas use, GCC thinks unused.
        warnings = ["-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-but-set-variable"]
        done = subprocess.run(
            [
                "g++",
                "-std=c++17",
                "-O0",
                *warnings,
                "-fno-strict-aliasing",
                "-shared",
                "-fPIC",
                source,
                "-o",
                library,
            ],
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


@pytest.fixture
def poisoned():
    """What is not written to is not a number."""
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.mark.usefixtures("poisoned")
def test_every_kind_of_kernel_gives_the_numbers_of_float64_and_writes_nothing_else(processor):
    for case in CASES:
        case.check(case.computed(), poisoned=True)


def test_the_order_of_threads_does_not_matter(processor):
    for case in CASES[::7]:
        processor.backwards = False
        forwards = case.computed()
        processor.backwards = True
        assert case.same(case.computed(), forwards), case


def test_operations_give_the_same_bits_apart_and_together(processor):
    """And a kind the same beside others, where strips are as long."""
    case = next(c for c in CASES if c.kinds == ALL and not c.shared and c.drawn is None and c.pre == 2)
    together = case.computed()
    for g, (start, stop) in enumerate(case.spans):
        alone = replace(case, drawn=(g,)).computed()
        assert torch.equal(alone[0][g], together[0][g])
        assert torch.equal(alone[1][g], together[1][g])
        assert torch.equal(alone[2][start:stop], together[2][start:stop])


def test_bfloat16_is_rounded_to_the_nearest_with_ties_to_even(processor):
    case = next(c for c in CASES if c.dtype == torch.bfloat16 and c.kinds == ((3, 1),))
    case = replace(case, drawn=None)
    source, taps, window, _ = case.given()
    source.x.copy_(source.x.round().exp2())  # positive, so that a ReLU changes nothing
    factors = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, torch.nan]).repeat(2)
    for start, stop in case.spans:
        taps.like[start:stop] = 0
        taps.like[start:stop].view(6, 9)[:, 4] = factors
    exact = source.x.float() * factors
    found = native.depthwise(source, taps, window)
    expected = exact.bfloat16().expand(found.shape)
    assert torch.equal(expected.isnan(), found.isnan())
    assert torch.equal(expected.nan_to_num(), found.nan_to_num())


def test_only_what_kernels_know_has_a_variant():
    source, taps, window, grad = CASE.given()
    assert Variant.of(window, source, taps, grad) is not None
    assert Variant.of(window, source, replace(taps, like=taps.like.half()), grad) is None
    assert Variant.of(window, source, taps, grad.bfloat16()) is None
    assert Variant.of(window, source, replace(taps, kinds=((3, 1), (9, 1)))) is None
    assert Variant.of(replace(window, stride=3), source, taps) is None
    odd = torch.empty(source.x.numel() + 1)[1:].view_as(source.x)
    assert (Variant.of(window, source, taps).lanes, Variant.of(window, source, taps, odd).lanes) == (2, 1)


# -- what runs --------------------------------------------------------------------------------------------


@pytest.fixture
def triton(processor, monkeypatch):
    """The names of calls of Triton, in whose place stand kernels that are right but for the last bits."""
    asked, kernels, gradients = [], native.depthwise, native.depthwise_gradients

    def depthwise(*args):
        asked.append("depthwise")
        return kernels(*args) * (1 + 1e-6)

    def depthwise_gradients(*args, for_x, part):
        asked.append("gradients")
        dx = gradients(*args, for_x=for_x, part=part)
        part *= 1 + 1e-6
        return dx * (1 + 1e-6)

    monkeypatch.setattr(launch, "depthwise", depthwise)
    monkeypatch.setattr(launch, "depthwise_gradients", depthwise_gradients)
    return asked


interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton's interpreter stands in for a GPU; with one, see test_cuda"
)


@interpreted
def test_kernels_give_what_triton_gives(processor):
    case = replace(CASE, batch=1, sides=(3, 2))
    case.check(case.computed(choice))
    assert native.problem(torch.device("cpu")) is None
    assert len(choice._RIGHT) == 2


def test_kernels_are_compared_with_triton_once_and_give_the_same_bits_from_the_first_call(triton):
    expected = CASE.computed()
    assert CASE.same(CASE.computed(choice), expected)
    assert CASE.same(CASE.computed(choice), expected)
    assert triton == ["depthwise", "gradients"]


def test_what_is_drawn_or_shared_is_compared_as_well(triton):
    """By the same kernels, but not in the same way."""
    cases = [
        replace(CASE, drawn=drawn, shared=shared) for drawn in (None, (1, 0)) for shared in (False, True)
    ]
    for case in cases * 2:
        case.computed(choice)
    assert triton == ["depthwise", "gradients"] * len(cases)


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
@pytest.mark.parametrize("where", ["maps", "map", "kernels"])
def test_kernels_that_are_wrong_are_not_used_again(triton, monkeypatch, wrong, where):
    known, gradients = native.depthwise, native.depthwise_gradients

    def scaled(tensor, what):
        return tensor.mul_(wrong if what == where else 1)

    def wrong_gradients(*args, for_x, part):
        dx = gradients(*args, for_x=for_x, part=part)
        scaled(part, "kernels")
        return scaled(dx, "map")

    monkeypatch.setattr(native, "depthwise", lambda *args: scaled(known(*args), "maps"))
    monkeypatch.setattr(native, "depthwise_gradients", wrong_gradients)
    with pytest.warns(UserWarning, match="CUDA C\\+\\+ are not used .*differs from Triton by") as said:
        found = CASE.computed(choice)
    assert len(said) == 1
    expected = CASE.computed(launch)
    assert torch.equal(found[0], (expected if where == "maps" else CASE.computed())[0])
    assert CASE.same([expected[0], *found[1:]], expected)
    assert "differs from Triton" in native.explain(torch.device("cpu"))


@pytest.mark.parametrize("drawn", [None, (2, 0), ()])
def test_numbers_of_other_launches_are_left_alone(triton, drawn):
    """While a call is compared with Triton, and what is not computed is not looked at."""
    case = replace(CASE, drawn=drawn)
    case.check(case.computed(choice))
    assert len(choice._RIGHT) == 2 * (drawn != ())


@pytest.mark.parametrize("calls", [0, 1])
def test_kernels_that_fail_sooner_or_later_are_not_used_again(triton, monkeypatch, calls):
    known, count = native.depthwise, iter(range(9))

    def fail(*args):
        if next(count) < calls:
            return known(*args)
        raise NativeError("no memory")

    monkeypatch.setattr(native, "depthwise", fail)
    for _ in range(calls):
        CASE.computed(choice)
    with pytest.warns(UserWarning, match="not used \\(no memory\\); those in Triton are"):
        found = CASE.computed(choice)
    assert CASE.same(found, CASE.computed(launch))
    assert CASE.same(CASE.computed(choice), found)


def test_zeros_tell_nothing(triton):
    source, taps, window, _ = CASE.given()
    numbers = taps.like.clone()
    taps.like.zero_()
    choice.depthwise(source, taps, window)
    assert not choice._RIGHT
    taps.like.copy_(numbers)
    choice.depthwise(source, taps, window)
    assert choice._RIGHT


def test_nothing_new_is_tried_while_a_graph_is_captured(triton, monkeypatch):
    monkeypatch.setattr(choice, "_captured", lambda device: True)
    assert CASE.same(CASE.computed(choice), CASE.computed(launch))
    assert not choice._RIGHT


@interpreted
@pytest.mark.parametrize("right", [True, False])
def test_a_chain_falls_back_to_triton_as_a_whole(triton, monkeypatch, right):
    """Where kernels are wrong in a way that the comparison of one call does not see."""
    monkeypatch.setattr(trust, "_TRIED", {})
    if not right:
        known = native.depthwise
        monkeypatch.setattr(native, "depthwise", lambda *args: 1.01 * known(*args))
        monkeypatch.setattr(choice, "_difference", lambda *_: 0.0)
    op = PRIMITIVES["dil_conv_5x5"](4, 4, 1).train()
    as_searched(op, [""])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert trust.known(op, kernels=True).form is not None
    assert [("CUDA C++ are not used" in str(w.message)) for w in said] == [True] * (not right)
    assert (native.problem(torch.device("cpu")) is None) == right


def test_why_triton_runs_is_explained(monkeypatch):
    cuda = torch.device("cuda")
    assert native.problem(torch.device("cpu")) == "the device is cpu"
    monkeypatch.setattr(verdict, "remembered", lambda device: None)
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

    source, taps, window, grad = CASE.given()
    out, part = native.depthwise(source, taps, window), CASE.part()
    dx = native.depthwise_gradients(grad, source, taps, window, for_x=True, part=part)
    (stream, config, kernel, *arguments), of_kernels, of_maps = launches
    assert isinstance(stream, Stream)
    assert stream.__cuda_stream__() == (0, 1234)
    # Two images of five rows of two strips; two pairs of channels, so that a block has 64 strips.
    assert config == LaunchConfig(grid=(1, 1, 5), block=(2, 64))
    assert kernel == ("depthwise_forward<float, 2, 4, 1, 2, false, 31, 51, 32, 52>", "sm_90")
    statistics = [source.norm.scale, source.norm.shift]
    pointers = [t.data_ptr() for t in (*statistics, taps.addresses, taps.kind, out)]
    read = [source.x.data_ptr(), source.size, 5]
    assert arguments == [*read, *pointers, 0, 0, 2, 5, 11, 5, 11]
    whole = [np.int64, np.int32, *[int] * 5, *[np.int64] * 2, *[np.int32] * 5]
    assert [type(a) for a in arguments] == [int, *whole]
    assert part.data_ptr() in of_kernels
    assert of_kernels[1] == LaunchConfig(grid=(1, 1, 5), block=(2, 64))
    assert dx.data_ptr() in of_maps


@pytest.mark.parametrize(("most", "programs"), [(1, 1), (2, 2), (5, 3)])
def test_no_more_programs_are_begun_than_operations_can_be_drawn(launches, most, programs):
    case = replace(CASE, groups=3, drawn=(2,), shared=True, pre=1)
    source, taps, window, grad = case.given()
    source = replace(source, drawn=replace(source.drawn, most=most))
    native.depthwise(source, taps, window)
    native.depthwise_gradients(grad, source, taps, window, for_x=True, part=case.part())
    assert [given[1].grid for given in launches] == [(1, 1, programs), (1, 1, programs), (1, 1, 1)]
    assert launches[2][-6] == programs


@pytest.mark.parametrize("kind", ["CUDAError", "ValueError", "TypeError", "AttributeError", "SystemError"])
def test_a_launch_that_fails_says_which(launches, monkeypatch, kind):
    import cuda.core
    from cuda.core._utils.cuda_utils import CUDAError

    def fail(*given):
        raise getattr(builtins, kind, CUDAError)("out of resources")

    monkeypatch.setattr(cuda.core, "launch", fail)
    with pytest.raises(NativeError, match=r"depthwise_forward<float, 2, .*: out of resources"):
        native.depthwise(*CASE.given()[:3])


# -- what was compiled is kept ----------------------------------------------------------------------------


@pytest.fixture
def making(tmp_path, monkeypatch):
    """A folder for kernels, and what makes one; how often is counted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def make():
        made.append(1)
        return Cubin(b"_Z1f", b"\x7fELF\n\n" + bytes(len(made)))

    return tmp_path / "nas" / "cubins", make, made


def test_a_kernel_is_compiled_once_for_a_source_and_a_compiler(making):
    folder, make, made = making
    first = cubins.kept(["f", "sm_90"], make)
    assert cubins.kept(["f", "sm_90"], make) == first == Cubin(b"_Z1f", b"\x7fELF\n\n\0")
    assert cubins.kept(["f", "sm_100"], make) != first
    assert len(made) == len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"no such thing", b"a\nb\nc"])
def test_a_torn_kernel_is_compiled_again(making, damage):
    folder, make, made = making
    for _ in range(2):
        cubins.kept(["f"], make)
        (file,) = folder.iterdir()
        file.write_bytes(file.read_bytes()[:-1] if damage == b"" else damage)
    assert len(made) == 2
    assert cubins.kept(["f"], make) == Cubin.unpacked(file.read_bytes())


def test_a_kernel_that_cannot_be_kept_is_compiled(making, monkeypatch):
    folder, make, made = making
    folder.parent.write_text("a file")
    assert cubins.kept(["f"], make) and cubins.kept(["f"], make)

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(cubins.Path, "home", nowhere)
    assert cubins.kept(["f"], make)
    assert len(made) == 3


def test_another_process_loads_what_was_compiled(making, monkeypatch):
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    loaded, compiled = [], []

    class Code:
        def from_cubin(code, *, symbol_mapping):
            loaded.append((code, symbol_mapping))
            return SimpleNamespace(get_kernel=symbol_mapping.get)

    def compile_(expressions, arch):
        compiled.append(arch)
        return SimpleNamespace(symbol_mapping={expressions[0]: b"_Z1f"}, code=b"code")

    monkeypatch.setattr(core, "ObjectCode", Code)
    monkeypatch.setattr(native, "compiled", compile_)
    monkeypatch.setattr(native, "_compilers", lambda: ["1.2.2"])
    for _ in range(2):
        native._kernel.cache_clear()
        assert native._kernel("f<2>", "sm_90") == b"_Z1f"
    native._kernel.cache_clear()
    assert compiled == ["sm_90"]
    assert loaded == [(b"code", {"f<2>": b"_Z1f"})] * 2


# -- compilation ------------------------------------------------------------------------------------------


def test_the_source_is_part_of_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["nas"]
    package = Path(str(KERNELS)).parents[2]
    assert KERNELS / "depthwise.cu" in {path for pattern in patterns for path in package.glob(pattern)}


@pytest.mark.parametrize(
    "variant",
    [
        Variant("bf16", 2, 16, 1, 1, whole=True, kinds=ALL),
        Variant("bf16", 2, 64, 1, 2, whole=True, kinds=ALL[:2]),
        Variant("bf16", 1, 5, 1, 1, whole=False, kinds=((7, 2),)),
        Variant("float", 2, 36, 2, 1, whole=False, kinds=ALL),
        Variant("float", 2, 16, 2, 2, whole=False, kinds=((3, 1), (7, 2))),
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
