"""A loader's state: all that going on exactly needs besides model, optimiser and scheduler.

Beside the loader, whose parts give and take it. Tensors and plain values only; whoever has the checkpoint writes it.
"""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from infer2train.draws.methods.method import Method
from infer2train.draws.mining import Mining
from infer2train.draws.randomness import restore_rng, rng_state
from infer2train.loader.accumulation import Gradients
from infer2train.loader.course import Course
from infer2train.loader.order import global_batch_size, require_same_global_batch
from infer2train.loader.publisher import Publisher
from infer2train.loader.ranks import Ranks
from infer2train.settings import as_plain, decisive, differences

FORMAT = 1


class RunState:
    """What the parts of a loader know of a run, together.

    Args:
        dataloader: the user's.
        mining: the settings.
        ranks: of the run.
        course: where it stands.
        publisher: has the records.
        method: may have a memory.
        gradients: of a step under way.
    """

    def __init__(
        self,
        dataloader: "DataLoader[Any]",
        mining: Mining,
        ranks: Ranks,
        course: Course,
        publisher: Publisher,
        method: Method,
        gradients: Gradients,
    ) -> None:
        self._dataloader, self._ranks = dataloader, ranks
        self._course, self._publisher, self._method, self._gradients = course, publisher, method, gradients
        self.settings: dict[str, Any] = decisive(Mining, as_plain(mining, Mining))
        """What a result depends on, by which two loaders are compared."""

    def state_dict(self) -> dict[str, Any]:
        """As it is now; no collective."""
        gradients = self._gradients.state_dict()
        return {
            "format": FORMAT,
            **self._course.state_dict(is_mid_step=bool(gradients)),
            **self._publisher.state_dict(),
            "mining": self.settings,
            "method": self._method.state_dict(),
            "ranks": self._ranks.world,
            "global_batch": global_batch_size(self._dataloader, self._ranks),
            "rank": self._ranks.rank,
            "rng": rng_state(),
            "gradients": gradients,
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that this run cannot go on from.

        Raises:
            ValueError: it is none of this format, or of other settings, another global batch or another rank.
        """
        self._require_format(state)
        differ = differences(state["mining"], self.settings)
        if differ:
            raise ValueError(
                f"a resumed loader needs the settings it was saved with: got {'; '.join(differ)}; restore them"
            )
        require_same_global_batch(self._dataloader, self._ranks, state["ranks"], state["global_batch"])
        self._require_own(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Random state is taken back by the rank that saved it."""
        self._course.load_state_dict(state)
        self._method.load_state_dict(state["method"])
        self._publisher.load_state_dict(state)
        self._gradients.load_state_dict(state["gradients"])
        if state["rank"] == self._ranks.rank:
            restore_rng(state["rng"])

    def _require_format(self, state: Mapping[str, Any]) -> None:
        # A format that is not told is known by its parts; of windows, who reads a stream says more.
        missing = [part for part in self.state_dict() if part not in {*state, "format", "stream"}]
        found = state.get("format", FORMAT)
        if missing or found != FORMAT:
            without = f" without {', '.join(missing)}" if missing else ""
            raise ValueError(
                f"a loader's state must be of format {FORMAT}, with all of its parts: got format {found}{without}; go "
                "on with the infer2train that saved it, or begin a new run with its model and optimizer"
            )

    def _require_own(self, state: Mapping[str, Any]) -> None:
        """Each rank adds up gradients of its own until it exchanges them, and reads its own share of a stream."""
        saved, here = (
            f"rank {rank} of {world}"
            for rank, world in ((state["rank"], state["ranks"]), (self._ranks.rank, self._ranks.world))
        )
        remedy = "have each rank save its own state, and load that"
        if "stream" in state and saved != here:
            raise ValueError(f"each rank reads a stream of its own: got a state of {saved} on {here}; {remedy}")
        if state["gradients"] and saved != here:
            raise ValueError(
                f"gradients of an unfinished step are those of one rank: got a state of {saved} on {here}; {remedy}, "
                "or save one for all after optimizer.step()"
            )
