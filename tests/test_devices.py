"""From a device's name to a device that exists."""

import pytest
import torch

from nas import devices
from nas.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch):
    """Says how many GPUs there seem to be."""

    def seem(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    seem(2)
    return seem


def test_auto_is_the_first_gpu_or_else_the_cpu(gpus):
    assert devices.resolve("auto") == torch.device("cuda")
    for name in ("cpu", "cuda", "cuda:0", "cuda:1"):
        assert devices.resolve(name) == torch.device(name)
    gpus(0)
    assert devices.resolve("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:2", "cpu:1", "meta", "gpu", "", "cuda:x", "cuda:-1", "xpu"])
def test_what_does_not_exist_is_refused_with_what_does(gpus, name):
    with pytest.raises(ConfigError, match="this machine has cpu, cuda:0, cuda:1") as caught:
        devices.resolve(name)
    assert f"no device {name!r}" in str(caught.value)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_processes_that_train_together_have_a_gpu_each(gpus, name):
    assert devices.resolve(name, local=1) == torch.device("cuda", 1)
    assert devices.resolve("cpu", local=1) == torch.device("cpu")
    for refused, local in ((name, 2), ("cuda:0", 0)):
        with pytest.raises(ConfigError, match=rf"on local rank {local} of .* 2 GPUs.* torchrun with --nproc"):
            devices.resolve(refused, local=local)
