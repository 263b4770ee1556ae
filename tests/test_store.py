"""A store answers whatever is asked of it with the score of what its bytes stand for, and never breaks its bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from languages import LanguageCase, language, languages
from networks import Case, drawn, make
from oracle import assert_close
from test_store_bits import codes_of
from torch import Tensor

from inflib import (
    Store,
    TrainIndex,
    ekfac,
    identity,
    influence,
    kfac,
    load_index,
    precondition,
    refine,
    relative,
    save,
    self_influence,
)
from inflib.index import Found
from inflib.index.search import _drawn, _share

pytestmark = pytest.mark.usefixtures("float64")

LENGTHS = (5, 3, 6, 2, 4, 1, 6, 3, 2, 5, 4, 4)
CHOICES = [
    dict(axes=1.0, bits=1),
    dict(axes=0.4, bits=2),
    dict(axes=9, bits=4),
    dict(axes=0.5, bits=1, components=6),
    dict(axes=1.0, bits=16),
]


def case_of(seed: int = 0) -> LanguageCase:
    return language(LENGTHS, (0,) * len(LENGTHS), seed, queries=(4, 3, 6))


def build(case: Any, folder: Path, curvature: Any = None, **options: Any) -> Store:
    curvature = curvature or fit(case)
    return TrainIndex.build(
        case.model, case.objective, case.train, curvature, path=folder, progress=False, **{"shard": 4} | options
    )


def fit(case: Any) -> Any:
    return ekfac(case.model, case.objective, case.train, case.layers, progress=False)


def asked(case: Any) -> Any:
    return case.asked if isinstance(case, LanguageCase) else case.queries


def scored(case: Any, curvature: Any, damping: Any = None, **options: Any) -> Tensor:
    return influence(case.model, case.objective, case.train, asked(case), curvature, damping, progress=False, **options)


def stood_for(store: Store, case: LanguageCase) -> Tensor:
    """The gradients that a store's bytes stand for, (N, D) in the order of the oracle, read without inflib's help."""
    found = []
    for at, name in enumerate(store.curvature.layers):
        axes, (o, i) = store.kept[name], store.curvature.shapes[name]
        assert axes is not None
        parts = [np.load(path)[str(at)] for path in sorted((store.folder / "shards").glob("*.npy"))]
        fields = np.concatenate(parts)
        v = codes_of(fields["codes"], store.bits, axes.count) - (2**store.bits - 1) / 2
        z = torch.from_numpy(fields["scale"].astype(float)[:, None] * axes.spread.double().numpy() * v)
        t = torch.zeros(len(z), o * i)
        t[:, axes.at] = z if axes.P is None else z @ axes.P
        G = t.reshape(-1, o, i) * (store.curvature.eigenvalues[name] + store.damping[name]).sqrt()
        found.append((store.curvature.Q_S[name] @ G @ store.curvature.Q_A[name].T).flatten(1))
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_score_is_that_of_the_gradient_its_bytes_stand_for(choice: dict[str, Any], tmp_path: Path) -> None:
    case = case_of()
    store = build(case, tmp_path / "store", damping=0.3, **choice)
    numbers = {name: 0.01 * (at + 1) for at, name in enumerate(store.curvature.layers)}
    problem = case.problem
    (x, y) = case.asked[0]
    m = -problem.gradients(y, None, x)
    C = store.curvature.to_dense() + problem.damping(numbers)
    expected = -m @ torch.linalg.solve(C, stood_for(store, case).T)
    prepared = store.prepare(case.model, case.objective, case.asked)
    assert_close(store.scores(prepared, damping=numbers), expected, 1e-3 if store.bits < 8 else 1e-6)
    assert len(store) == len(LENGTHS) and len(list((tmp_path / "store" / "shards").iterdir())) > 1


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_r_and_rest_are_what_the_bytes_leave_out(choice: dict[str, Any], tmp_path: Path) -> None:
    case = case_of()
    store = build(case, tmp_path / "store", damping=0.3, **choice)
    gradients, kept = case.problem.gradients(), stood_for(store, case)
    for at, (name, span) in enumerate(case.problem.spans.items()):
        Q_S, Q_A = store.curvature.Q_S[name], store.curvature.Q_A[name]
        o, i = store.curvature.shapes[name]
        white = (store.curvature.eigenvalues[name] + 0.3).rsqrt()
        left = (Q_S.T @ (gradients - kept)[:, span].reshape(-1, o, i) @ Q_A * white).flatten(1).square().sum(1)
        fields = np.concatenate([np.load(p)[str(at)] for p in sorted((store.folder / "shards").glob("*.npy"))])
        r, rest, norm = (torch.from_numpy(fields[key].astype(float)) for key in ("r", "rest", "norm"))
        assert_close(r.square() + rest.square(), left, 1e-5)
        assert_close(norm, gradients[:, span].norm(dim=1), 1e-6)
    assert_close(store.norms(), gradients.norm(dim=1), 1e-6)
    assert_close(store.norms("up"), gradients[:, case.problem.spans["up"]].norm(dim=1), 1e-6)


def test_sixteen_bits_of_every_axis_give_what_influence_gives(tmp_path: Path) -> None:
    case = case_of()
    store = build(case, tmp_path / "store", bits=16)
    for measurement in (None, "margin"):
        prepared = store.prepare(case.model, case.objective, case.asked, measurement)
        for damping in (None, 0.3, relative(0.5)):
            exact = scored(case, store.curvature, damping, measurement=measurement)
            assert_close(store.scores(prepared, damping=damping), exact, 1e-3)
            found = store.influence(
                case.model, case.objective, case.asked, damping=damping, measurement=measurement, keep="layer"
            )
            assert_close(found.sum(-1), exact, 1e-3)


def test_other_curvatures_layers_and_examples_are_answered_from_one_store(tmp_path: Path) -> None:
    case = case_of()
    fits = {f: f(case.model, case.objective, case.train, case.layers, progress=False) for f in (ekfac, kfac, identity)}
    store = build(case, tmp_path / "store", fits[ekfac], bits=16)
    prepared = store.prepare(case.model, case.objective, case.asked)
    for curvature in fits.values():
        assert_close(store.scores(prepared, curvature), scored(case, curvature), 1e-3)
    split = store.scores(prepared, keep=("layer",))
    assert_close(store.scores(prepared, layers=["up", "q"]), split[..., [0, 4]].sum(-1), 1e-12)
    assert_close(store.scores(prepared, layers="up"), split[..., 4], 1e-12)
    for examples in ([11, 0, 5, 5], torch.arange(12) % 3 == 0, []):
        at = torch.as_tensor(examples, dtype=torch.long if isinstance(examples, list) else None)
        assert_close(store.scores(prepared, examples=examples), split.sum(-1)[:, at], 1e-13)
    with pytest.raises(ValueError, match="another eigenbasis"):
        store.scores(prepared, kfac(case.model, case.objective, case.train, case.layers, seed=5, progress=False))


def test_layers_applied_once_keep_their_vectors_and_are_exact(tmp_path: Path) -> None:
    case = make(n=9, splits=[4, 6])
    store = build(case, tmp_path / "store")
    prepared = store.prepare(case.model, case.objective, case.queries)
    assert_close(store.scores(prepared), scored(case, store.curvature), 1e-13)
    assert float(store.bounds(prepared).max()) < 1e-10
    assert store.nbytes == 9 * (4 + 4 + 5 + 3) * 8
    assert bool(search(store, case, k=4, candidates=4).proved.all())


def test_a_vector_layer_refuses_examples_of_several_positions(tmp_path: Path) -> None:
    once, longer = language((1, 1), (0, 0)), language((3, 4), (0, 0))
    curvature = fit(longer)
    TrainIndex.build(longer.model, longer.objective, once.train, curvature, path=tmp_path / "store", progress=False)
    with pytest.raises(ValueError, match="holds a store of other layers"):
        TrainIndex.build(
            longer.model,
            longer.objective,
            longer.train,
            curvature,
            path=tmp_path / "store",
            append=True,
            progress=False,
        )


@given(languages(), st.sampled_from(CHOICES), st.floats(1e-3, 10))
@drawn(12)
def test_no_bound_is_broken(tmp_path_factory: Any, case: LanguageCase, choice: dict[str, Any], damping: float) -> None:
    store = build(case, tmp_path_factory.mktemp("stores") / "store", damping=0.1, **choice)
    prepared = store.prepare(case.model, case.objective, case.asked)
    for numbers in (0.1, damping):
        error = (store.scores(prepared, damping=numbers) - scored(case, store.curvature, numbers)).abs()
        assert bool((error <= store.bounds(prepared, damping=numbers)).all())


def test_a_million_pairs_in_float32_break_no_bound(tmp_path: Path) -> None:
    case = language((4,) * 500, (0,) * 500, queries=(3,) * 500)
    case.model.float()
    curvature = fit(case)
    pairs = worst = 0.0
    for choice in (dict(axes=0.5, bits=1), dict(axes=1.0, bits=16), dict(axes=0.5, bits=4, components=40)):
        store = build(case, tmp_path / str(len(choice) + choice["bits"]), curvature, **choice)
        prepared = store.prepare(case.model, case.objective, case.asked)
        for damping in (None, 1e-3):
            exact = scored(case, curvature, damping)
            error, bound = (
                (store.scores(prepared, damping=damping) - exact).abs(),
                store.bounds(prepared, damping=damping),
            )
            assert bool((error <= bound).all())
            pairs, worst = pairs + error.numel(), max(worst, float((error / bound).max()))
    assert pairs > 1e6
    assert worst > 0.05  # a bound that is never come near says nothing


# --- search -------------------------------------------------------------------------------------------------------------


def search(store: Any, case: Any, train: Any = None, **options: Any) -> Found:
    return store.search(case.model, case.objective, asked(case), case.train if train is None else train, **options)


@pytest.mark.parametrize("largest", [True, False])
def test_search_returns_exact_scores_ranked_exactly(tmp_path: Path, largest: bool) -> None:
    case = case_of()
    store = build(case, tmp_path / "store", axes=0.4)
    exact = scored(case, store.curvature)
    found = search(store, case, k=3, candidates=6, largest=largest)
    assert_close(found.scores, exact.gather(1, found.examples), 1e-12)
    assert bool(((found.scores.diff() <= 0) == largest).all())
    order = store.scores(store.prepare(case.model, case.objective, case.asked)).argsort(dim=1, descending=largest)
    assert torch.equal(order.gather(1, found.places - 1), found.examples)
    assert "the 3 strongest of 12 examples, 6 computed exactly" in repr(found)
    whole = search(store, case, k=3, candidates=12, largest=largest)
    assert torch.equal(whole.examples, exact.topk(3, largest=largest).indices)
    assert bool(whole.proved.all()) and "proved" in repr(whole)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("longest", [2, 4, 9])
def test_exact_scores_are_right_for_one_query_and_several_of_sequences_short_and_long(
    tmp_path: Path, longest: int, queries: int
) -> None:
    """Positions fewer than a layer's rows meet a query by themselves; of one position; more are added up before."""
    case = language([longest] * 8, (0,) * 8, queries=(4, 3, 6)[:queries])
    store = build(case, tmp_path / "store", axes=0.4)
    exact = scored(case, store.curvature)
    found = search(store, case, k=3, candidates=5)
    assert_close(found.scores, exact.gather(1, found.examples), 1e-12)


