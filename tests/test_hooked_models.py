"""Models with hooks of their own, and forwards that torch's words say little about."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflib import CrossEntropy, capture, ekfac, gauss_newton, identity, influence, untied

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::inflib.CoverageNote")]
QUIET: dict[str, Any] = {"progress": False}


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])


HOOKS: dict[str, Any] = {
    "scales": lambda module, args, output: 2 * output,
    "adds a direction": lambda module, args, output: output + torch.linspace(-1, 1, output.shape[-1]),
    "a nonlinearity": lambda module, args, output: output.square(),
    "leaves out a unit": lambda module, args, output: output * (torch.arange(output.shape[-1]) != 1),
    "in place": lambda module, args, output: output.mul_(3.0),
}


@pytest.mark.parametrize("how", HOOKS)
@pytest.mark.parametrize("where", ["up", "down"])
def test_a_hook_that_changes_what_a_layer_gave_is_part_of_the_model(how: str, where: str) -> None:
    (x, y), model = data(), Layers().eval()
    model.get_submodule(where).register_forward_hook(HOOKS[how])
    found = capture(model, CrossEntropy(), x, y)
    for n in range(5):
        loss = F.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        for name in ("up", "down"):
            layer = model.get_submodule(name)
            weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias], retain_graph=True)
            torch.testing.assert_close(found[name].matrices()[n], torch.cat([weight, bias[:, None]], 1))
    assert len(model.get_submodule(where)._forward_hooks) == 1
    exact, fit = (f(model, CrossEntropy(), [(x, y)], **QUIET) for f in (gauss_newton, ekfac))
    total = sum(float(values.sum()) for values in fit.eigenvalues.values())
    assert total == pytest.approx(float(exact.to_dense().trace()), rel=1e-12)


def test_a_layer_inside_vmap_is_named() -> None:
    class Mapped(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(super().forward)(x)

    with pytest.raises(ValueError, match=r"layer 'up' is called inside torch.vmap.*expected it to be called on the"):
        ekfac(Mapped().eval(), CrossEntropy(), [data()], **QUIET)
    found, expected = (gauss_newton(m().eval(), CrossEntropy(), [data()], **QUIET) for m in (Mapped, Layers))
    torch.testing.assert_close(found.to_dense(), expected.to_dense())


def test_a_forward_that_differentiates_by_its_weights_is_told_so() -> None:
    class Adapts(Layers):
        def forward(self, x: Tensor) -> Tensor:
            loss = self.down(torch.tanh(self.up(x))).square().sum()
            (step,) = torch.autograd.grad(loss, self.up.weight)
            return self.down(torch.tanh(self.up(x))) + step.sum() * 0

    model, (x, y) = Adapts().eval(), data()
    with pytest.raises(ValueError, match=r"differentiates by its weights.*expected a forward that takes none"):
        ekfac(model, CrossEntropy(), [(x, y)], layers=untied("down"), **QUIET)


class Prompted(nn.Module):
    """Learnt tokens before the sequence, looked up once and repeated, or expanded."""

    def __init__(self, repeats: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prompt, self.words, self.l = nn.Embedding(2, 4), nn.Embedding(7, 4), nn.Linear(4, 3)
        self.repeats = repeats

    def forward(self, ids: Tensor) -> Tensor:
        prompt = self.prompt(torch.arange(2)[None])
        prompt = prompt.repeat(len(ids), 1, 1) if self.repeats else prompt.expand(len(ids), -1, -1)
        return self.l(torch.tanh(torch.cat([prompt, self.words(ids)], 1)).prod(1))


def test_an_embedding_that_is_looked_up_once_and_repeated_says_what_to_do() -> None:
    ids, y = torch.randint(7, (5, 3)), data()[1]
    with pytest.raises(
        ValueError, match=r"layer 'prompt' looked up ids once for all 5.*expanded, not repeated.*of one"
    ):
        ekfac(Prompted(True).eval(), CrossEntropy(), [(ids, y)], "all", **QUIET)
    ones = [(ids[n : n + 1], y[n : n + 1]) for n in range(5)]
    scores = []
    for model, batches in ((Prompted(True).eval(), ones), (Prompted(False).eval(), [(ids, y)])):
        plain = identity(model, CrossEntropy(), batches, "all", **QUIET)
        scores.append(influence(model, CrossEntropy(), batches, batches, plain, **QUIET))
    torch.testing.assert_close(*scores)


class Bags(nn.Module):
    """Texts of ragged lengths, one after the other, and where each begins."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.l = nn.EmbeddingBag(9, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.l(self.words(ids, offsets))


def test_ragged_texts_are_right_one_by_one_and_refused_together() -> None:
    texts, y, model = [torch.randint(9, (n,)) for n in (2, 4, 1, 3, 3)], data()[1], Bags().eval()
    starts = torch.tensor([0, 2, 6, 7, 10])
    with pytest.raises(ValueError, match=r"no batch of 5 copies of example 4.*offsets.*give batches of one example"):
        ekfac(model, CrossEntropy(), [((torch.cat(texts), starts), y)], **QUIET)
    ones = [((text, torch.zeros(1, dtype=torch.int64)), y[n : n + 1]) for n, text in enumerate(texts)]
    plain = identity(model, CrossEntropy(), ones, **QUIET)
    rows = []
    for inputs, target in ones:
        gradients = torch.autograd.grad(F.cross_entropy(model(*inputs), target), list(model.l.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]))
    G = torch.stack(rows)
    torch.testing.assert_close(influence(model, CrossEntropy(), ones, ones, plain, **QUIET), G @ G.T)
