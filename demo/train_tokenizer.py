"""Train the demo's stand-in for PaliGemma's tokenizer, whose file is not ours to redistribute.

A small SentencePiece model with the conventions of the real one: byte-pair merges with byte fallback, every
digit a token of its own, text taken as it is (no normalisation, no added or dropped spaces), the newline a
single token, and the ids pad 0, eos 1, bos 2, unk 3. The corpus is in this file and its numbers are seeded,
so that a run always writes the same `tokenizer.model`.
"""

import io
import random
from pathlib import Path

import sentencepiece

MODEL = Path(__file__).resolve().parent / "tokenizer.model"
VOCABULARY_SIZE = 1024
METAWORLD_TASKS = """\
pick up a nut and place it onto a peg
dunk the basketball into the basket
grasp the puck from one bin and place it into another bin
grasp the cover and close the box with it
press the button from the top
press the button from the top through the wall
press the button
press the button behind the wall
push the button on the coffee machine
pull a mug from a coffee machine
push a mug under a coffee machine
rotate the dial by half a turn
pick a nut out of the peg
close the door with a revolving joint
lock the door by rotating the lock clockwise
open the door with a revolving joint
unlock the door by rotating the lock counter-clockwise
insert the gripper into the hole
open the drawer
push and close the drawer
rotate the faucet counter-clockwise
rotate the faucet clockwise
hammer a screw on the wall
press the handle down sideways
press the handle down
pull the handle up sideways
pull the handle up
pull a lever down by half a turn
pick the puck, bypass the wall and place it at the goal
pick the puck out of the hole
pick and place the puck at the goal
slide a plate into the cabinet
slide a plate into the cabinet sideways
get a plate from the cabinet
get a plate from the cabinet sideways
insert a peg sideways
unplug a peg sideways
kick the soccer ball into the goal
grasp a stick and push a box with it
grasp a stick and pull a box with it
push the puck to the goal
bypass the wall and push the puck to the goal
reach the goal position
bypass the wall and reach the goal position
pick up the puck and place it on the shelf
sweep the puck into the hole
sweep the puck off the table
push and open the window
push and close the window
""".splitlines()
LIBERO_TASKS = """\
pick up the black bowl between the plate and the ramekin and place it on the plate
pick up the black bowl next to the ramekin and place it on the plate
pick up the black bowl from the table center and place it on the plate
pick up the black bowl on the cookie box and place it on the plate
pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate
pick up the black bowl on the stove and place it on the plate
pick up the alphabet soup and place it in the basket
pick up the cream cheese and place it in the basket
pick up the salad dressing and place it in the basket
pick up the bbq sauce and place it in the basket
pick up the ketchup and place it in the basket
pick up the tomato sauce and place it in the basket
pick up the butter and place it in the basket
pick up the milk and place it in the basket
pick up the chocolate pudding and place it in the basket
pick up the orange juice and place it in the basket
open the middle drawer of the cabinet
open the top drawer and put the bowl inside
put the bowl on the stove
put the wine bottle on top of the cabinet
push the plate to the front of the stove
turn on the stove
put the wine bottle on the rack
turn on the stove and put the moka pot on it
put the black bowl in the bottom drawer of the cabinet and close it
put the white mug on the left plate and put the yellow and white mug on the right plate
pick up the book and place it in the back compartment of the caddy
put both the alphabet soup and the tomato sauce in the basket
put the yellow and white mug in the microwave and close it
""".splitlines()


def build_corpus() -> list[str]:
    """Each task as a bare sentence with its newline, and as prompts that print 4, 8 and 32 state values."""
    numbers = random.Random(0)
    corpus = []
    for task in METAWORLD_TASKS + LIBERO_TASKS:
        corpus.append(f"{task}\n")
        for dims in (4, 8, 32):
            state = " ".join(str(numbers.randint(-1, 255)) for _ in range(dims))
            corpus.append(f"Task: {task}, State: {state};\nAction: ")
    return corpus


def train(corpus: list[str]) -> bytes:
    """Train the model; returns the contents of the `.model` file."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        character_coverage=1.0,
        user_defined_symbols=["\n"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()


def main() -> None:
    """Train, check that every prompt of the corpus survives a round trip, and write the model."""
    corpus = build_corpus()
    contents = train(corpus)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=contents)
    for text in corpus:
        if tokenizer.decode(tokenizer.encode(text)) != text:
            raise SystemExit(f"the new tokenizer does not reproduce {text!r}; nothing was written")
    MODEL.write_bytes(contents)
    print(f"{MODEL.name}: {tokenizer.vocab_size()} tokens, {len(contents)} bytes")


if __name__ == "__main__":
    main()
