"""The page about what a run picked: views made again from addresses, shares, suspects, and what it refuses."""

import base64
import csv
import io
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from infer2train import inspect, mine
from infer2train.cli.main import main
from infer2train.draws.addresses import Addresses
from infer2train.draws.mining import Mining
from infer2train.observe.picks import Rows, read_picks
from infer2train.studies.inspection.findings import (
    BUCKETS,
    CONCENTRATED,
    class_shares,
    concentration,
    courses,
    extremes,
)
from infer2train.studies.inspection.inspect import PAGE, TABLE
from infer2train.studies.inspection.shown import as_html, shown
from infer2train.studies.inspection.subject import subject
from infer2train.studies.inspection.suspects import average_precision, losses_of, suspects
from infer2train.training.config import RunConfig
from infer2train.training.loop import train
from mined_runs import draws, jittered, network, sgd

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the oracle gets new weights every:RuntimeWarning"),
]
PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "picked"
    config = RunConfig(
        method="nm-augment", gamma=4, epochs=3, batch_size=40, update_every=2, threads=1, train_error_samples=0
    )
    train(config, folder, quiet=True)
    inspect(folder)
    return folder


SAMPLES: dict[str, Any] = {"method": "nm-sample", "gamma": 3, "ramp_start": 0.0, "ramp_stop": 0.0, "update_every": 2}


def rows(**columns: Any) -> Rows:
    """Rows of picked samples, with whatever columns matter."""
    count = len(next(iter(columns.values())))
    given = {name: np.asarray(column) for name, column in columns.items()}
    nothing = np.full(count, np.nan, dtype=np.float32)
    defaults = {
        "step": np.arange(count),
        "is_picked": np.ones(count, dtype=bool),
        "is_trained": np.ones(count, dtype=bool),
        "rival_median": nothing,
        "score": nothing,
    }
    return {**defaults, **given}


# The page


def test_views_on_the_page_are_those_of_the_addresses(run: Path) -> None:
    page, picked = (run / PAGE).read_text(), read_picks(run)
    source = subject(run).source
    first = np.flatnonzero(picked["is_picked"] & (picked["slot"] < 2))[0]
    pixels = source.batch(Addresses(picked["id"][[first]], picked["seed"][[first]]))[0][0].numpy()
    image = Image.open(io.BytesIO(base64.b64decode(PNG.findall(page)[0])))
    np.testing.assert_array_equal(np.asarray(image), pixels[0])
    assert f"sample {picked['id'][first]} · step 0 · lag 0" in page


def test_a_page_asks_the_network_for_nothing_and_every_image_has_words(run: Path) -> None:
    page = (run / PAGE).read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) > 100
    assert all(re.search(r'alt="sample \d+, \d"', image) for image in images)
    assert len(page) < 1_000_000


def test_the_same_folder_gives_the_same_bytes(run: Path) -> None:
    before = (run / PAGE).read_bytes(), (run / TABLE).read_bytes()
    assert main(["inspect", str(run), "--quiet"]) == 0
    assert before == ((run / PAGE).read_bytes(), (run / TABLE).read_bytes())


def test_the_table_ranks_every_sample(run: Path) -> None:
    with (run / TABLE).open() as file:
        found = list(csv.DictReader(file))
    assert sorted(int(row["id"]) for row in found) == list(range(200))
    losses = [float(row["loss"]) for row in found]
    assert losses == sorted(losses, reverse=True)
    labels = subject(run).labels(np.arange(200))
    assert all(int(row["label"]) == labels[int(row["id"])] for row in found)


def write_images(folder: Path) -> None:
    """18 to train on and 6 to test on, of two classes."""
    for number in range(24):
        file = folder / ("train" if number < 18 else "test") / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(file)


