"""ONNX to a TensorRT network: parsed, joined where two components are built as one, and held to its ports."""

from collections.abc import Iterable, Sequence
from typing import Any

from pi05_runtime.build.contract import Part, RungError
from pi05_runtime.errors import EngineError
from pi05_runtime.geometry import Port, Signature

DTYPES = {"float32": "FLOAT", "int32": "INT32", "activation": "BF16"}


def create_network(trt: Any, builder: Any) -> Any:
    """A strongly typed network: TensorRT 10 has a flag for it, which later versions need no more."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def parse_parts(trt: Any, network: Any, log: Any, parts: Sequence[Part], alive: list[Any]) -> None:
    """Reads the ONNX of `parts` into `network`, an output of one joined to the next one's input of that name.

    alive: takes the parsers, which own the weights. Errors: RungError with all that a parser complains of.
    """
    for part in parts:
        before = int(network.num_layers)
        produced = {tensor.name: tensor for tensor in _outputs(network)}
        parser = trt.OnnxParser(network, log)
        alive.append(parser)
        _name_apart(network, parts[0].component)
        if not parser.parse_from_file(part.onnx):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise RungError(
                f"{part.component} ({part.table.recipe}): {trt.__name__} {trt.__version__} does not parse "
                f"its ONNX: {errors or 'no reason given'}",
                f"{part.onnx}: {errors}; see that its files are whole, export it again, or install the "
                "version of the target's lock",
                skips_recipe=True,
            )
        for tensor in list(_inputs(network)):
            if tensor.name in produced:
                _join(network, before, tensor, produced[tensor.name])


def check_ports(network: Any, expected: Signature) -> None:
    """Errors: EngineError unless the network's inputs and outputs are `expected`: names, types and sizes."""
    for kind, tensors, ports in (
        ("inputs", _inputs(network), expected.inputs),
        ("outputs", _outputs(network), expected.outputs),
    ):
        has = {t.name: (t.dtype.name, tuple(int(size) for size in t.shape)) for t in tensors}
        wants = {port.name: (DTYPES[port.dtype], _dimensions(port)) for port in ports}
        if has != wants:
            raise EngineError(f"{kind} {has} found in the ONNX, {wants} expected; export the component again")


def _name_apart(network: Any, component: str) -> None:
    """Puts `component` before the names in `network` that lack it: those of its outputs, and those that the
    parser makes up, the same for every ONNX. A second parser fails on a name that is taken."""
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        for named in (layer, *(layer.get_output(j) for j in range(layer.num_outputs))):
            if not named.name.startswith(f"{component}."):
                named.name = f"{component}.{named.name}"


def _join(network: Any, before: int, wanted: Any, produced: Any) -> None:
    """Feeds `produced` to every layer from number `before` on that reads the input `wanted`."""
    for i in range(before, network.num_layers):
        layer = network.get_layer(i)
        for j in range(layer.num_inputs):
            tensor = layer.get_input(j)
            if tensor is not None and tensor.name == wanted.name:
                layer.set_input(j, produced)
    network.unmark_output(produced)
    network.remove_tensor(wanted)


def _inputs(network: Any) -> Iterable[Any]:
    return (network.get_input(i) for i in range(network.num_inputs))


def _outputs(network: Any) -> Iterable[Any]:
    return (network.get_output(i) for i in range(network.num_outputs))


def _dimensions(port: Port) -> tuple[int, ...]:
    """The port's sizes as a parsed network has them: -1 where a bucket decides."""
    return tuple(-1 if isinstance(size, str) else size for size in port.shape)
