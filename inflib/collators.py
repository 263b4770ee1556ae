"""From a Hugging Face collator's dicts to (inputs, targets): its own loaders, as its trainer reads them.

    causal language model     labels = input_ids, shifted inside the model        targets labels[:, 1:], inputs [:, :-1]
    encoder and decoder       labels beside decoder_input_ids, already shifted    targets labels
    masked words, tagging     labels (B, T), others than input_ids                targets labels
    classification            labels (B,)                                         targets labels

Labels of −100 are left out of the loss. A position that predicts nothing, as its sequence has ended, is masked: factors
are those of ``token_batches`` then, whatever the padding and its side. Padding predicts nothing either (on the left it
does in the model's own loss: each sequence's first token).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from .batches import mapped, say
from .sequences import IGNORED, Shifted


@dataclass(frozen=True)
class HuggingFaceBatches:
    """What ``hugging_face_batches`` gives: (inputs, targets) made of a loader's dicts each time it is walked over."""

    loader: Iterable[Mapping[str, Any]]
    shift: bool | None
    model: nn.Module | None
    device: torch.device | str | None

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        before: bool | None = None  # whether the labels repeated the inputs so far
        for index, item in enumerate(self.loader):
            inputs, labels = _parted(item, index)
            if self.device is not None:
                inputs, labels = mapped((inputs, labels), lambda x: x.to(self.device))
            if labels.ndim == 1:
                yield inputs, labels[:, None] if labels.is_floating_point() else labels
            elif "decoder_input_ids" in inputs or _decodes(self.model):
                yield self._decoded(inputs, labels)
            else:
                repeats = _repeats(inputs, labels, index) if self.shift is None else self.shift
                if None not in (before, repeats) and before != repeats:
                    raise ValueError(
                        f"the labels of batch {index} {'repeat' if repeats else 'do not repeat'} its input_ids, those "
                        "before it did otherwise; expected one kind. Say which: hugging_face_batches(loader, "
                        "shift=True) for a causal language model, shift=False for labels that stand where their "
                        "prediction does."
                    )
                before = before if repeats is None else repeats
                yield _shifted(inputs, labels) if before else (inputs, labels)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def _decoded(self, inputs: dict[str, Any], labels: Tensor) -> tuple[dict[str, Any], Tensor]:
        if "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels=labels)  # type: ignore
        if inputs.get("decoder_attention_mask") is None:
            # a position is there up to the last label that counts
            there = (labels != IGNORED).flip(1).cumsum(1).flip(1) > 0
            inputs["decoder_attention_mask"] = there.long()
        return Shifted(inputs), labels


def hugging_face_batches(
    loader: Iterable[Mapping[str, Any]],
    *,
    shift: bool | None = None,
    model: nn.Module | None = None,
    device: torch.device | str | None = None,
) -> HuggingFaceBatches:
    """A loader of a Hugging Face collator's dicts, or a list of them, as (inputs, targets) batches to be walked over.

    So ``hugging_face_batches(trainer.get_train_dataloader())`` is a training side. A loader that shuffles
    or groups by length is read in its dataset's own order, all of it: example n is ``dataset[n]``.

    shift:  whether the model shifts its labels itself. None: where they repeat the input_ids at every label that
            counts, as those of causal language models do, in every batch alike.
    model:  an encoder-decoder whose collator was given no model, and so leaves decoder_input_ids to be made by it.
    device: where to put the tensors, for a loader that leaves them on the CPU.

    inputs hold all but the labels; ``NextToken`` is the objective of labels (B, T), ``CrossEntropy`` of labels (B,);
    fractions (B,) become (B, 1), as a regression head's output is, for ``SquaredError``.
    Raises TypeError for a loader that cannot be walked over twice or whose items are no dicts with labels, and
    ValueError where some batches repeat their inputs and others do not.
    """
    if isinstance(loader, (Mapping, Iterator)) or not isinstance(loader, Iterable):
        raise TypeError(
            f"hugging_face_batches got {say(loader)}; expected a DataLoader or a list of a collator's dicts, which can "
            "be walked over several times. One batch is a list of one: [batch]."
        )
    return HuggingFaceBatches(_in_order(loader), shift, model, device)


