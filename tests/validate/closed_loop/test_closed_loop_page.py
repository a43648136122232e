"""The page needs nothing but itself, shows every scene, and stays small enough to mail."""

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.validate.closed_loop.fabricated import ENDED, RUN, TASKS, episode, episodes, write_run
from tests.validate.test_page import Checked
from validate.closed_loop import page as pages
from validate.closed_loop.page import FILE, page, write
from validate.closed_loop.plots import FAILED, LOST, SOLVED, WON, divergence, scenes
from validate.closed_loop.records import ClosedLoopError
from validate.closed_loop.results import FILE as RESULTS
from validate.closed_loop.results import markdown, read_episodes, summarize
from validate.closed_loop.statistics import rate


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def written(out: Path, partial: bool = False) -> str:
    write(out, partial)
    return (out / FILE).read_text()


def test_it_needs_nothing_else(out: Path) -> None:
    text = written(out)
    checked = Checked()
    checked.feed(text.replace('<img alt=""', '<meta alt=""'))  # a void tag, like it
    assert checked.open == []
    assert all(asked.startswith("src=data:image/webp;base64,") for asked in checked.asked)
    assert not {"script", "link", "iframe", "object"} & set(checked.seen)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    # Success, divergence, and a grid a task.
    assert checked.seen.count("svg") == 2 + len(TASKS)


def test_it_writes_the_table_that_it_returns(out: Path) -> None:
    assert write(out) == markdown(summarize(RUN, read_episodes(out, RUN)))
    assert {FILE, RESULTS} <= {path.name for path in out.iterdir()}


def test_it_holds_the_figures(out: Path) -> None:
    text = written(out)
    low, high = rate(3, 8).low, rate(3, 8).high
    for figure in ("3/8 (1 ended by an error)", f"{100 * low:.1f} to {high:.1%}", "0.38", "62.5", "0.0055"):
        assert figure in text, figure
    assert "Paired with reference." in text and "8 scenes of 2 tasks" in text and "metaworld 3.1.1" in text


def test_what_others_wrote_is_no_markup(out: Path) -> None:
    text = written(out)
    assert "int2 &lt;x&gt;" in text and "int2 <x>" not in text
    assert "&lt;fell&gt; over" in text and "<fell>" not in text


def test_half_a_run_has_no_page_unless_it_says_so(tmp_path: Path) -> None:
    out = write_run(tmp_path / "run", left_out=(episode("int8", 5),))
    with pytest.raises(ClosedLoopError, match="1 episodes are missing"):
        write(out)
    assert not (out / FILE).exists() and not (out / RESULTS).exists()
    text = written(out, partial=True)
    assert "Not complete: 1 episodes are missing." in text
    assert "Not complete" not in written(write_run(tmp_path / "whole"))


def test_every_scene_is_a_cell_and_discordant_ones_are_framed() -> None:
    here = [e for e in episodes() if e.task == TASKS[1]]
    grid = scenes(here, list(ENDED), "reference")
    ended = "".join(ended[4:] for ended in ENDED.values())
    assert (grid.count(f'fill="{SOLVED}"'), grid.count(f'fill="{FAILED}"')) == (
        ended.count("+"),
        ended.count("-"),
    )
    # int2 and the mutant; the reference solved the second and the fourth of these scenes.
    assert grid.count(f'fill="{WON}"') == 1 and grid.count(f'fill="{LOST}"') == 1 + 2
    assert "scene 50003: failure, 200 steps" in grid
    alone = scenes(here, list(ENDED), None)
    assert WON not in alone and LOST not in alone


def test_a_divergence_of_zero_has_a_place_on_a_log_scale() -> None:
    drawn = divergence({"same": [0.0, 0.0], "other": [0.001, 0.1]})
    assert drawn.count('stroke-width="1.8"') == 2 and "nan" not in drawn and "inf" not in drawn
    assert "1e-08" in drawn and ">0.1<" in drawn
    assert divergence({}) == "" and divergence({"none": []}) == ""


def test_divergences_are_drawn_in_their_order() -> None:
    drawn = divergence({"near": [0.001] * 5, "far": [0.1] * 5})
    near, far = re.findall(r'points="([\d.]+),[^"]*" stroke-width="1.8"', drawn)
    assert float(near) < float(far)


def films(text: str) -> list[str]:
    return re.findall(r"<figcaption>(.*?)</figcaption>", text)


def test_films_are_of_failures_and_what_the_reference_solved_comes_first(out: Path) -> None:
    found = films(written(out))
    # 2 of the reference, 2 of int8, 5 of int2, and no more than six of the mutant's 8.
    assert len(found) == 2 + 2 + 5 + pages.FILMS
    own = [caption for caption in found if caption.startswith("int2")]
    assert [("which the reference solved" in caption) for caption in own] == [True] * 4 + [False]
    assert "15 of 17 failures are here" in written(out)


def test_films_stop_at_a_size(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = next(out.rglob("*.webp")).stat().st_size
    monkeypatch.setattr(pages, "FILM_BYTES", 3 * size)
    assert 1 <= len(films(written(out))) <= 3


def test_a_film_that_is_gone_is_left_out(out: Path) -> None:
    for film in out.rglob("int8.webp"):
        film.unlink()
    assert not [caption for caption in films(written(out)) if caption.startswith("int8:")]


def test_without_a_reference_nothing_is_compared(tmp_path: Path) -> None:
    run = replace(RUN, reference=None)
    alone = [replace(e, divergence=None) for e in episodes()]
    text = page(tmp_path, summarize(run, alone), alone)
    assert "There is no reference." in text and "robot's units</text>" not in text


def test_the_command_says_where_the_page_is(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages.main(str(out))
    said = capsys.readouterr().out
    assert str(out / FILE) in said and "| metaworld | all | int8 |" in said
