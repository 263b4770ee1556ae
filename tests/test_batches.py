"""Walking over data: what may be walked over, in which order, and what is refused."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from networks import Plain, TwoInputs, batches, make
from oracle import assert_close
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, TensorDataset, WeightedRandomSampler

import inflib
from inflib import CrossEntropy, capture, ekfac, gauss_newton, influence, self_influence
from inflib.batches import chunks, rows_of, walk
from inflib.order import fingerprint
from inflib.randomness import LabelStreams

pytestmark = pytest.mark.usefixtures("float64")

CASE_SIZE = 23


def scored(train: Any, queries: Any = None) -> Tensor:
    case = make(n=CASE_SIZE)
    good = batches(case.x, case.y, 4)
    curvature = ekfac(case.model, case.objective, good, progress=False)
    return influence(case.model, case.objective, train, queries or good, curvature, progress=False)


def dataset() -> TensorDataset:
    case = make(n=CASE_SIZE)
    return TensorDataset(case.x, case.y)


# --- what may be walked over ------------------------------------------------------------------------------------------------


def test_lists_tuples_loaders_and_any_re_iterable_give_the_same_scores() -> None:
    case = make(n=CASE_SIZE)
    data = batches(case.x, case.y, 4)

    class Mine:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from data

    expected = scored(data)
    for other in (tuple(data), Mine(), DataLoader(dataset(), batch_size=4), [list(b) for b in data]):
        assert torch.equal(scored(other), expected)


def test_unequal_batches_and_a_last_batch_of_one_are_fine() -> None:
    case = make(n=CASE_SIZE)
    expected = scored([(case.x, case.y)])
    for splits in (22, [1, 2, 9], [22]):
        assert_close(scored(batches(case.x, case.y, splits)), expected, 1e-12)
    assert_close(scored(DataLoader(dataset(), batch_size=11)), expected, 1e-12)  # 11, 11 and 1


@pytest.mark.parametrize("labels", ["expected", "sampled", "observed"])
def test_a_last_batch_of_one_changes_nothing_from_the_fit_to_the_scores(labels: str) -> None:
    case = make(n=CASE_SIZE)
    found = []
    for data in ([(case.x, case.y)], batches(case.x, case.y, 22), batches(case.x, case.y, [1, 2, 9])):
        curvature = ekfac(case.model, case.objective, data, labels=labels, seed=2, progress=False)
        scores = influence(case.model, case.objective, data, data, curvature, progress=False)
        own = self_influence(case.model, case.objective, data, curvature, progress=False)
        found.append((curvature.to_dense(), scores, own))
    for others in found[1:]:
        for came, expected in zip(others, found[0], strict=True):
            assert_close(came, expected, 1e-12)


def test_empty_batches_are_passed_over() -> None:
    case = make(n=CASE_SIZE)
    data = batches(case.x, case.y, 4)
    gaps = [(case.x[:0], case.y[:0]), *data[:2], (case.x[:0], case.y[:0]), *data[2:]]
    assert torch.equal(scored(gaps, gaps), scored(data, data))
    for labels in ("expected", "sampled"):
        one, two = (
            ekfac(case.model, case.objective, d, labels=labels, progress=False).to_dense() for d in (data, gaps)
        )
        assert torch.equal(one, two)


def test_inputs_may_be_a_tensor_a_tuple_or_a_dict_and_outputs_may_have_logits() -> None:
    model = TwoInputs()
    one, other, y = torch.randn(4, 3), torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    found = [
        capture(model, CrossEntropy(), inputs, y)
        for inputs in ((one, other), [one, other], {"one": one, "other": other}, {"other": other, "one": one})
    ]
    for pairs in found[1:]:
        assert all(torch.equal(p.g, pairs[k].g) and torch.equal(p.a, pairs[k].a) for k, p in found[0].items())


def test_walk_numbers_batches_and_examples() -> None:
    case = make(n=7)
    found = list(walk(batches(case.x, case.y, 3), progress=False))
    assert [(b.index, b.start, b.size) for b in found] == [(0, 0, 3), (1, 3, 3), (2, 6, 1)]


def test_progress_false_is_silent_and_progress_shows_nothing_of_short_runs(capsys: pytest.CaptureFixture) -> None:
    case = make(n=7)
    for progress in (False, True):
        curvature = ekfac(case.model, case.objective, case.train, progress=progress)
        influence(case.model, case.objective, case.train, case.queries, curvature, progress=progress)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == ""


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar waits 0.05 s, not two seconds, before it shows."""
    import tqdm.auto

    shown = tqdm.auto.tqdm

    def sooner(*args: Any, **options: Any) -> Any:
        assert options["delay"] == 2.0
        return shown(*args, **{**options, "delay": 0.05, "mininterval": 0.0})

    monkeypatch.setattr(tqdm.auto, "tqdm", sooner)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


