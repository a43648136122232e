"""Whether a GPU was held back while it was timed: decisions without a pause may meet its power limit."""

import subprocess
import time

COUNTER = "clocks_event_reasons_counters.sw_power_cap"
PATIENCE_S = 10


class PowerLimit:
    """Watches a GPU from when it is made. bus: the GPU's place on the PCI bus."""

    def __init__(self, bus: str) -> None:
        self._bus = bus
        self._before, self._start = self._capped_us(), time.perf_counter()

    def share(self) -> float | None:
        """Of the time until now, in which the power limit held the clocks back. None where no driver counts
        that."""
        took, after = time.perf_counter() - self._start, self._capped_us()
        return None if self._before is None or after is None else (after - self._before) / 1e6 / took

    def _capped_us(self) -> int | None:
        """Microseconds, since some time in the past."""
        query = f"--query-gpu={COUNTER}"
        command = ["nvidia-smi", f"--id={self._bus}", query, "--format=csv,noheader,nounits"]
        try:
            told = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE_S).stdout
            return int(told)
        except (OSError, subprocess.SubprocessError, ValueError):
            return None
