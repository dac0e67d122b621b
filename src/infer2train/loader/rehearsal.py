"""One small batch through the whole way, when `mine()` is called: what cannot work is said before the first step.

The oracle's side meets the user's batch, model and score here for the first time, and each may have a form that was
never asked of it in the user's own loop: three parts in a batch, one output, a score of a column. What is refused, is
refused with the line to write, which was tried on this very batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from infer2train.batches import Split, batch_size, logits_of, pad_batch, take_rows, tensors_of
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.losses import own_tokens
from infer2train.draws.methods.method import Choices
from infer2train.draws.methods.samples import class_targets
from infer2train.draws.randomness import seeded
from infer2train.draws.scores import Score
from infer2train.draws.selection import Balance
from infer2train.loader.remedies import score_to_write, split_to_write
from infer2train.oracle.live import are_close, asked, asked_copy
from infer2train.oracle.quantization.hooks import has_hooks, keep_hooks, unseen
from infer2train.oracle.scorer import one_each
from infer2train.sources.collation import windows

ROWS = 8
"""Samples of the rehearsal."""
ALONE = 3
"""Of them, those that are looked at without the others."""
ANY_SPLIT = "split=, a function batch -> (inputs, targets)"

ReadBatch = Callable[[Addresses], Any]


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What was learned of the user's batches.

    Args:
        varying: what changes its size from one batch to another, such as `[n, 7] and [n, 9]`; None where nothing does.
        is_padding_seen: whether a candidate's score, or logits, depend on how far it was padded.
    """

    varying: str | None = None
    is_padding_seen: bool = False


def rehearse(
    model: nn.Module,
    read: ReadBatch,
    ids: Int64[np.ndarray, " n"],
    *,
    choices: Choices,
    split: Split,
    score: Score | None,
    balance: Balance,
) -> Rehearsal:
    """Do once, with `ROWS` samples, what a draw's scoring does.

    Args:
        model: the trainer's; a copy is run.
        read: makes the batch at addresses.
        ids: that may be read.
        choices: the method's.
        split: batch -> (inputs, targets).
        score: (outputs, targets) -> [n]; None where nothing is scored.
        balance: class quotas of nm-sample.

    Raises:
        ValueError: a batch, the model or the score is not as the method needs it: what, and the line to write.
    """
    chosen = ids[np.unique(np.linspace(0, len(ids) - 1, ROWS).astype(np.int64))]
    at = Addresses(chosen, seeds(0, Purpose.PROBE, slot=np.arange(len(chosen))))
    batch = read(at)
    network = asked_copy(model)
    inputs, targets = _apart(network, batch, split)
    if (rows := batch_size(inputs)) != len(at):
        raise ValueError(
            f"a collate_fn must keep every sample: got {rows} rows for {len(at)} samples; leave out what cannot be "
            "read by a torch.utils.data.Subset, not in collate_fn"
        )
    needs_classes = choices.candidates == "samples" and balance != "none"
    if not choices.has_oracle:
        if needs_classes:
            class_targets(targets)
        return Rehearsal()
    outputs = _outputs(network, batch, inputs)
    if needs_classes:
        class_targets(targets)
    if has_hooks(model) and (hooked := _if_dependent(model, inputs, outputs)) is not None:
        network, outputs = hooked
    _require_deterministic(network, inputs, outputs)
    if choices.loss == "distillation":
        _require_classes(outputs, targets)
        if logits_of(outputs).ndim == 3:
            _require_padded_behind([split(read(at[[i, i]]))[1] for i in range(rows)], targets)
    if score is not None:
        _require_score(score, outputs, targets, rows)
    pairs = [split(read(at[start : start + 2])) for start in range(0, rows, 2)]

    def said(outputs: Any, targets: Any) -> Tensor:
        return logits_of(outputs) if score is None else score(outputs, targets)

    whole = said(outputs, targets)
    alike = all(_agree(said(_few(network, x, rows), y), whole[2 * i : 2 * i + 2]) for i, (x, y) in enumerate(pairs))
    if not alike:
        _require_rows_apart(network, inputs, outputs)
    varying = _varying(pairs)
    if varying is None and not alike:
        raise ValueError(
            "a candidate's score must not depend on the others that are scored with it, of which there are more or "
            "fewer by oracle_chunk: got a score= that gives other numbers in a smaller batch; compare each row with "
            "its own target alone"
        )
    return Rehearsal(varying=varying, is_padding_seen=not alike)


def _if_dependent(model: nn.Module, inputs: Any, outputs: Any) -> tuple[nn.Module, Any] | None:
    """A copy with the user's forward hooks and its outputs, where these depend on them; all copies keep them then."""
    keep_hooks(model)
    with unseen(model), seeded(0), _cuda_moved(inputs):
        network = asked_copy(model)
        said = asked(network, inputs)
    is_dependent = not are_close(said, outputs)
    keep_hooks(model, is_dependent)
    return (network, said) if is_dependent else None


def _apart(network: nn.Module, batch: Any, split: Split) -> tuple[Any, Any]:
    try:
        inputs, targets = split(batch)
    except Exception as error:  # whatever the user's split raises, or ours of a batch of no usual form
        rule = "split= must tell a batch apart into (inputs, targets)"
        line = split_to_write(network, batch)
        raise ValueError(f"{_said(rule, error)}; here, pass {line}" if line else _said(rule, error)) from error
    return inputs, targets


