"""The ladder: what to try, and what to try next when a compiler crashes, hangs or disobeys.

Known faults that a rung can avoid: Myelin's fusion of RMS norms crashes on Thor at optimization level 3 and
above, FP8 and FP4 builds that end in a segmentation fault, NVFP4 builds that hang on TensorRT 10.13. So
levels are tried downwards, first with the wanted recipes, then with the fallbacks. Each failed rung is
announced and recorded: nothing falls back silently.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pi05_runtime.build.contract import Attempt, BuildOptions, Built, Done, Refused, Request
from pi05_runtime.build.rungs import list_rungs
from pi05_runtime.child import Fault, run_child
from pi05_runtime.errors import EngineError, TargetError
from pi05_runtime.geometry import Signature
from pi05_runtime.signals import ended_by_signals

WORKER = "pi05_runtime.build.worker"
_ANSWER: msgspec.json.Decoder[Done | Refused] = msgspec.json.Decoder(Done | Refused)


def build_engine(
    target: str,
    variants: Mapping[str, Sequence[Path]],
    signatures: Mapping[str, Signature],
    buckets: Sequence[int],
    options: BuildOptions,
    out: Path,
) -> Built:
    """Writes `<component>.engine`, layers.json and layers.md to the folder `out`.

    variants: component -> its ONNX folders in order of preference; vision and prefill together are built as
    one network, `prefix`. signatures: of every component of the policy, and of `prefix` where that is built.
    buckets: prompt lengths, each an optimization profile with fixed shapes.

    Errors: TargetError without the target's library or GPU; EngineError at once for what no rung can change,
    and after the last rung with every attempt. Nothing but a finished engine is left in `out`.
    """
    choices = list_rungs(target, variants, signatures, buckets, options, out)
    out.mkdir(parents=True, exist_ok=True)
    failed: list[Attempt] = []
    detail = ""
    with ended_by_signals():
        for rungs in choices:
            for request in rungs:
                if failed:
                    print(f"trying {_title(target, request)}", file=sys.stderr)
                answer = _climb(target, request, out)
                attempt = _record(request, "built" if isinstance(answer, Done) else answer.reason)
                if isinstance(answer, Done):
                    return _built(request, answer, (*failed, attempt))
                failed.append(attempt)
                detail = answer.detail
                if answer.skips_recipe:
                    break
    raise EngineError(_all_failed(f"{target} {choices[0][0].name}", failed, detail))


def _climb(target: str, request: Request, out: Path) -> Done | Refused:
    """One rung, and what became of it on standard error. Its engine goes to `out` when all of it is there.

    Errors: TargetError or EngineError for what no rung can change.
    """
    with tempfile.TemporaryDirectory(prefix=".build.", dir=out) as scratch:
        attempt = msgspec.structs.replace(request, out=scratch)
        answer = run_child(WORKER, attempt, _ANSWER, request.options.minutes, quiet=False)
        if isinstance(answer, Fault):
            answer = Refused(answer.text)
        if isinstance(answer, Done):
            _keep(Path(scratch), out)
    rung = _title(target, request)
    if isinstance(answer, Done):
        layers = ", ".join(f"{count} {name}" for name, count in answer.evidence.precisions.items())
        took = f"{answer.seconds:g} s, peak {answer.peak_gb:g} GB"
        print(f"{rung}: built in {took}, linear layers {layers}", file=sys.stderr)
    elif answer.ends_build:
        error = TargetError if answer.ends_build == "TargetError" else EngineError
        raise error(f"{target} {request.name}: {answer.detail or answer.reason}")
    else:
        print(f"{rung}: {answer.reason}\n{answer.detail}".rstrip(), file=sys.stderr)
    return answer


def _keep(scratch: Path, out: Path) -> None:
    """Moves a finished engine and its evidence, the engine last: where it is, its evidence is."""
    for file in sorted(scratch.iterdir(), key=lambda file: file.suffix == ".engine"):
        file.rename(out / file.name)


def _title(target: str, request: Request) -> str:
    recipes = ", ".join(_recipes(request).values())
    return f"{target} {request.name}, {recipes}, optimization level {request.optimization_level}"


def _recipes(request: Request) -> dict[str, str]:
    return {part.component: part.table.recipe for part in request.parts}


def _record(request: Request, outcome: str) -> Attempt:
    return Attempt(_recipes(request), request.optimization_level, outcome)


def _built(request: Request, done: Done, attempts: tuple[Attempt, ...]) -> Built:
    return Built(
        recipes=_recipes(request),
        attempts=attempts,
        layers=done.evidence.precisions,
        file=f"{request.name}.engine",
        seconds=done.seconds,
        peak_gb=done.peak_gb,
    )


def _all_failed(network: str, failed: Sequence[Attempt], detail: str) -> str:
    lines = [f"{network}: no engine after {len(failed)} attempts"]
    for attempt in failed:
        recipes = ", ".join(attempt.recipes.values())
        lines.append(f"  {recipes}, optimization level {attempt.optimization_level}: {attempt.outcome}")
    lines.append("name a fallback recipe for the component, keep layers at fault in bf16, or raise the limit")
    return "\n".join([*lines, detail] if detail else lines)
