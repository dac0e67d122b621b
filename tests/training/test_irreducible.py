"""rho from the command line: whose images train the irreducible model, once for whom, and what its losses are."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from infer2train.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from infer2train.data.images import ImageSplit
from infer2train.observe.runlog import read_rows
from infer2train.sources.views.identity import EvaluationCrop, Identity
from infer2train.sources.views.image_views import ImageViews
from infer2train.training import loop
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.evaluation import every_sample
from infer2train.training.folder import CHECKPOINTS, Result, evaluate_folder
from infer2train.training.irreducible import irreducible_losses, irreducible_run
from infer2train.training.loop import train
from infer2train.training.regimes import regime_defaults
from infer2train.training.setup import load_splits, prepare, resolved


def config(tmp_path: Path, **changes: object) -> RunConfig:
    settings = {
        "method": "rho",
        "holdout": 60,
        "epochs": 2,
        "lr_drops": (1,),
        "update_every": 2,
        "irreducible_epochs": 2,
        "oracle": "torch:fp32",
        "label_noise": 0.2,
        "data_cache": str(tmp_path / "cache"),
        "threads": 1,
    }
    return resolved(from_plain({**regime_defaults("digits", "rho"), **settings, **changes}))


def pixels(split: ImageSplit) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def test_the_model_sees_what_is_held_back_and_nothing_else(tmp_path: Path) -> None:
    mined = config(tmp_path, validation_split=20)
    held = irreducible_run(mined)
    assert (held.method, held.epochs, held.seed) == ("baseline", 2, mined.seed)
    data, images, evaluation = load_splits(mined)
    _, seen, same_evaluation = load_splits(held)
    assert (len(images), len(seen), len(evaluation)) == (120, 60, 20)
    assert pixels(images) | pixels(seen) | pixels(evaluation) == pixels(data.train)
    assert not pixels(seen) & (pixels(images) | pixels(evaluation))
    assert pixels(evaluation) == pixels(same_evaluation)
    names = {image.tobytes(): label for image, label in zip(data.train.images, data.train.targets, strict=True)}
    wrong = sum(names[i.tobytes()] != t for s in (images, seen) for i, t in zip(s.images, s.targets, strict=True))
    assert wrong == 36, "labels are wrong on both sides of the line"


def test_which_images_are_held_back_follows_from_the_seed(tmp_path: Path) -> None:
    one, same, other = (
        pixels(load_splits(irreducible_run(config(tmp_path, seed=seed, label_noise=0.0, gamma=gamma)))[1])
        for seed, gamma in ((0, 2), (0, 3), (1, 2))
    )
    assert one == same
    assert one != other


def test_every_image_has_the_loss_of_the_model_that_never_saw_it(tmp_path: Path) -> None:
    mined = config(tmp_path)
    train(mined, tmp_path / "run", quiet=True)
    (folder,) = (tmp_path / "cache" / "irreducible").iterdir()
    losses = np.load(folder / "losses-torch-fp32.npy")
    _, images, _ = load_splits(mined)
    model = prepare(irreducible_run(mined), progress=False).model
    checkpoint = load_checkpoint(folder / "run" / CHECKPOINTS)
    assert checkpoint is not None
    model.load_state_dict(checkpoint.state["model"])
    x, y = ImageViews(images.images, images.targets, Identity()).batch(every_sample(len(images)))
    with torch.no_grad():
        wanted = F.cross_entropy(model.eval()(x), y, reduction="none")
    np.testing.assert_allclose(losses, wanted.numpy(), rtol=1e-4, atol=1e-5)
    told = [row["message"] for row in read_rows(tmp_path / "run") if row.get("event") == "decided"]
    assert any("resnet8, trained on 60 held back for 2 epochs" in message for message in told)


def test_images_are_looked_at_as_in_an_evaluation(tmp_path: Path) -> None:
    """Where views are crops: the centre."""
    mined = config(tmp_path, view="random-resized-crop-flip", crop_size=6, epochs=1, irreducible_epochs=1)
    train(mined, tmp_path / "run", quiet=True)
    (folder,) = (tmp_path / "cache" / "irreducible").iterdir()
    _, images, _ = load_splits(mined)
    model = prepare(irreducible_run(mined), progress=False).model
    checkpoint = load_checkpoint(folder / "run" / CHECKPOINTS)
    assert checkpoint is not None
    model.load_state_dict(checkpoint.state["model"])
    x, y = ImageViews(images.images, images.targets, EvaluationCrop(6)).batch(every_sample(len(images)))
    assert x.shape[2:] == (6, 6)
    with torch.no_grad():
        wanted = F.cross_entropy(model.eval()(x), y, reduction="none")
    np.testing.assert_allclose(np.load(folder / "losses-torch-fp32.npy"), wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_it_is_trained_once_for_all_runs_that_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Path] = []

    def train_and_tell(run: RunConfig, folder: Path) -> Result:
        trained.append(folder)
        return train(run, folder, quiet=True, report=False)

    first = irreducible_losses(config(tmp_path), train_and_tell)
    for same in ({"gamma": 3}, {"pool": "process"}, {"ramp_rate": 0.1}, {"epochs": 4, "lr_drops": (3,)}):
        assert irreducible_losses(config(tmp_path, **same), train_and_tell) == first, same
    assert len(trained) == 1
    files = {first.file}
    for other in ({"seed": 1}, {"label_noise": 0.1}, {"irreducible_epochs": 3}, {"irreducible_model": "resnet14"}):
        files.add(irreducible_losses(config(tmp_path, **other), train_and_tell).file)
    assert len(files) == len(trained) == 5


def test_where_nothing_is_held_back_each_half_is_judged_by_the_other(tmp_path: Path) -> None:
    trained: list[RunConfig] = []

    def train_and_tell(run: RunConfig, folder: Path) -> Result:
        trained.append(run)
        return train(run, folder, quiet=True, report=False)

    whole = config(tmp_path, holdout=0)
    found = irreducible_losses(whole, train_and_tell)
    assert irreducible_losses(whole, train_and_tell) == found, "trained once"
    assert [run.train_on for run in trained] == ["held", "rest"]
    _, images, _ = load_splits(whole)
    losses, seen = np.load(found.file), {run.train_on: load_splits(run)[1] for run in trained}
    assert len(losses) == len(images) == sum(map(len, seen.values())) == 200
    for run in trained:
        model = prepare(run, progress=False).model
        other = config(tmp_path, holdout=100, train_on="rest" if run.train_on == "held" else "held")
        checkpoint = load_checkpoint(irreducible_losses(other, train_and_tell).file.parent / "run" / CHECKPOINTS)
        assert checkpoint is not None
        model.load_state_dict(checkpoint.state["model"])
        unseen = [at for at, image in enumerate(images.images) if image.tobytes() not in pixels(seen[run.train_on])]
        x, y = ImageViews(images.images[unseen], images.targets[unseen], Identity()).batch(every_sample(len(unseen)))
        with torch.no_grad():
            wanted = F.cross_entropy(model.eval()(x), y, reduction="none")
        np.testing.assert_allclose(losses[unseen], wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert len(trained) == 2


def test_a_run_goes_on_without_the_cache(tmp_path: Path) -> None:
    """The losses are part of its state; the model is trained again only to be asked again."""
    mined = config(tmp_path, gamma=2)
    train(mined, tmp_path / "whole", quiet=True)
    whole = load_checkpoint(tmp_path / "whole" / CHECKPOINTS)
    assert whole is not None
    kept = torch.from_numpy(np.load(next((tmp_path / "cache").glob("irreducible/*/losses-torch-fp32.npy"))))
    assert torch.equal(whole.state["loader"]["method"]["irreducible"], kept)
    again = train(config(tmp_path, gamma=2, data_cache=str(tmp_path / "other")), tmp_path / "again", quiet=True)
    there = load_checkpoint(again.folder / CHECKPOINTS)
    assert there is not None
    assert all(torch.equal(there.state["model"][name], tensor) for name, tensor in whole.state["model"].items())


def test_an_interrupted_model_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class StopError(Exception):
        pass

    def stops_once(run: RunConfig, folder: Path) -> Result:
        with monkeypatch.context() as patch:
            patch.setattr(loop.Watch, "epoch", lambda *args, **named: (_ for _ in ()).throw(StopError))
            train(run, folder, quiet=True, resume=True, report=False)
        raise AssertionError("not reached")

    with pytest.raises(StopError):
        irreducible_losses(config(tmp_path), stops_once)
    goes_on = irreducible_losses(config(tmp_path), lambda run, folder: train(run, folder, quiet=True, resume=True))
    assert json.loads((goes_on.file.parent / "losses-torch-fp32.json").read_text())["seconds"] > 0


def test_a_disk_that_is_full_when_losses_are_noted_down_spoils_no_later_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_quietly(run: RunConfig, folder: Path) -> Result:
        return train(run, folder, quiet=True, report=False)

    write_text = Path.write_text

    def refuse(path: Path, *content: Any, **named: Any) -> int:
        if "losses" not in path.name:
            return write_text(path, *content, **named)
        path.touch()  # as far as a full disk lets it come
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        with pytest.raises(OSError, match="No space left"):
            irreducible_losses(config(tmp_path), train_quietly)
    found = irreducible_losses(config(tmp_path), train_quietly)
    made = found.file.with_suffix(".json")
    assert found.seconds > 0
    made.write_bytes(b"")
    assert irreducible_losses(config(tmp_path), train_quietly).seconds > 0, "made again"
    assert {path.name for path in found.file.parent.glob("[!.]*")} == {"lock", "run", found.file.name, made.name}


def test_halves_that_are_smaller_than_a_batch_are_told_of(tmp_path: Path) -> None:
    small = config(tmp_path, holdout=0, limit=40, batch_size=21)
    with pytest.raises(ValueError, match=r"rho without --holdout trains a model on each half of 40 images: got .* 20;"):
        irreducible_losses(small, lambda run, folder: pytest.fail("nothing is to be trained"))


def test_a_damaged_end_is_trained_again(tmp_path: Path) -> None:
    def train_quietly(run: RunConfig, folder: Path) -> Result:
        return train(run, folder, quiet=True, report=False, resume=True)

    found = irreducible_losses(config(tmp_path), train_quietly)
    losses = np.load(found.file)
    found.file.with_suffix(".json").unlink()
    newest = max((found.file.parent / "run" / CHECKPOINTS).glob("step-*")) / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    assert np.array_equal(np.load(irreducible_losses(config(tmp_path), train_quietly).file), losses)
    checkpoint = load_checkpoint(newest.parents[1])
    assert checkpoint is not None
    assert (checkpoint.path, checkpoint.rejected) == (newest.parent, ())


def test_a_finished_model_of_other_images_is_not_asked(tmp_path: Path) -> None:
    def train_quietly(run: RunConfig, folder: Path) -> Result:
        return train(run, folder, quiet=True, report=False)

    found = irreducible_losses(config(tmp_path), train_quietly)
    found.file.with_suffix(".json").unlink()
    checkpoints = found.file.parent / "run" / CHECKPOINTS
    checkpoint = load_checkpoint(checkpoints)
    assert checkpoint is not None
    save_checkpoint(checkpoints, checkpoint.step, checkpoint.state | {"data": "another"})
    with pytest.raises(ValueError, match=rf"got others in digits, .* remove {checkpoints.parent}, and it is trained"):
        irreducible_losses(config(tmp_path), train_quietly)


def test_a_rho_run_can_be_evaluated_again(tmp_path: Path) -> None:
    result = train(config(tmp_path), tmp_path / "run", quiet=True)
    assert evaluate_folder(tmp_path / "run").error == result.evaluation.error


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trains on what holdout holds back: got holdout=0; pass --holdout"):
        config(tmp_path, holdout=0, train_on="held")
    with pytest.raises(ValueError, match=r"holdout must leave something to train on.*got 200; lower --holdout"):
        load_splits(config(tmp_path, holdout=200))