class Slow:
    def __init__(self, data: list[Any]):
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        for batch in self.data:
            time.sleep(0.04)
            yield batch

    def __len__(self) -> int:
        return len(self.data)


@pytest.mark.usefixtures("_impatient")
def test_slow_data_shows_a_bar_on_stderr_with_what_is_done_and_how_much_there_is(
    capsys: pytest.CaptureFixture,
) -> None:
    case = make(n=8)
    ekfac(case.model, case.objective, Slow(batches(case.x, case.y, 2)))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "second moments" in printed.err
    assert "corrected eigenvalues" in printed.err
    assert "/4" in printed.err


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("how", ["progress=False", "TQDM_DISABLE=1"])
def test_slow_data_prints_nothing_where_silence_is_asked_for(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    if how == "TQDM_DISABLE=1":
        monkeypatch.setenv("TQDM_DISABLE", "1")
    case, progress = make(n=8), how != "progress=False"
    slow = Slow(batches(case.x, case.y, 2))
    curvature = ekfac(case.model, case.objective, slow, progress=progress)
    influence(case.model, case.objective, slow, slow, curvature, progress=progress)
    assert tuple(capsys.readouterr()) == ("", "")


def test_rows_are_taken_of_the_tensors_that_have_a_row_for_each_example_and_of_no_others() -> None:
    x, table, number = torch.arange(3.0), torch.arange(5.0), torch.tensor(2.0)
    came = rows_of({"x": x, "others": [table, number, None]}, slice(1, 3), 3)
    assert torch.equal(came["x"], torch.tensor([1.0, 2.0]))
    assert came["others"][0] is table and came["others"][1] is number and came["others"][2] is None


def test_chunks_cover_everything_once_within_the_budget() -> None:
    for count, each, budget in ((10, 8, 24), (10, 8, 1), (1, 100, 10), (0, 1, 1), (7, 0, 5)):
        found = [i for s in chunks(count, each, budget) for i in range(count)[s]]
        assert found == list(range(count))
        assert all((s.stop - s.start) * each <= max(budget, each) for s in chunks(count, each, budget))


# --- order ------------------------------------------------------------------------------------------------------------------


def _batches() -> list[tuple[Tensor, Tensor]]:
    case = make(n=CASE_SIZE)
    return batches(case.x, case.y, 2)  # twelve


class Shuffles:
    """A re-iterable that gives its batches in another order each time; ``lazy`` decides it at the first batch."""

    def __init__(self, order: Callable[[int], Any], lazy: bool):
        self.order, self.lazy, self.data = order, lazy, _batches()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.lazy:
            return (self.data[i] for _ in (0,) for i in self.order(len(self.data)))
        return iter([self.data[i] for i in self.order(len(self.data))])


class EagerSampler(Sampler):
    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(CASE_SIZE).tolist())

    def __len__(self) -> int:
        return CASE_SIZE


def _python(n: int) -> list[int]:
    return random.sample(range(n), n)


def _numpy(n: int) -> Any:
    return np.random.permutation(n)  # noqa: NPY002


