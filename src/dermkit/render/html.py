"""How every page is made: the templates of the package, escaped, and strict about what they are given."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def template_environment() -> Environment:
    """Return the templates: everything escaped, a name that is not given is an error; filter `count` (1,234)."""
    environment = Environment(
        loader=PackageLoader("dermkit.render"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["count"] = lambda n: f"{n:,}"
    return environment
