"""The ladder opens where the correction of the eigenvalues shows, and its numbers are those of the dense matrices."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from inflib import CrossEntropy, capture, ekfac, gauss_newton, kfac
from inflib.lab import mlp
from inflib.widgets import Ladder, Rungs
from inflib.widgets.rungs import eigenvalues, most_corrected


def rungs_of(seed: int, names: tuple[str, ...] = ("G", "EK-FAC", "K-FAC")) -> Rungs:
    torch.manual_seed(seed)
    model, objective = mlp((5, 4, 3), seed=seed, dtype=torch.float64), CrossEntropy()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randint(3, (20,))
    make = {"G": gauss_newton, "EK-FAC": ekfac, "K-FAC": kfac}
    curvatures = {name: make[name](model, objective, [(x, y)], progress=False) for name in names}
    queries = capture(model, objective, x[:3], y[:3], measurement="log_likelihood")
    training = capture(model, objective, x, y)
    return Rungs(curvatures, *({k: p.matrices() for k, p in pairs.items()} for pairs in (queries, training)))


@pytest.fixture(scope="module")
def networks() -> Mapping[str, Rungs]:
    return {f"network {seed}": rungs_of(seed) for seed in (0, 1)}


def gains(networks: Mapping[str, Rungs]) -> dict[tuple[str, str], float]:
    """How much closer to exact G the correction brings the matrix, by network and layer, from the dense matrices."""
    found = {}
    for name, rungs in networks.items():
        G, after, before = (rungs.curvatures[k].to_dense() for k in ("G", "EK-FAC", "K-FAC"))
        shapes = list(rungs.curvatures["G"].shapes.items())
        parts, at = {"all layers": slice(None)}, 0
        for layer, (o, i) in shapes:
            parts[layer], at = slice(at, at + o * i), at + o * i
        for layer, part in parts.items():
            exact = G[part, part]
            errors = [float((C[part, part] - exact).norm() / exact.norm()) for C in (before, after)]
            found[name, layer] = errors[0] - errors[1]
    return found


def test_it_opens_where_the_correction_makes_the_largest_difference(networks) -> None:
    ladder, expected = Ladder(networks), gains(networks)
    assert (ladder.network.value, ladder.layer.value) == max(expected, key=expected.get)
    rows = ladder.comparison.rows
    assert rows["K-FAC"].matrix - rows["EK-FAC"].matrix == pytest.approx(max(expected.values()))


def test_it_opens_where_it_is_told_to(networks) -> None:
    ladder = Ladder(networks, network="network 1", layer="out")
    assert (ladder.network.value, ladder.layer.value) == ("network 1", "out")
    assert Ladder(networks, network="network 1").layer.value == "all layers"


def test_another_network_is_shown_with_all_its_layers(networks) -> None:
    ladder = Ladder(networks, network="network 1", layer="out")
    ladder.network.value = "network 0"
    assert ladder.layer.value == "all layers"
    assert len(ladder.comparison.matrices["G"]) == sum(
        o * i for o, i in networks["network 0"].curvatures["G"].shapes.values()
    )


def test_without_a_correction_it_opens_at_the_first_network() -> None:
    networks = {"only": rungs_of(0, ("G", "K-FAC"))}
    assert most_corrected(networks) == (None, None)
    assert Ladder(networks).network.value == "only"


def test_corrected_eigenvalues_are_the_exact_ones_in_their_own_vectors(networks) -> None:
    rungs = networks["network 0"]
    G = rungs.curvatures["G"].to_dense()
    found = eigenvalues(rungs, "hidden1")
    size = next(o * i for layer, (o, i) in rungs.curvatures["G"].shapes.items() if layer == "hidden1")
    exact, own = found["EK-FAC"]
    torch.testing.assert_close(exact, own, rtol=1e-9, atol=1e-12)
    curvature = rungs.curvatures["K-FAC"]
    exact, own = found["K-FAC"]
    U = torch.kron(curvature.Q_S["hidden1"], curvature.Q_A["hidden1"])
    torch.testing.assert_close(exact, torch.diag(U.T @ G[:size, :size] @ U), rtol=1e-9, atol=1e-12)
    assert float((exact - own).norm()) > 0.01 * float(exact.norm())
    assert sum(len(one) for one, _ in eigenvalues(rungs).values()) == 2 * len(G)


def test_the_plot_says_how_far_each_is_off(networks) -> None:
    ladder = Ladder(networks)
    assert "EK-FAC off by 0%" in ladder.eigenvalues.value
    assert "K-FAC off by 0%" not in ladder.eigenvalues.value.replace("EK-FAC off by 0%", "")
    assert ladder.eigenvalues.value in ladder.as_html()


def test_every_column_says_what_it_means(networks) -> None:
    table = Ladder(networks).table.value
    for meaning in ("‖C − G‖ / ‖G‖", "(C + λ)⁻¹v", "correlation across the training examples"):
        assert table.count(meaning) == 3  # for the pointer, for the eye, for the ear


def test_an_answer_to_another_question_is_greyed_out(networks, monkeypatch) -> None:
    ladder = Ladder(networks)
    assert "inflib-stale" not in ladder._dom_classes
    monkeypatch.setattr("inflib.widgets.ladder.compare", lambda *_args: 1 / 0)
    ladder.damping.value = 1.0
    assert "ZeroDivisionError" in ladder.error.value
    assert "inflib-stale" in ladder._dom_classes
    monkeypatch.undo()
    ladder.damping.value = 10.0
    assert "inflib-stale" not in ladder._dom_classes
