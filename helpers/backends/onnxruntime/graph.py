"""What an ONNX graph takes and gives, and whether `config.pbtxt` says the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnxruntime as ort
from configuration import Configuration, Spec, Specs, quoted

DEFAULT_MAX_BATCH_SIZE = 4  # the server's own default for auto-completion
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
TRITON_TYPES = {
    **{f"tensor({n})": f"TYPE_{n.upper()}" for n in ("bool", "string", *INTEGERS)},
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}


def specs(nodes: Iterable[Any]) -> Specs:
    """Describe a graph's tensors; a dimension that has a name, or none, becomes -1."""
    return {
        node.name: Spec(
            TRITON_TYPES.get(node.type, node.type),
            [dim if isinstance(dim, int) else -1 for dim in node.shape],
        )
        for node in nodes
    }


def graph_inputs(session: ort.InferenceSession) -> Specs:
    """Describe what a graph can be given, and so its overridable initializers too."""
    return specs([*session.get_inputs(), *session.get_overridable_initializers()])


def is_partial(config: Configuration) -> bool:
    """Tell whether the configuration leaves a tensor, or a part of one, out."""
    inputs, outputs = config.config["input"], config.config["output"]
    return not (inputs and outputs) or any(
        tensor["data_type"] == "TYPE_INVALID" or not tensor["dims"]
        for tensor in [*inputs, *outputs]
    )


def complete(config: Configuration, session: ort.InferenceSession) -> None:
    """Fill in what is left out, by the rules of the C++ backend.

    A graph can batch where the first dimension of all its tensors varies, and then
    `max_batch_size: 0` reads as left out. The setters of Triton's own ModelConfig know
    no `reshape`: this writes to the configuration itself.
    """
    given = config.config
    inputs, outputs = specs(session.get_inputs()), specs(session.get_outputs())
    if all(spec.shape[:1] == [-1] for spec in [*inputs.values(), *outputs.values()]):
        given["max_batch_size"] = given["max_batch_size"] or DEFAULT_MAX_BATCH_SIZE
        if given["max_batch_size"] > 1 and "sequence_batching" not in given:
            given.setdefault("dynamic_batching", {})
    for name in config.sequence_inputs():
        inputs.pop(name, None)
    for kind, known in ("input", inputs), ("output", outputs):
        listed = given[kind] or [{"name": name} for name in known]
        given[kind] = [completed(config, kind, tensor, known) for tensor in listed]


def completed(
    config: Configuration, kind: str, tensor: dict[str, Any], known: Specs
) -> dict[str, Any]:
    """Add the type and the dims that a tensor's entry lacks."""
    name = tensor["name"]
    spec = known_spec(config, kind, name, known)
    if spec.data_type not in TRITON_TYPES.values():
        message = f"Triton's Python backend has no type for {spec.data_type}"
        raise config.refusal(message, name)
    dims = spec.shape[1:] if config.batching else spec.shape
    found: dict[str, Any] = {"data_type": spec.data_type, "dims": dims or [1]}
    if config.batching and not dims:
        found["reshape"] = {"shape": []}
    return found | {k: v for k, v in tensor.items() if v not in ("TYPE_INVALID", [])}


def compare(config: Configuration, session: ort.InferenceSession) -> None:
    """Refuse a configuration whose tensors are not the graph's."""
    inputs = config.inputs()
    for name, spec in inputs.items():
        compare_tensor(config, "input", name, spec, graph_inputs(session))
    for node in session.get_inputs():
        if node.name not in inputs:
            listed = f"the model configuration specifies only {quoted(inputs)}"
            raise config.refusal(f"the model needs it but {listed}", node.name)
    for name, spec in config.outputs().items():
        compare_tensor(config, "output", name, spec, specs(session.get_outputs()))


def compare_tensor(
    config: Configuration, kind: str, name: str, spec: Spec, known: Specs
) -> None:
    """Refuse a tensor whose type or shape is not the graph's."""

    def differs(model: str, mine: str) -> Exception:
        specifies = f"but the model configuration specifies {mine}"
        return config.refusal(f"the model expects {model} {specifies}", name)

    model = known_spec(config, kind, name, known)
    if spec.data_type != model.data_type:
        raise differs(f"data type {model.data_type}", spec.data_type)
    if config.batching and model.shape[:1] != [-1]:
        size = f"max_batch_size {config.config['max_batch_size']}"
        cure = "set it to 0, for the model's first dimension is not variable"
        raise differs(f"shape {model.shape}", f"{size}: {cure}")
    if not fits(spec.shape, model.shape, exact=kind == "output"):
        note = ", the first for the batch" if config.batching else ""
        raise differs(
            f"{len(model.shape)} dimensions (shape {model.shape})",
            f"{len(spec.shape)} dimensions (shape {spec.shape}{note})",
        )


def fits(shape: list[int], model: list[int], exact: bool) -> bool:
    """Compare shapes: the model's -1 takes any length, a scalar takes dims of 1.

    An output is exact, as in the C++ backend: nobody can promise more than the model.
    """
    if not model:
        return all(dim == 1 for dim in shape)
    return len(shape) == len(model) and all(
        mine == dim or (dim == -1 and not exact)
        for mine, dim in zip(shape, model, strict=True)
    )


def known_spec(config: Configuration, kind: str, name: str, known: Specs) -> Spec:
    """Find a configured tensor in the graph."""
    if name not in known:
        message = f"specifies this {kind} but the model has {quoted(known)}"
        raise config.refusal(f"the model configuration {message}", name)
    return known[name]
