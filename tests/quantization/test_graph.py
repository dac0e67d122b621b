"""The graph computes what the model does, and its sites stand where tensors are put into integers."""

import copy
import functools
import gc
import pickle
import weakref
from collections import Counter, OrderedDict, UserDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conformance.networks import NETWORKS, ViT, experienced, images
from infer2train.batches import call_model, map_tensors, take_rows, tensors_of
from infer2train.oracle.quantization.fold import fold_plan, folded_tensors
from infer2train.oracle.quantization.graph import GraphError, WeightGraph
from infer2train.oracle.snapshot import parameters_and_buffers

every_network = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def exported(name: str) -> tuple[WeightGraph, nn.Module, tuple[Tensor, ...], Any]:
    """The graph, the folded skeleton, its weights and inputs of another number of rows than the example's."""
    build, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model = experienced(build(), inputs())
    skeleton, pairs = fold_plan(model)
    skeleton.load_state_dict(folded_tensors(pairs, model.state_dict()))
    graph = WeightGraph(skeleton, inputs(4))
    return graph, skeleton, tuple(t.clone() for t in graph.tensors(parameters_and_buffers(skeleton))), inputs(7)


def graph_of(model: nn.Module, example: Any) -> tuple[WeightGraph, tuple[Tensor, ...]]:
    graph = WeightGraph(model.eval(), example)
    return graph, tuple(t.clone() for t in graph.tensors(parameters_and_buffers(model)))


def site(graph: WeightGraph, name: str) -> int:
    return [s.name for s in graph.sites].index(name)


def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return tensors_of(call_model(model, inputs))


def assert_near(got: list[Tensor], expected: list[Tensor]) -> None:
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-5, atol=1e-5)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@every_network
def test_without_acts_it_computes_what_the_folded_model_does(name: str) -> None:
    graph, skeleton, tensors, inputs = exported(name)
    assert graph.takes_any_rows
    for batch in (inputs, take_rows(inputs, 1)):
        assert_near(tensors_of(graph.run(tensors, batch)), outputs_of(skeleton, batch))


@every_network
def test_sites_are_keyed_by_the_names_of_weights(name: str) -> None:
    graph, skeleton, _, _ = exported(name)
    names = [s.name for s in graph.sites]
    assert len(set(names)) == len(names)
    for s in graph.sites:
        weight, _, role = s.name.partition("/")
        assert weight in graph.names
        assert weight in skeleton.state_dict()
        assert s.kind == (role.partition(".")[0] or "weight")
        assert (s.batch_dim is None) == (s.kind == "weight")


