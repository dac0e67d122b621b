"""Draws, steps and versions: which weights score which draw, decided by counting and never by timing.

A draw is one batch handed to the training loop; a step is one optimiser attempt (all its accumulation micro-batches);
a version is the weights after that many steps. Nothing here knows of weights, pools or clocks.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VersionRule:
    """Which version scores a draw: V = T·⌊max(0, s − D)/T⌋ for a draw of step s.

    Args:
        update_every: steps between published versions (T; at least 1).
        delay_steps: extra staleness allowed (D; at least 0). 0 is the paper's Algorithm 1 to the letter.

    Example:
        >>> VersionRule(update_every=100).version_of_step(150)
        100
        >>> VersionRule(update_every=100, delay_steps=1).version_of_step(100)
        0

    Source: Algorithm 1 (`if i mod T_update == 0: update oracle`), with a bounded delay. The lag s − V is at most
    T − 1 + D.
    """

    update_every: int
    delay_steps: int = 0

    def version_of_step(self, step: int) -> int:
        """The version that scores the draws of `step`."""
        return self.update_every * (max(0, step - self.delay_steps) // self.update_every)

    def is_published(self, step: int) -> bool:
        """Whether the weights after `step` steps become a version."""
        return step % self.update_every == 0


@dataclass(frozen=True, kw_only=True)
class EpochSteps:
    """The steps that an epoch's draws belong to. Counted anew at each epoch, where the host has finished its steps.

    Args:
        first_draw: number of the epoch's first draw.
        first_step: steps acknowledged when the epoch began.
        accumulation_steps: draws in one step.
    """

    first_draw: int
    first_step: int
    accumulation_steps: int = 1

    def step_of(self, draw: int) -> int:
        """The step that trains on `draw`."""
        return self.first_step + (draw - self.first_draw) // self.accumulation_steps
