"""One thread everywhere: results must not depend on how many cores there are."""

import os

import hypothesis
import pytest
import torch

from nas.config import Config

# The same examples on every run and every machine, and none left behind.
hypothesis.settings.register_profile("nas", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("nas")
torch.set_num_threads(1)
# A bundle takes seconds; the tests that are about one ask for it.
Config.model_fields["export"].default = False
Config.model_rebuild(force=True)
os.environ["NAS_PREVIEW"] = "off"  # nothing is timed before it is run
os.environ.pop("NAS_STORAGE", None)  # the developer's own database is left alone
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported


@pytest.fixture(autouse=True)
def _fixed_streams():
    """Tests may draw from torch's global stream; each starts at the same place."""
    torch.manual_seed(0)
