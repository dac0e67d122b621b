"""The device of a name, as its tensors name it, of a model, the end of what a GPU was given, and how it convolves."""

import warnings

import torch
from torch import nn


def torch_device(name: str, remedy: str) -> torch.device:
    """The device of that name, with the number that its tensors carry: `cuda` and `cuda:0` are one and compare equal.

    Args:
        name: as torch knows it: cpu, cuda, cuda:1, mps.
        remedy: what to do where it is not to be had; ends the error.

    Raises:
        ValueError: torch does not know it, or this machine does not have it.

    Example:
        >>> torch_device("cpu", "pass --device cpu")
        device(type='cpu')
    """
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"a device must be one that torch can use here: got {name!r} ({reason}); {remedy}") from error


def device_of(model: nn.Module) -> torch.device:
    """Where a model is: the device of its first parameter; the CPU where it has none.

    Example:
        >>> device_of(nn.Linear(1, 1))
        device(type='cpu')
    """
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def wait_for_gpu() -> None:
    """Wait until CUDA has done what it was given: a call only hands it work. Nothing where CUDA was not used yet.

    Example:
        >>> wait_for_gpu()
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no types for it
        return
    for number in range(torch.cuda.device_count()):
        if torch.cuda.memory_reserved(number):  # waiting would take memory on a device that is not in use
            torch.cuda.synchronize(number)


def allow_tf32(wanted: bool) -> None:
    """Whether float32 convolutions on CUDA may round their operands to 10 bits of mantissa, as torch lets them.

    For the whole process; a CPU does not know of it.

    Example:
        >>> allow_tf32(False)
        >>> torch.backends.cudnn.allow_tf32
        False
        >>> allow_tf32(True)  # torch's default
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API", UserWarning)
        torch.backends.cudnn.allow_tf32 = wanted