@every_network
def test_every_convolution_and_linear_layer_is_listed(name: str) -> None:
    graph, skeleton, _, _ = exported(name)
    named = {id(parameter): parameter_name for parameter_name, parameter in skeleton.named_parameters()}
    weights = [m.weight for m in skeleton.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights += [m.in_proj_weight for m in skeleton.modules() if isinstance(m, nn.MultiheadAttention)]
    assert {layer.weight for layer in graph.layers} == {named[id(weight)] for weight in weights}
    for layer in graph.layers:
        assert layer.sites is not None
        read, weight = (graph.sites[number] for number in layer.sites)
        assert (read.kind, weight.name) == ("input", layer.weight)
        owned = dict(skeleton.get_submodule(layer.name).named_parameters(recurse=False)).values()
        assert any(named[id(parameter)] == layer.weight for parameter in owned), (layer.name, layer.weight)


@every_network
def test_what_is_done_to_a_weight_is_done_for_its_layers(name: str) -> None:
    """Against the model with that weight changed; the tied embedding, whose lookup stays as it is, apart."""
    graph, skeleton, tensors, inputs = exported(name)
    inputs = take_rows(inputs, 2)
    for number, s in enumerate(graph.sites):
        if s.kind != "weight" or s.name == "embedding.weight":
            continue
        changed = copy.deepcopy(skeleton)
        changed.get_parameter(s.name).mul_(1.5)
        got = tensors_of(graph.run(tensors, inputs, {number: lambda w: w * 1.5}))
        assert_near(got, outputs_of(changed, inputs))
        assert not all(map(torch.equal, got, outputs_of(skeleton, inputs)))


@every_network
def test_every_site_is_reached_once_and_nothing_of_it_stays(name: str) -> None:
    graph, _, tensors, inputs = exported(name)
    reached: Counter[str] = Counter()

    def count(x: Tensor, site_name: str) -> Tensor:
        reached[site_name] += 1
        return x

    acts = {number: functools.partial(count, site_name=s.name) for number, s in enumerate(graph.sites)}
    counted = tensors_of(graph.run(tensors, inputs, acts))
    assert reached == Counter(s.name for s in graph.sites)
    assert all(map(torch.equal, counted, tensors_of(graph.run(tensors, inputs))))
    assert reached.total() == len(graph.sites)


@every_network
def test_running_changes_neither_weights_nor_inputs(name: str) -> None:
    graph, _, tensors, inputs = exported(name)
    kept = [t.clone() for t in (*tensors, *tensors_of(inputs))]
    first = map_tensors(torch.clone, graph.run(tensors, inputs))
    assert all(map(torch.equal, kept, (*tensors, *tensors_of(inputs))))
    assert all(map(torch.equal, tensors_of(first), tensors_of(graph.run(tensors, inputs))))


@every_network
def test_marks_are_at_the_sites(name: str) -> None:
    graph, _, tensors, inputs = exported(name)
    ones = tuple(torch.ones(1) for _ in graph.sites)
    marked = graph.marked()
    assert all(map(torch.equal, marked(tensors, ones, inputs), tensors_of(graph.run(tensors, inputs))))
    number = next(number for number, s in enumerate(graph.sites) if s.kind == "weight")
    halved = (*ones[:number], torch.tensor([0.5]), *ones[number + 1 :])
    expected = tensors_of(graph.run(tensors, inputs, {number: lambda w: w * 0.5}))
    assert all(map(torch.equal, marked(tensors, halved, inputs), expected))


@every_network
def test_logits_have_no_site(name: str) -> None:
    graph, _, tensors, inputs = exported(name)
    linear = {layer.weight for layer in graph.layers if len(tensors[graph.names.index(layer.weight or "")].shape) == 2}
    assert linear
    assert not any(s.kind == "output" and s.name.partition("/")[0] in linear for s in graph.sites)
    rounded = graph.run(tensors, inputs, {n: torch.round for n, s in enumerate(graph.sites) if s.kind != "weight"})
    logits = tensors_of(rounded)[0]
    assert bool((logits != logits.round()).any())


def test_a_convolution_that_gives_the_logits_has_no_site_either() -> None:
    graph, _ = graph_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 8)), images(4)[..., :10, :10])
    assert [s.name for s in graph.sites] == ["0.weight/input", "0.weight", "2.weight/input", "2.weight"]


def test_a_shared_module_called_twice_has_one_weight_site_and_two_input_sites() -> None:
    graph, _, _, _ = exported("shared")
    names = [s.name for s in graph.sites if s.name.startswith("twice.") and s.kind != "output"]
    assert names == ["twice.weight/input", "twice.weight", "twice.weight/input.1"]
    first, second = (layer.sites for layer in graph.layers if layer.name == "twice")
    assert first is not None
    assert second is not None
    assert first[1] == second[1] == site(graph, "twice.weight")
    assert (first[0], second[0]) == (site(graph, "twice.weight/input"), site(graph, "twice.weight/input.1"))


def test_two_layers_that_read_the_same_tensor_share_its_site() -> None:
    graph, _, _, _ = exported("shared")
    one, two = ([la.sites for la in graph.layers if la.name == name][0] for name in ("one", "two"))  # noqa: RUF015
    assert one is not None
    assert two is not None
    assert one[0] == two[0]
    assert "two.weight/input" not in {s.name for s in graph.sites}


def test_the_tied_embeddings_lookup_is_not_rounded_and_its_linear_layer_is() -> None:
    graph, _, tensors, inputs = exported("text")
    plain = graph.run(tensors, inputs)
    doubled = graph.run(tensors, inputs, {site(graph, "embedding.weight"): lambda w: 2 * w})
    assert torch.equal(doubled["logits"], plain["logits"])
    torch.testing.assert_close(doubled["tokens"], 2 * plain["tokens"])


