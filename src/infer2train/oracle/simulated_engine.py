"""The simulated engine: the quantised program in float32, at any width. Slow, readable, what the others must equal."""

from collections.abc import Sequence

from torch import Tensor, nn

from infer2train.machine.device import torch_device
from infer2train.oracle.lowered_engine import ROWS, Lowered, LoweredEngine
from infer2train.oracle.quantization.affine import BITS
from infer2train.oracle.quantization.program import Program, Simulation
from infer2train.oracle.samples import Samples


class SimulatedEngine(LoweredEngine):
    """Runs `quantization.program.Simulation`: `simulated:b8` is what int8 engines compute, `simulated:b4` a study.

    Args:
        model: the trainer's.
        precision: b2 … b8 or b16.
        samples: calibration samples and probe.
        device: of torch's, such as cuda; the only 8-bit oracle that a GPU has. Default: the CPU.
        scheme: how S and Z are chosen.
        rows: of every call.

    Raises:
        ValueError: the precision is unknown, or the device is not to be had.
        GraphError: the model cannot be made into a graph.
    """

    takes_any_rows = True

    def __init__(
        self,
        model: nn.Module,
        *,
        precision: str = "b8",
        samples: Samples,
        device: str | None = None,
        scheme: str = "default",
        rows: int = ROWS,
    ) -> None:
        widths = {f"b{bits}": bits for bits in BITS}
        if precision not in widths:
            raise ValueError(f"precision of the simulated engine must be one of {', '.join(widths)}: got {precision!r}")
        place = torch_device((device or "cpu").lower(), "leave the device out for the CPU")
        super().__init__(
            f"simulated:{precision}" + ("" if place.type == "cpu" else f"@{device}"),
            model,
            samples=samples,
            bits=widths[precision],
            scheme=scheme,
            rows=rows,
            device=place,
        )

    def _convert(self) -> None:
        pass

    def _lower(self, tensors: Sequence[Tensor], program: Program | None) -> Lowered:
        assert program is not None
        simulation = Simulation(self.graph, program)
        return lambda flat: simulation(self.graph.inputs_from(flat))

    def _ran_in(self, lowered: Lowered) -> dict[str, str]:
        assert self._bits is not None
        return {layer.name: f"b{self._bits}" if layer.sites else "fp32" for layer in self.graph.layers}
