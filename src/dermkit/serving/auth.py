"""Who may ask: the API key of a request, checked before its body is read.

A right key is remembered for as long as the process runs, as a hash: scrypt takes 50 ms. Wrong ones are checked one
after another and few may wait, so that guessing costs the server one thread.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from dermkit.errors import UsageError
from dermkit.files import file_stat
from dermkit.serving.key_file import ApiKey, parse_key, read_keys
from dermkit.serving.problems import Problem, ProblemCode
from dermkit.serving.rules import Scope

_LOG = logging.getLogger("dermkit.serving")
_MAX_ATTEMPTS = 8
_MAX_ATTEMPTS_OF_KEY = 2
"""So that who knows one key's id cannot take the places of all others."""
_LOOK_SECONDS = 1.0
_ASK = ((b"www-authenticate", b'Bearer realm="dermkit"'),)


class KeyRing:
    """The keys of a file, read again when it changes; a file that cannot be read any more lets nobody in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: Mapping[str, ApiKey] = {key.id: key for key in read_keys(path)}
        self._stat, self._look_time = file_stat(path), time.monotonic()

    def find(self, key_id: str) -> ApiKey | None:
        """Return a key by its id, as the file has it at most a second ago."""
        if time.monotonic() - self._look_time >= _LOOK_SECONDS:
            self._look()
        return self._keys.get(key_id)

    def _look(self) -> None:
        self._look_time = time.monotonic()
        stat = file_stat(self._path)
        if stat == self._stat:
            return
        try:
            self._keys = {key.id: key for key in read_keys(self._path)}
        except UsageError:
            _LOG.error("the file of API keys cannot be read: no key is taken")
            self._keys = {}
        self._stat = stat


class KeyGuard:
    """Checks the API keys of requests, on one event loop."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._verified: dict[str, tuple[bytes, str]] = {}
        self._attempts: dict[bytes, asyncio.Task[bool]] = {}
        self._n_attempts: Counter[str] = Counter()
        self._one_at_a_time = asyncio.Semaphore(1)

    async def check(self, authorization: str, scope: Scope) -> str:
        """Return the id of the key of an Authorization header; raises `Problem` where it does not allow this."""
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise Problem(ProblemCode.KEY_MISSING, closes=True, headers=_ASK)
        parsed = parse_key(text.strip())
        key = self._ring.find(parsed[0]) if parsed else None
        if parsed is None or key is None or key.why_invalid(datetime.now(UTC)):
            raise _not_valid()
        if not await self._is_right(key, parsed[1]):
            raise _not_valid()
        if not key.allows(scope):
            raise Problem(ProblemCode.SCOPE_MISSING, f"scope {scope.value} is needed", closes=True)
        return key.id

    async def _is_right(self, key: ApiKey, secret: str) -> bool:
        digest = hashlib.sha256(f"{key.id} {secret}".encode()).digest()
        known_digest, known_hash = self._verified.get(key.id, (b"", ""))
        if known_hash == key.hash and hmac.compare_digest(known_digest, digest):
            return True
        attempt = self._attempts.get(digest)  # requests that come together with one key wait for one check
        if attempt is None:
            if len(self._attempts) >= _MAX_ATTEMPTS or self._n_attempts[key.id] >= _MAX_ATTEMPTS_OF_KEY:
                raise Problem(ProblemCode.TOO_MANY_ATTEMPTS, retry_after=1, closes=True)
            attempt = self._attempts[digest] = asyncio.create_task(self._verify(key, secret, digest))
            self._n_attempts[key.id] += 1
            attempt.add_done_callback(lambda _task: self._forget(key.id, digest))
        return await asyncio.shield(attempt)

    def _forget(self, key_id: str, digest: bytes) -> None:
        self._attempts.pop(digest, None)
        self._n_attempts[key_id] -= 1

    async def _verify(self, key: ApiKey, secret: str, digest: bytes) -> bool:
        async with self._one_at_a_time:
            is_right = await asyncio.to_thread(key.verify, secret)
        if is_right:
            self._verified[key.id] = (digest, key.hash)
        return is_right


def _not_valid() -> Problem:
    return Problem(ProblemCode.KEY_NOT_VALID, closes=True, headers=_ASK)
