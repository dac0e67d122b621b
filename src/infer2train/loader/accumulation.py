"""Gradients in the midst of an accumulated step: what a state taken there needs beside weights and optimiser.

Beside the loader, which is told when a step is done. Gradients stay where they are until the host zeroes them, after a
step or just before the next backward pass; a state taken in between must not hold them, or a resumed step would add to
what was used already.
"""

from collections.abc import Iterator, Mapping
from weakref import ref

from torch import Tensor, nn

from infer2train.loader.sharding import own_shard, with_shard


class Gradients:
    """Those of a model; which of them no step has used yet.

    Args:
        model: the trainer's.
        is_accumulated: whether a step has several draws. Else nothing is noted, saved or loaded.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> gradients = Gradients(layer, is_accumulated=True)
        >>> layer(torch.ones(1, 1)).backward()
        >>> list(gradients.state_dict())
        ['weight', 'bias']
        >>> gradients.step_done()
        >>> gradients.state_dict()
        {}
    """

    def __init__(self, model: nn.Module, *, is_accumulated: bool) -> None:
        self._model, self._is_accumulated = model, is_accumulated
        self._used: dict[str, tuple[ref[Tensor], int]] = {}

    def step_done(self) -> None:
        """A step has used those that there are. Call it right after the optimiser's step, before anything is added."""
        if self._is_accumulated:
            self._used = {name: (ref(gradient), own_shard(gradient)._version) for name, gradient in self._present()}

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of those that the next step will use, under the names of their parameters.

        Of sharded ones, this rank's shards.
        """
        if not self._is_accumulated:
            return {}
        return {
            name: own_shard(gradient.detach()).clone()
            for name, gradient in self._present()
            if not self._is_used(name, gradient)
        }

    def load_state_dict(self, gradients: Mapping[str, Tensor]) -> None:
        """Have these gradients and no others."""
        if not self._is_accumulated:
            return
        for name, parameter in self._model.named_parameters():
            saved = gradients.get(name)
            parameter.grad = None if saved is None else with_shard(parameter, saved.to(parameter.device, copy=True))
        self._used = {}

    def _present(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None:
                yield name, parameter.grad

    def _is_used(self, name: str, gradient: Tensor) -> bool:
        """Whether it is the very tensor that a step has used, and nothing was written to it since.

        Whoever zeroes it in place or adds to it raises its version. A new tensor may have an old one's memory and
        version, but is another object.
        """
        used, version = self._used.get(name, (None, -1))
        return used is not None and used() is gradient and own_shard(gradient)._version == version
