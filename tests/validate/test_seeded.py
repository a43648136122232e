"""What a seeded bundle is made of is what the pipeline makes, and its kernels travel without it."""

from pathlib import Path

import pytest
import torch

from export.kernels.compile import Binary, Refused
from export.params import load_params
from export.recipes import calibrate, encode
from pi05_runtime.errors import EngineError
from pi05_runtime.lock import Lock
from pi05_runtime.staging import write_file
from tests.pipeline import ROOT
from tests.validate.conftest import CHIP, PROFILE, TARGET, TINY
from validate.benchmark import kernels, maker, seeded
from validate.benchmark.__main__ import main
from validate.benchmark.kernels import Compiled, KernelsFile, read_kernels
from validate.benchmark.results import BenchmarkError


def test_codes_and_scales_are_those_of_the_pipeline() -> None:
    weights = seeded.seeded_weights(TINY, "cpu")
    interface = seeded.interface_of(PROFILE, TINY)
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(2, 3, 28, 28, generator=generator) for _ in range(2)]
    module = seeded.components(weights, TINY, interface, "cpu")["vision"]
    with torch.no_grad(), seeded.recorded(module) as ranges:
        for one in images:
            module(one)
    names = seeded.quantizable(module)
    assert ranges.keys() == set(names) and "patch_embedding" not in names
    own = seeded.Component("vision", module, ranges)
    quantized = calibrate(module, names, "fp8", lambda: iter([{"images": one} for one in images]))
    for name in names:
        layer, expected = own.linear(name), encode(quantized.get_submodule(name), name, "fp8")
        assert layer.fp8 and expected.input_scale is not None
        assert (
            layer.scale == expected.weight_scale.item() and layer.input_scale == expected.input_scale.item()
        )
        assert layer.weight.t().contiguous().view(torch.uint8).numpy().tobytes() == expected.codes


def test_kernels_travel(tmp_path: Path) -> None:
    wanted = kernels.wanted(CHIP, TINY, PROFILE, "bf16")
    binary = Binary(b"code", "entry", 1, 128, 64, 0, {"HGMMA": 2}, True)
    compiled = [Compiled(wanted[0], binary, None), Compiled(wanted[1], None, "it spills")]
    path = tmp_path / "kernels"
    write_file(path, kernels.pack(KernelsFile(TARGET, Lock("triton", "3.9.0", "9.0"), tuple(compiled))))
    found = read_kernels(path, TARGET).kernels
    assert found == {wanted[0]: binary, wanted[1]: Refused("it spills")}
    with pytest.raises(BenchmarkError, match="kernels of sm90-plan found, sm110-plan expected"):
        read_kernels(path, "sm110-plan")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BenchmarkError, match="compile it again"):
        read_kernels(path, TARGET)


def test_a_kernel_that_was_not_compiled_is_named(tmp_path: Path) -> None:
    weights, params = seeded.seeded_weights(TINY, "cpu"), load_params(ROOT / "params.yaml")
    lock, tokenizer = Lock("triton", "3.9.0", "9.0"), ROOT / "demo" / "tokenizer.model"
    made = maker.Maker(TINY, weights, "cpu", tokenizer, TARGET, {}, lock, params)
    with pytest.raises(EngineError, match="not among the 0 compiled kernels"):
        made.write(tmp_path / "bundle", "tiny", PROFILE, "fp8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "cpu-ort", "--profile", "C"), "give a --bundle for it"),
        (("--target", "sm90-plan", "--profile", "C", "--steps", "4"), r"--steps \[4\] found"),
        (("--target", "cpu-ort", "--bundle", "x", "--repeats", "0"), "--repeats 0 found"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        main(str(tmp_path / "out"), *arguments)
    assert not (tmp_path / "out").exists()
