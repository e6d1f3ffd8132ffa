"""What ``retrievers index info`` tells of an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from retrievers.cli.options import counted, folder_size, print_size
from retrievers.cli.snippets import printable
from retrievers.indexes.manifest import NAME, Manifest
from retrievers.indexes.segments import Segment
from retrievers.indexes.snapshot import Snapshot
from retrievers.json_values import json_type

_EXAMPLES = 3
_SHOWN = 60  # characters of a value, or of an encoder's reference, that are shown to people


def examine(root: Path) -> dict[str, Any]:
    """Everything about an index, as a JSON object; the metadata fields count deleted documents too."""
    snapshot = Snapshot.open(root)
    try:
        manifest: Manifest = snapshot.manifest
        stored = sum(segment.size for segment in snapshot.segments)
        return {
            "path": str(root),
            "documents": manifest.documents,
            "deleted": stored - manifest.documents,
            "segments": len(manifest.segments),
            "complete": manifest.complete,
            "kind": manifest.encoder["kind"],
            "index": manifest.index,
            "settings": [getattr(segment.index, "settings", {}) for segment in snapshot.segments],
            "encoder": manifest.encoder["reference"],
            "fingerprint": manifest.encoder["fingerprint"],
            "dimension": snapshot.dimension,
            "bytes": folder_size(root),
            "format": json.loads((root / NAME).read_bytes())["format"],
            "generation": manifest.generation,
            "fields": _fields(snapshot.segments),
        }
    finally:
        snapshot.close()


def _fields(segments: list[Segment]) -> dict[str, Any]:
    """For each metadata field: how many documents have it, the types of its values, how many differ, examples."""
    fields: dict[str, dict[str, Any]] = {}
    for segment in segments:
        for name in segment.store.fields():
            column = segment.store.column(name)
            if column is None:
                continue
            found = fields.setdefault(name, {"documents": 0, "types": set(), "values": set(), "examples": []})
            found["documents"] += int((column.codes >= 0).sum())
            for value in column.values:
                key = json.dumps(value, sort_keys=True)
                if key not in found["values"]:
                    found["values"].add(key)
                    found["types"].add(json_type(value))
                    if len(found["examples"]) < _EXAMPLES:
                        found["examples"].append(value)
    return {
        name: {**found, "types": sorted(found["types"]), "values": len(found["values"])}
        for name, found in sorted(fields.items())
    }


def print_information(report: dict[str, Any]) -> None:
    """Print the report for people."""
    documents = counted(report["documents"])
    if report["deleted"]:
        documents += f" (and {report['deleted']:,} deleted, until a merge)"
    told = report["dimension"] is not None and report["kind"] != "lexical"
    dimension = f", {report['dimension']:,} dimensions" if told else ""
    encoder = "an object of its builder's own" if report["encoder"] is None else _brief(report["encoder"])
    lines = {
        "documents": documents,
        "segments": f"{report['segments']:,}",
        "build": "complete" if report["complete"] else "stopped before its end",
        "index": f"{report['index']}, for {report['kind']} vectors{dimension}",
        "encoder": encoder,
        "fingerprint": report["fingerprint"],
        "size": print_size(report["bytes"]),
        "format": f"{report['format']}, generation {report['generation']}",
    }
    reference = report["encoder"] or {}
    if "query_language" in reference:  # of a model with an adapter for each
        language, asked = reference["language"], reference["query_language"]
        lines["language"] = language if asked == language else f"{language}, queries in {asked}"
    if "dtype" in reference:
        lines["encoded in"] = f"{reference['dtype']} by {reference['backend']}"
    for settings in report["settings"]:
        if settings:
            lines.setdefault("settings", "")
            lines["settings"] += ("; " if lines["settings"] else "") + ", ".join(
                f"{k} {v}" for k, v in settings.items()
            )
    for name, value in lines.items():
        typer.echo(f"{name:<12} {value}")
    for name, field in report["fields"].items():
        examples = ", ".join(_brief(value) for value in field["examples"])
        more = ", ..." if field["values"] > len(field["examples"]) else ""
        typer.echo(
            f"field        {printable(name)}: {' or '.join(field['types'])} in {counted(field['documents'])}, "
            f"{field['values']:,} different: {examples}{more}"
        )


def _brief(value: object) -> str:
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
