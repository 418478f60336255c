"""Print how the source is named and divided: one row a package, then the offenders.

    python benchmarks/names.py [FOLDER]          FOLDER: a package such as src/dermkit (default), or anybody else's

vague %: of the names that functions store (assignments, loops, `with`, comprehensions; each place counts once), the
part that says nothing of what it holds: participles, pronouns, adverbs. comments: lines with a `#` comment per 100
lines of code.
Needs nothing but Python; `tests/test_names.py` holds the shares.
"""

import ast
import io
import statistics
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "dermkit"

VAGUE = frozenset({
    "made", "found", "told", "said", "kept", "own", "whole", "left", "there", "here", "asked", "settled",
    "known", "given", "held", "seen", "drawn", "taken", "wanted", "done", "chosen", "judged", "together",
    "alone", "apart", "beside", "least", "most", "few", "several", "of", "other", "others", "both", "once",
    "twice", "rest", "more", "less", "looks", "look", "words", "ends", "sides", "side", "way", "how", "where",
    "which", "mark", "marks", "place", "places", "part", "parts", "item", "items", "body", "facts", "about",
})  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One module: its path below the package, its text and its syntax tree."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """Return the package's top folder that the module lies in, "." for the top itself."""
        return self.path.parts[0] if len(self.path.parts) > 1 else "."


def read_sources(folder: Path) -> list[Source]:
    """Read every module of a package."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}
    return [Source(path.relative_to(folder), text, ast.parse(text)) for path, text in texts.items()]


def stored_names(tree: ast.Module) -> list[tuple[str, int]]:
    """Return (name, line) of every name that a function stores, each place once."""
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    stores = {
        (node.lineno, node.col_offset): node.id
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return [(name, line) for (line, _), name in sorted(stores.items())]


def vague_fraction(sources: list[Source]) -> float:
    """Return the fraction of stored names that are vague, 0 to 1."""
    names = [name for source in sources for name, _ in stored_names(source.tree)]
    return sum(name in VAGUE for name in names) / max(len(names), 1)


def vague_names(sources: list[Source]) -> list[str]:
    """Return `path:line name` of every vague name."""
    return [
        f"{source.path.as_posix()}:{line} {name}"
        for source in sources
        for name, line in stored_names(source.tree)
        if name in VAGUE
    ]


def public_names(tree: ast.Module) -> Iterator[str]:
    """Yield the classes, functions and constants that a module defines at its top, those with an underscore apart."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


def public_duplicates(sources: list[Source]) -> dict[str, list[str]]:
    """Return public name -> the modules that define it, for every name that has several."""
    places: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        for name in sorted(set(public_names(source.tree))):
            places[name].append(source.path.as_posix())
    return {name: modules for name, modules in sorted(places.items()) if len(modules) > 1}


def comment_lines(text: str) -> int:
    """Return the number of lines that carry a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})


def code_lines(text: str) -> int:
    """Return the number of lines that are not empty."""
    return sum(bool(line.strip()) for line in text.splitlines())


def function_lengths(tree: ast.Module) -> list[int]:
    """Return the number of lines of every function."""
    return [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def row(title: str, sources: list[Source]) -> str:
    """Return one row of the table."""
    n_lines = sum(len(source.text.splitlines()) for source in sources)
    n_comments = sum(comment_lines(source.text) for source in sources)
    comments_per_100 = 100 * n_comments / max(sum(code_lines(source.text) for source in sources), 1)
    lengths = [length for source in sources for length in function_lengths(source.tree)] or [0]
    n_long = sum(length > 50 for length in lengths)
    return (
        f"{title:14}{len(sources):8}{n_lines:8}{comments_per_100:10.1f}"
        f"{statistics.median(lengths):10.0f}{n_long:8}{100 * vague_fraction(sources):10.1f}"
    )


def main(folder: Path) -> None:
    """Print the table, the largest folders and the offenders."""
    sources = read_sources(folder)
    by_package: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        by_package[source.package].append(source)
    print(f"{'package':14}{'modules':>8}{'lines':>8}{'comments':>10}{'function':>10}{'> 50':>8}{'vague %':>10}")
    for package, members in sorted(by_package.items()):
        print(row(package, members))
    print(row("all", sources))
    per_folder = Counter(source.path.parent.as_posix() for source in sources)
    largest, n_files = per_folder.most_common(1)[0]
    print(f"\nfiles at the top: {per_folder['.']}; most files in a folder: {n_files} ({largest})")
    duplicates = public_duplicates(sources)
    print(f"public names defined in several modules: {len(duplicates)}")
    print("\n".join(f"  {name}: {', '.join(modules)}" for name, modules in duplicates.items()))
    print("\n".join(f"  {line}" for line in vague_names(sources)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SRC)
