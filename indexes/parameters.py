"""What the parameters of an index may be, and the check of a specification against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from retrievers.errors import SpecError
from retrievers.specs import Spec, Value, printed

AUTO = "auto"


@dataclass(frozen=True)
class Fraction:
    """A parameter that is a fraction above 0 and below 1, not given by default; it ``sets`` others, which it excludes."""

    sets: tuple[str, ...] = ()
    default: None = None

    def __str__(self) -> str:
        return "a fraction between 0 and 1, such as 0.95"

    def accepts(self, value: Value) -> bool:
        return type(value) is float and 0 < value < 1


@dataclass(frozen=True)
class Parameter:
    """One parameter: a whole number from ``low`` to ``high``, or one of ``choices``; ``default`` where it is not given.

    A ``default`` of ``"auto"`` is chosen to suit the vectors, and may be written out.
    """

    default: Value
    low: int = 1
    high: int = 0
    choices: tuple[Value, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(printed(choice) for choice in self.choices)
        numbers = f"a whole number from {self.low} to {self.high}"
        return f"{numbers}, or auto" if self.default == AUTO else numbers

    def accepts(self, value: Value) -> bool:
        if self.choices:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        return (type(value) is int and self.low <= value <= self.high) or (self.default == AUTO and value == AUTO)


AnyParameter = Parameter | Fraction


def check_parameters(spec: Spec, known: Mapping[str, Mapping[str, AnyParameter]]) -> None:
    """Refuse a specification whose name is not among ``known``, or whose parameters are not those of that name.

    Raises SpecError, which tells what there is.
    """
    if spec.name not in known:
        raise SpecError(f"{spec}: {spec.name!r} is none of {', '.join(known)}")
    parameters = known[spec.name]
    for name, value in spec.parameters.items():
        if name not in parameters:
            raise SpecError(f"{spec}: {spec.name} has no parameter {name!r}{_instead(name, parameters)}")
        if not parameters[name].accepts(value):
            raise SpecError(f"{spec}: {name} is {value!r}, and must be {parameters[name]}")
        for other in getattr(parameters[name], "sets", ()):
            if spec.parameters.get(other, AUTO) != AUTO:
                raise SpecError(f"{spec}: {name} sets {other}, which is given as well: leave one of them out")


def _instead(name: str, parameters: Mapping[str, AnyParameter]) -> str:
    if not parameters:
        return ": it takes none"
    near = get_close_matches(name, parameters, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f": it takes {', '.join(f'{key} ({value})' for key, value in parameters.items())}{hint}"
