"""One thread everywhere: results must not depend on how many cores there are."""

import gc
import os
import sys
from contextlib import nullcontext

import hypothesis
import pytest
import torch

from nas.devices import exact
from nas.run.config import Config
from nas.seeding import seed_global

# The same examples on every run and every machine, and none left behind.
hypothesis.settings.register_profile("nas", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("nas")
torch.set_num_threads(1)


def _by_default(**values):
    for name, value in values.items():
        Config.model_fields[name].default = value
    Config.model_rebuild(force=True)


def _in_memory(folder="/dev/shm"):
    """Lets tests write where nothing waits for a disk; the engine asks for that thousands of times."""
    if not os.access(folder, os.W_OK):
        return
    found = os.statvfs(folder)
    if found.f_bavail * found.f_frsize > 4 * 2**30 and not found.f_flag & os.ST_NOEXEC:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", folder)


_in_memory()
# A bundle takes seconds, pictures one, a process four; the tests that are about them ask for them.
_by_default(export=False, pictures=False, workers=0)
os.environ["NAS_PREVIEW"] = "off"  # nothing is timed before it is run
# Tests start dozens of processes, each of which would compile all modules again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.pop("NAS_STORAGE", None)  # the developer's own database is left alone


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """A million objects are made while tests are collected, none of them garbage, and all stay."""
    gc.disable()
    found = yield
    gc.freeze()
    gc.enable()
    return found


@pytest.fixture(autouse=True)
def _fixed_streams():
    """Tests may draw from torch's global stream; each starts at the same place."""
    seed_global(0)


@pytest.fixture(autouse=True)
def _float32():
    """Float32 is what it says on a GPU, too, where torch rounds convolutions to TensorFloat-32 by itself."""
    with exact() if torch.cuda.is_available() else nullcontext():
        yield


@pytest.fixture
def drawn():
    """Pictures for what takes no setting of them."""
    _by_default(pictures=True)
    yield
    _by_default(pictures=False)
