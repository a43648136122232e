"""A report with every kind of thing in it: figures that no device has, two of them round."""

from msgspec.structs import replace

from validate.benchmark.results import (
    OVERLAPPED,
    SCHEMA,
    Device,
    Floor,
    Golden,
    Launches,
    Loading,
    Peer,
    Refused,
    Report,
    Run,
    Shape,
    Steps,
    seed_rows,
    summarize,
)

DEVICE = Device(
    name="NVIDIA H100 80GB HBM3",
    chip="H100",
    compute_capability="9.0",
    driver="580.1",
    power_mode=None,
    jetpack=None,
    machine="x86_64",
    processor="A <processor> & more",
    cores=16,
    load=0.4,
    versions={"python": "3.12.3"},
)


def one(ms: float):
    """A thing that always takes `ms`."""
    return summarize([ms] * 4, 300)


def steps(n: int) -> Steps:
    alone = {"vision": one(0.5), "prefill": one(2.0), "denoise": one(0.25 * n)}
    alone[OVERLAPPED] = one(2.125)
    samples = [3.0 + 0.25 * n + 0.001 * i for i in range(100)]
    total = summarize(samples, 300)
    inside = {"preprocess": one(0.125), "decision": one(2.9 + 0.25 * n)}
    rest = total.median_ms - 0.5 - 2.125 - 0.25 * (n - 1)
    floor = 2.0 + 0.1 * n
    distance, paced, capped = total.median_ms / floor, one(4.125 + n), 0.05 + 0.09 * n
    return Steps(n, total, tuple(samples), inside, alone, rest, floor, distance, paced, capped)


def run() -> Run:
    done = (steps(1), steps(10))
    floors = {
        "vision": Floor({"fp8": 411_000_000}, 5_000_000, {"fp8": 10**12}, "operations", 0.4, 0.5, 1.25),
        "prefill": Floor({"fp8": 1_870_000_000}, 10**7, {"fp8": 2 * 10**12}, "operations", 1.6, 2.0, 1.25),
        "denoise": Floor({"fp8": 311_000_000}, 10**7, {"fp8": 10**10}, "memory", 0.1, 0.25, 2.5),
    }
    eager = Peer(
        "LeRobot, eager",
        "bf16",
        None,
        versions={"lerobot": "0.6.1"},
        prepared_s=1.5,
        timings={10: one(390.0)},
        cosine={10: 0.9987},
        agrees=True,
        ratio={10: 70.5},
    )
    absent = Peer("LeRobot, torch.compile", "bf16", "it was stopped after 2.0 minutes")
    return Run(
        name="C fp8",
        target="sm90-plan",
        shape=Shape("C", 2, 532, 20, 10, (224, 224), "seeded weights, seed 0"),
        recipes={"vision": "fp8", "prefill": "fp8", "denoise": "fp8"},
        golden=Golden({1: 0.9981, 10: 0.9979}, 0.995),
        load_s=1.75,
        first_s=0.25,
        loading=Loading(
            {"device": 0.25, "verify": 0.875, "open": 0.625},
            5_000_000_000,
            {"vision": 400_000_000, "prefill": 1_900_000_000, "denoise": 321_000_000},
            2_718_000_000,
        ),
        steps=done,
        floors=floors,
        outside={"images": one(0.0625), "prompt": one(0.125)},
        launches=(
            Launches("vision", "norm1", "norm", 27, 2.0, 0.054, 0.036, None, None, None),
            Launches("denoise", "qkv", "skinny", 18, 8.0, 1.44, 0.964, 2.5, "memory", 3.2),
        ),
        peers=(eager, absent),
        missing=("5 steps: the time limit came first",),
        seed=seed_rows(done),
    )


def report() -> Report:
    refused = Refused("A50 fp8", "cosine 0.42 < 0.995")
    return Report(SCHEMA, "2030-01-01T00:00:00+00:00", True, DEVICE, (run(),), (refused,))


def without_floors(of: Run) -> Run:
    bare = {n: replace(f, bound=None, floor_ms=None, distance=None) for n, f in of.floors.items()}
    return replace(of, floors=bare, steps=tuple(replace(s, floor_ms=None, distance=None) for s in of.steps))
