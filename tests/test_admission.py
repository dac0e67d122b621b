"""What `mine()` refuses, with the real thing each time, and what it takes although it looks unusual."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils.data import DataLoader, Dataset, IterableDataset

from infer2train import mine
from mined_runs import Jittered, draws, equal, jittered, network, sgd, state_of
from rank_processes import in_processes

# Data sets and loaders


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(Jittered()[i] for i in range(24))


class OwnGenerator(Jittered):
    """As the documentation of NumPy recommends, and as no seed of ours reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return image + self.generator.normal(), label


class OwnTorchGenerator(Jittered):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return image + torch.rand(1, generator=self.generator), label


class Counts(Jittered):
    reads = 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        return torch.zeros(1), self.reads


class Unnumbered(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, name: str) -> float:
        return {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}[name]


class Batched(Dataset[Any]):
    """What torch fetches by lists of ids alone."""

    def __len__(self) -> int:
        return 24

    def __getitems__(self, ids: list[int]) -> list[Any]:
        return [Jittered()[i] for i in ids]


class Endless(Dataset[Any]):
    """Of no length: a batch sampler says what is read."""

    def __getitem__(self, index: int) -> Any:
        return Jittered()[index]


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (lambda: DataLoader(Stream(), batch_size=4), "read once: got an IterableDataset without transform="),
        (lambda: DataLoader(Jittered(), batch_size=None), "got batch_size=None; pass batch_size or batch_sampler"),
        (lambda: DataLoader(OwnGenerator(), batch_size=4), "private generator .*Draw from `random`, np.random or"),
        (lambda: DataLoader(OwnTorchGenerator(), batch_size=4), "private generator .*Draw from `random`, np.random"),
        (lambda: DataLoader(Batched(), batch_size=4), "got Batched without __getitem__; give it __getitem__"),
        (lambda: DataLoader(Endless(), batch_sampler=[[0, 1], [2]]), "got Endless without __len__; give it __len__"),
        (lambda: DataLoader(Counts(), batch_size=4), "got another item.* a counter or a cache"),
    ],
)
def test_data_whose_samples_cannot_be_read_again_is_refused(base: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        mine(base(), network())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 25, "drop_last": True}, "at least one batch: got none from 24 samples at batch_size=25; lower"),
        ({"batch_sampler": [["a", "b"]]}, r"integer sample ids: got \['a', 'b'\]; number the samples"),
        ({"batch_sampler": [[(0, 1), (2, 3)]]}, "integer sample ids"),
        ({"batch_sampler": [[0.5, 1.5]]}, "integer sample ids"),
    ],
)
def test_an_order_without_sample_ids_is_refused_when_the_epoch_begins(options: dict[str, Any], said: str) -> None:
    loader = mine(DataLoader(Jittered(), **options), network(), gamma=2)
    with pytest.raises(ValueError, match=said):
        next(iter(loader))


def test_what_makes_views_itself_needs_no_transform() -> None:
    from infer2train import Replay

    source = Replay(Jittered(), torch.utils.data.default_collate)
    with pytest.raises(ValueError, match="transform must be left out where the data set makes views itself"):
        mine(DataLoader(source, batch_size=4), network(), transform=torch.neg)  # type: ignore[arg-type]


# Models


def mine_fsdp1() -> None:
    mine(jittered(), FullyShardedDataParallel(network(), device_id=torch.device("cpu")))


def mine_in_tensor_parallel() -> None:
    mesh = init_device_mesh("cpu", (1,))
    mine(jittered(), parallelize_module(network(), mesh, {"5": ColwiseParallel()}))


def test_a_model_in_tensor_parallel_is_refused(tmp_path: Path) -> None:
    (said,) = in_processes(1, mine_in_tensor_parallel, tmp_path)
    assert "must train on batches of their own: got DTensor parameters that fully_shard has not made" in said


def shard_after_mine() -> None:
    model = network()
    loader = mine(jittered(), model)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    next(iter(loader))


def test_a_model_that_is_sharded_after_mine_is_refused(tmp_path: Path) -> None:
    (said,) = in_processes(1, shard_after_mine, tmp_path)
    assert "must be sharded before its weights are copied: got fully_shard() after mine(); call it before, and" in said


def test_a_model_of_flattened_parameters_is_refused(tmp_path: Path) -> None:
    (said,) = in_processes(1, mine_fsdp1, tmp_path)
    assert said == (
        "ValueError: mine() needs parameters by their names: got a FullyShardedDataParallel model, which holds them "
        "flattened; use fully_shard(model), or DistributedDataParallel"
    )


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_a_launcher_of_several_processes_is_refused_before_they_have_joined(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    loader = mine(jittered(), network(), gamma=2)
    monkeypatch.setenv(name, "2")
    with pytest.raises(ValueError, match=rf"got a world size of 2 \({name}\) and no process group; call torch"):
        mine(jittered(), network())
    with pytest.raises(ValueError, match="must have joined before mine"):
        next(iter(loader))


def late_group() -> None:
    """A model that is mined before the processes join."""
    next(iter(LATE[0]))


LATE: list[Any] = []


def test_processes_that_join_after_mine_are_refused_at_the_first_draw(tmp_path: Path) -> None:
    LATE[:] = [mine(jittered(), network(), gamma=2)]
    assert all(
        "before mine() is called: got 1 then and 2 now" in said for said in in_processes(2, late_group, tmp_path)
    )


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Flatten(), r"a model with parameters, .*: got Flatten with none; pass the module that you train"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), r"got lazy ones without a shape \(1.weight, 1.bias\); run the"),
    ],
)
def test_a_model_without_weights_is_refused(model: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mine(jittered(), model)


def test_data_parallel_is_mined_as_the_model_inside() -> None:
    assert equal(trained(nn.DataParallel), trained(lambda model: model))


def trained(wrap: Callable[[nn.Module], nn.Module]) -> dict[str, Tensor]:
    """The weights after an epoch of the model behind a wrapper."""
    model = network(norm=True)
    wrapped, optimizer = wrap(model), sgd(model)
    loader = mine(jittered(), wrapped, optimizer, gamma=3, update_every=2)
    assert [draw.version for draw in draws(loader, wrapped, optimizer)] == [0, 0, 2, 2, 4, 4]
    for record in loader.state_dict()["records"].values():
        assert record["tensors"].keys() == model.state_dict().keys(), "a run goes on without its wrapper too"
    return state_of(model)


def train_ddp() -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in trained(nn.parallel.DistributedDataParallel).items()}


def test_ddp_in_one_process_is_mined_as_the_model_inside(tmp_path: Path) -> None:
    (said,) = in_processes(1, train_ddp, tmp_path)
    assert isinstance(said, dict), said
    plain = trained(lambda model: model)
    assert said.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(torch.from_numpy(said[name]), tensor)


def test_a_compiled_model_is_mined_as_the_model_inside() -> None:
    compiled = trained(lambda model: torch.compile(model, backend="eager"))  # type: ignore[arg-type, return-value]
    assert equal(compiled, trained(lambda model: model))
