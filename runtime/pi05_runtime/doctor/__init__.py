"""The doctor: what this device is, and which targets of a bundle it can run, with the reason where it cannot.

Reading (reading.py), what was read (device.py) and judging (judging.py) are apart, so that a fleet can judge
devices from their facts, and tests a Thor that is not there.
"""

from pathlib import Path

import msgspec

from pi05_runtime.doctor.device import Facts as Facts
from pi05_runtime.doctor.judging import choose as choose
from pi05_runtime.doctor.judging import judge as judge
from pi05_runtime.doctor.judging import judge_all, judge_device
from pi05_runtime.doctor.reading import facts as facts
from pi05_runtime.doctor.table import device_lines, verdict_lines
from pi05_runtime.doctor.verdict import Accepted as Accepted
from pi05_runtime.doctor.verdict import Reason as Reason
from pi05_runtime.doctor.verdict import Refused as Refused
from pi05_runtime.doctor.verdict import Verdict as Verdict
from pi05_runtime.manifest import Manifest, read_manifest
from pi05_runtime.targets import TARGETS


class Diagnosis(msgspec.Struct, frozen=True):
    """`pi05 doctor --json`."""

    facts: Facts
    verdicts: tuple[Verdict, ...]


def report(bundle: Path | None, root: Path, as_json: bool) -> bool:
    """Prints what this device is and a verdict a target; returns whether any was accepted.

    bundle: whose targets are judged; without one all that this release knows are, by chip and library alone.
    root: the folder that bundles are kept in. Errors: BundleError for what is no bundle.
    """
    manifest = None if bundle is None else read_manifest(bundle)
    found = facts(root)
    if bundle is None or manifest is None:
        verdicts = tuple(judge_device(found, target) for target in TARGETS)
    else:
        verdicts = judge_all(found, manifest, _present(bundle, manifest))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(Diagnosis(found, verdicts))).decode())
    else:
        print("\n".join((*device_lines(found), "", *verdict_lines(verdicts))))
    return any(isinstance(verdict, Accepted) for verdict in verdicts)


def _present(bundle: Path, manifest: Manifest) -> list[str]:
    """Files of the bundle that are there in full size. Whether they are intact is not for a doctor."""
    return [
        n for n, f in manifest.files.items() if (p := bundle / n).is_file() and p.stat().st_size == f.size
    ]
