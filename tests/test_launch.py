"""Ranks are real processes here: started, killed, interrupted, launched afresh, and never left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from conftest import free_port
from dermkit.errors import DermkitError, UsageError
from dermkit.training.distributed import environment, exits, launcher, rendezvous
from dermkit.training.distributed.environment import RankInfo, first_host, read_rank_info
from dermkit.training.distributed.exits import LOST_NODE_CODE, ExitStatus, RankExits
from dermkit.training.distributed.rendezvous import Rendezvous

# A rank without torch: it notes that it started, then does as its part of the plan says, first launch and later ones.
RANK = """
import json, os, signal, sys, time
from pathlib import Path
from dermkit.training.distributed.environment import die_with_parent, is_rank, read_rank_info
die_with_parent()
assert is_rank() and "DERMKIT_SUPERVISOR" not in os.environ
folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
place, again = read_rank_info(os.environ), "--resume" in sys.argv
launches = folder / f"rank{place.rank}"
with launches.open("a") as stream:
    launch = "again" if again else "first"
    stream.write(f"{os.getpid()} {launch} {place.world_size} {place.node_rank} {place.master_port}\\n")

def interrupted(*_):
    time.sleep(0.2)
    (folder / f"checkpoint{place.rank}").touch()
    sys.exit(130)

signal.signal(signal.SIGINT, interrupted)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in plan else signal.SIG_DFL)
if "helper" in plan and os.fork() == 0:
    time.sleep(600)

def n_launched(number):
    return sum(len(path.read_text().splitlines()) >= number for path in folder.glob("rank*"))

# All ranks of a launch act after all have started; ranks of a machine that was lost may have started less often.
number, deadline = len(launches.read_text().splitlines()), time.monotonic() + 15
while n_launched(number) < place.world_size and time.monotonic() < deadline:
    time.sleep(0.01)
act = plan.get(f"{'again' if again else 'first'}{place.rank}", plan.get("all", 0))
print(f"rank {place.rank} does {act}", flush=True)
print(f"rank {place.rank} complains", file=sys.stderr, flush=True)
if act == "wait":
    time.sleep(600)
if act == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if act == "late":
    time.sleep(1)
    act = 3
sys.exit(act)
"""

SUPERVISOR = """
import sys
from dermkit.errors import DermkitError
from dermkit.training.distributed.launcher import supervise
devices, nodes, restarts = map(int, sys.argv[1:4])
try:
    code = supervise(
        sys.argv[5:], devices=devices, nodes=nodes, restarts=restarts, command=(sys.executable, sys.argv[4]),
        say=lambda line: print("says:", line, file=sys.stderr, flush=True),
    )
except DermkitError as error:
    print("error:", error, file=sys.stderr)
    code = error.exit_code