def test_a_layer_with_a_tied_weight_is_listed_by_its_own_name() -> None:
    graph, _, _, _ = exported("text")
    assert "language_head" in {layer.name for layer in graph.layers}


class Residual(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.classifier = nn.Linear(4, 5)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=self.in_place)
        y = self.conv(x)
        if self.in_place:
            y += x
            return self.classifier(y.relu_().mean((2, 3)))  # type: ignore[no-any-return]
        return self.classifier((y + x).relu().mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_skip_connection_reads_the_quantised_tensor(in_place: bool) -> None:
    model = Residual(in_place)
    graph, tensors = graph_of(model, images(4))
    assert [s.name for s in graph.sites if s.kind != "weight"] == [
        *("stem.weight/input", "conv.weight/input", "classifier.weight/input", "conv.weight/output")
    ]
    x, act = images(5), lambda t: (2 * t).round() / 2
    got = graph.run(tensors, x, {site(graph, "conv.weight/input"): act})
    with torch.no_grad():
        read = act(model.stem(x).relu())
        expected = model.classifier((model.conv(read) + read).relu().mean((2, 3)))
        only_conv = model.classifier((model.conv(read) + model.stem(x).relu()).relu().mean((2, 3)))
    assert_near([got], [expected])
    assert not torch.allclose(got, only_conv, atol=1e-3)


def test_operations_in_place_make_the_same_graph_as_those_that_copy() -> None:
    (a, weights), (b, others) = (graph_of(Residual(in_place), images(4)) for in_place in (False, True))
    assert (a.sites, a.layers, a.names) == (b.sites, b.layers, b.names)
    acts: dict[int, Callable[[Tensor], Tensor]] = {number: lambda x: x.round() for number in range(len(a.sites))}
    assert_near([a.run(weights, images(), acts)], [b.run(others, images(), acts)])


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)  # type: ignore[no-any-return]


def test_building_leaves_a_buffer_alone_that_forward_writes_to() -> None:
    model = Counting().eval()
    WeightGraph(model, drawn(2, 4))
    assert float(model.calls) == 0  # type: ignore[arg-type]


def test_running_leaves_a_buffer_alone_that_forward_writes_to() -> None:
    graph, tensors = graph_of(Counting(), drawn(2, 4))
    before = [t.clone() for t in tensors]
    graph.run(tensors, drawn(2, 4))
    assert all(map(torch.equal, before, tensors))


@pytest.mark.parametrize(
    ("activation", "has_site", "has_one_before_any_but_relu"),
    [
        (nn.ReLU(), False, False),
        (nn.SiLU(), False, True),
        (nn.Hardswish(), False, True),
        (nn.Sigmoid(), False, True),
        (nn.ReLU6(), True, True),
        (nn.MaxPool2d(2), True, True),
    ],
)
def test_what_a_convolution_gives_has_a_site_unless_it_reaches_one_through_an_activation_alone(
    activation: nn.Module, has_site: bool, has_one_before_any_but_relu: bool
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Conv2d(4, 2, 3)).eval()
    for fuses, wanted in ((True, has_site), (False, has_one_before_any_but_relu)):
        graph = WeightGraph(model, images(4), fuses=fuses)
        assert ("0.weight/output" in {s.name for s in graph.sites}) == wanted


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.Hardswish()])
def test_the_site_of_what_a_convolution_gives_stands_behind_its_activation(activation: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 7 * 7, 2))
    graph, tensors = graph_of(model, images(4))
    seen: list[Tensor] = []
    graph.run(tensors, images(), {site(graph, "0.weight/output"): lambda x: seen.append(x.clone()) or x})
    with torch.no_grad():
        assert_near(seen, [model[:2](images())])


def test_layers_that_stay_real_are_listed_without_sites() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 3, 2))
    graph, tensors = graph_of(model, images(4))
    assert graph.sites == ()
    assert [(layer.name, layer.weight, layer.sites) for layer in graph.layers] == [("0", "0.weight", None)]
    assert_near([graph.run(tensors, images())], outputs_of(model, images()))


