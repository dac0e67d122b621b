"""The torch engine against the suite, and the suite against engines that are broken on purpose."""

import copy
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conformance.engine import check_engine
from conformance.networks import NETWORKS, NUM_CLASSES, VGG, experienced, images, pixels, resnet, tokens
from infer2train.batches import call_model
from infer2train.oracle.engine import Engine, Prepared
from infer2train.oracle.snapshot import Record, check_architecture, snapshot
from infer2train.oracle.torch_engine import TorchEngine


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_conformance(name: str, precision: Any) -> None:
    build, inputs = NETWORKS[name]
    torch.manual_seed(0)
    check_engine(lambda model: TorchEngine(model, precision=precision), build(), inputs())


def test_conformance_unfolded() -> None:
    check_engine(lambda model: TorchEngine(model, fold=False), resnet(), pixels())


class Plain(Engine):
    """A slow, correct engine, for subclasses to break."""

    name = "plain:fp32"

    def __init__(self, model: nn.Module) -> None:
        self.network = copy.deepcopy(model).eval()

    def __getstate__(self) -> dict[str, Any]:
        network = copy.deepcopy(self.network)
        for tensor in network.state_dict().values():
            tensor.zero_()
        return {**self.__dict__, "network": network, "version": None}

    def prepared(self, record: Record) -> Prepared:
        check_architecture(self.network.state_dict(), record)
        for name, tensor in record.tensors.items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(name)
        return Prepared(record.version, copy.deepcopy(record))

    def use(self, prepared: Prepared) -> None:
        self.load(prepared.program)

    def load(self, record: Record) -> None:
        self.network.load_state_dict(dict(record.tensors))
        self.version = record.version

    def outputs(self, inputs: Any) -> Any:
        if self.version is None:
            raise RuntimeError("no record")
        with torch.no_grad():
            return call_model(self.network, inputs)

    def precisions(self) -> dict[str, str]:
        return {} if self.version is None else {"classifier": "fp32"}


class TrainMode(Plain):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        for module in self.network.modules():
            module.train(isinstance(module, nn.modules.batchnorm._BatchNorm))


class Stale(Plain):
    def load(self, record: Record) -> None:
        if self.version is None:
            super().load(record)
        self.version = record.version


class Permuted(Plain):
    def outputs(self, inputs: Any) -> Any:
        return super().outputs(inputs).flip(0)


class SharesStorage(Plain):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        for own, theirs in zip(self.network.parameters(), model.parameters(), strict=True):
            own.data = theirs.data


class IsTheModel(Plain):
    def __init__(self, model: nn.Module) -> None:
        self.network = model

    def outputs(self, inputs: Any) -> Any:
        self.network.eval()
        return super().outputs(inputs)


class KeepsTheRecord(Plain):
    def prepared(self, record: Record) -> Prepared:
        return Prepared(super().prepared(record).version, record)

    def load(self, record: Record) -> None:
        for name, parameter in self.network.named_parameters():
            parameter.data = record.tensors[name]
        buffers = {n: t for n, t in record.tensors.items() if n in dict(self.network.named_buffers())}
        self.network.load_state_dict(buffers, strict=False)
        self.version = record.version


class WritesBeforeChecking(Plain):
    def prepared(self, record: Record) -> Prepared:
        if record.tensors.keys() == self.network.state_dict().keys():
            for name, tensor in self.network.state_dict().items():
                if record.tensors[name].shape == tensor.shape:
                    tensor.copy_(record.tensors[name])
        return super().prepared(record)


class TakesNaN(Plain):
    def prepared(self, record: Record) -> Prepared:
        check_architecture(self.network.state_dict(), record)
        return Prepared(record.version, copy.deepcopy(record))


class Draws(Plain):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.generator = torch.Generator().manual_seed(0)

    def outputs(self, inputs: Any) -> Any:
        return super().outputs(inputs) + 1e-6 * torch.randn(1, generator=self.generator)


class MovesStatistics(Plain):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.model = model

    def outputs(self, inputs: Any) -> Any:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            call_model(self.model, inputs)
        return super().outputs(inputs)


class DropsGradients(MovesStatistics):
    def outputs(self, inputs: Any) -> Any:
        self.model.zero_grad()
        return Plain.outputs(self, inputs)


class SwitchesMode(MovesStatistics):
    def outputs(self, inputs: Any) -> Any:
        self.model.eval()
        return Plain.outputs(self, inputs)


class Reseeds(Plain):
    def outputs(self, inputs: Any) -> Any:
        torch.manual_seed(0)
        return super().outputs(inputs)


