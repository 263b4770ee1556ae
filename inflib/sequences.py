"""Language models: a sequence's loss is the sum over its tokens, and a query is a prompt with a completion.

    ℓ_n = −Σ_t log p(token t+1 | tokens ≤ t)                (Grosse et al. 2023, eq. 22)
    m_q = log p(completion | prompt)                        (eq. 24 and 25)

Two masks, never to be mixed up: a target of −100 leaves a prediction out of the *loss* (a prompt's tokens), while
``inputs["attention_mask"]`` says which positions are there at all. A padded position counts nowhere; a masked prompt
position still has activations, which count in A. Labels are drawn for each counted target on its own, and the curvature
treats the T predictions of a sequence as T outputs of one example, so that H_out has a block diag(p_t) − p_t p_tᵀ each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .batches import double
from .objectives import Objective, TooManySeedsError, inverse_cdf
from .objectives.softmax import softmax_seeds
from .texts import check_ids, context_of, part
from .tokenised import rows_of

IGNORED = -100  # the target of a position that is not in the loss
MAX_SEEDS = 4096  # backward passes a batch that expected labels may take
Tokens = Sequence[int] | Tensor  # the ids of one sequence


class Shifted(dict[str, Any]):
    """Inputs by name whose targets inflib itself shifted: that they follow need not be asked of them again."""


# to torch a dict of its own, as the inputs of a batch are: tree_map, vmap
pytree.register_pytree_node(
    Shifted, lambda d: (list(d.values()), list(d)), lambda x, keys: Shifted(zip(keys, x, strict=True))
)


class NextToken(Objective):
    """Cross-entropy of logits (B, T, V) and targets (B, T), summed over the tokens; −100 leaves a target out.

    Logits at position t are for ``targets[:, t]``: shift the targets, not the logits (``token_batches`` does).
    Labels are drawn from the model, one per counted target ("sampled"); "expected" takes T · V backward passes a batch
    and is refused above ``max_seeds`` of them.
    """

    default_labels = "sampled"

    def __init__(self, max_seeds: int = MAX_SEEDS):
        self.max_seeds = max_seeds

    def check(self, outputs: Tensor, targets: Any) -> None:
        if outputs.ndim != 3:
            raise ValueError(
                f"NextToken got outputs of shape {tuple(outputs.shape)}; expected logits (B, T, V). "
                "Have the model return a row of logits for every position of every sequence."
            )
        if not isinstance(targets, Tensor) or targets.shape != outputs.shape[:2] or targets.dtype != torch.int64:
            came = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
            raise ValueError(
                f"NextToken got targets {came}; expected token ids int64 {tuple(outputs.shape[:2])}, at each position "
                "the token that follows. Fix: inputs ids[:, :-1], targets ids[:, 1:]; see inflib.token_batches."
            )
        if targets.device != outputs.device:
            raise ValueError(
                f"NextToken got targets on {targets.device}, outputs on {outputs.device}; expected one device. "
                f"Move the targets: y.to('{outputs.device}')."
            )
        counted = targets != IGNORED
        wrong = counted & ((targets < 0) | (targets >= outputs.shape[2]))
        if bool(wrong.any()):
            raise ValueError(
                f"NextToken got the target {int(targets[wrong][0])}; expected 0 to {outputs.shape[2] - 1}, the model's "
                f"vocabulary, or {IGNORED} for a position that is not in the loss. Check the tokenizer."
            )
        if not bool(counted.any(1).all()):
            raise ValueError(
                f"sequence {int((~counted.any(1)).nonzero()[0])} of a batch has no target that counts (all are "
                f"{IGNORED}); expected at least one token to predict. Leave the sequence out, or give it a completion."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.token_losses(outputs, targets).sum(1)  # (B,)

    def token_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """−log p of every target, (B, T); 0 where the target is −100."""
        flat = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return flat.reshape(targets.shape)

    def seeds(self, outputs: Tensor, targets: Any = None) -> Iterator[Tensor]:
        """√p_tc (e_c − p_t) at one token t at a time: all at once would add products of different tokens' gradients."""
        V = outputs.shape[2]
        counted = torch.ones_like(outputs[..., 0], dtype=torch.bool) if targets is None else targets != IGNORED
        tokens = int(counted.any(0).sum())
        if tokens * V > self.max_seeds:
            raise TooManySeedsError(
                f"labels='expected' would take {tokens:,} tokens × {V:,} classes = {tokens * V:,} backward "
                f"passes for a batch; expected at most {self.max_seeds:,}. Use labels='sampled' (the default), or "
                "allow it: NextToken(max_seeds=...)."
            )
        for s in softmax_seeds(outputs.mT, counted.to(outputs)):
            yield s.mT

    def uniforms(self, outputs: Tensor) -> int:
        return outputs.shape[1]

    def sample(self, outputs: Tensor, uniforms: Tensor, targets: Any = None) -> Tensor:
        """Labels (B, T) where targets count; the k-th counted one uses the k-th number, wherever padding puts it."""
        counted = torch.ones_like(outputs[..., 0], dtype=torch.bool) if targets is None else targets != IGNORED
        own = uniforms.gather(1, (counted.cumsum(1) - 1).clamp_min(0).to(uniforms.device))[..., None]  # (B, T, 1)
        drawn = inverse_cdf(double(outputs).softmax(-1), own)  # (B, T)
        return drawn.to(outputs.device).where(counted, IGNORED)

    def logit(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The targets' logits, summed over the tokens (B,)."""
        return self._sum(targets, lambda y: outputs.gather(-1, y[..., None]).squeeze(-1))

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The targets' log odds, f_y − log Σ_{c≠y} exp f_c, summed over the tokens (B,)."""

        def odds(y: Tensor) -> Tensor:
            others = outputs.scatter(-1, y[..., None], -math.inf)
            return outputs.gather(-1, y[..., None]).squeeze(-1) - others.logsumexp(-1)

        return self._sum(targets, odds)

    def tokens(self, targets: Tensor) -> int:
        """T, the length of the token axis of ``keep=("token",)``."""
        return targets.shape[1]

    @staticmethod
    def _sum(targets: Tensor, each: Callable[[Tensor], Tensor]) -> Tensor:
        counted = targets != IGNORED
        return (each(targets.where(counted, 0)) * counted).sum(1)


# --- batches -----------------------------------------------------------------------------------------------------


def token_batches(
    sequences: Any,
    batch_size: int = 32,
    *,
    targets: Any = None,
    pad: int = 0,
    side: str = "right",
    position_ids: bool = False,
    device: torch.device | str | None = None,
) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Sequences of token ids as (inputs, targets) batches, in order: every token but the first is predicted.

    sequences: lists of token ids, what a tokenizer gave (BatchEncoding, padded or not), or rows of a dataset, each with
    its input_ids, attention_mask and labels. A padded tensor needs its mask.
    targets: for each sequence its labels, at every position its own token, or −100 where it is not to be learnt (the
    prompt of a fine-tuned answer). Such positions are read, and count in A, but not in the loss. None: the rows' own
    labels where they have them (or ``assistant_masks``, ``completion_mask``), else all tokens count.

    inputs: {"input_ids": (B, T), "attention_mask": (B, T)}, targets (B, T), T the longest of its batch minus one;
    shorter ones are padded with ``pad`` on ``side`` ("right" or "left"), masked, and their padding is in no loss.
    position_ids=True adds {"position_ids": (B, T)}, each token's place in its sequence: Hugging Face's models would
    count padding on the left.
    Raises ValueError for no sequence, or one of fewer than two tokens.
    """
    if side not in ("right", "left"):
        raise ValueError(f"side={side!r}; expected 'right' or 'left', where the padding goes. Leave it at 'right'.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected at least 1 sequence a batch.")
    if not isinstance(sequences, Iterable):
        raise TypeError(
            f"token_batches got {sequences!r:.60}; expected a list of sequences, each a list of token ids. "
            "One sequence is a list of one: [ids]."
        )
    rows = rows_of(sequences, targets)
    ids = [_ids(tokens, f"sequence {n}") for n, (tokens, _) in enumerate(rows)]
    labels = [tokens if own is None else own for tokens, (_, own) in zip(ids, rows, strict=True)]
    for n, tokens in enumerate(ids):
        if len(tokens) < 2:
            raise ValueError(
                f"sequence {n} has {len(tokens)} token(s); expected at least 2: the first is never predicted. "
                "Leave it out, or start every sequence with a token of its own."
            )
    if not ids:
        raise ValueError("no sequences came; expected at least one list of token ids.")
    found = []
    for at in range(0, len(ids), batch_size):
        some = zip(ids[at : at + batch_size], labels[at : at + batch_size], strict=True)
        inputs, follows = _padded([(tokens[:-1], own[1:]) for tokens, own in some], pad, side, device)
        if position_ids:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        found.append((inputs, follows))
    return found


def completion(
    prompt: Tokens | str,
    completion: Tokens | str,
    *,
    tokenizer: Any = None,
    model: nn.Module | None = None,
    context: int | None = None,
    device: torch.device | str | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """A query as a batch of one: with ``NextToken`` its log-likelihood is log p(completion | prompt).

    The prompt's own tokens are read but not predicted. Two texts with a ``tokenizer`` (Hugging Face's, or anything with
    ``encode`` and ``decode``), or two lists of ids. The completion's tokens are those it has after the prompt; a
    TokenNote says where it has others alone. ``context``: the longest input the model takes; ``model``: whose
    config says so, and whose vocabulary the ids must be of.
    Raises ValueError for an empty prompt or completion, for one that does not fit the context, and for another model's
    tokenizer.
    """
    if tokenizer is not None:
        prompt, completion = part(tokenizer, prompt, completion)
    first, then = _ids(prompt, "the prompt"), _ids(completion, "the completion")
    if len(first) == 0:
        raise ValueError(
            "the prompt is empty; expected at least one token for the completion to follow. Begin it with the token "
            "that begins a text in training (a newline, a start token)."
        )
    if len(then) == 0:
        raise ValueError("the completion is empty; expected at least one token, whose probability is asked about.")
    inputs = torch.cat([first, then[:-1]])
    if model is not None:
        check_ids(model, torch.cat([first, then]).tolist(), tokenizer)
        context = context_of(model) if context is None else context
    if context is not None and len(inputs) > context:
        raise ValueError(
            f"prompt and completion take {len(inputs)} positions ({len(first)} + {len(then)} tokens, the last is not "
            f"read); expected at most {context}, the model's context. Shorten the prompt from its beginning."
        )
    targets = torch.cat([torch.full_like(first[:-1], IGNORED), then])
    return _padded([(inputs, targets)], 0, "right", device)


def _padded(
    rows: list[tuple[Tensor, Tensor]], pad: int, side: str, device: torch.device | str | None
) -> tuple[dict[str, Tensor], Tensor]:
    length = max(len(inputs) for inputs, _ in rows)

    def fill(x: Tensor, value: int) -> Tensor:
        missing = length - len(x)
        return F.pad(x, (0, missing) if side == "right" else (missing, 0), value=value)

    inputs = Shifted(
        input_ids=torch.stack([fill(x, pad) for x, _ in rows]).to(device),
        attention_mask=torch.stack([fill(torch.ones_like(x), 0) for x, _ in rows]).to(device),
    )
    return inputs, torch.stack([fill(y, IGNORED) for _, y in rows]).to(device)


def _ids(tokens: Tokens | str, what: str) -> Tensor:
    """Token ids as an int64 vector on the CPU."""
    try:
        ids = torch.as_tensor(tokens, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{what} is {repr(tokens).splitlines()[0]:.60}; expected a list of token ids. Encode the text first, "
            "vocabulary.encode(text), or let completion do it: completion(prompt, completion, tokenizer=...). Rows of "
            "a datasets.Dataset in another format: dataset.with_format('torch')."
        ) from None
    if ids.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool or int(ids.min()) < 0:
        raise ValueError(
            f"{what} is {ids.dtype} of shape {tuple(ids.shape)}; expected one list of token ids, whole numbers from 0 "
            "on. Encode the text first: vocabulary.encode(text)."
        )
    return ids.to(torch.int64)
