"""One thread everywhere: results must not depend on how many cores there are."""

import os

import pytest
import torch

torch.set_num_threads(1)
os.environ.pop("NAS_STORAGE", None)  # the developer's own database is left alone
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported


@pytest.fixture(autouse=True)
def _fixed_streams():
    """Tests may draw from torch's global stream; each starts at the same place."""
    torch.manual_seed(0)