SHUFFLING: dict[str, Callable[[], Any]] = {
    "shuffle=True": lambda: DataLoader(dataset(), batch_size=4, shuffle=True),
    "shuffle=True with a generator": lambda: DataLoader(
        dataset(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0)
    ),
    "a RandomSampler": lambda: DataLoader(dataset(), batch_size=4, sampler=RandomSampler(dataset())),
    "a weighted sampler": lambda: DataLoader(
        dataset(), batch_size=4, sampler=WeightedRandomSampler(torch.ones(CASE_SIZE), CASE_SIZE)
    ),
    "a batch sampler": lambda: DataLoader(dataset(), batch_sampler=BatchSampler(RandomSampler(dataset()), 4, False)),
    "a sampler of one's own": lambda: DataLoader(dataset(), batch_size=4, sampler=EagerSampler()),
    "torch, at once": lambda: Shuffles(torch.randperm, lazy=False),
    "torch, later": lambda: Shuffles(torch.randperm, lazy=True),
    "numpy, at once": lambda: Shuffles(_numpy, lazy=False),
    "numpy, later": lambda: Shuffles(_numpy, lazy=True),
    "python, at once": lambda: Shuffles(_python, lazy=False),
    "python, later": lambda: Shuffles(_python, lazy=True),
}


@pytest.fixture
def _seeded() -> Iterator[None]:
    """Orders by chance, but the same chance every time the tests run."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


@pytest.mark.usefixtures("_seeded")
@pytest.mark.parametrize("how", SHUFFLING)
def test_data_that_changes_its_order_is_refused_wherever_a_position_is_an_index(how: str) -> None:
    data, good, case = SHUFFLING[how](), _batches(), make(n=CASE_SIZE)
    message = r"{} does not keep its order \(.*\); expected the same examples in the same order.*shuffle=False"
    with pytest.raises(ValueError, match=message.format("train")):
        scored(data, good)
    with pytest.raises(ValueError, match=message.format("queries")):
        scored(good, data)
    curvature = ekfac(case.model, case.objective, good, progress=False)
    with pytest.raises(ValueError, match=message.format("data")):
        self_influence(case.model, case.objective, data, curvature, progress=False)
    with pytest.raises(ValueError, match=message.format("train")):
        inflib.TrainIndex.build(case.model, case.objective, data, curvature, progress=False)


@pytest.mark.usefixtures("_seeded")
@pytest.mark.parametrize("how", ["torch, later", "numpy, at once", "python, later"])
def test_sampled_labels_refuse_an_order_that_changes_between_passes(how: str) -> None:
    case = make(n=CASE_SIZE)
    with pytest.raises(ValueError, match=r"train does not keep its order \((batch \d+|its first batch) differed"):
        # torch's own order is replayed for every pass; what draws from elsewhere is found between them
        order = "numpy, later" if how == "torch, later" else how
        ekfac(case.model, case.objective, SHUFFLING[order](), labels="sampled", progress=False)


class SwapsLater:
    """Begins with the same batch always and swaps two later ones from one pass to the next."""

    def __init__(self) -> None:
        self.data, self.passes = _batches(), 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        order = list(range(len(self.data)))
        if self.passes > 1:
            order[4], order[7] = 7, 4
        return iter([self.data[i] for i in order])


def test_sampled_labels_find_a_change_of_order_in_the_batch_where_it_is() -> None:
    case = make(n=CASE_SIZE)
    with pytest.raises(ValueError, match=r"train does not keep its order \(batch 4 differed between two passes\)"):
        ekfac(case.model, case.objective, SwapsLater(), labels="sampled", progress=False)


class Grows:
    """One batch more on every pass."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        return iter(_batches()[: 5 + self.passes])


def test_sampled_labels_refuse_data_that_grows() -> None:
    case = make(n=CASE_SIZE)
    with pytest.raises(ValueError, match=r"train yielded more than the 12 examples of the pass before"):
        ekfac(case.model, case.objective, Grows(), labels="sampled", progress=False)


@pytest.mark.parametrize("how", ["shuffle=True", "torch, later", "torch, at once", "numpy, later"])
def test_fits_with_expected_labels_do_not_mind_the_order(how: str) -> None:
    case = make(n=CASE_SIZE)
    shuffled = ekfac(case.model, case.objective, SHUFFLING[how](), progress=False)
    ordered = ekfac(case.model, case.objective, _batches(), progress=False)
    assert float((shuffled.to_dense() - ordered.to_dense()).norm()) < 1e-9 * float(ordered.to_dense().norm())


