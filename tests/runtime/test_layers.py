"""Engine layers as the libraries write them, and the judgement over them."""

import pytest

from pi05_runtime.build.evidence import Evidence, judge
from pi05_runtime.build.layers import read_layers
from pi05_runtime.errors import EngineError
from pi05_runtime.layer_table import Layer, Table

TACTIC = "TacticName: __myelin_CASK_STUB, StreamId: 0"
NODES = "Metadata: [ONNX Layer: prefill.a.MatMul][ONNX Layer: prefill.a.weight.DequantizeLinear]"
SHAPES = {"x": "33,256", "w": "256,64", "scale": "1", "y": "33,64"}


def rtx_tensor(name: str, dtype: str) -> str:
    shape = SHAPES[name.split("_")[0]]
    return (
        f"{{ Name: {name}, Dimensions: [{shape}], Strides: [256,1], StrideOrder: [1,0], Datatype: {dtype}, "
        "Format: (Linear) Row major linear format }"
    )


def rtx_gemm(x: str, w: str, *, name: str = "prefill.a.MatMul", profile: int = 0) -> str:
    """As TensorRT for RTX 1.7 writes it."""
    label = f" [profile {profile}]" if profile else ""
    return (
        f"Name: {name}{label}_myl{profile}_1, LayerType: gemm, Inputs: [ {rtx_tensor('x', x)}], "
        f"Constants: [ {rtx_tensor('w', w)}, {rtx_tensor('scale', 'Float')}], "
        f"Outputs: [ {rtx_tensor('y', 'BFloat16')}], {TACTIC}, {NODES}"
    )


def trt_gemm(x: str, w: str) -> str:
    """As TensorRT 10 writes it: weights are inputs with a constant's name, and the type has another key."""
    return (
        f"Name: prefill.a.MatMul_myl0_1, LayerType: gemm, Inputs: [ {{ Name: x'.1_4, Dimensions: [33,256], "
        f"Format/Datatype: {x} }}, {{ Name: __mye595_dconst, Dimensions: [256,64], Format/Datatype: {w} }}, "
        "{ Name: __mye574prefill.a.MatMul_alpha, Dimensions: [1], Format/Datatype: Float }], Outputs: [ "
        "{ Name: y, Dimensions: [33,64], Format/Datatype: BFloat16 }], "
        f"TacticName: sm100_xmma_gemm_e4m3e4m3_bf16, StreamId: 0, {NODES}"
    )


def kgen(inputs: str, constants: str) -> str:
    return (
        f"Name: __myl_MulCast_myl0_2, LayerType: kgen, Inputs: [{inputs}], Constants: [{constants}], "
        f"Outputs: [ {rtx_tensor('y', 'BFloat16')}], TacticName: __myl_MulCast_0x12, StreamId: 0, {NODES}"
    )


def evidence(precision: str, *lines: str, profiles: int = 1) -> Evidence:
    table = Table("prefill", precision, (), None, 0.0, (Layer("a", (64, 256), precision, "recipe"),))
    return judge([table], [read_layers(["Layers:", *lines, "Bindings:"])], profiles, "builder log")


def test_a_line_is_read_whole() -> None:
    (layer,) = read_layers([rtx_gemm("FP8", "FP8", profile=1)])
    assert (layer.name, layer.kind) == ("prefill.a.MatMul [profile 1]_myl1_1", "gemm")
    assert [(o.name, o.shape, o.precision) for o in layer.inputs] == [("x", (33, 256), "fp8")]
    assert [o.precision for o in layer.constants] == ["fp8", "fp32"]
    assert [o.precision for o in layer.outputs] == ["bf16"]
    assert layer.nodes == ("prefill.a.MatMul", "prefill.a.weight.DequantizeLinear")
    assert layer.tactic == "__myelin_CASK_STUB"
    assert layer.weight and layer.weight.size == 256 * 64


def test_weights_among_the_inputs_are_told_apart() -> None:
    (layer,) = read_layers([trt_gemm("FP8", "FP8")])
    assert [o.name for o in layer.inputs] == ["x'.1_4", "__mye574prefill.a.MatMul_alpha"]
    assert layer.weight and layer.weight.name == "__mye595_dconst"
    assert layer.tactic == "sm100_xmma_gemm_e4m3e4m3_bf16"


def test_a_long_form_of_type_and_place_is_read() -> None:
    (layer,) = read_layers(
        [
            "Name: a, LayerType: Reformat, Inputs: [ { Name: x, Location: Device, Dimensions: [1,3], "
            "Format/Datatype: Row major linear FP16 format }], Outputs: [ { Name: y, Location: Device, "
            "Dimensions: [1,3], Format/Datatype: Row major Int8 format }], ParameterType: Reformat, "
            "TacticValue: 0x00000000000003e8, StreamId: 0, Metadata: "
        ]
    )
    assert (layer.inputs[0].precision, layer.outputs[0].precision) == ("fp16", "int8")
    assert layer.nodes == ()


