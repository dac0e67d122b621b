"""Collate functions: those that make the same of a sample in every batch, and what is said of the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from infer2train.sources.collation import try_collate
from infer2train.sources.replay import Replay


def pictures() -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(3, 4, 4, generator=generator), i % 3) for i in range(8)]


def sentences() -> list[Tensor]:
    return [torch.arange(1, 3 + 3 * i % 7) * 10 + i for i in range(8)]


def sized() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2 + i % 3, 5 - i % 4, generator=generator) for i in range(8)]


def fault(items: list[Any], collate_fn: Callable[[list[Any]], Any]) -> str | None:
    """What a data set with these items and this collate function is refused for."""
    try:
        Replay(items, collate_fn)
    except ValueError as error:
        return str(error)
    return None


# What makes the same of a sample in every batch


@dataclass
class Pair:
    """A batch as an object."""

    images: Tensor
    labels: Tensor


def in_an_object(items: list[Any]) -> Pair:
    return Pair(*default_collate(items))


def with_a_sum(items: list[Any]) -> dict[str, Any]:
    images, labels = default_collate(items)
    return {"images": images, "labels": labels, "mean": images.mean(), "sizes": [len(items), 3], "kind": "pictures"}


def ragged(items: list[Any]) -> tuple[Tensor, list[dict[str, Any]]]:
    return torch.stack([image for image, _ in items]), [
        {"boxes": image[0, : label + 1], "name": f"class {label}"} for image, label in items
    ]


def into_arrays(items: list[Any]) -> tuple[np.ndarray, list[str]]:
    return np.stack([image.numpy() for image, _ in items]), [f"class {label}" for _, label in items]


def changing_its_items(items: list[Any]) -> Any:
    for image, _ in items:
        image.mul_(2)
    return default_collate(items)


def padded_right(items: list[Tensor]) -> dict[str, Tensor]:
    masks = [torch.ones_like(item) for item in items]
    return {
        "input_ids": pad_sequence(items, batch_first=True, padding_value=-1),
        "attention_mask": pad_sequence(masks, batch_first=True),
    }


def padded_left(items: list[Tensor]) -> Tensor:
    longest = max(map(len, items))
    return torch.stack([pad(item, (longest - len(item), 0), value=7) for item in items])


def padded_pictures(items: list[Tensor]) -> Tensor:
    height, width = (max(item.shape[d] for item in items) for d in (0, 1))
    return torch.stack([pad(item, (0, width - item.shape[1], 0, height - item.shape[0])) for item in items])


@pytest.mark.parametrize(
    ("items", "collate_fn"),
    [
        (pictures, default_collate),
        (pictures, list),
        (pictures, in_an_object),
        (pictures, with_a_sum),
        (pictures, ragged),
        (pictures, into_arrays),
        (pictures, changing_its_items),
        (sentences, padded_right),
        (sentences, padded_left),
        (sized, padded_pictures),
    ],
)
def test_the_same_in_every_batch_is_taken(items: Callable[[], list[Any]], collate_fn: Any) -> None:
    assert fault(items(), collate_fn) is None
    found = try_collate(items(), lambda some, _: collate_fn(some))
    assert found.rows, "something must have been compared"


def test_what_a_batch_is_compared_by() -> None:
    found = try_collate(pictures(), lambda some, _: with_a_sum(some))
    assert list(found.rows) == ["batch['images']", "batch['labels']"]
    assert list(try_collate(pictures(), lambda some, _: ragged(some)).rows) == ["batch[0]", "batch[1]"]


# What does not


def mixup(items: list[Any]) -> tuple[Tensor, Tensor]:
    """The recipe of torchvision's reference script."""
    images, labels = default_collate(items)
    targets = one_hot(labels, 3).float()
    share, others = np.random.beta(1, 1), torch.randperm(len(images))
    return share * images + (1 - share) * images[others], share * targets + (1 - share) * targets[others]


def mixup_at_times(items: list[Any]) -> tuple[Tensor, Tensor]:
    if torch.rand(()) < 0.1:
        return mixup(items)
    images, labels = default_collate(items)
    return images, one_hot(labels, 3).float()


def mixup_in_an_object(items: list[Any]) -> Pair:
    return Pair(*mixup(items))


def cutmix(items: list[Any]) -> tuple[Tensor, Tensor]:
    """Every picture has a corner of its neighbour; nothing is drawn."""
    images, labels = default_collate(items)
    images[:, :, :2, :2] = images.roll(1, 0)[:, :, :2, :2]
    return images, labels


def noisy(items: list[Any]) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(items)
    return images + 1e-6 * torch.randn_like(images), labels


def normalised(items: list[Any]) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(items)
    return images - images.mean(), labels


def cropped(items: list[Any]) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(items)
    top = int(torch.randint(2, ()))
    return images[:, :, top : top + 3], labels


def smoothed_by_its_place(items: list[Any]) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(items)
    return images, labels + 0.1 * torch.arange(len(items))


def cut_to_the_shortest(items: list[Tensor]) -> Tensor:
    shortest = min(map(len, items))
    return torch.stack([item[:shortest] for item in items])


def of_any_size(items: list[Any]) -> tuple[Tensor, Tensor]:
    images, labels = default_collate(items)
    size = int(torch.randint(4, 8, ()))
    return torch.nn.functional.interpolate(images, size), labels


