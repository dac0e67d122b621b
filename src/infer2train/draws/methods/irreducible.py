"""What a model trained on other data loses on each sample: given as an array, or asked of that model once.

`rho` subtracts it, `trusted` believes labels by it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from infer2train.batches import call_model, to_device
from infer2train.draws.addresses import Addresses, Purpose, seeds
from infer2train.draws.draw import Draw
from infer2train.draws.methods.memory import Memory
from infer2train.draws.methods.method import Choices, Method, Read
from infer2train.draws.methods.samples import HardSamples
from infer2train.draws.mining import Mining
from infer2train.draws.scores import SCORES

CHUNK = 256
"""Samples that the irreducible model scores at a time."""


def _as_tensor(given: Any) -> Tensor:
    """The losses by sample id, from an array or a file of one."""
    if isinstance(given, str | Path):
        given = np.load(given, allow_pickle=False)
    losses = torch.as_tensor(given).float()
    if losses.ndim != 1:
        raise ValueError(f"irreducible must be one number for each sample: got shape {tuple(losses.shape)}; flatten it")
    return losses


class WithIrreducible(Method):
    """A method whose candidates are samples, and which knows the irreducible loss of each."""

    def __init__(self, mining: Mining, choices: Choices) -> None:
        super().__init__(mining, choices)
        self.as_samples = HardSamples(mining, choices)
        given = mining.irreducible
        if given is None:
            raise ValueError(
                f"{mining.method} needs the irreducible loss of each sample: got none; pass irreducible=, an array by "
                "sample id, a .npy file of one, or a model trained on data held out"
            )
        self._model = given if isinstance(given, nn.Module) else None
        self._irreducible = Memory() if self._model is not None else Memory(_as_tensor(given))

    def candidates(self, draw: Draw) -> Addresses:
        return self.as_samples.candidates(draw)

    def irreducible(self, ids: Int64[np.ndarray, " n"]) -> Float32[Tensor, " n"]:
        """Of these samples.

        Raises:
            ValueError: of one it is not known.
        """
        known = self._irreducible.read(torch.from_numpy(ids))
        unknown = ids[~known.isfinite().numpy()]
        if len(unknown):
            raise ValueError(
                f"irreducible must hold a finite loss for each sample that is trained on: got none for {len(unknown)} "
                f"of {len(ids)}, such as id {unknown[0]}; its index is the sample's in the data set (a model is asked "
                "at the start, about all that the sampler names then)"
            )
        return known

    def survey(self, read: Read, ids: Int64[np.ndarray, " n"]) -> None:
        if self._model is not None:
            self._ask(self._model, read, ids)
        self.irreducible(ids)

    def _ask(self, model: nn.Module, read: Read, ids: Int64[np.ndarray, " n"]) -> None:
        """Score one view of each sample with the irreducible model, in evaluation mode."""
        from infer2train.draws.methods.table import get_score

        score = get_score(self.mining) or SCORES["loss"]
        modes = {module: module.training for module in model.modules()}
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        model.eval()
        with torch.no_grad():
            for start in range(0, len(ids), CHUNK):
                part = ids[start : start + CHUNK]
                slot = np.arange(len(part))
                views = seeds(self.mining.seed, Purpose.IRREDUCIBLE, draw=start // CHUNK, slot=slot)
                inputs, targets = to_device(read(Addresses(part, views)), device)
                losses = score(call_model(model, inputs), targets)
                self._irreducible.write(torch.from_numpy(part), losses.float().cpu())
        for module, is_training in modes.items():  # some may have been frozen
            module.training = is_training

    def state_dict(self) -> dict[str, Any]:
        return {"irreducible": self._irreducible.values.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._irreducible = Memory(state["irreducible"].clone())

    def metrics(self) -> dict[str, float]:
        return {"irreducible": self._irreducible.mean() or 0.0}
