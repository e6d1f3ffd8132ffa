"""Other runtimes than torch: the layers of a backbone exported to ONNX Runtime or OpenVINO.

sentence-transformers' own backends stand on optimum, whose releases for ONNX want transformers below 5, and whose releases
for OpenVINO lag behind transformers. So the export is done here, of the layers alone: they are traced once, and from then
on the backbone calls the runtime. Everything around them stays sentence-transformers' (tokenizer, prompts, pooling,
projection), and so does torch's pooled head of sparse models, which never holds ``batch x length x vocabulary`` numbers.
"""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrievers.encoders.numerics import multiplies_bf16, sums_bytes_exactly
from retrievers.errors import EncoderError, MissingDependencyError

#: From arrays ``{name: int64 [batch, length]}`` to hidden states, float32 ``[batch, length, dim]``.
Runner = Callable[[dict[str, NDArray[np.int64]]], NDArray[np.float32]]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OUTPUT = "hidden"
# How far hidden states may be from torch's, as a share of the largest: rounding, and not a graph that is wrong.
_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.25}
_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError)
_GROUP = 32  # inputs with a scale of their own, where products are in 8 bits


def install(reader: Any, backend: str, dtype: str) -> None:
    """Let the backbone of a sentence-transformers ``Transformer`` module compute in another runtime.

    Raises MissingDependencyError where it is not installed, EncoderError where the backbone cannot be exported, or gives
    other hidden states there for texts of other lengths than it was exported with.
    """
    runtime = _require(backend)
    body = getattr(getattr(reader, "model", None), "base_model", None)
    if body is None or getattr(reader, "tokenizer", None) is None:
        raise EncoderError(f"a {type(reader).__name__} has no layers to export: leave backend out")
    if getattr(body.config, "model_type", None) == "xmod":
        raise EncoderError("a model with an adapter for each language runs in torch alone: leave backend out")
    graph = _Body(body).eval()
    given = _example(reader, ["a text", "another, longer text"])
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about branches; the check below tells whether they matter
            runner = _MAKERS[backend](runtime, graph, given, dtype)
        _check(reader, body, runner, backend, dtype)
    except _FAILURES as error:
        if isinstance(error, EncoderError):
            raise
        raise EncoderError(
            f"{type(body).__name__} cannot be exported to {backend} ({type(error).__name__}: {str(error)[:300]}): leave "
            "backend out"
        ) from error
    body.forward = _forward(runner, given, body)


def _require(backend: str) -> Any:
    try:
        if backend == "onnx":
            import onnx  # noqa: F401
            import onnxruntime

            return onnxruntime
        import openvino

        return openvino
    except ImportError as error:
        raise MissingDependencyError(
            f"backend={backend!r} needs a package that is not installed ({error.name}): pip install "
            f"'tri-retrievers[{backend}]'"
        ) from error


