"""What ranks tell each other arrives to the bit; a rank killed in the middle costs no more than a fresh launch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import free_port
from dermkit.errors import UsageError
from dermkit.training.distributed import process_group as ranks_module
from dermkit.training.distributed.environment import RankInfo
from dermkit.training.distributed.process_group import SINGLE_PROCESS, ProcessGroup, process_group_of, start_fabric

WORKER = """
import signal, sys
import numpy as np
import torch
from dermkit.training.distributed.process_group import process_group_of, start_fabric

before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
fabric = start_fabric("cpu", int(sys.argv[1]), 1)
ranks = process_group_of(fabric)
me, size = ranks.rank, ranks.size
assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
assert torch.distributed.get_backend() == "gloo" and fabric.device.type == "cpu"
assert fabric.is_global_zero == ranks.is_first == (me == 0)

ranks.barrier()
assert [ranks.any(me == 1), ranks.any(False), ranks.any(True)] == [True, False, True]
assert ranks.min(10 - me) == 11 - size and ranks.min(-me) == 1 - size and ranks.min(2**62) == 2**62

generator = torch.Generator().manual_seed(0)
for kind in (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool):
    for counts in ([3, 4, 1], [0, 5, 0], [2, 0, 3], [0, 0, 0]):
        counts = counts[:size]
        for row in ((), (3,), (2, 2)):
            whole = (torch.rand(sum(counts), *row, generator=generator, dtype=torch.float64) * 200).to(kind)
            begin = sum(counts[:me])
            found = ranks.gather(whole[begin : begin + counts[me]])
            assert found.dtype == kind and torch.equal(found, whole), (kind, counts, row)
odd = torch.tensor([[float("nan"), -0.0], [float("inf"), 5e-324]], dtype=torch.float64)
assert torch.equal(ranks.gather(odd).view(torch.int64), odd.view(torch.int64).repeat(size, 1))
assert ranks.gather(torch.eye(3).T[:, ::2]).shape == (3 * size, 2)
taught = torch.ones(1, 2, requires_grad=True)
assert not ranks.gather(taught).requires_grad

assert ranks.sum(torch.tensor([1, me])).tolist() == [size, size * (size - 1) // 2]
assert ranks.sum(torch.tensor(2.5, dtype=torch.float64)).item() == 2.5 * size
for text in ("", "é\\n" * 40_000, "plain"):
    assert ranks.broadcast_text(text if ranks.is_first else "something else") == text

rows = np.arange(11) * 7
assert np.array_equal(ranks.gather(torch.from_numpy(ranks.shard(rows))).numpy(), rows)
print(f"rank {me} is done")
"""

TRAINER = """
import os, signal, sys
from pathlib import Path
import torch
from dermkit.files import write_text
from dermkit.training.distributed.environment import die_with_parent
die_with_parent()
from dermkit.training.distributed.process_group import process_group_of, start_fabric

folder, resume = Path(sys.argv[1]), "--resume" in sys.argv
fabric = start_fabric("cpu", 2)
ranks = process_group_of(fabric)
checkpoint = folder / "checkpoint"
torch.manual_seed(0)
net = torch.nn.Linear(3, 1)
done = 0
if resume:
    done, *weights = checkpoint.read_text().split()
    done = int(done)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[float(item) for item in weights]]))
optimizer = torch.optim.SGD([net.weight], lr=0.01)
net.bias.requires_grad_(False)
module, stepping = fabric.setup(net, optimizer)
for step in range(done, 8):
    x = torch.arange(12.0).reshape(4, 3)[ranks.rank * 2 : ranks.rank * 2 + 2] / (step + 1)
    stepping.zero_grad()
    loss = (module(x) ** 2).mean()
    if step == 5 and ranks.rank == 1 and sys.argv[2] == "kill" and not resume:
        os.kill(os.getpid(), signal.SIGKILL)
    fabric.backward(loss)
    stepping.step()
    if ranks.is_first:
        write_text(checkpoint, " ".join(map(repr, [step + 1, *net.weight[0].tolist()])))
    ranks.barrier()
