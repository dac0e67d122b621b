"""A plain copy of a sharded model: what the model was before `fully_shard`, with whole weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from infer2train.loader.sharding import Weights
from rank_processes import in_processes

pytestmark = pytest.mark.filterwarnings("ignore:.*use_fork|.*fork.*:DeprecationWarning")


class Tied(nn.Module):
    """Has what a copy may lose: a tied weight, a list of its modules, a hook, a scale, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.order = [self.first, self.second]
        self.scale = 3.0
        self.register_buffer("shift", torch.ones(4))
        self.first.register_forward_hook(lambda module, inputs, output: output.relu())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = layer(x)
        return x * self.scale + self.shift


def copied() -> tuple[list[Tensor], list[Tensor], bool, bool]:
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(6, 4)
    torch.manual_seed(0)
    plain = Tied()
    fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32))
    weights = Weights(model)
    models: list[Any] = [weights.whole, plain]
    before = [one(x).detach() for one in models]
    with torch.no_grad():
        for parameters in (model.parameters(), plain.parameters()):
            for parameter in parameters:
                parameter.add_(0.5)
        for buffers in (model.buffers(), plain.buffers()):
            next(iter(buffers)).add_(0.25)
        model(x)  # leaves whole parameters in bfloat16
    weights.gather()
    after = [one(x).detach() for one in models]
    is_plain = not any(isinstance(module, FSDPModule) for module in weights.whole.modules())
    return before, after, is_plain, weights.whole.first.weight is weights.whole.second.weight  # type: ignore[union-attr]


def test_a_copy_computes_what_the_model_did_before_it_was_sharded(tmp_path: Path) -> None:
    said = in_processes(2, copied, tmp_path)
    assert all(isinstance(one, tuple) for one in said), said
    for before, after, is_plain, is_tied in said:
        assert torch.equal(*before)
        assert torch.equal(*after)
        assert not torch.equal(before[0], after[0])
        assert (is_plain, is_tied) == (True, True)


def test_a_model_that_is_not_sharded_is_itself() -> None:
    model = nn.Linear(2, 2)
    assert Weights(model).whole is model
