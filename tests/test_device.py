"""A device by its name: what tensors say of themselves, or an error that says what to do."""

import pytest
import torch

from infer2train.machine.device import torch_device, wait_for_gpu
from infer2train.oracle.measurement import timed


def test_a_device_is_what_its_tensors_say() -> None:
    assert torch_device("cpu", "") == torch.zeros(1).device


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_device_without_its_number_is_the_one_that_has_it(name: str) -> None:
    assert torch_device(name, "") == torch.zeros(1, device="cuda").device
    assert torch.device("cuda") != torch.zeros(1, device="cuda").device, "what torch itself makes of it"


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"got {name!r}.*; pass --device cpu"):
        torch_device(name, "pass --device cpu")


@pytest.mark.gpu
def test_what_a_call_leaves_to_a_gpu_is_waited_for() -> None:
    stream = torch.cuda.current_stream()
    torch.cuda._sleep(100_000_000)
    assert not stream.query(), "too short to be seen at work"
    wait_for_gpu()
    assert stream.query()
    timed(lambda: torch.cuda._sleep(100_000_000), seconds=0.0, least=1)
    assert stream.query(), "a time without the work that it is the time of"
