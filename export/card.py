"""The model card: what a person on the Hub reads of a bundle before any robot does, all from its manifest."""

import yaml

from export.gates import GATES
from export.signing import CARD, UNSIGNED
from pi05_runtime.geometry import COMPONENTS
from pi05_runtime.manifest import Manifest
from pi05_runtime.signature import FILE

TAGS = ["pi05", "robotics", "tensorrt"]


def model_card(manifest: Manifest, repo: str, key: str) -> str:
    """README.md of the published bundle. key: fingerprint of its signer."""
    m, robot = manifest, manifest.interface
    front = {"license": m.license.lower(), "library_name": "pi05-runtime", "pipeline_tag": "robotics"}
    cameras = ", ".join(f"`{camera}`" for camera in robot.cameras)
    return f"""---
{yaml.safe_dump({**front, "tags": TAGS}, sort_keys=False)}---

# {m.name} {m.version}

A [pi0.5](https://github.com/Physical-Intelligence/openpi) robot policy as a bundle of engines: camera images,
the robot's state and a sentence in, a chunk of actions out. `pi05-runtime` loads it, without PyTorch.

```sh
pi05 pull {repo}@v{m.version} --target auto
```

| | |
|---|---|
| cameras, in this order | {cameras} |
| prompt | format `{robot.prompt_format}`, at most {m.prompt_buckets[-1]} tokens |
| state | {robot.state_dims} dimensions, in the robot's own units |
| actions | {robot.horizon} of {robot.action_dims} dimensions, in the robot's own units |
| denoise steps | {m.steps[0]} to {m.steps[-1]}, {m.default_steps} unless told otherwise |
| checkpoint | layout `{m.source.layout}`; its files' sha256 are in `manifest.json` |
| calibration | {m.calibration.observations} observations |

## Targets

{_table("target | library | compute capability | vision | prefill | denoise | MB", _targets(m))}

Recipes are those of the engines as built. A robot fetches the files of its own target only.

## Gates

{_table("target | gate | judged | cosine | threshold", _gates(m))}

The cosine against the BF16 reference over held-out observations: of a component the smallest, of actions
that of all observations as one vector. `engine`: the engine itself was judged. `twin`: its chip was not at
hand, so the same codes and scales were judged on a CPU, and the engine itself is judged by `pi05 selftest`
on its device.

{_acted(m)}## Intended use

To act on the robot, with the cameras and in the tasks that the checkpoint was trained for. The gates say how
close these engines are to that checkpoint in BF16, and nothing of how well it does a task or how safe it is:
limits on speed, force and workspace are the robot's to enforce, not the policy's. Licence: {m.license}.

## Signature

`{FILE}` is an [OpenSSF model signing](https://github.com/sigstore/model-transparency) signature over every
file but {" and ".join(f"`{name}`" for name in UNSIGNED)}, by the key with fingerprint `{key}`.
Anyone can edit a `{CARD}`: compare the fingerprint with what the publisher said elsewhere.
"""


def _targets(m: Manifest) -> list[list[object]]:
    rows: list[list[object]] = []
    for target, entry in m.targets.items():
        recipes = {part: recipe for e in entry.engines.values() for part, recipe in e.recipes.items()}
        size = sum(m.files[name].size for name in entry.files) / 1e6
        lock = entry.lock
        library = f"{lock.library} {lock.version}"
        parts = [recipes[component] for component in COMPONENTS]
        rows.append([target, library, lock.compute_capability or "none", *parts, f"{size:.1f}"])
    return rows


def _gates(m: Manifest) -> list[list[object]]:
    return [
        [target, name, gate.judged, f"{gate.cosine:.6f}", gate.threshold]
        for target, gates in m.gates.items()
        for name in GATES
        for gate in [gates[name]]
    ]


def _acted(m: Manifest) -> str:
    if not m.closed_loop:
        return ""
    titles = "target | judged | suite | scenes | solved | lost to the reference | won | divergence"
    rows: list[list[object]] = [
        [target, a.judged, a.suite, a.scenes, a.successes, a.lost, a.won, f"{a.divergence:.3g}"]
        for target, a in m.closed_loop.items()
    ]
    return f"""## In a simulator

{_table(titles, rows)}

The same scenes, from the same noise, as the BF16 reference. Divergence: 99% of the executed chunks differ
from the reference's, on its own observations, by no more, as the mean over their actions and dimensions.

"""


def _table(titles: str, rows: list[list[object]]) -> str:
    lines = [titles.split(" | "), ["---"] * len(titles.split(" | ")), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
