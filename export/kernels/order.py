"""How a kernel follows the one before it: its blocks may come while that one still runs, and read what it
wrote when it has ended.

Programmatic dependent launch takes most of the time that a launch costs out of the way, and that of reading
weights where a kernel reads them first.
Before it waits, a kernel may read what no kernel writes, and may write nothing. Every kernel waits, so all
before the previous one have ended too; the compiler refuses one that does not (compile.py).
"""

import triton
import triton.language as tl


@triton.jit
def after_previous():
    """Lets the next launch's blocks come as soon as all of this one's have, then waits for the previous one's
    end."""
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