"""

SUPERVISOR = """
import sys
from dermkit.training.distributed.launcher import supervise
say = lambda line: print(line, file=sys.stderr)
command = (sys.executable, "-W", "error", sys.argv[1])
sys.exit(supervise(sys.argv[2:], devices=2, nodes=1, restarts=1, say=say, command=command))
"""


def run_ranks(folder: Path, size: int, *arguments: str) -> list[tuple[int, str, str]]:
    """Run the worker on ranks over loopback; returns exit code, output and errors of each."""
    (folder / "worker.py").write_text(WORKER)
    shared = {
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(folder / "worker.py"), *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    said = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def test_two_ranks_tell_each_other_what_they_know(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, 2, "2") == [(0, f"rank {rank} is done\n", "") for rank in range(2)]


@pytest.mark.slow
def test_three_ranks_tell_each_other_what_they_know(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, 3, "1") == [(0, f"rank {rank} is done\n", "") for rank in range(3)]


def train(folder: Path, how: str) -> tuple[int, str, str]:
    """Train eight steps on two ranks under a supervisor; returns its code and words, and the last checkpoint."""
    folder.mkdir()
    (folder / "trainer.py").write_text(TRAINER)
    (folder / "supervisor.py").write_text(SUPERVISOR)
    done = subprocess.run(
        [sys.executable, str(folder / "supervisor.py"), str(folder / "trainer.py"), str(folder), how],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stderr, (folder / "checkpoint").read_text()


def test_a_rank_killed_in_a_step_costs_a_fresh_launch_and_changes_no_weight(tmp_path: Path) -> None:
    """Several seconds: three launches of two processes that import torch."""
    code, err, weights = train(tmp_path / "lost", "kill")
    assert code == 0, err
    assert "rank 1 was lost: killed by SIGKILL; launching afresh from the last checkpoint, 1 of 1" in err
    assert weights.startswith("8 ")
    assert train(tmp_path / "alone", "no") == (0, "", weights)


def test_alone_everything_is_one_s_own() -> None:
    rows = torch.arange(6).reshape(3, 2)
    assert SINGLE_PROCESS.is_first and not SINGLE_PROCESS.any(False) and SINGLE_PROCESS.any(True)
    assert SINGLE_PROCESS.min(3) == 3
    assert SINGLE_PROCESS.gather(rows) is rows
    assert torch.equal(SINGLE_PROCESS.sum(rows), rows)
    assert SINGLE_PROCESS.broadcast_text("text") == "text"
    assert SINGLE_PROCESS.shard(np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    SINGLE_PROCESS.barrier()
    assert not torch.distributed.is_initialized()


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_in_order_whole_and_even(count: int, size: int) -> None:
    rows = np.arange(count, dtype=np.int64) * 3 - 5
    parts = [ProcessGroup(rank, size).shard(rows) for rank in range(size)]
    assert np.array_equal(np.concatenate(parts), rows)
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "SLURM_STEP_NUM_TASKS")


@pytest.fixture
def no_rank(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_joins_no_group(no_rank: pytest.MonkeyPatch) -> None:
    fabric = start_fabric("cpu")
    assert process_group_of(fabric) == SINGLE_PROCESS
    assert not torch.distributed.is_initialized()
    no_rank.setenv("RANK", "0")
    no_rank.setenv("WORLD_SIZE", "1")  # torchrun with one process
    assert process_group_of(start_fabric("cpu")) == SINGLE_PROCESS


def test_one_process_in_a_batch_job_of_many_tasks_is_alone(no_rank: pytest.MonkeyPatch) -> None:
    job = {"NTASKS": "8", "JOB_NAME": "x", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        no_rank.setenv(f"SLURM_{name}", value)
    assert process_group_of(start_fabric("cpu", 1, 1)) == SINGLE_PROCESS


def test_devices_without_ranks_and_ranks_without_devices_are_refused(no_rank: pytest.MonkeyPatch) -> None:
    for devices, nodes in ((2, 1), (1, 2)):
        with pytest.raises(UsageError, match="2 devices were asked for, but this process was started alone"):
            start_fabric("cpu", devices, nodes)
    for name, value in zip(NAMES, ("0", "4", "0", "2", "127.0.0.1"), strict=False):
        no_rank.setenv(name, value)
    with pytest.raises(
        UsageError, match="--devices 4 --nodes 1, but there are 2 ranks on each of 2 machines"
    ) as caught:
        start_fabric("cpu", 4, 1)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("device", "seen", "local_rank", "one_each", "chosen"),
    [
        ("cpu", 8, 1, False, "cpu"), ("auto", 0, 1, False, "cpu"), ("auto", 2, 1, False, "cuda:1"),
        ("cuda", 8, 3, False, "cuda:3"), ("cuda", 1, 3, True, "cuda:0"), ("auto", 4, 3, True, "cuda:3"),
    ],
)  # fmt: skip
def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_shown(
    monkeypatch: pytest.MonkeyPatch, device: str, seen: int, local_rank: int, one_each: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    place = RankInfo(local_rank, 4, local_rank, 4, 0, "a", 1, one_each)
    assert str(ranks_module._rank_device(device, place)) == chosen


@pytest.mark.parametrize(("device", "seen"), [("auto", 1), ("cuda", 1), ("cuda", 0)])
def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, device: str, seen: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    with pytest.raises(UsageError, match=f"2 ranks on this machine, but {seen} GPUs are visible"):
        ranks_module._rank_device(device, RankInfo(1, 2, 1, 2, 0, "a", 1))
