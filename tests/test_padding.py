"""Which mask belongs to which layer: an encoder's and a decoder's, a caption beside an image, frames made from sounds.

The oracle of A is a sum over the rows that a layer read at positions that are there, taken by a hook of the test's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import assert_close
from torch import Tensor, nn

from inflib import CrossEntropy, NextToken, PaddingNote, ekfac, with_masks
from inflib.kfac import Moments, second_moments

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::inflib.CoverageNote")]

SOURCE, TARGET, WIDTH, WORDS = 4, 4, 3, 7


def there(*lengths: int, of: int) -> Tensor:
    return (torch.arange(of) < torch.tensor(lengths)[:, None]).long()


class EncoderDecoder(nn.Module):
    """Attention that hides what its masks hide, over a source and a target of one length."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.write = nn.Embedding(WORDS, WIDTH), nn.Embedding(WORDS, WIDTH)
        for name in ("enc_q", "enc_k", "enc_v", "dec_q", "dec_k", "dec_v", "cross_q", "cross_k", "cross_v"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))
        self.out = nn.Linear(WIDTH, WORDS)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return (q @ k.mT).masked_fill(mask == 0, -torch.inf).softmax(-1) @ v

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor, decoder_attention_mask: Tensor
    ) -> Tensor:
        x, y = self.read(input_ids), self.write(decoder_input_ids)
        source = attention_mask[:, None, :]
        x = x + self.attend(self.enc_q(x), self.enc_k(x), self.enc_v(x), source)
        causal = torch.ones(y.shape[1], y.shape[1]).tril() * decoder_attention_mask[:, None, :]
        y = y + self.attend(self.dec_q(y), self.dec_k(y), self.dec_v(y), causal)
        y = y + self.attend(self.cross_q(y), self.cross_k(x), self.cross_v(x), source)
        return self.out(y)


ENCODER = ("enc_q", "enc_k", "enc_v", "cross_k", "cross_v")
DECODER = ("dec_q", "dec_k", "dec_v", "cross_q", "out")


def translation(source: Tensor, target: Tensor, seed: int = 1) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def ids(mask: Tensor) -> Tensor:
        return torch.randint(1, WORDS, mask.shape, generator=generator) * mask

    inputs = {
        "input_ids": ids(source),
        "attention_mask": source,
        "decoder_input_ids": ids(target),
        "decoder_attention_mask": target,
    }
    return inputs, ids(target).where(target == 1, -100)


