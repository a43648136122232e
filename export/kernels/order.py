"""How a kernel follows the one before it: its blocks may come while that one still runs, and read what it
wrote when it has ended.

Programmatic dependent launch takes the time that a launch costs, and that of reading weights, out of the way.
Before it waits, a kernel may read what no kernel writes, and may write nothing. Every kernel waits, so all
before the previous one have ended too; the compiler refuses one that does not (compile.py). Where memory
takes the time, a launch also asks for the weights of a later one, so that memory is never idle.
"""

import triton
import triton.language as tl


@triton.jit
def after_previous(early: tl.constexpr = True):
    """Waits for the previous launch, and lets the next one's blocks come as soon as all of this one's have.

    Unless `early`, as soon as all have waited: the next launch may then read, before it waits itself, what
    was written before this one.
    """
    if early:
        tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
    if not early:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch(address, program, programs: tl.constexpr, size: tl.constexpr):
    """Has this program's share of `size` bytes brought into the L2 cache, and waits for nothing."""
    share: tl.constexpr = (size + programs * 128 - 1) // (programs * 128) * 128
    start = program * share
    if start < size:
        tl.inline_asm_elementwise(
            """{
            .reg .pred first;
            .reg .b32 thread;
            mov.u32 thread, %tid.x;
            setp.eq.u32 first, thread, 0;
            @first cp.async.bulk.prefetch.L2.global [$1], $2;
            mov.u32 $0, 0;
            }""",
            "=r,l,r",
            [address.to(tl.int64) + start, min(share, size - start)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
