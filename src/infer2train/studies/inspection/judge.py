"""What the run's model thinks of the samples that are shown: one loss each, or one for each of their tokens.

The record has what the oracle said when a sample was picked, one number. Which of a text's tokens made that number is
found out when the page is made, with the weights that the user gives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from infer2train.batches import as_float32, call_model, logits_of, to_device
from infer2train.draws.scores import IGNORED, OF_NUMBERS, SCORES, loss

Losses = Callable[[Any, Any], Tensor]
"""(outputs, targets) -> the loss of each sample, [n], or of each of its tokens, [n, t]; NaN where a token has none."""


def losses_of_tokens(outputs: Any, targets: Any) -> Float32[Tensor, " n *t"]:
    """Cross entropy, not reduced: of each sample, token or pixel, NaN where the target is -100.

    Args:
        outputs: as for `infer2train.draws.scores.loss`.
        targets: likewise.

    Raises:
        ValueError: as there.

    Example:
        >>> losses_of_tokens(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]])).round(decimals=2).tolist()
        [[0.6899999976158142, 0.6899999976158142, nan]]
    """
    whole = loss(outputs, targets)
    logits = logits_of(outputs).detach().float()
    if logits.ndim == 2:
        return whole
    rows = (logits.movedim(1, -1) if logits.ndim > 3 else logits).flatten(0, -2)
    wanted = targets.to(logits.device)
    found = nn.functional.cross_entropy(rows, wanted.flatten().long(), reduction="none", ignore_index=IGNORED)
    return found.view(wanted.shape).masked_fill(wanted == IGNORED, torch.nan)


def losses_like(score: Any) -> Losses:
    """The losses that a run's score is the mean of, where it is told by its name.

    Args:
        score: the name in the run's settings, or None.
    """
    return SCORES[score] if score in OF_NUMBERS else losses_of_tokens


@dataclass(frozen=True)
class Judge:
    """Looks at samples with a model.

    Args:
        model: with its weights of now. It is used in evaluation mode, where it is, and left as it was.
        losses: of what it gives.
    """

    model: nn.Module
    losses: Losses

    @torch.no_grad()
    def __call__(self, inputs: Any, targets: Any) -> Float32[Tensor, " n *t"]:
        """The losses of a batch, on the CPU.

        Raises:
            ValueError: there is no row for each sample.
        """
        modes = {module: module.training for module in self.model.modules()}
        device = next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))
        try:
            self.model.eval()
            outputs = call_model(self.model, to_device(inputs, device))
            found = self.losses(as_float32(outputs), to_device(targets, device))
        finally:
            for module, mode in modes.items():
                module.training = mode
        if not isinstance(found, Tensor) or found.ndim == 0:
            raise ValueError(
                "losses= must give one loss for each sample, [n], or for each token, [n, t]: got "
                f"{'a mean' if isinstance(found, Tensor) else type(found).__name__}; pass one that does not reduce"
            )
        return found.detach().float().cpu()