def read(model: nn.Module, inputs: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """What each named module was given, by a hook of its own."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        return lambda _module, args, _output: found.__setitem__(name, args[0].detach())

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return found


def A_of(rows: Tensor) -> Tensor:
    ones = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    return ones.T @ ones / len(ones)


def moments(model: nn.Module, batches: list, **options: Any) -> Moments:
    objective = options.pop("objective", NextToken())
    return second_moments(model, objective, batches, labels="observed", progress=False, **options)


@pytest.mark.parametrize(
    "lengths",
    [((4, 2, 3), (2, 4, 3)), ((4, 2, 3), (4, 4, 4)), ((4, 4, 4), (4, 2, 3)), ((4, 1, 3), (1, 4, 2))],
    ids=["both padded", "the source padded", "the target padded", "one token"],
)
def test_a_source_and_a_target_of_one_length_go_by_their_own_masks(lengths: tuple) -> None:
    model = EncoderDecoder().eval()
    source, target = there(*lengths[0], of=SOURCE), there(*lengths[1], of=TARGET)
    inputs, targets = translation(source, target)
    found, rows = moments(model, [(inputs, targets)]), read(model, inputs, ENCODER + DECODER)
    for names, mask in ((ENCODER, source), (DECODER, target)):
        for name in names:
            assert found.positions[name] == int(mask.sum()), name
            assert_close(found.A(name), A_of(rows[name][mask == 1]), 1e-13)


def test_what_was_found_holds_in_a_batch_whose_lengths_agree_by_chance() -> None:
    model = EncoderDecoder().eval()
    apart = translation(there(3, 2, of=3), there(4, 2, of=4))
    alike = translation(there(4, 2, of=4), there(3, 4, of=4), seed=2)
    for batches in ([apart, alike], [alike, apart]):
        found = moments(model, batches)
        assert [found.positions[name] for name in ("enc_q", "cross_v")] == [5 + 6] * 2
        assert [found.positions[name] for name in ("dec_q", "out")] == [6 + 7] * 2


def test_padding_of_both_changes_nothing() -> None:
    model = EncoderDecoder().eval()
    short = translation(there(2, 2, of=2), there(3, 3, of=3))
    long = translation(there(2, 2, of=5), there(3, 3, of=5))
    for key, ids in short[0].items():
        long[0][key][:, : ids.shape[1]] = ids
    long[1][:, :3] = short[1]
    one, other = (ekfac(model, NextToken(), [batch], labels="observed", progress=False) for batch in (short, long))
    assert_close(one.to_dense(), other.to_dense(), 1e-10)


class Caption(nn.Module):
    """A text and an image with as many patches as the text has tokens."""

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.text, self.patches = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(2, WIDTH)
        self.out, self.fixed = nn.Linear(WIDTH, 3), fixed
        self.place = nn.Parameter(torch.randn(4, WIDTH))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        text, image = self.words(input_ids), pixel_values
        text = self.text(text + self.place if self.fixed else text).tanh()  # fixed: it takes four tokens and no others
        pooled = (text * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        return self.out(pooled * self.patches(image).mean(1))


def captioned() -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(3)
    mask = there(4, 2, 3, of=4)
    inputs = {"input_ids": torch.randint(1, WORDS, (3, 4)) * mask, "attention_mask": mask}
    return inputs | {"pixel_values": torch.randn(3, 4, 2)}, torch.tensor([0, 2, 1])


def test_a_captions_mask_is_not_laid_over_an_images_patches() -> None:
    model, batch = Caption().eval(), captioned()
    found, rows = moments(model, [batch], objective=CrossEntropy()), read(model, batch[0], ("text", "patches", "out"))
    assert found.positions == {"text": 9, "patches": 12, "out": 3}
    assert_close(found.A("text"), A_of(rows["text"][batch[0]["attention_mask"] == 1]), 1e-13)
    assert_close(found.A("patches"), A_of(rows["patches"].flatten(0, 1)), 1e-13)


def test_where_nothing_shows_whose_positions_they_are_it_has_to_be_said() -> None:
    model, (inputs, targets) = Caption(fixed=True).eval(), captioned()
    with pytest.raises(
        ValueError, match=r"layer 'patches' has 4 positions, as many as attention_mask.*with_masks\(inputs, \{"
    ):
        moments(model, [(inputs, targets)], objective=CrossEntropy())
    said = with_masks(inputs, {"patches": None, "*": "attention_mask"})
    found = moments(model, [(said, targets)], objective=CrossEntropy(), layers=["text", "patches"])
    assert found.positions == {"text": 9, "patches": 12}


def test_a_mask_may_be_given_for_a_layer_and_has_to_fit_it() -> None:
    model, (inputs, targets) = Caption().eval(), captioned()
    own = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    said = with_masks(inputs, {"patches": own})
    assert moments(model, [(said, targets)], objective=CrossEntropy()).positions == {"text": 9, "patches": 7, "out": 3}
    with pytest.raises(
        ValueError, match=r"with_masks: layer 'patches' has \[4\] positions.*\(3, 3\); expected as many"
    ):
        moments(model, [(with_masks(inputs, {"patches": own[:, :3]}), targets)], objective=CrossEntropy())
    with pytest.raises(ValueError, match=r"'patches' is to go by 'mask'; expected one of the inputs, input_ids"):
        with_masks(inputs, {"patches": "mask"})


class Frames(nn.Module):
    """Two samples make a frame: a layer with half as many positions as the mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frame, self.out = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> Tensor:
        frames = self.frame(input_values.unflatten(1, (-1, 2))).tanh()
        return self.out((frames * attention_mask[:, ::2, None]).sum(1))


def test_positions_made_from_a_padded_sequence_are_said_to_count_and_may_be_masked() -> None:
    mask = there(8, 4, of=8)
    inputs, targets = {"input_values": torch.randn(2, 8) * mask, "attention_mask": mask}, torch.tensor([0, 1])
    with pytest.warns(PaddingNote, match=r"layer 'frame' has 4 positions an example, attention_mask 8: all of its"):
        found = moments(Frames().eval(), [(inputs, targets)], objective=CrossEntropy())
    assert found.positions == {"frame": 8, "out": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error", PaddingNote)
        said = with_masks(inputs, {"frame": mask[:, ::2]})
        found = moments(Frames().eval(), [(said, targets)], objective=CrossEntropy())
    assert found.positions == {"frame": 6, "out": 2}


class Choices(nn.Module):
    """Several texts an example: read one after the other, scored one by one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mix, self.score = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.flatten(0, 1)
        h = self.mix(self.words(input_ids.flatten(0, 1))).tanh() * mask[..., None]
        return self.score(h.sum(1)).reshape(input_ids.shape[:2])


def stacked(rows: Callable[[Tensor], Tensor]) -> type[nn.Module]:
    """Chosen and rejected texts in one call, (2B, T): their difference is the output of an example."""

    class Pairs(Choices):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            h = self.mix(self.words(input_ids)).tanh() * attention_mask[..., None]
            return rows(self.score(h.sum(1)))

    return Pairs


def test_the_masks_of_several_texts_an_example_are_laid_over_their_own_rows() -> None:
    torch.manual_seed(4)
    mask = torch.stack([there(4, 2, of=4), there(3, 3, of=4), there(1, 4, of=4)])  # (3, 2, 4)
    ids = torch.randint(1, WORDS, mask.shape) * mask
    batch = ({"input_ids": ids, "attention_mask": mask}, torch.tensor([0, 1, 1]))
    found = moments(Choices().eval(), [batch], objective=CrossEntropy())
    assert found.positions == {"mix": int(mask.sum()), "score": 6}
    for layout, rows in (
        (lambda x: x.transpose(0, 1).flatten(0, 1), lambda s: torch.cat(s.chunk(2), dim=1)),  # all chosen, all rejected
        (lambda x: x.flatten(0, 1), lambda s: s.reshape(-1, 2)),  # one example after the other
    ):
        inputs = {"input_ids": layout(ids), "attention_mask": layout(mask)}
        same = moments(stacked(rows)().eval(), [(inputs, batch[1])], objective=CrossEntropy())
        assert same.positions == found.positions
        assert_close(same.A("mix"), found.A("mix"), 1e-13)
        assert_close(same.S("mix"), found.S("mix"), 1e-13)


class Pool(nn.Module):
    """As many learned queries as a padded text happens to have tokens: their positions are no tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.queries = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(4, WIDTH))
        self.key, self.after, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids)
        weights = (self.queries @ self.key(x).mT).masked_fill(attention_mask[:, None] == 0, -torch.inf).softmax(-1)
        return self.out(self.after(weights @ x).tanh().mean(1))


