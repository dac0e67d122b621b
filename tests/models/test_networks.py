"""The ResNets and their pixels: the architecture of the papers, the initialisation of design and regime."""

from typing import Any

import pytest
import torch
from torch import fx, nn

from infer2train.models import cifar_resnet, imagenet_resnet
from infer2train.models.cifar_resnet import BasicBlock
from infer2train.models.imagenet_resnet import Bottleneck
from infer2train.models.pixels import Pixels


def layers(network: nn.Module) -> int:
    """Convolutions and linear layers, without those in shortcuts: what the number in a ResNet's name counts."""
    return sum(
        isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name for name, module in network.named_modules()
    )


def weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56])
def test_cifar_depth(depth: int) -> None:
    network = getattr(cifar_resnet, f"resnet{depth}")(num_classes=10)
    assert layers(network) == depth


def test_known_sizes() -> None:
    # He's ResNet-20 and ResNet-56 have 0.27 and 0.85 million; the two projections add 16·32 + 64 + 32·64 + 128.
    assert weights(cifar_resnet.resnet20(10)) == 269_722 + 2_752
    assert weights(cifar_resnet.resnet56(10)) == 853_018 + 2_752
    # torchvision's, which torch users compare with.
    assert weights(imagenet_resnet.resnet18(1000)) == 11_689_512
    assert weights(imagenet_resnet.resnet50(1000)) == 25_557_032


def test_strides() -> None:
    network = cifar_resnet.resnet8(10).eval()
    sizes: dict[str, Any] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: sizes.update({name: output.shape[1:]}))
    network(torch.zeros(1, 3, 32, 32))
    assert [tuple(sizes[f"blocks.{index}"]) for index in range(3)] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    bottleneck = Bottleneck(64, 64, stride=2)
    assert [convolution.stride for convolution in (bottleneck.conv1, bottleneck.conv2, bottleneck.conv3)] == [
        (1, 1),
        (2, 2),
        (1, 1),
    ]


@pytest.mark.parametrize("build", [cifar_resnet.resnet44, imagenet_resnet.resnet18, imagenet_resnet.resnet50])
def test_initialisation(build: Any) -> None:
    torch.manual_seed(0)
    network = build(num_classes=100).requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            wanted = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert float(module.weight.std()) == pytest.approx(wanted, rel=0.05)
            assert float(module.weight.mean()) == pytest.approx(0, abs=0.05 * wanted)
            assert module.bias is None
    assert float(network.classifier.weight.std()) == pytest.approx(0.01, rel=0.05)
    assert not network.classifier.bias.any()
    zero = {name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()}
    one = {name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d) and bool((m.weight == 1).all())}
    last = "norm3" if build is imagenet_resnet.resnet50 else "norm2"
    assert zero == {f"blocks.{index}.{last}" for index in range(len(network.blocks))}
    assert zero | one == {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


@pytest.mark.parametrize("block", [BasicBlock(8, 8, 1), Bottleneck(32, 8, 1)])
def test_a_block_starts_as_its_shortcut(block: Any) -> None:
    nn.init.zeros_(block.last_norm.weight)
    x = torch.rand(2, block.conv1.in_channels, 5, 5)
    assert torch.equal(block(x), x)
    nn.init.ones_(block.last_norm.weight)
    assert not torch.equal(block(x), x)


@pytest.mark.parametrize("build", [cifar_resnet.resnet8, imagenet_resnet.resnet18])
def test_any_image_and_any_tracer(build: Any) -> None:
    network = build(num_classes=5, in_channels=1).eval()
    x = torch.randn(2, 1, 64, 64)
    wanted = network(x)
    assert wanted.shape == (2, 5)
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), wanted)
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)  # the tests' shape checks refuse torch.fx's proxies
    try:
        traced = fx.symbolic_trace(network)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    torch.testing.assert_close(traced(x), wanted)


def test_pixels_are_normalised_in_float32() -> None:
    model = Pixels(nn.Identity(), mean=(0.5, 0.25), std=(0.5, 0.1))
    bytes_ = torch.tensor([0, 255, 102], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 2, 1, 3)
    wanted = torch.tensor([[[[-1.0, 1.0, -0.2]], [[-2.5, 7.5, 1.5]]]])
    for pixels in (bytes_, bytes_.float(), bytes_.half()):
        assert model(pixels).dtype == torch.float32
        torch.testing.assert_close(model(pixels), wanted)


def test_normalisation_is_part_of_the_graph_and_not_of_the_state() -> None:
    model = Pixels(cifar_resnet.resnet8(5), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)).eval()
    assert not {"mean", "std"} & model.state_dict().keys()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    exported = torch.export.export(model, (pixels,))
    operations = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    first = operations.index(next(name for name in operations if "conv2d" in name))
    assert sum("div" in name for name in operations[:first]) == 2
    assert sum("sub" in name for name in operations[:first]) == 1
    torch.testing.assert_close(exported.module()(pixels), model(pixels))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((), ())])
def test_bad_normalisation_is_refused(mean: Any, std: Any) -> None:
    with pytest.raises(ValueError, match="one number for each channel"):
        Pixels(nn.Identity(), mean, std)
