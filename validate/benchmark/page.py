"""The benchmark as one HTML file that needs nothing else: no network, no script, readable on paper."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from pi05_runtime.staging import write_file
from validate.benchmark import plots
from validate.benchmark.floors import CHIPS, Chip
from validate.benchmark.plots import count, figure
from validate.benchmark.published import ROWS, SEED_PARTS, SEED_PRECISION, SEED_SHAPE
from validate.benchmark.results import PERIOD_MS, Peer, Report, Run, Steps, Timing

FILE = "benchmark.html"
STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1c1c1c; background: #fff;
  max-width: 960px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 0 .2rem } h2 { font-size: 1.25rem; margin: 2.4rem 0 .4rem;
  border-top: 2px solid #1c1c1c; padding-top: .6rem } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem }
table { border-collapse: collapse; margin: .4rem 0; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid #e2e2e2;
  vertical-align: top }
th { font-weight: 600; color: #555 } th:first-child, td:first-child, td.words, th.words { text-align: left }
td, th { white-space: nowrap } td.words, th.words, th:first-child, td:first-child { white-space: normal }
.bar { display: inline-block; height: .7rem; background: #3b75af }
tr.main td { font-weight: 600 } p { margin: .4rem 0; max-width: 46rem }
.quiet { color: #666; font-size: .87rem }
.bad { border-left: 4px solid #b00020; padding-left: .7rem }
svg { max-width: 100%; height: auto; display: block; margin: .6rem 0; font-size: 12px; fill: #333 }
svg .title { font-weight: 600 } svg .value { font-weight: 600 } svg .small { font-size: 11px; fill: #666 }
@media print { body { margin: 0; max-width: none; font-size: 11px } h2 { break-before: page }
  h2:first-of-type { break-before: auto } svg, table { break-inside: avoid }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact } }
"""
METHOD = f"""
<p>A total is the wall-clock time of one call of <code>Policy.infer</code>; calls come one after the other,
which may bring a GPU to its power limit. <em>Asked for every {PERIOD_MS} ms</em> are calls as a controller of
{1000 / PERIOD_MS:g} Hz makes them. <em>Within it</em> is what the policy itself times in the calls without a
pause; <em>alone</em> is a CUDA graph of one network, replayed and waited for by itself, denoise with all its
steps. Kernel plans take the first denoise step beside prefill, and columns show of denoise what it adds. What
the total has beyond the networks is staging, copies and launching: <em>images</em> is bringing these to the
device and, where it resizes them, that too, <em>prompt</em> bringing all else, and actions back. Two
observations take turns, and a run of a kernel plan ends where a decision's actions are not those of the first
over the same observation. A peer starts from preprocessed images and token ids on the host and ends with
normalised actions there.</p>
<p>A floor is, a component at a time, the larger of bytes over bandwidth and operations over the rate of the
tensor cores: weights, inputs, outputs and cache once, matrix products and attention. Activations between
layers, norms and launches are left out, so no network reaches it; a rate is a median, which single launches
can exceed.</p>
"""


def write_page(folder: Path, report: Report) -> None:
    write_file(folder / FILE, page(report).encode())


