"""`generate()`: joins inputs, addresses, pool and engine into a loader of batches that a model makes."""

from contextlib import closing
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from infer2train.batches import Split
from infer2train.draws.addresses import check_seed
from infer2train.draws.methods.table import choices_of
from infer2train.draws.mining import Mining
from infer2train.loader.acknowledgement import Optimizers, acknowledge_steps, optimizers_of, scaler_of
from infer2train.loader.admission import check_loader, check_model, require_group
from infer2train.loader.assembly import CHUNK_ON_CPU, sources
from infer2train.loader.journal import begun_log
from infer2train.loader.made import MadeLoader
from infer2train.loader.order import readable_ids, usual_batch_size
from infer2train.loader.ranks import Ranks
from infer2train.loader.rehearsal import rehearse
from infer2train.machine.device import device_of
from infer2train.oracle.engines import build_engine, is_any_int8
from infer2train.oracle.quantization.schemes import get_scheme
from infer2train.oracle.samples import SourceSamples
from infer2train.pool.pools import pool_of
from infer2train.pool.task import GeneratingTask, Sample
from infer2train.settings import as_plain, changed
from infer2train.sources.pipeline import ViewWorkers
from infer2train.sources.reader import Reader
from infer2train.sources.seeded import FromSeeds, WithSeeds
from infer2train.sources.source import Source

SETTINGS = (
    *("oracle", "quantization", "oracle_chunk", "update_every", "delay_steps", "accumulation_steps", "seed", "pool"),
    *("oracle_workers", "oracle_cores", "queue_depth", "oracle_num_workers", "staleness", "ray_address", "ray_data"),
    "log_every",
)
"""The fields of `Mining` that say with which weights, by what and where a draw is made."""
BATCH_SIZE = 64
UNCUT = "tails"
"""The quantisation of what is made, where no other is asked for: a score may do with ranges that leave out rare values,
but what is trained on would have them cut off."""


def whole_batch(batch: Any) -> tuple[Any, Any]:
    """A batch that the model takes whole, and that is handed out again beside what was made of it."""
    return batch, batch


def generate(
    inputs: Any,
    generator: nn.Module,
    optimizer: Optimizers | None = None,
    mining: Mining | None = None,
    *,
    batch_size: int | None = None,
    draws_per_epoch: int | None = None,
    sample: Sample | None = None,
    split: Split = whole_batch,
    scaler: "torch.amp.GradScaler | None" = None,
    log_dir: str | Path | None = None,
    **settings: Any,
) -> MadeLoader:
    """A loader of batches that a model in inference mode makes, on the oracle's silicon, while another one trains.

    A batch is made at addresses: the seed of each input decides what is random of it (noise, augmentation) and what is
    drawn from the model's outputs. The weights that make the draw of step s are those after
    V = T·⌊max(0, s − D)/T⌋ steps (T = `update_every`, D = `delay_steps`), whatever the pool. A script needs
    `if __name__ == "__main__":` for `pool="process"`.

    Args:
        inputs: what batches are made of: a DataLoader over a map-style data set; such a data set, which is then
            shuffled; or a function seed -> one input (noise, conditions), within which the global generators follow
            the seed.
        generator: the module whose weights are copied every `update_every` steps, and never touched. It is run in
            evaluation mode. Whether, and by what, it is trained is the loop's business.
        optimizer: its steps are counted by a hook: that of the model which trains on what is made. A list where a step
            of the loop has several (`[of_discriminator, of_generator]`): a version then is the generator after all of
            them. Leave it out and call `made.step_done()` after each step instead.
        mining: settings that several calls share. Default: those of `Mining()`.
        batch_size: inputs in a draw, where no DataLoader says it. Default: 64.
        draws_per_epoch: where `inputs` is a function, which has no end.
        sample: (model, inputs, seeds) -> what is made, where that is not the model's outputs: tokens drawn one after
            another, say. `model(…)` is the engine. All rows are given to it at once, and none may depend on another.
        split: batch -> (inputs, targets): what the model takes, and what is handed out beside what it made. Default:
            both are the whole batch, `model(*batch)` where it is a tuple.
        scaler: your GradScaler, whose skipped steps count too.
        log_dir: writes config.yaml and metrics.jsonl there: versions, lag, waiting, what befell workers.
        settings: fields of `Mining` that say with which weights, by what and where: oracle, quantization, oracle_chunk,
            update_every, delay_steps, accumulation_steps, seed, pool, oracle_workers, oracle_cores, queue_depth,
            oracle_num_workers, staleness, ray_address, ray_data, log_every. An int8 engine's scheme is `tails` where
            nobody says another.

    Returns:
        A loader to iterate once an epoch; it yields (made, targets), what was made on the device of `generator`.

    Raises:
        ValueError: an unknown name, a setting without effect, or inputs or a model that cannot be addressed or run.

    Example:
        >>> decoder = nn.Linear(2, 8)
        >>> made = infer2train.generate(lambda seed: torch.randn(2), decoder, batch_size=4, draws_per_epoch=3)
        >>> for images, noise in made:
        ...     made.step_done()
        >>> images.shape, noise.shape, made.last.version
        (torch.Size([4, 8]), torch.Size([4, 2]), 0)

    Source: Hoffer et al. 2018, section 6 (methods that alternate training and inference). Deviates from alternation as
    it is usually trained in that the model is in evaluation mode, its weights up to T − 1 + D steps old and, by choice,
    in low precision.
    """
    wanted = _checked(changed(Mining, mining, settings), sample)
    base = _loader_of(inputs, batch_size, draws_per_epoch)
    if wanted.ray_data is not None and isinstance(base.dataset, FromSeeds):
        raise ValueError(
            f"ray_data names a data set that machines have copies of: got {wanted.ray_data} for a function; leave it "
            "out, the function is sent"
        )
    generator, optimizers = check_model(generator), optimizers_of(optimizer)
    source, _ = sources(base, None, None, wanted)
    chunk = wanted.oracle_chunk or _default_chunk(generator, base)
    wanted = replace(wanted, oracle_chunk=chunk)
    with closing(Reader(source, ViewWorkers.of(base))) as reader:
        task = _task(base, generator, source, reader, wanted, split, sample)
        assert task.engine is not None
        if is_any_int8(wanted.oracle):
            wanted = replace(wanted, oracle=task.engine.name)
        pool, notes = pool_of(wanted).built(task, wanted, device_of(generator))
    made = MadeLoader(base, generator, wanted, pool)
    made.notes = (*task.engine.notes, *notes)
    made.on_close(reader.close)
    step = made.step_done if len(optimizers) == 1 else made.step_due
    made.on_close(acknowledge_steps(step, made.close, optimizers, scaler or scaler_of(optimizer)))
    if log_dir is not None:
        config = {name: value for name, value in as_plain(wanted, Mining).items() if name in SETTINGS}
        made.journal.write_to(partial(begun_log, Path(log_dir), config, device_of(generator)), report=False)
    return made


