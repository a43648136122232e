"""Where policies come from: how a command names one, what identifies it, and how it is made to act."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from export.artifacts import CHECKPOINT
from export.checkpoint.canonical import read_description
from export.params import load_params
from pi05_runtime.manifest import read_manifest
from pi05_runtime.rebuilt import manifest_sha256
from validate.closed_loop.episodes import Expert
from validate.closed_loop.policies import MUTANTS, Acts, Client, Spoiled
from validate.closed_loop.records import NAME, ClosedLoopError
from validate.closed_loop.servers import Server
from validate.closed_loop.simulator import SimulatorProcess

REFERENCE, EXPERT, MODEL = "reference", "expert", "pytorch"


class Model(Struct, frozen=True, tag=True):
    """The BF16 reference of the pipeline in the working directory."""


class Bundle(Struct, frozen=True, tag=True):
    folder: str
    target: str
    steps: int | None


class Remote(Struct, frozen=True, tag=True):
    """Servers of one policy, of which each simulator takes one."""

    addresses: tuple[str, ...]


class Scripted(Struct, frozen=True, tag=True):
    """The simulator's expert."""


class Mutant(Struct, frozen=True, tag=True):
    """of: name of the policy that is spoiled, whose server it shares."""

    of: str
    kind: str


Source = Model | Bundle | Remote | Scripted | Mutant


def read_sources(reference: str | None, policies: Sequence[str]) -> dict[str, Source]:
    """Name -> source, in the order of the command line, the reference first. Errors: ClosedLoopError."""
    sources: dict[str, Source] = {} if reference is None else {REFERENCE: _place(reference)}
    for text in policies:
        name, separator, place = text.partition("=")
        if name in sources or not NAME.fullmatch(name):
            raise ClosedLoopError(f"--policy {text}: a name found twice, or one that is no file's name")
        sources[name] = _place(place) if separator else _unnamed(name, sources)
    if not sources:
        raise ClosedLoopError("no policy: give --reference, or --policy, or both")
    return sources


def identity(source: Source, sources: Mapping[str, Source], maps: Sequence[str]) -> dict[str, Any]:
    """What must be equal for episodes to be the same policy's. Errors: Pi05Error for what is not there."""
    renamed = {"map": sorted(maps)} if maps else {}
    match source:
        case Model():
            read_description()
            params, description = load_params().export, (CHECKPOINT / "policy.json").read_bytes()
            digest = hashlib.sha256(description).hexdigest()
            said = {"checkpoint": digest, "rope": params.rope_frequencies}
            return {**said, **renamed, "steps": params.default_steps}
        case Bundle(folder, target, steps):
            manifest, digest = read_manifest(Path(folder)), manifest_sha256(Path(folder))
            said = {"name": manifest.name, "version": manifest.version, "manifest": digest, "target": target}
            return {**said, **renamed, "steps": steps or manifest.default_steps}
        case Remote(addresses):
            return _served(addresses)
        case Scripted():
            return {"expert": True}
        case Mutant(of, kind):
            return {"spoiled": kind, "policy": identity(sources[of], sources, maps)}


def check_sources(sources: Mapping[str, Source], processes: int) -> None:
    """Errors: ClosedLoopError where there are more simulators than servers, or where a bundle was made of
    another checkpoint than the pipeline's reference."""
    for name, source in sources.items():
        if isinstance(source, Bundle) and isinstance(sources.get(REFERENCE), Model):
            found, expected = read_manifest(Path(source.folder)).source.files, read_description().source
            if others := [file for file in {**found, **expected} if found.get(file) != expected.get(file)]:
                raise ClosedLoopError(
                    f"policy {name!r}: {source.folder} was made of another checkpoint than the reference "
                    f"(other {others[0]}); run `dvc repro`, or give another --reference than {MODEL}"
                )
        if isinstance(source, Remote) and len(source.addresses) < processes:
            raise ClosedLoopError(
                f"policy {name!r}: {len(source.addresses)} addresses found for {processes} processes; a "
                "server takes one robot at a time: name one for each, separated by commas"
            )


@contextmanager
def opened(
    sources: Mapping[str, Source],
    maps: Sequence[str],
    simulator: SimulatorProcess,
    prompts: Mapping[str, str],
    index: int,
) -> Iterator[dict[str, Acts]]:
    """All policies of one simulator, the index-th. maps: as `pi05 serve --map`. Errors: Pi05Error."""
    with ExitStack() as stack:
        acting: dict[str, Acts] = {}
        for name, source in sources.items():
            match source:
                case Model():
                    acting[name] = stack.enter_context(closing(Server(name, ["reference", *maps])))
                case Bundle(folder, target, steps):
                    arguments = ["bundle", folder, "--target", target, *(f"--map={pair}" for pair in maps)]
                    arguments += [] if steps is None else [f"--steps={steps}"]
                    acting[name] = stack.enter_context(closing(Server(name, arguments)))
                case Remote(addresses):
                    acting[name] = stack.enter_context(closing(Client(addresses[index])))
                case Scripted():
                    acting[name] = Expert(simulator)
                case Mutant(of, kind):
                    acting[name] = Spoiled(acting[of], kind, prompts)
        yield acting


def _place(text: str) -> Source:
    if text == MODEL:
        return Model()
    if text.startswith(("ws://", "wss://")):
        return Remote(tuple(text.split(",")))
    folder, _, target = text.partition(":")
    target, separator, steps = target.partition(":")
    if not folder or not target or (separator and not steps.isdecimal()):
        raise ClosedLoopError(
            f"{text!r} found, BUNDLE:TARGET, BUNDLE:TARGET:STEPS, ws://HOST:PORT or {MODEL} expected"
        )
    return Bundle(folder, target, int(steps) if steps else None)


def _unnamed(text: str, sources: Mapping[str, Source]) -> Source:
    if text == EXPERT:
        return Scripted()
    of, _, kind = text.partition("+")
    if of not in sources or kind not in MUTANTS:
        kinds = ", ".join(f"NAME+{kind}" for kind in MUTANTS)
        raise ClosedLoopError(
            f"--policy {text}: NAME=PLACE, {EXPERT}, or a mutant of a policy named before it expected "
            f"({kinds})"
        )
    return Mutant(of, kind)


def _served(addresses: Sequence[str]) -> dict[str, Any]:
    """The metadata of all of them, which must be of one policy."""
    found: list[dict[str, Any]] = []
    for address in addresses:
        with closing(Client(address)) as client:
            found.append({key: value for key, value in client.metadata.items() if key != "deadline_ms"})
    if any(metadata != found[0] for metadata in found):
        raise ClosedLoopError(f"{', '.join(addresses)}: servers of different policies found, of one expected")
    return found[0]
