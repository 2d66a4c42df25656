"""Triton's interpreter without what it works out anew for every operation, which is most of its time.

What a program computes stays as it is, and so does what is refused. Integers that overflow are refused
besides, which Triton looks for at length and then says only while it debugs.
"""

import inspect
import math

import numpy as np

FOR = "3.6."
"""Other versions are left as they are."""


def hasten():
    """Puts quicker functions in the place of Triton's; to be called once, where TRITON_INTERPRET is set."""
    import triton

    if not triton.__version__.startswith(FOR):
        return
    from triton.language import core, semantic
    from triton.runtime import interpreter

    core.block_type.__init__ = block_type(core)
    core.tensor.__init__ = tensor(core)
    interpreter._get_np_dtype = by_name(core, interpreter._get_np_dtype)
    interpreter._patch_lang = patched_once(core, interpreter)
    semantic.TritonSemantic.binary_op_sanitize_overflow_impl = refuse_overflow
    semantic.TritonSemantic.broadcast_impl_value = broadcast(semantic.TritonSemantic.broadcast_impl_value)


def block_type(core):
    """Sizes are checked once for each shape."""
    known, unwrap, check = {}, core._unwrap_shape, core.validate_block_shape

    def init(self, element_ty, shape):
        assert isinstance(shape, (list, core.tuple))
        sizes = tuple(unwrap(shape)) if isinstance(shape, list) else tuple(shape.values)
        if sizes not in known:
            if not sizes:
                raise TypeError("0d block_type is forbidden")
            known[sizes] = core.tuple(unwrap(shape)), check(unwrap(shape)), str(core.tuple(unwrap(shape)))
        self.shape, self.numel, written = known[sizes]
        self.element_ty, self.name = element_ty, f"<{written}, {element_ty}>"

    return init


def tensor(core):
    """Shapes are written as constants once each."""
    known = {}

    def init(self, handle, type):
        sizes = tuple(type.shape.values) if type.is_block() else ()
        if sizes not in known:
            shape = core.tuple([core.constexpr(size) for size in sizes])
            known[sizes] = shape, core.constexpr(math.prod(sizes))
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known[sizes]

    return init


def by_name(core, of_type):
    known = {}

    def np_dtype(type):
        name = type.scalar.name
        if name not in known:
            known[name] = of_type(type)
        return known[name]

    return np_dtype


def patched_once(core, interpreter):
    """What a program calls is not patched again while the program runs.

    Triton takes back the patches of a program only, not those of the functions that it calls.
    """
    plain, modules, now = interpreter._patch_lang, {}, set()

    class Scope:
        def __init__(self, scope):
            self.scope = scope

        def restore(self):
            self.scope.restore()
            now.clear()

    def patch(fn):
        if fn not in modules:
            seen = [value for value in fn.__globals__.values() if inspect.ismodule(value)]
            modules[fn] = {module for module in seen if module in (interpreter.tl, core)}
        if modules[fn] and modules[fn] <= now:
            return None  # a function's, of which Triton makes no use
        now.update(modules[fn])
        return Scope(plain(fn))

    return patch


def broadcast(plain):
    """What has the same shape already, of which there is one in all, is left as it is."""

    def both(self, lhs, rhs):
        a, b = lhs.type, rhs.type
        return (lhs, rhs) if a.is_block() and b.is_block() and a.shape is b.shape else plain(self, lhs, rhs)

    return both


def refuse_overflow(self, lhs, rhs, binary_op):
    """By NumPy, where Triton takes a dozen operations of the language."""
    kind = lhs.type.scalar
    if kind.int_bitwidth >= 64 or not self.builder.options.sanitize_overflow:
        return
    assert kind == rhs.type.scalar
    assert kind.is_int()
    exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[binary_op.__name__]
    found = exact(lhs.handle.data.astype(np.int64), rhs.handle.data.astype(np.int64))
    fits = (found <= kind.get_int_max_value()).all() and (found >= kind.get_int_min_value()).all()
    assert fits, f"int{kind.int_bitwidth} overflow detected for operation {binary_op.__name__}"
