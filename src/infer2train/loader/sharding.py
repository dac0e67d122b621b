"""Whole weights of a model, also of one whose parameters are sharded among ranks (FSDP2, `fully_shard`).

Between the model that is trained and all that an oracle is made from. `fully_shard` leaves each rank a shard of every
parameter, gives modules another class and puts hooks around their forward passes. Here a plain copy of such a model is
made once; whenever weights are published, the shards of all ranks are gathered into it.
"""

import copy
import sys
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from infer2train.oracle.quantization.frozen import without_history
from infer2train.oracle.snapshot import parameters_and_buffers

FSDP = ("__composable_api_state_key", "_is_fsdp_managed_module", "_fsdp_use_orig_params")
"""How the attributes begin that `fully_shard` gives a module."""


class Weights:
    """Those of a model.

    Args:
        model: that is trained, by all ranks alike where it is sharded: to make this is a collective then.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._is_sharded = is_sharded(model)
        self.whole = plain_copy(model) if self._is_sharded else model
        """A module with all of them: the model itself, or a copy that is as old as the last `gather`."""

    def gather(self) -> None:
        """Have `whole` hold the weights that the model has now. A collective where it is sharded.

        Raises:
            ValueError: it was sharded since.
        """
        if is_sharded(self.model) != self._is_sharded:
            raise ValueError(
                "a model must be sharded before its weights are copied: got fully_shard() after mine(); call it "
                "before, and make the optimizer and mine() after it"
            )
        if not self._is_sharded:
            return
        _reshard(self.model)
        with torch.no_grad():
            tensors = parameters_and_buffers(self.model)
            for name, ours in parameters_and_buffers(self.whole).items():
                ours.copy_(whole_tensor(tensors[name]))


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` was called on it, or on a part of it."""
    if "torch.distributed.fsdp" not in sys.modules:  # which takes long to import, and nobody has sharded without
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor with the shards of all ranks; any other as it is."""
    return tensor.full_tensor() if _is_shard(tensor) else tensor.detach()  # type: ignore[attr-defined]


def own_shard(tensor: Tensor) -> Tensor:
    """What of a tensor is on this rank: its shard, or all of it."""
    return tensor.to_local() if _is_shard(tensor) else tensor  # type: ignore[attr-defined]


def with_shard(tensor: Tensor, own: Tensor) -> Tensor:
    """What `own` is this rank's shard of, sharded as a tensor is; `own` itself where that is not sharded."""
    if not _is_shard(tensor):
        return own
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return DTensor.from_local(own, tensor.device_mesh, tensor.placements, shape=tensor.shape, stride=tensor.stride())


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of a sharded model with whole parameters, as it was before `fully_shard`. A collective.

    A sharded module refuses `copy.deepcopy`. So the modules of the copy are made empty first, and then get deep copies
    of what theirs hold, in which modules and parameters are those of the copy.
    """
    _reshard(model)
    made: dict[int, Any] = without_history(model)
    for parameter in model.parameters():
        made[id(parameter)] = nn.Parameter(whole_tensor(parameter.detach()).clone(), parameter.requires_grad)
    for module in model.modules():
        kind = _own_class(module)
        made[id(module)] = kind.__new__(kind)
    for module in model.modules():
        vars(made[id(module)]).update(copy.deepcopy(_own_attributes(module), made))
    copied: nn.Module = made[id(model)]
    return copied


def _is_shard(tensor: Tensor) -> bool:
    if "torch.distributed.tensor" not in sys.modules:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _reshard(model: nn.Module) -> None:
    """Have modules hold shards: after an evaluation some hold whole parameters, in the precision of that."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _own_class(module: nn.Module) -> type[nn.Module]:
    from torch.distributed.fsdp import FSDPModule

    kind = type(module)
    return kind.__bases__[1] if isinstance(module, FSDPModule) else kind


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds but what `fully_shard` gave it."""
    return {
        name: _own_hooks(held) if isinstance(held, OrderedDict) and "hooks" in name else held
        for name, held in vars(module).items()
        if not name.startswith(FSDP)
    }


def _own_hooks(hooks: "OrderedDict[int, Any]") -> "OrderedDict[int, Any]":
    theirs = "torch.distributed.fsdp"
    return OrderedDict(
        (key, hook) for key, hook in hooks.items() if not getattr(hook, "__module__", "").startswith(theirs)
    )
