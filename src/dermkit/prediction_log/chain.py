"""The chain of hashes: each row holds the hash of its content and of the row before."""

from collections.abc import Mapping
from typing import Any

from dermkit.files import canonical_json, sha256_bytes

GENESIS = "0" * 64
"""The hash before the first row."""
CHAIN_COLUMNS = ("sequence", "previous_hash", "row_hash")


def row_hash(previous_hash: str, columns: Mapping[str, Any]) -> str:
    """Return the hex SHA-256 of a row. columns: column -> value; those of the chain and unknown values do not count.

    A column that a later version adds is None in older rows, so that their hashes stay true. Raises `TypeError` or
    `ValueError` for a value that is no text or finite number.
    """
    content = {name: value for name, value in columns.items() if value is not None and name not in CHAIN_COLUMNS}
    return sha256_bytes(f"{previous_hash}\n{canonical_json(content)}".encode())