@pytest.mark.parametrize(
    ("spelling", "precision"),
    [
        ("FP8", "fp8"),
        ("E4M3", "fp8"),
        ("FP4E2M1", "fp4"),
        ("BFloat16", "bf16"),
        ("BF16", "bf16"),
        ("Half", "fp16"),
        ("Float", "fp32"),
        ("Int4", "int4"),
        ("Int32", "Int32"),
    ],
)
def test_spellings_of_a_precision(spelling: str, precision: str) -> None:
    (layer,) = read_layers([rtx_gemm(spelling, "FP8")])
    assert layer.inputs[0].precision == precision


@pytest.mark.parametrize(
    "line",
    [
        "Name: a, LayerType: gemm",
        "Name: a, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [1], Type: FP8 }], Outputs: []",
    ],
)
def test_words_that_cannot_be_read_are_an_error(line: str) -> None:
    with pytest.raises(EngineError, match="LayerType: gemm"):
        read_layers([line])


@pytest.mark.parametrize("line", [rtx_gemm("FP8", "FP8"), trt_gemm("FP8", "E4M3")])
def test_planned_and_found(line: str) -> None:
    result = evidence("fp8", line)
    assert not result.faults
    assert result.precisions == {"fp8": 1}
    assert "| prefill.a | fp8 | fp8 | gemm |" in result.markdown()


def test_a_layer_that_only_rescales_is_no_product() -> None:
    rescale = kgen(f" {rtx_tensor('x_1', 'BFloat16')}", f" {rtx_tensor('scale_1', 'BFloat16')}")
    assert not evidence("int8", rtx_gemm("Int8", "Int8"), rescale).faults


@pytest.mark.parametrize(
    ("precision", "lines", "profiles", "found"),
    [
        ("fp8", [], 1, "0 of 16384 weights in 0 engine layers"),
        ("fp8", [rtx_gemm("BFloat16", "BFloat16")], 1, "bf16 x bf16"),
        ("fp8", [trt_gemm("Half", "Half")], 1, "fp16, fp32 x fp16"),
        ("fp8", [rtx_gemm("BFloat16", "FP8")], 1, "bf16 x fp8"),
        ("fp8", [rtx_gemm("FP8", "FP8", name="__myl_CastMulFc")], 1, "fp8 x fp8, cast before the product"),
        ("nvfp4", [rtx_gemm("FP8", "FP4E2M1")], 1, "fp8 x fp4"),
        ("int8", [rtx_gemm("FP8", "FP8")], 1, "fp8 x fp8"),
        # One profile of two, then one profile in another type.
        ("fp8", [rtx_gemm("FP8", "FP8")], 2, "16384 of 32768 weights in 1 engine layers"),
        ("fp8", [rtx_gemm("FP8", "FP8"), rtx_gemm("BFloat16", "BFloat16", profile=1)], 2, "bf16 x bf16"),
        # Weights restored by a layer of their own, for a product in bf16.
        ("int8", [kgen("", f" {rtx_tensor('w', 'Int8')}")], 1, "0 of 16384 weights in 0 engine layers"),
        ("int4", [rtx_gemm("BFloat16", "BFloat16")], 1, "bf16 x bf16"),
    ],
)
def test_what_is_not_as_planned(precision: str, lines: list[str], profiles: int, found: str) -> None:
    (fault,) = evidence(precision, *lines, profiles=profiles).faults
    assert (fault.layer, fault.found) == ("prefill.a", found)
    assert str(fault).startswith(f"prefill.a: {found} found, ")
    assert fault.lines == tuple(lines)


def by_profile(*listings: str) -> list[str]:
    """What is wrong with an fp8 layer of which each profile's listing holds one line."""
    table = Table("prefill", "fp8", (), None, 0.0, (Layer("a", (64, 256), "fp8", "recipe"),))
    listed = [read_layers(listing.splitlines()) for listing in listings]
    return [fault.found for fault in judge([table], listed, len(listings), "inspector").faults]


def test_each_profile_holds_the_products() -> None:
    product, other = rtx_gemm("FP8", "FP8"), kgen("", "")
    assert not by_profile(product, f"{product}\n{other}")
    assert by_profile(product, other) == ["0 of 16384 weights in 0 engine layers"]
    assert by_profile(f"{product}\n{product}", other) == ["0 of 16384 weights in 0 engine layers"]
    assert by_profile(product, rtx_gemm("BFloat16", "BFloat16", profile=1)) == ["bf16 x bf16"]


def test_listings_that_do_not_differ_are_one() -> None:
    product = rtx_gemm("FP8", "FP8")
    assert by_profile(product, product) == ["16384 of 32768 weights in 1 engine layers"]
    every = f"{product}\n{rtx_gemm('FP8', 'FP8', profile=1)}"
    assert not by_profile(every, every)
    assert by_profile(product, product, f"{product}\n{kgen('', '')}"), "two listings for three profiles"


def test_weight_only_recipe_may_restore_weights_apart() -> None:
    result = evidence("int4", kgen("", f" {rtx_tensor('w', 'Int4')}"))
    assert not result.faults and result.precisions == {"int4": 1}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_other_layers_are_only_counted(precision: str) -> None:
    assert evidence(precision, rtx_gemm("Half", "Half")).precisions == {"fp16": 1}
    assert evidence(precision).precisions == {"unseen": 1}
    assert not evidence(precision).faults