def _outputs(network: nn.Module, batch: Any, inputs: Any) -> Any:
    try:
        with seeded(0), _cuda_moved(inputs):  # a model that draws moves nothing before it is refused
            return asked(network, inputs)
    except Exception as error:  # whatever the user's forward raises
        rule = "the model must take a batch's inputs as split= gives them"
        raise ValueError(
            f"{_said(rule, error)}; pass {split_to_write(network, batch) or ANY_SPLIT}, and do in it whatever your "
            "loop does to a batch before the model. A list, tuple or mapping of inputs is unpacked: to give the model "
            "one as it is, put it into a tuple, (inputs,)"
        ) from error


def _require_classes(outputs: Any, targets: Any) -> None:
    """Of distillation, which compares what a softmax makes of the logits."""
    own_tokens(logits_of(outputs), targets)
    if score_to_write(outputs, targets) in ('"multi-label-loss"', '"squared-error"'):
        raise ValueError(
            "self-distill compares class probabilities, so it needs logits of classes of which one is right: got "
            f"outputs of shape {tuple(logits_of(outputs).shape)} for targets that are numbers, or 0 or 1 each; use "
            "another method"
        )


def _require_padded_behind(twice: Sequence[Tensor], targets: Tensor) -> None:
    """Of distillation, which knows a token by its place from the front, in batches of several lengths.

    Args:
        twice: the targets of each sample, in a batch with itself.
        targets: of all of them in one batch.
    """
    for (alone, _), among_others in zip(twice, targets, strict=True):
        behind, in_front = (
            are_close(alone[of_alone], among_others[of_all]) for of_alone, of_all in windows(alone, among_others)
        )
        if in_front and not behind:
            raise ValueError(
                "self-distill compares tokens of the trainer's batches with those of the oracle's by their place from "
                f"the front, so sequences must be padded behind: got targets padded in front, from {len(alone)} to "
                f"{len(among_others)}; pad behind (padding_side='right'), or all to one length in collate_fn"
            )


def _require_score(score: Score, outputs: Any, targets: Any, rows: int) -> None:
    try:
        one_each(score(outputs, targets), rows)
    except Exception as error:  # whatever the user's score raises, or ours of targets that are no classes
        line = score_to_write(outputs, targets)
        told = " (F is torch.nn.functional)" if line and "F." in line else ""
        remedy = f"; here, pass score={line}{told}" if line else ""
        raise ValueError(_said("score= must work on a model's outputs and the targets", error) + remedy) from error


def _said(rule: str, error: Exception) -> str:
    """One of our own errors as it is; one of the user's code with its kind, behind the rule that it broke."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, ValueError) else f"{rule}: got {type(error).__name__}: {text}"


def _require_deterministic(network: nn.Module, inputs: Any, outputs: Any) -> None:
    with seeded(1), _cuda_moved(inputs):
        again = asked(network, inputs)
    if not are_close(again, outputs):
        raise ValueError(
            "a model must be deterministic in evaluation mode, so that a score can be told from luck and says the same "
            "when a run is resumed: got other outputs from the same inputs under another random state; draw only `if "
            "self.training:` (dropout: F.dropout(x, p, self.training))"
        )


def _cuda_moved(inputs: Any) -> Any:
    """Another state of CUDA's generators inside; theirs are put back after."""
    devices = sorted({tensor.device.index for tensor in tensors_of(inputs) if tensor.is_cuda})
    return torch.random.fork_rng(devices)


def _require_rows_apart(network: nn.Module, inputs: Any, outputs: Any) -> None:
    if are_close(_few(network, take_rows(inputs, ALONE), batch_size(inputs)), take_rows(outputs, ALONE)):
        return
    causes = [name for name, module in network.named_modules() if _mixes_rows(module)]
    raise ValueError(
        "what a model says of a candidate must not depend on the others in its batch, which are others for the oracle "
        "than for the trainer: got outputs that do in evaluation mode"
        + (f" (batch statistics in {', '.join(causes[:3])})" if causes else "")
        + "; use running statistics (track_running_stats=True), or GroupNorm or LayerNorm"
    )


def _few(network: nn.Module, inputs: Any, rows: int) -> Any:
    """What a model says of a few inputs, in a batch of so many rows."""
    return take_rows(asked(network, pad_batch(inputs, rows)), batch_size(inputs))


def _mixes_rows(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


def _agree(alone: Tensor, among_others: Tensor) -> bool:
    """Whether two batches say the same of the same rows, as far as both reach: padded behind, or in front."""
    return any(are_close(alone[of_alone], among_others[of_all]) for of_alone, of_all in windows(alone, among_others))


def _varying(pairs: Sequence[tuple[Any, Any]]) -> str | None:
    """The sizes behind the rows that inputs were seen to have, if more than one."""
    sizes: dict[str, None] = {}
    for inputs, _ in pairs:
        tensors = tensors_of(inputs)
        sizes[" and ".join(f"[{', '.join(['n', *map(str, tensor.shape[1:])])}]" for tensor in tensors)] = None
    return " or ".join(sizes) if len(sizes) > 1 else None
