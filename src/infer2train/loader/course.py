"""Where a run stands: its epochs, draws and steps, and which ids come next. Counting alone, no weights and no data."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import DataLoader

from infer2train.draws.mining import Mining
from infer2train.draws.versions import EpochSteps
from infer2train.loader.acknowledgement import Pace
from infer2train.loader.order import Batches, epoch_batches, fingerprint, global_batches
from infer2train.loader.passes import Passes
from infer2train.loader.ranks import Ranks

REMEDIES = (
    "pass accumulation_steps= if the loop accumulates gradients, scaler= if a GradScaler skips steps, or call "
    "loader.step_done() after each step if mine() was given no optimizer. If a step was skipped (a loss that was not "
    "finite), the optimizer was replaced, or a second one trains too: pass all of them as optimizer=[…], or leave it "
    "out and call loader.step_done() once for every draw, skipped ones too"
)
"""What a loop can do whose steps were not all counted."""
STALE_EPOCHS = 2
"""An oracle that is refreshed less often than this is worth a warning."""


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """Where the loop began with the epoch under way, or went on with it after a resume."""

    draws: int = 0
    position: int = 0
    steps: int = 0


class Course:
    """The counters of one loader.

    Args:
        mining: whose steps they are.
        has_oracle: whether anybody counts steps for sure.
        ranks: of the run, which all stand at the same place.
        passes: of the stream that is read; None where a sampler gives the order.
    """

    def __init__(self, mining: Mining, has_oracle: bool, ranks: Ranks, passes: Passes | None = None) -> None:
        self._mining, self._has_oracle, self._ranks, self._passes = mining, has_oracle, ranks, passes
        self.epoch, self.position = 0, 0
        """The epoch under way or the next one, and how many of its draws were handed out."""
        self.draws, self.steps = 0, 0
        """Draws handed out and steps acknowledged, over the run."""
        self.epoch_ids: Int64[np.ndarray, " e"] = np.empty(0, dtype=np.int64)
        self._batches: Batches | Passes = []
        self._first: EpochSteps | None = None
        self._begun = _Begun()
        self._order: str | None = None
        self._is_open, self._is_resumed, self._is_left, self._has_looked = False, False, False, False
        self._has_warned, self._has_warned_of_skips, self._has_warned_of_idling = False, False, False
        self._pace = Pace()

    @property
    def is_new(self) -> bool:
        """Whether no epoch has begun yet, here or before a resume."""
        return self._first is None

    @property
    def is_open(self) -> bool:
        """Whether an epoch is under way."""
        return self._is_open

    @property
    def left(self) -> int:
        """Draws of the epoch that are to come; of a stream, as far as is known, and none only at its end."""
        if self._passes is not None:
            self._passes.reach(self.position)
        return len(self._batches) - self.position

    @property
    def place(self) -> dict[str, int]:
        """The counters, by name: all ranks of a run stand at the same."""
        return {"epoch": self.epoch, "position": self.position, "draws": self.draws, "steps": self.steps}

    @property
    def next_epoch(self) -> int:
        """The epoch that begins or goes on when the loader is iterated next."""
        return self.epoch + (self._is_open and not self._is_resumed and not self._is_peeked())

    def draws_per_epoch(self, foreseen: int | None) -> int:
        """As the epoch that was read last has it; of a stream, whose length nobody knows, in a window.

        Args:
            foreseen: from `draws_in_epoch`, where no epoch was read yet.

        Raises:
            TypeError: nobody knows yet.
        """
        if self._passes is not None:
            return self._passes.draws_per_window
        if self._batches:
            return len(self._batches)
        if foreseen is None:
            raise TypeError("a batch sampler without a length tells it when an epoch begins")
        return foreseen

    def step_of(self, draw: int) -> int:
        """The step that trains on a draw."""
        assert self._first is not None
        return self._first.step_of(draw)

    def ids(self, ahead: int) -> Int64[np.ndarray, " b"]:
        """Of the draw that comes after so many others of the epoch."""
        return self._batches[self.position + ahead]

    def offered(self, ahead: int) -> Int64[np.ndarray, " e"]:
        """Those that the candidates of that draw may have."""
        return self.epoch_ids if self._passes is None else self._passes.offered(self.position + ahead)

    # The epoch

    def read_order(self, dataloader: "DataLoader[Any]") -> bool:
        """Ask the user's sampler for an epoch, or begin the last one again where it was only looked at.

        Returns:
            Whether the sampler was asked.
        """
        if self._is_peeked():
            # Nothing was trained on: as if nobody had looked. The sampler is not asked again.
            self._has_looked = True
            self._warn_of_a_long_look(self.draws - self._begun.draws)
            self.draws, self.position = self._begun.draws, self._begun.position
            if self._passes is not None:
                self._passes.begin(self.epoch, self.position)
            return False
        if self._is_open and not self._is_resumed:
            self.epoch, self.position = self.epoch + 1, 0
        if self._passes is not None:
            self._passes.begin(self.epoch, self.position)
            self._batches = self._passes
            return True
        batches = epoch_batches(dataloader, self._mining.seed, self.epoch)
        self._batches = global_batches(dataloader, batches, self._ranks)
        self.epoch_ids = np.concatenate(self._batches)
        return True

    def begin_epoch(self) -> bool:
        """Begin to count, or go on where a resumed run was.

        Returns:
            Whether it begins.

        Raises:
            ValueError: the sampler gives another order than before the resume.
        """
        # What a stream gives again is found out where it is read.
        order = "" if isinstance(self._batches, Passes) else fingerprint(self._batches)
        begins = not self._is_resumed or self._first is None
        if begins:
            self._first = EpochSteps(
                first_draw=self.draws, first_step=self.steps, accumulation_steps=self._mining.accumulation_steps
            )
        elif order != self._order:
            raise ValueError(
                "a resumed epoch needs a sampler that gives the same order again: got another one; sample from the "
                "global state of torch, NumPy or random, which mine() seeds, call set_epoch(loader.epoch) on a sampler "
                "that has it, and leave data and batch size as they were"
            )
        self._order, self._is_resumed, self._is_open, self._is_left = order, False, True, False
        self._begun = _Begun(draws=self.draws, position=self.position, steps=self.steps)
        return begins

    def leave(self) -> None:
        """The iteration under way ends here."""
        self._is_left = True

    def end_epoch(self) -> None:
        """Nothing more of it is handed out."""
        draws = self.draws - self._begun.draws  # fewer than a step's may be left of a resumed epoch
        is_idle = self.steps == self._begun.steps and draws >= self._mining.accumulation_steps
        if is_idle and self._has_oracle and not self._has_warned_of_idling:
            self._has_warned_of_idling = True
            warnings.warn(
                "an epoch went by without a step: it counts, ramps go on by it and its draws were scored. To look at "
                "all samples, to evaluate on them for example, iterate the DataLoader that it was made from. If it was "
                f"trained on: {REMEDIES}",
                RuntimeWarning,
                stacklevel=4,
            )
        self.epoch, self.position = self.epoch + 1, 0
        self._is_open, self._is_resumed, self._has_looked = False, False, False

    def take_back(self) -> None:
        """The last draw of a resumed epoch was not trained on."""
        assert self._is_resumed
        self.draws, self.position = self.draws - 1, self.position - 1

    def _is_peeked(self) -> bool:
        """Whether the epoch under way, or what is left of a resumed one, was only looked at: `next(iter(loader))`, or a
        loop broken off at once."""
        if not self._is_open or self._is_resumed or self.steps > self._begun.steps:
            return False
        # Where nobody counts steps, two draws may have been trained on, or one each time.
        return self._has_oracle or (self.draws - self._begun.draws <= 1 and not self._has_looked)

    def _warn_of_a_long_look(self, draws: int) -> None:
        if draws > 1:
            warnings.warn(
                f"{draws} draws were handed out and no step was done: the epoch begins again. If they were trained on: "
                f"{REMEDIES}",
                RuntimeWarning,
                stacklevel=5,
            )

    def warn_of_stale_weights(self) -> None:
        """Tell the user, once, of an oracle that sees new weights hardly ever or never."""
        mining = self._mining
        if self._is_resumed or self._has_warned or not self._has_oracle:
            return
        steps_per_epoch = -(-len(self._batches) // mining.accumulation_steps)
        message = None
        if self.is_new and self._passes is None and mining.update_every > STALE_EPOCHS * steps_per_epoch:
            message = (
                f"the oracle gets new weights every {mining.update_every} steps, an epoch has {steps_per_epoch}: "
                f"lower update_every, to {max(1, steps_per_epoch // 2)} for example"
            )
        elif not self.is_new and self.steps < self.step_of(max(self.draws - 1, 0)) - mining.delay_steps:
            message = f"{self.steps} steps were done after {self.draws} draws. If these were trained on: {REMEDIES}"
        if message is not None:
            self._has_warned = True
            warnings.warn(message, RuntimeWarning, stacklevel=4)

    # Draws and steps

    def hand_out(self) -> None:
        """One draw more."""
        self.draws, self.position = self.draws + 1, self.position + 1

    def has_skipped(self) -> bool:
        """Whether the host, which asks for a draw, has left out the step before it."""
        assert self._first is not None
        first = self._first.first_step
        return self._pace.has_skipped(
            self.step_of(self.draws) - first, self.steps - first, delay_steps=self._mining.delay_steps
        )

    def warn_of_skips(self) -> None:
        """Tell the user, once, of a step that was left out."""
        if not self._has_warned_of_skips:
            self._has_warned_of_skips = True
            warnings.warn(
                f"draw {self.draws - 1} was followed by another one without a step in between: that and others like "
                "it are counted as skipped steps (metrics: skipped_steps). If they were not skipped, the optimizer was "
                "replaced, or a second one trains too: pass all of them to mine() as optimizer=[…]. To evaluate on the "
                "samples, iterate the DataLoader that the loader was made from",
                RuntimeWarning,
                stacklevel=5,
            )

    def step_done(self) -> None:
        """One step more.

        Raises:
            RuntimeError: more steps were done than draws were handed out for.
        """
        if self._has_oracle and (self.is_new or self.steps > self.step_of(self.draws - 1)):
            raise RuntimeError(
                f"a step trains on at least one draw: got step {self.steps + 1} after {self.draws} draws of "
                f"accumulation_steps={self._mining.accumulation_steps}; pass the accumulation_steps= of the loop or, "
                "if the optimizer steps more than once a draw or elsewhere too, leave it out of mine() and call "
                "loader.step_done() once"
            )
        self.steps += 1
        self._has_looked = False

    # Resume

    def state_dict(self, *, is_mid_step: bool) -> dict[str, Any]:
        """Plain values. What was only looked at was not handed out.

        An epoch whose last draw was trained on is not over yet: its loop goes on behind it, with an evaluation, say.

        Args:
            is_mid_step: whether a step under way has draws already, which were trained on.
        """
        place, position = self.place, self.position
        if self._is_left and not is_mid_step and self._is_peeked():
            position = self._begun.position
            place |= {"draws": self._begun.draws, "position": position}
        return {
            **place,
            "is_open": self._is_open,
            "pace": self._pace.state_dict(),
            "order": self._order,
            "first_draw": self._first.first_draw if self._first else 0,
            "first_step": self._first.first_step if self._first else 0,
            **({} if self._passes is None else {"stream": self._passes.state_dict(position)}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there: the epoch that was under way is finished first.

        Raises:
            ValueError: a stream is read in other windows.
        """
        if self._passes is not None:
            self._passes.load_state_dict(state.get("stream"))
        self._pace.load_state_dict(state["pace"])
        self.epoch, self.position = state["epoch"], state["position"]
        self.draws, self.steps = state["draws"], state["steps"]
        self._order, self._is_open, self._is_resumed = state["order"], state["is_open"], state["is_open"]
        self._first = EpochSteps(
            first_draw=state["first_draw"],
            first_step=state["first_step"],
            accumulation_steps=self._mining.accumulation_steps,
        )
