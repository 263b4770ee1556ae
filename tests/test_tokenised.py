"""Batches from people's tools: tokenizer output, rows of datasets, labels of fine-tuning, loaders that group by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from inflib import NextToken, capture, ekfac, hugging_face_batches, token_batches

TEXTS = ["a b c d", "b c", "d a b a c a", "c c a"]
IDS = [[1, 2, 3, 4], [2, 3], [4, 1, 2, 1, 3, 1], [3, 3, 1]]
PAD = 0


def tokenizer(side: str = "right") -> Any:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": PAD, "a": 1, "b": 2, "c": 3, "d": 4}, "<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", padding_side=side)


class Rows(Sequence[dict[str, Any]]):
    """As a datasets.Dataset behaves: a row is a dict, of lists or, formatted, of tensors."""

    def __init__(self, rows: list[dict[str, Any]], formatted: bool):
        self.rows, self.formatted = rows, formatted

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, n: Any) -> Any:
        row = self.rows[n]
        return {key: torch.tensor(x) for key, x in row.items()} if self.formatted else row


def equal(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(
        set(x) == set(a) and all(torch.equal(x[k], a[k]) for k in x) and torch.equal(y, b)
        for (x, y), (a, b) in zip(one, other, strict=True)
    )


# --- sequences --------------------------------------------------------------------------------------------------------------


def given(how: str) -> Any:
    if how == "unpadded":
        return tokenizer()(TEXTS)
    if how in ("padded", "padded left"):
        return tokenizer("left" if how.endswith("left") else "right")(TEXTS, padding=True, return_tensors="pt")
    if how == "one encoding a text":
        return [tokenizer()(text) for text in TEXTS]
    if how == "padded lists":
        return tokenizer()(TEXTS, padding="max_length", max_length=9)
    if how == "tensors":
        return [torch.tensor(ids) for ids in IDS]
    return Rows([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in IDS], how == "formatted rows")


WAYS = ["unpadded", "padded", "padded left", "one encoding a text", "padded lists", "tensors", "rows", "formatted rows"]


@pytest.mark.parametrize("how", WAYS)
def test_whatever_gives_the_tokens_the_batches_are_the_same(how: str) -> None:
    assert equal(token_batches(given(how), 3), token_batches(IDS, 3))


def test_one_texts_encoding_is_one_sequence() -> None:
    assert equal(token_batches(tokenizer()(TEXTS[0])), token_batches(IDS[:1]))


def padded(ids: list[list[int]], side: str, pad: int = PAD) -> Tensor:
    T = max(map(len, ids))
    fill = [[pad] * (T - len(row)) for row in ids]
    return torch.tensor([row + some if side == "right" else some + row for row, some in zip(ids, fill, strict=True)])


@pytest.mark.parametrize(("side", "where"), [("right", "end"), ("left", "begin")])
@pytest.mark.parametrize("keyed", [False, True])
def test_padding_without_a_mask_is_refused(side: str, where: str, keyed: bool) -> None:
    ids = padded(IDS, side)
    with pytest.raises(ValueError, match=rf"whose rows {where} with up to 4 times the id 0, .*Give the mask too"):
        token_batches({"input_ids": ids} if keyed else ids)
    mask = padded([[1] * len(row) for row in IDS], side)
    assert equal(token_batches({"input_ids": ids, "attention_mask": mask}), token_batches(IDS))


def test_a_tensor_of_whole_rows_is_no_padding_though_some_end_in_one_token_twice() -> None:
    blocks = torch.tensor([[1, 2, 3, 3], [3, 1, 2, 4], [2, 4, 1, 3]])
    assert equal(token_batches(blocks), token_batches(blocks.tolist()))
    alike = torch.tensor([[1, 2, 4, 4], [2, 1, 4, 4]])
    assert equal(token_batches(alike), token_batches(alike.tolist()))
    assert equal(token_batches(padded(IDS, "right").tolist()), token_batches(padded(IDS, "right").tolist()))


# --- labels -----------------------------------------------------------------------------------------------------------------

LABELS = [[-100, -100, 3, 4], [-100, 3], [-100, -100, -100, 1, 3, 1], [-100, -100, 1]]
WANTED = torch.tensor(
    [[-100, 3, 4, -100, -100], [3, -100, -100, -100, -100], [-100, -100, 1, 3, 1], [-100, 1, -100, -100, -100]]
)


@pytest.mark.parametrize("how", ["targets", "tensors", "labels", "assistant_masks", "completion_mask", "padded"])
def test_a_prompt_is_read_and_not_learnt(how: str) -> None:
    marks = [[int(label != -100) for label in row] for row in LABELS]
    if how == "targets":
        found = token_batches(IDS, targets=LABELS)
    elif how == "tensors":
        found = token_batches(tokenizer()(TEXTS), targets=[torch.tensor(row) for row in LABELS])
    elif how == "padded":
        mask = padded([[1] * len(row) for row in IDS], "right")
        labels = padded(LABELS, "right", -100)
        found = token_batches({"input_ids": padded(IDS, "right"), "attention_mask": mask, "labels": labels})
    else:
        column = LABELS if how == "labels" else marks
        found = token_batches([{"input_ids": ids, how: some} for ids, some in zip(IDS, column, strict=True)])
    (inputs, targets), (plain, _) = found[0], token_batches(IDS)[0]
    assert torch.equal(targets, WANTED)
    assert all(torch.equal(inputs[key], plain[key]) for key in plain)


def test_the_collators_labels_give_the_same_targets() -> None:
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
        for ids, labels in zip(IDS, LABELS, strict=True)
    ]
    collate = transformers.DataCollatorForSeq2Seq(tokenizer(), label_pad_token_id=-100)
    ((inputs, targets),) = hugging_face_batches(DataLoader(rows, batch_size=4, collate_fn=collate))
    (own, follows) = token_batches(rows)[0]
    assert torch.equal(targets, follows) and torch.equal(inputs["attention_mask"], own["attention_mask"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[-100, 2, 3, 3], *LABELS[1:]], r"labels of sequence 0 are other ids than its tokens'"),
        ([[-100, 2, 3], *LABELS[1:]], r"labels of sequence 0 are 3 for 4 tokens"),
        ([[1, -100, -100, -100], *LABELS[1:]], r"sequence 0 has no target that counts"),
        (LABELS[:2], r"targets= came with 2 entries for 4 sequences"),
    ],
)
def test_labels_that_are_not_the_tokens_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_batches(IDS, targets=labels)


def test_labels_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="which have labels of their own"):
        token_batches([{"input_ids": IDS[0], "labels": LABELS[0]}], targets=LABELS[:1])


def test_what_holds_no_ids_is_refused_with_how_to_make_them() -> None:
    with pytest.raises(TypeError, match=r"a dict with text came; expected 'input_ids'"):
        token_batches({"text": TEXTS})
    with pytest.raises(TypeError, match=r"row 0 holds text; expected 'input_ids'.*Tokenise first"):
        token_batches([{"text": text} for text in TEXTS])


# --- loaders ------------------------------------------------------------------------------------------------------------------


def test_a_loader_that_groups_by_length_is_read_in_the_datasets_order() -> None:
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in IDS]
    collate = transformers.DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    sampler = LengthGroupedSampler(2, dataset=rows)
    loader = DataLoader(rows, batch_size=2, sampler=sampler, collate_fn=collate)
    found = list(hugging_face_batches(loader))
    firsts = [int(row[0]) for inputs, _ in found for row in inputs["input_ids"]]
    assert firsts == [ids[0] for ids in IDS]
    assert [len(targets) for _, targets in found] == [2, 2]


def test_labels_in_lists_are_refused_with_how_a_dataset_gives_tensors() -> None:
    with pytest.raises(TypeError, match=r"dataset.with_format\('torch'\)"):
        list(hugging_face_batches([{"input_ids": [[1, 2]], "labels": [[1, 2]]}]))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(torch.tanh(self.token(input_ids)))


def test_a_prompts_tokens_give_no_gradient_in_the_head() -> None:
    torch.manual_seed(0)
    model = Tiny()
    inputs, targets = token_batches(IDS, targets=LABELS)[0]
    pair = capture(model, NextToken(), inputs, targets, layers="head")["head"]
    assert torch.equal((pair.g != 0).any(-1), targets != -100)


# --- ids and positions that the model does not have -------------------------------------------------------------------------


def causal(kind: type) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 5, "max_position_embeddings": 4, "hidden_size": 4, "num_hidden_layers": 1}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "num_attention_heads": 2}
    more = {"intermediate_size": 6} if kind is transformers.LlamaConfig else {}
    return transformers.AutoModelForCausalLM.from_config(kind(**sizes, **ends, **more)).eval()


@pytest.mark.filterwarnings("ignore::inflib.CoverageNote")
@pytest.mark.parametrize("kind", [transformers.GPT2Config, transformers.LlamaConfig])
def test_ids_of_another_tokenizer_are_refused_before_the_model_runs(kind: type) -> None:
    model, mine = causal(kind), token_batches([[1, 2, 3], [4, 1]])
    ran: list[Any] = []
    model.register_forward_pre_hook(lambda *_: ran.append(None))
    with pytest.raises(ValueError, match=r"the token id 5 came with a model of 5; expected the model's own tokenizer"):
        ekfac(model, NextToken(), token_batches([[1, 2, 3], [1, 5, 2]]), progress=False)
    assert not ran
    ekfac(model, NextToken(), mine, progress=False)
    assert ran


@pytest.mark.filterwarnings("ignore::inflib.CoverageNote")
def test_a_sequence_longer_than_the_learned_positions_is_refused_and_rotary_ones_have_no_end() -> None:
    fits, longer = (token_batches([[1, 2, 3, 4, 1, 2][:n]]) for n in (5, 6))
    learned, rotary = causal(transformers.GPT2Config), causal(transformers.LlamaConfig)
    with pytest.raises(ValueError, match=r"5 positions came, and the model has learned 4; .*ids\[:5\] for ids in"):
        ekfac(learned, NextToken(), longer, progress=False)
    for model, train in ((learned, fits), (rotary, longer)):
        ekfac(model, NextToken(), train, progress=False)
