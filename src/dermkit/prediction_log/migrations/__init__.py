"""The steps that bring an older prediction log to today's schema; alembic applies those that are missing."""