def _in_order(loader: Any) -> Any:
    """A DataLoader that shuffles, over the same dataset in its own order; any other loader as it is."""
    if not isinstance(loader, DataLoader):
        return loader
    batches = loader.batch_sampler
    sampler = getattr(batches, "sampler", loader.sampler)  # a given batch_sampler leaves another in loader.sampler
    if not _permutes(sampler) or len(sampler) != len(loader.dataset):  # type: ignore[arg-type]
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=getattr(batches, "batch_size", loader.batch_size),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
    )


def _permutes(sampler: Any) -> bool:
    """Whether a sampler draws every example once in an order of its own: a shuffle, or a trainer's by length."""
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement
    return type(sampler).__name__ == "LengthGroupedSampler"


def _parted(item: Any, index: int) -> tuple[dict[str, Any], Tensor]:
    """The inputs and the labels of a collator's dict."""
    if not isinstance(item, Mapping):
        raise TypeError(
            f"batch {index} is {say(item)}; expected a collator's dict with labels. Give pairs (inputs, targets) to "
            "inflib as they are."
        )
    inputs = {key: item[key] for key in item}
    labels = [inputs.pop(key, None) for key in ("labels", "label")]
    found = next((y for y in labels if y is not None), None)
    if not isinstance(found, Tensor) or found.ndim == 0:
        came = ", ".join(map(str, item)) if found is None else say(found)
        raise TypeError(
            f"batch {index} holds {came}; expected a tensor of labels (B, ...) among them. Use a collator that gives "
            "labels, for a language model DataCollatorForLanguageModeling(tokenizer, mlm=False). A datasets.Dataset "
            "gives tensors once it is told to: dataset.with_format('torch')."
        )
    ids = inputs.get("input_ids")
    if isinstance(ids, Tensor) and ids.ndim == 1:
        raise ValueError(
            f"batch {index} has input_ids {tuple(ids.shape)}, one example's; expected a batch of them (B, T). Walk "
            "over a DataLoader of the dataset, or for texts to be learnt give its rows to token_batches(dataset)."
        )
    return inputs, found


def _decodes(model: nn.Module | None) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _repeats(inputs: dict[str, Any], labels: Tensor, index: int) -> bool | None:
    """Whether labels are a causal language model's, its inputs again; None where none of them counts."""
    ids, counted = inputs.get("input_ids"), labels != IGNORED
    if labels.ndim != 2 or labels.is_floating_point():
        return False
    if not isinstance(ids, Tensor) or ids.shape != labels.shape:
        raise ValueError(
            f"batch {index} has labels {tuple(labels.shape)} beside no input_ids of that shape; expected to see if "
            "they repeat the inputs. Say it: hugging_face_batches(loader, shift=True) for a causal language model, "
            "shift=False for labels that stand where their prediction does."
        )
    return bool(((ids == labels) | ~counted).all()) if bool(counted.any()) else None


def _shifted(inputs: dict[str, Any], labels: Tensor) -> tuple[dict[str, Any], Tensor]:
    """Inputs without their last position, and for each the label that follows; sequences' own last ones are masked."""
    B, T = labels.shape
    cut = {key: x[:, :-1] if isinstance(x, Tensor) and x.shape[:2] == (B, T) else x for key, x in inputs.items()}
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == (B, T):
        cut["attention_mask"] = mask[:, :-1] * mask[:, 1:]
        # with padding on the left a model's own loss has padding predict the first token
        return Shifted(cut), labels[:, 1:].where(mask[:, :-1] != 0, IGNORED)
    return Shifted(cut), labels[:, 1:]
