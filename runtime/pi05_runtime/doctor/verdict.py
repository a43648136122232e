"""What a judgement of a device says: a value, so that a person, a fleet's report and `--target auto` read the
same thing. A refusal carries every reason, each with what was found, what was expected and what helps.
"""

from typing import Literal

import msgspec

About = Literal["target", "chip", "driver", "cuda-python", "library", "engines", "memory", "disk", "power"]


class Reason(msgspec.Struct, frozen=True):
    """One thing that is not as it should be. advice: what to do, a command where there is one."""

    about: About
    found: str
    expected: str
    advice: str

    def __str__(self) -> str:
        return f"{self.about}: {self.found} found, {self.expected} expected; {self.advice}"


class Accepted(msgspec.Struct, frozen=True, tag_field="verdict", tag="accepted"):
    """notes: what a person should know, and what does not forbid."""

    target: str
    notes: tuple[Reason, ...]


class Refused(msgspec.Struct, frozen=True, tag_field="verdict", tag="refused"):
    """rebuild: whether `pi05 rebuild` on this device is all that is lacking."""

    target: str
    reasons: tuple[Reason, ...]
    rebuild: bool


Verdict = Accepted | Refused