def test_an_act_that_fails_leaves_no_act_behind() -> None:
    graph, tensors = graph_of(nn.Linear(4, 3), drawn(2, 4))

    def fail(x: Tensor) -> Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        graph.run(tensors, drawn(2, 4), {0: torch.zeros_like, 1: fail})
    assert_near([graph.run(tensors, drawn(2, 4))], [F.linear(drawn(2, 4), *tensors)])


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict])
def test_dictionaries_of_any_kind_and_order_are_accepted(kind: Any) -> None:
    graph, skeleton, tensors, inputs = exported("text")
    turned = kind(reversed(list(inputs.items())))
    assert next(iter(turned)) == "attention_mask"
    outputs = graph.run(tensors, turned)
    assert isinstance(outputs, dict)
    assert list(outputs) == ["logits", "tokens"]
    assert_near(tensors_of(outputs), outputs_of(skeleton, inputs))


def test_a_list_is_accepted_where_the_example_was_a_tuple() -> None:
    graph, tensors = graph_of(nn.Bilinear(3, 4, 2), (drawn(2, 3), drawn(2, 4)))
    pair = [drawn(5, 3), drawn(5, 4)]
    assert torch.equal(graph.run(tensors, pair), graph.run(tensors, tuple(pair)))


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda t: {"input_ids": t["input_ids"]}, r"got input_ids: \[n, 6\] int64 instead"),
        (lambda t: {"input_ids": t["input_ids"], "mask": t["attention_mask"]}, r"got .*, mask: \[n, 6\] int64 instead"),
        (lambda t: t | {"labels": t["input_ids"]}, r"got .*, labels: \[n, 6\] int64 instead"),
        (lambda t: t["input_ids"], r"got \[n, 6\] int64 instead"),
        (lambda t: tuple(t.values()), r"got \[n, 6\] int64 and \[n, 6\] int64 instead"),
        (lambda t: map_tensors(lambda x: x[:, :5], t), r"got input_ids: \[n, 5\] int64"),
        (lambda t: t | {"attention_mask": t["attention_mask"].float()}, r"attention_mask: \[n, 6\] float32 instead"),
    ],
)
def test_inputs_that_look_otherwise_are_refused(change: Callable[[Any], Any], got: str) -> None:
    graph, _, tensors, inputs = exported("text")
    with pytest.raises(
        ValueError, match=f"inputs must look as .*{got}.*attention_mask: .*; pad all batches to one size"
    ):
        graph.run(tensors, change(inputs))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "text"])
def test_another_image_size_is_refused(name: str) -> None:
    graph, _, tensors, inputs = exported(name)
    with pytest.raises(
        ValueError, match=r"\[n, 3, 20, 20\] \w+ instead of \[n, 3, 16, 16\] \w+; pad all batches to one size"
    ):
        graph.run(tensors, F.interpolate(inputs.float(), (20, 20)).to(inputs.dtype))


class DependsOnData(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x[:, :3]


def test_control_flow_that_depends_on_data_is_an_error_that_names_the_class_and_a_remedy() -> None:
    message = r"follow DependsOnData\.forward: got \w+: .*; use oracle='torch:fp32' .*, or take control flow .* out"
    with pytest.raises(GraphError, match=message):
        WeightGraph(DependsOnData(4, 3).eval(), drawn(2, 4))


def test_an_example_of_one_row_is_refused() -> None:
    with pytest.raises(GraphError, match="at least two rows: got 1; pass a larger batch"):
        WeightGraph(nn.Linear(4, 3).eval(), drawn(1, 4))


class Unrolled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([super(Unrolled, self).forward(row) for row in x])


def test_a_model_that_counts_its_rows_takes_only_as_many() -> None:
    model = Unrolled(4, 3)
    graph, tensors = graph_of(model, drawn(3, 4))
    assert not graph.takes_any_rows
    assert_near([graph.run(tensors, drawn(3, 4))], outputs_of(model, drawn(3, 4)))


def test_building_leaves_model_modes_gradients_and_random_state_alone() -> None:
    model = experienced(Residual(in_place=True), images())
    model.eval()
    model.conv.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    example = {"x": images(4)}
    flags = [module.training for module in model.modules()]
    kept = [t.clone() for t in (*model.state_dict().values(), *example.values())]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.rand(1)
    state = torch.get_rng_state()
    WeightGraph(model, example)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    assert all(p.requires_grad and p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())
    assert all(map(torch.equal, kept, (*model.state_dict().values(), *example.values())))
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_building_leaves_the_random_state_alone_even_where_forward_draws() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x))

    model, example = Noisy(4, 3).eval(), drawn(2, 4)
    state = torch.get_rng_state()
    WeightGraph(model, example)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_is_not_kept_and_its_later_weights_do_not_matter() -> None:
    model = experienced(ViT(), images())
    graph, tensors = graph_of(model, images(4))
    expected = outputs_of(model, images())
    for parameter in model.parameters():
        parameter.detach().zero_()
    assert_near([graph.run(tensors, images())], expected)
    kept = weakref.ref(model)
    del model, parameter
    gc.collect()
    assert kept() is None


