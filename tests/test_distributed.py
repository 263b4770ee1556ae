"""Any number of processes gives one process's answer; one that dies ends the others, by name."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from networks import Case, make, zoo
from oracle import assert_close
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

import inflib.ahead
from inflib import TrainIndex, distributed, ekfac, influence, self_influence
from inflib.distributed import RankError, Ranks, deal, processes, share
from inflib.index import building

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.ranks, "BEAT", 0.05)
    monkeypatch.setattr(distributed.ranks, "POLL", 0.002)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def run(size: int, work: Callable[[Ranks], Any], folder: Path, timeout: float = 20.0) -> list[Any]:
    """What ``work`` returned in each of ``size`` processes, the error it raised, or the signal that ended it."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= {
                "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
            }  # fmt: skip
            try:
                try:
                    with processes(timeout) as ranks:
                        found = work(ranks)
                except Exception as error:
                    found = error
                torch.save(found, folder / f"{rank}.pt")
            finally:
                os._exit(0)
        children.append(child)
    found = []
    for rank, child in enumerate(children):
        status = os.waitpid(child, 0)[1]
        path = folder / f"{rank}.pt"
        found.append(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else torch.load(path, weights_only=False))
        path.unlink(missing_ok=True)
    return found


def case_of(kind: str) -> Case:
    if kind == "perceptron":
        return make(widths=(3, 5, 4), n=11, splits=[2, 5, 6, 9])
    case = zoo(kind, n=7)
    case.splits = [1, 3, 4]
    return case


def answers(case: Case, labels: str, ranks: Ranks | None = None, **how: Any) -> list[torch.Tensor]:
    """Λ of the first layer in its own order, scores, scores split, self-influences: of one process, or of many."""
    first = () if ranks is None else (ranks,)
    fit, scores, own = (ekfac, influence, self_influence)
    if ranks is not None:
        fit, scores, own = distributed.ekfac, distributed.influence, distributed.self_influence  # type: ignore[assignment]
    about = case.model, case.objective, case.train
    C = fit(*first, *about, labels=labels, draws=2, seed=3, **how, progress=False)
    return [
        C.to_dense(),
        scores(*first, *about, case.queries, C, progress=False),
        scores(*first, *about, case.queries, C, 0.3, keep=("layer", "token"), progress=False),
        own(*first, *about, C, progress=False),
    ]


@pytest.mark.parametrize("labels", ["sampled", "expected"])
@pytest.mark.parametrize("kind", ["perceptron", "tokens"])
def test_any_number_of_processes_gives_one_process_s_answer(kind: str, labels: str, tmp_path: Path) -> None:
    case = case_of(kind)  # of 5 batches or 4: eight processes have shares that are empty
    expected = answers(case, labels)
    for size in (1, 2, 3, 4, 8) if labels == "sampled" and kind == "perceptron" else (3,):
        for rank, found in enumerate(run(size, lambda ranks: answers(case, labels, ranks), tmp_path)):
            assert isinstance(found, list), (size, rank, found)
            for one, other in zip(found, expected, strict=True):
                assert one.shape == other.shape
                assert_close(one, other, 1e-10)


@pytest.mark.parametrize("how", [{"sharing": "reduce"}, {"sharing": "gradients", "blocks": 2}, {"blocks": 3}], ids=str)
def test_factors_of_every_kind_add_up_over_processes(how: dict[str, Any], tmp_path: Path) -> None:
    case = case_of("tokens")  # of 4 batches: the fifth process has none
    expected = answers(case, "sampled", **how)
    for found in run(5, lambda ranks: answers(case, "sampled", ranks, **how), tmp_path):
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, 1e-10)


def test_all_processes_hold_the_same_bits(tmp_path: Path) -> None:
    case = case_of("perceptron")
    one, *others = run(3, lambda ranks: answers(case, "sampled", ranks), tmp_path)
    assert all(torch.equal(x, y) for other in others for x, y in zip(one, other, strict=True))