def test_what_is_proved_is_true_and_the_rest_is_counted(tmp_path: Path) -> None:
    case = case_of()
    proved = open_ = 0
    for bits in (1, 4, 8):
        store = build(case, tmp_path / str(bits), bits=bits)
        prepared = store.prepare(case.model, case.objective, case.asked)
        exact, near, bound = scored(case, store.curvature), store.scores(prepared), store.bounds(prepared)
        for k in (1, 2, 4):
            found = search(store, case, k=k, candidates=k)
            first = near.topk(k).indices.unique()
            rest = [n for n in range(12) if n not in first.tolist()]
            for q in range(3):
                among = exact[q, first].topk(k).values[-1]
                assert int(found.open[q]) == sum(bool(near[q, n] + bound[q, n] >= among) for n in rest)
                if found.proved[q]:
                    assert torch.equal(found.examples[q], exact[q].topk(k).indices)
                proved, open_ = proved + bool(found.proved[q]), open_ + int(not found.proved[q])
    assert proved and open_


def test_an_audited_bound_is_that_of_the_examples_drawn_and_counts_what_it_leaves_open(tmp_path: Path) -> None:
    case = case_of()
    store = build(case, tmp_path / "store", axes=0.7, bits=2)
    exact, N = scored(case, store.curvature), len(LENGTHS)
    prepared = store.prepare(case.model, case.objective, case.asked)
    near, bound = store.scores(prepared), store.bounds(prepared)
    drawn = np.random.Generator(np.random.Philox(5)).choice(N, 4, replace=False)
    found = search(store, case, k=2, candidates=3, audit=4, rate=0.4, seed=5)
    plain = search(store, case, k=2, candidates=3)
    known = {*drawn.tolist(), *near.topk(3).indices.flatten().tolist()}
    assert found.audited is not None and plain.audited is None
    for q in range(len(exact)):
        best = sorted(known, key=lambda n: -float(exact[q, n]))[:2]
        assert found.examples[q].tolist() == best
        kth = float(exact[q, best[1]])
        ratios = sorted(float((exact[q, n] - near[q, n]).abs() / bound[q, n]) for n in drawn)
        rest = [n for n in range(N) if n not in known]
        for came, c in ((found.open, 1.0), (found.audited, ratios[2])):  # three of four: 5 · (1 − .4)
            assert int(came[q]) == sum(float(near[q, n] + c * bound[q, n]) >= kth for n in rest)
    assert "at a rate of 0.4 open for" in repr(found) or bool(found.proved.all())
    everything = search(store, case, k=2, candidates=3, audit=99, rate=0.5)
    assert bool((everything.audited == 0).all()) and bool(everything.proved.all())
    with pytest.raises(ValueError, match=r"audit=98 examples with rate=0.01; expected .* audit ≥ 1 / rate − 1"):
        search(store, case, audit=98, rate=0.01)