def test_buffers_outside_the_state_are_tensors_too() -> None:
    graph, skeleton, _, inputs = exported("resnet")
    assert not {"mean", "std"} & skeleton.state_dict().keys()
    assert set(graph.names) == skeleton.state_dict().keys() | {"mean", "std"}
    model = copy.deepcopy(skeleton)
    model.mean.add_(0.3)
    moved = graph.tensors(parameters_and_buffers(model))
    assert_near(tensors_of(graph.run(moved, inputs)), outputs_of(model, inputs))


@every_network
def test_outputs_are_put_back_into_their_structure(name: str) -> None:
    graph, _, tensors, inputs = exported(name)
    outputs = graph.run(tensors, inputs)
    again = graph.outputs_from([2 * t for t in tensors_of(outputs)])
    assert type(again) is type(outputs)
    assert all(torch.equal(a, 2 * b) for a, b in zip(tensors_of(again), tensors_of(outputs), strict=True))


def scaling(graph: WeightGraph, factor: float) -> dict[int, Callable[[Tensor], Tensor]]:
    return {number: lambda x: factor * x for number in range(len(graph.sites))}


@every_network
def test_a_pickled_graph_is_the_same_graph(name: str) -> None:
    graph, _, tensors, inputs = exported(name)
    other = pickle.loads(pickle.dumps(graph))
    assert (other.names, other.sites, other.layers) == (graph.names, graph.sites, graph.layers)
    assert (other.shapes, other.takes_any_rows) == (graph.shapes, graph.takes_any_rows)
    for acts in ({}, scaling(graph, 1.1)):
        got, wanted = other.run(tensors, inputs, acts), graph.run(tensors, inputs, acts)
        assert type(got) is type(wanted)
        assert all(map(torch.equal, tensors_of(got), tensors_of(wanted)))
    assert all(map(torch.equal, tensors_of(other.outputs_from(tensors_of(wanted))), tensors_of(wanted)))


@pytest.mark.parametrize("name", ["vgg", "text"])
def test_threads_may_run_a_graph_at_the_same_time_each_with_acts_of_its_own(name: str) -> None:
    graph, _, tensors, inputs = exported(name)
    factors = (1.0, 1.1, 1.2, 1.3)
    wanted = [tensors_of(graph.run(tensors, inputs, scaling(graph, factor))) for factor in factors]
    assert not torch.equal(wanted[0][0], wanted[1][0])

    def agrees(turn: int) -> bool:
        got = graph.run(tensors, inputs, scaling(graph, factors[turn % 4]))
        return all(map(torch.equal, tensors_of(got), wanted[turn % 4]))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(agrees, range(80)))


class InSomePrecision(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = super().forward(x)
        return y.float() + F.linear(x, self.weight)


def test_a_part_of_forward_in_an_autocast_of_its_own_runs_in_it_pickled_or_not() -> None:
    model = InSomePrecision(4, 3).eval()
    graph, tensors = graph_of(model, drawn(2, 4))
    for each in (graph, pickle.loads(pickle.dumps(graph))):
        assert torch.equal(each.run(tensors, drawn(5, 4)), outputs_of(model, drawn(5, 4))[0])
    plain = F.linear(drawn(5, 4), *tensors) + F.linear(drawn(5, 4), tensors[0])
    assert not torch.equal(graph.run(tensors, drawn(5, 4)), plain)
    ones = tuple(torch.ones(1) for _ in graph.sites)
    again = graph.exported().module(check_guards=False)
    assert torch.equal(again(tensors, ones, drawn(4, 4))[0], graph.run(tensors, drawn(4, 4)))