class Blank(nn.Module):
    """Padding is set to 0 and then sees what came before it: its positions are tokens all the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mix, self.out = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = (self.words(input_ids) * attention_mask[..., None]).cumsum(1)
        return self.out((self.mix(x).tanh() * attention_mask[..., None]).sum(1))


@pytest.mark.parametrize(("model", "expected"), [(Pool, {"key": 9, "after": 12}), (Blank, {"mix": 9})])
def test_one_mask_is_for_positions_that_grow_with_its_sequence(model: type[nn.Module], expected: dict) -> None:
    inputs, targets = captioned()
    inputs.pop("pixel_values")
    found = moments(model().eval(), [(inputs, targets)], objective=CrossEntropy())
    assert found.positions == expected | {"out": 3}


def test_a_mask_that_is_added_to_scores_is_refused() -> None:
    inputs, targets = captioned()
    inputs["attention_mask"] = (inputs["attention_mask"] - 1) * 1e9
    with pytest.raises(ValueError, match=r"attention_mask holds other numbers than 0 and 1 \(-1e\+09 to 0\)"):
        moments(Caption().eval(), [(inputs, targets)], objective=CrossEntropy())


class Recurrent(nn.Module):
    """A cell written by hand: a call for each token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.cell, self.out = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h, x = torch.zeros(len(input_ids), WIDTH), self.words(input_ids)
        for t in range(x.shape[1]):
            h = torch.where(attention_mask[:, t, None] == 1, self.cell(x[:, t] + h).tanh(), h)
        return self.out(h)


