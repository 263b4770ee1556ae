"""The networks of notebook 07 are those of their recipes; at full scale they are trained once and kept."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from inflib import CrossEntropy
from inflib.lab import DigitData, accuracy, load_checkpoint, mean_loss, network, networks, shipped_checkpoint
from inflib.lab.downloads import FOLDER
from inflib.lab.networks import RECIPES, Recipe, build
from inflib.validation import flip_labels

NAMES = list(RECIPES["small"])


def weights(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().cpu().double()


# --- what ships ------------------------------------------------------------------------------------------------


def test_both_scales_have_the_same_networks():
    seeds = ["reseeded", "reseeded_2", "reseeded_3", "reseeded_4"]
    assert list(RECIPES["full"]) == NAMES == ["settled", *seeds, "jacobian", "cnn", "flipped", "memorised"]
    for recipes in RECIPES.values():
        assert [recipes[name].seed for name in ("settled", *seeds)] == [0, 1, 2, 3, 4]
        assert all(recipes[name].training == recipes["settled"].training for name in seeds)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_network_is_its_recipes_and_as_good_as_its_file_says(digits, name):
    recipe = RECIPES["small"][name]
    model = network(name, digits)
    facts = load_checkpoint(shipped_checkpoint(f"mnist_{name}"), recipe.build())
    assert facts.recipe["training"].items() >= recipe.training.items()
    assert ("jacobian" in facts.recipe["training"]) == (name == "jacobian")
    assert (facts.recipe["model"], facts.recipe["seed"]) == (recipe.model.__name__, recipe.seed)
    assert facts.recipe.get("flipped", 0.0) == recipe.flipped
    assert next(model.parameters()).dtype == torch.float64
    assert not model.training
    x, y = digits.queries.inputs.double(), digits.queries.labels
    assert accuracy(model, x, y) == pytest.approx(facts.metrics["query_accuracy"], abs=3e-3)
    assert mean_loss(model, CrossEntropy(), x, y) == pytest.approx(facts.metrics["query_loss"], rel=1e-3)


def test_the_checkpoints_are_small_together_and_the_readme_lists_them():
    files = [shipped_checkpoint(f"mnist_{name}") for name in NAMES]
    assert sum(file.stat().st_size for file in files) < 2_000_000
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, file in zip(NAMES, files, strict=True):
        sha256 = load_checkpoint(file, RECIPES["small"][name].build()).weights_sha256
        assert f"| `{file.name}` | `{sha256}` |" in readme


def test_training_of_the_settled_networks_ended_at_rest(digits):
    for name in ("settled", "reseeded", "reseeded_2", "reseeded_3", "reseeded_4"):
        metrics = load_checkpoint(shipped_checkpoint(f"mnist_{name}"), RECIPES["small"][name].build()).metrics
        assert metrics["gradient_norm"] < 0.05  # mnist_mlp, at a constant rate: 0.79
        assert metrics["query_accuracy"] > 0.92


def test_one_network_has_learned_the_flipped_labels_by_heart_and_one_has_not(digits):
    labels, wrong = flip_labels(digits.train.labels, 0.1)
    x = digits.train.inputs[wrong].double()
    learned = {name: accuracy(network(name, digits), x, labels[wrong]) for name in ("flipped", "memorised")}
    assert learned["memorised"] > 0.95
    assert learned["flipped"] < 0.15
    restored = accuracy(network("flipped", digits), x, digits.train.labels[wrong])
    assert restored > 0.75


def test_other_digits_are_refused(digits):
    backwards = DigitData(digits.train[torch.arange(4499, -1, -1)], digits.queries)
    with pytest.raises(ValueError, match="was trained on data with SHA-256"):
        network("settled", backwards)


@pytest.mark.parametrize(("name", "scale"), [("rnn", "small"), ("cnn", "huge")])
def test_unknown_networks_and_scales_are_refused_with_those_there_are(digits, name, scale):
    with pytest.raises(
        ValueError, match=rf"'{name}' at scale '{scale}'; expected one of settled, .*at one of small, full"
    ):
        network(name, digits, scale)


# --- trained when first asked for --------------------------------------------------------------------------------


@pytest.fixture
def few(digits, tmp_path, monkeypatch):
    """600 digits, a quick recipe at scale "full", and an empty cache; counts the trainings."""
    monkeypatch.setenv("INFLIB_CACHE", str(tmp_path / "cache"))
    quick = {"epochs": 2, "batch_size": 64, "lr": 1e-3, "weight_decay": 1e-3, "anneal": True}
    recipe = Recipe(networks.mlp, quick, {"sizes": (784, 8, 10)}, flipped=0.1)
    monkeypatch.setitem(RECIPES["full"], "settled", recipe)
    made = []

    def counted(*args, **kwargs):
        made.append(build(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(networks, "build", counted)
    return DigitData(digits.train[:600], digits.queries[:100]), made


def test_a_network_is_trained_once_and_then_found_in_the_cache(few, tmp_path):
    data, made = few
    one = network("settled", data, "full", progress=False)
    assert [p.name for p in (tmp_path / "cache" / "checkpoints").iterdir()] == ["mnist_settled_full.safetensors"]
    two = network("settled", data, "full", progress=False)
    assert len(made) == 1
    assert torch.equal(weights(one), weights(two))
    assert next(two.parameters()).dtype == torch.float64


def test_another_recipe_other_digits_or_damage_train_anew(few, tmp_path, monkeypatch):
    data, made = few
    network("settled", data, "full", progress=False)
    recipe = RECIPES["full"]["settled"]
    for other in (
        replace(recipe, training=recipe.training | {"jacobian": 0.01}),
        replace(recipe, seed=1),
        replace(recipe, arguments={"sizes": (784, 9, 10)}),
        recipe,
    ):
        before = len(made)
        monkeypatch.setitem(RECIPES["full"], "settled", other)
        network("settled", data, "full", progress=False)
        assert len(made) == before + 1
    network("settled", DigitData(data.train[:599], data.queries), "full", progress=False)
    (tmp_path / "cache" / "checkpoints" / "mnist_settled_full.safetensors").write_bytes(b"damaged")
    network("settled", data, "full", progress=False)
    assert len(made) == 7


def test_a_cache_that_cannot_be_written_is_a_warning(few, tmp_path, monkeypatch):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("INFLIB_CACHE", str(tmp_path / "a file"))
    with pytest.warns(UserWarning, match=r"was trained, but could not be kept.*Set INFLIB_CACHE"):
        network("settled", few[0], "full", progress=False)


def test_the_metrics_are_those_of_the_labels_it_was_trained_on(few):
    data, _ = few
    made = build(RECIPES["full"]["settled"], data, progress=False)
    labels, wrong = flip_labels(data.train.labels, 0.1)
    model, metrics = made.model, made.metrics
    assert torch.equal(made.data[1], labels)
    x = data.train.inputs
    assert metrics["train_accuracy"] == pytest.approx(accuracy(model, x, labels))
    assert metrics["flipped_accuracy"] == pytest.approx(accuracy(model, x[wrong], labels[wrong]))
    loss = nn.functional.cross_entropy(model(x), labels) + 0.5 * 1e-3 * sum(
        p.square().sum() for p in model.parameters()
    )
    norm = nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(model.parameters()))).norm()
    assert metrics["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
