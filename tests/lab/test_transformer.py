"""The course's transformer: names one can read, a start of the seed alone, padding that changes nothing, causal."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from inflib.lab import transformer

pytestmark = pytest.mark.usefixtures("float64")


def small(**options):
    """A tiny transformer in float64 with every number away from its start, biases and norms included."""
    model = transformer(11, 6, width=8, heads=2, hidden=12, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def ids(rows=3, length=5):
    return torch.randint(0, 11, (rows, length), generator=torch.Generator().manual_seed(2))


def by_hand(model, tokens, norm):
    """Logits (T, V) of one sequence, written out: one head, one position, one earlier position at a time."""
    p = dict(model.named_parameters())

    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def normed(name, x):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]
        )

    def attention(name, x):
        q, k, v = (linear(f"{name}.{part}", x) for part in "qkv")
        rows = []
        for t in range(len(x)):
            heads = []
            for h in (slice(0, 4), slice(4, 8)):
                weights = torch.stack([q[t, h] @ k[s, h] / math.sqrt(4) for s in range(t + 1)]).exp()
                heads.append((weights[:, None] / weights.sum() * v[: t + 1, h]).sum(0))
            rows.append(torch.cat(heads))
        return linear(f"{name}.o", torch.stack(rows))

    def mlp(name, x):
        hidden = linear(f"{name}.up", x)
        return linear(f"{name}.down", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))

    x = torch.stack([p["token.weight"][token] + p["position.weight"][t] for t, token in enumerate(tokens.tolist())])
    for block in ("blocks.0", "blocks.1"):
        if norm == "pre":
            x = x + attention(f"{block}.attention", normed(f"{block}.norm1", x))
            x = x + mlp(f"{block}.mlp", normed(f"{block}.norm2", x))
        else:
            x = normed(f"{block}.norm1", x + attention(f"{block}.attention", x))
            x = normed(f"{block}.norm2", x + mlp(f"{block}.mlp", x))
    return linear("unembed", normed("norm", x) if norm == "pre" else x)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_logits_are_those_written_out_by_hand(norm):
    model, tokens = small(norm=norm), ids()
    for logits, row in zip(model(tokens), tokens, strict=True):
        assert torch.allclose(logits, by_hand(model, row, norm), atol=1e-12)


def test_linear_layers_have_the_names_of_the_course():
    linear = {n: (m.in_features, m.out_features) for n, m in small().named_modules() if isinstance(m, nn.Linear)}
    attention = [f"blocks.{b}.attention.{part}" for b in (0, 1) for part in "qkvo"]
    assert {linear[name] for name in attention} == {(8, 8)}
    assert {linear[f"blocks.{b}.mlp.up"] for b in (0, 1)} == {(8, 12)}
    assert {linear[f"blocks.{b}.mlp.down"] for b in (0, 1)} == {(12, 8)}
    assert linear["unembed"] == (8, 11)
    assert len(linear) == 13


def test_no_position_sees_a_later_one():
    model, tokens = small(), ids()
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 11
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-14)
    assert not torch.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_logits_but_its_own(norm, side):
    model, tokens = small(norm=norm), ids(length=4)
    for filler in (0, 7):
        rows = F.pad(tokens, (2, 0) if side == "left" else (0, 2), value=filler)
        mask = F.pad(torch.ones_like(tokens), (2, 0) if side == "left" else (0, 2))
        logits = model(rows, mask)
        assert torch.isfinite(logits).all()
        there = logits[:, 2:] if side == "left" else logits[:, :-2]
        assert torch.allclose(there, model(tokens), atol=1e-13)


def test_a_mask_of_ones_is_no_mask():
    model, tokens = small(), ids()
    assert torch.equal(model(tokens), model(tokens, torch.ones_like(tokens)))
    assert torch.equal(model(tokens), model(tokens, torch.ones(tokens.shape)))  # masks may come as floats


def test_derivatives_of_every_kind_pass_through_it():
    model, tokens = small(), ids()
    parameters = dict(model.named_parameters())

    def loss(p, row):
        return functional_call(model, p, (row[None],)).logsumexp(-1).sum()

    with sdpa_kernel(SDPBackend.MATH):
        each = vmap(grad(loss), in_dims=(None, 0))(parameters, tokens)
        v = {k: torch.randn_like(p) for k, p in parameters.items()}
        _, along = jvp(lambda p: functional_call(model, p, (tokens,)), (parameters,), (v,))
    whole = torch.autograd.grad(model(tokens).logsumexp(-1).sum(), list(parameters.values()))
    for g, total in zip(each.values(), whole, strict=True):
        assert torch.allclose(g.sum(0), total, atol=1e-10)
    step = {k: p + 1e-6 * v[k] for k, p in parameters.items()}
    assert torch.allclose((functional_call(model, step, (tokens,)) - model(tokens)) / 1e-6, along, atol=1e-3)


@pytest.mark.usefixtures("rng_untouched")
def test_a_seed_is_one_network_in_every_dtype():
    single, double = (transformer(20, 8, 16, 2, 32, seed=3, dtype=d) for d in (torch.float32, torch.float64))
    other = transformer(20, 8, 16, 2, 32, seed=4)
    for a, b, c in zip(single.parameters(), double.parameters(), other.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert b.dtype == torch.float64
        assert torch.equal(a.double(), b)
        assert a.ndim == 1 or not torch.equal(a, c)


def test_a_fresh_network_predicts_nearly_uniformly():
    losses = F.cross_entropy(transformer(50, 8, dtype=torch.float64)(ids()).flatten(0, 1), ids().flatten())
    assert abs(losses.item() - math.log(50)) < 0.5


def test_the_activation_is_an_option():
    names = [type(m).__name__ for m in transformer(5, 4, 8, 2, 8, activation=nn.ReLU).modules()]
    assert (names.count("ReLU"), names.count("GELU")) == (2, 0)


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match=r"7 tokens came; expected at most 6.*Shorten"):
        small()(ids(length=7))


@pytest.mark.parametrize("wrong", [11, -1])
def test_ids_outside_the_vocabulary_are_refused(wrong):
    tokens = ids()
    tokens[1, 2] = wrong
    with pytest.raises(ValueError, match=rf"token ids .*{wrong}.*expected 0 to 10.*vocabulary"):
        small()(tokens)


@pytest.mark.parametrize("wrong", [{"width": 10, "heads": 4}, {"blocks": 0}, {"norm": "middle"}])
def test_impossible_sizes_are_refused_with_an_example(wrong):
    with pytest.raises(ValueError, match=r"transformer\(.*width that heads divide.*width=128, heads=4"):
        transformer(11, 6, **wrong)
