"""Whether the packages of the prediction log are installed; the base install does not have them."""

from importlib.util import find_spec

from dermkit.errors import UsageError


def check_log_packages() -> None:
    """Raise `UsageError` where SQLAlchemy or alembic is absent."""
    absent = [name for name in ("sqlalchemy", "alembic") if find_spec(name) is None]
    if absent:
        raise UsageError(
            f"prediction log: the package {absent[0]} is not installed",
            outcome="nothing was written",
            remedy="pip install 'dermkit[serve]'",
        )
