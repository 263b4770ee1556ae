"""The course's networks: names one can read, and a start that depends on the seed alone."""

import pytest
import torch
from torch import nn

from inflib.lab import mlp


def test_layers_have_readable_names_and_the_published_sizes():
    linear = {name: (m.in_features, m.out_features) for name, m in mlp().named_modules() if isinstance(m, nn.Linear)}
    assert linear == {"hidden1": (784, 64), "hidden2": (64, 64), "out": (64, 10)}
    assert [name for name, _ in mlp().named_children()] == ["hidden1", "act1", "hidden2", "act2", "out"]


def test_two_widths_make_one_linear_layer():
    model = mlp((5, 3))
    assert [name for name, _ in model.named_children()] == ["out"]
    assert model(torch.zeros(2, 5)).shape == (2, 3)


def test_bias_and_activation_are_options():
    model = mlp((5, 4, 3), bias=False, activation=lambda: nn.LeakyReLU(0.5))
    assert [tuple(p.shape) for p in model.parameters()] == [(4, 5), (3, 4)]
    x = torch.ones(1, 5)
    h = x @ model.hidden1.weight.T
    expected = torch.where(h > 0, h, h / 2) @ model.out.weight.T
    assert torch.allclose(model(x), expected)


def test_the_seed_alone_decides_the_weights():
    torch.manual_seed(1)  # before the comparison the global generator stands elsewhere than at the first call
    one = nn.utils.parameters_to_vector(mlp(seed=3).parameters())
    torch.manual_seed(2)
    two = nn.utils.parameters_to_vector(mlp(seed=3).parameters())
    assert torch.equal(one, two)
    assert not torch.equal(one, nn.utils.parameters_to_vector(mlp(seed=4).parameters()))


@pytest.mark.usefixtures("rng_untouched")
def test_building_a_network_leaves_the_global_generator_alone():
    mlp((20, 10, 5))


def test_a_float64_network_starts_from_the_float32_numbers():
    single, double = mlp((20, 10, 5)), mlp((20, 10, 5), dtype=torch.float64)
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert b.dtype == torch.float64
        assert torch.equal(a.double(), b)


def test_weights_are_spread_as_in_a_fresh_torch_layer():
    for name, parameter in mlp((400, 300, 300, 10)).named_parameters():
        bound = (400 if "hidden1" in name else 300) ** -0.5
        assert parameter.abs().max() <= bound
        if parameter.numel() > 1000:
            assert parameter.abs().max() > 0.99 * bound
            assert abs(parameter.std().item() / (bound / 3**0.5) - 1) < 0.02  # of a uniform distribution
            assert abs(parameter.mean().item()) < 0.02 * bound


@pytest.mark.parametrize("sizes", [(), (784,), (784, 0, 10)])
def test_impossible_sizes_are_refused_with_an_example(sizes):
    with pytest.raises(ValueError, match=r"sizes=.*at least two positive widths.*\(784, 64, 10\)"):
        mlp(sizes)