@pytest.mark.parametrize(("audit", "rate"), [(99, 0.05), (199, 0.01), (30, 0.2)])
def test_an_audited_bound_is_broken_at_its_rate_whatever_the_errors(audit: int, rate: float) -> None:
    draw = torch.Generator().manual_seed(0)
    N, near, over = 1000, torch.zeros(1, 1000), []
    for seed in range(300):
        bound = 1 + torch.rand(1, N, generator=draw)
        exact = torch.randn(1, N, generator=draw).pow(3) * bound**2  # heavy tails, that grow faster than the bound
        drawn = _drawn(N, audit, rate, seed)
        known = drawn.sort().values
        c = _share(exact[:, known], near, bound, known, drawn, rate)
        rest = torch.ones(N, dtype=torch.bool)
        rest[drawn] = False
        over.append(float((exact.abs() > c * bound)[0, rest].double().mean()))
    mean, error = float(np.mean(over)), float(np.std(over) / len(over) ** 0.5)
    assert rate * 0.6 - 3 * error < mean < rate + 3 * error


def test_search_answers_other_dampings_curvatures_layers_and_measurements(tmp_path: Path) -> None:
    case = case_of()
    store = build(case, tmp_path / "store", bits=4)
    other = kfac(case.model, case.objective, case.train, case.layers, progress=False)
    asks: list[dict[str, Any]] = [dict(damping=0.7), dict(curvature=other), dict(measurement="margin")]
    for ask in asks:
        options = dict(ask)
        exact = scored(case, options.pop("curvature", store.curvature), **options)
        found = search(store, case, k=4, candidates=8, **ask)
        assert_close(found.scores, exact.gather(1, found.examples), 1e-12)
    split = scored(case, store.curvature, keep=("layer",))[..., [0, 4]].sum(-1)
    found = search(store, case, k=4, candidates=8, layers=["q", "up"])
    assert_close(found.scores, split.gather(1, found.examples), 1e-12)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_self_influences_at_the_damping_of_the_store_are_exact(choice: dict[str, Any], tmp_path: Path) -> None:
    case = case_of()
    store = build(case, tmp_path / "store", damping=0.3, **choice)
    own = store.curvature
    for layers in (None, ["q", "up"]):
        part = own if layers is None else own.restrict(layers)
        expected = self_influence(case.model, case.objective, case.train, part, 0.3, progress=False)
        assert_close(store.self_influence(damping=0.3, layers=layers), expected, 1e-6)
    for ask in (dict(damping=0.31), dict(), dict(curvature=identity(case.model, case.objective, layers=case.layers))):
        with pytest.raises(ValueError, match=r"layer 'q': .* a store that was built at damping 0.3 .*store.damping"):
            store.self_influence(**ask)


