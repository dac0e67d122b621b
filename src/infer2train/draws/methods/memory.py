"""What a method remembers of samples: one number each, by sample id."""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor


class Memory:
    """One float32 for each sample id; NaN for what nothing is known of. It grows with the largest id.

    Example:
        >>> memory = Memory()
        >>> memory.write(torch.tensor([3]), torch.tensor([0.5]))
        >>> memory.read(torch.tensor([3, 9])).tolist()
        [0.5, nan]
    """

    def __init__(self, values: Float32[Tensor, " n"] | None = None) -> None:
        self.values = torch.empty(0, dtype=torch.float32) if values is None else values.float()

    def write(self, ids: Int64[Tensor, " k"], values: Float32[Tensor, " k"]) -> None:
        """Remember a number for each of these samples; of a sample that occurs twice, either."""
        size = int(ids.max()) + 1 if len(ids) else 0
        if size > len(self.values):
            grown = torch.full((max(size, 2 * len(self.values)),), torch.nan, dtype=torch.float32)
            grown[: len(self.values)] = self.values
            self.values = grown
        self.values[ids] = values

    def read(self, ids: Int64[Tensor, " k"]) -> Float32[Tensor, " k"]:
        """What is remembered of these samples."""
        known = ids < len(self.values)
        found = torch.full((len(ids),), torch.nan, dtype=torch.float32)
        found[known] = self.values[ids[known]]
        return found

    def mean(self) -> float | None:
        """Over what is known and finite; None where nothing is."""
        finite = self.values[self.values.isfinite()]
        return float(finite.double().mean()) if len(finite) else None
