"""Prints every gate of the current pipeline, passed or not, as one table: `python -m validate.report`."""

from export.artifacts import ArtifactError
from export.engine import read_record
from export.gates import CLOSED_LOOP, GATES, expectation, read_result, require_acted
from export.params import Params, load_params
from export.stage import run_stage
from pi05_runtime.errors import GateError
from pi05_runtime.geometry import COMPONENTS

GATE_HEADER = (
    "| target | gate | judged | recipe | output | cosine | floor | relative error | floor | threshold | |"
)
ACTED_HEADER = "| target | gate | judged | suite | solved | lost to the reference | won | divergence | |"
ENGINE_HEADER = "| target | engine | recipe | linear layers by precision | attempts |"
NOT_RUN, FAIL = "**did not run**", "**FAIL**"


def main() -> None:
    params = load_params()
    table = _header(GATE_HEADER)
    for target in params.targets:
        for gate in GATES:
            table += _rows(params, target, gate)
    if targets := params.gates.closed_loop.targets:
        table += ["", *_header(ACTED_HEADER), *(_acted(params, target) for target in targets)]
    print("\n".join(table))
    if engines := _engines(params):
        print("\n".join(["", *_header(ENGINE_HEADER), *engines]))
    if any(mark in row for row in table for mark in (NOT_RUN, FAIL)):
        print("not every gate passed: no bundle is made, and one in artifacts/bundle is an earlier one")


def _rows(params: Params, target: str, gate: str) -> list[str]:
    try:
        recipe, threshold = expectation(params, target, gate)
        result = read_result(target, gate)
    except (ArtifactError, GateError):
        return [f"| {target} | {gate} | | | | | | | | | {NOT_RUN} |"]
    # A result of another recipe or threshold is left from before a change, and says nothing here.
    if (result.recipe, result.threshold) != (recipe, threshold):
        return [f"| {target} | {gate} | | {recipe} | | | | | | {threshold} | {NOT_RUN} |"]
    return [
        f"| {target} | {gate} | {result.judged} | {recipe} | {name} | {m.cosine:.6f} | {m.floor_cosine:.6f} "
        f"| {m.error:.2e} | {m.floor_error:.2e} | {threshold} "
        f"| {'pass' if m.cosine >= threshold else FAIL} |"
        for name, m in result.measured.items()
    ]


def _acted(params: Params, target: str) -> str:
    try:
        a = require_acted(params, target)
    except (ArtifactError, GateError) as error:
        return f"| {target} | {CLOSED_LOOP} | | | | | | | {FAIL}: {error} |"
    solved = f"{a.successes}/{a.scenes}"
    return (
        f"| {target} | {CLOSED_LOOP} | {a.judged} | {a.suite} | {solved} | {a.lost} | {a.won} "
        f"| {a.divergence:.3g} | pass |"
    )


def _engines(params: Params) -> list[str]:
    """A row for each engine that was compiled: what its layers run in, and what its builder went through."""
    rows: list[str] = []
    for target in params.targets:
        for network in dict.fromkeys((*COMPONENTS, *params.networks(target))):
            try:
                record = read_record(target, network)
            except ArtifactError:
                continue  # the gates' table says what did not run
            if record.folder == "engine":
                layers = ", ".join(f"{count} {name}" for name, count in sorted(record.layers.items()))
                attempts = "; ".join(f"level {a.optimization_level}: {a.outcome}" for a in record.attempts)
                recipes = ", ".join(record.recipes.values())
                rows.append(f"| {target} | {network} | {recipes} | {layers} | {attempts} |")
    return rows


def _header(titles: str) -> list[str]:
    return [titles, "|" + "---|" * (titles.count("|") - 1)]


if __name__ == "__main__":
    run_stage(main)
