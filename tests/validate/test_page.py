"""The page needs nothing but itself, holds the figures, and says what is not there."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.validate.reports import report, run, without_floors
from validate.benchmark.page import FILE, page, write_page
from validate.benchmark.published import SEED
from validate.benchmark.results import Peer

VOID = {"meta", "br"}


class Checked(HTMLParser):
    """Tags that close in order, and whatever asks for something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.asked += [f"{n}={v}" for n, v in attrs if n in ("src", "href", "xlink:href", "data", "action")]
        self.asked += [f"{n}={v}" for n, v in attrs if n.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_needs_nothing_else() -> None:
    text = page(report())
    checked = Checked()
    checked.feed(text)
    assert checked.asked == [] and checked.open == []
    assert not {"script", "link", "iframe", "img", "object"} & set(checked.seen)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert set(re.findall(r"url\((.*?)\)", text)) == {"#hatch"}
    assert checked.seen.count("svg") == 3


def test_it_holds_the_figures() -> None:
    text = page(report())
    # Totals, their 99th percentile, components, distances, the peer's ratio and cosine, the golden sample.
    for figure in ("3.30", "5.55", "5.60", "0.500", "2.50", "1.25", "1.85", "70.50", "0.99870", "0.997900"):
        assert figure in text, figure
    for published in SEED.values():
        assert f"{published:.0f}" in text
    assert "of another device and shape" in text and "profile C: 2 views, 532 prefix tokens" in text


def test_what_a_controller_sees_and_what_held_the_clocks_back() -> None:
    text = page(report())
    row = text[text.index("asked for every 20 ms") :].partition("</tr>")[0]
    assert "5.12" in row and "held its clocks back: 14% at N = 1, 95% at N = 10." in text
    bare = [replace(s, paced=None, capped=None) for s in run().steps]
    text = page(replace(report(), runs=(replace(run(), steps=tuple(bare)),)))
    assert "asked for every" not in text and "held its clocks" not in text


def test_kernels_come_costliest_first() -> None:
    text = page(report())
    assert -1 < text.index("denoise qkv") < text.index("vision norm1")
    row = text[text.index("denoise qkv") :].partition("</tr>")[0]
    for figure in ("skinny", ">18<", "8.00", "1.44", "96.4%", "width:8.00rem", "2.50", "memory", "3.20"):
        assert figure in row, figure
    # The table's sum, and that of the networks alone at 10 steps.
    assert "sum to 1.49 ms" in text and "take 5.00 ms" in text
    assert "Kernels</h3>" not in page(replace(report(), runs=(replace(run(), launches=()),)))


def test_it_says_where_loading_goes() -> None:
    text = page(report())
    assert "first action 2.00 s: device 0.25, verify 0.88, open 0.62, first decision 0.25" in text
    assert "prefill 1,900.0" in text and "5,000.0 MB were verified" in text and "decision: 2,718.0 MB" in text
    loading = replace(run().loading, gpu_bytes=None)
    assert "GPU memory" not in page(replace(report(), runs=(replace(run(), loading=loading),)))


def test_what_others_wrote_is_no_markup() -> None:
    text = page(report())
    assert "A &lt;processor&gt; &amp; more" in text and "cosine 0.42 &lt; 0.995" in text
    assert "<processor>" not in text


def test_it_says_what_is_missing() -> None:
    text = page(replace(report(), complete=False))
    assert "Not complete" in text and "Not complete" not in page(report())
    assert "A50 fp8 was not timed." in text and "5 steps: the time limit came first" in text
    assert "absent, so there is no ratio: it was stopped after 2.0 minutes" in text


def test_without_floors_there_is_no_distance() -> None:
    text = page(replace(report(), runs=(without_floors(run()),)))
    assert "No floor: the rates of this device" in text and "measured over floor (1" not in text


def test_a_peer_that_is_another_policy_has_no_ratio() -> None:
    eager = run().peers[0]
    other = replace(eager, agrees=False, ratio={}, cosine={10: 0.31})
    text = page(replace(report(), runs=(replace(run(), peers=(other,)),)))
    assert "so there is no ratio" in text and "0.31000" in text and "70.50" not in text


@pytest.mark.parametrize("peers", [(), (Peer("LeRobot, eager", "bf16", "no interpreter"),)])
def test_without_peers_no_ratio_is_printed(peers: tuple[Peer, ...]) -> None:
    assert "70.50" not in page(replace(report(), runs=(replace(run(), peers=peers),)))


def test_it_appears_whole(tmp_path: Path) -> None:
    write_page(tmp_path, report())
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
