"""What a word on the choice changes: everything, biases aside, biases alone, wrapped names; and how refusals say names."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from kinds import Normal, Texts, kinds
from networks import Case, make
from oracle import assert_close
from torch import Tensor, nn

from inflib import (
    CoverageNote,
    capture,
    coverage,
    ekfac,
    everything,
    gauss_newton,
    identity,
    influence,
    untied,
    without_biases,
)
from inflib.layers.naming import listed, patterns
from inflib.selection import select

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::inflib.CoverageNote")]
QUIET: dict[str, Any] = {"progress": False}


def names(model: nn.Module, layers: Any = None) -> list[str]:
    return list(select(model, layers))


# --- embeddings and normalisations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [None, "*", ["*"], lambda name, module: True])
def test_embeddings_and_normalisations_are_chosen_by_name_or_by_everything_alone(layers: Any) -> None:
    assert names(Normal(nn.LayerNorm(4)), layers) == ["up", "down"]
    assert names(Texts(), layers) == ["mix", "head"]
    assert names(Texts(), everything(layers)) == ["token", "position", "mix", "head"]


def test_all_a_name_and_a_glob_among_everything() -> None:
    assert names(Texts(), "all") == names(Texts(), everything()) == ["token", "position", "mix", "head"]
    assert names(Texts(), "token") == ["token"]
    assert names(Texts(), ["head", "position"]) == ["position", "head"]
    assert names(Texts(), everything("*o*")) == ["token", "position"]
    assert names(Texts(), everything(lambda name, module: isinstance(module, nn.Embedding))) == ["token", "position"]


def test_a_glob_that_would_match_normalisations_alone_says_how_to_reach_them() -> None:
    with pytest.raises(ValueError, match=r"layers='nor\*' matches only 'norm'.*layers=inflib.everything\('nor\*'\)"):
        select(Normal(nn.LayerNorm(4)), "nor*")


def test_frozen_embeddings_are_left_out_of_everything_that_was_trained() -> None:
    model = Texts()
    model.token.requires_grad_(False)
    assert names(model, "all") == ["position", "mix", "head"]
    assert names(model, everything("*")) == ["token", "position", "mix", "head"]


def test_the_note_on_what_is_left_out_names_the_option_where_it_helps() -> None:
    case = kinds("LayerNorm")
    with pytest.warns(CoverageNote, match=r"norm.weight, norm.bias; layers='all' takes embeddings and normalisations"):
        identity(case.model, case.objective, case.train, **QUIET)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        identity(model, case.objective, case.train, **QUIET)
    assert "layers='all'" not in str(caught[0].message)


# --- biases ---------------------------------------------------------------------------------------------------------------


def truth(case: Case, layers: list[str], columns: dict[str, int]) -> Tensor:
    """Per-example gradients of each layer's first columns."""
    case.layers = layers
    found = case.problem.stacks(case.problem.gradients())
    return torch.cat([found[name][:, :, : columns[name]].flatten(1) for name in layers], dim=1)


def test_weights_alone_leave_every_bias_out_everywhere() -> None:
    case = make()
    fit = ekfac(case.model, case.objective, case.train, layers=without_biases(), **QUIET)
    assert fit.shapes == {"fc0": (4, 3), "fc1": (3, 4)}
    plain = identity(case.model, case.objective, case.train, layers=without_biases("fc*"), **QUIET)
    rows = truth(case, ["fc0", "fc1"], {"fc0": 3, "fc1": 4})
    assert_close(influence(case.model, case.objective, case.train, case.train, plain, **QUIET), rows @ rows.T, 1e-12)
    exact = gauss_newton(case.model, case.objective, case.train, layers=without_biases(), **QUIET)
    whole = case.problem.gauss_newton()
    keep = [k for k, (parameter, _) in enumerate(case.problem.places) if parameter.endswith("weight")]
    assert_close(exact.to_dense(), whole[keep][:, keep], 1e-10)
    assert coverage(case.model, without_biases()).numbers == {"covered": 24, "frozen": 0, "uncovered": 7}


def test_weights_alone_of_everything_leave_shifts_out() -> None:
    found = select(Normal(nn.LayerNorm(4)), without_biases("all"))
    assert {name: layer.shape for name, layer in found.items()} == {"up": (4, 3), "norm": (4, 1), "down": (3, 4)}
    assert without_biases("all") == everything(without_biases())