class _Body(torch.nn.Module):
    """The layers with nothing but tensors going in and out."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found: torch.Tensor = self.body(input_ids=input_ids, attention_mask=attention_mask, **types)[0]
        return found


def _example(reader: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    features = reader.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return {name: features[name] for name in _INPUTS if name in features}


def _forward(runner: Runner, expected: dict[str, Any], body: Any) -> Callable[..., Any]:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **others: Any) -> Any:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **others}
        foreign = [key for key, value in given.items() if isinstance(value, torch.Tensor) and key not in expected]
        if foreign:
            raise EncoderError(
                f"{type(body).__name__} was exported without {', '.join(foreign)}, which it is given: leave backend out"
            )
        arrays = {}
        for key in expected:
            value = given.get(key)
            if value is None:
                value = torch.ones_like(input_ids) if key == "attention_mask" else torch.zeros_like(input_ids)
            arrays[key] = np.ascontiguousarray(value.to(torch.int64).numpy())
        return BaseModelOutputWithPooling(last_hidden_state=torch.from_numpy(runner(arrays)).to(body.dtype))

    return forward


def _check(reader: Any, body: Any, runner: Runner, backend: str, dtype: str) -> None:
    for texts in (["one"], ["first of three texts " * 12, "", "second"]):
        given = _example(reader, texts)
        with torch.inference_mode():
            wanted = body(**given)[0].float().numpy()
        found = runner({name: value.numpy() for name, value in given.items()})
        kept = given["attention_mask"].numpy().astype(bool)
        if found.shape != wanted.shape:
            raise EncoderError(f"exported to {backend}, {type(body).__name__} gives {found.shape}, not {wanted.shape}")
        apart = float(np.abs(found - wanted)[kept].max() / np.abs(wanted)[kept].max())
        if not apart <= _TOLERANCES[dtype]:
            raise EncoderError(
                f"exported to {backend} in {dtype}, {type(body).__name__} gives hidden states that are {apart:.2g} of the "
                "largest away from torch's: leave backend out"
            )


def _make_onnx(runtime: Any, graph: _Body, given: dict[str, torch.Tensor], dtype: str) -> Runner:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        axes = {name: {0: "batch", 1: "length"} for name in (*given, _OUTPUT)}
        # The older exporter, by tracing: it needs no further package, and takes a second where the other takes eight.
        torch.onnx.export(
            graph,
            tuple(given.values()),
            str(path),
            input_names=list(given),
            output_names=[_OUTPUT],
            dynamic_axes=axes,
            dynamo=False,
        )
        if dtype == "int8":
            path = _quantized(path)
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(arrays: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run([_OUTPUT], {name: arrays[name] for name in names})[0]
        return found

    return run


def _quantized(path: Path) -> Path:
    """Weights of matrix products in int8 with a scale for each output; their inputs with one scale, as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready, small = path.with_name("ready.onnx"), path.with_name("int8.onnx")
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    quantize_dynamic(
        ready,
        small,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=not sums_bytes_exactly(),
    )
    return small


def _make_openvino(runtime: Any, graph: _Body, given: dict[str, torch.Tensor], dtype: str) -> Runner:
    model = runtime.convert_model(graph, example_input=given)
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
    }
    if dtype == "int8":
        _compress(runtime, model)
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _GROUP
        if multiplies_bf16():  # the smaller weights stay, and products of 16 bits are as fast and more exact
            settings["INFERENCE_PRECISION_HINT"] = "bf16"
    compiled = runtime.Core().compile_model(model, "CPU", settings)
    names = [one.any_name for one in compiled.inputs]
    requests = threading.local()  # a request serves one call at a time

    def run(arrays: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        request = getattr(requests, "request", None)
        if request is None:
            request = requests.request = compiled.create_infer_request()
        found = request.infer({name: arrays[name] for name in names}, share_inputs=True)
        return np.array(found[0], dtype=np.float32)

    return run


def _compress(runtime: Any, model: Any) -> None:
    """Weights of matrix products in int8 with a scale for each output; OpenVINO reads a product with a scale as such."""
    from openvino import opset13 as ops

    for product in model.get_ops():
        if product.get_type_name() != "MatMul":
            continue
        source = product.input_value(1).get_node()
        if source.get_type_name() != "Constant" or len(source.shape) != 2:
            continue
        weights = np.asarray(source.data, dtype=np.float32)
        outputs_first = bool(product.get_attributes()["transpose_b"])
        scales = np.maximum(np.abs(weights).max(axis=1 if outputs_first else 0, keepdims=True), 1e-12) / 127
        whole = ops.constant(np.rint(weights / scales).astype(np.int8))
        wide = ops.convert(whole, np.float32)
        scaled = ops.multiply(wide, ops.constant(scales.astype(np.float32)))
        product.input(1).replace_source_output(scaled.output(0))


_MAKERS: dict[str, Callable[[Any, _Body, dict[str, torch.Tensor], str], Runner]] = {
    "onnx": _make_onnx,
    "openvino": _make_openvino,
}