def test_the_first_process_tells_once_what_its_share_of_a_long_call_will_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    for name, value in (("LOOKED", 0.0), ("LONG", 0.0), ("write", said.append)):
        monkeypatch.setattr(inflib.ahead, name, value)
    case = make(widths=(3, 5, 4), n=12, splits=[2, 4, 6, 8, 10])  # 6 batches: 3 for each of two processes

    def work(ranks: Ranks) -> list[str]:
        about = case.model, case.objective, case.train
        C = distributed.ekfac(ranks, *about)
        distributed.influence(ranks, *about, case.queries, C)
        distributed.self_influence(ranks, *about, C)
        distributed.build_store(ranks, *about, C, tmp_path / "store", shard=2)
        return [line.split(", about")[0] for line in said]

    first, second = run(2, work, tmp_path / "said")
    passes = ["fit: 2 passes", "influence: 1 pass", "self-influence: 1 pass"]
    assert first == [*(f"{each} over 3 batches" for each in passes), "store: 1 pass over 6 batches"]
    assert second == []


def test_sequences_of_many_lengths_are_put_side_by_side(tmp_path: Path) -> None:
    case = case_of("tokens")
    short = [(x[:, : 2 + at], y[:, : 2 + at] if y.ndim > 1 else y) for at, (x, y) in enumerate(case.train)]
    C = ekfac(case.model, case.objective, short, progress=False)
    options: dict[str, Any] = {"keep": ("token",), "progress": False}
    expected = influence(case.model, case.objective, short, case.queries, C, **options)

    def work(ranks: Ranks) -> torch.Tensor:
        return distributed.influence(ranks, case.model, case.objective, short, case.queries, C, **options)

    for found in run(2, work, tmp_path):
        assert found.shape == expected.shape
        assert_close(found, expected, 1e-12)


# --- a store -----------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


@pytest.mark.parametrize("size", [2, 5])
def test_a_store_built_by_several_processes_has_the_bytes_of_one_process_s(size: int, tmp_path: Path) -> None:
    case = case_of("tokens")  # of 4 batches, 3 shards: of five processes two have none
    C = ekfac(case.model, case.objective, case.train, progress=False)
    options: dict[str, Any] = dict(axes=0.5, bits=2, components=3, shard=3, progress=False)
    about = case.model, case.objective, case.train, C
    alone = TrainIndex.build(*about, path=tmp_path / "one", **options)
    expected = alone.influence(case.model, case.objective, case.queries)
    assert len(alone.manifest.shards) == 3

    def work(ranks: Ranks) -> torch.Tensor:
        store = distributed.build_store(ranks, *about, tmp_path / f"{size}", **options)
        return store.influence(case.model, case.objective, case.queries)

    for again in range(2):  # the second time everything is there
        for found in run(size, work, tmp_path / "out"):
            assert isinstance(found, torch.Tensor) and torch.equal(found, expected), (again, found)
    assert contents(tmp_path / f"{size}") == contents(tmp_path / "one")


def test_a_store_whose_builder_was_killed_is_finished_by_another_number_of_processes(tmp_path: Path) -> None:
    case = case_of("tokens")
    about = case.model, case.objective, case.train, ekfac(case.model, case.objective, case.train, progress=False)
    TrainIndex.build(*about, path=tmp_path / "one", shard=2, progress=False)

    def work(ranks: Ranks) -> Any:
        return len(distributed.build_store(ranks, *about, tmp_path / "store", shard=2, progress=False))

    def dying(ranks: Ranks) -> Any:
        if ranks.rank == 1:
            building._write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        return work(ranks)

    found = run(2, dying, tmp_path / "out", timeout=0.7)
    assert found[1] == -signal.SIGKILL
    assert isinstance(found[0], RankError) and "rank 1 of 2 has given no sign of life" in str(found[0])
    assert run(3, work, tmp_path / "out") == [7, 7, 7]
    assert contents(tmp_path / "store") == contents(tmp_path / "one")