def test_the_bias_of_a_frozen_weight_is_a_layer_of_its_own() -> None:
    case = kinds("attention")
    for name, p in case.model.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    case.layers = [
        "attention.q.bias",
        "attention.k.bias",
        "attention.v.bias",
        "attention.out_proj.bias",
        "up.bias",
        "head.bias",
    ]
    fit = ekfac(case.model, case.objective, case.train, **QUIET)
    assert set(fit.layers) == set(case.layers) and coverage(case.model).numbers["uncovered"] == 0
    exact = gauss_newton(case.model, case.objective, case.train, blocks=True, **QUIET)
    assert_close(fit.to_dense(), exact.to_dense(), 1e-10)


@pytest.mark.parametrize("animal", ["transposed, in groups", "plain"])
def test_bias_tuning_gives_the_gradients_of_the_biases(animal: str) -> None:
    case = make() if animal == "plain" else kinds("GroupNorm, transposed in groups")
    for name, p in case.model.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    found = capture(case.model, case.objective, case.x, case.y, layers="all")
    case.layers = list(found)
    expected = {name for name, _ in case.model.named_parameters() if name.endswith("bias")}
    assert set(found) == expected
    for name, stack in case.problem.stacks(case.problem.gradients()).items():
        assert_close(found[name].matrices(), stack, 1e-12)


def test_a_bias_that_is_named_beside_its_weight_is_counted_once() -> None:
    found = select(make().model, ["fc0", "fc0.bias"])
    assert {name: layer.shape for name, layer in found.items()} == {"fc0": (4, 3), "fc0.bias": (4, 1)}
    assert names(make().model, "*") == ["fc0", "fc1"]


# --- wrapped names ----------------------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    def __init__(self, name: str, inner: nn.Module):
        super().__init__()
        self.add_module(name, inner)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "_orig_mod.module.", ""])
@pytest.mark.parametrize("asked", ["module.", "_orig_mod.", "base_model.model.", ""])
def test_names_are_understood_with_and_without_the_prefixes_of_wrappers(prefix: str, asked: str) -> None:
    model = Texts()
    for name in reversed([part for part in prefix.split(".") if part]):
        model = Wrapped(name, model)
    wrapped = [f"{prefix}mix", f"{prefix}head"]
    assert names(model, [f"{asked}mix", f"{asked}head"]) == wrapped
    assert names(model, f"{asked}token") == [f"{prefix}token"]  # which no glob reaches
    assert names(model, f"{asked}he*") == wrapped[1:]
    assert names(model, untied(f"{asked}head")) == wrapped[1:]


# --- many names in few words ------------------------------------------------------------------------------------------------


def llama(layers: int = 30) -> list[str]:
    parts = [f"self_attn.{k}_proj" for k in "qkvo"] + [f"mlp.{k}_proj" for k in ("gate", "up", "down")]
    return [f"model.layers.{n}.{part}" for n in range(layers) for part in parts] + ["lm_head"]


def test_many_names_are_said_as_the_patterns_they_follow() -> None:
    assert patterns(llama()) == [
        "model.layers.{0..29}.self_attn.{q,k,v,o}_proj",
        "model.layers.{0..29}.mlp.{gate,up,down}_proj",
        "lm_head",
    ]
    assert patterns(["h.0.a", "h.2.a", "h.0.b", "h.2.b", "h.1.c", "top"]) == ["h.{0,2}.{a,b}", "h.1.c", "top"]
    assert patterns(["0", "2", "4.group0", "4.group1"]) == ["{0,2}", "4.{group0,group1}"]


def test_the_patterns_stand_for_exactly_the_names() -> None:
    found = {name for pattern in patterns(llama()) for name in expanded(pattern)}
    assert found == set(llama())


def expanded(pattern: str) -> list[str]:
    """What a shell would make of braces."""
    brace = re.search(r"\{([^}]*)\}", pattern)
    if brace is None:
        return [pattern]
    run = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    parts = map(str, range(int(run[1]), int(run[2]) + 1)) if run else brace[1].split(",")
    return [one for part in parts for one in expanded(pattern[: brace.start()] + part + pattern[brace.end() :])]


def test_a_refusal_in_a_large_model_is_short_and_says_the_patterns() -> None:
    model = nn.Module()
    for name in llama():
        at = model
        *parents, last = name.split(".")
        for parent in parents:
            if parent not in at._modules:
                at.add_module(parent, nn.Module())
            at = at._modules[parent]
        at.add_module(last, nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"layers='mlp.up' matches no layer") as error:
        select(model, "mlp.up")
    assert "'model.layers.{0..29}.mlp.{gate,up,down}_proj'" in str(error.value) and len(str(error.value)) < 300


def test_few_names_are_said_one_by_one() -> None:
    assert listed(["a.0", "a.1"]) == "'a.0', 'a.1'"
    assert listed([]) == "no layer of a type inflib understands"
