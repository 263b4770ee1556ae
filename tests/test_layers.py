"""Which layers are chosen, which parameters are left out, and what is said about it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks import Residual, Tied, make, snapshot
from torch import Tensor, nn

import inflib
from inflib import CoverageNote, CrossEntropy, coverage, ekfac, influence, self_influence, untied
from inflib.layers import _KINDS, kind_of, positions_last, register
from inflib.selection import select

pytestmark = pytest.mark.usefixtures("float64")


class Blocks(nn.Module):
    """blocks.0.mlp.up, blocks.0.mlp.down, blocks.0.attn, ..., head"""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {"attn": nn.Linear(3, 3), "mlp": nn.ModuleDict({"up": nn.Linear(3, 4), "down": nn.Linear(4, 3)})}
            )
            for _ in range(2)
        )
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block["attn"](x))
            x = x + block["mlp"]["down"](torch.tanh(block["mlp"]["up"](x)))
        return self.head(x)


ALL = [f"blocks.{k}.{part}" for k in (0, 1) for part in ("attn", "mlp.up", "mlp.down")] + ["head"]


# --- choosing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ALL),
        ("*", ALL),
        ("blocks.*.mlp.*", [n for n in ALL if "mlp" in n]),
        ("blocks.1.*", [n for n in ALL if n.startswith("blocks.1")]),
        ("head", ["head"]),
        (["head", "blocks.0.attn"], ["blocks.0.attn", "head"]),  # the model's order, not the list's
        (("head", "blocks.?.attn"), ["blocks.0.attn", "blocks.1.attn", "head"]),
        ({"head"}, ["head"]),
        (lambda name, module: module.out_features == 4, ["blocks.0.mlp.up", "blocks.1.mlp.up"]),
        (lambda name, module: name.endswith("attn"), ["blocks.0.attn", "blocks.1.attn"]),
    ],
)
def test_layers_are_chosen_by_glob_list_or_predicate_in_the_models_order(layers: Any, expected: list[str]) -> None:
    case, model = make(), Blocks()
    assert list(select(model, layers)) == expected
    if not isinstance(layers, set):
        assert list(ekfac(model, case.objective, case.train, layers=layers, progress=False).layers) == expected


def test_a_predicate_sees_only_layers_that_are_understood() -> None:
    seen = []
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 3))
    select(model, lambda name, module: seen.append((name, type(module))) or True)
    assert seen == [("0", nn.Linear), ("3", nn.Linear)]


def test_a_predicate_is_asked_for_a_grouped_convolution_once_and_by_its_own_name() -> None:
    seen = []
    model = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(8, 3))
    assert list(select(model, lambda name, module: seen.append(name) or name == "2")) == ["2"]
    assert seen == ["0", "2"]


def test_a_name_with_glob_characters_in_it_means_itself() -> None:
    model = nn.Sequential()
    model.add_module("fc[0]", nn.Linear(3, 3))
    case = make()
    fit = ekfac(model, case.objective, case.train, progress=False)
    assert fit.layers == ("fc[0]",)
    assert influence(model, case.objective, case.train, case.queries, fit, progress=False).shape == (3, 7)


@pytest.mark.parametrize("layers", ["mlp.*", ["head", "hed"], "blocks.0"])
def test_a_pattern_that_matches_nothing_is_refused_with_the_layers_there_are(layers: Any) -> None:
    case = make()
    with pytest.raises(ValueError) as error:
        ekfac(Blocks(), case.objective, case.train, layers=layers, progress=False)
    bad = layers if isinstance(layers, str) else layers[1]
    assert f"layers={bad!r}" in str(error.value)
    within = [name for name in ALL if layers != "blocks.0" or name.startswith("blocks.0.")]
    assert all(repr(name) in str(error.value) for name in within)


@pytest.mark.parametrize("layers", [[], lambda name, module: False])
def test_choosing_no_layer_is_refused(layers: Any) -> None:
    with pytest.raises(ValueError, match=r"selects no layer; the model has 'blocks.0.attn'"):
        select(Blocks(), layers)


def test_a_layer_of_a_type_not_understood_is_refused_with_how_to_teach_it() -> None:
    model = nn.Sequential(nn.EmbeddingBag(5, 3), nn.Flatten(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"layers='0' is a EmbeddingBag.*expected one of '2'.*inflib.register\(Emb"):
        select(model, "0")


def test_a_model_without_any_understood_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no matrix was trained: only 0\.weight .* layers='all'"):
        select(nn.Sequential(nn.Embedding(5, 3)), None)


# --- coverage -----------------------------------------------------------------------------------------------------------


def notes(model: nn.Module, layers: Any = None, fit: Any = ekfac) -> list[str]:
    case = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, case.objective, case.train, layers=layers, progress=False)
    return [str(w.message) for w in caught if issubclass(w.category, CoverageNote)]


@pytest.mark.parametrize("fit", [inflib.ekfac, inflib.kfac, inflib.diagonal, inflib.identity, inflib.gauss_newton])
def test_parameters_that_no_layer_covers_are_named_once(fit: Any) -> None:
    found = notes(Residual(), fit=fit)
    assert len(found) == 1
    assert "2 parameters" in found[0]
    assert "norm.weight, norm.bias" in found[0]


def test_nothing_is_said_where_all_is_covered_or_the_layers_were_chosen() -> None:
    assert notes(Blocks()) == []
    assert notes(Residual(), layers="head") == []


def test_scores_do_not_repeat_the_note() -> None:
    case, model = make(), Residual()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageNote)
        fit = ekfac(model, case.objective, case.train, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CoverageNote)
        influence(model, case.objective, case.train, case.queries, fit, progress=False)
        self_influence(model, case.objective, case.train, fit, progress=False)


def test_a_user_who_repeats_a_call_sees_the_note_once() -> None:
    case, model = make(), Residual()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            ekfac(model, case.objective, case.train, progress=False)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the note points at the user's own line


def test_a_long_list_of_uncovered_parameters_is_cut_short() -> None:
    model = nn.Sequential(*(nn.LayerNorm(3) for _ in range(7)), nn.Linear(3, 3))
    (found,) = notes(model)
    assert "14 parameters" in found
    assert "and 6 more" in found


def test_coverage_prints_a_row_for_each_layer_and_what_is_left_out() -> None:
    text = repr(coverage(Residual()))
    assert "one          Linear   (3, 4)" in text
    assert "norm.weight  not covered (LayerNorm, 3 numbers)" in text
    assert text.endswith("36 of 42 numbers covered, 6 uncovered")
    assert coverage(Residual(), "head").rows == (("head", "Linear", 3, 4),)


def test_coverage_of_a_bare_layer() -> None:
    assert "12 of 12 numbers covered, 0 uncovered" in repr(coverage(nn.Linear(3, 3)))


# --- weights that several share -------------------------------------------------------------------------------------------


def test_modules_that_share_weight_and_bias_are_one_layer_under_the_first_name() -> None:
    found = select(Tied(), None)
    assert list(found) == ["first", "middle"]
    assert len(found["first"].modules) == 2
    assert not notes(Tied())


@pytest.mark.parametrize("layers", ["first", "second", ["second", "first"]])
def test_naming_one_user_of_a_weight_means_all_of_its_users(layers: Any) -> None:
    found = select(Tied(), layers)
    assert list(found) == ["first"]
    assert len(found["first"].modules) == 2


def test_untied_makes_each_use_of_a_weight_a_layer() -> None:
    assert list(select(Tied(), untied(["first", "second"]))) == ["first", "second"]
    assert list(select(Tied(), untied("second"))) == ["second"]


def test_a_curvature_of_untied_layers_is_scored_with_untied_gradients() -> None:
    """Twins: two modules that share their weight, treated as two, and two modules with equal weights."""
    case, tied, apart = make(), Tied(), Tied()
    apart.load_state_dict(tied.state_dict())
    apart.second.weight = nn.Parameter(apart.first.weight.detach().clone())
    apart.second.bias = nn.Parameter(apart.first.bias.detach().clone())
    for layers in (["first", "second"], ["first", "middle"]):
        scores = []
        for model, chosen in ((tied, untied(layers)), (apart, layers)):
            fit = ekfac(model, case.objective, case.train, layers=chosen, progress=False)
            assert fit.facts.untied is (model is tied)
            scores.append(influence(model, case.objective, case.train, case.queries, fit, progress=False))
        assert torch.allclose(scores[0], scores[1], rtol=1e-10)


def test_a_shared_weight_with_biases_of_their_own_is_refused() -> None:
    model = Tied()
    model.second.bias = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"layers first, second share a weight but not their bias.*untied\("):
        select(model, None)


def test_a_shared_bias_alone_is_left_out_with_the_reason_or_refused() -> None:
    model = Tied()
    model.second.weight = nn.Parameter(torch.randn(3, 3))
    (found,) = notes(model)
    assert "layer 'first' shares its bias with 'second' (Linear)" in found
    assert list(select(model, None)) == ["middle"]
    with pytest.raises(ValueError, match=r"layer 'first' shares its bias with 'second'"):
        select(model, ["first", "second"])


class Language(nn.Module):
    """An embedding whose weight is also the last layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(tokens).sum(1))))