def page(report: Report) -> str:
    parts = [
        "<h1>pi0.5: latency by component and step count</h1>",
        _device(report),
        _overview(report),
        *(
            f'<p class="bad"><strong>{escape(r.name)} was not timed.</strong> {escape(r.reason)}</p>'
            for r in report.refused
        ),
        *(_run(run) for run in report.runs),
        _published(),
        _method(),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>pi0.5 benchmark</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _device(report: Report) -> str:
    d = report.device
    told = {
        "compute capability": d.compute_capability,
        "driver": d.driver,
        "JetPack": d.jetpack,
        "power mode": d.power_mode,
    }
    words = [d.name, *(f"{name} {found}" for name, found in told.items() if found)]
    if d.processor != d.name:
        words.append(d.processor)
    words += [f"{d.cores} cores", f"load {d.load:.1f} before the first run"]
    state = "" if report.complete else " <strong>Not complete: something was still to be measured.</strong>"
    versions = ", ".join(f"{name} {version}" for name, version in d.versions.items())
    return (
        f"<p>{escape(', '.join(words))}. Started {escape(report.started)}.{state}</p>"
        f'<p class="quiet">{escape(versions)}</p>'
    )


def _overview(report: Report) -> str:
    rows = [
        (
            escape(f"{run.name}, {run.target}"),
            escape(_shape(run)),
            *(figure(s.total.median_ms) if (s := _at(run, n)) else "" for n in _counts(report)),
            f"{last.total.hz:.1f}" if (last := _last(run)) else "",
            f"{last.distance:.2f}" if last and last.distance else "",
        )
        for run in report.runs
    ]
    heads = ["run", "shape", *(f"N = {n}" for n in _counts(report)), "Hz at the last", "over floor"]
    told = "Median milliseconds from images on the host to actions on the host, N Euler steps."
    return f'{table(heads, rows, words=(1,))}<p class="quiet">{told}</p>' if rows else ""


def _run(run: Run) -> str:
    shape, height_width = run.shape, " x ".join(map(str, run.shape.image))
    precision = ", ".join(f"{c} {r}" for c, r in run.recipes.items())
    kept = ", ".join(f"{c}.{name}" for c, names in run.keep.items() for name in names)
    precision += f" ({kept} in bf16)" if kept else ""
    words = (
        f"{_shape(run)}; images of {height_width}; {precision}; {shape.parameters}. The golden sample passed "
        f"first: smallest cosine {min(run.golden.cosine.values()):.6f}, at least {run.golden.threshold} "
        f"expected."
    )
    parts = [f"<h2>{escape(f'{run.name} on {run.target}')}</h2><p>{escape(words)}</p>"]
    if run.missing:
        parts.append(f'<p class="bad">Left out: {escape("; ".join(run.missing))}</p>')
    parts.append(_loading(run))
    if run.steps:
        parts += [plots.latency(run), _timings(run), "<h3>Distance to the floor</h3>", _floors(run)]
        if run.launches:
            parts += ["<h3>Kernels</h3>", _launches(run)]
        parts += ["<h3>Distribution</h3>", plots.distribution(run)]
    return "".join([*parts, "<h3>Peers in the same run</h3>", _peers(run)])


def _loading(run: Run) -> str:
    load, total = run.loading, run.load_s + run.first_s
    seconds = {**load.parts_s, "first decision": run.first_s}
    engines = ", ".join(f"{network} {size / 1e6:,.1f}" for network, size in load.engine_bytes.items())
    where = ", ".join(f"{part} {s:.2f}" for part, s in seconds.items())
    words = (
        f"Load to first action {total:.2f} s: {where}. Engines, in MB: {engines}; "
        f"{load.verified_bytes / 1e6:,.1f} MB were verified."
    )
    if load.gpu_bytes is not None:
        words += f" GPU memory after the first decision: {load.gpu_bytes / 1e6:,.1f} MB."
    return f"<p>{escape(words)}</p>"


def _timings(run: Run) -> str:
    rows: list[Sequence[str]] = []
    main: set[int] = set()
    for s in run.steps:
        main.add(len(rows))
        rows.append((f"N = {s.steps}", "images to actions", *_cells(s.total)))
        if s.paced:
            rows.append(("", f"asked for every {PERIOD_MS} ms", *_cells(s.paced, rate=False)))
        rows += [("", f"{name}, within it", *_cells(t, rate=False)) for name, t in s.inside.items()]
        rows += [("", f"{name}, alone", *_cells(t, rate=False)) for name, t in s.alone.items()]
        if s.rest_ms is not None:
            rows.append(("", "beyond the networks", figure(s.rest_ms), *[""] * 7))
    rows += [("any N", f"{name}, alone", *_cells(t, rate=False)) for name, t in run.outside.items()]
    heads = ("", "ms", "median", "p90", "p99", "min", "p99 - median", "p99 / median", "Hz", "calls")
    return table(heads, rows, words=(1,), main=main) + _capped(run)


def _capped(run: Run) -> str:
    found = [f"{s.capped:.0%} at N = {s.steps}" for s in run.steps if s.capped is not None]
    told = (
        "Share of the time of decisions without a pause in which the GPU's power limit held its clocks back: "
    )
    return f'<p class="quiet">{told}{", ".join(found)}.</p>' if found else ""


def _cells(t: Timing, rate: bool = True) -> tuple[str, ...]:
    """rate: whether it is one of decisions."""
    times = (t.median_ms, t.p90_ms, t.p99_ms, t.min_ms, t.jitter_ms)
    hz, calls = f"{t.hz:.1f}" if rate else "", f"{t.warm_up} + {t.repeats}"
    return (*(figure(x) for x in times), f"{t.jitter_ratio:.3f}", hz, calls)


def _floors(run: Run) -> str:
    rows = [
        (
            name if name != "denoise" else "denoise, a step",
            ", ".join(f"{count(size / 1e6)} MB {p}" for p, size in f.weights.items()),
            f"{count(f.moved / 1e6)} MB",
            ", ".join(f"{count(done / 1e9)} GFLOP {p}" for p, done in f.operations.items()),
            f.bound or "",
            figure(f.floor_ms) if f.floor_ms else "none",
            figure(f.measured_ms) if f.measured_ms else "",
            f"{f.distance:.2f}" if f.distance else "",
        )
        for name, f in run.floors.items()
    ]
    heads = ("", "weights", "moved", "operations", "bound by", "floor ms", "measured ms", "over floor")
    known = any(f.floor_ms for f in run.floors.values())
    told = "" if known else "<p>No floor: the rates of this device are not in the table of chips.</p>"
    return told + plots.distances(run) + table(heads, rows, words=(1, 3, 4))


def _launches(run: Run) -> str:
    """The costliest first."""
    found = sorted(run.launches, key=lambda la: -la.decision_ms)
    most = found[0].decision_ms or 1.0
    rows = [
        (
            escape(f"{la.network} {la.name}"),
            escape(la.kernel),
            f"{la.launches}",
            figure(la.each_us),
            figure(la.decision_ms),
            f"{la.share:.1%}",
            f'<span class="bar" style="width:{la.decision_ms / most * 8:.2f}rem"></span>',
            figure(la.floor_us) if la.floor_us else "",
            la.bound or "",
            f"{la.distance:.2f}" if la.distance is not None else "",
        )
        for la in found
    ]
    last = max(run.steps, key=lambda s: s.steps)
    ms, alone = f"ms, N = {last.steps}", sum(last.parts.values())
    heads = ("launch", "kernel", "a pass", "us each", ms, "share", "", "floor us", "bound by", "over floor")
    told = (
        f"Each row is timed by itself, reading its weights from memory. The rows sum to "
        f"{figure(sum(la.decision_ms for la in found))} ms; the networks alone, where launches overlap, take "
        f"{figure(alone)} ms."
    )
    return f'{table(heads, rows, words=(1, 6, 8))}<p class="quiet">{told}</p>'


def _peers(run: Run) -> str:
    if not run.peers:
        return "<p>Not measured.</p>"
    return "".join(_peer(run, peer) for peer in run.peers)


def _peer(run: Run, peer: Peer) -> str:
    title = f"<p><strong>{escape(peer.name)}</strong>, {escape(peer.precision)}"
    if peer.absent:
        return f"{title}: absent, so there is no ratio: {escape(peer.absent)}.</p>"
    versions = ", ".join(f"{n} {v}" for n, v in peer.versions.items())
    title += f"; {escape(versions)}; first call of a step count at most {peer.prepared_s or 0:.1f} s."
    if peer.cut:
        title += f" Step counts are missing: {escape(peer.cut)}."
    if not peer.agrees:
        title += " Its actions are not those of this run's reference, so there is no ratio."
    rows = [
        (
            f"N = {n}",
            *_cells(t)[:4],
            f"{peer.cosine[n]:.5f}" if n in peer.cosine else "",
            figure(s.total.median_ms) if (s := _at(run, n)) else "",
            f"{peer.ratio[n]:.2f}" if n in peer.ratio else "none",
        )
        for n, t in peer.timings.items()
    ]
    heads = ("", "median ms", "p90", "p99", "min", "cosine", "this run ms", "peer / this run")
    return f"{title}</p>{table(heads, rows)}"


def _published() -> str:
    parts = ", ".join(f"{name} {ms}" for name, ms in SEED_PARTS.items())
    heads = ("system", "device", "precision", "views, prefix tokens, horizon", "ms")
    return (
        "<h2>Published elsewhere</h2><p>Not measured here, and not to be divided by: every row is another "
        f"device, shape or precision. The table that this project started from ({SEED_SHAPE}, "
        f"{SEED_PRECISION}) also gives, in ms: {parts}.</p>{table(heads, ROWS, words=(1, 2, 3))}"
    )


def _method() -> str:
    chips = "".join(f"<li>{escape(_chip(chip))}</li>" for chip in CHIPS)
    return f"<h2>How to read this</h2>{METHOD}<ul>{chips}</ul>"


def _chip(chip: Chip) -> str:
    rates = ", ".join(f"{precision} {rate / 1e12:.0f}" for precision, rate in chip.operations.items())
    return f"{chip.name}: {chip.moved / 1e12:.3g} TB/s; in TFLOP/s, {rates}. {chip.source}."


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = (), main: Iterable[int] = ()
) -> str:
    """words: columns that are set like text. main: rows that stand out. Cells are taken as they are."""
    marked = set(main)

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = (' class="words"' if i in words else "" for i in range(len(row)))
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(row, kinds, strict=True))

    body = "".join(
        f"<tr{' class=main' if i in marked else ''}>{cells(row, 'td')}</tr>" for i, row in enumerate(rows)
    )
    return f"<table><thead><tr>{cells(heads, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _shape(run: Run) -> str:
    s = run.shape
    return f"profile {s.profile}: {s.views} views, {s.prefix} prefix tokens, horizon {s.horizon}"


def _counts(report: Report) -> list[int]:
    return sorted({s.steps for run in report.runs for s in run.steps})


def _at(run: Run, steps: int) -> Steps | None:
    return next((s for s in run.steps if s.steps == steps), None)


def _last(run: Run) -> Steps | None:
    return max(run.steps, key=lambda s: s.steps, default=None)
