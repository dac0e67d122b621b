"""The int8 convolution that benchmarks/gpu times gives the project's integers, in Triton's interpreter and on CUDA."""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infer2train.models.cifar_resnet import resnet8, resnet44
from infer2train.quantization.affine import Affine, affine_of_range, symmetric
from infer2train.quantization.fold import fold_plan, folded_tensors
from infer2train.quantization.graph import WeightGraph
from infer2train.quantization.program import specify
from infer2train.quantization.ranges import measure_ranges
from int8conv import layers, table
from int8conv.arithmetic import Prepared, Sites, expected, prepare

POISON = 85
triton_kernel = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton runs it on the CPU"
)


def load_kernel(name: str) -> ModuleType:
    """The kernel's module under a name of its own: Triton decides once, at import, whether it interprets."""
    path = Path(layers.__file__).with_name("kernel.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """(stored x, prepared layer, stored residual) -> the integers that the kernel writes, on the CPU."""
    interpreted = request.param == "interpreter"
    if interpreted:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    else:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    kernel = load_kernel(f"kernel_on_{request.param}")
    device = torch.device("cpu" if interpreted else "cuda")

    def convolved(x: Tensor, layer: Prepared, residual: Tensor | None, cut: tuple[int, ...] = (32, 16, 32)) -> Tensor:
        here = replace(layer, **{name: getattr(layer, name).to(device) for name in ("weight", "bias", "factor")})
        size = [(n + 2 * layer.padding - layer.weight.shape[1]) // layer.stride + 1 for n in x.shape[1:3]]
        y = torch.full((len(x), *size, len(layer.weight)), POISON, dtype=torch.int8, device=device)
        skipped = None if residual is None else residual.to(device)
        kernel.convolve(x.to(device), here, skipped, y, kernel.Configuration(*cut, warps=4, stages=1))
        return y.cpu()

    yield convolved
    del sys.modules[kernel.__name__]


def site(x: Tensor) -> Affine:
    return affine_of_range(x.min(), x.max())


def weight_site(weight: Tensor) -> Affine:
    bound = weight.flatten(1).abs().amax(1)
    return symmetric(-bound, bound)


def stored(affine: Affine, x: Tensor) -> Tensor:
    return affine.quantize(x).to(torch.int8)


def assert_within_steps(got: Tensor, wanted: Tensor, sites: Sites) -> None:
    steps = (got.int() - wanted.int()).abs()
    assert int(steps.max()) <= sites.steps()
    assert float((steps == 0).double().mean()) > 0.999


# channels, outputs, size, window, stride, padding, residual, ReLU, and what part of its range the output may have
CASES = {
    "a block's first": (16, 16, 8, 3, 1, 1, False, True, 1.0),
    "a block's second": (16, 16, 8, 3, 1, 1, True, True, 1.0),
    "channels that fill no block": (12, 20, 7, 3, 1, 1, True, True, 1.0),
    "one channel, three outputs": (1, 3, 5, 3, 1, 1, False, True, 1.0),
    "stride 2": (16, 32, 9, 3, 2, 1, True, True, 1.0),
    "stride 2 of an even size": (16, 32, 8, 3, 2, 1, False, True, 1.0),
    "a shortcut": (16, 32, 8, 1, 2, 0, False, False, 1.0),
    "a bottleneck's last": (40, 24, 5, 1, 1, 0, True, True, 1.0),
    "a first convolution": (3, 17, 11, 7, 2, 3, False, True, 1.0),
    "an image smaller than its window": (5, 6, 2, 5, 1, 2, False, True, 1.0),
    "no padding": (8, 8, 6, 3, 1, 0, False, True, 1.0),
    "saturation": (16, 16, 6, 3, 1, 1, True, False, 0.1),
}


@triton_kernel
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_integers_are_those_of_the_specification(run: Any, case: tuple[Any, ...]) -> None:
    channels, outputs, size, window, stride, padding, has_residual, relu, part = case
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weight, bias = normal(outputs, channels, window, window) * (2 / channels) ** 0.5 / window, normal(outputs) * 0.3
    x = normal(3, size, size, channels) + 0.4  # no ReLU before it: Z is neither 0 nor −128
    own = nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding).permute(0, 2, 3, 1)
    skipped = normal(*own.shape) if has_residual else torch.zeros_like(own)
    real = (own + skipped).relu() if relu else own + skipped
    sites = Sites(site(x), weight_site(weight), site(real * part))
    if has_residual:
        sites = replace(sites, own=site(own * part), residual=site(skipped * part))
    layer = prepare(weight, bias, sites, stride=stride, padding=padding, relu=relu)
    residual = stored(sites.residual, skipped) if sites.residual else None
    x = stored(sites.input, x)
    wanted = expected(x, weight, bias, sites, residual, stride=stride, padding=padding, relu=relu)
    assert_within_steps(run(x, layer, residual), wanted, sites)
    assert torch.equal(run(x, layer, residual), run(x, layer, residual, (64, 32, 64)))
    if part < 1:
        assert float((wanted == 127).double().mean()) > 0.1
        assert float((wanted == -128).double().mean()) > 0.1
    else:  # rounding, and nothing else, is what tells them from the real numbers
        assert float((sites.output.dequantize(wanted.int()) - real).norm() / real.norm()) < 0.03


@triton_kernel
def test_outside_the_image_is_zero(run: Any) -> None:
    ones = affine_of_range(-0.5, 1.0)
    sites = Sites(ones, symmetric(torch.full((1,), -1.0), torch.ones(1)), affine_of_range(0.0, 25.5))
    layer = prepare(torch.ones(1, 1, 3, 3), torch.zeros(1), sites, padding=1)
    counted = sites.output.dequantize(run(stored(ones, torch.ones(1, 3, 3, 1)), layer, None).int())
    assert counted[0, :, :, 0] == pytest.approx(torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]]), abs=0.06)


@triton_kernel
def test_halves_go_to_the_even_integer(run: Any) -> None:
    one = Affine(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), -128, 127)
    halves = replace(one, scale=torch.tensor(2.0))
    weight = Affine(torch.ones(1), torch.zeros(1, dtype=torch.int32), -127, 127)
    layer = prepare(torch.ones(1, 1, 1, 1), torch.zeros(1), Sites(one, weight, halves), relu=False)
    x = torch.arange(-7, 9, dtype=torch.int8).view(1, 4, 4, 1)
    assert run(x, layer, None).flatten().tolist() == [-4, -3, -2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2, 3, 4, 4]


@triton_kernel
def test_a_relu_cuts_at_zero_and_not_where_the_integers_end(run: Any) -> None:
    one = affine_of_range(-1.0, 1.0)
    layer = prepare(torch.ones(1, 1, 1, 1), torch.zeros(1), Sites(one, weight_site(torch.ones(1, 1, 1, 1)), one))
    x = stored(one, torch.linspace(-1, 1, 16).view(1, 4, 4, 1))
    assert torch.equal(run(x, layer, None), x.clamp(min=int(one.zero_point)))


@triton_kernel
def test_weights_of_zeros_leave_the_bias(run: Any) -> None:
    weight, bias = torch.zeros(4, 8, 3, 3), torch.tensor([0.0, 0.25, 1.0, -1.0])
    sites = Sites(affine_of_range(-3.0, 5.0), weight_site(weight), affine_of_range(-1.0, 1.0))
    x = stored(sites.input, torch.linspace(-3, 5, 2 * 4 * 4 * 8).view(2, 4, 4, 8))
    got = run(x, prepare(weight, bias, sites, padding=1, relu=False), None)
    assert torch.equal(got, sites.output.quantize(bias).to(torch.int8).expand_as(got))


@triton_kernel
def test_the_integers_are_those_of_the_simulated_engine(run: Any) -> None:
    """Layer by layer through two blocks of a ResNet-8, each reading what the simulation gave the one before."""
    torch.manual_seed(5)
    model = resnet8(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
    skeleton, pairs = fold_plan(model)
    images = torch.randn(2, 3, 8, 8)
    graph = WeightGraph(skeleton, images)
    tensors = graph.tensors(folded_tensors(pairs, model.state_dict()))
    program = specify(graph, tensors, measure_ranges(graph, tensors, images))
    affines = {s.name: affine for s, affine in zip(graph.sites, program.affines, strict=True)}
    seen: dict[str, Tensor] = {}

    def act(name: str) -> Any:
        def rounded(x: Tensor) -> Tensor:
            seen[name] = affines[name].quantize(x)
            return affines[name].fake(x)

        return rounded

    graph.run(program.tensors, images, {number: act(s.name) for number, s in enumerate(graph.sites)})
    integers = {name: x.permute(0, 2, 3, 1).to(torch.int8).contiguous() for name, x in seen.items() if x.ndim == 4}
    weights = dict(zip(graph.names, program.tensors, strict=True))
    first, second, third = (f"blocks.{block}.conv1.weight/input" for block in range(3))
    between = [f"blocks.{block}.conv2.weight/input" for block in range(2)]
    way_round = "blocks.1.shortcut.0.weight/output"
    for name, source, residual, target, stride in (
        ("blocks.0.conv1", first, None, between[0], 1),
        ("blocks.0.conv2", between[0], first, second, 1),
        ("blocks.1.conv1", second, None, between[1], 2),
        ("blocks.1.shortcut.0", second, None, way_round, 2),
        ("blocks.1.conv2", between[1], way_round, third, 1),
    ):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        own = affines[f"{name}.weight/output"] if residual else None
        sites = Sites(
            affines[source], affines[f"{name}.weight"], affines[target], own, affines[residual] if residual else None
        )
        padding, relu = weight.shape[-1] // 2, "shortcut" not in name
        layer = prepare(weight, bias, sites, stride=stride, padding=padding, relu=relu)
        got = run(integers[source], layer, integers[residual] if residual else None)
        assert_within_steps(got, integers[target], sites)


@triton_kernel
def test_tensors_that_do_not_fit_are_refused(run: Any) -> None:
    weight = torch.ones(4, 8, 1, 1)
    sites = Sites(affine_of_range(-1.0, 1.0), weight_site(weight), affine_of_range(-1.0, 1.0))
    layer = prepare(weight, torch.zeros(4), sites)
    x = torch.zeros(1, 2, 2, 8, dtype=torch.int8)
    with pytest.raises(ValueError, match="got 7 channels"):
        run(x[..., :7], layer, None)
    with pytest.raises(ValueError, match="must fit"):
        run(x, layer, x)
    with pytest.raises(ValueError, match="x must be contiguous"):
        run(x.permute(0, 2, 1, 3), layer, None)


def test_sums_of_more_than_32_bits_are_refused() -> None:
    weight, bias = torch.full((1, 1, 1, 1), 1e-6), torch.full((1,), 1e6)
    sites = Sites(affine_of_range(-1.0, 1.0), weight_site(weight), affine_of_range(-1.0, 1.0))
    with pytest.raises(ValueError, match="32 bits"):
        prepare(weight, bias, sites)
    asymmetric = replace(sites, weight=affine_of_range(-0.5, 1.0))
    with pytest.raises(ValueError, match="Z = 0"):
        prepare(weight, bias, asymmetric)


@triton_kernel
def test_it_compiles_for_hopper_and_multiplies_integers_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    import triton
    from triton.backends.compiler import GPUTarget

    function = load_kernel("kernel_for_hopper")._convolution
    constants = {"H": 8, "W": 8, "C": 64, "OC": 64, "OH": 8, "OW": 8, "R": 3, "S": 3, "STRIDE": 1, "PADDING": 1}
    constants |= {"HAS_RESIDUAL": True, "ROWS": 128, "COLUMNS": 64, "DEPTH": 64}
    kinds = dict.fromkeys(function.arg_names, "fp32") | dict.fromkeys(constants, "constexpr")
    kinds |= dict.fromkeys(("x", "weight", "residual", "y"), "*i8") | {"bias": "*i32", "factor": "*fp32"}
    kinds |= dict.fromkeys(("num_pixels", "residual_zero", "zero"), "i32")
    aligned = [name for name in function.arg_names if kinds[name].startswith("*")]
    place = function.arg_names.index
    source = triton.compiler.ASTSource(
        function,
        kinds,
        {(place(name),): value for name, value in constants.items()},
        {(place(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    for stages in (1, 3):
        target = GPUTarget("cuda", 90, 32)
        made = triton.compile(source, target=target, options={"num_warps": 4, "num_stages": stages})
        assert ".s32.s8.s8" in made.asm["ptx"]
        assert made.metadata.shared < 100_000


def test_the_layers_are_those_of_resnet44() -> None:
    model, found = resnet44(num_classes=10), list[tuple[int, ...]]()

    def note(module: nn.Module, arguments: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        shape = (module.in_channels, module.out_channels, arguments[0].shape[-1], module.kernel_size[0])
        found.append((*shape, module.stride[0], output.shape[-1]))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    model(torch.zeros(1, 3, 32, 32))
    ours = [
        (layer.channels, layer.outputs, layer.size, layer.window, layer.stride, layer.output_size)
        for layer in layers.resnet44()
        for _ in range(layer.count)
    ]
    assert sorted(ours) == sorted(found[1:])
    assert sum(layer.count for layer in layers.resnet44() if layer.residual) == len(model.blocks)


def test_a_floor_is_the_larger_of_moving_and_multiplying() -> None:
    layer = layers.Layer("any", batch=2, channels=4, outputs=8, size=10, residual=True)
    assert layer.macs == 2 * 10 * 10 * 8 * 9 * 4
    assert layer.num_bytes(2) == 2 * (2 * 100 * 4 + 8 * 9 * 4 + 2 * 2 * 100 * 8)
    assert layers.Card(bandwidth=1.0, int8=1e9, bf16=1e9).floor_seconds(layer, "int8") == layer.num_bytes(1)
    assert layers.Card(bandwidth=1e9, int8=2.0, bf16=1.0).floor_seconds(layer, "bf16") == 2 * layer.macs


def measured(network: str, count: int, int8: float, bf16: float, right: bool = True) -> dict[str, Any]:
    times = {"int8_graph": int8, "bf16_best_graph": bf16, "int8_floor": 0.0, "bf16_floor": 0.0}
    return {"layer": "one", "network": network, "count": count, "right": right} | times


def test_the_verdict_counts_a_layer_as_often_as_resnet44_has_it() -> None:
    fast, slow = measured("ResNet-44", 7, 1.0, 1.5), measured("ResNet-44", 1, 1.0, 0.1)
    assert table.verdict([fast, slow]).startswith("build the engine: yes (1.32 ×")
    assert table.verdict([fast, fast | {"bf16_best_graph": 1.0}]).startswith("build the engine: no (1.25 ×")
    assert "yes" in table.verdict([fast, measured("ResNet-50", 9, 9.0, 1.0)])
    assert "no verdict" in table.verdict([measured("ResNet-50", 1, 1.0, 9.0)])
    assert "wrong at one" in table.verdict([fast, slow | {"right": False}])
