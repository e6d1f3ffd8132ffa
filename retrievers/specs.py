"""Specifications: small values such as ``hnsw(m=32, ef_search=64)`` that print and parse."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from retrievers.errors import SpecError

Value = int | float | str | bool

_SPEC = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]*)\s*(?:\((.*)\))?\s*\Z", re.DOTALL)
_PARAMETER = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]*)\s*=\s*([A-Za-z0-9_.+-]+)\s*\Z")


@dataclass(frozen=True)
class Spec:
    """A name with parameters; ``str()`` and :meth:`parse` are inverses."""

    name: str
    parameters: dict[str, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.parameters:
            return self.name
        inside = ", ".join(f"{key}={printed(value)}" for key, value in self.parameters.items())
        return f"{self.name}({inside})"

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read ``name`` or ``name(key=value, ...)``; numbers and ``true``/``false`` become typed, the rest is text.

        Raises SpecError where the text has another form or names a parameter twice.
        """
        match = _SPEC.match(text)
        if match is None:
            raise SpecError(f"{text!r} is no specification: write a name, or name(key=value, ...)")
        name, inside = match.group(1), match.group(2)
        parameters: dict[str, Value] = {}
        for part in inside.split(",") if inside and inside.strip() else []:
            found = _PARAMETER.match(part)
            if found is None:
                raise SpecError(f"{part.strip()!r} in {text!r} is no parameter: write key=value")
            key = found.group(1)
            if key in parameters:
                raise SpecError(f"{text!r} gives {key} twice")
            parameters[key] = _read(found.group(2))
        return cls(name, parameters)


def printed(value: Value) -> str:
    """A value as :meth:`Spec.parse` reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
