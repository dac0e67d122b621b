"""What `mine()` refuses, each in one line: loaders and models whose draws could not be addressed or scored."""

import os
import sys
import warnings
from collections.abc import Sized
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.data import DataLoader, Dataset, IterableDataset

from infer2train.draws.methods.table import choices_of
from infer2train.draws.mining import Mining
from infer2train.loader.order import draws_in_epoch
from infer2train.loader.ranks import Ranks
from infer2train.loader.sharding import is_sharded, own_shard
from infer2train.loader.surroundings import is_fabrics
from infer2train.sources.source import Source

RANKS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")
"""Where torchrun (and what builds on it) and mpirun tell a process how many there are."""
REMEMBERING = ("pruned", "learnable", "trusted")
"""Picks that depend on what is known of a sample id."""


def draws_foreseen(dataloader: "DataLoader[Any]", host: str) -> int:
    """Draws in an epoch, under a host that plans with them. Every rank calls this.

    Raises:
        ValueError: nobody knows before an epoch is read: of a stream, or of a batch sampler without a length.
    """
    is_stream = isinstance(dataloader.dataset, IterableDataset)
    draws = None if is_stream else draws_in_epoch(dataloader, Ranks.here())
    if draws is None:
        got = type(dataloader.dataset if is_stream else dataloader.batch_sampler).__name__
        raise ValueError(
            f"under {host}, which plans with it, the length of an epoch must be known: got {'a stream, ' * is_stream}"
            f"{got}; mine it by mine() in a loop of your own, under Accelerate or in Fabric"
            + ("" if is_stream else ", or give the batch sampler a __len__")
        )
    return draws


def check_loader(dataloader: "DataLoader[Any]") -> None:
    """Refuse a loader whose samples have no integer id, or cannot be read by it.

    Raises:
        ValueError: the rule, what was got, the remedy.
    """
    if not isinstance(dataloader, DataLoader):
        raise ValueError(f"mine() wraps a torch DataLoader: got {type(dataloader).__name__}; build a DataLoader first")
    if dataloader.batch_sampler is None:
        raise ValueError(
            "mine() needs a DataLoader that batches: got batch_size=None; pass batch_size or batch_sampler"
        )
    _check_data(dataloader.dataset)
    kind = type(dataloader)
    if kind.__iter__ is not DataLoader.__iter__ and not kind.__module__.startswith("accelerate."):
        warnings.warn(
            f"a loader's data set, batch sampler and collate_fn are read, its own __iter__ is not called: got "
            f"{kind.__name__}, which has one. Where it does anything to batches, do that in collate_fn or in the loop",
            RuntimeWarning,
            stacklevel=3,
        )


def _check_data(data: Any) -> None:
    """Refuse a map-style data set without what ids are read by. torch's `Dataset` has a `__getitem__` that raises."""
    if isinstance(data, IterableDataset | Source):
        return
    kind = type(data)
    if getattr(kind, "__getitem__", Dataset.__getitem__) is Dataset.__getitem__:
        raise ValueError(
            f"a data set must give one sample by its id: got {kind.__name__} without __getitem__; give it __getitem__"
            ", also where it has __getitems__"
        )
    if not isinstance(data, Sized):
        raise ValueError(
            f"a data set must say how many samples it has, whose ids are below that: got {kind.__name__} without "
            "__len__; give it __len__, also where a batch sampler says what is read"
        )


def check_model(model: nn.Module) -> nn.Module:
    """The module whose weights are published: the model itself, or what `torch.compile`, Fabric, DDP and DataParallel
    wrap.

    Raises:
        ValueError: the model is sharded otherwise than by `fully_shard`, or has no weights (yet), or its processes have
            not joined.
    """
    if _is_flat(model):
        raise ValueError(
            "mine() needs parameters by their names: got a FullyShardedDataParallel model, which holds them flattened; "
            "use fully_shard(model), or DistributedDataParallel"
        )
    require_group()
    if _is_compiled(model):
        return check_model(cast(nn.Module, model._orig_mod))
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or is_fabrics(model, "_FabricModule"):
        return check_model(cast(nn.Module, model.module))
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError(
            f"mine() needs a model with parameters, which training changes: got {type(model).__name__} with none; pass "
            "the module that you train"
        )
    if lazy := [name for name, p in parameters.items() if isinstance(p, UninitializedParameter)]:
        raise ValueError(
            f"mine() needs a model whose weights are there: got lazy ones without a shape ({', '.join(lazy[:3])}); run "
            "the model once on a batch before mine()"
        )
    if not is_sharded(model) and any(own_shard(parameter) is not parameter for parameter in parameters.values()):
        raise ValueError(
            "all ranks must train on batches of their own: got DTensor parameters that fully_shard has not made "
            "(tensor parallelism); shard the model by fully_shard alone, or use DistributedDataParallel"
        )
    return model


def require_group() -> None:
    """Refuse to be one of several training processes that do not know of each other: each would mine for itself.

    Raises:
        ValueError: the launcher's environment says that there are several, and no process group was joined.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return
    sizes = {name: int(os.environ[name]) for name in RANKS if os.environ.get(name, "").isdigit()}
    for name, size in sizes.items():
        if size > 1:
            raise ValueError(
                f"ranks that train together must have joined before mine() is called: got a world size of {size} "
                f"({name}) and no process group; call torch.distributed.init_process_group() first"
            )


def check_ranks(mining: Mining) -> None:
    """Refuse settings by which ranks would pick differently.

    Raises:
        ValueError: what is selected would depend on how fast the oracle of each rank is.
    """
    if mining.staleness == "freshest" and Ranks.here().world > 1:
        raise ValueError(
            "several ranks must pick alike, however fast the oracle of each is: got staleness='freshest'; leave it "
            "out, with when_late and on_oracle_loss"
        )


def check_stream(mining: Mining, *, has_transform: bool) -> None:
    """Refuse methods by which a stream cannot be mined.

    Args:
        mining: the settings.
        has_transform: whether items are transformed after they were read.

    Raises:
        ValueError: it knows samples by their ids, or makes several views where there is one.
    """
    choices = choices_of(mining)
    if choices.pick in REMEMBERING:
        raise ValueError(
            f"{mining.method} knows samples by their ids, which a stream gives only once: got an IterableDataset; use "
            "nm-sample, or a map-style data set"
        )
    if choices.candidates in ("views", "anchors") and not has_transform:
        raise ValueError(
            f"{mining.method} looks at several views of an item, and an item of a stream is read once: got an "
            "IterableDataset without transform=; take the random transform out of the stream and pass it as "
            "mine(..., transform=...), or use nm-sample"
        )


# These modules take long to import, and a model of theirs cannot be there before somebody has imported them.


def _is_flat(model: nn.Module) -> bool:
    if "torch.distributed.fsdp" not in sys.modules:
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def _is_compiled(model: nn.Module) -> bool:
    if "torch._dynamo" not in sys.modules:
        return False
    from torch._dynamo import OptimizedModule

    return isinstance(model, OptimizedModule)
