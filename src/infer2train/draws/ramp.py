"""How the mined share of a draw grows over a training."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """The mined share r of a draw, by epoch.

    r = min{1, rate · epoch} where `rate` is given (the paper), else r grows from 0 at `start` to 1 at `stop`, both
    parts of the whole training. `start == stop` switches mining on there; the default mines from the beginning.

    Source: paper, section 5.1 (rates 0.01 and 0.1 over 90 epochs) and figure 3: mining hard early does harm.
    """

    rate: float | None = None
    start: float = 0.0
    stop: float = 0.0

    def __post_init__(self) -> None:
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"ramp_rate must be positive: got {self.rate}; the paper uses 0.01 and 0.1")
        if self.rate is not None and (self.start, self.stop) != (0, 0):
            raise ValueError("a ramp is given by its rate or by start and stop: got both; drop one")
        if not 0 <= self.start <= self.stop <= 1:
            raise ValueError(
                f"a ramp must have 0 <= start <= stop <= 1, parts of the whole training: got start {self.start}, stop "
                f"{self.stop}; divide epochs by their number, or pass a rate"
            )

    @property
    def needs_length(self) -> bool:
        """Whether the share depends on how long the training is."""
        return self.rate is None and self.stop > 0

    def share(self, epoch: int, epochs: int | None) -> float:
        """The mined share r in [0, 1] in `epoch` (counted from 0) of `epochs`."""
        if self.rate is not None:
            return min(1.0, self.rate * epoch)
        if not self.needs_length:
            return 1.0
        assert epochs is not None
        progress = epoch / epochs
        if self.stop == self.start:
            return float(progress >= self.start)
        return min(1.0, max(0.0, (progress - self.start) / (self.stop - self.start)))


ALWAYS = Ramp()
OVER_THE_TRAINING = Ramp(start=0.0, stop=1.0)