def language() -> tuple[Language, list[tuple[Tensor, Tensor]]]:
    tokens = torch.randint(0, 5, (6, 2), generator=torch.Generator().manual_seed(1))
    return Language(), [(tokens[:4], tokens[:4, 0]), (tokens[4:], tokens[4:, 0])]


def test_a_head_tied_to_the_embedding_is_left_out_with_the_reason() -> None:
    model, data = language()
    with pytest.warns(
        CoverageNote, match=r"embed.weight; layers='all' .* Left out: layer 'head' shares its weight with 'embed'"
    ):
        fit = ekfac(model, CrossEntropy(), data, progress=False)
    assert fit.layers == ("mix",)


def test_a_head_tied_to_the_embedding_is_refused_when_asked_for() -> None:
    model, data = language()
    before = snapshot(model)
    message = r"layer 'head' shares its weight with 'embed' \(Embedding\).*layers=untied\('head'\)"
    with pytest.raises(ValueError, match=message):
        ekfac(model, CrossEntropy(), data, layers="head", progress=False)
    with pytest.raises(ValueError, match=message):
        ekfac(model, CrossEntropy(), data, layers=["mix", "head"], progress=False)
    assert snapshot(model) == before


def test_a_head_tied_to_the_embedding_counts_as_its_own_when_untied() -> None:
    model, data = language()
    copy = Language()
    copy.load_state_dict(model.state_dict())
    copy.head.weight = nn.Parameter(model.head.weight.detach().clone())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageNote)
        fits = [
            ekfac(model, CrossEntropy(), data, layers=untied(["mix", "head"]), progress=False),
            ekfac(copy, CrossEntropy(), data, layers=["mix", "head"], progress=False),
        ]
    assert fits[0].layers == ("mix", "head")
    assert torch.allclose(fits[0].to_dense(), fits[1].to_dense(), rtol=0, atol=1e-13)
    scores = [
        influence(m, CrossEntropy(), data, data, fit, progress=False)
        for m, fit in zip((model, copy), fits, strict=True)
    ]
    assert torch.allclose(scores[0], scores[1], rtol=1e-10)


