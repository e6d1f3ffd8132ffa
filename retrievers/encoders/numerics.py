"""How a model computes: through which runtime, and in which numbers."""

from __future__ import annotations

from typing import Any

from retrievers.errors import EncoderError

#: The numbers that each runtime computes in, by their names in torch.
BACKENDS: dict[str, tuple[str, ...]] = {
    "torch": ("float32", "bfloat16", "float16", "int8"),
    "onnx": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def full_name(dtype: str | None, allowed: tuple[str, ...] = BACKENDS["torch"]) -> str | None:
    """``dtype`` by torch's name for it (``bf16`` is ``bfloat16``); None stays None.

    Raises EncoderError where it is none of ``allowed``.
    """
    if dtype is None:
        return None
    name = _SHORT.get(dtype, dtype)
    if name not in allowed:
        raise EncoderError(f"dtype {dtype!r} is not known: use one of {', '.join(allowed)}")
    return name


def check_backend(backend: str, dtype: str | None) -> str | None:
    """The full name of ``dtype``; raises EncoderError for an unknown runtime, and for numbers that it lacks."""
    if backend not in BACKENDS:
        raise EncoderError(f"backend {backend!r} is not known: use one of {', '.join(BACKENDS)}")
    name = full_name(dtype)
    if name is not None and name not in BACKENDS[backend]:
        has = [other for other, numbers in BACKENDS.items() if name in numbers]
        raise EncoderError(
            f"the backend {backend!r} does not compute in {name} on a processor, but in {', '.join(BACKENDS[backend])}: "
            f"choose one of these, or backend={has[0]!r}"
        )
    return name


def check_sizes(**sizes: int | None) -> None:
    """Raises EncoderError for a size below 1; None is always right."""
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise EncoderError(f"{name} is {value}: it must be 1 or more")


def emulated(dtype: str) -> bool:
    """Whether this processor has to imitate a type of 16 bits, which takes torch about 8 times as long as float32."""
    capabilities = _capabilities()
    if capabilities.get("architecture") != "x86_64" or dtype not in ("bfloat16", "float16"):
        return False
    own = "bf16" if dtype == "bfloat16" else "fp16"
    # Where there is AVX-512, what lacks is converted in registers.
    return not any(capabilities.get(name) for name in ("avx512_f", "avx_ne_convert", f"avx512_{own}", f"amx_{own}"))


def multiplies_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in one instruction."""
    capabilities = _capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def sums_bytes_exactly() -> bool:
    """Whether products of 8-bit numbers are summed in 32 bits; older x86 processors sum pairs in 16, which overflow."""
    capabilities = _capabilities()
    if capabilities.get("architecture") != "x86_64":
        return True
    return any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _capabilities() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found