sys.exit(code)
"""


def start(
    folder: Path, plan: str, *, devices: int = 2, nodes: int = 1, restarts: int = 2, **environ: str
) -> subprocess.Popen[str]:
    """Start a supervisor whose ranks follow a plan."""
    for name, text in (("rank.py", RANK), ("supervisor.py", SUPERVISOR)):
        (folder / name).write_text(text)
    inherited = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "NODE_RANK", "MASTER_ADDR")
    }
    numbers = map(str, (devices, nodes, restarts))
    notes = folder / "notes"
    notes.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(folder / "supervisor.py"), *numbers, str(folder / "rank.py"), str(notes), plan],
        env={**inherited, **environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def notes(folder: Path, rank: int) -> list[list[str]]:
    path = folder / "notes" / f"rank{rank}"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(folder: Path, ranks: int, launches: int = 1) -> None:
    """Wait until every rank has started that many times."""
    deadline = time.monotonic() + 30
    while any(len(notes(folder, rank)) < launches for rank in range(ranks)):
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.02)
    time.sleep(0.3)  # its handlers are in place


def alive(group: int) -> bool:
    """Tell whether a process group has a member that is no zombie."""
    done = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return any(row[0] == str(group) and not row[1].startswith("Z") for row in rows)


def groups(folder: Path, ranks: int = 2) -> list[int]:
    return [int(line[0]) for rank in range(ranks) for line in notes(folder, rank)]


def test_ranks_that_end_well_end_well_and_rank_0_alone_is_heard(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, '{"all": 0}', devices=3))
    assert (code, out, err) == (0, "rank 0 does 0\n", "rank 0 complains\n")
    assert [notes(tmp_path, rank)[0][1:4] for rank in range(3)] == [["first", "3", "0"]] * 3
    assert len({notes(tmp_path, rank)[0][4] for rank in range(3)}) == 1


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6, 7, 130])
def test_an_exit_code_of_dermkit_is_passed_on_and_nothing_is_launched_again(tmp_path: Path, code: int) -> None:
    assert finish(start(tmp_path, f'{{"all": {code}}}'))[0] == code
    assert len(notes(tmp_path, 0)) == 1


def test_rank_0_s_code_is_preferred_and_partners_that_fail_with_it_are_no_loss(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, '{"first0": "late", "first1": 1}'))
    assert code == 3
    assert "lost" not in err and "[rank 1]" not in err


def test_what_another_rank_says_is_shown_when_it_was_the_reason(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, '{"first0": 0, "first1": 5}'))
    assert code == 5
    assert "says: [rank 1] rank 1 complains" in err
    assert "rank 1" not in out


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_group_and_all_are_launched_afresh_with_resume(tmp_path: Path, rank: int) -> None:
    process = start(tmp_path, '{"all": "wait", "again0": 0, "again1": 0, "deaf": 1, "helper": 1}')
    wait_for(tmp_path, 2)
    before = groups(tmp_path)
    os.kill(before[rank], signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 0
    assert (
        f"says: rank {rank} was lost: killed by SIGKILL; launching afresh from the last checkpoint, 1 of 2" in err
    )
    for notes_of in (notes(tmp_path, 0), notes(tmp_path, 1)):
        assert [line[1] for line in notes_of] == ["first", "again"]
        assert notes_of[0][4] != notes_of[1][4], "the port of the lost group was used again"
    assert not any(alive(group) for group in groups(tmp_path))


def test_a_rank_that_is_lost_each_time_ends_in_an_error_that_names_it(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, '{"all": "wait", "first1": "killed", "again1": 1}', restarts=1))
    assert code == 1
    assert "rank 1 was lost: killed by SIGKILL; launching afresh" in err
    assert "error: rank 1 was lost: it ended with code 1, after 1 fresh launches\nKept: the last checkpoint" in err
    assert "says: [rank 1] rank 1 complains" in err
    assert [line[1] for line in notes(tmp_path, 0)] == ["first", "again"]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_reaches_every_rank_once_and_ends_with_130(tmp_path: Path, kind: signal.Signals) -> None:
    # Under nohup the supervisor would inherit that SIGHUP is ignored, and would not listen to it.
    before = signal.signal(kind, signal.default_int_handler)
    try:
        process = start(tmp_path, '{"all": "wait"}')
    finally:
        signal.signal(kind, before)
    wait_for(tmp_path, 2)
    process.send_signal(kind)
    code, _, err = finish(process)
    assert code == 130
    assert "lost" not in err
    assert sorted(path.name for path in (tmp_path / "notes").glob("checkpoint*")) == ["checkpoint0", "checkpoint1"]
    assert not any(alive(group) for group in groups(tmp_path))


def test_a_second_request_to_stop_kills(tmp_path: Path) -> None:
    process = start(tmp_path, '{"all": "wait", "helper": 1}')
    wait_for(tmp_path, 2)
    for group in groups(tmp_path):
        os.kill(group, signal.SIGSTOP)  # it will not hear the first one
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert not any(alive(group) for group in groups(tmp_path))


def test_no_rank_outlives_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    process = start(tmp_path, '{"all": "wait", "deaf": 1}')
    wait_for(tmp_path, 2)
    assert all(alive(group) for group in groups(tmp_path))
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 5
    while any(alive(group) for group in groups(tmp_path)):
        assert time.monotonic() < deadline, "a rank outlived its supervisor"
        time.sleep(0.05)


def test_a_rank_whose_supervisor_died_before_it_could_follow_dies_too(tmp_path: Path) -> None:
    script = (
        "from dermkit.training.distributed.environment import die_with_parent; die_with_parent(); print('lives')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, environment.SUPERVISOR_VARIABLE: "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def machines(folder: Path, plan: str, port: int) -> list[subprocess.Popen[str]]:
    """Start two supervisors of two ranks each, as on two machines; the second one first."""
    return [
        start(folder, plan, nodes=2, NODE_RANK=node, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        for node in ("1", "0")
    ]


def test_a_machine_without_heartbeat_is_lost_with_all_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    leader, follower = (Rendezvous(node, 2, 2, store) for node in (0, 1))
    leader.open_attempt(0)
    assert follower.join_next(-1) == 0
    leader.read_exits(0, {})
    monkeypatch.setattr(rendezvous, "SILENCE_SECONDS", 0.05)
    for _ in range(4):
        time.sleep(0.03)
        follower.beat()
        assert leader.read_exits(0, {}) == []
    time.sleep(0.1)
    leader.read_exits(0, {})
    assert leader.read_exits(0, {}) == [(2, LOST_NODE_CODE, ""), (3, LOST_NODE_CODE, "")]
    assert leader.read_exits(0, {2: LOST_NODE_CODE, 3: LOST_NODE_CODE}) == []


def test_two_machines_start_and_end_together(tmp_path: Path) -> None:
    second, first = machines(tmp_path, '{"all": 0}', free_port())
    assert finish(first)[:2] == (0, "rank 0 does 0\n")
    assert finish(second) == (0, "", "")
    assert [notes(tmp_path, rank)[0][1:4] for rank in range(4)] == [
        ["first", "4", str(rank // 2)] for rank in range(4)
    ]


def test_a_stranger_at_the_leader_s_door_is_sent_away(tmp_path: Path) -> None:
    port = free_port()
    first = start(tmp_path, '{"all": 0}', nodes=2, NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\n", b'[1]\n{"machine": 7}\n{"machine": "1"}\n', b""):
        deadline = time.monotonic() + 30
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        stranger.sendall(words)
        stranger.close()
    second = start(tmp_path, '{"all": 0}', nodes=2, NODE_RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    assert finish(first)[0] == finish(second)[0] == 0


def test_a_rank_lost_on_another_machine_launches_all_afresh_on_both(tmp_path: Path) -> None:
    second, first = machines(
        tmp_path, '{"all": "wait", "again0": 4, "again1": 1, "again2": 1, "again3": 1}', free_port()
    )
    wait_for(tmp_path, 4)
    os.kill(int(notes(tmp_path, 3)[0][0]), signal.SIGKILL)
    code, _, err = finish(first)
    assert code == finish(second)[0] == 4
    assert "rank 3 was lost: killed by SIGKILL; launching afresh" in err
    assert [[line[1] for line in notes(tmp_path, rank)] for rank in range(4)] == [["first", "again"]] * 4
    assert not any(alive(group) for group in groups(tmp_path, 4))


def test_a_machine_that_is_lost_may_come_back(tmp_path: Path) -> None:
    port = free_port()
    plan = '{"all": "wait", "again0": 0, "again1": 0, "again2": 0, "again3": 0}'
    second, first = machines(tmp_path, plan, port)
    wait_for(tmp_path, 4)
    second.kill()
    second.communicate()
    back = start(tmp_path, plan, nodes=2, NODE_RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    code, _, err = finish(first)
    assert code == finish(back)[0] == 0
    assert "was lost: its machine does not answer; launching afresh" in err
    assert not any(alive(group) for group in groups(tmp_path, 4))


def test_a_request_to_stop_on_one_machine_stops_both(tmp_path: Path) -> None:
    second, first = machines(tmp_path, '{"all": "wait"}', free_port())
    wait_for(tmp_path, 4)
    first.send_signal(signal.SIGTERM)
    assert finish(first)[0] == finish(second)[0] == 130
    assert len(list((tmp_path / "notes").glob("checkpoint*"))) == 4


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "MASTER_ADDR: this environment variable is missing"),
        ({"MASTER_ADDR": "a"}, "NODE_RANK: this environment variable is missing"),
        ({"MASTER_ADDR": "a", "NODE_RANK": "0"}, "MASTER_PORT: this environment variable is missing"),
        ({"MASTER_ADDR": "a", "NODE_RANK": "2", "MASTER_PORT": "1"}, "NODE_RANK=2: is not one of the 2 machines"),
        ({"MASTER_ADDR": "a", "NODE_RANK": "x", "MASTER_PORT": "1"}, "NODE_RANK=x: is not a number"),
    ],
)
def test_several_machines_must_be_told_where_to_meet(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], message: str
) -> None:
    for name in ("MASTER_ADDR", "NODE_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message) as caught:
        launcher.supervise([], devices=1, nodes=2, restarts=0, say=lambda _: None)
    assert caught.value.exit_code == 2


def test_a_machine_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "RENDEZVOUS_SECONDS", 0.2)
    for name, value in {
        "MASTER_ADDR": "127.0.0.1",
        "NODE_RANK": "0",
        "MASTER_PORT": str(free_port()),
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DermkitError, match="no sign of machine 1, 2"):
        launcher.supervise([], devices=1, nodes=3, restarts=0, say=lambda _: None)
    monkeypatch.setenv("NODE_RANK", "1")
    with pytest.raises(DermkitError, match="machine 0 was not there"):
        launcher.supervise([], devices=1, nodes=3, restarts=0, say=lambda _: None)


@pytest.mark.parametrize(("devices", "nodes"), [(0, 1), (1, 0), (-1, 2)])
def test_no_devices_are_refused(devices: int, nodes: int) -> None:
    with pytest.raises(UsageError, match="both are 1 or more"):
        launcher.supervise([], devices=devices, nodes=nodes, restarts=0, say=lambda _: None)


TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "MASTER_ADDR": "a", "MASTER_PORT": "1234",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "gpu[07-08,11]",
}  # fmt: skip


def test_a_place_is_read_from_torchrun_s_names_and_from_srun_s() -> None:
    assert read_rank_info(TORCHRUN) == RankInfo(5, 8, 1, 4, 1, "a", 1234)
    assert read_rank_info(SRUN) == RankInfo(5, 8, 1, 4, 1, "gpu07", 20000 + 123458 % 10000, has_own_gpu=True)
    assert read_rank_info({**SRUN, "MASTER_ADDR": "b", "MASTER_PORT": "9"}) == RankInfo(
        5, 8, 1, 4, 1, "b", 9, has_own_gpu=True
    )
    assert read_rank_info({**SRUN, **TORCHRUN}) == RankInfo(5, 8, 1, 4, 1, "a", 1234)
    pod = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}  # one process in each pod
    assert read_rank_info(pod) == RankInfo(3, 4, 0, 1, 3, "a", 1)


def test_what_is_no_rank_is_not_taken_for_one() -> None:
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1", "SLURM_LOCALID": "0"}
    for environ in ({}, batch, {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, {**SRUN, "NODE_RANK": "1"}):
        assert read_rank_info(environ) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE: this environment variable is missing"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR: this environment variable is missing"),
        ({"RANK": "8"}, "no rank's place"),
        ({"RANK": "-1"}, "no rank's place"),
        ({"LOCAL_RANK": "4"}, "no rank's place"),
        ({"WORLD_SIZE": "7"}, "no rank's place"),
        ({"LOCAL_WORLD_SIZE": "0"}, "no rank's place"),
        ({"RANK": "one"}, "RANK=one: is not a number"),
    ],
)
def test_half_a_place_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_rank_info({**TORCHRUN, **change})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu03", "gpu03"), ("gpu03,gpu04", "gpu03"), ("gpu[03-05,9]", "gpu03"), ("a[9,10]-ib,b[1-2]", "a9-ib"),
        ("rack1-node[001-128]", "rack1-node001"), ("x1,y[1-3]", "x1"),
    ],
)  # fmt: skip
def test_the_first_host_of_a_list_is_found(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("ended", "interrupted", "verdict"),
    [
        ([], False, None),
        ([(1, 0)], False, None),
        ([(0, 0)], False, None),
        ([(0, 0), (1, 0)], False, ExitStatus(0)),
        ([(1, 1)], False, None),  # rank 0 may still end with the reason
        ([(1, 1), (0, 3)], False, ExitStatus(3)),
        ([(1, 3), (0, 4)], False, ExitStatus(4)),
        ([(1, 3)], False, None),
        ([(1, 1), (0, 1)], False, ExitStatus(1, "rank 1 was lost: it ended with code 1")),
        ([(0, 1), (1, -9)], False, ExitStatus(1, "rank 1 was lost: killed by SIGKILL")),
        ([(1, -9)], False, ExitStatus(1, "rank 1 was lost: killed by SIGKILL")),
        ([(1, LOST_NODE_CODE)], False, ExitStatus(1, "rank 1 was lost: its machine does not answer")),
        ([(1, -2), (0, -2)], True, ExitStatus(130)),
        ([(1, -9)], True, None),
        ([(1, 130), (0, 0)], True, ExitStatus(130)),
        ([(1, 0), (0, 0)], True, ExitStatus(0)),
    ],
)
def test_how_a_launch_ended(ended: list[tuple[int, int]], interrupted: bool, verdict: ExitStatus | None) -> None:
    codes = RankExits(2)
    for rank, code in ended:
        codes.add(rank, code)
    assert codes.exit_status(interrupted=interrupted) == verdict


def test_nobody_is_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(exits, "CODE_WAIT_SECONDS", 0.0)
    expected = {0: ExitStatus(0), 3: ExitStatus(3), 1: ExitStatus(1, "rank 0 was lost: it ended with code 1")}
    for code, verdict in expected.items():
        codes = RankExits(2)
        codes.add(0, code)
        time.sleep(0.001)
        assert codes.exit_status(interrupted=False) == verdict
