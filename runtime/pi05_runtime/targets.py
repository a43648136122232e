"""Targets: which chip and which kind of engine. Named `<chip>-<engine>`.

The list holds what this release can build and load; a name outside it is refused with this list.
"""

import msgspec


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """engine: the kind of engine, and with it the backend that loads it and what builds it."""

    engine: str


TARGETS = {"cpu-ort": Target(engine="ort")}
