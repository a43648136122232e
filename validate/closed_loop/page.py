"""The run as one HTML file that needs nothing else: table, plots, every scene, and films of failures.

`python -m validate.closed_loop.page OUT` writes results.json and the page of a run, with `--partial` of one
that has not ended.
"""

import argparse
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from export.stage import run_stage
from pi05_runtime.staging import write_file
from validate.benchmark.page import STYLE, table
from validate.closed_loop import plots
from validate.closed_loop.records import Episode, Run, read_run
from validate.closed_loop.results import (
    TITLES,
    Results,
    Row,
    cells,
    markdown,
    read_episodes,
    summarize,
    write_results,
)

FILE = "closed_loop.html"
FILMS, FILM_BYTES = 6, 10_000_000
"""The most of one policy, and the most bytes of all: the page is to be mailed."""
FIGURES = """
figure { display: inline-block; margin: .4rem .8rem .4rem 0; width: 11rem; vertical-align: top }
figure img { width: 100%; display: block } figcaption { font-size: .8rem; color: #555 }
"""
METHOD = """
<p>Each policy acts in the same scenes, and decision <em>k</em> of a scene starts from the same flow noise.
<em>Lost</em> are scenes that the reference solved and the policy did not, <em>won</em> the other way round;
<em>p</em> is McNemar's exact test of the two, two-sided: how likely a split at least this uneven is if
neither were better. A large p is no proof that two policies are equal. Intervals are Wilson's, at 95%.</p>
<p><em>Divergence</em> is taken where the reference decided: each policy is given the reference's own
observation and noise; it is the mean absolute difference of the executed actions, in the robot's units.
<em>Steps</em> is the median of the episodes that succeeded. A decision's time includes its round trip. What
ended by an error counts as failed.</p>
"""


def write(out: Path, partial: bool = False) -> str:
    """Writes results.json and the page of the run in OUT; returns its table. Errors: as `summarize`."""
    run = read_run(out)
    episodes = read_episodes(out, run)
    results = summarize(run, episodes, partial)
    write_results(out, results)
    write_file(out / FILE, page(out, results, episodes).encode())
    return markdown(results)


def page(out: Path, results: Results, episodes: Sequence[Episode]) -> str:
    """out: where the films lie. episodes: of the run."""
    parts = [
        "<h1>pi0.5 in closed loop</h1>",
        _header(results),
        *(_suite(results, episodes, suite) for suite in results.run.scenes),
        f"<h2>Films of failures</h2>{_films(out, results.run, episodes)}",
        f"<h2>How to read this</h2>{METHOD}",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>pi0.5 in closed loop</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{FIGURES}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _header(results: Results) -> str:
    run = results.run
    policies = [
        (escape(name), escape(", ".join(f"{k} {v}" for k, v in identity.items() if isinstance(v, str | int))))
        for name, identity in run.policies.items()
    ]
    said = f"Paired with {escape(run.reference)}." if run.reference else "There is no reference."
    if results.missing:
        said += (
            f' <strong class="bad">Not complete: {len(results.missing)} episodes are missing.</strong> Only '
            "scenes that both ended are compared."
        )
    return f"<p>{said}</p>{table(('policy', 'what it is'), policies, words=(1,))}"


def _suite(results: Results, episodes: Sequence[Episode], name: str) -> str:
    run = results.run
    asked, own = run.suites[name], [e for e in episodes if e.suite == name]
    rows = [row for row in results.rows if row.suite == name]
    overall = [row for row in rows if row.task is None]
    versions = ", ".join(f"{package} {version}" for package, version in run.simulators[name].items())
    scenes = sum(map(len, run.scenes[name].values()))
    words = (
        f"{scenes} scenes of {len(run.scenes[name])} tasks, at most {asked.max_steps} control steps an "
        f"episode, {asked.executed} actions of a chunk executed; {versions}."
    )
    found = {
        row.policy: [x for e in own if e.policy == row.policy for x in e.divergence or ()]
        for row in overall
        if row.divergence
    }
    policies = [row.policy for row in overall]
    tasks = [
        f"<h3>{escape(task)}</h3>{_table([row for row in rows if row.task == task])}"
        + plots.scenes([e for e in own if e.task == task], policies, run.reference)
        for task in dict.fromkeys(row.task for row in rows if row.task)
    ]
    return (
        f"<h2>{escape(name)}</h2><p>{escape(words)}</p>{_table(overall)}"
        f"{plots.success(overall, run.reference)}{plots.divergence(found)}"
        "<p>Below each task are its scenes. Green: success. A red frame: lost to the reference, a blue one: "
        f"won.</p>{''.join(tasks)}"
    )


def _table(rows: Sequence[Row]) -> str:
    """Of one suite and task."""
    return table(TITLES[2:], [[escape(cell) for cell in cells(row)[2:]] for row in rows])


def _films(out: Path, run: Run, episodes: Sequence[Episode]) -> str:
    """Of each policy a few, what it lost to the reference first."""
    solved = {(e.suite, e.task, e.scene) for e in episodes if e.policy == run.reference and e.success}
    figures, left, failures = [], FILM_BYTES, [e for e in episodes if not e.success]
    for policy in run.policies:
        own = [e for e in failures if e.policy == policy and e.video]
        own.sort(key=lambda e: (e.suite, e.task, e.scene) not in solved)
        for e in own[:FILMS]:
            film = out / "episodes" / e.suite / e.task / str(e.scene) / str(e.video)
            if not film.is_file() or (size := film.stat().st_size) > left:
                continue
            left -= size
            lost = ", which the reference solved" if (e.suite, e.task, e.scene) in solved else ""
            told = f"{e.policy}: {e.task}, scene {e.scene}{lost}. {e.error or f'{e.steps} steps'}"
            figures.append(
                f'<figure><img alt="" src="data:image/webp;base64,{b64encode(film.read_bytes()).decode()}">'
                f"<figcaption>{escape(told)}</figcaption></figure>"
            )
    return f"<p>{len(figures)} of {len(failures)} failures are here; the others lie beside this page.</p>" + (
        "".join(figures)
    )


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m validate.closed_loop.page", description="Table and page of a run."
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the run")
    parser.add_argument("--partial", action="store_true", help="of a run that has not ended")
    asked = parser.parse_args(arguments)
    print(write(asked.out, asked.partial))
    print(f"page: {asked.out / FILE}")


if __name__ == "__main__":
    run_stage(main)
