"""Prompts against the text that training tokenises, with a small byte-fallback tokenizer.

The tokenizer keeps newlines and spaces as they are, like PaliGemma's, so ids decode to the text.
"""

import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from pi05_runtime.errors import BundleError, ObservationError
from pi05_runtime.interface import Interface, Normalization, PromptFormat, Statistics
from pi05_runtime.preprocess.prompt import Prompter, state_bins

BOS = 2
EDGES = np.linspace(-1, 1, 256 + 1)[:-1]
STATE = np.array([-1.5, -1.0, 0.0, 0.5, 3.0])
NUMBERS = "-1 0 128 192 255"


def train(path: Path, bos: int = BOS) -> Path:
    def corpus() -> Iterator[str]:
        for verb, thing, number in product(
            ("pick up", "put", "open"), ("the bowl", "a drawer"), range(-1, 256, 7)
        ):
            yield f"Task: {verb} {thing}, State: {number} 128 {number};"
            yield "Action: "

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=bos,
        unk_id=3,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_digits=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("tokenizer") / "tiny.model")


@pytest.fixture(scope="module")
def reference(model: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def interface(prompt_format: PromptFormat, most: int = 200, dims: int = len(STATE)) -> Interface:
    nothing = Normalization("quantile", "quantile", Statistics(), Statistics(), "openpi")
    return Interface(("base",), prompt_format, dims, 7, 10, most, "openpi", nothing)


def prompter(model: Path, prompt_format: PromptFormat, most: int = 200) -> Prompter:
    return Prompter(model, interface(prompt_format, most), vocabulary=1000, action_width=32)


def test_bins_are_numpy_digitize() -> None:
    random = np.random.default_rng(0).uniform(-1.3, 1.3, 200_000)
    edges = np.concatenate([EDGES, [1.0, -1.0 - 1 / 128, 0.0, -0.0, 1e30, -1e30, 5e-324, -5e-324]])
    around = np.concatenate([edges, np.nextafter(edges, np.inf), np.nextafter(edges, -np.inf)])
    for values in (random, around):
        np.testing.assert_array_equal(state_bins(values), np.digitize(values, EDGES) - 1)
    single = edges.astype(np.float32)
    one = np.float32(np.inf)
    singles = np.concatenate(
        [random.astype(np.float32), single, np.nextafter(single, one), np.nextafter(single, -one)]
    )
    assert singles.dtype == np.float32
    np.testing.assert_array_equal(state_bins(singles), np.digitize(singles, EDGES) - 1)
    assert state_bins(around).min() == -1 and state_bins(around).max() == 255


def test_state_format(model: Path, reference: sentencepiece.SentencePieceProcessor) -> None:
    found = prompter(model, "state").ids("pick up the bowl", STATE)
    assert found.dtype == np.int64 and found[0] == BOS
    text = f"Task: pick up the bowl, State: {NUMBERS};\nAction: "
    assert found.tolist() == [BOS, *reference.encode(text)]
    assert reference.decode(found.tolist()) == text


def test_padded_format_prints_32_numbers(
    model: Path, reference: sentencepiece.SentencePieceProcessor
) -> None:
    found = prompter(model, "state-padded").ids("put", STATE)
    text = f"Task: put, State: {NUMBERS}{' 128' * 27};\nAction: "
    assert found.tolist() == [BOS, *reference.encode(text)]
    assert len(reference.decode(found.tolist()).split("State: ")[1].split(";")[0].split()) == 32


def test_plain_format_ends_in_its_own_newline(
    model: Path, reference: sentencepiece.SentencePieceProcessor
) -> None:
    plain = prompter(model, "plain")
    found = plain.ids("open a drawer", None)
    assert found.tolist() == [BOS, *reference.encode("open a drawer"), *reference.encode("\n")]
    assert found.tolist() == plain.ids("open a drawer", STATE).tolist()
    assert found.tolist() != prompter(model, "state").ids("open a drawer", STATE).tolist()


def test_newline_is_encoded_separately(tmp_path: Path) -> None:
    path = tmp_path / "merging.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["put put put"]),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=BOS,
        unk_id=3,
        user_defined_symbols=["t\n"],
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    found = prompter(path, "plain").ids("put", None)
    assert found.tolist() == [BOS, *tokenizer.encode("put"), *tokenizer.encode("\n")]
    assert found.tolist() != [BOS, *tokenizer.encode("put\n")]


def test_text_is_cleaned(model: Path, reference: sentencepiece.SentencePieceProcessor) -> None:
    found = prompter(model, "plain").ids(" \tpick_up\nthe  bowl_\n", None)
    assert reference.decode(found.tolist()) == "pick up the  bowl \n"


def test_state_in_float32_and_float64(model: Path) -> None:
    usual = prompter(model, "state")
    assert usual.ids("put", STATE).tolist() == usual.ids("put", STATE.astype(np.float32)).tolist()


def test_longer_prompt_is_refused_and_never_cut(model: Path) -> None:
    tokens = len(prompter(model, "state").ids("put", STATE))
    assert len(prompter(model, "state", most=tokens).ids("put", STATE)) == tokens
    with pytest.raises(ObservationError, match=f"found {tokens} tokens, expected at most {tokens - 1}"):
        prompter(model, "state", most=tokens - 1).ids("put", STATE)


@pytest.mark.parametrize("prompt", ["", "  ", "\n", "_", "put \ud83d", None, 3, b"put", ["put"]])
def test_other_prompts_are_refused(model: Path, prompt: Any) -> None:
    found = repr(prompt) if isinstance(prompt, str) else type(prompt).__name__
    with pytest.raises(ObservationError, match="prompt: found ") as caught:
        prompter(model, "plain").ids(prompt, None)
    assert found in str(caught.value)


@pytest.mark.parametrize("prompt_format", ["state", "state-padded"])
@pytest.mark.parametrize("state", [None, STATE[:4], STATE[None], np.append(STATE[:4], np.nan)])
def test_other_states_are_refused(
    model: Path, prompt_format: PromptFormat, state: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None
) -> None:
    with pytest.raises(ObservationError, match=r"normalised state: found .*, expected 5 finite numbers"):
        prompter(model, prompt_format).ids("put", state)


def test_unreadable_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    content = model.read_bytes()
    for name, part in {"empty": b"", "garbage": b"garbage", "half": content[: len(content) // 2]}.items():
        broken = tmp_path / f"{name}.model"
        broken.write_bytes(part)
        with pytest.raises(BundleError, match=f"tokenizer .*{name}.model: found no readable SentencePiece"):
            prompter(broken, "state")
    with pytest.raises(BundleError, match=r"absent.model: .*No such file"):
        prompter(tmp_path / "absent.model", "state")


def test_tokenizer_without_bos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="found no BOS piece"):
        prompter(train(tmp_path / "nobos.model", bos=-1), "state")


def test_ids_beyond_the_embedding_are_refused(
    model: Path, reference: sentencepiece.SentencePieceProcessor
) -> None:
    pieces = reference.get_piece_size()
    Prompter(model, interface("state"), vocabulary=pieces, action_width=32)
    with pytest.raises(BundleError, match=f"found {pieces} pieces, expected at most the {pieces - 1} rows"):
        Prompter(model, interface("state"), vocabulary=pieces - 1, action_width=32)


def test_state_wider_than_its_padding_is_refused(model: Path) -> None:
    with pytest.raises(BundleError, match="found 33 state dims, expected at most the 32"):
        Prompter(model, interface("state-padded", dims=33), vocabulary=1000, action_width=32)
    Prompter(model, interface("state", dims=33), vocabulary=1000, action_width=32)


def test_contract_stays_light() -> None:
    program = "import sys, pi05_runtime.interface; sys.exit('sentencepiece' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
