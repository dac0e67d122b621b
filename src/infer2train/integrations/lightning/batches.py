"""What the loop of `fit` iterates: draws where it would have read batches, and its place in the epoch.

Lightning fetches nothing ahead from a loader that has a length: a draw is asked for when the step before it is done, as
in a plain loop, and scored by the same weights.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from infer2train.batches import logits_of
from infer2train.loader.admission import check_loader, draws_foreseen
from infer2train.loader.loader import MinedLoader
from infer2train.loader.ranks import Ranks

LoaderOfFit = Callable[[], MinedLoader | None]
"""The loader of the `fit` under way; None before training starts."""


class Batches:
    """What Lightning iterates instead of the user's DataLoader: `trainer.train_dataloader`.

    Whatever else is asked of it is asked of the `MinedLoader`, or of the DataLoader before that is made.

    Args:
        base: the user's.
        trainer: iterates this.
        loader: the one that this hands out; None before training starts.
    """

    is_penalty_asked = False
    """Whether the module has asked for the penalty."""

    def __init__(self, base: "DataLoader[Any]", trainer: Any, loader: LoaderOfFit) -> None:
        self.base, self._trainer, self._loader = base, trainer, loader
        self._draws = draws_foreseen(base, "Lightning")

    def __len__(self) -> int:
        return self._draws

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader() or self.base, name)

    def __iter__(self) -> Iterator[Any]:
        # Lightning calls this before training starts. Nothing happens until the first batch is asked for.
        loader = self._loader()
        if loader is None:
            yield from self.base
        elif self._trains_nothing:  # the last of `fit`: no step of it is one of training
            loader.close()
            yield from self.base
        elif progress(self._trainer).completed < self._trainer.num_training_batches:  # else a resumed epoch is over
            self._join(loader)
            for batch in loader:
                self._require_foreseen(loader)
                yield batch

    def penalty(self, outputs: Any) -> Tensor:
        """What the method adds to the loss, see `MinedLoader.penalty`."""
        self.is_penalty_asked, loader = True, self._loader()
        return logits_of(outputs).new_zeros(()) if loader is None else loader.penalty(outputs)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the callback has it. Of a loader without this method, Lightning warns that it is not resumed."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Nothing, likewise."""

    @property
    def _trains_nothing(self) -> bool:
        """Whether Lightning goes through the epoch without a backward pass: so StochasticWeightAveraging measures
        batch-norm's statistics."""
        return bool(getattr(self._trainer.fit_loop, "_skip_backward", False))

    def _require_foreseen(self, loader: MinedLoader) -> None:
        """Refuse an epoch of several ranks of another length than was guessed: Lightning would end it in its midst.

        Raises:
            ValueError: it has one.
        """
        if Ranks.here().world > 1 and len(loader) != self._draws:
            raise ValueError(
                f"an epoch must be as long as its sampler says: got {len(loader)} draws where {self._draws} were "
                "foreseen; a sampler that gives each rank another part says so by num_replicas, as torch's does"
            )

    def _join(self, loader: MinedLoader) -> None:
        """Bring the loader to where Lightning stands in its epoch.

        Raises:
            ValueError: it cannot be there.
        """
        trainer, mined = self._trainer, loader.mining.accumulation_steps
        if trainer.lightning_module.automatic_optimization and mined != trainer.accumulate_grad_batches:
            raise ValueError(
                "all steps of a mined run have the same number of batches: got accumulate_grad_batches="
                f"{trainer.accumulate_grad_batches} after {mined}; leave out the GradientAccumulationScheduler"
            )
        if (done := progress(trainer).completed) == loader.position:
            return
        if done > 0:
            raise ValueError(
                f"an epoch under way is resumed from a checkpoint of a mined run: got batch {done} of Lightning's "
                f"epoch and {loader.position} of what is mined; resume from a checkpoint that was saved at the end of "
                "an epoch, or by a trainer with this callback and the same limit_train_batches"
            )
        loader.end_epoch()


class MinedSource:
    """Where `fit` has its training loader from, with what mines in front of it."""

    def __init__(self, source: Any, trainer: Any, loader: LoaderOfFit) -> None:
        self.source, self._trainer, self._loader = source, trainer, loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def dataloader(self) -> Batches:
        base = self.source.dataloader()
        check_loader(base)
        if self._trainer.overfit_batches and not isinstance(base.sampler, SequentialSampler):
            raise ValueError(
                "overfit_batches needs a loader that does not shuffle: got one that does; pass shuffle=False"
            )
        return Batches(base, self._trainer, self._loader)


def progress(trainer: Any) -> Any:
    """Batches of the trainer's epoch, as far as they are processed and completed."""
    return trainer.fit_loop.epoch_loop.batch_progress.current
