"""Pairs are counted where they belong, and a pair that is not whole is refused by name."""

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from tests.validate.closed_loop.fabricated import ENDED, RUN, SUITE, TASKS, episode, episodes, write_run
from validate.closed_loop.records import ClosedLoopError, Episode, read_run
from validate.closed_loop.results import FILE, Results, markdown, read_episodes, summarize, write_results
from validate.closed_loop.statistics import Rate, mcnemar, rate


def row(results: Results, policy: str, task: str | None = None):
    (found,) = [r for r in results.rows if (r.policy, r.task) == (policy, task)]
    return found


def test_each_policy_is_counted_over_all_tasks_and_each() -> None:
    results = summarize(RUN, episodes())
    assert [r.policy for r in results.rows if r.task is None] == list(ENDED)
    assert len(results.rows) == 3 * len(ENDED)
    counts = {
        policy: [row(results, policy, task).success.count for task in (None, *TASKS)] for policy in ENDED
    }
    assert counts == {
        "reference": [6, 4, 2],
        "int8": [6, 4, 2],
        "int2 <x>": [3, 1, 2],
        "int8+black-images": [0, 0, 0],
    }
    assert row(results, "int2 <x>").success == rate(3, 8)
    assert results.row(SUITE, "int8") == row(results, "int8")


def test_discordant_pairs_have_a_direction() -> None:
    """int2 loses three scenes of the first task, and in the second one more, where it also wins one."""
    results = summarize(RUN, episodes())
    pairs = row(results, "int2 <x>").pairs
    assert pairs and pairs.scenes == 8
    first, second = TASKS
    assert pairs.lost == ((first, 50_001), (first, 50_002), (first, 50_003), (second, 50_003))
    assert pairs.won == ((second, 50_000),)
    assert pairs.p == mcnemar(won=1, lost=4) == 0.375
    same = row(results, "int8").pairs
    assert same and (same.lost, same.won, same.p) == ((), (), 1.0)
    assert row(results, "reference").pairs is None


def test_divergence_steps_times_and_errors() -> None:
    results = summarize(RUN, episodes())
    found = row(results, "int8")
    assert found.divergence and found.divergence.count == 16
    assert (found.divergence.median, found.divergence.max) == (pytest.approx(0.0055), 0.01)
    # Of those that succeeded: 60, 61, 62, 63, 65, 67.
    assert found.steps == 62.5 and row(results, "int8+black-images").steps is None
    assert found.decision_ms and (found.decision_ms.median, found.decision_ms.max) == (15, 20)
    assert row(results, "int2 <x>").errors == 1 and found.errors == 0
    assert row(results, "reference").divergence is None


def test_without_a_reference_nothing_is_compared() -> None:
    alone = replace(RUN, reference=None)
    results = summarize(alone, [replace(e, divergence=None) for e in episodes()])
    assert all(r.pairs is None and r.divergence is None for r in results.rows)
    assert row(results, "reference").success.count == 6


@pytest.mark.parametrize("policy", ["reference", "int2 <x>"])
def test_half_a_pair_is_refused_by_name(policy: str) -> None:
    lacking = [e for e in episodes() if e != episode(policy, 5)]
    with pytest.raises(ClosedLoopError, match=f"1 episodes are missing .* metaworld/push-v3/50001/{policy}"):
        summarize(RUN, lacking)


def test_a_scene_that_no_policy_ran_is_missing_too() -> None:
    lacking = [e for e in episodes() if (e.task, e.scene) != (TASKS[0], 50_002)]
    with pytest.raises(ClosedLoopError, match="4 episodes are missing beside 28"):
        summarize(RUN, lacking)


def test_a_partial_report_compares_whole_pairs_only() -> None:
    """Without the reference's episode, a success there is no win."""
    results = summarize(RUN, [e for e in episodes() if e != episode("reference", 4)], partial=True)
    assert results.missing == ("metaworld/push-v3/50000/reference",)
    pairs = row(results, "int2 <x>").pairs
    assert pairs and (pairs.scenes, len(pairs.lost), pairs.won) == (7, 4, ())
    assert row(results, "reference").success == rate(6, 7)


@pytest.mark.parametrize("partial", [False, True])
def test_of_nothing_there_are_no_results(partial: bool) -> None:
    with pytest.raises(ClosedLoopError, match="32 episodes are missing beside 0"):
        summarize(RUN, [], partial)


def test_files_of_a_run_are_read_in_its_order(tmp_path: Path) -> None:
    write_run(tmp_path, left_out=(episode("int8", 3),))
    found = read_episodes(tmp_path, read_run(tmp_path))
    expected = [e for e in episodes() if e != episode("int8", 3)]
    assert [replace(e, video=None) for e in found] == expected
    # Another run's episode in the same folder is none of this one's.
    fewer = replace(RUN, policies={"reference": RUN.policies["reference"]})
    assert {e.policy for e in read_episodes(tmp_path, fewer)} == {"reference"}


def test_a_damaged_episode_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "episodes" / SUITE / TASKS[0] / "50000" / "int8.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ClosedLoopError, match=r"int8\.json"):
        read_episodes(tmp_path, RUN)


def test_the_file_comes_back(tmp_path: Path) -> None:
    results = summarize(RUN, episodes())
    write_results(tmp_path, results)
    assert msgspec.json.decode((tmp_path / FILE).read_bytes(), type=Results) == results
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_the_table_has_a_line_for_each_row() -> None:
    lines = markdown(summarize(RUN, episodes())).splitlines()
    assert len(lines) == 2 + 3 * len(ENDED)
    assert {line.count("|") for line in lines} == {15}
    assert lines[2].endswith("| all | reference | 6/8 | 40.9 to 92.9% |  |  |  |  |  |  | 62.5 | 15 | 20 |")
    assert lines[4] == (
        "| metaworld | all | int2 <x> | 3/8 (1 ended by an error) | 13.7 to 69.4% | 4 | 1 | 0.38 "
        "| 1.1 | 2 | 2 | 64 | 15 | 20 |"
    )
    assert lines[6].startswith(f"| metaworld | {TASKS[0]} | reference | 4/4 |")


def test_a_single_episode_is_a_rate() -> None:
    one: list[Episode] = [e for e in episodes() if e.task == TASKS[0] and e.scene == 50_000]
    run = replace(RUN, scenes={SUITE: {TASKS[0]: (50_000,)}})
    success = row(summarize(run, one), "int8").success
    assert isinstance(success, Rate) and (success.count, success.of) == (1, 1)
