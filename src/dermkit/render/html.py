"""The Jinja environment of all HTML pages."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def template_environment() -> Environment:
    """Return the environment: all values are escaped, an undefined name is an error; filter `count` writes 1,234."""
    environment = Environment(
        loader=PackageLoader("dermkit.render"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["count"] = lambda n: f"{n:,}"
    return environment
