"""Next-token prediction: what counts in the loss, which labels are drawn, how batches and queries are laid out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import LOSSES, assert_close
from torch import Tensor
from torch.func import hessian, vmap

from inflib import CrossEntropy, NextToken, completion, token_batches
from inflib.objectives import label_seeds
from inflib.positions import check_batch, check_sequences, positions_present, present_means, present_rows
from inflib.sequences import IGNORED

pytestmark = pytest.mark.usefixtures("float64")

TARGETS = torch.tensor([[1, 0, 2, -100], [-100, 2, -100, 1]])


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 2


# --- the objective ------------------------------------------------------------------------------------------------------


def test_the_loss_is_summed_over_the_targets_that_count() -> None:
    f = logits(2, 4, 3)
    expected = torch.stack([LOSSES["NextToken"](f[n].flatten(), TARGETS[n]) for n in (0, 1)])
    assert_close(NextToken().loss(f, TARGETS), expected, 1e-14)
    assert_close(NextToken().token_losses(f, TARGETS).sum(1), expected, 1e-14)
    assert bool((NextToken().token_losses(f, TARGETS)[TARGETS == IGNORED] == 0).all())


def test_seeds_multiply_to_the_losss_second_derivative_and_no_tokens_product() -> None:
    f = logits(2, 4, 3)
    S = torch.stack(list(NextToken().seeds(f, TARGETS))).flatten(2)  # (K, B, T·V)
    H = vmap(hessian(lambda f, y: LOSSES["NextToken"](f.flatten(), y)))(f, TARGETS).reshape(2, 12, 12)
    assert_close(torch.einsum("kbi,kbj->bij", S, S), H, 1e-14)
    tokens = S.reshape(len(S), 2, 4, 3).abs().sum(-1) > 0
    assert int(tokens.sum(-1).max()) == 1, "a seed reaches two tokens"
    assert len(S) == 4 * 3


def test_seeds_without_targets_count_every_token() -> None:
    f = logits(2, 3, 4)
    every = torch.zeros(2, 3, dtype=torch.int64)
    assert torch.equal(torch.stack(list(NextToken().seeds(f))), torch.stack(list(NextToken().seeds(f, every))))


def test_expected_labels_are_refused_with_their_cost() -> None:
    f, y = logits(1, 50, 100), torch.zeros(1, 50, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"50 tokens × 100 classes = 5,000 backward passes.*at most 4,096.*sampled"):
        next(NextToken().seeds(f, y))
    assert next(NextToken(max_seeds=5000).seeds(f, y)).shape == f.shape


def test_labels_are_drawn_from_each_tokens_own_distribution() -> None:
    f = logits(1, 3, 4)
    u = (torch.arange(4000) + 0.5) / 4000
    drawn = NextToken().sample(f.expand(4000, 3, 4), u[:, None].expand(4000, 3))
    for t in range(3):
        share = torch.bincount(drawn[:, t], minlength=4) / 4000
        assert float((share - f[0, t].softmax(-1)).abs().max()) < 1e-3


def test_the_kth_counted_target_uses_the_kth_number_wherever_padding_puts_it() -> None:
    f, u = logits(1, 2, 3), torch.tensor([[0.13, 0.71, 0.4, 0.9, 0.2]])
    plain = NextToken().sample(f, u[:, :2])
    padded = torch.cat([logits(1, 2, 3) * 9, f, logits(1, 1, 3)], dim=1)  # two positions before, one after
    targets = torch.tensor([[IGNORED, IGNORED, 0, 0, IGNORED]])
    drawn = NextToken().sample(padded, u, targets)
    assert torch.equal(drawn[:, 2:4], plain)
    assert bool((drawn[targets == IGNORED] == IGNORED).all())


def test_sampled_seeds_leave_the_prompt_alone() -> None:
    f = logits(2, 4, 3)
    options: dict[str, Any] = {"labels": "sampled", "draws": 2, "seed": 0, "pass_": 0, "start": 0}
    for s, weight in label_seeds(NextToken(), f, TARGETS, **options):
        assert weight == 0.5
        assert bool((s[TARGETS == IGNORED] == 0).all())
        assert bool((s[TARGETS != IGNORED].abs().sum(-1) > 0).all())


def test_margin_and_logit_are_sums_over_counted_tokens() -> None:
    f, objective = logits(2, 4, 3), NextToken()
    for n in (0, 1):
        odds = logit = 0.0
        for t, y in enumerate(TARGETS[n].tolist()):
            if y != IGNORED:
                p = f[n, t].softmax(-1)[y]
                odds, logit = odds + float((p / (1 - p)).log()), logit + float(f[n, t, y])
        assert float(objective.measure("margin", f, TARGETS)[n]) == pytest.approx(odds, rel=1e-12)
        assert float(objective.measure("logit", f, TARGETS)[n]) == pytest.approx(logit, rel=1e-12)
    assert_close(objective.measure(None, f, TARGETS), -objective.loss(f, TARGETS), 1e-15)


@pytest.mark.parametrize(
    ("f", "y", "message"),
    [
        (logits(2, 3), TARGETS, r"outputs of shape \(2, 3\); expected logits \(B, T, V\)"),
        (logits(2, 4, 3), TARGETS[:, :3], r"int64 \(2, 3\); expected token ids int64 \(2, 4\).*ids\[:, :-1\]"),
        (logits(2, 4, 3), TARGETS.double(), r"targets torch.float64 \(2, 4\)"),
        (logits(2, 4, 2), TARGETS, r"the target 2; expected 0 to 1.*tokenizer"),
        (logits(2, 4, 3), TARGETS - 7, r"the target -6"),
        (logits(2, 4, 3), torch.tensor([[1, 1, 1, 1], [-100] * 4]), r"sequence 1 of a batch has no target.*completion"),
    ],
)
def test_outputs_and_targets_that_do_not_fit_are_named(f: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NextToken().check(f, y)


# --- batches and queries ------------------------------------------------------------------------------------------------


def test_batches_shift_pad_and_mask() -> None:
    (inputs, targets), (last, then) = token_batches([[5, 6, 7], [8, 9], [1, 2, 3, 4]], batch_size=2, pad=3)
    assert inputs["input_ids"].tolist() == [[5, 6], [8, 3]]
    assert inputs["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert targets.tolist() == [[6, 7], [9, -100]]
    assert last["input_ids"].tolist() == [[1, 2, 3]]
    assert then.tolist() == [[2, 3, 4]]


def test_batches_can_be_padded_on_the_left() -> None:
    ((inputs, targets),) = token_batches([torch.tensor([5, 6, 7]), [8, 9]], side="left")
    assert inputs["input_ids"].tolist() == [[5, 6], [0, 8]]
    assert inputs["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert targets.tolist() == [[6, 7], [-100, 9]]


@pytest.mark.parametrize(("side", "expected"), [("left", [[0, 1], [0, 0]]), ("right", [[0, 1], [0, 0]])])
def test_places_are_counted_from_each_sequences_own_beginning(side: str, expected: list[list[int]]) -> None:
    ((inputs, _),) = token_batches([[5, 6, 7], [8, 9]], side=side, position_ids=True)
    assert inputs["position_ids"].tolist() == expected
    assert list(inputs) == ["input_ids", "attention_mask", "position_ids"]
    ((inputs, _),) = token_batches([[5, 6, 7, 8], [8, 9, 9]], side="left", position_ids=True)
    assert inputs["position_ids"].tolist() == [[0, 1, 2], [0, 0, 1]]


def test_a_query_predicts_its_completion_alone() -> None:
    inputs, targets = completion([1, 2, 3], [4, 5])
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 4]]
    assert targets.tolist() == [[-100, -100, 4, 5]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1]]
    f = logits(1, 4, 6)
    chain = f[0, 2].log_softmax(-1)[4] + f[0, 3].log_softmax(-1)[5]
    assert float(NextToken().measure(None, f, targets)) == pytest.approx(float(chain), rel=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: token_batches([]), "no sequences came"),
        (lambda: token_batches(5), r"token_batches got 5; expected a list of sequences.*\[ids\]"),
        (lambda: token_batches([[1, 2], [3]]), r"sequence 1 has 1 token\(s\); expected at least 2"),
        (lambda: token_batches([[1, 2], "ab"]), "sequence 1"),
        (
            lambda: token_batches([[1.5, 2.0]]),
            r"sequence 0 is torch.float\d+ of shape \(2,\); expected one list of token",
        ),
        (lambda: token_batches([[1, -2]]), "whole numbers from 0"),
        (lambda: token_batches([[[1, 2], [3, 4]]]), r"of shape \(2, 2\)"),
        (lambda: token_batches([[1, 2]], side="middle"), "side='middle'; expected 'right' or 'left'"),
        (lambda: completion([], [1]), "the prompt is empty; expected at least one token"),
        (lambda: completion([1], []), "the completion is empty"),
        (lambda: completion([1, 2, 3], [4, 5], context=3), r"take 4 positions \(3 \+ 2 tokens.*at most 3"),
    ],
)
def test_what_is_no_sequence_or_query_is_named(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_query_may_fill_the_context() -> None:
    assert completion([1, 2, 3], [4, 5], context=4)[0]["input_ids"].shape == (1, 4)


# --- which positions are there ------------------------------------------------------------------------------------------


def test_rows_at_padding_are_left_out_and_a_second_call_has_its_own() -> None:
    there = torch.tensor([[True, True, False], [False, True, True]])
    a = torch.arange(2 * 3, dtype=torch.float64).reshape(2, 3, 1)
    assert present_rows(a, there).flatten().tolist() == [0, 1, 4, 5]
    assert present_rows(a, None).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    twice = torch.cat([a, a + 10], dim=1)  # as a layer called twice lines up its calls
    assert present_rows(twice, there.repeat(1, 2)).flatten().tolist() == [0, 1, 10, 11, 4, 5, 14, 15]


def test_means_are_over_the_positions_that_are_there() -> None:
    there = torch.tensor([[True, True, False], [False, True, True]])
    a = torch.arange(2 * 3, dtype=torch.float64).reshape(2, 3, 1)
    assert present_means(a, None).flatten().tolist() == [1, 4]
    a[0, 2], a[1, 0] = float("nan"), float("inf")  # what stands at padding is never looked at
    assert present_means(a, there).flatten().tolist() == [0.5, 4.5]
    assert present_means(torch.cat([a, a + 10], dim=1), there.repeat(1, 2)).flatten().tolist() == [5.5, 9.5]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 1, 3, 3), r"attention_mask came as \(2, 1, 3, 3\); expected \(B, T\)"),
        (torch.ones(2, 2), r"attention_mask came as \(2, 2\); expected \(2, 3\), the input_ids' shape.*mask\[:, :-1\]"),
        (torch.tensor([[1, 0, 1], [0, 0, 0]]), "the attention_mask of sequence 1 of a batch hides every position"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_named(mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        positions_present({"input_ids": torch.zeros(2, 3, dtype=torch.int64), "attention_mask": mask})


# --- inputs, mask and targets together ----------------------------------------------------------------------------------


def left_out(*rows: list[int]) -> Tensor:
    """Targets that count where a row has a 1."""
    return torch.where(torch.tensor(rows) == 1, 2, IGNORED)


@pytest.mark.parametrize(
    "targets",
    [
        left_out([0, 1, 1, 1], [0, 0, 0, 1]),  # prompts of two lengths
        left_out([1, 1, 1, 0], [1, 0, 1, 0]),  # what is left out inside, and at the end of all rows
        left_out([0, 0, 1, 0]),
    ],
)
def test_targets_that_no_padding_need_have_left_out_want_no_mask(targets: Tensor) -> None:
    ids = torch.zeros_like(targets)
    check_sequences(ids, targets)
    check_sequences({"input_ids": ids}, targets)
    check_sequences((ids, ids), targets)


@pytest.mark.parametrize("inputs", [torch.zeros(2, 4).long(), (torch.zeros(2, 4).long(), torch.ones(2, 4))])
def test_targets_left_out_at_the_ends_of_some_rows_want_a_mask(inputs: Any) -> None:
    targets = left_out([1, 1, 1, 1], [1, 1, 0, 0])
    message = r"unequal length came without attention_mask \(0 to 2 targets at the.*or a mask of ones"
    with pytest.raises(ValueError, match=message):
        check_sequences(inputs, targets)
    ids = torch.zeros(2, 4).long()
    check_sequences({"input_ids": ids, "attention_mask": torch.ones(2, 4)}, targets)


def test_a_mask_beside_embeddings_is_held_against_the_targets() -> None:
    inputs = {"inputs_embeds": torch.zeros(2, 4, 3), "attention_mask": torch.ones(2, 3)}
    with pytest.raises(ValueError, match=r"attention_mask came as \(2, 3\); expected \(2, 4\), the targets' shape"):
        check_sequences(inputs, torch.zeros(2, 4).long())


def test_a_classifier_of_sequences_may_have_a_mask_of_its_own_length() -> None:
    inputs = {"input_ids": torch.zeros(2, 4).long(), "attention_mask": torch.ones(2, 4)}
    check_batch(CrossEntropy(), inputs, torch.tensor([0, 1]))
    inputs["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="sequence 1 of a batch hides every position"):
        check_batch(CrossEntropy(), inputs, torch.tensor([0, 1]))


def test_a_sequence_takes_one_uniform_number_for_each_position_however_many_tokens_there_are() -> None:
    assert [NextToken().uniforms(torch.randn(2, T, V)) for T, V in ((5, 3), (3, 5))] == [5, 3]
