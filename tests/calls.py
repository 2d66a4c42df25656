"""How often a block calls the library."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

MADE = (
    "aten::empty",
    "aten::empty_like",
    "aten::new_empty",
    "aten::empty_strided",
    "aten::new_empty_strided",
)
NO_WORK = (*MADE, "aten::detach", "aten::alias", "aten::_unsafe_view", "aten::as_strided_")


class Calls(TorchDispatchMode):
    """Counts the calls of the library by name that are work for a GPU: neither views nor empty memory."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        name, schema = call._schema.name, call._schema
        view = not schema.is_mutable and any(r.alias_info is not None for r in schema.returns)
        if name.startswith("aten::") and name not in NO_WORK and not view:
            self.counts[name] += 1
        return call(*args, **(kwargs or {}))