class ReturnsHalf(Plain):
    def outputs(self, inputs: Any) -> Any:
        return super().outputs(inputs).half()


class NeedsNoRecord(Plain):
    def outputs(self, inputs: Any) -> Any:
        return self.network(inputs).detach()


class ForgetsItsVersion(Plain):
    def load(self, record: Record) -> None:
        super().load(record)
        self.version = max(self.version or 0, 100)


class CentresItsBatch(Plain):
    def outputs(self, inputs: Any) -> Any:
        outputs = super().outputs(inputs)
        return outputs if len(outputs) == 12 else outputs - outputs.mean(0)


class UsesWhatItPrepares(Plain):
    def prepared(self, record: Record) -> Prepared:
        prepared, version = super().prepared(record), self.version
        self.load(record)
        self.version = version
        return prepared


class NamesWhatItPrepares(Plain):
    def prepared(self, record: Record) -> Prepared:
        prepared = super().prepared(record)
        self.version = record.version
        return prepared


class PreparesNoCopy(Plain):
    def prepared(self, record: Record) -> Prepared:
        return Prepared(super().prepared(record).version, record)


class KeepsOnlyTheLast(Plain):
    def prepared(self, record: Record) -> Prepared:
        self.last = super().prepared(record)
        return self.last

    def use(self, prepared: Prepared) -> None:
        super().use(Prepared(prepared.version, Record(prepared.version, self.last.program.tensors)))


class TriesWhatItPrepares(Plain):
    def prepared(self, record: Record) -> Prepared:
        prepared, version, before = super().prepared(record), self.version, snapshot(self.network, 0)
        self.load(record)
        time.sleep(0.05)
        self.load(before)
        self.version = version
        return prepared


class TravelsWithItsVersion(Plain):
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "version": self.version}


class TakesItsWeightsAlong(Plain):
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "version": None}


class WakesInTrainMode(Plain):
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.network.train()


class WakesInAnotherPrecision(Plain):
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.slept = True

    def precisions(self) -> dict[str, str]:
        return {name: "fp16" if "slept" in self.__dict__ else ran for name, ran in super().precisions().items()}


BROKEN = {
    TrainMode: "the model's outputs in evaluation mode",
    Stale: "the new weights' outputs",
    Permuted: "the model's outputs in evaluation mode",
    SharesStorage: "the engine moved without a record",
    IsTheModel: "nor switch the model",
    KeepsTheRecord: "must copy from a record",
    WritesBeforeChecking: "the old weights must stay",
    TakesNaN: "must be refused with ValueError",
    Draws: "the same inputs must give the same outputs",
    MovesStatistics: "must not move weights or batch-norm statistics",
    DropsGradients: "nor drop them",
    SwitchesMode: "nor switch the model",
    Reseeds: "must not move torch's random state",
    ReturnsHalf: "outputs must be float32",
    NeedsNoRecord: "must raise RuntimeError",
    ForgetsItsVersion: "the version in use",
    CentresItsBatch: "alone differ",
    UsesWhatItPrepares: r"the old weights must stay until use\(\)",
    NamesWhatItPrepares: r"the version must stay until use\(\)",
    PreparesNoCopy: "what was prepared before its record changed",
    KeepsOnlyTheLast: "in any order, each gives its own",
    TriesWhatItPrepares: "must not see what a second thread prepares",
    TravelsWithItsVersion: "no version before its first record",
    TakesItsWeightsAlong: "weights do not travel",
    WakesInTrainMode: "unpickled engine must give the same bits",
    WakesInAnotherPrecision: "unpickled engine must run in the same precisions",
}


def test_the_suite_passes_a_correct_engine() -> None:
    check_engine(Plain, VGG(), images())


@pytest.mark.parametrize("engine", BROKEN)
def test_the_suite_sees_what_is_broken(engine: type[Plain]) -> None:
    with pytest.raises(AssertionError, match=BROKEN[engine]):
        check_engine(engine, VGG(), images())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_layer_ran_in_the_precision_asked_for(precision: Any) -> None:
    model = resnet()
    engine = TorchEngine(model, precision=precision)
    engine.refresh(snapshot(model, 0))
    assert engine.precisions() == {}
    engine.outputs(pixels())
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert engine.precisions() == dict.fromkeys(layers, precision)


def test_fp32_stays_fp32_inside_the_trainers_autocast() -> None:
    model = experienced(resnet(), pixels())
    engine = TorchEngine(model)
    engine.refresh(snapshot(model, 0))
    alone = engine.outputs(pixels()).clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(engine.outputs(pixels()), alone)
    assert set(engine.precisions().values()) == {"fp32"}