def test_scores_relative_to_the_loss_are_searched_exactly(tmp_path: Path) -> None:
    case = case_of()
    store = build(case, tmp_path / "store", axes=0.5, bits=4)
    ask: dict[str, Any] = dict(relative="loss", damping=store.damping)
    expected = scored(case, store.curvature, store.damping, relative="loss")
    plain = scored(case, store.curvature, store.damping)
    assert not torch.equal(plain.argsort(dim=1), expected.argsort(dim=1))
    prepared = store.prepare(case.model, case.objective, case.asked)
    near, bound = store.scores(prepared, **ask), store.bounds(prepared, **ask)
    own = self_influence(case.model, case.objective, case.train, store.curvature, store.damping, progress=False)
    assert_close(near, store.scores(prepared, damping=store.damping) / own.sqrt(), 1e-6)
    assert bool(((near - expected).abs() <= bound * (1 + 1e-6)).all())
    for largest in (True, False):
        found = search(store, case, k=3, candidates=8, largest=largest, max_bytes=1000, **ask)
        top = expected.topk(3, largest=largest)
        assert torch.equal(found.examples, top.indices)
        assert_close(found.scores, top.values, 1e-6)
    index = TrainIndex.build(case.model, case.objective, case.train, store.curvature, progress=False)
    found = search(index, case, k=3, max_bytes=1000, **ask)
    assert torch.equal(found.examples, expected.topk(3).indices)
    with pytest.raises(ValueError, match=r"relative='weights' asks .* which a store does not keep; expected None or"):
        store.scores(prepared, relative="weights")
    with pytest.raises(ValueError, match="expected None, 'loss'"):
        store.influence(case.model, case.objective, case.asked, relative="size")


