"""Text that goes on from a prompt, told as it comes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..analysis.reading import read, translates, writes
from ..errors import ConfigError, ShapeError
from ..generate import generate
from ..text import Tokenizer
from ..types import Generator
from .trained import Trained


@dataclass(frozen=True)
class Continuation:
    """What a model wrote.

    Attributes:
        text: without the prompt.
        ids: its tokens; the end of text, if it came, is the last.
        prompt_tokens: tokens of the prompt.
        ended: the model ended the text itself.
        slid: the text became longer than the model's positions.
    """

    text: str
    ids: list[int]
    prompt_tokens: int
    ended: bool
    slid: bool


def generate_text(
    trained: Trained,
    prompt: str,
    *,
    max_new_tokens: int,
    rng: Generator | None = None,
    num_beams: int = 1,
    on_text: Callable[[str], None] | None = None,
    on_slide: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Continuation:
    """Continue a prompt, without one begin a text; a model of two parts reads the prompt and writes another text.

    A text that outgrows the model's positions goes on from its last half window, again and again, so the model sees
    between one half and all of its positions. A beam search cannot do that.

    Args:
        trained: the model and its tokenizer.
        prompt: what to go on from.
        max_new_tokens: how many tokens to add at most.
        rng: draws the tokens; without it the most probable ones are taken.
        num_beams: of a beam search; 1 for none.
        on_text: called with each piece of text as it is known, never with part of a character; not for beams.
        on_slide: called the first time the text outgrows the model, with its positions and how many are kept.
        **settings: temperature, top_k, top_p, repetition_penalty of `tinyplm.generate.generate`.

    Raises:
        ConfigError: the model writes no text, or a setting that cannot be.
        ShapeError: the prompt is too long.
        DataError: the prompt has characters that the tokenizer does not know.
    """
    model, tokenizer = trained.model, trained.tokenizer
    if translates(model):
        return _answer(
            trained,
            prompt,
            on_text,
            max_new_tokens=max_new_tokens,
            rng=rng,
            num_beams=num_beams,
            **settings,
        )
    if not writes(model):
        raise ConfigError(
            f"A {type(model).__name__} fills gaps in a text; it cannot go on from a prompt. In Python: "
            'tinyplm.pipeline("fill-mask", model=folder).'
        )
    given = tokenizer.encode(prompt).tolist() or [first_token(tokenizer)]
    positions = model.config.positions or len(given) + max_new_tokens  # None has no longest context
    if len(given) > positions:
        raise ShapeError(
            f"The prompt has {len(given):,} tokens, but this model has {positions:,} positions. Shorten it to "
            f"{positions:,} tokens or fewer, of which the last matter most."
        )
    if num_beams > 1 and len(given) + max_new_tokens - 1 > positions:
        raise ShapeError(
            f"{len(given):,} tokens of prompt and {max_new_tokens:,} new ones are more than this model's {positions:,} "
            f"positions, and a beam search cannot go past them. Ask for {positions + 1 - len(given):,} new tokens "
            "or fewer, or do without beams."
        )
    end = tokenizer.end_of_text
    stream = TextStream(tokenizer, on_text)
    seen, new = given, list[int]()
    ended = slid = False
    while len(new) < max_new_tokens and not ended:
        if new:
            slid = True
            seen = (given + new)[-max(1, positions // 2) :]
            if on_slide is not None:
                on_slide(positions, len(seen))
                on_slide = None
        count = max_new_tokens - len(new)
        if num_beams == 1:
            count = min(count, positions + 1 - len(seen))
        ids = generate(
            model,
            np.array([seen]),
            max_new_tokens=count,
            do_sample=rng is not None,
            rng=rng,
            num_beams=num_beams,
            eos_token_id=end,
            on_token=(lambda ids: stream.add(int(ids[0]))) if num_beams == 1 else None,
            **settings,
        )[0, len(seen) :].tolist()
        new += ids
        ended = end is not None and new[-1] == end
        if num_beams > 1:
            break
    stream.close()
    return Continuation(
        text=tokenizer.decode(new, skip_special=True),
        ids=new,
        prompt_tokens=len(given),
        ended=ended,
        slid=slid,
    )


def _answer(
    trained: Trained,
    prompt: str,
    on_text: Callable[[str], None] | None,
    *,
    rng: Generator | None,
    num_beams: int,
    **settings: Any,
) -> Continuation:
    """What a model of two parts writes on reading the prompt."""
    model, tokenizer = trained.model, trained.tokenizer
    batch = read(model, tokenizer, prompt)
    end = tokenizer.end_of_text
    stream = TextStream(tokenizer, on_text)
    ids = generate(
        model,
        **batch,
        do_sample=rng is not None,
        rng=rng,
        num_beams=num_beams,
        eos_token_id=end,
        on_token=(lambda ids: stream.add(int(ids[0]))) if num_beams == 1 else None,
        **settings,
    )[0, 1:].tolist()
    stream.close()
    return Continuation(
        text=tokenizer.decode(ids, skip_special=True),
        ids=ids,
        prompt_tokens=batch["input_ids"].shape[1],
        ended=end is not None and ids[-1] == end,
        slid=False,
    )


def first_token(tokenizer: Tokenizer) -> int:
    """What a text begins after: the end of another, else a new line, else the first token there is."""
    if tokenizer.end_of_text is not None:
        return tokenizer.end_of_text
    return tokenizer.id("\n") if "\n" in tokenizer else 0


class TextStream:
    """Ids in, text out, as soon as no later id can change it.

    A token may hold part of a character, or be written differently behind another; so a few tokens are decoded
    together, and what ends in half a character waits for the rest.
    """

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], None] | None) -> None:
        self.tokenizer = tokenizer
        self.write = write
        self._ids: list[int] = []  # from the last piece that was written on
        self._told = 0  # how many of them are written

    def add(self, token: int) -> None:
        """Take one more id."""
        if self.write is None:
            return
        self._ids.append(token)
        text = self._waiting()
        if text and not text.endswith("\ufffd"):
            self.write(text)
            self._ids, self._told = self._ids[self._told :], len(self._ids) - self._told

    def close(self) -> None:
        """Write what still waits, half characters too."""
        if self.write is not None and (text := self._waiting()):
            self.write(text)
        self._ids, self._told = [], 0

    def _waiting(self) -> str:
        whole = self.tokenizer.decode(self._ids, skip_special=True)
        return whole[len(self.tokenizer.decode(self._ids[: self._told], skip_special=True)) :]
