"""`mine()`: joins sampler, addresses, pool, pick and views into a loader for anybody's training loop."""

import warnings
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from infer2train.batches import Split, split_batch
from infer2train.draws.methods.method import Method
from infer2train.draws.methods.table import get_method
from infer2train.draws.mining import Mining
from infer2train.loader.acknowledgement import Optimizers, acknowledge_steps, optimizers_of, scaler_of, untouched
from infer2train.loader.admission import check_loader, check_model
from infer2train.loader.assembly import Host, assembled, sources
from infer2train.loader.feeding import FeedWatch
from infer2train.loader.journal import begun_log
from infer2train.loader.loader import MinedLoader
from infer2train.loader.order import readable_ids
from infer2train.loader.passes import passes_of
from infer2train.loader.ranks import Ranks
from infer2train.loader.sharding import Weights
from infer2train.loader.surroundings import OwnLoop, taken_apart
from infer2train.loader.validation import Validation, held_out_of, require_idle_time
from infer2train.machine.device import device_of
from infer2train.oracle.live import LiveModel
from infer2train.pool.supervisor import SupervisedPool
from infer2train.settings import as_plain, changed
from infer2train.sources.held_out import WithHeldOut
from infer2train.sources.pipeline import AddressPipeline, ViewWorkers
from infer2train.sources.reader import Reader


