"""``retrievers doctor``: what is installed, what is not, and how to get it."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from retrievers.cli import options

_NAME = "tri-retrievers"
_EXTRAS = {
    "neural": "models of all three kinds, and dense indexes",
    "train": "training",
    "evaluate": "measures, comparison and plots",
    "mteb": "the benchmark MTEB",
    "serve": "the HTTP server",
    "lucene": "export to Lucene and comparison with it",
}
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?\s*([^;]*)(?:;(.*))?\Z")
_BOUND = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9][^,\s]*)")


@dataclass(frozen=True)
class Dependency:
    """A package that the library asks for: ``problem`` is None where it is there and new enough."""

    name: str
    wanted: str
    version: str | None
    problem: str | None


def doctor(
    as_json: options.AsJson = False,
    full: Annotated[bool, typer.Option("--full", help="Also load faiss and torch (seconds), and ask them.")] = False,
) -> None:
    """Say what is installed, and what to do about what is not.

    \b
    Example:
      retrievers doctor
    """
    report = examine(full=full)
    if as_json:
        options.print_json(report)
    else:
        _print(report)
    if not report["dependencies"]["complete"]:
        raise typer.Exit(1)


def examine(*, full: bool) -> dict[str, Any]:
    """What ``doctor --json`` prints."""
    from retrievers import __version__

    core = _requirements(None)
    return {
        "retrievers": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "dependencies": _group(core, "pip install -U tri-retrievers"),
        "extras": {
            extra: {"for": purpose, **_group(_requirements(extra), f"pip install '{_NAME}[{extra}]'")}
            for extra, purpose in _EXTRAS.items()
        },
        "kernels": _kernels(),
        "threads": _threads(full),
        "blas": _blas(),
        "faiss": _faiss(full),
        "torch": _torch(full),
        "hub": _hub(),
        "temporary_files": _temporary_files(),
    }


def _group(found: list[Dependency], mend: str) -> dict[str, Any]:
    complete = all(dependency.problem is None for dependency in found)
    return {"complete": complete, "mend": None if complete else mend, "packages": [asdict(one) for one in found]}


def _requirements(extra: str | None) -> list[Dependency]:
    """What the library, or an extra of it, asks for; an extra within an extra is followed."""
    from importlib import metadata

    try:
        lines = metadata.requires(_NAME) or []
    except metadata.PackageNotFoundError:
        return [Dependency(_NAME, "", None, "not installed as a package: pip install tri-retrievers")]
    found: list[Dependency] = []
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None:
            continue
        name, extras, bounds, marker = match.groups()
        asked = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker or "")
        if (asked.group(1) if asked else None) != extra:
            continue
        if name == _NAME:
            found += [one for inner in (extras or "").split(",") for one in _requirements(inner.strip())]
        else:
            found.append(_dependency(name, bounds.strip()))
    return found


def _dependency(name: str, wanted: str) -> Dependency:
    version = _installed(name)
    if version is None:
        return Dependency(name, wanted, None, "not installed")
    for operator, bound in _BOUND.findall(wanted):
        have, want = _release(version, bound)
        fits = {">=": have >= want, "<=": have <= want, "==": have == want, "!=": have != want}
        fits |= {"<": have < want, ">": have > want}
        if not fits[operator]:
            return Dependency(name, wanted, version, f"{version} is installed, and {wanted} is needed")
    return Dependency(name, wanted, version, None)


def _release(first: str, second: str) -> tuple[list[int], list[int]]:
    """Two versions as numbers of equal length."""
    parts = [[int(n) for n in re.findall(r"\d+", re.split(r"[^0-9.]", version)[0])] for version in (first, second)]
    length = max(map(len, parts))
    return parts[0] + [0] * (length - len(parts[0])), parts[1] + [0] * (length - len(parts[1]))


def _kernels() -> dict[str, Any]:
    mend = f"install a C compiler, then: pip install --force-reinstall --no-deps --no-binary {_NAME} {_NAME}"
    try:
        from retrievers.indexes import kernels
    except ImportError as error:
        return {"compiled": False, "why": str(error), "mend": "install what is needed"}
    if kernels.compiled():
        narrow = "int16 with AVX2" if kernels.bytes_level() else "float32"
        late = (narrow, "bfloat16 with AVX-512", "bfloat16 with AMX")[kernels.maxsim_level()]
        return {"compiled": True, "late_interaction": late, "why": None, "mend": None}
    if os.environ.get("RETRIEVERS_KERNELS") == "numpy":
        return {"compiled": False, "why": "RETRIEVERS_KERNELS=numpy is set", "mend": "unset it"}
    return {"compiled": False, "why": "the extension was not built", "mend": mend}


def _threads(full: bool) -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    value: dict[str, Any] = {"processors": os.cpu_count(), "usable": usable}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        value[name] = os.environ.get(name)
    if full and _installed("torch"):
        import torch

        value["torch"] = torch.get_num_threads()
    if full and _installed("faiss-cpu"):
        import faiss

        value["faiss"] = faiss.omp_get_max_threads()
    return value


def _blas() -> str | None:
    try:
        import numpy as np
    except ImportError:
        return None
    shown: Any = np.show_config(mode="dicts")
    blas = shown.get("Build Dependencies", {}).get("blas", {})
    return f"{blas['name']} {blas.get('version', '')}".strip() if "name" in blas else None


def _faiss(full: bool) -> dict[str, Any]:
    version = _installed("faiss-cpu")
    value: dict[str, Any] = {"version": version, "compile_options": None}
    if full and version is not None:
        import faiss

        value["compile_options"] = faiss.get_compile_options().strip()
    return value


def _torch(full: bool) -> dict[str, Any]:
    version = _installed("torch")
    value: dict[str, Any] = {"version": version, "cuda": None, "devices": None}
    if full and version is not None:
        import torch

        value["cuda"] = torch.version.cuda if torch.cuda.is_available() else False
        value["devices"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return value


def _installed(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _hub() -> dict[str, Any]:
    """The hub's settings as its client reads them from the environment."""
    truths = {"1", "on", "yes", "true"}
    offline = any(os.environ.get(name, "").lower() in truths for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{cache}/huggingface")
    return {"offline": offline, "cache": os.environ.get("HF_HUB_CACHE", str(Path(f"{home}/hub").expanduser()))}


def _temporary_files() -> dict[str, Any]:
    import shutil
    import tempfile

    try:
        folder = tempfile.gettempdir()
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        return {"folder": folder, "writable": True, "free": shutil.disk_usage(folder).free, "mend": None}
    except OSError as error:
        mend = "set TMPDIR to a folder with room"
        return {"folder": None, "writable": False, "free": None, "why": str(error), "mend": mend}


def _print(report: dict[str, Any]) -> None:
    line = typer.echo
    line(f"retrievers {report['retrievers']}, Python {report['python']}, {report['platform']}")
    _print_group("needed", report["dependencies"])
    for extra, group in report["extras"].items():
        _print_group(f"[{extra}] {group['for']}", group)
    kernels = report["kernels"]
    line()
    if kernels["compiled"]:
        line(f"kernels      compiled; late interaction in {kernels['late_interaction']}")
    else:
        line(f"kernels      numpy, which is slower ({kernels['why']}): {kernels['mend']}")
    threads = report["threads"]
    known = [f"{threads['usable']} of {threads['processors']} processors"]
    known += [f"{name} {value}" for name, value in threads.items() if name not in ("usable", "processors") and value]
    line(f"threads      {', '.join(known)}")
    line(f"BLAS         {report['blas'] or 'unknown'}")
    torch, faiss = report["torch"], report["faiss"]
    if faiss["version"]:
        line(f"faiss        {faiss['version']}, {faiss['compile_options'] or '--full tells how it was compiled'}")
    if torch["version"]:
        cuda = "--full tells whether it finds a GPU"
        if torch["cuda"] is not None:
            cuda = f"CUDA {torch['cuda']}: {', '.join(torch['devices'])}" if torch["cuda"] else "no CUDA"
        line(f"torch        {torch['version']}, {cuda}")
    hub = report["hub"]
    line(f"model hub    {'offline' if hub['offline'] else 'online'}, cache in {hub['cache']}")
    files = report["temporary_files"]
    if files["writable"]:
        line(f"temporary    {files['folder']} can be written, {options.print_size(files['free'])} free")
    else:
        line(f"temporary    cannot be written ({files['why']}): {files['mend']}")


def _print_group(title: str, group: dict[str, Any]) -> None:
    typer.echo(f"\n{title}: {'complete' if group['complete'] else group['mend']}")
    for package in group["packages"]:
        mark = "ok" if package["problem"] is None else "--"
        typer.echo(f"  {mark}  {package['name']:<22} {package['problem'] or package['version']}")