def test_exact_curvature_refuses_untied_layers() -> None:
    model, data = language()
    for fit in (inflib.gauss_newton, inflib.hessian):
        with pytest.raises(ValueError, match=r"layer 'head' is marked untied; expected plain layers"):
            fit(model, CrossEntropy(), data, layers=untied("head"), progress=False)


def test_a_module_registered_under_two_names_is_one_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    model.add_module("again", model[0])
    assert list(select(model, None)) == ["0"]


def test_a_reparametrised_layer_is_listed_as_not_covered() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 3))
    (found,) = notes(model)
    assert "0.parametrizations.weight.original0" in found
    assert list(select(model, None)) == ["2"]


def test_a_subclass_is_read_as_what_it_extends() -> None:
    class Special(nn.Linear):
        pass

    assert list(select(nn.Sequential(Special(3, 3)), None)) == ["0"]


# --- types of other libraries -------------------------------------------------------------------------------------------


class Foreign(nn.Module):
    """As another library would write a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class Heir(Foreign):
    pass


@pytest.fixture
def foreign() -> Iterator[str]:
    name = f"{Foreign.__module__}.Foreign"
    register(name, positions_last, positions_last)
    yield name
    del _KINDS[name]


def test_a_type_is_known_by_its_full_name(foreign: str) -> None:
    model = nn.Sequential(Foreign(), nn.Tanh(), Heir())
    assert list(select(model, None)) == ["0", "2"]
    assert coverage(model).rows == (("0", "Foreign", 4, 3), ("2", "Heir", 4, 3))


def test_a_name_of_another_module_is_another_type(foreign: str) -> None:
    namesake = type("Foreign", (nn.Module,), {"__module__": "elsewhere"})()
    namesake.weight = nn.Parameter(torch.randn(4, 3))
    assert kind_of(namesake) is None


def test_what_is_registered_for_a_class_goes_before_what_is_for_its_parents_name(foreign: str) -> None:
    register(Heir, positions_last, positions_last, transposed=True)
    try:
        assert [layer.shape for layer in select(nn.Sequential(Foreign(), Heir()), None).values()] == [(4, 3), (3, 4)]
    finally:
        del _KINDS[Heir]
