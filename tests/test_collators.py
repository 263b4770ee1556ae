"""Hugging Face's collators: their dicts as (inputs, targets), and what happens to labels that were not shifted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from oracle import assert_close
from torch import Tensor, nn
from torch.utils.data import DataLoader

from inflib import (
    CrossEntropy,
    NextToken,
    TrainIndex,
    Weighted,
    capture,
    completion,
    ekfac,
    gauss_newton,
    hugging_face_batches,
    influence,
    kfac,
    self_influence,
    token_batches,
)
from inflib.shifts import check_shifted

pytestmark = pytest.mark.usefixtures("float64")
QUIET: dict[str, Any] = {"progress": False}
V = 11
TEXTS = [[3, 1, 4, 1, 5, 9], [2, 6, 5, 3], [5, 8, 9, 7, 9], [3, 2, 3, 8, 4, 6, 2]]


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=8, n_embd=4, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).double().eval()


def t5() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=V, d_model=4, d_kv=2, d_ff=6, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).double().eval()


def collated(texts: list[list[int]], side: str = "right", prompt: int = 0, **more: Any) -> dict[str, Any]:
    """What DataCollatorForLanguageModeling(mlm=False) gives, with ``prompt`` tokens left out of the loss."""
    longest = max(map(len, texts))
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for ids in texts:
        gap = longest - len(ids)
        labels = [-100] * prompt + ids[prompt:]
        for key, row, pad in (("input_ids", ids, 0), ("attention_mask", [1] * len(ids), 0), ("labels", labels, -100)):
            rows[key].append(row + [pad] * gap if side == "right" else [pad] * gap + row)
    return {key: torch.tensor(value) for key, value in rows.items()} | more


def dense(model: nn.Module, train: Any, objective: Any = None) -> Tensor:
    return gauss_newton(model, objective or NextToken(), train, layers="*.c_fc", **QUIET).to_dense()


# --- causal language models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", [dict, transformers.BatchEncoding])
def test_a_causal_models_batches_are_those_of_token_batches(side: str, kind: Callable[..., Any]) -> None:
    batches = hugging_face_batches([kind(collated(TEXTS[:3], side)), kind(collated(TEXTS[3:], side))])
    assert len(batches) == 2
    for _ in range(2):
        for (inputs, targets), (expected, y) in zip(batches, token_batches(TEXTS, 3, side=side), strict=True):
            present = expected["attention_mask"].bool()
            assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
            assert torch.equal(inputs["input_ids"][present], expected["input_ids"][present])
            assert torch.equal(targets, y)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_loss_is_the_models_own_and_the_factors_do_not_know_of_padding(side: str) -> None:
    model = gpt2()
    places = collated(TEXTS, side)["attention_mask"].cumsum(1).sub(1).clamp_min(0)
    batch = collated(TEXTS, side, prompt=1, position_ids=places)
    [(inputs, targets)] = hugging_face_batches([batch])
    assert inputs["position_ids"].shape == targets.shape
    loss = NextToken().loss(model(**inputs).logits, targets)
    own = model(**batch)
    counted = int((batch["labels"][:, 1:] != -100).sum())
    assert_close(loss.sum(), own.loss * counted, 1e-6)  # theirs is in float32
    alone = [dense(model, hugging_face_batches([collated([ids], prompt=1)])) for ids in TEXTS]
    assert_close(dense(model, hugging_face_batches([batch])), sum(alone) / 4, 1e-10)  # type: ignore[arg-type]
    A = [
        kfac(model, NextToken(), data, layers="*.c_fc", labels="observed", **QUIET)
        for data in (hugging_face_batches([batch]), token_batches(TEXTS))
    ]
    assert_close(A[0].Q_A["transformer.h.0.mlp.c_fc"].abs(), A[1].Q_A["transformer.h.0.mlp.c_fc"].abs(), 1e-8)


def test_a_trainers_own_loader_is_one_call_away_in_the_datasets_order() -> None:
    model, dataset = gpt2(), [{"input_ids": ids} for ids in TEXTS]

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        return collated([e["input_ids"] for e in examples])

    arguments = transformers.TrainingArguments("unused", per_device_train_batch_size=3, use_cpu=True, report_to=[])
    trainer = transformers.Trainer(model, arguments, data_collator=collate, train_dataset=dataset)
    loader = trainer.get_train_dataloader()
    train = hugging_face_batches(loader)
    for (inputs, targets), (expected, y) in zip(train, token_batches(TEXTS, 3), strict=True):
        assert torch.equal(targets, y)
        assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
    curvature = ekfac(model, NextToken(), train, layers="*.c_fc", **QUIET)
    options = {"layers": "*.c_fc", **QUIET}
    came = influence(model, NextToken(), train, train, curvature, **QUIET)
    by_hand = token_batches(TEXTS, 3)
    assert_close(
        came,
        influence(model, NextToken(), by_hand, by_hand, ekfac(model, NextToken(), by_hand, **options), **QUIET),
        1e-9,
    )


def test_a_loader_whose_order_means_something_is_left_alone() -> None:
    data = [{"input_ids": torch.tensor(ids[:4])} for ids in TEXTS]
    for loader in (
        DataLoader(data),
        DataLoader(data, sampler=torch.utils.data.WeightedRandomSampler([1.0] * 4, 4)),
        DataLoader(data, sampler=torch.utils.data.RandomSampler(data, num_samples=2)),
    ):
        assert hugging_face_batches(loader).loader is loader
    last = DataLoader(data, batch_size=3, shuffle=True, drop_last=True)
    assert len(hugging_face_batches(last)) == 2  # all of it


# --- other kinds of labels ----------------------------------------------------------------------------------------------


def test_labels_that_stand_where_their_prediction_does_are_not_shifted() -> None:
    masked = collated(TEXTS)
    masked["labels"] = masked["labels"].where(torch.rand(masked["labels"].shape) < 0.5, -100)
    masked["input_ids"] = torch.where(masked["labels"] != -100, 10, masked["input_ids"])
    [(inputs, targets)] = hugging_face_batches([masked])
    assert torch.equal(targets, masked["labels"])
    assert torch.equal(inputs["input_ids"], masked["input_ids"])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([1, 0, 1, 1]), torch.tensor([1, 0, 1, 1])),
        (torch.tensor([1.5, 0.0, 2.0, 1.0]), torch.tensor([[1.5], [0.0], [2.0], [1.0]])),
        (torch.ones(4, 3), torch.ones(4, 3)),
    ],
)
@pytest.mark.parametrize("key", ["labels", "label"])
def test_labels_of_a_classifier_are_its_targets(labels: Tensor, expected: Tensor, key: str) -> None:
    batch = {**{k: x for k, x in collated(TEXTS).items() if k != "labels"}, key: labels, "token_type_ids": None}
    [(inputs, targets)] = hugging_face_batches([batch])
    assert torch.equal(targets, expected)
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}


@pytest.mark.parametrize("given", ["decoder_input_ids", "model"])
def test_a_decoder_has_its_labels_and_a_mask_of_its_own(given: str) -> None:
    model = t5()
    source, target = collated(TEXTS), collated([[4, 2, 7], [5], [6, 6, 1, 3, 8, 2, 9, 4], [1, 2]])
    batch = {"input_ids": source["input_ids"], "attention_mask": source["attention_mask"], "labels": target["labels"]}
    options: dict[str, Any] = {"model": model}
    if given != "model":
        batch[given], options = model.prepare_decoder_input_ids_from_labels(labels=target["labels"]), {}
    [(inputs, targets)] = hugging_face_batches([batch], **options)
    assert torch.equal(targets, target["labels"])
    assert torch.equal(inputs["decoder_attention_mask"], target["attention_mask"])
    loss = NextToken().loss(model(**inputs).logits, targets).sum()
    assert_close(loss, model(**batch).loss * int((targets != -100).sum()), 1e-6)
    fit = ekfac(model, NextToken(), hugging_face_batches([batch], **options), layers="decoder.*", **QUIET)
    assert fit.facts.examples == 4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hugging_face_batches(collated(TEXTS)), TypeError, r"got a dict.*\[batch\]"),
        (lambda: hugging_face_batches(iter([])), TypeError, r"which can be walked over several times"),
        (
            lambda: list(hugging_face_batches([(1, 2)])),
            TypeError,
            r"batch 0 is a tuple of 2; expected a collator's dict",
        ),
        (
            lambda: list(hugging_face_batches([{"input_ids": torch.ones(2, 3)}])),
            TypeError,
            r"batch 0 holds input_ids; expected a tensor of labels.*mlm=False",
        ),
        (
            lambda: list(
                hugging_face_batches([collated(TEXTS), collated(TEXTS) | {"labels": torch.ones(4, 7).long()}])
            ),
            ValueError,
            r"labels of batch 1 do not repeat its input_ids, those before it did otherwise",
        ),
        (
            lambda: list(
                hugging_face_batches([{"inputs_embeds": torch.ones(4, 7, 2), "labels": torch.ones(4, 7).long()}])
            ),
            ValueError,
            r"labels \(4, 7\) beside no input_ids of that shape.*shift=True.*shift=False",
        ),
    ],
)
def test_what_is_no_collators_batch_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_whether_labels_are_shifted_can_be_said() -> None:
    embedded = {"inputs_embeds": torch.ones(4, 7, 2), "labels": torch.ones(4, 7).long()}
    [(inputs, targets)] = hugging_face_batches([embedded], shift=True)
    assert inputs["inputs_embeds"].shape == (4, 6, 2) and targets.shape == (4, 6)
    [(_, targets)] = hugging_face_batches([collated(TEXTS)], shift=False)
    assert torch.equal(targets, collated(TEXTS)["labels"])


# --- targets that repeat the inputs -------------------------------------------------------------------------------------

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])
NOT = -100
SAME = torch.tensor([7, 7, 7, 7, 7])
AFTER = torch.tensor([1, 4, 1, 5, 9])  # what follows in the first


def stacked(*rows: Any) -> Tensor:
    return torch.stack([torch.as_tensor(row) for row in rows])


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (IDS, IDS),
        ((IDS,), IDS),
        ((IDS, None, True), IDS),
        ({"input_ids": IDS}, IDS),
        ({"tokens": IDS}, IDS),
        ({"input_ids": IDS, "decoder_input_ids": IDS + 1}, IDS + 1),
        (collated(TEXTS), collated(TEXTS)["labels"]),
        (collated(TEXTS, "left"), collated(TEXTS, "left")["labels"]),
        (collated(TEXTS, prompt=2), collated(TEXTS, prompt=2)["labels"]),
        (collated(TEXTS, prompt=3), collated(TEXTS, prompt=3)["labels"]),
        (IDS[:1] + 2000, stacked([NOT, NOT, NOT, NOT, 2005])),  # one token of many asked about, the last
        (IDS + 40, stacked([NOT, NOT, NOT, NOT, 45], [NOT, NOT, NOT, NOT, 45])),
        (stacked(SAME, IDS[0]), stacked(SAME, IDS[0])),  # a constant one beside it
        (stacked(IDS[0], IDS[1]), stacked(AFTER, IDS[1])),  # one of two
        (stacked(IDS[0], IDS[1]), stacked(AFTER, [NOT, NOT, 5, 3, 5])),
    ],
)
def test_targets_that_repeat_the_inputs_are_refused(inputs: Any, targets: Tensor) -> None:
    if isinstance(inputs, dict):
        inputs = {k: x for k, x in inputs.items() if k != "labels"}
    there = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    with pytest.raises(ValueError, match=r"sequence \d of a batch repeat its input tokens.*hugging_face_batches"):
        check_shifted(inputs, targets, None if there is None else there != 0)


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (stacked(SAME), stacked(SAME)),
        (IDS[:1], stacked([NOT, NOT, NOT, NOT, 5])),  # one token of few: by chance
        (stacked(SAME, SAME), stacked(SAME, [NOT, NOT, 7, 7, 7])),
        (stacked(IDS[0]), stacked(AFTER)),
        (stacked(SAME, IDS[0]), stacked(SAME, AFTER)),
        (stacked([1, 2, 3, 3, 3]), stacked([NOT, NOT, 3, 3, 3])),  # a completion that repeats the prompt's last token
        (stacked([3, 1, 4, 1, 5], [6, 6, 5, 3, 5]), stacked(AFTER, [6, NOT, NOT, NOT, NOT])),
        (stacked([9, 1, 9, 9], [2, 9, 9, 1]), stacked([5, NOT, 3, NOT], [NOT, 8, NOT, 1])),  # masked words
        (torch.randn(2, 5), IDS),
        ({"input_ids": IDS, "decoder_input_ids": torch.roll(IDS, 1, 1)}, IDS),  # a copying task
        ({"input_ids": IDS, "position_ids": IDS + 1}, IDS + 1),
        (completion([4, 2, 6], [6])[0], completion([4, 2, 6], [6])[1]),
        (token_batches([[1, 1, 1]])[0][0], token_batches([[1, 1, 1]])[0][1]),
    ],
)
def test_targets_that_may_repeat_the_inputs_pass(inputs: Any, targets: Tensor) -> None:
    check_shifted(inputs, targets, None)


def test_a_constant_sequence_may_be_padded() -> None:
    batch = collated([[7, 7, 7], [7, 7, 7, 7, 7]])
    check_shifted(batch["input_ids"], batch["labels"], batch["attention_mask"] != 0)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.o = nn.Embedding(V, 4), nn.Linear(4, V)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.o(self.e(input_ids))


def test_every_entry_point_refuses_labels_that_were_not_shifted() -> None:
    torch.manual_seed(0)
    model, objective = Tiny().eval(), NextToken()
    good, bad = [(IDS[:, :-1], IDS[:, 1:])], [(IDS, IDS)]
    C = ekfac(model, objective, good, layers="o", **QUIET)
    index = TrainIndex.build(model, objective, good, C, **QUIET)
    weighted = [(IDS, (IDS, torch.ones(2)))]
    for call in (
        lambda: ekfac(model, objective, bad, layers="o", **QUIET),
        lambda: gauss_newton(model, objective, bad, layers="o", **QUIET),
        lambda: ekfac(model, Weighted(objective), weighted, layers="o", **QUIET),
        lambda: influence(model, objective, bad, good, C, **QUIET),
        lambda: influence(model, objective, good, bad, C, **QUIET),
        lambda: self_influence(model, objective, bad, C, **QUIET),
        lambda: index.influence(model, objective, bad),
        lambda: capture(model, objective, IDS, IDS, layers="o"),
    ):
        with pytest.raises(ValueError, match=r"repeat its input tokens"):
            call()


def test_a_classifier_of_sequences_takes_a_collators_batches() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=V, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).double().eval()
    batch = collated(TEXTS) | {"labels": torch.tensor([0, 2, 1, 1])}
    train = hugging_face_batches([batch])
    loss = CrossEntropy().loss(*(lambda x, y: (model(**x).logits, y))(*next(iter(train))))
    assert_close(loss.mean(), model(**batch).loss, 1e-12)
    C = gauss_newton(model, CrossEntropy(), train, layers="classifier", **QUIET)
    assert influence(model, CrossEntropy(), train, train, C, **QUIET).shape == (4, 4)
