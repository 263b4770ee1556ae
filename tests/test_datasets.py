"""A datasets.Dataset as people have it: whatever its format, its rows and its loaders are the lists they were made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import pytest
import torch
import transformers
from oracle import assert_close
from test_collators import gpt2
from torch.utils.data import DataLoader

from inflib import NextToken, ekfac, hugging_face_batches, influence, token_batches

pytestmark = pytest.mark.usefixtures("float64")
IDS = [[3, 1, 4, 1, 5, 9], [2, 6, 5, 3], [5, 8, 9, 7, 9], [3, 2, 3, 8, 4, 6, 2]]
LEARNT = [[-100] * 2 + ids[2:] for ids in IDS]  # two tokens of a prompt, and an answer


@pytest.fixture(scope="module")
def rows() -> Any:
    masks = [[1] * len(ids) for ids in IDS]
    return datasets.Dataset.from_dict({"input_ids": IDS, "attention_mask": masks, "labels": LEARNT})


def assert_same(one: Any, other: Any) -> None:
    assert len(list(one)) == len(list(other))
    for (inputs, targets), (expected, y) in zip(one, other, strict=True):
        there = expected["attention_mask"].bool()
        assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
        assert torch.equal(inputs["input_ids"][there], expected["input_ids"][there])
        assert torch.equal(targets, y)


GIVEN: dict[str, Callable[[Any], Any]] = {
    "rows": lambda d: d,
    "torch": lambda d: d.with_format("torch"),
    "numpy": lambda d: d.with_format("numpy"),
    "columns": lambda d: d[:],
    "columns of tensors": lambda d: d.with_format("torch")[:],
    "more columns": lambda d: d.map(lambda row: {"length": len(row["input_ids"])}),
    "a transform": lambda d: d.with_transform(lambda batch: {key: batch[key] for key in ("input_ids", "labels")}),
    "iterable": lambda d: d.to_iterable_dataset().with_format("torch"),
    "selected": lambda d: datasets.concatenate_datasets([d, d]).select(range(4)),
}


@pytest.mark.parametrize("how", GIVEN)
def test_whatever_its_format_a_datasets_batches_are_those_of_its_lists(rows: Any, how: str) -> None:
    assert_same(token_batches(GIVEN[how](rows), 3), token_batches(IDS, 3, targets=LEARNT))


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_over_a_formatted_dataset_is_one_call_away(rows: Any, shuffle: bool) -> None:
    even = rows.map(lambda row: {key: row[key][:4] for key in row}).with_format("torch")
    loader = DataLoader(even, batch_size=3, shuffle=shuffle)
    expected = token_batches([ids[:4] for ids in IDS], 3, targets=[labels[:4] for labels in LEARNT])
    assert_same(hugging_face_batches(loader), expected)


def test_influence_through_a_collators_loader_is_that_of_the_lists(rows: Any) -> None:
    words = transformers.DataCollatorForSeq2Seq(Padding(), label_pad_token_id=-100, return_tensors="pt")
    theirs = hugging_face_batches(DataLoader(rows, batch_size=2, collate_fn=words))
    own = token_batches(IDS, 2, targets=LEARNT)
    model, asked = gpt2(), token_batches([[3, 1, 4, 2]])

    def scores(train: Any) -> torch.Tensor:
        curvature = ekfac(model, NextToken(), train, layers="*.c_fc", labels="observed", progress=False)
        return influence(model, NextToken(), train, asked, curvature, progress=False)

    assert_close(scores(theirs), scores(own), 1e-9)


class Padding:
    """As much of a tokenizer as a collator that pads needs."""

    padding_side = "right"

    def pad(self, features: list[dict[str, Any]], **_: Any) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in features)
        return {
            key: torch.tensor([row[key] + [0] * (longest - len(row[key])) for row in features])
            for key in ("input_ids", "attention_mask")
        }


def test_a_dataset_in_a_loaders_place_is_refused_with_what_to_do(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"batch 0 has input_ids \(6,\), one example's.*token_batches\(dataset\)"):
        list(hugging_face_batches(rows.with_format("torch")))
    with pytest.raises(TypeError, match=r"dataset.with_format\('torch'\)"):
        list(hugging_face_batches(DataLoader(rows, batch_size=1)))
    with pytest.raises(TypeError, match=r"batch 0 is a dict; expected a pair .*by hugging_face_batches\(loader\)"):
        ekfac(gpt2(), NextToken(), rows, layers="*.c_fc", progress=False)
    with pytest.raises(TypeError, match=r"sequence 0 is pyarrow.Table; .*dataset.with_format\('torch'\)"):
        token_batches(rows.with_format("arrow"))
