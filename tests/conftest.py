"""One thread everywhere: results must not depend on how many cores there are."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_streams():
    """Tests may draw from torch's global stream; each starts at the same place."""
    torch.manual_seed(0)
