"""An epoch's draws as tensors on the device: drawn at once when the epoch begins, so that a step draws nothing.

A table has a row for each draw. What is known of the draws beforehand (ids, targets, what each view's seed decides, the
numbers behind the picks) is drawn; what the steps find out (scores, picks, losses) is written there by the device and
read by the host when it has a reason to wait for it. Tables stay where they are in memory, since CUDA graphs hold their
addresses.

Shapes: s draws of an epoch, b slots of a draw, g views of a slot, n images, k classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from infer2train.addresses import Purpose, seeds, uniforms
from infer2train.methods import Method, mined_slots
from infer2train.order import Batches
from infer2train.plan import MiningPlan
from infer2train.views.view import View


@dataclass(frozen=True)
class ViewsInUse:
    """Which views of a slot a method looks at: `scored` of them from `first` on; `total` are drawn."""

    total: int
    first: int
    scored: int


def views_in_use(method: Method, gamma: int) -> ViewsInUse:
    """The views of each slot that draws of a method need."""
    if method.candidates == "one-view":
        return ViewsInUse(1, 0, 0)
    if method.candidates == "anchors":
        return ViewsInUse(1 + gamma, 1, gamma)
    return ViewsInUse(gamma, 0, gamma if method.score is not None else 0)


class EpochTables:
    """The tables of one run; every epoch is drawn into them anew.

    Args:
        plan: what is mined.
        images: all of them, on the device where everything else is then.
        targets: one class each.
        view: what a seed does to an image.
        num_draws: in an epoch.
        batch_size: slots of a draw.
    """

    def __init__(
        self,
        plan: MiningPlan,
        images: UInt8[Tensor, "n h w c"],
        targets: Int64[Tensor, " n"],
        view: View,
        *,
        num_draws: int,
        batch_size: int,
    ) -> None:
        self.views = views_in_use(plan.method, plan.gamma)
        self.num_draws, self.batch_size = num_draws, batch_size
        self._plan, self._images, self._targets, self._view = plan, images, targets, view
        self._drawn: dict[str, Tensor] = {}
        self._found: dict[str, Tensor] = {}
        self._picked = torch.zeros((num_draws, batch_size), dtype=torch.int64, device=images.device)

    # Before the steps

    def fill(self, epoch: int, first_draw: int, share: float, batches: Batches) -> None:
        """Draw an epoch.

        Args:
            epoch: counted from 0.
            first_draw: number of its first draw.
            share: mined share r of its draws.
            batches: the ids of each draw.
        """
        assert {len(batch) for batch in batches} == {self.batch_size}, "the last incomplete batch is dropped"
        ids = torch.from_numpy(np.stack(batches)).to(self._images.device)
        fresh = {"ids": ids, "targets": self._targets[ids], **self._numbers(epoch, first_draw, share)}
        for name, values in self._parameters(epoch, first_draw).items():
            fresh[f"parameter {name}"] = values.view(self.num_draws, -1)
        for name, values in fresh.items():
            self._drawn.setdefault(name, values).copy_(values)
        self._picked.zero_()

    def _draws(self, first_draw: int) -> Int64[Tensor, "s 1"]:
        return torch.arange(first_draw, first_draw + self.num_draws, device=self._images.device)[:, None]

    def _slots(self) -> Int64[Tensor, " b"]:
        return torch.arange(self.batch_size, device=self._images.device)

    def _numbers(self, epoch: int, first_draw: int, share: float) -> dict[str, Tensor]:
        """The numbers behind the picks."""
        place = {"epoch": epoch, "draw": self._draws(first_draw), "slot": self._slots()}
        return {
            "uniforms": uniforms(self._plan.seed, Purpose.PICK, **place),
            "mined": mined_slots(seeds(self._plan.seed, Purpose.MINED_SLOTS, **place), share),
        }

    def _parameters(self, epoch: int, first_draw: int) -> Mapping[str, Tensor]:
        """What the seeds of all views of the epoch decide."""
        draw, slot = self._draws(first_draw)[:, :, None], self._slots()[:, None]
        view = torch.arange(self.views.total, device=self._images.device)
        numbers = seeds(self._plan.seed, Purpose.VIEW, epoch=epoch, draw=draw, slot=slot, view=view)
        height, width = self._images.shape[1:3]
        drawn = self._view.parameters(numbers.reshape(-1), height, width)
        return {name: torch.as_tensor(values) for name, values in drawn.items()}

    # Within a step: `at` is a row as a tensor, so that one CUDA graph serves all of them

    def new_row(self) -> Int64[Tensor, " 1"]:
        """A row on the device, to be overwritten."""
        return torch.zeros(1, dtype=torch.int64, device=self._images.device)

    def pick(self, at: Int64[Tensor, " 1"], view: Int64[Tensor, " b"]) -> None:
        """Have the slots of a draw trained on these views; without a pick it is view 0."""
        self._picked.index_copy_(0, at, view[None])

    def row(self, name: str, at: Int64[Tensor, " 1"]) -> Tensor:
        """A row of a table that was drawn: ids, targets, uniforms or mined."""
        return self._drawn[name].index_select(0, at)[0]

    def candidates(self, at: Int64[Tensor, " 1"]) -> tuple[UInt8[Tensor, "bg c h w"], Int64[Tensor, " bg"]]:
        """The scored views of a draw, slot by slot, and their targets."""
        first, count = self.views.first, self.views.scored
        placed = {name: values[:, first : first + count] for name, values in self._placed(at).items()}
        return self._seen(at, placed, count)

    def trained(self, at: Int64[Tensor, " 1"], whole: bool) -> tuple[UInt8[Tensor, "t c h w"], Int64[Tensor, " t"]]:
        """The views that a draw is trained on and their targets: all of them if `whole`, else the picked ones."""
        placed = self._placed(at)
        if not whole:
            picked = self._picked.index_select(0, at).view(-1, 1)
            placed = {name: values.gather(1, picked) for name, values in placed.items()}
        return self._seen(at, placed, self.views.total if whole else 1)

    def _placed(self, at: Int64[Tensor, " 1"]) -> dict[str, Int64[Tensor, "b g"]]:
        """The parameters of a draw's views."""
        names = [name for name in self._drawn if name.startswith("parameter ")]
        return {name.removeprefix("parameter "): self.row(name, at).view(self.batch_size, -1) for name in names}

    def _seen(
        self, at: Int64[Tensor, " 1"], placed: Mapping[str, Int64[Tensor, "b v"]], count: int
    ) -> tuple[UInt8[Tensor, "bv c h w"], Int64[Tensor, " bv"]]:
        """`count` views of each slot of a draw, under these parameters."""
        ids, targets = (_each(self.row(name, at), count) for name in ("ids", "targets"))
        parameters = {name: values.reshape(-1) for name, values in placed.items()}
        return self._view.apply(self._images.index_select(0, ids), parameters), targets

    def write(self, name: str, at: Int64[Tensor, " 1"], values: Tensor) -> None:
        """Keep what a step found out of its draw, under a name of its own."""
        if name not in self._found:
            self._found[name] = values.new_zeros((self.num_draws, *values.shape))
        self._found[name].index_copy_(0, at, values[None])

    # After steps, by the host

    def found(self, name: str) -> Shaped[Tensor, "s ..."]:
        """What the steps found out, a row a draw."""
        return self._found[name]

    def targets(self, row: int) -> Int64[Tensor, " b"]:
        """The class of each slot's sample."""
        return self._drawn["targets"][row]

    def picks(self, row: int) -> tuple[Int64[np.ndarray, " b"], Bool[np.ndarray, " b"]]:
        """The view that each slot of a draw is trained on, and whether it was picked for its score."""
        return self._picked[row].cpu().numpy(), self._drawn["mined"][row].cpu().numpy()

    def picked_scores(self, rows: slice) -> Float[Tensor, " m"]:
        """The scores of what was picked for its score in these draws."""
        shape = (-1, self.batch_size, self.views.scored)
        picked = self.found("scores")[rows].view(shape).gather(2, self._picked[rows][:, :, None])[:, :, 0]
        return picked[self._drawn["mined"][rows]]


def _each(values: Int64[Tensor, " b"], count: int) -> Int64[Tensor, " bv"]:
    """Every value `count` times in a row."""
    return values[:, None].expand(-1, count).reshape(-1)