def mine(
    dataloader: "DataLoader[Any] | Iterable[Any]",
    model: nn.Module,
    optimizer: Optimizers | None = None,
    mining: Mining | None = None,
    *,
    transform: Callable[[Any], Any] | None = None,
    score_collate: Callable[[list[Any]], Any] | None = None,
    split: Split = split_batch,
    scaler: "torch.amp.GradScaler | None" = None,
    validation: Any = None,
    log_dir: str | Path | None = None,
    **settings: Any,
) -> MinedLoader:
    """A loader whose batches an oracle has picked, for the training loop that you already have.

    What is mined, and how, are settings: fields of `Mining`, by name (`method="nm-augment", gamma=10`). What a method
    has no use for (γ and the oracle under `baseline`, say) is left aside, so that the same call with another `method`
    is its control. A score, a pick or a ramp that would have no effect is refused. A script needs
    `if __name__ == "__main__":` for `pool="process"`.

    Args:
        dataloader: your own, unchanged: a map-style data set with its augmentation inside, any sampler, any
            `collate_fn`, any number of workers. It is only read. Or one over an iterable data set, whose items draws
            pick from `window` by `window`; or what Accelerate or Fabric has made of it: batches then go where that
            would send them.
        model: what you train. Its weights are copied every `update_every` steps and never touched.
        optimizer: its steps are counted by a hook; a list where several train the model. A loader that counted them
            before is closed. Leave it out and call `loader.step_done()` after each step instead.
        mining: settings that several calls share. Default: those of `Mining()`.
        transform: the random transform, where the data set does not apply it: an item is then loaded once for all its
            views.
        score_collate: makes the batches that the oracle scores, where `collate_fn` mixes samples (MixUp, CutMix) or
            draws: a candidate is then scored as it is before that, and trained on after it. Better is to mix in the
            loop, after the loader. Default: `collate_fn`, which must make the same of a sample in every batch.
        split: batch -> (inputs, targets). Default: pairs, and mappings with a `labels`-like entry.
        scaler: your GradScaler, whose skipped steps count too. Default: that of an optimiser which Accelerate prepared.
        validation: held-out data, a map-style data set or a DataLoader, on which the oracle evaluates the versions that
            it has, in time in which no draw waits for it: `loader.validation`. Needs `pool="process"` or `"ray"`,
            and changes nothing of what is selected.
        log_dir: writes config.yaml, metrics.jsonl and, on `loader.close()`, report.html there.
        settings: fields of `Mining`, instead of what `mining` has. `loader.mining` holds all of them, with what was
            left to the machine decided (`oracle="auto"`): pass that to resume.

    Returns:
        A loader to iterate once an epoch; it yields what your `collate_fn` returns.

    Raises:
        ValueError: an unknown name, a setting without effect, or a loader, data set or model that cannot be mined.

    Example:
        >>> loader = infer2train.mine(base, model, optimizer, method="nm-augment", gamma=10)
        >>> for x, y in loader:
        ...     loss = criterion(model(x), y)
        ...     loss.backward(); optimizer.step(); optimizer.zero_grad()

    Algorithm 1, as nm-augment does it inline; `loader` is what this returns, and trains the same weights:

        for step, ids in enumerate(batches):
            if step % loader.mining.update_every == 0:
                oracle = copy.deepcopy(model).eval()
            x, y = read(views(step, ids))
            with torch.no_grad():
                losses = F.cross_entropy(oracle(x), y, reduction="none")
            hardest = losses.view(len(ids), -1).argmax(1) + torch.arange(len(ids)) * loader.mining.gamma
            F.cross_entropy(model(x[hardest]), y[hardest]).backward()
            optimizer.step()
            optimizer.zero_grad()

    Source: Hoffer et al. 2018, Algorithm 1. Deviates in what the paper left open: a bounded delay, and weights that
    are published at steps 0, T, 2T … whatever the epoch.
    """
    base, surroundings = taken_apart(dataloader)
    check_loader(base)
    model, optimizers = check_model(model), optimizers_of(optimizer)
    surroundings = surroundings or OwnLoop(model)
    wanted: Mining = changed(Mining, mining, settings)
    told: tuple[str, ...] = ()
    if wanted.accumulation_steps == 1 < surroundings.accumulation_steps and "accumulation_steps" not in settings:
        wanted = replace(wanted, accumulation_steps=surroundings.accumulation_steps)
        told = (f"accumulation_steps is {wanted.accumulation_steps}, as Accelerate accumulates gradients",)
    method = get_method(wanted)  # refuses what it cannot work with before anything is read or started
    _warn_of_no_mining(method)
    require_idle_time(validation, wanted)
    passes = passes_of(base, wanted, has_transform=transform is not None)
    read = base
    if passes is not None:
        read, wanted = passes.readable(), replace(wanted, window=passes.width)
    weights = Weights(model)
    trained_on, scored = sources(read, transform, score_collate, wanted)
    with closing(Reader(scored, ViewWorkers.of(read))) as reader:  # few engines read on here, and begin anew
        host = Host(dataloader=read, model=weights.whole, split=split, source=scored, reader=reader)
        method.survey(host.read, readable_ids(read))
        held_out = None if validation is None else held_out_of(validation)
        assembly = assembled(host, wanted, is_scored_apart=scored is not trained_on, held_out=held_out)
    live = None if assembly.monitor is None else LiveModel(weights.whole, assembly.monitor, wanted.update_every)
    trainer = AddressPipeline(trained_on, like=read)
    loader = MinedLoader(base, weights, assembly.mining, method, assembly.pool, trainer, live, surroundings, passes)
    loader.notes = told + assembly.notes
    if assembly.feed is not None:
        loader.timeline.listen(FeedWatch(assembly.feed).add)
    if passes is not None:
        loader.on_close(passes.close)
    loader.on_close(reader.close)
    if held_out is not None:
        assert isinstance(assembly.pool, SupervisedPool)
        assert loader.mining.oracle_chunk is not None
        at = WithHeldOut.at(scored, held_out.ids)
        loader.validate_by(Validation(assembly.pool, at, loader.mining.oracle_chunk, Ranks.here()))
    is_last_known = len(optimizers) == 1 and not untouched(model, optimizers)
    step = loader.step_done if is_last_known else loader.step_due
    loader.on_close(acknowledge_steps(step, loader.close, optimizers, scaler or scaler_of(optimizer)))
    if log_dir is not None and Ranks.here().is_first:
        config = as_plain(loader.mining, Mining)
        more = dict if loader.validation is None else loader.validation.metrics
        loader.journal.write_to(partial(begun_log, Path(log_dir), config, device_of(model)), more=more)
    return loader


def _warn_of_no_mining(method: Method) -> None:
    """Tell the user of a training that is over before its method begins."""
    mining, choices = method.mining, method.choices
    if mining.epochs is None:
        return
    is_pruned = choices.pick == "pruned"  # by what the epoch before has seen
    if mining.epochs == 1 if is_pruned else choices.schedule.share(mining.epochs - 1, mining.epochs) == 0:
        remedy = "train for two epochs or more" if is_pruned else "pass ramp_start=0.0, ramp_stop=0.0 to mine at once"
        warnings.warn(
            f"nothing will be mined: {mining.method} begins after the first epoch at the earliest, and the training "
            f"has epochs={mining.epochs}; {remedy}",
            RuntimeWarning,
            stacklevel=3,
        )
