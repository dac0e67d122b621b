"""Mining under Lightning: the same draws and weights as the plain loop, exact resume, nothing left behind."""

import difflib
import multiprocessing
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, OnExceptionCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_runs import (
    DRAWS,
    EPOCHS,
    SETTINGS,
    ByHand,
    Data,
    Distilled,
    Iterates,
    Module,
    SaveAt,
    fitted,
    plain,
    seed_all,
    trainer,
)
from torch.utils.data import DataLoader, IterableDataset

from infer2train.draws.draw import Draw
from infer2train.integrations.lightning import Batches, Mining
from infer2train.observe.runlog import read_rows
from integrations.host_runs import die, killed
from mined_runs import equal, network, state_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "hosts" / "lightning.md").read_text("utf-8")
EXAMPLES = [ROOT / "examples" / f"lightning_{name}.py" for name in ("plain", "mined")]


def same(first: list[Draw], second: list[Draw]) -> bool:
    """Whether two runs trained on the same views, scored by the same versions."""
    told = [[(d.number, d.epoch, d.step, d.version, list(d.addresses)) for d in draws] for draws in (first, second)]
    return told[0] == told[1]


@pytest.fixture
def started() -> Callable[[], set[int | None]]:
    """Processes that a test has started and that still run."""
    before = {process.pid for process in multiprocessing.active_children()}
    return lambda: {process.pid for process in multiprocessing.active_children()} - before


# The plain loop's draws


@pytest.mark.parametrize("pool", ["inline", "process"])
def test_three_epochs_are_the_plain_loop_s(pool: str, started: Callable[[], set[int | None]]) -> None:
    """With a sanity check, with validation within epochs and at their ends, with dropout."""
    module, draws, mining = fitted(
        settings={**SETTINGS, "pool": pool}, num_sanity_val_steps=1, val_check_interval=3, max_epochs=EPOCHS
    )
    other, expected = plain()
    assert len(draws) == EPOCHS * DRAWS
    assert same(draws, expected)
    assert equal(state_of(module.network), state_of(other.network))
    assert mining.loader is not None
    assert (mining.loader.epoch, mining.loader.steps) == (EPOCHS, EPOCHS * DRAWS)
    assert not started()


@pytest.mark.parametrize(
    ("options", "as_plain"),
    [
        ({"accumulate_grad_batches": 4}, {"accumulate": 4}),
        ({"limit_train_batches": 5, "accumulate_grad_batches": 2}, {"limit": 5, "accumulate": 2}),
        ({"limit_train_batches": 0.5}, {"limit": 3}),
    ],
)
def test_accumulation_and_limits_are_the_plain_loop_s(options: dict[str, Any], as_plain: dict[str, Any]) -> None:
    module, draws, _ = fitted(limit_val_batches=0, **options)
    other, expected = plain(**as_plain)
    assert same(draws, expected)
    assert equal(state_of(module.network), state_of(other.network))


def test_max_steps_ends_where_lightning_does() -> None:
    _, draws, mining = fitted(max_epochs=-1, max_steps=8)
    assert same(draws, plain(epochs=2)[1][:8])
    assert mining.loader is not None
    assert mining.loader.steps == 8


@pytest.mark.parametrize(
    "module",
    [ByHand, lambda: ByHand(parts=2), Iterates],
    ids=["manual optimisation", "two optimisers", "dataloader_iter"],
)
def test_other_training_steps_are_the_plain_loop_s(module: Any) -> None:
    module, draws, _ = fitted(module(), limit_val_batches=0)
    other, expected = plain()
    assert same(draws, expected)
    assert equal(state_of(module.network), state_of(other.network))


