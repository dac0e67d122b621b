"""Folding changes nothing but the speed, and leaves alone what it cannot surely fold."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from conformance.networks import NETWORKS, Shared, experienced, images, pixels, resnet
from infer2train.batches import call_model, tensors_of
from infer2train.models.imagenet_resnet import resnet18, resnet50
from infer2train.oracle.quantization.fold import FoldedPair, fold_plan, folded_tensors
from infer2train.oracle.quantization.hooks import keep_hooks


def refreshed(skeleton: nn.Module, pairs: list[FoldedPair], model: nn.Module) -> nn.Module:
    skeleton.load_state_dict(folded_tensors(pairs, model.state_dict()))
    return skeleton


def assert_agree(skeleton: nn.Module, model: nn.Module, inputs: Any) -> None:
    with torch.no_grad():
        outputs, wanted = call_model(skeleton, inputs), call_model(model.eval(), inputs)
    for got, expected in zip(tensors_of(outputs), tensors_of(wanted), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def norms(module: nn.Module) -> list[str]:
    return [name for name, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("name", NETWORKS)
def test_folded_and_unfolded_agree_after_training(name: str) -> None:
    build, inputs = NETWORKS[name]
    model = experienced(build(), inputs())
    skeleton, pairs = fold_plan(model)
    assert len(norms(skeleton)) == len(norms(model)) - len(pairs)
    experienced(model, inputs(), seed=1)  # training goes on: only the tensors are folded again, nothing is traced
    assert_agree(refreshed(skeleton, pairs, model), model, inputs())


@pytest.mark.parametrize(("build", "count"), [(resnet18, 20), (resnet50, 53)])
def test_every_batch_norm_of_a_resnet_goes(build: Any, count: int) -> None:
    model = build(num_classes=5)
    skeleton, pairs = fold_plan(model)
    assert (len(pairs), norms(skeleton)) == (count, [])
    assert {pair.norm for pair in pairs} == set(norms(model))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.train()(x)
    assert_agree(refreshed(skeleton, pairs, model), model, x)


def test_only_what_is_used_once_and_nowhere_else_is_folded() -> None:
    skeleton, pairs = fold_plan(Shared())
    assert [(pair.layer, pair.norm) for pair in pairs] == [("stem", "stem_norm")]
    assert norms(skeleton) == ["norm_a", "norm_b", "norm_both", "norm_read", "norm_branch"]


def test_the_model_is_left_alone_and_shares_nothing() -> None:
    model = experienced(resnet(), pixels()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    skeleton, _ = fold_plan(model)
    for tensor in (*skeleton.parameters(), *skeleton.buffers()):
        tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert float(model.std.min()) > 0, "a buffer outside state_dict is copied too"
    assert model.training
    assert norms(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not skeleton.training
    assert not any(parameter.requires_grad for parameter in skeleton.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_arithmetic_is_float32_whatever_the_records_precision(dtype: torch.dtype) -> None:
    model = experienced(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), images()).to(dtype)
    _, (pair,) = fold_plan(model)
    weight, bias = pair.fold(model.state_dict())
    conv, norm = model.double()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(weight.double(), conv.weight * scale[:, None, None, None], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(bias.double(), (conv.bias - norm.running_mean) * scale + norm.bias, rtol=1e-6, atol=1e-6)
    assert weight.dtype == bias.dtype == torch.float32


def test_a_constant_channel_stays_finite() -> None:
    """γ = 0 at the start of each block's last batch-norm makes whole layers exactly 0."""
    model = resnet()
    skeleton, pairs = fold_plan(model)
    refreshed(skeleton, pairs, model)
    assert float(skeleton.get_parameter("network.blocks.0.conv2.weight").abs().max()) == 0
    assert_agree(skeleton, model, pixels())


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)),
        (nn.Conv1d(3, 4, 3, bias=False), nn.BatchNorm1d(4, affine=False)),
        (nn.Conv3d(3, 4, 1, groups=1), nn.BatchNorm3d(4, eps=0.1)),
        (nn.Conv2d(3, 6, 3, groups=3, stride=2), nn.SyncBatchNorm(6)),
        (nn.Linear(3, 4), nn.BatchNorm1d(4)),
    ],
)
def test_kinds_of_layers(layers: tuple[nn.Module, ...]) -> None:
    model = nn.Sequential(*layers)
    dimensions = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3, nn.Linear: 0}[type(layers[0])]
    x = torch.randn(6, 3, *[5] * dimensions, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layers[1].running_mean.uniform_(-1, 1)  # type: ignore[operator, union-attr]
        layers[1].running_var.uniform_(0.5, 2)  # type: ignore[operator, union-attr]
    skeleton, pairs = fold_plan(model)
    assert len(pairs) == 1
    assert_agree(refreshed(skeleton, pairs, model), model, x)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


@pytest.mark.parametrize(
    "layers",
    [
        (Standardised(3, 4, 3), nn.BatchNorm2d(4)),
        (parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        (nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
    ],
)
def test_what_cannot_be_folded_keeps_its_batch_norm_and_its_meaning(layers: tuple[nn.Module, ...]) -> None:
    model = nn.Sequential(*layers)
    x = images(4)
    model.train()(x)
    skeleton, pairs = fold_plan(model)
    assert pairs == []
    assert_agree(refreshed(skeleton, pairs, model), model, x)


def test_a_layer_with_a_hook_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    assert len(fold_plan(model)[1]) == 1, "a hook that looks is not the oracle's"
    keep_hooks(model)  # as mine() does where outputs depend on them
    assert fold_plan(model)[1] == []


def test_tied_weights_are_folded_apart() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
    )
    model[4].weight = model[2].weight = model[0].weight
    experienced(model, images(4))
    skeleton, pairs = fold_plan(model)
    assert len(pairs) == 2
    assert_agree(refreshed(skeleton, pairs, model), model, images(4))


def test_a_batch_norm_under_two_names() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.a = self.b = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.conv(x))  # type: ignore[no-any-return]

    aliased = experienced(Aliased(), images(4))
    skeleton, pairs = fold_plan(aliased)
    assert len(pairs) == 1
    assert norms(skeleton) == []
    with torch.no_grad():
        weight, bias = pairs[0].fold(aliased.state_dict())
        skeleton.conv.weight.copy_(weight)  # type: ignore[operator, union-attr]
        skeleton.conv.bias.copy_(bias)  # type: ignore[operator, union-attr]
    assert_agree(skeleton, aliased, images(4))


class Optional(nn.Module):
    """With a mask, or without one, the convolution's output is used twice."""

    def __init__(self, twice_with_mask: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice_with_mask = twice_with_mask

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y if self.twice_with_mask == (mask is not None) else self.norm(y)


@pytest.mark.parametrize("twice_with_mask", [False, True])
def test_an_optional_argument_is_traced_both_ways(twice_with_mask: bool) -> None:
    model = experienced(Optional(twice_with_mask), images(4))
    skeleton, pairs = fold_plan(model)
    assert pairs == []
    skeleton = refreshed(skeleton, pairs, model)
    assert_agree(skeleton, model, (images(4), torch.ones(1)))
    assert_agree(skeleton, model, images(4))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.norm(self.conv(x)) if float(x.sum()) > 0 else x


def test_where_tracing_fails_the_model_stays_whole_and_the_layers_are_named() -> None:
    model = experienced(Untraceable(), images(4))
    with pytest.warns(UserWarning, match="Untraceable keeps norm, "):
        skeleton, pairs = fold_plan(model)
    assert pairs == []
    assert isinstance(skeleton.seen, Tensor), "tracing leaves no proxy behind"
    assert_agree(skeleton, model, images(4).abs())


class Warming(nn.Module):
    """A batch-norm that is used while a buffer says so, and a buffer that is only computed with."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.branches = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), branches
        self.register_buffer("warm", torch.tensor(True))
        self.register_buffer("mean", torch.full((3,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x - self.mean[:, None, None])
        return self.norm(y) if not self.branches or self.warm else y


def test_a_branch_on_a_buffer_is_not_decided_while_tracing() -> None:
    model = experienced(Warming(branches=True), images(4))
    with pytest.warns(UserWarning, match="Warming keeps norm, .*control flow"):
        skeleton, pairs = fold_plan(model)
    model.get_buffer("warm").fill_(False)
    assert_agree(refreshed(skeleton, pairs, model), model, images(4))
    assert [pair.norm for pair in fold_plan(Warming(branches=False))[1]] == ["norm"]


def test_a_model_without_batch_norm_is_not_traced() -> None:
    class Text(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fold_plan(Text())[1] == []


def test_linear_behind_tokens_is_refused_rather_than_wrong() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    skeleton, _ = fold_plan(model)
    with pytest.raises(ValueError, match=r"\[n c\]: got \(2, 4, 4\) between 0 and 1; .*fold=False"):
        skeleton(torch.zeros(2, 4, 4))


def test_a_skeleton_can_be_exported() -> None:
    model = experienced(resnet(), pixels())
    skeleton, pairs = fold_plan(model)
    exported = torch.export.export(refreshed(skeleton, pairs, model), (pixels(),))
    assert not any("batch_norm" in str(node.target) for node in exported.graph.nodes)
    assert_agree(exported.module(), model, pixels())