# --- shares -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["list", "loader"])
def test_shares_hold_every_example_once_and_know_where_they_start(kind: str, size: int) -> None:
    x = torch.arange(11.0)
    data: Any = [(x[a:b], x[a:b]) for a, b in ((0, 4), (4, 5), (5, 9), (9, 10), (10, 11))]
    if kind == "loader":
        data = DataLoader(TensorDataset(x, x), batch_size=2)
    parts = [share(data, rank, size) for rank in range(size)]
    found = [torch.cat([a for a, _ in part.data]) if part.batches else x[:0] for part in parts]
    assert torch.equal(torch.cat(found), x)
    for part, held in zip(parts, found, strict=True):
        assert part.batches == len(part.data)
        assert part.batches == 0 or held[0] == part.start
    assert max(part.batches for part in parts) - min(part.batches for part in parts) <= 1


def test_a_loader_that_drops_its_last_batch_drops_it_for_all() -> None:
    x = torch.arange(11.0)
    data = DataLoader(TensorDataset(x, x), batch_size=3, drop_last=True)
    found = torch.cat([a for rank in range(2) for a, _ in share(data, rank, 2).data])
    assert torch.equal(found, x[:9])


def test_data_that_cannot_be_shared_says_what_can() -> None:
    shuffled = DataLoader(TensorDataset(torch.ones(4), torch.ones(4)), shuffle=True)
    for data in (shuffled, ((x, x) for x in torch.ones(3, 2))):
        with pytest.raises(TypeError, match=r"expected a list of \(inputs, targets\) batches, or a DataLoader"):
            share(data, 0, 2)


def test_factors_are_dealt_out_by_size() -> None:
    assert deal({"a": 1, "b": 4, "c": 3, "d": 3, "e": 2}, 2) == {"b": 0, "c": 1, "d": 1, "e": 1, "a": 1}
    assert set(deal(dict.fromkeys("abcdefgh", 5), 4).values()) == {0, 1, 2, 3}


# --- what goes wrong --------------------------------------------------------------------------------------------------


def dies_at(where: str, rank: int) -> Callable[[pytest.MonkeyPatch], None]:
    together = Ranks.together

    def dying(self: Ranks, at: str) -> None:
        if self.rank == rank and at == where:
            os.kill(os.getpid(), signal.SIGKILL)
        together(self, at)

    return lambda patch: patch.setattr(Ranks, "together", dying)