def test_the_table_names_the_file_of_each_sample(tmp_path: Path) -> None:
    for part, count in (("train", 20), ("test", 2)):
        for number in range(2 * count):
            # Two bytes that are no UTF-8, as archives of other systems leave them.
            file = tmp_path / "data" / part / "ab"[number % 2] / os.fsdecode(b"%d.\xe9t\xe9.png" % number)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number, 0, 0)).save(file)
    options = "--method nm-augment --gamma 2 --epochs 1 --limit 24 --label-noise 0.25 --batch-size 12 --quiet"
    options += " --on-bad-image skip"
    places = ["--data", str(tmp_path / "data"), "--data-cache", str(tmp_path / "cache"), "--runs-dir", str(tmp_path)]
    assert main(["train", *places, "--name", "files", *options.split()]) == 0
    run = tmp_path / "files"
    assert main(["inspect", str(run), "--quiet"]) == 0
    with (run / TABLE).open() as table:
        named = {int(row["id"]): row["file"] for row in csv.DictReader(table)}
    found = {number: Path(name.replace(r"\xe9", os.fsdecode(b"\xe9"))) for number, name in named.items()}
    pixels = subject(run).source.images
    assert {number: int(pixels[number, 0, 0, 0]) for number in found} == {
        n: int(f.stem.partition(".")[0]) for n, f in found.items()
    }
    assert all(file.is_file() for file in found.values())
    first, name = next(iter(named.items()))
    assert name.endswith(r".\xe9t\xe9.png")
    assert f'data-value="{first}">{first}<br><span class="note">{Path(name).name}</span>' in (run / PAGE).read_text()

    (tmp_path / "data" / "train" / "a" / "broken.png").write_bytes(b"no image")
    assert main(["inspect", str(run), "--quiet"]) == 0
    assert (run / TABLE).read_text().startswith("rank,id,label,loss,looks\n"), "one is left out: which is which?"


def test_images_that_are_no_longer_those_of_the_run_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A suspect that was put where it belongs gives others its number: nobody is to be blamed by it."""
    write_images(tmp_path / "data")
    options = "--method nm-augment --gamma 2 --epochs 2 --batch-size 6 --name moved --quiet"
    places = ["--data", str(tmp_path / "data"), "--data-cache", str(tmp_path / "cache"), "--runs-dir", str(tmp_path)]
    assert main(["train", *places, *options.split()]) == 0
    suspect = tmp_path / "data" / "train" / "a" / "4.png"
    suspect.rename(suspect.parents[1] / "b" / "4.png")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "moved"), "--quiet"]) == 2
    assert "got others in" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "step-00000006")
    assert main(["train", *places, *options.split(), "--resume"]) == 2
    assert "a resumed run needs the images that it was started with: got others in" in capsys.readouterr().err
    (suspect.parents[1] / "b" / "4.png").rename(suspect)
    assert main(["train", *places, *options.split(), "--resume"]) == 0
    assert main(["inspect", str(tmp_path / "moved"), "--quiet"]) == 0


def test_a_score_that_is_no_loss_makes_no_label_doubtful(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    settings = config.read_text()
    assert "score: null\n" in settings
    assert "Suspects</h2>" in inspect(tmp_path / "run").read_text()
    config.write_text(settings.replace("score: null\n", "score: entropy\n"))
    page = inspect(tmp_path / "run").read_text()
    assert "Suspects" not in page
    assert "so a high one does not make a label doubtful" in page
    assert (tmp_path / "run" / TABLE).read_text().startswith("rank,id,label,score,looks")
    found = subject(run)
    others = (
        Mining(method=m, epochs=2, score=s)
        for m, s in (("rho", None), ("nm-sample", None), ("nm-sample", "squared-error"))
    )
    said = [replace(found, mining=mining).has_losses for mining in others]
    assert said == [False, True, True]


def test_near_copies_have_no_files(tmp_path: Path) -> None:
    write_images(tmp_path / "data")
    options = "--method nm-augment --gamma 2 --epochs 1 --copies 3 --batch-size 6 --name copies --quiet"
    places = ["--data", str(tmp_path / "data"), "--data-cache", str(tmp_path / "cache"), "--runs-dir", str(tmp_path)]
    assert main(["train", *places, *options.split()]) == 0
    assert main(["inspect", str(tmp_path / "copies"), "--quiet"]) == 0
    assert (tmp_path / "copies" / TABLE).read_text().startswith("rank,id,label,loss,looks\n")


def test_a_loop_of_ones_own_needs_the_data_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, base = network(), jittered()
    optimizer = sgd(model)
    loader = mine(base, model, optimizer, log_dir=tmp_path, **SAMPLES)
    list(draws(loader, model, optimizer))
    loader.close()
    assert main(["inspect", str(tmp_path)]) == 2
    assert "infer2train.inspect(folder, data=dataloader)" in capsys.readouterr().err
    page = inspect(tmp_path, base, class_names=["ape", "bee", "cat"]).read_text()
    assert "<option>bee</option>" in page
    assert "samples picked by their scores" in page


class Words(Dataset[Any]):
    """Texts of two kinds, as tokens and a label."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([index % 2, 2, index % 5]), index % 2