def test_what_is_kept_in_low_precision() -> None:
    engine = TorchEngine(NETWORKS["text"][0](), precision="bf16")
    kept = {name: parameter.dtype for name, parameter in engine._network.named_parameters()}
    assert kept["hidden.weight"] == kept["classifier.bias"] == torch.bfloat16
    assert kept["embedding.weight"] == torch.float32, "the output layer shares it"
    assert kept["norm.weight"] == kept["attention.in_proj_weight"] == kept["attention.out_proj.weight"] == torch.float32


def test_overflow_of_the_precision_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    engine = TorchEngine(model, precision="fp16")
    engine.refresh(snapshot(model, 0))
    with torch.no_grad():
        model[0].weight.fill_(1e5)
    with pytest.raises(ValueError, match=r"0\.weight once folded and in fp16.*keeps version 0"):
        engine.refresh(snapshot(model, 1))


def test_outputs_may_enter_the_trainers_loss() -> None:
    model = experienced(resnet(), pixels())
    engine = TorchEngine(model)
    engine.refresh(snapshot(model, 0))
    (model(pixels()).softmax(1) * engine.outputs(pixels())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_refresh_allocates_nothing_that_stays() -> None:
    model = experienced(resnet(), pixels())
    engine = TorchEngine(model)
    engine.refresh(snapshot(model, 0))
    before = [tensor.data_ptr() for tensor in engine._network.state_dict().values()]
    engine.refresh(snapshot(experienced(model, pixels(), seed=1), 1))
    assert [tensor.data_ptr() for tensor in engine._network.state_dict().values()] == before


class PaddedEncoder(nn.Module):
    """Attention with a Boolean padding mask, for which PyTorch has nested tensors and a fast path of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.classifier = nn.Linear(16, NUM_CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.encoder(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        return self.classifier(F.relu(x[:, 0]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_conformance_of_a_padded_encoder(precision: Any) -> None:
    check_engine(lambda model: TorchEngine(model, precision=precision), PaddedEncoder(), tokens())


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="fp32, bf16, fp16: got 'int3'"):
        TorchEngine(nn.Linear(2, 2), precision="int3")


def test_a_parameter_that_state_dict_hides_is_refreshed() -> None:
    class Hides(nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {name: tensor for name, tensor in super().state_dict(*args, **kwargs).items() if name != "bias"}

    model = Hides(2, 2)
    engine = TorchEngine(model)
    with torch.no_grad():
        model.bias.add_(7)
    engine.refresh(snapshot(model, 1))
    assert torch.equal(engine.outputs(torch.ones(1, 2)), model(torch.ones(1, 2)).detach())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_weight_that_a_hook_makes(precision: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 3)), torch.randn(8, 6)
    engine = TorchEngine(model, precision=precision)
    engine.refresh(snapshot(model, 0))
    with torch.no_grad():
        torch.testing.assert_close(engine.outputs(x), model.eval()(x), rtol=0.02, atol=0.02)
    assert engine.precisions() == {"0": precision, "2": precision}


class ByLayout(nn.Module):
    """Reads a feature map as it lies in memory."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.convolution, self.linear, self.how = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(72, 4), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        if self.how == "complex":  # of neighbours in a row
            return self.linear(y.view(torch.complex64).abs().mean((2, 3)).repeat(1, 9))
        (n, c, h, w), strides = y.shape, (y[0].numel(), y[0, 0].numel(), y.shape[3], 1, y.shape[3], 1)
        patches = y.relu().as_strided((n, c, h - 2, w - 2, 3, 3), strides)
        return self.linear(patches.mean((2, 3)).flatten(1))


@pytest.mark.parametrize("how", ["complex", "strided"])
def test_a_model_that_reads_its_memory_layout_keeps_it(how: str) -> None:
    torch.manual_seed(0)
    model, x = ByLayout(how), torch.randn(6, 3, 8, 8)
    engine = TorchEngine(model)
    engine.refresh(snapshot(model, 0))
    before = torch.get_rng_state()
    with torch.no_grad():
        torch.testing.assert_close(engine.outputs(x), model.eval()(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_others_stay_channels_last() -> None:
    model = experienced(resnet(), pixels())
    engine = TorchEngine(model)
    engine.refresh(snapshot(model, 0))
    engine.outputs(pixels())
    weights = [m.weight for m in engine._network.modules() if isinstance(m, nn.Conv2d) and m.weight[0, 0].numel() > 1]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
