import pytest
import torch

from nas import devices
from nas.errors import ConfigError


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_auto_is_the_first_gpu(two_gpus):
    assert devices.resolve("auto") == torch.device("cuda")


def test_auto_is_the_cpu_where_there_is_no_gpu(no_gpu):
    assert devices.resolve("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_what_exists_is_taken(two_gpus, name):
    assert devices.resolve(name) == torch.device(name)


@pytest.mark.parametrize("name", ["cuda:2", "cuda:8", "cpu:1", "meta", "gpu", "", "cuda:x", "cuda:-1", "xpu"])
def test_what_does_not_exist_is_refused_with_what_does(two_gpus, name):
    with pytest.raises(ConfigError, match="this machine has cpu, cuda:0, cuda:1") as caught:
        devices.resolve(name)
    assert f"no device {name!r}" in str(caught.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_without_a_gpu_cuda_is_refused(no_gpu, name, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ConfigError, match=f"no device '{name}'; this machine has cpu") as caught:
        devices.resolve(name)
    assert "CUDA_VISIBLE_DEVICES" not in str(caught.value)


@pytest.mark.parametrize("value", ["", "7", "garbage"])
def test_a_refusal_names_the_variable_that_hides_gpus(no_gpu, value, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(ConfigError) as caught:
        devices.resolve("cuda")
    assert f"CUDA_VISIBLE_DEVICES is {value!r}" in str(caught.value)


@pytest.mark.parametrize(("number", "words"), [(1, ", 1 thread"), (2, ", 2 threads")])
def test_the_cpu_is_described_in_words(monkeypatch, number, words):
    monkeypatch.setattr(torch, "get_num_threads", lambda: number)
    assert devices.describe(torch.device("cpu")).endswith(words)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_processes_that_train_together_have_a_gpu_each(two_gpus, name):
    assert devices.resolve(name, local=1) == torch.device("cuda", 1)
    assert devices.resolve("cpu", local=1) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"local rank 2 .* this machine has 2; start torchrun with --nproc"):
        devices.resolve(name, local=2)
    with pytest.raises(ConfigError, match="device is 'cuda:0', but every rank needs a GPU of its own"):
        devices.resolve("cuda:0", local=0)