class Bag(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.EmbeddingBag(6, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.embedding(tokens)
        return out


def bag_run(folder: Path) -> tuple[Bag, DataLoader[Any]]:
    """A network of texts that was trained for an epoch, and what it was trained on."""
    torch.manual_seed(0)
    model, base = Bag(), DataLoader(Words(), batch_size=6)
    optimizer = sgd(model)
    loader = mine(base, model, optimizer, log_dir=folder, **SAMPLES)
    for tokens, labels in loader:
        torch.nn.functional.cross_entropy(model(tokens), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    loader.close()
    return model, base


def test_texts_are_shown_as_their_tokens_or_as_one_says(tmp_path: Path) -> None:
    _, base = bag_run(tmp_path)
    page = inspect(tmp_path, base).read_text()
    assert "<span>1 </span><span>2 </span><span>3 </span>" in page
    assert "Pass <code>model=</code>" in page
    vocabulary = ["no", "yes", "<script>alert(1)</script>", "so", "on", "then"]
    said = inspect(tmp_path, base, show=lambda tokens: " ".join(vocabulary[t] for t in tokens)).read_text()
    assert "yes &lt;script&gt;alert(1)&lt;/script&gt; so" in said
    named = inspect(tmp_path, base, token_text=lambda token: vocabulary[token] + " ").read_text()
    assert "<span>yes </span><span>&lt;script&gt;alert(1)&lt;/script&gt; </span><span>so </span>" in named
    assert not any("<script>alert" in each for each in (page, said, named))


def test_a_text_of_one_class_has_one_loss(tmp_path: Path) -> None:
    model, base = bag_run(tmp_path)
    model.train()
    page = inspect(tmp_path, base, model=model).read_text()
    assert model.training, "left as it was"
    for id_, now in re.findall(r'data-sample="(\d+)">.*?<span>· now (\d\.\d\d)</span>', page, flags=re.DOTALL):
        tokens, label = Words()[int(id_)]
        loss = torch.nn.functional.cross_entropy(model(tokens[None]), torch.tensor([label]))
        assert now == f"{loss.item():.2f}"
    assert page.count("<span>· now ") > 20


class Doubtful(Words):
    """The same with one wrong label."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        tokens, label = super().__getitem__(index)
        return tokens, 1 - label if index == 7 else label


class Sure(torch.nn.Module):
    """Says the kind that the first token says."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(5.0))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight * torch.nn.functional.one_hot(tokens[:, 0], 2)


def test_a_run_on_a_few_samples_is_warned_of(tmp_path: Path, run: Path) -> None:
    model, base = Sure(), DataLoader(Doubtful(), batch_size=6)
    loader = mine(base, model, log_dir=tmp_path, **{**SAMPLES, "gamma": 8, "balance": "none", "update_every": 100})
    for _ in loader:
        loader.step_done()
    loader.close()
    warning = re.search(r'role="alert">(.*?)</p>', inspect(tmp_path, base).read_text())
    assert warning
    assert warning[1].startswith("1 % of the samples have")
    picked = read_picks(tmp_path)
    assert np.mean(picked["id"][picked["is_picked"]] == 7) > CONCENTRATED, "what is warned of is the case"
    assert 'role="alert"' not in (run / PAGE).read_text()


class Sentences(Dataset[Any]):
    """Tokens of several lengths."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Tensor:
        return (torch.arange(3 + index % 4) + index) % 5 + 1


def following(items: list[Tensor]) -> dict[str, Tensor]:
    """Tokens, and what follows each; a text's first token follows nothing, and is only read."""
    tokens = torch.nn.utils.rnn.pad_sequence([item[:-1] for item in items], batch_first=True)
    wanted = torch.nn.utils.rnn.pad_sequence([item[1:] for item in items], batch_first=True, padding_value=-100)
    return {"input_ids": tokens, "labels": wanted}


class Bigram(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(6, 6)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.table(input_ids)}


def test_each_token_has_the_loss_of_its_own_prediction(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, base = Bigram(), DataLoader(Sentences(), batch_size=6, collate_fn=following)
    optimizer = sgd(model)
    loader = mine(base, model, optimizer, log_dir=tmp_path, balance="none", **SAMPLES)
    for batch in loader:
        logits = model(batch["input_ids"])["logits"]
        torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    loader.close()
    page = inspect(tmp_path, base, model=model, token_text=lambda token: "?abcde"[token]).read_text()
    beside = page[page.index('<div class="beside">') : page.index("The most extreme")]
    texts = re.findall(r'sample (\d+) .*?<p class="text tokens">(.*?)</p>', beside, flags=re.DOTALL)
    assert len(texts) > 5
    for id_, text in texts:
        item = Sentences()[int(id_)]
        losses = torch.nn.functional.cross_entropy(model.table(item[:-1]), item[1:], reduction="none")
        said = "".join(re.findall(r"<(?:b [^>]*|span)>([^<]*)", text))
        assert said == "".join("?abcde"[token] for token in item), "without padding"
        assert re.findall(r'title="loss (\d\.\d\d)"', text) == [f"{loss:.2f}" for loss in losses]
        assert re.findall(r"<i> (\d\.\d\d) </i>", text) == [f"{loss:.2f}" for loss in losses]
    assert '<input type="checkbox" id="numbers">' in page


def test_what_cannot_be_shown_says_what_to_pass() -> None:
    with pytest.raises(ValueError, match=r"got a tensor of shape \(2, 5, 4\); pass show=, a function"):
        shown(torch.zeros(2, 5, 4))
    assert shown({"input_ids": torch.tensor([3, 1])}) == "3 1"
    assert as_html("a" * 500, "").count("a") < 410


@pytest.mark.parametrize("shape", [(3, 4, 6), (1, 4, 6), (4, 6), (4, 6, 3)])
def test_images_of_any_kind_are_shown(shape: tuple[int, ...]) -> None:
    (content,) = PNG.findall(as_html(torch.rand(shape), "words"))
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert image.size == (6, 4)
    assert np.asarray(image).max() == 255


# What is found


def test_few_samples_that_are_picked_all_the_time_are_told() -> None:
    even = rows(id=np.arange(1000) % 200)
    assert concentration(even, 200) == pytest.approx(2 / 200)
    uneven = rows(id=np.where(np.arange(1000) % 2, np.arange(1000) % 200, 7))
    assert concentration(uneven, 200) > 0.5


def test_classes_are_counted_against_their_share() -> None:
    found = class_shares(rows(id=[0, 0, 0, 1, 2]), {0: 0, 1: 1, 2: 1, 3: 1})
    assert [(share.label, share.of_data, share.of_picks) for share in found] == [(0, 0.25, 0.6), (1, 0.75, 0.4)]
    assert class_shares(rows(id=[0]), {}) == []


def test_the_most_extreme_come_first() -> None:
    scores = np.arange(300, dtype=np.float32) % 150
    scores[5] = np.nan
    assert extremes(rows(id=np.arange(300), score=scores)).tolist() == [149, 299, 148]


def test_a_suspects_loss_stays_high_where_others_fall() -> None:
    steps = np.repeat(np.arange(10), 6)
    ids = np.tile(np.arange(6), 10)
    losses = np.where(ids == 4, 2.0, 2.0 - 0.19 * steps).astype(np.float32)
    losses[(ids == 2) & (steps == 1)] = 30.0  # early, when everything may be
    found = suspects(rows(id=ids, step=steps, score=losses), is_of_views=False)
    assert found.ids[0] == 4
    assert found.looks.tolist() == [5] * 6
    of_views = rows(id=ids, step=steps, score=losses + 5, rival_median=losses)
    np.testing.assert_array_equal(suspects(of_views, is_of_views=True).losses, found.losses)
    (line,) = courses(*losses_of(of_views, is_of_views=True), np.array([4]))
    assert len(line) == BUCKETS
    assert {loss for loss in line if loss is not None} == {2.0}


def test_rejected_views_say_nothing_of_a_sample() -> None:
    seen = rows(id=[0, 0, 1], score=[3.0, 1.0, 2.0], rival_median=[1.0, np.nan, np.nan], is_trained=[True, False, True])
    ids, _, losses = losses_of(seen, is_of_views=True)
    assert (ids.tolist(), losses.tolist()) == ([0, 1], [1.0, 2.0])


def test_average_precision_is_scikit_learns() -> None:
    from sklearn.metrics import average_precision_score

    is_wrong = np.random.default_rng(0).random(50) < 0.3
    ranks = -np.arange(50, dtype=float)
    assert average_precision(is_wrong) == pytest.approx(average_precision_score(is_wrong, ranks))
