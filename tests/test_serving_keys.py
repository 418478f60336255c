"""API keys: hashed in the file, scoped, rotated, expired, revoked; and how a guess is slowed."""

import asyncio
import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from conftest import Invoke
from dermkit.errors import UsageError
from dermkit.serving import auth, key_file
from dermkit.serving.auth import KeyGuard, KeyRing
from dermkit.serving.key_file import ApiKey, make_key, parse_key, read_keys, revoke_key, rotate_key
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.rules import Scope
from server_parts import run


@pytest.fixture(autouse=True)
def cheap_and_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a hash cost little, and a change of the file be noticed with the next request."""
    monkeypatch.setitem(key_file._SCRYPT_COST, "n", 2**4)
    monkeypatch.setattr(auth, "_LOOK_SECONDS", 0.0)


async def outcome(guard: KeyGuard, text: str, scope: Scope = Scope.PREDICT) -> str:
    """Return the id of a key that is taken, or the code of the problem."""
    try:
        return await guard.check(f"Bearer {text}", scope)
    except Problem as problem:
        return problem.code.value


def test_a_key_is_in_its_file_as_a_hash_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, text = make_key(path, name="clinic A", scopes=["predict"])
    parsed = parse_key(text)
    assert parsed is not None and parsed[0] == key.id and len(parsed[1]) == 43
    assert parsed[1] not in path.read_text() and json.loads(path.read_text())["format"] == 1
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    _, other = make_key(path, name="clinic A", scopes=["predict"])
    assert other != text and len(read_keys(path)) == 2
    assert key.verify(parsed[1]) and not key.verify(parsed[1][::-1])


def test_scopes_are_what_a_key_is_for(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, predict = make_key(path, name="a", scopes=["predict", "explain"])
    _, admin = make_key(path, name="b", scopes=["admin"])
    guard = KeyGuard(KeyRing(path))

    async def check() -> None:
        for scope in Scope:
            is_taken = await outcome(guard, predict, scope) != ProblemCode.SCOPE_MISSING
            assert is_taken == (scope in (Scope.PREDICT, Scope.EXPLAIN))
        assert await outcome(guard, predict, Scope.METRICS) == ProblemCode.SCOPE_MISSING
        assert [len(await outcome(guard, admin, scope)) for scope in Scope] == [8] * len(Scope)

    run(check())


def test_two_keys_are_taken_while_one_is_rotated_and_then_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    old, old_text = make_key(path, name="a", scopes=["predict"])
    guard = KeyGuard(KeyRing(path))

    async def check() -> None:
        assert await outcome(guard, old_text) == old.id
        new, new_text = rotate_key(path, old.id, overlap_days=1)
        assert (new.name, new.scopes) == (old.name, old.scopes)
        assert [await outcome(guard, text) for text in (old_text, new_text)] == [old.id, new.id]
        rotate_key(path, new.id, overlap_days=0)
        assert await outcome(guard, new_text) == ProblemCode.KEY_NOT_VALID, "expired at once"
        assert await outcome(guard, old_text) == old.id
        revoke_key(path, old.id)
        assert await outcome(guard, old_text) == ProblemCode.KEY_NOT_VALID

    run(check())


def test_a_key_expires_in_a_running_server(tmp_path: Path) -> None:
    path, now = tmp_path / "keys.json", datetime.now(UTC)
    _, expired = make_key(path, name="a", scopes=["predict"], days=30, now=now - timedelta(days=31))
    valid_key, valid = make_key(path, name="a", scopes=["predict"], days=30, now=now - timedelta(days=29))

    async def check() -> None:
        guard = KeyGuard(KeyRing(path))
        assert await outcome(guard, expired) == ProblemCode.KEY_NOT_VALID
        assert await outcome(guard, valid) == valid_key.id

    run(check())


def test_a_file_that_is_gone_or_broken_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, text = make_key(path, name="a", scopes=["predict"])
    guard = KeyGuard(KeyRing(path))

    async def check() -> None:
        content = path.read_text()
        assert await outcome(guard, text) == key.id
        for broken in ("{", json.dumps({"format": 1, "keys": [{"id": 1}]})):
            path.write_text(broken)
            assert await outcome(guard, text) == ProblemCode.KEY_NOT_VALID
        path.unlink()
        assert await outcome(guard, text) == ProblemCode.KEY_NOT_VALID
        path.write_text(content)
        assert await outcome(guard, text) == key.id

    run(check())


def test_a_changed_hash_is_not_taken_for_the_one_that_was_checked(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, text = make_key(path, name="a", scopes=["predict"])
    guard = KeyGuard(KeyRing(path))

    async def check() -> None:
        assert await outcome(guard, text) == key.id
        document = json.loads(path.read_text())
        document["keys"][0]["hash"] = "00" * 32
        path.write_text(json.dumps(document))
        assert await outcome(guard, text) == ProblemCode.KEY_NOT_VALID

    run(check())


def test_requests_with_one_key_share_a_check_and_guesses_wait_in_a_short_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    key, text = make_key(path, name="a", scopes=["predict"])
    n_hashes = [0]
    verify = ApiKey.verify

    def count(self: ApiKey, secret: str) -> bool:
        n_hashes[0] += 1
        return verify(self, secret)

    monkeypatch.setattr(ApiKey, "verify", count)
    guard = KeyGuard(KeyRing(path))
    guesses = [f"{text[:-2]}{number:02}" for number in range(50)]

    async def check() -> None:
        assert set(await asyncio.gather(*(outcome(guard, text) for _ in range(200)))) == {key.id}
        assert n_hashes == [1]
        outcomes = await asyncio.gather(*(outcome(guard, guess) for guess in guesses), outcome(guard, text))
        assert outcomes.pop() == key.id, "a key that was checked does not wait"
        assert outcomes.count(ProblemCode.TOO_MANY_ATTEMPTS) == 48
        assert outcomes.count(ProblemCode.KEY_NOT_VALID) == 2 and n_hashes == [3]

    run(check())


@pytest.mark.parametrize(
    "text",
    ["", "dk_", "dk_00000000_" + "A" * 42, "dk_00000000_" + "A" * 43, "x" * 10_000, "dk_0000000g_" + "A" * 43],
)
def test_what_is_no_key_of_the_file_costs_no_hash(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    make_key(path, name="a", scopes=["predict"])
    monkeypatch.delattr(ApiKey, "verify")
    guard = KeyGuard(KeyRing(path))
    codes = (ProblemCode.KEY_NOT_VALID, ProblemCode.KEY_MISSING)
    assert run(outcome(guard, text)) in codes


def test_the_command_makes_lists_rotates_and_revokes(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    code, out, err = invoke("keys", "make", path, "--name", "clinic A", "--days", "30")
    key_id = read_keys(path)[0].id
    assert code == 0 and out.strip().startswith(f"dk_{key_id}_") and "only time" in err
    assert read_keys(path)[0].scopes == (Scope.PREDICT, Scope.EXPLAIN)
    code, out, err = invoke("keys", "rotate", path, key_id)
    assert code == 0 and len(read_keys(path)) == 2 and "7 more days" in err
    assert invoke("keys", "revoke", path, key_id)[0] == 0
    code, out, _ = invoke("keys", "list", path)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == [key.id for key in read_keys(path)]
    assert "revoked" in out.splitlines()[0] and "valid until never" in out.splitlines()[1]
    assert not any(key.hash in out or key.salt in out for key in read_keys(path))


@pytest.mark.parametrize(
    "words",
    [
        ("make", "keys.json", "--name", "a", "--scope", "predictt"),
        ("make", "keys.json", "--name", ""),
        ("make", "keys.json", "--name", "a\nb"),
        ("make", "keys.json", "--name", "a", "--days", "-1"),
        ("revoke", "keys.json", "00000000"),
        ("rotate", "keys.json", "00000000"),
        ("list", "absent.json"),
    ],
)
def test_a_wrong_command_is_refused_and_changes_nothing(
    invoke: Invoke, tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_key(Path("keys.json"), name="a", scopes=["predict"])
    content = Path("keys.json").read_text()
    assert invoke("keys", *words)[0] == 2
    assert Path("keys.json").read_text() == content


def test_a_revoked_key_is_not_rotated(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, _ = make_key(path, name="a", scopes=["predict"])
    revoke_key(path, key.id)
    with pytest.raises(UsageError, match="revoked"):
        rotate_key(path, key.id, overlap_days=1)
