import hashlib
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from nas.errors import ConfigError
from nas.training.checkpoint import Checkpoints, load_tensors, save_tensors

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
states = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a, b):
    """Equal with equal types at every place, floats bit for bit (one NaN is like another)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return same(list(a), list(b)) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or struct.pack("d", a) == struct.pack("d", b)
    return a == b


@settings(deadline=None, max_examples=50)
@given(state=st.dictionaries(st.integers() | st.text(), states, max_size=3))
def test_nested_values_come_back_from_disk(tmp_path_factory, state):
    checkpoints = Checkpoints(tmp_path_factory.getbasetemp() / "hypothesis")
    checkpoints.save(3, state)
    step, loaded = checkpoints.load()
    assert step == 3
    assert same(loaded, state)


def test_tensors_of_every_kind_come_back(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "transposed": base.T,
        "slice": base[:, 1],
        "expanded": torch.tensor([1.0]).expand(4),
        "tied": base,
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "random": torch.get_rng_state(),
        "nan": (torch.tensor([math.inf, -0.0]), [torch.ones(2)]),
    }
    Checkpoints(tmp_path).save(0, state)
    _, loaded = Checkpoints(tmp_path).load()
    assert same(loaded, state)
    loaded["mask"][0] = False  # what was loaded can be trained on


def test_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in range(6):
        checkpoints.save(step, {"step": step})
    assert [path.name[:14] for path in sorted(tmp_path.iterdir())] == [f"step-{i:09d}" for i in (3, 4, 5)]
    assert checkpoints.load() == (5, {"step": 5})


def test_going_back_ends_the_later_steps(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30):
        checkpoints.save(step, {})
    checkpoints.save(15, {"again": True})
    assert checkpoints.load() == (15, {"again": True})
    checkpoints.save(15, {"again": 2})
    assert checkpoints.load() == (15, {"again": 2})
    assert len(list(tmp_path.iterdir())) == 1


def test_checkpoint_of_another_format_is_an_error(tmp_path):
    path = Checkpoints(tmp_path).save(1, {})
    data = save({}, {"checkpoint": "1", "structure": "{}"})
    path.unlink()
    path.with_name(f"step-000000001-{hashlib.sha256(data).hexdigest()[:16]}.safetensors").write_bytes(data)
    with pytest.raises(ConfigError, match="format '1'"):
        Checkpoints(tmp_path).load()


def test_save_and_load_tensors(tmp_path):
    path = tmp_path / "model.safetensors"
    weight = torch.randn(3, 4)
    save_tensors(path, {"a": weight.T, "tied": weight, "again": weight}, {"space": "toy"})
    tensors, metadata = load_tensors(path)
    assert metadata == {"space": "toy"}
    assert torch.equal(tensors["a"], weight.T)
    assert torch.equal(tensors["again"], tensors["tied"])
    save_tensors(path, {})
    assert load_tensors(path) == ({}, {})


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 a torch.save archive", b"\x02" + b"\0" * 7 + b"[]"])
def test_loading_what_is_not_safetensors_names_the_file(tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"model\.safetensors is not a safetensors file"):
        load_tensors(path)
    path.unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*model\.safetensors: No such file"):
        load_tensors(path)