@pytest.mark.parametrize(
    ("items", "collate_fn", "leaf"),
    [
        (pictures, mixup, "batch[0]"),
        (pictures, mixup_at_times, "batch[0]"),
        (pictures, mixup_in_an_object, "batch.images"),
        (pictures, cutmix, "batch[0]"),
        (pictures, noisy, "batch[0]"),
        (pictures, normalised, "batch[0]"),
        (pictures, cropped, "batch[0]"),
        (pictures, of_any_size, "batch[0]"),
        (pictures, smoothed_by_its_place, "batch[1]"),
        (sentences, cut_to_the_shortest, "batch"),
    ],
)
def test_mixing_is_named_with_its_remedies(items: Callable[[], list[Any]], collate_fn: Any, leaf: str) -> None:
    said = fault(items(), collate_fn)
    assert said is not None
    assert "must make the same of a sample whatever it is batched with" in said
    assert f"got another {leaf} for a sample" in said
    assert "x, y = mixup(x, y)" in said
    assert "score_collate=" in said


def test_a_mixup_of_one_batch_in_ten_is_found_by_almost_every_construction() -> None:
    def found(seed: int) -> bool:
        generator = torch.Generator().manual_seed(seed)

        def collate(items: list[Any], number: int) -> Any:
            images, labels = default_collate(items)
            return (
                images.flip(0) * 0.5 + images * 0.5 if torch.rand((), generator=generator) < 0.1 else images
            ), labels

        return try_collate(pictures(), collate).fault is not None

    assert sum(map(found, range(40))) >= 38


def by_length(items: list[Tensor]) -> Tensor:
    return pad_sequence(sorted(items, key=len, reverse=True), batch_first=True)


def shuffled(items: list[Any]) -> Any:
    return default_collate([items[i] for i in torch.randperm(len(items))])


def backwards(items: list[Any]) -> Any:
    return default_collate(items[::-1])


def shuffled_lists(items: list[Any]) -> list[Any]:
    return [items[i] for i in torch.randperm(len(items))]


@pytest.mark.parametrize(
    ("items", "collate_fn", "leaf"),
    [
        (sentences, by_length, "batch"),
        (pictures, shuffled, "batch[0]"),
        (pictures, backwards, "batch[0]"),
        (pictures, shuffled_lists, "batch"),
    ],
)
def test_another_order_is_named_with_its_remedies(items: Callable[[], list[Any]], collate_fn: Any, leaf: str) -> None:
    said = fault(items(), collate_fn)
    assert said is not None
    assert "must keep samples in their order" in said
    assert f"the rows of {leaf} in another one" in said
    assert "score_collate=" in said


def without_none(items: list[Any]) -> Any:
    return default_collate([item for item in items if item is not None])


def two_views(items: list[Any]) -> Any:
    return default_collate([*items, *items])


def one_less(items: list[Any]) -> Any:
    return default_collate(items[:-1])


def now_and_then_one_less(items: list[Any]) -> Any:
    return default_collate(items[:-1] if torch.rand(()) < 0.3 else items)


@pytest.mark.parametrize(
    ("items", "collate_fn", "rows"),
    [
        ([None if i == 3 else (torch.ones(2) * i, i) for i in range(8)], without_none, "7 in batch[0] for 8"),
        (pictures(), two_views, "16 in batch[0] for 8"),
        (pictures(), one_less, "7 in batch[0] for 8"),
        (pictures(), now_and_then_one_less, "in batch[0] for"),
    ],
)
def test_another_number_is_named_with_its_remedies(items: list[Any], collate_fn: Any, rows: str) -> None:
    said = fault(items, collate_fn)
    assert said is not None
    assert "must give one row for each sample" in said
    assert f"got {rows}" in said or rows in said
    assert "torch.utils.data.Subset" in said


def test_a_collate_fn_that_fails_says_with_how_many_samples() -> None:
    def pairs(items: list[Any]) -> Any:
        if len(items) % 2:
            raise AssertionError("the batch must be even")
        return default_collate(items)

    with pytest.raises(AssertionError, match="must be even") as caught:
        Replay(pictures(), pairs)
    assert caught.value.__notes__ == ["while collating 5 samples: an oracle's batches are of any size"]


def test_samples_that_are_views_of_the_whole_data_are_not_copied_with_it() -> None:
    whole = torch.zeros(1 << 20, 8)
    held: list[int] = []

    def collate(items: list[Any], number: int) -> Any:
        held.append(max(item.untyped_storage().nbytes() for item in items))
        return default_collate(items)

    assert try_collate(list(whole[:8]), collate).fault is None
    assert max(held) == 8 * 4


def test_large_samples_are_batched_less_often() -> None:
    def tries(size: int) -> int:
        numbers: set[int] = set()

        def collate(items: list[Any], number: int) -> Tensor:
            numbers.add(number)
            return torch.arange(len(items)) * 0

        assert try_collate([torch.empty(size) for _ in range(8)], collate).fault is None
        return len(numbers)

    assert tries(10) == 40
    assert tries(1 << 22) == 8


def test_batches_that_may_be_mixed_are_not_tried() -> None:
    assert len(Replay(pictures(), mixup, may_mix=True)) == 8
