"""Triton's interpreter, hastened: it computes what it did before, and refuses what overflows."""

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("programs are compiled here", allow_module_level=True)
if not triton.__version__.startswith("3.6."):
    pytest.skip("this version's interpreter is left as it is", allow_module_level=True)

import triton.language as tl
from triton.runtime.errors import InterpreterError


@triton.jit
def doubled(x):
    return 2 * x


@triton.jit
def outer(a, b, out, rows: tl.constexpr, columns: tl.constexpr):
    row, column = tl.arange(0, rows)[:, None], tl.arange(0, columns)[None, :]
    x, y = tl.load(a + row, mask=row < rows - 1, other=0.5), tl.load(b + column)
    found = doubled(x) * y + tl.sum(tl.where(x > 0, x, 0.0), axis=0)[None, :]
    tl.store(out + row * columns + column, found)


@triton.jit
def grown(x, out, kind: tl.constexpr):
    at = tl.arange(0, 2)
    n = tl.load(x + at)
    if kind == "add":
        n = n + n
    elif kind == "sub":
        n = (0 - n) - n
    else:
        n = n * n
    tl.store(out + at, n)


def test_a_program_and_what_it_calls_are_computed():
    a, b, out = torch.randn(8), torch.randn(4), torch.empty(8, 4)
    for _ in "12":
        outer[(1,)](a, b, out.fill_(torch.nan), 8, 4)
        known = torch.cat([a[:7], torch.tensor([0.5])])
        assert torch.allclose(out, 2 * known.outer(b) + known.relu().sum())


@pytest.mark.parametrize("kind", ["add", "sub", "mul"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32], ids=str)
def test_an_overflow_is_refused(kind, dtype):
    largest = torch.iinfo(dtype).max
    fits = int(largest**0.5) if kind == "mul" else largest // 2
    out = torch.zeros(2, dtype=dtype)
    grown[(1,)](torch.tensor([1, fits], dtype=dtype), out, kind)
    assert int(out[1]) == {"add": 2 * fits, "sub": -2 * fits, "mul": fits * fits}[kind]
    over = fits + (2 if kind == "sub" else 1)
    with pytest.raises(InterpreterError, match=f"overflow detected for operation {kind}"):
        grown[(1,)](torch.tensor([1, over], dtype=dtype), out, kind)


def test_numbers_of_64_bits_are_not_looked_at():
    x = torch.tensor([1, 2**62], dtype=torch.int64)
    out = torch.zeros_like(x)
    with np.errstate(over="ignore"):
        grown[(1,)](x, out, "add")
    assert int(out[1]) == -(2**63)


@pytest.mark.parametrize("side", [3, 2**21])
def test_shapes_that_triton_does_not_know_are_refused(side):
    for _ in "12":
        with pytest.raises(ValueError, match=r"power of 2|exceeds triton maximum"):
            tl.block_type(tl.float32, [side])
    with pytest.raises(TypeError, match="0d block_type"):
        tl.block_type(tl.float32, [])
