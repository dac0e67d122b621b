"""A device by its name: what tensors say of themselves, or an error that says what to do."""

import pytest
import torch

from infer2train.device import torch_device


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
