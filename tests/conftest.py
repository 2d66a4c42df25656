"""One thread everywhere: results must not depend on how many cores there are."""

import os
from contextlib import nullcontext

import hypothesis
import pytest
import torch

from nas.devices import exact
from nas.job.config import Config
from nas.seeding import seed_global

# The same examples on every run and every machine, and none left behind.
hypothesis.settings.register_profile("nas", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("nas")
torch.set_num_threads(1)


def _by_default(**values):
    for name, value in values.items():
        Config.model_fields[name].default = value
    Config.model_rebuild(force=True)


# A bundle takes seconds and pictures one; the tests that are about them ask for them.
_by_default(export=False, pictures=False)
os.environ["NAS_PREVIEW"] = "off"  # nothing is timed before it is run
os.environ.pop("NAS_STORAGE", None)  # the developer's own database is left alone
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported


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
