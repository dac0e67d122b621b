"""What cannot be mined under Lightning, and is refused when `fit` starts."""

from types import MethodType
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

BATCH_HOOKS = ("on_before_batch_transfer", "on_after_batch_transfer")
"""Where a module or data module may do something to a batch that comes from the loader."""


def refuse_trainer(trainer: Any) -> None:
    """Refuse what a trainer cannot do with mining.

    Raises:
        ValueError: the rule, what was got, the remedy.
    """
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise ValueError(
            "several ranks that are mined have all weights each: got "
            f"{type(trainer.strategy).__name__} for {trainer.world_size} ranks; pass strategy='ddp', or devices=1"
        )
    if (every := trainer.reload_dataloaders_every_n_epochs) > 0:
        raise ValueError(
            f"a mined run reads one data set: got reload_dataloaders_every_n_epochs={every}; leave it out, and change "
            "what is read by the sampler"
        )


def refuse_forward(module: nn.Module) -> None:
    """Refuse a module whose `forward` a copy of it would not have.

    Raises:
        ValueError: it has none, or one that is bound to this very module, as `torch.compile(module)` makes.
    """
    own = MethodType(type(module).forward, module)  # which DDP's strategy may have set on the module itself
    is_another = vars(module).get("forward", own) != own
    if not is_overridden("forward", module) or is_another:
        got = "one that is set on the module (torch.compile?)" if is_another else "none"
        raise ValueError(
            f"an oracle runs a copy of what is trained, by its forward: got {got}; pass model=lambda module: "
            "module.network, the part that gives the outputs (and compile that part alone)"
        )


def refuse_batch_hooks(*owners: Any) -> None:
    """Refuse hooks that change a batch behind the oracle's back.

    Raises:
        ValueError: a module or data module has one.
    """
    for owner in owners:
        for hook in BATCH_HOOKS:
            if owner is not None and is_overridden(hook, owner):
                raise ValueError(
                    f"an oracle must see a batch as the model does: got {type(owner).__name__}.{hook}, which it does "
                    "not call; do that in the data set, or pass split=, a function batch -> (inputs, targets) that "
                    "does it too, without anything random"
                )