class Mixer(nn.Module):
    """A layer over the tokens' axis, for which the features, as many, are positions; it takes one length only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mix, self.out = nn.Embedding(WORDS, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids) * attention_mask[..., None]
        return self.out(self.mix(x.mT).mT.tanh().mean(1))


def test_a_model_of_one_length_that_shows_nothing_is_asked_about() -> None:
    inputs, targets = captioned()
    inputs.pop("pixel_values")
    with pytest.raises(ValueError, match=r"layer 'mix' has 4 positions, as many as attention_mask; whether they are"):
        moments(Mixer().eval(), [(inputs, targets)], objective=CrossEntropy())
    said = with_masks(inputs, {"mix": None})
    assert moments(Mixer().eval(), [(said, targets)], objective=CrossEntropy()).positions == {"mix": 12, "out": 3}


def test_a_layer_called_once_a_token_has_the_tokens_for_positions() -> None:
    inputs, targets = captioned()
    inputs.pop("pixel_values")
    found = moments(Recurrent().eval(), [(inputs, targets)], objective=CrossEntropy())
    assert found.positions == {"cell": 9, "out": 3}


class Context(nn.Module):
    """A question and a context, each with a mask named as it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.ask, self.look = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, 3)

    def pooled(self, layer: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        return (layer(self.words(ids)).tanh() * mask[..., None]).sum(1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, context_ids: Tensor, context_attention_mask: Tensor
    ) -> Tensor:
        ask = self.pooled(self.ask, input_ids, attention_mask)
        return self.out(ask * self.pooled(self.look, context_ids, context_attention_mask))


def test_a_mask_under_a_name_of_its_own_is_for_what_is_named_so() -> None:
    question, context = there(4, 2, 3, of=4), there(1, 4, 2, of=4)
    for one, other in ((question, context), (question, torch.ones_like(context)), (torch.ones_like(question), context)):
        inputs, targets = translation(one, other)
        renamed = {
            "input_ids": inputs["input_ids"],
            "attention_mask": one,
            "context_ids": inputs["decoder_input_ids"],
            "context_attention_mask": other,
        }
        found = moments(Context().eval(), [(renamed, torch.tensor([0, 1, 2]))], objective=CrossEntropy())
        assert found.positions == {"ask": int(one.sum()), "look": int(other.sum()), "out": 3}
    # beside what it marks no mask of another meaning is taken for one
    inputs, targets = captioned()
    globally = {"input_ids": inputs["input_ids"], "global_attention_mask": torch.zeros(3, 4)}
    found = moments(Globally().eval(), [(globally, targets)], objective=CrossEntropy())
    assert found.positions == {"text": 12}


class Globally(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.text = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor, global_attention_mask: Tensor) -> Tensor:
        return self.text(self.words(input_ids)).sum(1)


def test_a_mask_is_decided_when_it_first_hides_something() -> None:
    """First only the source is padded, then only the target: each is tried in its own batch."""
    model = EncoderDecoder().eval()
    first = translation(there(4, 2, 3, of=4), there(4, 4, 4, of=4))
    second = translation(there(4, 4, 4, of=4), there(4, 1, 2, of=4), seed=2)
    found = moments(model, [first, second])
    assert [found.positions[name] for name in ("enc_q", "cross_v")] == [9 + 12] * 2
    assert [found.positions[name] for name in ("dec_q", "out")] == [12 + 7] * 2


# --- masks that say the opposite, or are none by their name --------------------------------------------------------------


class Pools(nn.Module):
    """A sum over the positions that some input shows."""

    def __init__(self, shown: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.text, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.shown = shown

    def forward(self, input_ids: Tensor, other: Any = None, **masks: Tensor) -> Tensor:
        hidden = torch.tanh(self.text(self.words(input_ids)))
        rows = self.shown(input_ids, *([] if other is None else [other]), **masks)
        return self.head((hidden * rows[..., None].to(hidden)).sum(1))


PADDED = there(4, 2, 3, of=4)
IDS = 1 + torch.arange(12).reshape(3, 4) % (WORDS - 1)
LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize("route", ["attention_mask", "with_masks", "a mask itself"])
def test_a_mask_that_is_one_where_padding_is_is_refused(route: str) -> None:
    name = "attention_mask" if route == "attention_mask" else "padding"
    model = Pools(lambda ids, **masks: masks[name] == 0).eval()
    pads = 1 - there(3, 2, 3, of=4)
    inputs: dict[str, Any] = {"input_ids": IDS, name: pads}
    if route != "attention_mask":
        inputs = with_masks(inputs, {"text": name if route == "with_masks" else pads})
    with pytest.raises(ValueError, match=r"layer 'text': in batch 0 .* its mask hides, .*expected 1 where .*~mask"):
        ekfac(model, CrossEntropy(), [(inputs, LABELS)], progress=False)
    right = with_masks({"input_ids": IDS, name: pads}, {"text": 1 - pads, "*": None})
    if route != "attention_mask":
        assert moments(model, [(right, LABELS)], objective=CrossEntropy()).positions["text"] == 8


def test_a_position_that_is_hidden_and_reached_beside_others_is_let_be() -> None:
    """A pool over all positions: padding is part of the model's output, and of no factor, as its mask says."""
    model = Pools(lambda ids, attention_mask: torch.ones_like(ids)).eval()
    found = moments(model, [({"input_ids": IDS, "attention_mask": PADDED}, LABELS)], objective=CrossEntropy())
    assert found.positions["text"] == 9


@pytest.mark.parametrize(
    ("inputs", "shown"),
    [
        (
            {"input_ids": IDS, "src_key_padding_mask": PADDED == 0},
            lambda ids, src_key_padding_mask: ~src_key_padding_mask,
        ),
        ({"input_ids": IDS, "mask": PADDED}, lambda ids, mask: mask),
        ({"input_ids": IDS, "lengths": PADDED.sum(1)}, lambda ids, lengths: torch.arange(4) < lengths[:, None]),
        ((IDS, PADDED == 1), lambda ids, mask: mask),
    ],
)
def test_what_looks_like_a_mask_under_another_name_is_said_to_be_none(inputs: Any, shown: Any) -> None:
    model = Pools(shown).eval()
    with pytest.warns(PaddingNote, match=r"looks like a mask of the 4 positions that layer 'text' has.*with_masks"):
        assert moments(model, [(inputs, LABELS)], objective=CrossEntropy()).positions["text"] == 12


@pytest.mark.parametrize(
    "inputs",
    [
        {"input_ids": IDS, "flags": torch.tensor([[True, False], [False, True], [True, True]])},  # of no layer's length
        {"input_ids": IDS, "mask": torch.ones(3, 4).long()},
        {"input_ids": IDS, "token_type_ids": PADDED},
        {"input_ids": IDS, "global_attention_mask": 1 - PADDED},
        {"input_ids": IDS, "lengths": torch.tensor([4, 4, 4])},
    ],
)
def test_what_hides_nothing_or_is_of_other_positions_is_not_spoken_of(inputs: Any) -> None:
    model = Pools(lambda ids, **masks: torch.ones_like(ids)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", PaddingNote)
        moments(model, [(inputs, LABELS)], objective=CrossEntropy())


@pytest.mark.parametrize("every", [True, False])
def test_a_model_that_asks_for_the_end_of_each_sequence_is_tried_without_its_first_token(every: bool) -> None:
    """BART's classifier reads the state at the one end token of each row; ids that are padding's may not be it."""
    end = WORDS - 1

    class Ends(Pools):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            if bool(((input_ids == end).sum(1) != 1).any()) or (not every and input_ids.shape[1] != 4):
                raise ValueError("All examples must have the same number of <eos> tokens.")
            hidden = torch.tanh(self.text(self.words(input_ids))) * attention_mask[..., None]
            return self.head(hidden[input_ids == end])

    ids = torch.tensor([[1, 2, 3, end], [4, end, 0, 0], [2, 1, end, 0]])
    model = Ends(lambda ids: ids).eval()
    batch = ({"input_ids": ids, "attention_mask": PADDED}, LABELS)
    if every:
        assert moments(model, [batch], objective=CrossEntropy()).positions["text"] == 9
        return
    with pytest.raises(ValueError, match=r"layer 'text' has 4 positions.*Say it: inflib.with_masks"):
        moments(model, [batch], objective=CrossEntropy())
