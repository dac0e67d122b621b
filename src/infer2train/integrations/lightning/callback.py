"""The callback: from the start of `fit` to its end, and its checkpoints.

It stands between the loop of `fit` and wherever that has its training loader from: the user's DataLoader is asked for
as ever, and what mines in front of it is iterated. Where an epoch begins, and where a resumed one goes on, Lightning's
own progress says. Validation, testing and prediction are left alone.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from torch import nn

from infer2train.batches import Split, split_batch
from infer2train.draws.methods.table import choices_of
from infer2train.draws.mining import Mining as Settings
from infer2train.draws.randomness import rng_state
from infer2train.integrations.lightning.batches import Batches, MinedSource, progress
from infer2train.integrations.lightning.refusals import refuse_batch_hooks, refuse_forward, refuse_trainer
from infer2train.loader.admission import check_model
from infer2train.loader.loader import MinedLoader
from infer2train.loader.mine import mine
from infer2train.settings import changed

PENALTY = "loss = loss + self.trainer.train_dataloader.penalty(outputs)"
"""The line that distils."""


class Mining(Callback):
    """Has `fit` train on what an oracle picks of the training data.

    The loader is made when training starts, with the module, its optimisers and the trainer's gradient scaler; it is
    closed when `fit` ends, however that comes about. Its state travels in checkpoints, with the gradients of a step
    that is not done yet, and `fit(ckpt_path=…)` goes on with both. Its metrics are logged as `mining/…`, every
    `log_every_n_steps` and at the end of an epoch.

    Args:
        mining: settings that several callbacks share. Default: those of `infer2train.Mining()`.
        model: what of the module is scored, where that is not its `forward`: `lambda module: module.network`.
        transform: as `mine()` has it.
        score_collate: likewise.
        split: batch -> (inputs, targets), with whatever the module's hooks do to a batch before it is trained on.
        log_dir: a run folder of our own, beside Lightning's loggers.
        settings: fields of `infer2train.Mining`. `accumulation_steps` is the trainer's `accumulate_grad_batches`; it is
            given only under manual optimisation that accumulates.

    Raises:
        ValueError: an unknown name; when `fit` starts, what `mine()` refuses, and what a trainer cannot do with mining.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_epochs=90, accelerator="cpu", callbacks=[Mining(method="nm-augment", gamma=10)])

    `trainer.fit(module, datamodule=data)` is called as without it.
    """

    loader: MinedLoader | None = None
    """What is trained on; closed after `fit`."""

    def __init__(
        self,
        mining: Settings | None = None,
        *,
        model: Callable[[Any], nn.Module] | None = None,
        transform: Callable[[Any], Any] | None = None,
        score_collate: Callable[[list[Any]], Any] | None = None,
        split: Split | None = None,
        log_dir: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self._mining: Settings = changed(Settings, mining, settings)
        self._model, self._split = model, split
        self._options: dict[str, Any] = {"transform": transform, "score_collate": score_collate, "log_dir": log_dir}
        self._trainer: Any = None
        self._module: Any = None
        self._is_running = False
        self._state: dict[str, Any] = {}
        self._logged_step = 0

    # The course of `fit`. Trainers are Any: theirs have attributes that their class does not declare.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        refuse_trainer(trainer)
        if trainer.global_step == 0 or pl_module is not self._module:
            self._state = {}  # else it goes on from where this trainer's last `fit` has ended, as Lightning does
        self.loader, self._trainer, self._module = None, trainer, pl_module
        trainer.fit_loop._data_source = MinedSource(trainer.fit_loop._data_source, trainer, lambda: self.loader)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Not before: the sanity check, and a search for a learning rate or a batch size, are no training.
        check_model(trainer.model)  # pl_module does not show that a strategy shards it
        settings = self._settings(trainer, pl_module)
        if choices_of(settings).looks_at_candidates:
            if self._model is None:
                refuse_forward(pl_module)
            if self._split is None:
                refuse_batch_hooks(pl_module, trainer.datamodule)
        self.loader = mine(
            trainer.train_dataloader.base,
            pl_module if self._model is None else self._model(pl_module),
            trainer.optimizers,
            settings,
            split=self._split or split_batch,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            **self._options,
        )
        self._is_running = True
        if self._state:
            self._restore(self.loader)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._require_penalty(trainer.train_dataloader)
        # Steps as Lightning counts them for its loggers: under manual optimisation every batch is one.
        step = trainer.global_step if pl_module.automatic_optimization else trainer.fit_loop.total_batch_idx + 1
        if step != self._logged_step and trainer.log_every_n_steps and step % trainer.log_every_n_steps == 0:
            self._logged_step = step
            pl_module.log_dict(self._metrics(), on_step=True, on_epoch=False, batch_size=1)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert self.loader is not None
        if (metrics := self._metrics())["mining/draws"]:
            pl_module.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1)
        if progress(trainer).completed >= trainer.num_training_batches:
            self.loader.end_epoch()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self.loader is not None:
            self.loader.journal.pause()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.loader is not None:
            self.loader.journal.go_on()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._leave(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._leave(trainer)

    def _leave(self, trainer: Any) -> None:
        if isinstance(source := trainer.fit_loop._data_source, MinedSource):
            trainer.fit_loop._data_source = source.source
        if self.loader is None or not self._is_running:
            return
        try:
            self._state = self.state_dict()
            del self._state["loader"]["rng"]  # whoever goes on in this process has drawn since
        finally:
            self._is_running = False
            self.loader.close()

    # On the way

    def _settings(self, trainer: Any, pl_module: Any) -> Settings:
        given, steps = self._mining.accumulation_steps, trainer.accumulate_grad_batches
        if not pl_module.automatic_optimization:
            return self._mining
        if given not in (1, steps):
            raise ValueError(
                f"accumulation_steps is the trainer's accumulate_grad_batches: got {given} and {steps}; leave it out"
            )
        return replace(self._mining, accumulation_steps=steps)

    def _require_penalty(self, batches: Batches) -> None:
        assert self.loader is not None
        last = self.loader.last
        if last is not None and last.log_probabilities is not None and not batches.is_penalty_asked:
            raise ValueError(
                f"{self.loader.mining.method} adds a penalty to the loss: got a training_step that does not ask for "
                f"it; write in it, before it returns the loss: {PENALTY}"
            )

    def _metrics(self) -> dict[str, float]:
        assert self.loader is not None
        return {f"mining/{name}": value for name, value in self.loader.metrics().items()}

    # Resume

    def state_dict(self) -> dict[str, Any]:
        if self.loader is None or not self._is_running:
            return dict(self._state)
        is_batch_open = self.loader.position > progress(self._trainer).processed
        return {"loader": self.loader.state_dict(), "is_batch_open": is_batch_open}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict

    def _restore(self, loader: MinedLoader) -> None:
        loader.load_state_dict({"rng": rng_state(), **self._state["loader"]})
        if self._state["is_batch_open"]:
            loader.take_back()
        self._state = {}
