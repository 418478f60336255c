"""The version of a log's schema: brought up to date when a server starts, and refused where it is newer."""

from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, inspect, select

from dermkit.errors import DataError, UsageError
from dermkit.prediction_log.chain import GENESIS
from dermkit.prediction_log.database import LogAddress, lock_for_schema, log_errors
from dermkit.prediction_log.tables import CHAINS, HEADS

MIGRATION_FOLDER = Path(__file__).parent / "migrations"


def upgrade_schema(engine: Engine, address: LogAddress) -> None:
    """Create the tables, or apply the migrations that are missing, in one transaction; raises `UsageError`.

    Every process does this as it starts, one at a time.
    """
    with log_errors(address), engine.begin() as connection:
        lock_for_schema(connection)
        context, script = _context(connection), _script()
        version = _known_version(context, script, connection, address)
        missing = list(script.iterate_revisions("head", version or "base"))
        with Operations.context(context):
            for revision in reversed(missing):
                revision.module.upgrade()
        if missing:
            context.stamp(script, "head")
        _create_heads(connection)


def check_schema(connection: Connection, address: LogAddress) -> None:
    """Raise `UsageError` for a log of a newer or older schema than this dermkit reads, `DataError` for no log."""
    script = _script()
    version = _known_version(_context(connection), script, connection, address)
    if version is None:
        raise DataError(f"{address.name}: holds no prediction log", remedy="check the path or URL")
    if version != script.get_current_head():
        raise UsageError(
            f"{address.name}: the log has schema {version}, this dermkit reads {script.get_current_head()}",
            outcome="the log as it is",
            remedy="start `dermkit serve` with it once: that brings it up to date",
        )


def schema_version() -> str:
    """Return the number of today's schema."""
    return str(_script().get_current_head())


def _script() -> ScriptDirectory:
    return ScriptDirectory(str(MIGRATION_FOLDER), version_locations=[str(MIGRATION_FOLDER)])


def _context(connection: Connection) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"version_table": "schema_version"})


def _known_version(
    context: MigrationContext, script: ScriptDirectory, connection: Connection, address: LogAddress
) -> str | None:
    """Return the schema's version, None for an empty database; raises `UsageError` for one that is not known here."""
    version = context.get_current_revision()
    revisions = {revision.revision for revision in script.walk_revisions()}
    if version is not None and version not in revisions:
        raise UsageError(
            f"{address.name}: the log has schema {version}, which this dermkit does not know: it was written by a "
            "newer one",
            outcome="the log as it is; nothing was written",
            remedy="update dermkit, or name another log",
        )
    foreign_tables = set(inspect(connection).get_table_names()) & (CHAINS.keys() | {HEADS.name})
    if version is None and foreign_tables:
        raise UsageError(
            f"{address.name}: the database has other tables of these names: {', '.join(sorted(foreign_tables))}",
            outcome="the database as it is",
            remedy="use a database of its own for the log",
        )
    return version


def _create_heads(connection: Connection) -> None:
    """Give an empty chain its head. One that has rows and no head was changed; `verify-log` says so."""
    heads = set(connection.scalars(select(HEADS.c.chain)))
    for name, table in CHAINS.items():
        if name not in heads and not connection.scalar(select(func.count()).select_from(table)):
            connection.execute(HEADS.insert().values(chain=name, sequence=0, row_hash=GENESIS))
