"""Depthwise convolutions in CUDA C++: `depthwise.cu`, compiled when first used, with NVIDIA's cuda-core.

What was compiled is kept, see `cubins`.

They compute what the Triton programs of `launch` do, with fewer instructions for each product: a thread reads
a row of its map once for all taps. Convolutions of all kinds are one launch, compiled for just those kinds.
Checked without a GPU: the same source, compiled by a C++ compiler, gives the outcomes of float64, and NVRTC
compiles it for sm_90: all kinds of DARTS, 16 channels in bfloat16, take at most 122 registers. Not yet run
on a GPU; there each variant is compared with Triton before it is used, see `choice`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from nas.oneshot.fused.kernels.cubins import Cubin, kept
from nas.oneshot.fused.kernels.maps import Source, Taps, Window
from nas.oneshot.fused.kernels.tiles import cdiv
from nas.oneshot.fused.kernels.variant import Variant

if TYPE_CHECKING:
    from cuda.core import Kernel, ObjectCode

_FAILURES = (
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    ImportError,
    LookupError,
    SystemError,
)
"""What comes of a cuda-core that is not as ours, or does not fit the driver, beside its own errors."""
_OFF: list[str] = []
"""Why these kernels are not used although they could be tried."""


class NativeError(RuntimeError):
    """A kernel could not be compiled or launched."""


def problem(device: torch.device) -> str | None:
    """Why kernels of CUDA C++ do not run on a device, in words; None where they do."""
    if device.type != "cuda":
        return f"the device is {device}"
    if torch.version.cuda is None:
        return "PyTorch is not built for CUDA"
    return _import_problem() or (_OFF[-1] if _OFF else None)


def explain(device: torch.device) -> str:
    """Which depthwise kernels run on a device, and why."""
    lacking = problem(device)
    return "CUDA C++, compared with Triton at first" if lacking is None else f"Triton, since {lacking}"


@cache
def _import_problem() -> str | None:
    try:
        import cuda.core
        import cuda.core._utils.cuda_utils  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"cuda-core cannot be imported ({error}); pip install cuda-core"
    return None


def refuse(reason: str) -> None:
    """Leaves these kernels alone from now on, and says so."""
    _OFF.append(f"CUDA C++ failed: {reason}")
    warnings.warn(
        f"execution: depthwise kernels in CUDA C++ are not used ({reason}); those in Triton are", stacklevel=2
    )


@contextmanager
def switched_off() -> Iterator[None]:
    """Runs a block in which these kernels are not used."""
    _OFF.append(reason := "CUDA C++ is switched off")
    try:
        yield
    finally:
        _OFF.remove(reason)


def depthwise(source: Source, taps: Taps, window: Window) -> Tensor:
    """As that of `launch`.

    Raises:
        NativeError: where it cannot be compiled or launched.
    """
    variant = _variant(window, source, taps)
    out = source.x.new_empty(taps.groups, window.outputs, taps.inputs)
    blocks = variant.blocks(window.batch, window.after)
    _launch(
        "depthwise_forward", variant, (blocks, variant.tiles, source.programs(taps.groups)),
        [
            source.x, np.int64(source.size), np.int32(source.maps), *_statistics(source), taps.addresses,
            taps.kind, out, *_drawn(source), *_sizes(window),
        ],
    )  # fmt: skip
    return out


def depthwise_gradients(
    grad: Tensor, source: Source, taps: Taps, window: Window, *, for_x: bool, part: Tensor | None
) -> Tensor | None:
    """As those of `launch`.

    Raises:
        NativeError: where they cannot be compiled or launched.
    """
    variant = _variant(window, source, taps, grad)
    if part is not None:
        _weight_gradients(grad, source, taps, window, variant, part=part)
    return _input_gradient(grad, source, taps, window, variant) if for_x else None


def _input_gradient(grad: Tensor, source: Source, taps: Taps, window: Window, variant: Variant) -> Tensor:
    programs = source.programs(taps.groups)
    together = 0 if source.apart else programs
    dx = source.x.new_empty(source.maps, window.inputs, taps.inputs)
    blocks = variant.blocks(window.batch, window.before)
    _launch(
        "depthwise_input_gradient", variant, (blocks, variant.tiles, source.maps if together else programs),
        [
            grad, taps.addresses, taps.kind, source.x, np.int64(source.size), np.int32(source.maps),
            *_statistics(source), dx, *_drawn(source), np.int32(together), *_sizes(window),
        ],
    )  # fmt: skip
    return dx


def _weight_gradients(
    grad: Tensor, source: Source, taps: Taps, window: Window, variant: Variant, *, part: Tensor
) -> None:
    loop = cdiv(variant.blocks(window.batch, window.after), len(part))
    _launch(
        "depthwise_weight_gradient", variant, (len(part), variant.tiles, source.programs(taps.groups)),
        [
            source.x, np.int64(source.size), np.int32(source.maps), *_statistics(source), grad, part,
            np.int64(part.stride(0)), taps.kind, taps.places, *_drawn(source), np.int32(loop),
            *_sizes(window),
        ],
    )  # fmt: skip


def _variant(window: Window, source: Source, taps: Taps, *others: Tensor) -> Variant:
    variant = Variant.of(window, source, taps, *others)
    if variant is None:
        raise NativeError(f"there is no kernel for {window}, {taps.kinds} and maps of {source.x.dtype}")
    return variant


_Argument = Tensor | np.integer
_NOWHERE = np.int64(0)


def _statistics(source: Source) -> tuple[_Argument, _Argument]:
    """Scale and shift of its batch-norm; no address where it has none."""
    return (_NOWHERE, _NOWHERE) if source.norm is None else (source.norm.scale, source.norm.shift)


def _drawn(source: Source) -> tuple[_Argument, _Argument]:
    """Which operations are computed; no address where all are."""
    return (_NOWHERE, _NOWHERE) if source.drawn is None else (source.drawn.order, source.drawn.live)


def _sizes(window: Window) -> list[np.int32]:
    return [np.int32(size) for size in (window.batch, *window.before, *window.after)]


def _launch(
    function: str, variant: Variant, grid: tuple[int, int, int], arguments: Sequence[_Argument]
) -> None:
    """Puts a kernel on the current stream. arguments: cuda-core takes a pointer for what is an `int`."""
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    expression, capability = variant.expression(function), torch.cuda.get_device_capability(device)
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    try:
        from cuda.core import LaunchConfig, Stream, launch

        kernel = _kernel(expression, "sm_{}{}".format(*capability))
        with torch.cuda.device(device):
            stream = Stream.from_handle(torch.cuda.current_stream().cuda_stream)
            launch(stream, LaunchConfig(grid=grid, block=variant.block), kernel, *values)
    except (_cuda_error(), *_FAILURES) as error:
        raise NativeError(f"{expression}: {error}") from error


@cache
def _cuda_error() -> type[Exception]:
    """What cuda-core raises of the driver and of NVRTC."""
    from cuda.core._utils.cuda_utils import CUDAError

    return cast(type[Exception], CUDAError)


@cache
def _kernel(expression: str, arch: str) -> Kernel:
    from cuda.core import ObjectCode

    def make() -> Cubin:
        made = compiled([expression], arch)
        return Cubin(made.symbol_mapping[expression], made.code)

    cubin = kept([expression, arch, _source(), *_compilers()], make)
    return ObjectCode.from_cubin(cubin.code, symbol_mapping={expression: cubin.symbol}).get_kernel(expression)


@cache
def _source() -> str:
    return files(__package__).joinpath("depthwise.cu").read_text(encoding="utf-8")


def _compilers() -> list[str]:
    """The versions of what compiles."""
    from cuda.bindings import nvrtc

    return [version("cuda-core"), str(nvrtc.nvrtcVersion()[1:])]


def compiled(expressions: Sequence[str], arch: str, *, log: object = None) -> ObjectCode:
    """Kernels for an architecture such as `sm_90`; no GPU is needed.

    log: where the assembler writes the registers that they use.
    """
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(arch=arch, std="c++17", ptxas_options=None if log is None else ["-v"])
    return Program(_source(), "c++", options).compile("cubin", name_expressions=tuple(expressions), logs=log)
