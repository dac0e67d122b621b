"""Models by name, the user's own among them."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from infer2train.models.build import MODELS, build_model


@pytest.mark.parametrize("name", MODELS)
def test_every_name_builds(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, num_classes=3, in_channels=1, seed=0)
    weights = list(model.parameters())
    assert (weights[0].shape[1], weights[-1].shape) == (1, (3,)), "of the first convolution and the classifier's bias"


def test_weights_are_a_function_of_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first = build_model("resnet8", num_classes=3, in_channels=3, seed=5)
    assert torch.equal(torch.get_rng_state(), before), "torch's own state stays"
    torch.rand(100)
    again = build_model("resnet8", num_classes=3, in_channels=3, seed=5)
    other = build_model("resnet8", num_classes=3, in_channels=3, seed=6)
    assert torch.equal(first.get_parameter("conv.weight"), again.get_parameter("conv.weight"))
    assert not torch.equal(first.get_parameter("conv.weight"), other.get_parameter("conv.weight"))


def test_unknown_names_and_bad_seeds() -> None:
    with pytest.raises(ValueError, match=r"resnet20.*did you mean 'resnet44'"):
        build_model("resnet444", num_classes=3, in_channels=3, seed=0)
    with pytest.raises(ValueError, match="seed must be"):
        build_model("resnet8", num_classes=3, in_channels=3, seed=-1)


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for name in ("a_users_networks", "a_broken_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "a_users_networks.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n    return nn.Linear(in_channels, num_classes)\n"
        "def text(num_classes, in_channels):\n    return 'net'\n",
        encoding="utf-8",
    )
    (tmp_path / "a_broken_module.py").write_text("import there_is_no_such_module\n", encoding="utf-8")
    return tmp_path


def test_the_users_own_from_the_current_folder(users_folder: Path) -> None:
    model = build_model("a_users_networks:net", num_classes=3, in_channels=2, seed=0)
    assert isinstance(model, nn.Linear)
    assert model.weight.shape == (3, 2)
    again = build_model("a_users_networks:net", num_classes=3, in_channels=2, seed=0)
    assert torch.equal(model.weight, again.get_parameter("weight"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a_users_networks:missing", "AttributeError.*missing.*start in the folder"),
        ("no_such_module:net", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("a_broken_module:net", "No module named 'there_is_no_such_module'"),
        ("a_users_networks:", "package.module:function"),
        (":net", "package.module:function"),
        ("a_users_networks:text", "must return a torch.nn.Module: got <class 'str'>"),
    ],
)
def test_what_cannot_be_built_says_why(users_folder: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, num_classes=3, in_channels=2, seed=0)
