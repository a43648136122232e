"""Whether a GPU was held back while it was timed: decisions without a pause may meet its power limit."""

import subprocess
import time

COUNTER = "clocks_event_reasons_counters.sw_power_cap"


def capped_us() -> int | None:
    """Microseconds in which the first GPU's power limit held its clocks back, since some time in the past.
    None where no driver counts them."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={COUNTER}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        return int(told)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


class PowerLimit:
    """From its making on."""

    def __init__(self) -> None:
        self._before, self._start = capped_us(), time.perf_counter()

    def share(self) -> float | None:
        """Of the time, in which it held the clocks back; None as above."""
        took, now = time.perf_counter() - self._start, capped_us()
        return None if self._before is None or now is None else (now - self._before) / 1e6 / took
