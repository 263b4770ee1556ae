"""The course's networks: names one can read, and a start that depends on the seed alone."""

import pytest
import torch
from torch import nn

from inflib.lab import cnn, mlp


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


# --- the convolutional network ---------------------------------------------------------------------------------


def test_the_cnn_is_small_and_its_layers_have_readable_names():
    model = cnn()
    shapes = {name.removesuffix(".weight"): tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1}
    assert shapes == {"conv1": (8, 1, 5, 5), "conv2": (16, 8, 5, 5), "hidden1": (32, 784), "out": (10, 32)}
    assert sum(p.numel() for p in model.parameters()) == 28_874
    assert model(torch.zeros(3, 784)).shape == (3, 10)


def test_the_cnn_reads_the_784_numbers_as_a_picture_row_by_row():
    model, x = cnn((2,), 4), torch.arange(2 * 784.0).reshape(2, 784)
    seen = {}
    model.conv1.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], y=output))
    model(x)
    assert torch.equal(seen["x"], x.reshape(2, 1, 28, 28))
    assert seen["y"].shape == (2, 2, 14, 14)


def test_channels_hidden_width_and_classes_are_options():
    model = cnn((2, 3, 4), 5, classes=7)
    assert [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))] == [
        "conv1",
        "conv2",
        "conv3",
        "hidden1",
        "out",
    ]
    assert model.hidden1.in_features == 4 * 4 * 4  # 28, 14, 7, 4
    assert model(torch.zeros(1, 784)).shape == (1, 7)


@pytest.mark.usefixtures("rng_untouched")
def test_the_cnns_seed_alone_decides_its_weights_in_any_dtype():
    one, two = cnn(seed=3), cnn(seed=3, dtype=torch.float64)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a.double(), b)
    assert not torch.equal(one.conv1.weight, cnn(seed=4).conv1.weight)


def test_the_cnns_weights_are_spread_as_in_a_fresh_torch_layer():
    for name, parameter in cnn((64, 64), 256).named_parameters():
        came_in = {"conv1": 25, "conv2": 25 * 64, "hidden1": 64 * 49, "out": 256}[name.split(".")[0]]
        assert parameter.abs().max() <= came_in**-0.5
        if parameter.numel() > 1000:
            assert parameter.abs().max() > 0.99 * came_in**-0.5


@pytest.mark.parametrize("options", [{"channels": ()}, {"channels": (4, 0)}, {"hidden": 0}, {"classes": -1}])
def test_impossible_cnns_are_refused_with_an_example(options):
    with pytest.raises(ValueError, match=r"at least one convolution.*cnn\(\(8, 16\), hidden=32\)"):
        cnn(**options)