def test_layers_applied_once_know_their_self_influence_at_every_damping(tmp_path: Path) -> None:
    case = make(widths=(3, 4, 3), n=9)
    store = build(case, tmp_path / "store")
    for damping in (None, 0.7):
        expected = self_influence(case.model, case.objective, case.train, store.curvature, damping, progress=False)
        assert_close(store.self_influence(damping=damping), expected, 1e-12)
        by_loss = scored(case, store.curvature, damping, relative="loss")
        found = store.influence(case.model, case.objective, case.queries, damping=damping, relative="loss")
        assert_close(found, by_loss, 1e-12)


def test_refined_queries_and_sets_of_queries_are_asked_of_the_same_store(tmp_path: Path) -> None:
    case = case_of()
    store = build(case, tmp_path / "store", bits=16)
    refined = refine(store.curvature, case.model, case.objective, case.train, steps=3)
    exact = scored(case, refined, 0.2)
    found = store.influence(case.model, case.objective, case.asked, refined, 0.2)
    assert_close(found, exact, 1e-3)
    strongest = search(store, case, k=3, candidates=6, curvature=refined, damping=0.2)
    assert_close(strongest.scores, exact.gather(1, strongest.examples), 1e-10)
    solved = precondition(case.model, case.objective, case.asked, refined, 0.2, progress=False)
    assert bool(((store.scores(solved) - exact).abs() <= store.bounds(solved)).all())
    prepared = store.prepare(case.model, case.objective, case.asked, sets=[0, 1, 0])
    expected = store.scores(store.prepare(case.model, case.objective, case.asked))
    assert_close(store.scores(prepared), torch.stack([expected[0] + expected[2], expected[1]]), 1e-3)


