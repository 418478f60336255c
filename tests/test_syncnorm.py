"""Two ranks with parts of a batch give what one process gives with the whole: outputs, statistics, gradients."""

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dermkit.errors import UsageError
from dermkit.models.weights import import_timm
from dermkit.training.distributed.sync_batchnorm import convert_sync_batch_norm

# Each rank takes its cut of one batch and compares everything with torch's own layers on the whole batch, for each
# case of (cuts, net, planted fault); rank 0 says the largest relative difference of each case.
WORKER = '''
import copy, json, sys
import torch
import torch.nn.functional as F
from torch import nn
from dermkit.models.weights import import_timm
from dermkit.training.distributed.process_group import process_group_of, start_fabric
from dermkit.training.distributed.sync_batchnorm import convert_sync_batch_norm

torch.use_deterministic_algorithms(True)
fabric = start_fabric("cpu")
ranks = process_group_of(fabric)

def small():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Conv2d(5, 4, 3),
        nn.BatchNorm2d(4, momentum=None), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3),
    )

def acts():
    layers = import_timm().layers
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), layers.BatchNormAct2d(6, act_layer=nn.PReLU, inplace=False),
        nn.Conv2d(6, 4, 3, stride=2), layers.BatchNormAct2d(4, act_layer=nn.SiLU, drop_layer=nn.Dropout2d),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )
    net[3].drop.p = 0.0
    return net

def case(cuts, kind, plant):
    """Return the largest relative difference of two training steps."""
    torch.manual_seed(0)
    half, worst = kind == "bfloat16", 0.0
    floor = 0.1 if half else 1e-3  # a bias before batch norm has no gradient but rounding
    exact = torch.float32 if half else torch.float64

    def compare(a, b):
        nonlocal worst
        worst = max(worst, float((a - b).detach().double().norm() / b.detach().double().norm().clamp(min=floor)))

    one = (small() if kind == "small" else acts()).to(exact)
    x = (torch.randn(sum(cuts), 3, 10, 10, dtype=exact) * 3 + 7).to(memory_format=torch.channels_last)
    y = torch.arange(sum(cuts)) % 3
    two = copy.deepcopy(one) if plant == "own" else convert_sync_batch_norm(copy.deepcopy(one))
    ddp = fabric.setup_module(two)
    begin = sum(cuts[: ranks.rank])
    mine = slice(begin, begin + cuts[ranks.rank])
    for _ in range(2):
        one.zero_grad(), two.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            whole, part = one(x).to(exact), ddp(x[mine]).to(exact)
        F.cross_entropy(whole, y).backward()
        loss = F.cross_entropy(part, y[mine], reduction="sum") / sum(cuts)
        fabric.backward(loss * (1 if plant == "unscaled" else ranks.size))
        if len(part):
            compare(part, whole[mine])
        for a, b in zip(two.parameters(), one.parameters(), strict=True):
            compare(a.grad, b.grad)
        for a, b in zip(two.buffers(), one.buffers(), strict=True):
            compare(a, b)
    rows = ranks.gather(torch.cat([b.flatten().double() for b in two.buffers()])[None])
    assert plant == "own" or all(torch.equal(rows[0], row) for row in rows), "the ranks drifted apart"
    assert list(one.state_dict()) == list(two.state_dict())
    two.load_state_dict(one.state_dict())
    one.eval(), two.eval()
    assert torch.equal(one(x), two(x)), "evaluation differs"
    return worst

def one_value():
    """Return what training on a single value per channel raises, on the rank that has it and on the other."""
    layer = convert_sync_batch_norm(nn.BatchNorm2d(2))
    try:
        layer(torch.zeros(1 if ranks.is_first else 0, 2, 1, 1))
    except ValueError as error:
        return str(error)
    return "nothing"

assert "one value per channel" in one_value()
found = [case(*item) for item in json.loads(sys.argv[1])]
if ranks.is_first:
    print(json.dumps(found))
'''


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def differences(folder: Path, cases: list[tuple[list[int], str, str]]) -> list[float]:
    """Run cases on as many ranks as they have cuts; returns the largest relative difference of each."""
    (folder / "worker.py").write_text(WORKER)
    size = len(cases[0][0])
    shared = {
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(folder / "worker.py"), json.dumps(cases)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * size, said
    assert [err for _, err in said] == [""] * size
    values: list[float] = json.loads(said[0][0])
    return values


def test_two_ranks_with_parts_train_as_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    """Several seconds: two processes import torch and timm. Parts are even, uneven and empty; faults are planted."""
    exact = [([4, 3], "small"), ([6, 1], "acts"), ([7, 0], "small"), ([0, 7], "acts"), ([1, 1], "small")]
    half = [([4, 3], "bfloat16"), ([7, 0], "bfloat16")]
    planted = [([4, 3], "small", "own"), ([4, 3], "small", "unscaled"), ([4, 3], "bfloat16", "own")]
    cases = [(cuts, kind, "none") for cuts, kind in (*exact, *half)]
    found = differences(tmp_path, [*cases, *planted])
    assert max(found[: len(exact)]) < 1e-9
    assert max(found[len(exact) : len(cases)]) < 0.05  # both round to bfloat16, at other places
    assert min(found[len(cases) :]) > 0.2


@pytest.mark.slow
def test_three_ranks_train_as_one_process_too(tmp_path: Path) -> None:
    cases = [([3, 1, 3], "small", "none"), ([0, 5, 0], "acts", "none"), ([2, 0, 4], "small", "none")]
    assert max(differences(tmp_path, cases)) < 1e-9


def nets() -> list[nn.Module]:
    create = import_timm().create_model
    return [create("mobilenetv2_100", num_classes=3), create("resnet18", num_classes=3)]


def test_a_synchronised_net_is_the_same_net_where_a_process_is_alone() -> None:
    for net in nets():
        before, twin = list(net.named_modules()), copy.deepcopy(net)
        owned = [id(tensor) for tensor in (*net.parameters(), *net.buffers())]
        assert convert_sync_batch_norm(net) is net and convert_sync_batch_norm(net) is net
        assert list(net.named_modules()) == before
        assert [id(tensor) for tensor in (*net.parameters(), *net.buffers())] == owned
        assert [type(item).__name__ for item in net.modules()] == [type(item).__name__ for item in twin.modules()]
        layers = [item for item in net.modules() if isinstance(item, nn.BatchNorm2d)]
        assert layers and all(
            type(item).__module__ == "dermkit.training.distributed.sync_batchnorm" for item in layers
        )
        x = torch.randn(3, 3, 64, 64)
        for mode in (True, False):
            torch.manual_seed(1)
            ours = net.train(mode)(x)
            torch.manual_seed(1)
            assert torch.equal(ours, twin.train(mode)(x))
        assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))
        copied = copy.deepcopy(net).eval()
        with torch.no_grad():
            next(net.parameters()).zero_()
        assert torch.equal(copied(x), twin(x)), "a copy still ran the layers that it was copied from"


def test_a_kind_of_batch_norm_that_is_not_known_is_refused() -> None:
    class Odd(nn.BatchNorm2d):
        pass

    with pytest.raises(UsageError, match=r"1\.0: Odd cannot be trained on several devices") as caught:
        convert_sync_batch_norm(nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(Odd(2))))
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="SyncBatchNorm"):
        convert_sync_batch_norm(nn.Sequential(nn.SyncBatchNorm(2)))
