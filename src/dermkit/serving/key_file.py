"""API keys as a file: each is hashed with scrypt, has scopes and perhaps an end, and is shown once, when it is made.

A key is "dk_", eight hex digits that name it, "_", and 256 random bits.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dermkit.errors import UsageError, did_you_mean
from dermkit.files import lock, output_errors, read_json, write_json
from dermkit.serving.rules import Scope

KEY_FILE_FORMAT = 1
_KEY = re.compile(r"dk_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_SCRYPT_COST = {"n": 2**14, "r": 8, "p": 1}
"""16 MiB and some 50 ms a hash: the cost that RFC 7914 gives for interactive use."""
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,60}")


@dataclass(frozen=True)
class ApiKey:
    """One key as the file has it.

    id: of eight hex digits. name: whose it is, in words. scopes: what it is for. created, expires, revoked: ISO times
    in UTC, None = never. salt, hash: hex, of scrypt over the secret.
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created: str
    expires: str | None
    revoked: str | None
    salt: str
    hash: str

    def why_invalid(self, now: datetime) -> str:
        """Return why the key is not taken now, "" where it is."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and datetime.fromisoformat(self.expires) <= now else ""

    def allows(self, scope: Scope) -> bool:
        """Return whether the key is for this."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def verify(self, secret: str) -> bool:
        """Return whether this is the key's secret; takes some 50 ms and 16 MiB."""
        return hmac.compare_digest(_hash(secret, bytes.fromhex(self.salt)), self.hash)


_KEYS: TypeAdapter[tuple[ApiKey, ...]] = TypeAdapter(tuple[ApiKey, ...])


def parse_key(text: str) -> tuple[str, str] | None:
    """Return id and secret of a key, None where it has another form."""
    match = _KEY.fullmatch(text)
    return (match[1], match[2]) if match else None


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a file; raises `UsageError` where it is missing or broken."""
    document = read_json(path, format=KEY_FILE_FORMAT)
    try:
        keys = _KEYS.validate_python(document["keys"])
        for key in keys:
            bytes.fromhex(key.salt + key.hash)
            for moment in (key.created, key.expires, key.revoked):
                if moment is not None and datetime.fromisoformat(moment).tzinfo is None:
                    raise ValueError(f"{moment} has no time zone")
    except (KeyError, ValueError, ValidationError) as error:
        raise UsageError(
            f"{path}: is no file of API keys: {str(error).splitlines()[0]}",
            remedy="make one with `dermkit keys make FILE --name NAME`",
        ) from error
    return keys


def make_key(
    path: Path, *, name: str, scopes: Sequence[str], days: float | None = None, now: datetime | None = None
) -> tuple[ApiKey, str]:
    """Add a key to a file, which is made where there is none; returns it with its text, which is kept nowhere.

    days: until it expires, None = never. Raises `UsageError` for a wrong name, scope or number of days.
    """
    if not _NAME.fullmatch(name):
        raise UsageError("--name: 1 to 60 printable characters", remedy="name who will use the key")
    moment = now or datetime.now(UTC)
    key, text = _new_key(name, _parse_scopes(scopes), moment, _end(days, moment))
    with lock(_folder(path), timeout=10.0):
        _write(path, (*(read_keys(path) if path.exists() else ()), key))
    return key, text


def revoke_key(path: Path, key_id: str, *, now: datetime | None = None) -> ApiKey:
    """Let a key be taken no longer; a running server notices within a second.

    Raises `UsageError` where the file holds no such key.
    """
    moment = now or datetime.now(UTC)
    with lock(_folder(path), timeout=10.0):
        keys = read_keys(path)
        revoked = replace(_find(path, keys, key_id), revoked=_text(moment))
        _write(path, tuple(revoked if key.id == key_id else key for key in keys))
    return revoked


def rotate_key(
    path: Path, key_id: str, *, overlap_days: float, days: float | None = None, now: datetime | None = None
) -> tuple[ApiKey, str]:
    """Add a key with the name and scopes of another, which expires after the overlap; both are taken until then."""
    moment = now or datetime.now(UTC)
    with lock(_folder(path), timeout=10.0):
        keys = read_keys(path)
        old = _find(path, keys, key_id)
        if reason := old.why_invalid(moment):
            raise UsageError(f"{key_id}: is {reason}, so there is nothing to rotate", remedy="make a key anew")
        ends = [text for text in (old.expires, _end(overlap_days, moment)) if text is not None]
        ending = replace(old, expires=min(ends, key=datetime.fromisoformat))
        key, text = _new_key(old.name, old.scopes, moment, _end(days, moment))
        _write(path, (*(ending if one.id == key_id else one for one in keys), key))
    return key, text


def _folder(path: Path) -> Path:
    return path.absolute().parent


def _new_key(name: str, scopes: tuple[Scope, ...], now: datetime, expires: str | None) -> tuple[ApiKey, str]:
    key_id, salt = secrets.token_hex(4), secrets.token_bytes(16)
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    key = ApiKey(key_id, name, scopes, _text(now), expires, None, salt.hex(), _hash(secret, salt))
    return key, f"dk_{key_id}_{secret}"


def _hash(secret: str, salt: bytes) -> str:
    return hashlib.scrypt(secret.encode(), salt=salt, dklen=32, maxmem=2**26, **_SCRYPT_COST).hex()


def _parse_scopes(scopes: Sequence[str]) -> tuple[Scope, ...]:
    names = [scope.value for scope in Scope]
    for scope in scopes:
        if scope not in names:
            raise UsageError(
                f"--scope {scope}: unknown{did_you_mean(scope, names)}", remedy=f"one of {', '.join(names)}"
            )
    if not scopes:
        raise UsageError("--scope: none given", remedy=f"some of {', '.join(names)}")
    return tuple(Scope(scope) for scope in dict.fromkeys(scopes))


def _end(days: float | None, now: datetime) -> str | None:
    if days is None:
        return None
    if not 0 <= days <= 36_500:
        raise UsageError(f"{days:g} days: not from 0 to 36,500", remedy="give a number of days")
    return _text(now + timedelta(days=days))


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _find(path: Path, keys: Sequence[ApiKey], key_id: str) -> ApiKey:
    for key in keys:
        if key.id == key_id:
            return key
    raise UsageError(f"{path}: holds no key {key_id}", remedy="`dermkit keys list FILE` shows the id of each")


def _write(path: Path, keys: Sequence[ApiKey]) -> None:
    rows: list[dict[str, Any]] = [{**asdict(key), "scopes": [scope.value for scope in key.scopes]} for key in keys]
    write_json(path, {"keys": rows}, format=KEY_FILE_FORMAT)
    with output_errors(path):
        os.chmod(path, 0o600)  # noqa: PTH101  hashes, but nobody else's business
