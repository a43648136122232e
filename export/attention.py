"""ONNX's own Attention operator in the graph for TensorRT, where a builder takes it.

The traced graph writes attention out as product, fp32 softmax and product, which every TensorRT parses;
this replaces each such group by one Attention node, which TensorRT 10.14 and newer compile to one fused
kernel. Only the graph for TensorRT is changed: the CPU's twin stays written out.

The scale is multiplied into the queries in fp32, before the operator, for which 1 is left: the operator
itself would round the scale's root to bf16 and multiply both sides by it. For Gemma's 1/16 that is exact, for
the vision tower it rounds the queries once more. The precision of the softmax is not stated, since TensorRT
refuses an Attention that states one.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from pi05_runtime.errors import EngineError

OPSET, IR = 23, 11
"""The first that know Attention."""


@dataclass(frozen=True)
class Group:
    """Nodes of one written-out attention, and what goes in and comes out of them. scale: name of an fp32
    scalar. bias: name of the fp32 bias, None without a mask. shared: one key/value head serves all queries,
    which are [heads, n, d], keys and values [m, d]; else all of them are [batch, heads, n, d]."""

    nodes: tuple[NodeProto, ...]
    q: str
    k: str
    v: str
    scale: str
    bias: str | None
    shared: bool
    output: str


def use_native_attention(model: ModelProto) -> ModelProto:
    """The same bf16 model with every written-out attention as one Attention node.

    Errors: EngineError for a softmax that is not part of the attention that export.graph traces.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    groups = [_match(n, producers, readers) for n in model.graph.node if n.op_type == "Softmax"]
    replaced = {node.name for group in groups for node in group.nodes}
    last = {group.nodes[-1].name: group for group in groups}

    native = ModelProto()
    native.CopyFrom(model)
    del native.graph.node[:], native.graph.value_info[:]
    masks: set[str] = set()
    for node in model.graph.node:
        if node.name in last:
            group = last[node.name]
            if group.bias is not None and group.bias not in masks:
                masks.add(group.bias)
                _extend(native, *_mask(group, group.bias))
            _extend(native, *_native(group))
        elif node.name not in replaced:
            native.graph.node.append(node)
    for opset in native.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, OPSET)
    native.ir_version = max(native.ir_version, IR)
    return native


def _extend(model: ModelProto, nodes: list[NodeProto], constants: list[TensorProto]) -> None:
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)


def _match(softmax: NodeProto, producers: dict[str, NodeProto], readers: dict[str, list[NodeProto]]) -> Group:
    def check(node: NodeProto | None, op: str) -> NodeProto:
        if node is None or node.op_type != op or len(readers[node.output[0]]) != 1:
            found = "a port" if node is None else f"{node.op_type} {node.name}"
            raise EngineError(
                f"{softmax.name}: {found} found where attention has a {op} that nothing else reads; set "
                "`export.attention` to decomposed"
            )
        return node

    def reader(node: NodeProto, op: str) -> NodeProto:
        return check(readers[node.output[0]][0], op)

    above = producers.get(softmax.input[0])
    add = check(above, "Add") if above is not None and above.op_type == "Add" else None
    scaled = check(above if add is None else producers.get(add.input[0]), "Mul")
    wide = check(producers.get(scaled.input[0]), "Cast")
    scores = check(producers.get(wide.input[0]), "MatMul")
    transposed = check(producers.get(scores.input[1]), "Transpose")
    narrow = reader(check(softmax, "Softmax"), "Cast")
    mixed = reader(narrow, "MatMul")
    nodes = (transposed, scores, wide, scaled, *([] if add is None else [add]), softmax, narrow, mixed)
    return Group(
        nodes,
        q=scores.input[0],
        k=transposed.input[0],
        v=mixed.input[1],
        scale=scaled.input[1],
        bias=None if add is None else add.input[1],
        shared=len(transposed.attribute[0].ints) == 2,
        output=mixed.output[0],
    )


def _mask(group: Group, bias: str) -> tuple[list[NodeProto], list[TensorProto]]:
    """(nodes, constants) of a bias [m] as the mask `<bias>.mask`, bf16 [1, 1, n, m]: TensorRT documents that
    only the first two dimensions may be left to broadcast. Made once, and shared by all layers."""
    rows, shape = f"{bias}.rows", f"{bias}.mask_shape"
    narrow, unrolled = f"{bias}.bf16", f"{bias}.rank4"
    ones, one, axes = (
        _constant(f"{bias}.{n}", v) for n, v in (("ones", [1, 1]), ("one", [1]), ("axes", [0, 1, 2]))
    )
    return [
        _node("Shape", [group.q], rows, start=-2, end=-1),
        _node("Concat", [ones.name, rows, one.name], shape, axis=0),
        _node("Cast", [bias], narrow, to=TensorProto.BFLOAT16),
        _node("Unsqueeze", [narrow, axes.name], unrolled),
        _node("Expand", [unrolled, shape], f"{bias}.mask"),
    ], [ones, one, axes]


def _native(group: Group) -> tuple[list[NodeProto], list[TensorProto]]:
    """(nodes, constants) that stand for `group`."""
    y = group.output
    q, k, v = f"{y}.queries", group.k, group.v
    nodes = [
        _node("Cast", [group.q], f"{y}.queries_fp32", to=TensorProto.FLOAT),
        _node("Mul", [f"{y}.queries_fp32", group.scale], f"{y}.queries_scaled"),
        _node("Cast", [f"{y}.queries_scaled"], q, to=TensorProto.BFLOAT16),
    ]
    mask = [] if group.bias is None else [f"{group.bias}.mask"]
    if not group.shared:
        return [*nodes, _node("Attention", [q, k, v, *mask], y, scale=1.0)], []
    first, second = _constant(f"{y}.axis", [0]), _constant(f"{y}.axes", [0, 1])
    rank4 = {name: f"{y}.{name}_rank4" for name in ("q", "k", "v", "y")}
    return [
        *nodes,
        _node("Unsqueeze", [q, first.name], rank4["q"]),
        _node("Unsqueeze", [k, second.name], rank4["k"]),
        _node("Unsqueeze", [v, second.name], rank4["v"]),
        _node("Attention", [rank4["q"], rank4["k"], rank4["v"], *mask], rank4["y"], scale=1.0),
        _node("Squeeze", [rank4["y"], first.name], y),
    ], [first, second]


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs, [output], f"{output}.{op}", **attributes)


def _constant(name: str, values: list[int]) -> TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
