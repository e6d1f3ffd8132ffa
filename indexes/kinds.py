"""Which kinds of index there are, which vectors each takes, and the check of their specifications."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from retrievers.errors import MissingDependencyError, SpecError
from retrievers.indexes.approximate import ApproximateIndex
from retrievers.indexes.dense import FlatIndex
from retrievers.indexes.exact import import_faiss
from retrievers.indexes.maxsim import MaxSimIndex
from retrievers.indexes.parameters import AnyParameter, Parameter, check_parameters
from retrievers.indexes.plaid import PlaidIndex
from retrievers.specs import Spec
from retrievers.vectors import KINDS, Kind

_COMPACT = Parameter(False, choices=(False, True))

PARAMETERS: Mapping[Kind, Mapping[str, Mapping[str, AnyParameter]]] = {
    "dense": {**FlatIndex.PARAMETERS, **ApproximateIndex.PARAMETERS},
    "sparse": {"inverted": {"bits": Parameter(16, choices=(8, 16)), "compact": _COMPACT}},
    "lexical": {"inverted": {"compact": _COMPACT}},
    "multi-vector": {**MaxSimIndex.PARAMETERS, **PlaidIndex.PARAMETERS},
}
"""For each kind of encoder the indexes that take its vectors, the default first, and their parameters."""


def parse_index_spec(text: str | Spec, kind: Kind) -> Spec:
    """Read a specification such as ``"hnsw(m=32)"`` for the vectors of an encoder of ``kind``; nothing is filled in.

    Raises SpecError, which tells what there is, for an index that does not take such vectors, a parameter that it does
    not have, and a value that this does not take.
    """
    spec = text if isinstance(text, Spec) else Spec.parse(text)
    known = _known(kind)
    if spec.name not in known:
        owners = _owners(spec)
        what = (
            f"{spec.name} takes vectors of {' and '.join(owners)} encoders" if owners else f"there is no {spec.name!r}"
        )
        raise SpecError(f"{spec}: {what}; the indexes for {kind} vectors are {', '.join(known)}")
    check_parameters(spec, known)
    return spec


def check_index_spec(text: str | Spec | None) -> None:
    """Refuse, before an encoder is loaded, a specification that the vectors of no kind of encoder take.

    Raises SpecError. None stands for the default and always passes.
    """
    if text is None:
        return
    spec = text if isinstance(text, Spec) else Spec.parse(text)
    owners = _owners(spec)
    if not owners:
        known = dict.fromkeys(name for kind in KINDS for name in PARAMETERS[kind])
        raise SpecError(f"{spec}: there is no {spec.name!r}; the indexes are {', '.join(known)}")
    if len(owners) == 1:  # which parameters an index of two kinds takes is told by the encoder
        check_parameters(spec, PARAMETERS[owners[0]])


def default_index(kind: Kind) -> Spec:
    """The exact index for the vectors of an encoder of ``kind``."""
    return Spec(next(iter(_known(kind))))


def index_class(spec: Spec, kind: Kind) -> type[Any]:
    """The class, an implementation of :class:`retrievers.indexes.protocol.Index`, behind a specification."""
    parse_index_spec(spec, kind)
    if kind == "dense":
        return FlatIndex if spec.name in FlatIndex.PARAMETERS else ApproximateIndex
    if kind == "multi-vector":
        return MaxSimIndex if spec.name in MaxSimIndex.PARAMETERS else PlaidIndex
    from retrievers.indexes.inverted import InvertedIndex, LexicalIndex

    return InvertedIndex if kind == "sparse" else LexicalIndex


def import_for(kind: Kind) -> None:
    """Import now what searches over vectors of a kind take, so that the first is as quick as the next.

    What is not installed is left for the search that needs it to name.
    """
    if kind in ("lexical", "sparse"):
        import_module("scipy.sparse")
    elif kind == "dense":
        with suppress(MissingDependencyError):
            import_faiss()


def _owners(spec: Spec) -> list[Kind]:
    """The kinds of encoder whose vectors the index that is named takes."""
    return [kind for kind in KINDS if spec.name in PARAMETERS[kind]]


def _known(kind: Kind) -> Mapping[str, Mapping[str, AnyParameter]]:
    if kind not in PARAMETERS:
        raise SpecError(f"{kind!r} is no kind of encoder: there are {', '.join(KINDS)}")
    return PARAMETERS[kind]
