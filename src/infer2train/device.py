"""The device of a name, as its tensors name it, and the end of what a GPU was given."""

import torch


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


def wait_for_gpu() -> None:
    """Wait until CUDA has done what it was given: a call only hands it work. Nothing where CUDA was not used yet.

    Example:
        >>> wait_for_gpu()
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no types for it
        torch.cuda.synchronize()
