"""Ways in which a file is damaged, each a function of its path, and what a malicious one looks like."""

import pickle
from pathlib import Path


def _edited(change):
    def damage(path):
        data = bytearray(path.read_bytes())
        changed = change(data)
        path.write_bytes(bytes(data if changed is None else changed))

    return damage


def flip(share):
    """One bit at a share of the file's length."""

    def change(data):
        place = min(len(data) - 1, int(share * len(data)))
        data[place] ^= 0x10

    return _edited(change)


def cut(share):
    """Only the first part is left."""
    return _edited(lambda data: data[: int(share * len(data))])


class Attack:
    """What unpickling it does."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def witness(path):
    """The file that is there after a pickle at `path` was executed."""
    return path.parent / "executed"


DAMAGES = {
    "length of the header": _edited(lambda data: data.__setitem__(0, data[0] ^ 1)),
    "header": _edited(lambda data: data.__setitem__(20, data[20] ^ 1)),
    "first quarter": flip(0.25),
    "middle": flip(0.5),
    "last bit": flip(1.0),
    "cut in the header": cut(0.01),
    "cut in half": cut(0.5),
    "last byte cut": _edited(lambda data: data[:-1]),
    "empty": cut(0.0),
    "zeros": _edited(lambda data: bytes(len(data))),
    "garbage": _edited(lambda data: bytes(range(256)) * 4),
    "appended": _edited(lambda data: data + b"x"),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Attack(witness(path)))),
}
