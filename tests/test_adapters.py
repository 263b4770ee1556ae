"""Adapters are layers of their own: in what state they may be asked about, on small models against dense gradients."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from oracle import assert_close
from torch import nn
from torch.func import functional_call, grad, vmap

from inflib import CoverageNote, CrossEntropy, capture, coverage, ekfac, influence

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::inflib.CoverageNote")]
QUIET = {"progress": False}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def adapted(trained: bool = True, **options) -> peft.PeftModel:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["up", "down"], init_lora_weights=not trained, **options)
    return peft.get_peft_model(Small().double(), config).double().eval()


@pytest.fixture
def data():
    torch.manual_seed(1)
    return [(torch.randn(7, 4), torch.randint(0, 3, (7,)))]


def fit(model, data, **options):
    return ekfac(model, CrossEntropy(), data, **options, **QUIET)


def test_trained_adapters_are_the_model_and_their_gradients_are_autograds(data):
    model = adapted()
    curvature = fit(model, data)
    assert [name.split("base_model.model.")[1] for name in curvature.layers] == [
        f"{module}.lora_{part}.default" for module in ("up", "down") for part in "AB"
    ]
    (x, y), names = data[0], {f"{name}.weight": name for name in curvature.layers}
    weights = {name: p for name, p in model.named_parameters() if name in names}

    def loss(some, one, label):
        return nn.functional.cross_entropy(functional_call(model, some, (one[None],)), label[None])

    each = vmap(grad(loss), (None, 0, 0))(weights, x, y)
    found = capture(model, CrossEntropy(), *data[0])
    for name, layer in names.items():
        assert_close(found[layer].matrices(), each[name], 1e-12)


def test_fresh_adapters_are_noticed_before_the_fit(data):
    model = adapted(trained=False)
    with pytest.raises(ValueError, match=r"the adapters of base_model\.model\.up, base_model\.model\.down are as they"):
        fit(model, data)
    with pytest.raises(ValueError, match=r"B, is 0.*Train them first, or load what was trained"):
        fit(model, data, layers="*.lora_B.default")


def test_an_adapter_that_training_never_reached_is_named_and_the_others_can_be_chosen(data):
    model = adapted()
    nn.init.zeros_(model.base_model.model.up.lora_B["default"].weight)
    with pytest.raises(ValueError, match=r"the adapters of base_model\.model\.up are as they were made.*layers="):
        fit(model, data)
    assert len(fit(model, data, layers="*down.lora_*").layers) == 2


def test_merged_adapters_are_refused_with_two_ways_on(data):
    model = adapted()
    before = fit(model, data)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into their weights.*unmerge_adapter\(\).*merge_and_unload\(\)"):
        fit(model, data)
    model.unmerge_adapter()
    assert fit(model, data).layers == before.layers


def test_a_merged_model_is_asked_through_the_weights_it_was_merged_into(data):
    model = adapted()
    x, _ = data[0]
    expected = model(x)
    whole = model.merge_and_unload()
    assert torch.allclose(whole(x), expected)
    found = fit(whole, data, layers=["up", "down"])
    assert influence(whole, CrossEntropy(), data, data, found, **QUIET).shape == (7, 7)


def test_adapters_that_are_switched_off_are_refused(data):
    model = adapted()
    model.base_model.disable_adapter_layers()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name)
    with pytest.raises(ValueError, match=r"switched off .* model\.enable_adapter_layers\(\)"):
        fit(model, data)


def test_of_several_adapters_the_active_one_counts(data):
    model = adapted()
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["up"], init_lora_weights=False))
    model.double()
    assert all(name.endswith(".default") for name in fit(model, data).layers)
    model.set_adapter("second")
    assert [name.rsplit(".", 1)[1] for name in fit(model, data).layers] == ["second", "second"]
    with pytest.raises(ValueError, match=r"of the adapter 'default', which is not active.*set_adapter\('default'\)"):
        fit(model, data, layers="*lora*")


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_trained_beside_adapters_are_layers_and_no_adapter(data, bias):
    model = adapted(bias=bias)
    curvature = fit(model, data)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name if name.endswith(".bias") else f"{name}.weight" for name in curvature.layers} == trained
    (x, y), weights = data[0], {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(some, one, label):
        return nn.functional.cross_entropy(functional_call(model, some, (one[None],)), label[None])

    each = vmap(grad(loss), (None, 0, 0))(weights, x, y)
    found = capture(model, CrossEntropy(), *data[0])
    for name in curvature.layers:
        came = found[name].matrices()
        expected = each[name][..., None] if name.endswith(".bias") else each[f"{name}.weight"]
        assert_close(came, expected, 1e-12)


def test_what_coverage_prints_needs_no_trained_adapter():
    assert "lora_A.default" in repr(coverage(adapted(trained=False)))


class FourBits(nn.Module):
    """A weight in blocks of four bits, as bitsandbytes packs it: two numbers a byte, a scale a row; it has no gradient."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.scale = nn.Parameter(weight.abs().amax(1, keepdim=True) / 7, requires_grad=False)
        codes = (weight / self.scale).round().add(8).to(torch.uint8)  # (o, i) in 1 … 15
        self.weight = nn.Parameter(codes[:, ::2] << 4 | codes[:, 1::2], requires_grad=False)
        self.bias = linear.bias.requires_grad_(False)

    def forward(self, x):
        codes = torch.stack([self.weight >> 4, self.weight & 15], dim=-1).flatten(1).to(x.dtype)
        return nn.functional.linear(x, (codes - 8) * self.scale, self.bias)


class Adapted(nn.Module):
    """An adapter beside such a weight, as any library may build it."""

    def __init__(self, base: nn.Module, i: int, o: int) -> None:
        super().__init__()
        self.base, self.first, self.second = base, nn.Linear(i, 2, bias=False), nn.Linear(2, o, bias=False)

    def forward(self, x):
        return self.base(x) + self.second(self.first(x))


def test_a_model_in_four_bits_is_asked_through_its_adapters(data):
    torch.manual_seed(0)
    model = nn.Sequential(
        Adapted(FourBits(nn.Linear(4, 6)), 4, 6), nn.Tanh(), Adapted(FourBits(nn.Linear(6, 3)), 6, 3)
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageNote)
        curvature = fit(model, data)
    assert curvature.layers == ("0.first", "0.second", "2.first", "2.second")
    (x, y), found = data[0], capture(model, CrossEntropy(), *data[0])
    for n in range(len(y)):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1]).backward()
        for name in curvature.layers:
            assert_close(found[name].matrices()[n], model.get_submodule(name).weight.grad, 1e-12)
    assert not any(p.requires_grad for m in (model[0].base, model[2].base) for p in m.parameters())


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_adapters_of_an_attention_in_one_call_are_refused_and_right_once_merged():
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["attention"], init_lora_weights=False)
    model = peft.get_peft_model(Attends().double(), config).double().eval()
    batches = [(torch.randn(5, 3, 4), torch.tensor([0, 1, 2, 0, 1]))]
    with pytest.raises(ValueError, match=r"lora_A.default' took no part .*merges an attention's.*merge_and_unload\(\)"):
        fit(model, batches)
    merged = model.merge_and_unload()
    found = capture(merged, CrossEntropy(), *batches[0], layers=["attention.q", "out"])
    for n in range(5):
        merged.requires_grad_(True)
        loss = nn.functional.cross_entropy(merged(batches[0][0][n : n + 1]), batches[0][1][n : n + 1])
        weight = torch.autograd.grad(loss, merged.attention.in_proj_weight)[0]
        assert_close(found["attention.q"].matrices()[n][:, :-1], weight[:4], 1e-12)