class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, case: Case):
        self.case, self.fetched = case, []

    def __len__(self) -> int:
        return len(self.case.y)

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        self.fetched.append(n)
        return self.case.x[n], self.case.y[n]


def test_a_data_set_is_asked_for_the_candidates_alone(tmp_path: Path) -> None:
    case = make(n=40, splits=[13])
    store, items = build(case, tmp_path / "store"), Items(case)
    first = scored(case, store.curvature).topk(3).indices.unique().tolist()
    for train in (items, torch.utils.data.DataLoader(items, batch_size=7)):
        items.fetched.clear()
        found = search(store, case, train, k=3, candidates=3)
        assert items.fetched == first
        assert_close(found.scores, scored(case, store.curvature).topk(3).values, 1e-12)
    with pytest.raises(ValueError, match="shuffles"):
        search(store, case, torch.utils.data.DataLoader(items, shuffle=True), k=3)
    with pytest.raises(TypeError, match=r"of which example n can be fetched alone. Make it list\(train\)"):
        search(store, case, iter(case.train), k=3)


def test_other_examples_than_the_stores_are_refused(tmp_path: Path) -> None:
    case, other = case_of(), case_of(seed=3)
    store = build(case, tmp_path / "store", bits=8)
    with pytest.raises(ValueError, match=r"example \d+ of train is not the one that the index holds"):
        search(store, case, other.train, k=3)
    with pytest.raises(ValueError, match="train has 4 examples, the index 12"):
        search(store, case, language().train, k=3)
    with pytest.raises(ValueError, match="k=3 with candidates=2"):
        search(store, case, k=3, candidates=2)


def test_an_exact_index_searches_too(tmp_path: Path) -> None:
    case = case_of()
    index = TrainIndex.build(case.model, case.objective, case.train, fit(case), progress=False)
    for largest in (True, False):
        found = index.search(case.model, case.objective, case.asked, k=3, largest=largest)
        expected = scored(case, index.curvature).topk(3, largest=largest)
        assert torch.equal(found.examples, expected.indices) and bool(found.proved.all())
        assert_close(found.scores, expected.values, 1e-12)


def test_saved_and_loaded_a_store_answers_alike(tmp_path: Path) -> None:
    case = case_of()
    store = build(case, tmp_path / "store", axes=0.5, components=5)
    save(store, tmp_path / "copy")
    prepared = store.prepare(case.model, case.objective, case.asked)
    for path in (tmp_path / "store", tmp_path / "copy"):
        loaded = load_index(path, case.model)
        assert isinstance(loaded, Store)
        assert torch.equal(loaded.scores(prepared), store.scores(prepared))
    with pytest.raises(FileExistsError, match="is there already"):
        save(store, tmp_path / "copy")


def test_the_size_is_said_before_anything_is_built(tmp_path: Path) -> None:
    case = case_of()
    curvature = fit(case)
    for at, choice in enumerate(CHOICES):
        store = build(case, tmp_path / str(at), curvature, **choice)
        assert TrainIndex.bytes_needed(case.model, case.train, curvature, **choice) == store.nbytes
        on_disk = sum(np.load(path).nbytes for path in (store.folder / "shards").glob("*.npy"))
        assert on_disk == store.nbytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(bits=3), r"bits=3; expected one of \(1, 2, 4, 8, 16\)"),
        (dict(axes=1.5), r"axes=1.5; expected a share"),
        (dict(axes=0), r"axes=0; expected a share"),
        (dict(axes=True), r"axes=True; expected a share"),
        (dict(components=5, sample=4), r"components=5 with sample=4"),
        (dict(part=(2, 2)), r"part=\(2, 2\); expected \(which, of how many\)"),
        (dict(dtype=torch.float16), r"dtype=torch.float16 with a store"),
        (dict(path=None, bits=1), r"bits=1 without path=; expected the folder"),
        (dict(path=None, append=True), r"append=True without path="),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    case = case_of()
    options = {"path": tmp_path / "store"} | options
    with pytest.raises(ValueError, match=message):
        TrainIndex.build(case.model, case.objective, case.train, fit(case), progress=False, **options)
    assert not (tmp_path / "store" / "manifest.json").exists()