def _checked(wanted: Mining, sample: Sample | None) -> Mining:
    """The settings, if all of them have an effect here.

    Raises:
        ValueError: one has none; or there are several ranks.
    """
    plain = Mining()
    for field in fields(Mining):
        if field.name not in SETTINGS and getattr(wanted, field.name) != getattr(plain, field.name):
            raise ValueError(
                f"a setting must have an effect: got {field.name}={getattr(wanted, field.name)!r:.80} where nothing is "
                f"scored or picked; leave it out (generate() takes {', '.join(SETTINGS)})"
            )
    require_group()
    if (world := Ranks.here().world) > 1:
        raise ValueError(f"batches are made for one training process: got {world} ranks; train on one device")
    if sample is not None and wanted.pool == "stream":
        raise ValueError(
            "pool='stream' works in a thread of the trainer's process, and sample= sets its random state: got both; "
            "pass pool='process', or draw in the model's forward from numbers among its inputs"
        )
    get_scheme(wanted.quantization)
    check_seed(wanted.seed)
    return replace(wanted, quantization=UNCUT) if wanted.quantization == plain.quantization else wanted


def _loader_of(inputs: Any, batch_size: int | None, draws_per_epoch: int | None) -> "DataLoader[Any]":
    """A DataLoader over whatever inputs were given."""
    is_function = (
        callable(inputs) and not isinstance(inputs, DataLoader) and getattr(inputs, "__getitem__", None) is None
    )
    if is_function != (draws_per_epoch is not None):
        got = "none for a function" if is_function else f"{draws_per_epoch} for a {type(inputs).__name__}"
        raise ValueError(
            f"draws_per_epoch says how long an epoch of a function is, and of nothing else: got {got}; "
            + ("pass it" if is_function else "leave it out")
        )
    if isinstance(getattr(inputs, "dataset", inputs), IterableDataset):
        raise ValueError(
            "inputs must be map-style, so that a draw can be made again by its addresses: got an IterableDataset; give "
            "it __getitem__ and __len__"
        )
    if isinstance(inputs, DataLoader):
        if batch_size is not None:
            raise ValueError(f"a DataLoader says its batch size itself: got batch_size={batch_size}; leave it out")
        check_loader(inputs)
        return inputs
    size = batch_size or BATCH_SIZE
    if is_function:
        assert draws_per_epoch is not None
        return DataLoader(FromSeeds(inputs, size * draws_per_epoch), batch_size=size)  # type: ignore[arg-type]
    return DataLoader(inputs, batch_size=size, shuffle=True, drop_last=True)


def _default_chunk(generator: nn.Module, base: "DataLoader[Any]") -> int:
    usual = usual_batch_size(base) or CHUNK_ON_CPU
    return min(usual, CHUNK_ON_CPU) if device_of(generator).type == "cpu" else usual


def _task(
    base: "DataLoader[Any]",
    generator: nn.Module,
    source: Source,
    reader: Reader,
    mining: Mining,
    split: Split,
    sample: Sample | None,
) -> GeneratingTask:
    """What the pool does.

    Raises:
        ValueError: the model cannot be run on these inputs, or not by this engine.
    """
    ids = readable_ids(base)
    tried = rehearse(generator, reader.batch, ids, choices=choices_of(mining), split=split, score=None, balance="none")
    device = torch.device("cpu") if pool_of(mining).runs_beside else device_of(generator)
    assert mining.oracle_chunk is not None
    engine = build_engine(
        mining.oracle,
        generator,
        device,
        samples=SourceSamples(reader, partial(readable_ids, base), mining.seed, split),
        scheme=mining.quantization,
        rows=mining.oracle_chunk,
    )
    if tried.varying and not engine.takes_any_size:
        raise ValueError(
            f"{engine.name} must be able to follow the sizes of inputs: got {tried.varying}; pad them to one length "
            "in collate_fn, or pass oracle='torch:bf16'"
        )
    workers = ViewWorkers.of(base, engine.device).numbering(mining.oracle_num_workers)
    return GeneratingTask(
        source=WithSeeds(source),
        reader=reader,
        view_workers=workers,
        engine=engine,
        rows=mining.oracle_chunk,
        split=split,
        sample=sample,
    )