def test_steps_that_a_scaler_skips_are_counted() -> None:
    class Overflows(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (float("inf") if batch_idx == 3 else 1)

    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    _, draws, mining = fitted(Overflows(), plugins=[MixedPrecision("16-mixed", "cpu", scaler)], limit_val_batches=0)
    assert scaler.get_scale() == 0.5, "three steps were skipped"
    assert mining.loader is not None
    assert mining.loader.steps == EPOCHS * DRAWS
    assert [draw.version for draw in draws] == [4 * (step // 4) for step in range(EPOCHS * DRAWS)]


def test_manual_accumulation_is_the_plain_loop_s() -> None:
    module, draws, _ = fitted(ByHand(every=2), settings={**SETTINGS, "accumulation_steps": 2})
    other, expected = plain(accumulate=2)
    assert same(draws, expected)
    assert equal(state_of(module.network), state_of(other.network))


def test_the_penalty_is_one_line_and_missed_where_it_is_not_there() -> None:
    settings = {"method": "self-distill", "gamma": 2, "update_every": 4, "distill_weight": 0.5}
    module, _, _ = fitted(Distilled(), settings=settings, max_epochs=1)
    assert equal(state_of(module.network), state_of(plain(settings=settings, epochs=1)[0].network))
    with pytest.raises(ValueError, match=r"a training_step that does not ask for it; .*train_dataloader.penalty"):
        fitted(settings=settings, max_epochs=1)


# What Lightning iterates


def test_lightning_iterates_the_loader_itself_and_the_sanity_check_none() -> None:
    mining, seen = Mining(**SETTINGS), []

    class Look(L.Callback):
        def on_sanity_check_end(self, *_: Any) -> None:
            seen.append(mining.loader)

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            batches = trainer.train_dataloader
            assert isinstance(batches, Batches)
            assert (batches.last, batches.steps) == (mining.loader.last, mining.loader.steps)  # type: ignore[union-attr]
            assert (len(batches), batches.batch_size, len(batches.dataset)) == (DRAWS, 4, 24)
            seen.append(batches.last.step)

    trainer(mining, Look(), max_epochs=1, num_sanity_val_steps=1).fit(Module(), datamodule=Data())
    assert seen == [None, *range(DRAWS)]


def test_a_second_fit_goes_on_and_leaves_no_hook_behind() -> None:
    seed_all(5)
    module, mining, optimizers = Module(), Mining(**SETTINGS), []
    one = trainer(mining, max_epochs=1)
    for epochs in (1, 2):
        one.fit_loop.max_epochs = epochs
        one.fit(module, datamodule=Data())
        loader = mining.loader
        assert loader is not None
        assert (loader.epoch, loader.steps) == (epochs, epochs * DRAWS)
        optimizers.append(one.optimizers[0])
        assert [len(optimizer._optimizer_step_post_hooks) for optimizer in optimizers] == [1] * epochs
        optimizers[-1].step()
        assert loader.steps == epochs * DRAWS, "a closed loader counts no steps"
    trainer(mining, max_epochs=1).fit(module, datamodule=Data())
    assert mining.loader is not None
    assert mining.loader.epoch == 1, "another trainer begins anew"


# Metrics


def test_metrics_are_in_the_user_s_logger_and_in_a_run_folder(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs")
    mining = Mining(**SETTINGS, log_dir=tmp_path / "run", log_every=2)
    options = {"logger": logger, "log_every_n_steps": 4, "accumulate_grad_batches": 2, "max_epochs": 4}
    trainer(mining, **options).fit(Module(), datamodule=Data())
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    steps = [int(row.split(",")[names.index("step")]) for row in rows[1:] if row.split(",")[names.index("mining/lag")]]
    assert steps == [2, 3, 5, 7, 8, 11], "every 4 steps (counted from 0), and at the end of each epoch of 3"
    assert [row["step"] for row in read_rows(tmp_path / "run") if row["kind"] == "step"] == [2, 4, 6, 8, 10, 12]


# Resume

PLACES = {
    "mid-epoch": (9, {}),
    "mid-accumulation": (9, {"accumulate_grad_batches": 4}),
    "after the last batch of an epoch": (6, {}),
    "by steps": (12, {"max_epochs": -1, "max_steps": 16}),
    "by steps, mid-accumulation": (9, {"max_epochs": -1, "max_steps": 6, "accumulate_grad_batches": 4}),
    "mid-epoch, limited": (7, {"limit_train_batches": 5}),
}


@pytest.mark.parametrize(("batches", "options"), PLACES.values(), ids=PLACES.keys())
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, batches: int, options: dict[str, Any]) -> None:
    options = {"limit_val_batches": 0, **options}
    whole, expected, _ = fitted(None, SaveAt(tmp_path, batches), **options)
    resumed, draws, _ = fitted(ckpt_path=tmp_path / "at.ckpt", **options)
    assert same(draws, expected[batches:])
    assert equal(state_of(resumed.network), state_of(whole.network))
    assert torch.load(tmp_path / "at.ckpt", weights_only=True)["callbacks"]["Mining"]["loader"]["draws"] == batches


class SaveAfterValidation(L.Callback):
    def __init__(self, path: Path, epoch: int, hook: str) -> None:
        setattr(
            self, hook, lambda trainer, *_: trainer.save_checkpoint(path) if trainer.current_epoch == epoch else None
        )


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
def test_a_run_resumed_between_epochs_ends_in_the_same_bits(tmp_path: Path, hook: str) -> None:
    whole, expected, _ = fitted(None, SaveAfterValidation(tmp_path / "at.ckpt", 1, hook))
    resumed, draws, _ = fitted(ckpt_path=tmp_path / "at.ckpt")
    assert same(draws, expected[2 * DRAWS :])
    assert equal(state_of(resumed.network), state_of(whole.network))


@pytest.mark.parametrize("accumulate", [1, 4], ids=["mid-epoch", "mid-accumulation"])
def test_a_killed_run_goes_on_in_the_same_bits(tmp_path: Path, accumulate: int) -> None:
    batches = 9
    killed(lambda: fitted(None, SaveAt(tmp_path, batches, die), accumulate_grad_batches=accumulate))
    resumed, draws, _ = fitted(ckpt_path=tmp_path / "at.ckpt", accumulate_grad_batches=accumulate)
    whole, expected = plain(accumulate=accumulate)
    assert same(draws, expected[batches:])
    assert equal(state_of(resumed.network), state_of(whole.network))


# Errors and Ctrl-C


class Fails(Module):
    def __init__(self, error: type[BaseException], batch: int) -> None:
        super().__init__()
        self.error, self.batch = error, batch

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.fit_loop.total_batch_idx == self.batch:
            raise self.error
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("error", "raised", "batch", "pool"),
    [
        (RuntimeError, RuntimeError, 8, "inline"),
        pytest.param(KeyboardInterrupt, SystemExit, 0, "process", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_leaves_no_process_and_goes_on_with_the_same_draws(
    tmp_path: Path,
    started: Callable[[], set[int | None]],
    error: type[BaseException],
    raised: type[BaseException],
    batch: int,
    pool: str,
) -> None:
    handler, settings = signal.getsignal(signal.SIGINT), {**SETTINGS, "pool": pool}
    save = OnExceptionCheckpoint(tmp_path, "at")
    with pytest.raises(raised):
        fitted(Fails(error, batch), save, settings=settings, enable_checkpointing=True)
    signal.signal(signal.SIGINT, handler)
    assert not started()
    _, draws, _ = fitted(ckpt_path=tmp_path / "at.ckpt", max_epochs=2)
    _, expected = plain(epochs=2)
    assert [list(draw.ids) for draw in draws] == [list(draw.ids) for draw in expected[batch:]]
    assert (draws[0].number, draws[0].step) == (batch, batch)


# What is refused


class WithoutForward(Module):
    forward = L.LightningModule.forward


class Augments(Module):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


@pytest.mark.parametrize(
    ("module", "callbacks", "settings", "options", "message"),
    [
        (
            Module,
            [],
            {},
            {"devices": 2, "strategy": ModelParallelStrategy()},
            r"got ModelParallelStrategy for 2 ranks; pass strategy='ddp'",
        ),
        (Module, [], {}, {"reload_dataloaders_every_n_epochs": 1}, r"got reload_dataloaders_every_n_epochs=1; leave"),
        (Module, [], {}, {"overfit_batches": 2}, r"overfit_batches needs a loader that does not shuffle"),
        (Module, [], {"accumulation_steps": 3}, {"accumulate_grad_batches": 2}, r"got 3 and 2; leave it out"),
        (
            Module,
            [GradientAccumulationScheduler({0: 1, 1: 2})],
            {},
            {},
            r"got accumulate_grad_batches=2 after 1; leave",
        ),
        (
            WithoutForward,
            [],
            {},
            {"num_sanity_val_steps": 0},
            r"by its forward: got none; pass model=lambda module: module.network",
        ),
        (Augments, [], {}, {}, r"got Augments.on_after_batch_transfer, which it does not call; .* pass split="),
    ],
)
def test_what_cannot_be_mined_yet_is_refused(
    module: Any, callbacks: list[Any], settings: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    one = trainer(Mining(**{**SETTINGS, **settings}), *callbacks, **{"max_epochs": 2, **options})
    if one.world_size > 1:  # without starting them
        with pytest.raises(ValueError, match=message):
            one.callbacks[0].setup(one, Module(), "fit")
        return
    with pytest.raises(ValueError, match=message):
        one.fit(module(), datamodule=Data())


class Flow(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ((torch.zeros(1, 6, 6), 0) for _ in range(16))


def test_a_stream_is_refused() -> None:
    one = trainer(Mining(**SETTINGS), max_epochs=1)
    with pytest.raises(ValueError, match=r"under Lightning, .* must be known: got a stream, Flow; mine it by mine"):
        one.fit(Module(), DataLoader(Flow(), batch_size=4))


def test_weights_are_averaged_as_without_mining() -> None:
    """At its end, batch-norm's statistics are measured in an epoch without a step, on batches as they are."""

    class Normed(Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(norm=True)

    averaging = StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=1)
    one = trainer(Mining(**SETTINGS), averaging, max_epochs=2)
    one.fit(Normed(), datamodule=Data())
    assert averaging._average_model is not None
    assert one.state.finished


def test_an_epoch_of_one_step_is_mined() -> None:
    """Lightning steps at the end of an epoch, however many batches were to be accumulated."""
    seen: list[Any] = []

    class Looks(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(self.trainer.train_dataloader.last)
            return super().training_step(batch, batch_idx)

    trainer(Mining(**SETTINGS), max_epochs=2, accumulate_grad_batches=100).fit(Looks(), datamodule=Data())
    assert len(seen) == 12
    assert all(draw is not None and draw.scores is not None for draw in seen)


def test_a_checkpoint_of_an_unmined_run_is_refused_within_an_epoch_only(tmp_path: Path) -> None:
    for batches, names in ((3, "within"), (6, "between")):
        (tmp_path / names).mkdir()
        trainer(None, SaveAt(tmp_path / names, batches), max_epochs=1).fit(Module(), datamodule=Data())
    with pytest.raises(ValueError, match=r"got batch 3 of Lightning's epoch and 0 of what is mined; resume from"):
        fitted(ckpt_path=tmp_path / "within" / "at.ckpt")
    _, draws, _ = fitted(ckpt_path=tmp_path / "between" / "at.ckpt")
    assert [draw.step for draw in draws] == list(range(2 * DRAWS))


# The example, and what is imported


def test_the_examples_differ_in_three_lines() -> None:
    """That they run, tests/test_docstrings.py shows."""
    before, after = (path.read_text("utf-8").splitlines() for path in EXAMPLES)
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert len(changed) <= 3
    assert {line[0] for line in changed} == {"+"}
    assert all(f"+{line[2:]}\n" in PAGE for line in changed), "the page shows the difference"


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`tests/integrations/test_lightning.py::(test_\w+)`", PAGE)
    assert len(named) > 15
    assert set(named) <= globals().keys()
