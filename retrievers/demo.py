"""A collection for first steps: the docstrings of Python's own standard library, read from its sources.

``python -m retrievers.demo OUT.jsonl`` writes it. The sources are parsed, and never imported. Test packages are left
out, and so are modules, classes and functions whose names begin with an underscore, but for names such as ``__init__``.
The Python twins of C modules (``_pydecimal`` and the like) stand under the public name. Modules that exist in C alone,
such as ``math``, have no sources to read.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shlex
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retrievers.documents import Document
from retrievers.errors import RetrieversError, SourceNotFoundError
from retrievers.text_folders import text_files

_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
_TWIN = "_py"

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Found = tuple[str, str, str, ast.Module | ast.ClassDef | _Function]


def documents() -> Iterator[Document]:
    """The documented modules, classes, functions and methods of the running Python's standard library.

    The id is the dotted name (``json.dumps``), with ``#2`` and so on where a name is defined and documented again; the
    title is the name, for functions with the signature; the text is the docstring. Metadata: ``module``, ``kind``
    (``module``, ``class``, ``function`` or ``method``), ``line`` and ``path``, which is relative to the library's
    folder. The order is that of the paths and lines, the same at every call.
    Raises SourceNotFoundError where Python came without sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    times: Counter[str] = Counter()
    if root.is_dir():
        # The twins come last: where both have a docstring, that of the public module takes the name.
        for path in sorted(text_files(root, ("*.py",)), key=lambda path: path.startswith(_TWIN)):
            module = _module_name(path)
            if module is not None:
                yield from _documents_of(root, path, module, times)
    if not times:
        raise SourceNotFoundError(f"{root} has no sources of the standard library: use a Python that comes with them")


def write(path: Path) -> int:
    """Write the collection to a JSON lines file, which appears whole or not at all; returns the number of documents.

    Raises SourceNotFoundError as :func:`documents` does, OSError where the file cannot be written.
    """
    count = 0
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for document in documents():
                record = {
                    "id": document.id,
                    "title": document.title,
                    "text": document.text,
                    "metadata": dict(document.metadata),
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``python -m retrievers.demo``; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m retrievers.demo",
        description="Write the docstrings of Python's standard library as a collection to search.",
    )
    parser.add_argument("out", metavar="OUT.jsonl", type=Path, help="the file to write")
    path: Path = parser.parse_args(arguments).out
    if path.suffix != ".jsonl":
        parser.error(f"OUT.jsonl must end in .jsonl, got {str(path)!r}")
    try:
        count = write(path)
    except (OSError, RetrieversError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    index = shlex.quote(str(path.with_suffix("")))
    print(f"wrote {count:,} documents; next: retrievers index build {shlex.quote(str(path))} -o {index}")
    return 0


def _module_name(path: str) -> str | None:
    """The public dotted name of the module in a file; None for what is left out."""
    parts = path.removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts.pop()
    if len(parts) == 1:
        parts[0] = parts[0].removeprefix(_TWIN)
    if not parts or parts[0] not in sys.stdlib_module_names or _SKIPPED.intersection(parts):
        return None
    return ".".join(parts) if all(part.isidentifier() and _is_public(part) for part in parts) else None


def _is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def _documents_of(root: Path, path: str, module: str, times: Counter[str]) -> Iterator[Document]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in the sources of others
            tree = ast.parse((root / path).read_bytes())
    except (SyntaxError, ValueError):
        return  # distributions put files there that are templates, or for another version of Python
    for name, title, kind, node in [(module, module, "module", tree), *_definitions(tree.body, module, "function")]:
        text = (ast.get_docstring(node) or "").strip()
        if not text:
            continue
        times[name] += 1
        id_ = name if times[name] == 1 else f"{name}#{times[name]}"
        line = 1 if isinstance(node, ast.Module) else node.lineno
        metadata: dict[str, Any] = {"module": module, "kind": kind, "line": line, "path": path}
        yield Document(id_, text, title, metadata)


def _definitions(body: Sequence[ast.AST], parent: str, kind: str) -> Iterator[_Found]:
    """The public classes and functions among statements, also those under a condition or ``try``, in source order."""
    for node in body:
        if isinstance(node, _Function):
            if _is_public(node.name):
                name = f"{parent}.{node.name}"
                yield name, f"{name}({ast.unparse(node.args)})", kind, node
        elif isinstance(node, ast.ClassDef):
            if _is_public(node.name):
                name = f"{parent}.{node.name}"
                yield name, name, "class", node
                yield from _definitions(node.body, name, "method")
        elif not isinstance(node, ast.expr):
            yield from _definitions(list(ast.iter_child_nodes(node)), parent, kind)


if __name__ == "__main__":
    sys.exit(main())