@pytest.mark.parametrize("where", ["the sums of A", "the sums of Λ"])
def test_a_process_that_is_killed_ends_the_others_by_name_and_the_run_goes_on_from_its_sums(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("perceptron")
    train = [(x[n : n + 1], y[n : n + 1]) for x, y in case.train for n in range(len(y))]  # several batches a process
    expected = ekfac(case.model, case.objective, train, labels="sampled", progress=False)

    def work(ranks: Ranks) -> tuple[Any, int]:
        before: list[int] = []
        case.model.register_forward_hook(lambda *_: before.append(1))
        C = distributed.ekfac(
            ranks, case.model, case.objective, train, labels="sampled", checkpoint=tmp_path / "fit", progress=False
        )
        return C.to_dense(), len(before)

    with monkeypatch.context() as patch:
        dies_at(where, 1)(patch)
        began = time.monotonic()
        found = run(3, work, tmp_path / "out", timeout=0.7)
    assert found[1] == -signal.SIGKILL
    for rank in (0, 2):
        assert isinstance(found[rank], RankError), found[rank]
        assert "rank 1 of 3 has given no sign of life for 0.7 s" in str(found[rank])
        assert where in str(found[rank]) and "checkpoint=" in str(found[rank])
    assert time.monotonic() - began < 60  # they ended, and did not wait for torch's half an hour
    counts = []
    for dense, forwards in run(3, work, tmp_path / "out"):
        assert_close(dense, expected.to_dense(), 1e-10)
        counts.append(forwards)
    assert counts[0] < _forwards(case, train, tmp_path)  # its sums were there


def _forwards(case: Case, train: list[Any], folder: Path) -> int:
    """How often the first of three processes runs the model for a fit that begins anew."""

    def work(ranks: Ranks) -> int:
        count: list[int] = []
        case.model.register_forward_hook(lambda *_: count.append(1))
        distributed.ekfac(ranks, case.model, case.objective, train, labels="sampled", progress=False)
        return len(count)

    return run(3, work, folder)[0]


def test_a_process_that_fails_ends_the_others_with_what_it_said(tmp_path: Path) -> None:
    case = case_of("perceptron")

    def work(ranks: Ranks) -> Any:
        data = list(case.train)
        if ranks.rank == 1:
            x, y = data[-1]
            data[-1] = x * float("nan"), y
        return distributed.ekfac(ranks, case.model, case.objective, data, progress=False)

    found = run(2, work, tmp_path)
    assert isinstance(found[1], FloatingPointError)
    assert isinstance(found[0], RankError)
    assert "rank 1 of 2 failed, and rank 0 waited for it" in str(found[0])
    assert "FloatingPointError: layer 'fc0': activations of batch" in str(found[0])


def test_a_process_that_is_busy_is_waited_for(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> int:
        time.sleep(1.5 * ranks.rank)
        ranks.together("here")
        return ranks.rank

    assert run(2, work, tmp_path, timeout=0.5) == [0, 1]


def test_other_weights_or_other_data_in_one_process_are_refused_by_name(tmp_path: Path) -> None:
    case = case_of("perceptron")

    def weights(ranks: Ranks) -> Any:
        with torch.no_grad():
            case.model.fc0.weight += ranks.rank
        return distributed.ekfac(ranks, case.model, case.objective, case.train, progress=False)

    def data(ranks: Ranks) -> Any:
        train = case.train[: 4 + ranks.rank]
        return distributed.ekfac(ranks, case.model, case.objective, train, progress=False)

    for work, said in ((weights, "hash of its weights"), (data, "the number of batches: rank 0 has 4, rank 1 has 5")):
        for found in run(2, work, tmp_path):
            assert isinstance(found, (ValueError, RankError))
            assert said in str(found)


def test_no_data_at_all_is_refused(tmp_path: Path) -> None:
    case = case_of("perceptron")
    (found,) = run(1, lambda ranks: distributed.ekfac(ranks, case.model, case.objective, [], progress=False), tmp_path)
    assert isinstance(found, ValueError)
    assert "train is empty" in str(found)


def test_a_model_sharded_by_fsdp_is_refused_in_one_sentence(tmp_path: Path) -> None:
    case = case_of("perceptron")

    def work(ranks: Ranks) -> Any:
        mesh = dist.device_mesh.init_device_mesh("cpu", (ranks.size,))
        fully_shard(case.model, mesh=mesh)
        return distributed.ekfac(ranks, case.model, case.objective, case.train, progress=False)

    for found in run(2, work, tmp_path):
        assert isinstance(found, ValueError), found
        assert "is sharded over processes (fully_shard)" in str(found) and "model.unshard" not in str(found)


def test_without_torchrun_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(RuntimeError, match=r"no RANK; expected the variables that torchrun sets.*torchrun --nproc"),
        processes(),
    ):
        pass


def test_only_one_file_knows_torch_distributed() -> None:
    files = [path for path in (ROOT / "inflib").rglob("*.py") if "torch.distributed" in path.read_text()]
    imports = [
        p.name
        for p in files
        if any(line.startswith(("import torch.dist", "from torch.dist")) for line in p.read_text().splitlines())
    ]
    assert imports == ["ranks.py"]


def test_the_worked_script_runs_under_torchrun_and_gives_one_process_s_scores(tmp_path: Path) -> None:
    script = ROOT / "examples" / "torchrun_fit.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, "--check"]
    command += ["--store", tmp_path / "store"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert "as one process" in done.stdout
    assert "a store of 1000 examples in 2 shards" in done.stdout and "the store's scores are the same" in done.stdout