def test_random_augmentation_is_refused() -> None:
    class Noisy(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            x, y = super().__getitem__(index)
            return x + torch.randn_like(x), y

    case = make(n=CASE_SIZE)
    with pytest.raises(ValueError, match=r"train does not keep its order.*no random augmentation"):
        scored(DataLoader(Noisy(case.x, case.y), batch_size=4))


def test_a_loader_with_a_sampler_that_keeps_its_order_is_fine() -> None:
    class Reversed(Sampler):
        def __iter__(self) -> Iterator[int]:
            return iter(range(CASE_SIZE - 1, -1, -1))

    found = scored(DataLoader(dataset(), batch_size=4, sampler=Reversed()))
    assert torch.allclose(found, scored(DataLoader(dataset(), batch_size=5)).flip(1), rtol=1e-10)


def test_a_fingerprint_sees_values_dtypes_and_shapes_in_any_nesting() -> None:
    x, y = torch.arange(6.0).reshape(2, 3), torch.tensor([1, 2])
    seen = [
        (x, y),
        (x + 1e-12, y),
        (x, y.int()),
        (x.reshape(3, 2), y),
        ({"a": x, "b": x + 1}, y),
        ({"a": x + 1, "b": x}, y),
        ((x, x + 1, x), y),
        (x.float(), y),
    ]
    assert len({fingerprint(b) for b in seen}) == len(seen)
    assert fingerprint((x, y)) == fingerprint((x.clone(), y.clone()))
    assert fingerprint((x.T, y)) == fingerprint((x.T.contiguous(), y))


# --- randomness -------------------------------------------------------------------------------------------------------------

# (seed, pass, draw, example) → its first two numbers
PINNED = {
    (0, 0, 0, 0): (0.011546754286331617, 0.24154919656271817),
    (0, 0, 0, 1): (0.3421827847423347, 0.5765144536585864),
    (0, 0, 1, 0): (0.8133540609793564, 0.7513314251083365),
    (0, 1, 0, 0): (0.409952270588319, 0.646181355623981),
    (1, 0, 0, 0): (0.30356803430675866, 0.848708749685777),
    (2**64 - 1, 1, 3, 10**6): (0.6125784993881975, 0.22118886718689018),
}


def test_the_first_uniforms_of_every_kind_of_stream_stay_what_they_are() -> None:
    """Philox is the same everywhere: another number here would give every saved sampled curvature other labels."""
    came = [LabelStreams(*key).uniforms(n, 1, 2)[0] for *key, n in PINNED]
    assert_close(torch.stack(came), torch.tensor(list(PINNED.values())), 1e-15)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_walk_over_a_loader_leaves_the_global_generators_as_they_were(workers: int) -> None:
    np.random.seed(1)  # noqa: NPY002
    loader = DataLoader(dataset(), batch_size=4, shuffle=True, num_workers=workers)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    seen = 0
    for batch in walk(loader, progress=False):
        seen += batch.size
        assert torch.equal(torch.get_rng_state(), torch_state)
    assert seen == CASE_SIZE
    next(walk(loader, progress=False))  # left half way
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


# --- what is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", [inflib.ekfac, inflib.kfac, inflib.diagonal, inflib.gauss_newton, inflib.hessian])
def test_no_examples_is_refused(fit: Callable) -> None:
    case = make()
    for empty in ([], [(case.x[:0], case.y[:0])], DataLoader(TensorDataset(case.x[:0], case.y[:0]), batch_size=2)):
        with pytest.raises(ValueError, match=r"train is empty: it yielded no example. Expected at least one"):
            fit(case.model, case.objective, empty, progress=False)


def test_no_training_examples_and_no_queries_are_refused_by_name() -> None:
    good = _batches()
    with pytest.raises(ValueError, match=r"train is empty"):
        scored([], good)
    case = make(n=CASE_SIZE)
    curvature = ekfac(case.model, case.objective, good, progress=False)
    with pytest.raises(ValueError, match=r"queries is empty"):
        influence(case.model, case.objective, good, [], curvature, progress=False)
    with pytest.raises(ValueError, match=r"data is empty"):
        self_influence(case.model, case.objective, [], curvature, progress=False)


@pytest.mark.parametrize("name", ["train", "queries"])
def test_a_one_shot_iterator_is_refused(name: str) -> None:
    good = _batches()
    for once in (iter(good), (b for b in good), zip(*zip(*good, strict=True), strict=True)):
        with pytest.raises(TypeError, match=rf"{name} is a one-shot iterator .*Use a list"):
            scored(*((once, good) if name == "train" else (good, once)))
    case = make()
    with pytest.raises(TypeError, match=r"train is a one-shot iterator \(generator\)"):
        ekfac(case.model, case.objective, (b for b in good), progress=False)


def test_what_is_not_made_of_batches_is_refused() -> None:
    case = make(n=CASE_SIZE)
    for bad, message in (
        (3, r"train is a int; expected a list or DataLoader of \(inputs, targets\) batches"),
        ((case.x, case.y), r"batch 0 is a tensor of shape \(23, 3\); expected a pair \(inputs, targets\)"),
        ([(case.x, case.x, case.y)], r"batch 0 is a tuple of 3; expected a pair.*Wrap several model inputs"),
        ([{"x": case.x, "y": case.y}], r"batch 0 is a dict; expected a pair"),
        (dataset(), r"the targets of batch 0 are a tensor of shape \(\).*a batch of one"),
        ([(case.x, [0] * CASE_SIZE)], r"the targets of batch 0 are a list of 23; expected a tensor"),
        ([*_batches()[:2], case.x], r"batch 2 is a tensor"),
    ):
        with pytest.raises(TypeError, match=message):
            ekfac(case.model, case.objective, bad, progress=False)  # type: ignore[arg-type]


def test_inputs_and_targets_of_different_lengths_are_refused() -> None:
    case = make(n=8)
    with pytest.raises(ValueError, match=r"output has shape \(8, 3\); expected 7, the number of targets"):
        ekfac(case.model, case.objective, [(case.x, case.y[:7])], progress=False)


@pytest.mark.parametrize("where", ["ekfac", "gauss_newton", "train", "queries"])
def test_another_dtype_than_the_models_is_refused_with_how_to_convert(where: str) -> None:
    case = make(n=8)
    bad = [(case.x.float(), case.y)]
    curvature = ekfac(case.model, case.objective, case.train, progress=False)
    with pytest.raises(
        ValueError, match=r"inputs are torch.float32, the model is torch.float64; expected one dtype.*x.to"
    ):
        if where == "ekfac":
            ekfac(case.model, case.objective, bad, progress=False)
        elif where == "gauss_newton":
            gauss_newton(case.model, case.objective, bad, progress=False)
        else:
            train, queries = (bad, case.train) if where == "train" else (case.train, bad)
            influence(case.model, case.objective, train, queries, curvature, progress=False)


@pytest.mark.parametrize("fit", [inflib.ekfac, inflib.gauss_newton, inflib.hessian])
def test_another_device_than_the_models_is_refused_with_how_to_move(fit: Callable) -> None:
    case = make(n=8)
    with pytest.raises(
        ValueError, match=r"inputs are on meta, the model is on cpu; expected one device. Move the batches"
    ):
        fit(case.model, case.objective, [(case.x.to("meta"), case.y)], progress=False)


def test_integer_inputs_are_no_mismatch() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 3))
    x, y = torch.randint(0, 5, (4, 2)), torch.tensor([0, 1, 2, 0])
    with pytest.warns(inflib.CoverageNote):
        ekfac(model, CrossEntropy(), [(x, y)], progress=False)


def test_outputs_that_are_no_tensor_are_refused() -> None:
    class Pair(Plain):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    class Wrapped(Plain):
        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(scores=super().forward(x))

    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for model, what in ((Pair(), "a tuple of 2"), (Wrapped(), "a SimpleNamespace")):
        with pytest.raises(TypeError, match=rf"the model returned {what}; expected a tensor or an object with .logits"):
            ekfac(model, CrossEntropy(), [(x, y)], progress=False)
