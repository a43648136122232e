"""Judges facts against a bundle: each target is accepted, or refused with every reason.

Nothing is read of the device here: facts of another device, or of last week, are judged alike.
"""

from collections.abc import Collection

from pi05_runtime.doctor import rules
from pi05_runtime.doctor.device import Facts
from pi05_runtime.doctor.verdict import Accepted, Reason, Refused, Verdict
from pi05_runtime.errors import TargetError
from pi05_runtime.manifest import Manifest
from pi05_runtime.targets import TARGETS, find_target


def judge(facts: Facts, manifest: Manifest, target: str, present: Collection[str] = ()) -> Verdict:
    """Whether the device can run the bundle's own engines for `target`.

    present: files of the bundle that the device has already, which need no more room on its disk.
    """
    if reasons := _device(facts, target):
        return Refused(target, reasons, rebuild=False)
    engines = tuple(rules.engines(facts, manifest, target))
    room = (*rules.memory(facts, manifest, target), *rules.disk(facts, manifest, target, present))
    if engines or room:
        rebuild = not room and rules.can_rebuild(manifest, target)
        return Refused(target, (*engines, *room), rebuild)
    return Accepted(target, (*rules.other_library(facts, manifest, target), *rules.power(facts)))


def judge_all(facts: Facts, manifest: Manifest, present: Collection[str] = ()) -> tuple[Verdict, ...]:
    """Every target of the bundle, then those it lacks that this device could build from it."""
    lacking = [target for target in TARGETS if target not in manifest.targets]
    own = [judge(facts, manifest, target, present) for target in manifest.targets]
    others = [judge(facts, manifest, target, present) for target in lacking]
    return (*own, *(v for v in others if isinstance(v, Refused) and v.rebuild))


def judge_device(facts: Facts, target: str) -> Verdict:
    """Whether the device could run engines for `target` at all, whatever the bundle."""
    if reasons := _device(facts, target):
        return Refused(target, reasons, rebuild=False)
    return Accepted(target, tuple(rules.power(facts)))


def choose(facts: Facts, manifest: Manifest, present: Collection[str] = ()) -> str:
    """The target to run: the best of those that are accepted, or whose engines can be rebuilt here.

    What measured best on the device would be best. Until such measurements exist, a target with an
    accelerator goes before the CPU, even if its engines are to be rebuilt: no robot gets its CPU for its GPU
    unasked. Otherwise what is accepted goes first, and then the bundle's order decides.
    Errors: TargetError with every reason if there is none.
    """
    verdicts = judge_all(facts, manifest, present)
    possible = [v for v in verdicts if isinstance(v, Accepted) or v.rebuild]
    if not possible:
        raise TargetError(
            f"the bundle {manifest.name} {manifest.version} has no target for this device:\n"
            + "\n".join(f"{v.target}: {r}" for v in verdicts if isinstance(v, Refused) for r in v.reasons)
        )

    def order(verdict: Verdict) -> tuple[bool, bool]:
        on_cpu = find_target(verdict.target).compute_capability is None
        return on_cpu, isinstance(verdict, Refused)

    return min(possible, key=order).target


def _device(facts: Facts, target: str) -> tuple[Reason, ...]:
    """A wrong chip stands alone: what would mend the rest would not help."""
    if reasons := (*rules.known(target), *rules.chip(facts, target)):
        return reasons
    return (*rules.driver(facts, target), *rules.cuda_python(facts, target), *rules.library(facts, target))
