"""The Trainer that mines: between its DataLoader and its training loop.

The Trainer makes its DataLoader, with its own sampler, columns, collator and workers; a mined loader stands over it,
and the training loop reads draws where it would have read batches:

    get_train_dataloader   the Trainer's DataLoader -> mine() -> the draws of an epoch, as a DataLoader
    the loop fetches       all draws of a step, then trains on them; when it resumes it skips places, never draws
    on_optimizer_step      the step is acknowledged; after the last of an epoch the epoch is over
    compute_loss           adds self-distill's penalty, for the draw that is trained on
    log                    adds what was measured
    checkpoint-N/          gets the loader's state beside the optimiser's, in `mining/`

Accelerate's own loader, which fetches one batch ahead, is never iterated: its sampler is asked for an epoch's order.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.data_loader import DataLoaderShard
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from infer2train.batches import Split, split_batch
from infer2train.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from infer2train.draws.methods.table import choices_of
from infer2train.draws.mining import Mining
from infer2train.integrations.transformers.draws import DrawLoader, Draws
from infer2train.integrations.transformers.weights import mend_weights
from infer2train.loader.admission import draws_foreseen
from infer2train.loader.loader import MinedLoader
from infer2train.loader.mine import mine
from infer2train.loader.surroundings import with_all_batches

if TYPE_CHECKING:
    Host = Trainer
else:
    Host = object

FOLDER = "mining"
"""Of a loader's state, in the folder of a Trainer's checkpoint."""
NOT_LOGGED = ("epoch", "steps", "gamma")
"""What the Trainer logs itself, and what does not change."""


class MiningMixin(Host):
    """Makes any Trainer mine: `class Mine(MiningMixin, TheirTrainer)`.

    Evaluation and prediction are the Trainer's. `gradient_accumulation_steps` is read from its arguments, and so is the
    length of the training, where a ramp needs it.

    Args:
        mining: what is mined, and how.
        transform: as for `infer2train.mine`, like the other three.
        score_collate: likewise.
        split: likewise.
        log_dir: likewise; a second `train()` needs another one.
        arguments: the Trainer's own, by place or name.

    Raises:
        ValueError: the settings do not go with the Trainer's loop.
    """

    loader: MinedLoader | None = None
    """The mined loader of the training under way, or of the last one; None before the first."""
    _draws: Draws | None = None
    _is_training = False

    def __init__(
        self,
        *arguments: Any,
        mining: Mining,
        transform: Callable[[Any], Any] | None = None,
        score_collate: Callable[[list[Any]], Any] | None = None,
        split: Split = split_batch,
        log_dir: str | Path | None = None,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self.mining = mining
        self._of_mine: dict[str, Any] = {
            "transform": transform,
            "score_collate": score_collate,
            "split": split,
            "log_dir": log_dir,
        }
        self._mining_for(draws=1)  # refuses what cannot be before anything is read
        self.add_callback(_Steps(self))

    # The loop

    def train(self, *arguments: Any, **named: Any) -> Any:
        """As the Trainer's. The mined loader is closed when it returns or raises."""
        self._is_training = True
        try:
            return super().train(*arguments, **named)
        finally:
            self._is_training = False
            self._close()

    def get_train_dataloader(self) -> "DataLoader[Any]":
        """While training, a DataLoader of draws, whose data set is no samples: see `loader.dataset`. Else the
        Trainer's."""
        prepared = super().get_train_dataloader()
        if not self._is_training:
            return prepared
        self._close()  # the Trainer asks again where it looks for a batch size that fits
        base = with_all_batches(prepared.base_dataloader) if isinstance(prepared, DataLoaderShard) else prepared
        # An oracle has a precision of its own, also where Accelerate has put, or will put, another around `forward`: a
        # copy that shares all weights keeps the model's.
        model = self.accelerator.unwrap_model(copy.copy(self.model), keep_fp32_wrapper=False)
        draws = draws_foreseen(base, "the Trainer")
        self.loader = mine(base, model, mining=self._mining_for(draws), **self._of_mine)
        set_epoch = getattr(prepared, "set_epoch", None)
        self._draws = Draws(self.loader, self.args.gradient_accumulation_steps, set_epoch)
        return DrawLoader(self._draws)

    def _mining_for(self, draws: int) -> Mining:
        """The settings, with what the Trainer's arguments say.

        Args:
            draws: in an epoch.
        """
        mining, micro = self.mining, self.args.gradient_accumulation_steps
        if mining.accumulation_steps not in (1, micro):
            raise ValueError(
                f"the Trainer accumulates gradients over gradient_accumulation_steps={micro}: got Mining("
                f"accumulation_steps={mining.accumulation_steps}); leave that out"
            )
        steps = -(-draws // micro)
        epochs = self.args.max_steps / steps if self.args.max_steps > 0 else self.args.num_train_epochs
        known = replace(mining, accumulation_steps=micro, epochs=mining.epochs or max(1, math.ceil(epochs)))
        choices = choices_of(known)
        if choices.loss == "weighted":
            raise ValueError(
                f"the Trainer's loss counts every example alike: got {mining.method}, whose examples have weights; use "
                "another method, or a loop of your own"
            )
        # A length that decides nothing must not keep a longer training from going on.
        return known if choices.schedule.needs_length else replace(known, epochs=mining.epochs)

    def _close(self) -> None:
        if self.loader is not None:
            self.loader.close()

    # The loss

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        """As the Trainer's, on the oldest draw that was fetched and not trained on."""
        if self._draws is None:
            return super().training_step(*arguments, **named)
        with self._draws.training():
            return super().training_step(*arguments, **named)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *more: Any, **named: Any) -> Any:
        """As the Trainer's; with self-distill, while training, and its penalty."""
        draw = None if self._draws is None else self._draws.trained_on
        if self.loader is None or draw is None or draw.log_probabilities is None:
            return super().compute_loss(model, inputs, return_outputs, *more, **named)
        loss, outputs = super().compute_loss(model, inputs, True, *more, **named)
        penalty = self.loader.penalty(outputs, draw)
        if self._is_scaled(more[0] if more else named.get("num_items_in_batch")):
            micro = self.args.gradient_accumulation_steps
            penalty = penalty / getattr(self, "current_gradient_accumulation_steps", micro)
        return (loss + penalty, outputs) if return_outputs else loss + penalty

    def _is_scaled(self, num_items_in_batch: Any) -> bool:
        """Whether the Trainer's loss is already a part of the step's, which it does not divide any more."""
        if (said := getattr(self, "loss_is_scaled_for_ga", None)) is not None:  # by a Trainer of somebody's own
            return bool(said)
        by_items = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return bool(by_items or self.compute_loss_func is not None)

    # The logs

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        """As the Trainer's; a row of training gets `mining/NAME` of what the loader measured since the last."""
        if self._is_training and self.loader is not None and "loss" in logs:
            logs |= {
                f"mining/{name}": value
                for name, value in self.loader.metrics().items()
                if name not in NOT_LOGGED and not name.endswith("seconds")
            }
        super().log(logs, *arguments, **named)

    # Resume

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._is_training and self.loader is not None and self.args.should_save:
            save_checkpoint(Path(output_dir) / FOLDER, self.state.global_step, self.loader.state_dict(), keep=1)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.loader is None or self._draws is None:
            return
        if self.args.ignore_data_skip:
            raise ValueError(
                "a mined training goes on where it was saved: got ignore_data_skip=True, which begins the epoch again; "
                "leave it out, no draw that is skipped is read or scored"
            )
        saved = load_checkpoint(Path(checkpoint) / FOLDER)
        if saved is None:
            raise ValueError(
                f"a mined training resumes from a checkpoint of one: got {checkpoint}, which has no folder {FOLDER!r}; "
                "to mine from its weights on, load them by from_pretrained() and start a new training"
            )
        mend_weights(self.model, Path(checkpoint))
        self._draws.resume(saved.state)


class MinedTrainer(MiningMixin, Trainer):
    """The Hugging Face Trainer, mining.

    Example:
        >>> from transformers import TrainingArguments
        >>> args = TrainingArguments("runs/a", num_train_epochs=3, use_cpu=True, report_to=[])
        >>> trainer = MinedTrainer(model, args, train_dataset=base.dataset, mining=Mining(method="nm-sample", gamma=4))
    """


class _Steps(TrainerCallback):
    """Tells a mined Trainer's loader what its loop does."""

    def __init__(self, trainer: MiningMixin) -> None:
        self._trainer = trainer

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Every attempt, also one that a gradient scaler skips."""
        if self._trainer._draws is not None:
            self._trainer._draws.step_done()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.loader is not None and (control.should_evaluate or control.should_save):
            self._trainer.loader.journal.pause()
