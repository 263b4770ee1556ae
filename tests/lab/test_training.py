"""Training repeats itself bit for bit; a checkpoint is loaded for its own weights, model and data, or not at all."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from inflib import CrossEntropy
from inflib.lab import accuracy, load_checkpoint, mean_loss, mlp, save_checkpoint, shipped_checkpoint, train
from inflib.lab.training import _jacobian_penalty, data_sha256

SHIPPED = shipped_checkpoint("mnist_mlp")


def weights(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().cpu().clone()


def trained(part, *, model=None, loss=None, **options):
    """A network trained for two epochs on 600 digits; returns it with its history."""
    model = model or mlp((784, 16, 10))
    options = {"epochs": 2, "batch_size": 64, "progress": False} | options
    return model, train(model, loss or CrossEntropy(), part.inputs[:600], part.labels[:600], **options)


def each_loss(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


# --- training --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rng_untouched")
def test_the_same_seed_gives_the_same_weights_bit_for_bit(digits):
    one, first = trained(digits.train, seed=5)
    two, second = trained(digits.train, seed=5)
    assert torch.equal(weights(one), weights(two))
    assert first == second
    assert not torch.equal(weights(one), weights(trained(digits.train, seed=6)[0]))


@pytest.mark.usefixtures("rng_untouched")
def test_dropout_is_seeded_too_and_leaves_the_global_generator_alone(digits):
    def model():
        return mlp((784, 16, 10), activation=lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))

    one = trained(digits.train, model=model())[0]
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)  # the second run meets the global generator in another state
        two = trained(digits.train, model=model())[0]
    assert torch.equal(weights(one), weights(two))
    plain = mlp((784, 16, 10))
    assert not torch.equal(weights(one), weights(trained(digits.train, model=plain)[0]))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_cuda_repeats_itself_and_stays_near_the_cpu(digits):
    state = torch.cuda.get_rng_state()
    one, two = (trained(digits.train, device="cuda")[0] for _ in range(2))
    assert next(one.parameters()).is_cuda
    assert torch.equal(weights(one), weights(two))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert (weights(one) - weights(trained(digits.train)[0])).abs().max() < 1e-2


def test_the_first_step_is_adam_on_the_mean_loss_with_coupled_weight_decay(digits):
    x, y = digits.train.inputs[:50].double(), digits.train.labels[:50]
    model, start = mlp((784, 8, 10), dtype=torch.float64), mlp((784, 8, 10), dtype=torch.float64)
    train(model, CrossEntropy(), x, y, epochs=1, batch_size=50, lr=1e-3, weight_decay=0.1, progress=False)
    loss = F.cross_entropy(start(x), y) + 0.05 * sum(p.square().sum() for p in start.parameters())
    gradients = torch.autograd.grad(loss, list(start.parameters()))
    for before, after, g in zip(start.parameters(), model.parameters(), gradients, strict=True):
        # at the first step Adam's moments, debiased, are g and g²
        assert torch.allclose(after, before - 1e-3 * g / (g.abs() + 1e-8), atol=1e-12)


def test_every_epoch_uses_every_example_once(digits):
    model = mlp((784, 16, 10), dtype=torch.float64)
    x, y = digits.train.inputs[:101].double(), digits.train.labels[:101]
    expected = F.cross_entropy(model(x), y).item()
    history = train(model, each_loss, x, y, epochs=2, batch_size=10, lr=0.0, progress=False)
    assert history.train_loss == pytest.approx((expected, expected), rel=1e-12)


def test_the_shuffle_differs_between_epochs_and_seeds(digits):
    seen = []

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(1, 2)

        def forward(self, x):
            seen.append(tuple(x.flatten().tolist()))
            return self.out(x)

    for seed in (0, 1):
        x = torch.arange(8.0)[:, None]
        train(Recorder(), each_loss, x, torch.zeros(8, dtype=torch.long), epochs=2, seed=seed, progress=False)
    assert all(sorted(order) == list(range(8)) for order in seen)
    assert len(set(seen)) == 4


def test_weights_on_the_way_can_be_kept_with_their_epoch_and_rate(digits):
    kept = []
    model = mlp((784, 8, 10))
    trained(
        digits.train,
        model=model,
        epochs=3,
        lr=0.01,
        anneal=True,
        after_epoch=lambda *at: kept.append((at, weights(model))),
    )
    assert [epoch for (epoch, _), _ in kept] == [1, 2, 3]
    assert [rate for (_, rate), _ in kept] == pytest.approx([0.0075, 0.0025, 0.0])
    assert not torch.equal(kept[0][1], kept[1][1])
    assert torch.equal(kept[-1][1], weights(model))


def test_inputs_by_name_train_as_one_tensor_does(digits):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp((784, 8, 10))

        def forward(self, left, right):
            return self.net(torch.cat([left, right], 1))

    x, y = digits.train.inputs[:200], digits.train.labels[:200]
    parts = {"left": x[:, :300], "right": x[:, 300:]}
    named, plain = Named(), mlp((784, 8, 10))
    for model, inputs in ((named, parts), (plain, x)):
        train(model, CrossEntropy(), inputs, y, epochs=2, batch_size=32, progress=False)
    assert torch.equal(weights(named), weights(plain))
    assert mean_loss(named, CrossEntropy(), parts, y, batch_size=7) == mean_loss(
        plain, CrossEntropy(), x, y, batch_size=7
    )
    with pytest.raises(ValueError, match="199 inputs and 200 targets"):
        train(named, CrossEntropy(), parts | {"right": x[1:, 300:]}, y, progress=False)


def test_an_objective_and_a_plain_function_train_alike(digits):
    one, first = trained(digits.train, loss=CrossEntropy())
    two, second = trained(digits.train, loss=each_loss)
    assert torch.equal(weights(one), weights(two))
    assert (first.recipe["loss"], second.recipe["loss"]) == ("CrossEntropy()", "each_loss")


def test_training_learns_and_leaves_a_model_ready_to_be_asked(digits):
    model, history = trained(digits.train, epochs=20)
    assert history.train_loss[-1] < history.train_loss[0] / 2
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert accuracy(model, digits.queries.inputs, digits.queries.labels) > 0.7
    recipe = {"optimiser": "Adam", "loss": "CrossEntropy()", "epochs": 20, "batch_size": 64}
    assert history.recipe == recipe | {"lr": 1e-3, "weight_decay": 0.0, "seed": 0}


def test_accuracy_and_mean_loss_do_not_depend_on_the_batches(digits):
    model, x, y = mlp(), digits.queries.inputs, digits.queries.labels
    with torch.no_grad():
        outputs = model(x)
    assert accuracy(model, x, y, batch_size=7) == (outputs.argmax(1) == y).double().mean().item()
    expected = F.cross_entropy(outputs, y).item()
    assert mean_loss(model, CrossEntropy(), x, y, batch_size=7) == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_already_averaged_is_refused(digits):
    with pytest.raises(ValueError, match=r"training loss has shape \(\); expected .* \(64,\).*reduction='none'"):
        trained(digits.train, loss=F.cross_entropy)


def test_a_diverging_loss_is_refused_with_its_epoch_and_learning_rate(digits):
    with pytest.raises(ValueError, match=r"loss became (nan|inf) in epoch 1 of 2.*lr=1e\+30"):
        trained(digits.train, lr=1e30)


@pytest.mark.parametrize(("n_inputs", "n_targets"), [(3, 2), (0, 0)])
def test_inputs_and_targets_must_match_and_exist(n_inputs, n_targets):
    with pytest.raises(ValueError, match=rf"{n_inputs} inputs and {n_targets} targets; expected as many of each"):
        train(mlp((4, 2)), each_loss, torch.zeros(n_inputs, 4), torch.zeros(n_targets, dtype=torch.long))


def test_an_annealed_learning_rate_falls_along_half_a_cosine_step_by_step(digits, monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def watched(optimiser, *args, **kwargs):
        rates.append(optimiser.param_groups[0]["lr"])
        return step(optimiser, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    history = trained(digits.train, anneal=True, lr=2e-3)[1]
    assert len(rates) == 20  # 2 epochs of 600 in batches of 64
    for k, rate in enumerate(rates):
        assert rate == pytest.approx(1e-3 * (1 + math.cos(math.pi * k / 20)), abs=1e-12)
    assert history.recipe["anneal"] is True
    rates.clear()
    trained(digits.train)
    assert set(rates) == {1e-3}


def test_the_jacobian_penalty_is_half_the_squared_jacobian_on_average():
    model = mlp((5, 7, 4), activation=nn.Tanh, dtype=torch.float64)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = torch.func.vmap(torch.func.jacrev(model))(x).square().sum((1, 2)).mean() / 2
    many = x.repeat(20_000, 1).requires_grad_()
    torch.manual_seed(0)
    assert _jacobian_penalty(model(many), many).item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.usefixtures("rng_untouched")
def test_the_jacobian_option_makes_the_model_less_sensitive_to_its_inputs(digits):
    def sensitivity(model):
        return torch.func.vmap(torch.func.jacrev(model))(digits.train.inputs[:50]).square().sum().item()

    plain, _ = trained(digits.train, epochs=5)
    smooth, history = trained(digits.train, epochs=5, jacobian=1.0)
    assert sensitivity(smooth) < 0.7 * sensitivity(plain)
    assert history.recipe["jacobian"] == 1.0
    assert torch.equal(weights(smooth), weights(trained(digits.train, epochs=5, jacobian=1.0)[0]))


def test_training_with_a_penalty_leaves_the_inputs_as_they_were(digits):
    x = digits.train.inputs[:100].clone()
    train(mlp((784, 4, 10)), CrossEntropy(), x, digits.train.labels[:100], epochs=1, jacobian=0.1, progress=False)
    assert not x.requires_grad
    assert torch.equal(x, digits.train.inputs[:100])


# --- the checkpoint that ships ---------------------------------------------------------------------------------


def test_the_shipped_network_was_trained_on_the_training_digits_and_never_saw_the_queries(digits):
    facts = load_checkpoint(SHIPPED, mlp(), data=(digits.train.inputs, digits.train.labels))
    assert facts.data_sha256 == data_sha256(digits.train.inputs, digits.train.labels)
    both = (digits.train, digits.queries)
    everything = torch.cat([part.inputs for part in both]), torch.cat([part.labels for part in both])
    for other in ((digits.queries.inputs, digits.queries.labels), everything):
        with pytest.raises(ValueError, match=rf"trained on data with SHA-256 .*\({len(other[0])} examples\)"):
            load_checkpoint(SHIPPED, mlp(), data=other)


def test_the_shipped_network_is_good_but_has_not_interpolated(digits):
    model = mlp()
    metrics = load_checkpoint(SHIPPED, model).metrics
    for name, part in (("train", digits.train), ("query", digits.queries)):
        assert accuracy(model, part.inputs, part.labels) == pytest.approx(metrics[f"{name}_accuracy"], abs=1e-3)
        assert mean_loss(model, CrossEntropy(), part.inputs, part.labels) == pytest.approx(
            metrics[f"{name}_loss"], rel=1e-3
        )
    assert metrics["query_accuracy"] >= 0.93
    assert metrics["train_loss"] > 0.02


def test_the_shipped_recipe_is_the_one_in_the_repository():
    facts = load_checkpoint(SHIPPED, mlp())
    recipe = {"optimiser": "Adam", "loss": "CrossEntropy()", "lr": 1e-3, "batch_size": 128, "epochs": 100}
    assert facts.recipe["training"] == recipe | {"weight_decay": 5e-3, "seed": 0}
    assert (facts.recipe["sizes"], facts.recipe["seed"]) == ([784, 64, 64, 10], 0)
    assert SHIPPED.stat().st_size < 250_000


# --- saving and loading ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, digits):
    """A saved checkpoint: its path, its model, and the data it was trained on."""
    model, history = trained(digits.train)
    data = (digits.train.inputs[:600], digits.train.labels[:600])
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, model, data=data, recipe=history.recipe, metrics={"train_loss": history.train_loss[-1]})
    return path, model, data


def refused(path, model, match, **options):
    before = weights(model)
    with pytest.raises(ValueError, match=match):
        load_checkpoint(path, model, **options)
    assert torch.equal(weights(model), before)


def test_a_checkpoint_comes_back_as_it_was_saved(saved, digits):
    path, model, data = saved
    fresh = mlp((784, 16, 10), seed=9)
    facts = load_checkpoint(path, fresh, data=data)
    assert torch.equal(weights(fresh), weights(model))
    assert not fresh.training
    assert facts.recipe == {"optimiser": "Adam", "loss": "CrossEntropy()"} | dict(
        epochs=2, batch_size=64, lr=1e-3, weight_decay=0.0, seed=0
    )
    assert facts.metrics.keys() == {"train_loss"}


def test_float64_models_and_data_take_the_same_checkpoint(saved):
    path, model, (inputs, targets) = saved
    double = mlp((784, 16, 10), dtype=torch.float64)
    load_checkpoint(path, double, data=(inputs.double(), targets))
    assert torch.equal(weights(double), weights(model).double())


def test_the_same_checkpoint_is_the_same_bytes(saved, tmp_path):
    path, model, data = saved
    facts = load_checkpoint(path, mlp((784, 16, 10)))
    other_order = dict(reversed(facts.recipe.items()))
    save_checkpoint(tmp_path / "again", model, data=data, recipe=other_order, metrics=facts.metrics)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (mlp((784, 32, 10)), r"hidden1\.bias is \(32,\) in the model and \(16,\) in the file \(3 of 4 parameters"),
        (mlp((784, 16, 16, 10)), r"hidden2\.bias is \(16,\) in the model and absent in the file"),
        (mlp((784, 16, 10), bias=False), r"hidden1\.bias is absent in the model and \(16,\) in the file"),
    ],
)
def test_a_model_of_other_shapes_is_refused_and_left_alone(saved, model, match):
    refused(saved[0], model, match)


def test_tampered_weights_are_refused_and_the_model_left_alone(saved):
    path = saved[0]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["out.bias"][3] += 1e-6
    save_file(tensors, path, metadata=metadata)
    refused(path, mlp((784, 16, 10)), r"weights in .* have SHA-256 \w{64}; expected \w{64}, recorded .* damaged")


def test_other_data_is_refused_and_the_model_left_alone(saved):
    path, _, (inputs, targets) = saved
    swapped = targets.clone()
    swapped[:2] = targets[:2].flip(0)
    assert not torch.equal(swapped, targets)
    for data in ((inputs, swapped), (inputs[:-1], targets[:-1]), (inputs.flip(0), targets.flip(0))):
        refused(
            path, mlp((784, 16, 10)), r"was trained on data with SHA-256 \w{64}; the data given has \w{64}", data=data
        )


def test_a_checkpoint_knows_inputs_by_name(saved, tmp_path):
    _, model, (x, y) = saved
    named = {"left": x[:, :300], "right": x[:, 300:]}
    save_checkpoint(tmp_path / "named.safetensors", model, data=(named, y), recipe={}, metrics={})
    load_checkpoint(tmp_path / "named.safetensors", model, data=(dict(reversed(named.items())), y))
    for other in (named | {"left": named["left"] + 1}, {"left": named["right"], "right": named["left"]}):
        refused(tmp_path / "named.safetensors", model, "was trained on data with SHA-256", data=(other, y))


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_a_damaged_file_is_refused(saved, content):
    path = saved[0]
    path.write_bytes(content if content is not None else path.read_bytes()[:-100])
    refused(path, mlp((784, 16, 10)), r"cannot be read as safetensors .* bytes came")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"inflib": "{}"}, {"inflib": json.dumps([1])}])
def test_a_file_without_the_facts_is_refused(saved, metadata):
    path, model, _ = saved
    save_file(model.state_dict(), path, metadata=metadata)
    refused(path, mlp((784, 16, 10)), r"does not say what its weights are .*save_checkpoint")


def test_a_missing_checkpoint_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors is missing"):
        load_checkpoint(tmp_path / "none.safetensors", mlp())
    with pytest.raises(FileNotFoundError, match=r"git checkout data/checkpoints/none\.safetensors.*build_checkpoints"):
        load_checkpoint(shipped_checkpoint("none"), mlp())
