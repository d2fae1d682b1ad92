"""The same small run twice: our pretraining recipe and PyTorch, same weights, batches, schedule and optimizer.

Blocks of updates alternate, so that whatever else the machine does meets both. Takes minutes, so it runs only when
named: python -m bench shakespeare --data FILE
"""

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyplm.backend import to_numpy
from tinyplm.errors import ConfigError
from tinyplm.recipes.pretrain import Finished, Prepared, pretrain
from tinyplm.recipes.run import Run, from_settings, read_toml
from tinyplm.text import TokenFile, Windows
from tinyplm.train.loop import Step

from .measure import (
    Contestant,
    Options,
    Record,
    Samples,
    describe,
    note,
    require_close,
    settle,
)

CONFIG = Path(__file__).parent.parent / "configs" / "shakespeare-char.toml"
BLOCK = 50


def run(options: Options) -> Iterator[Record]:
    """Both runs to their end: validation losses, and the seconds of their updates."""
    config = options.config or CONFIG
    settings = read_toml(config)
    if options.data:
        settings["data"] = str(options.data)
    settings["device"] = "cpu"
    chosen = from_settings(settings, str(config))
    if chosen.data is None:
        raise ConfigError("No text to train on; name one: --data FILE.")
    if chosen.model != "gpt2" or chosen.dropout or chosen.accumulate != 1:
        raise ConfigError(
            f"{config}: the PyTorch side is a GPT-2 without dropout and accumulation; found model={chosen.model}, "
            f"dropout={chosen.dropout}, accumulate={chosen.accumulate}."
        )
    steps = options.steps or chosen.steps
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # Looks and checkpoints are not counted; one at the end is enough.
        one: dict[str, Any] = {"steps": steps, "evaluate_every": steps, "checkpoint_every": steps}
        yield from _both(replace(chosen, output=str(Path(folder) / "run"), **one), options)


def _both(chosen: Run, options: Options) -> Iterator[Record]:
    events = pretrain(chosen)
    ready = next(events)
    assert isinstance(ready, Prepared)
    tokens = TokenFile.open(ready.output / "tokens.bin")
    training, held_out = tokens.split(chosen.validation)
    peer = _Peer(chosen, ready, training) if options.has("torch") else None
    samples, peer_samples = Samples(), Samples()
    score = math.nan
    for done in range(0, chosen.steps, BLOCK):
        count = min(BLOCK, chosen.steps - done)
        block: list[Step] = []
        settle()
        while len(block) < count:
            event = next(events, None)
            if event is None:  # a Ctrl-C ends the run after the update at hand
                raise KeyboardInterrupt
            if isinstance(event, Step):
                block.append(event)
        last = block[-1]
        samples.rounds.append([step.seconds for step in block])
        line = f"step {last.number}: ours {last.loss:.4f}, {sum(samples.all):.1f} s"
        if peer:
            settle()
            losses, seconds = peer.steps(done, count)
            peer_samples.rounds.append(seconds)
            line += f"; torch {losses[-1]:.4f}, {sum(peer_samples.all):.1f} s"
            if done == 0:
                require_close("loss of the first batch", block[0].loss, losses[0])
        note(line)
    for event in events:
        if isinstance(event, Finished):
            score = event.score.nats
    contestants = [Contestant(library="ours", variant="pretrain", run=lambda: None)]
    losses_of = [score]
    if peer:
        contestants.append(Contestant(library="torch", variant="eager", run=lambda: None))
        length = min(chosen.positions, len(held_out) - 1)
        windows = Windows(held_out, length=length, batch=chosen.batch, seed=chosen.seed)
        losses_of.append(peer.validation_loss(windows))
    times = [samples, peer_samples][: len(contestants)]
    records = describe(
        contestants,
        times,
        benchmark="shakespeare",
        what=f"{chosen.steps} updates; seconds of one",
        shapes=f"{chosen.batch}x{chosen.positions}, {chosen.layers} layers, {chosen.hidden_size} wide",
        options=options,
    )
    for record, found, loss in zip(records, times, losses_of, strict=True):
        note(
            f"{record['library']}: validation loss {loss:.4f} nats on the last {chosen.validation:.0%}, "
            f"{sum(found.all):.1f} s of updates"
        )
        yield record | {"validation_loss": loss, "seconds": sum(found.all)}


class _Peer:
    """The run in PyTorch."""

    def __init__(self, chosen: Run, ready: Prepared, training: TokenFile) -> None:
        from .torch_gpt import TorchTraining

        self.rate = chosen.rate
        self.windows = Windows(
            training, length=chosen.positions, batch=chosen.batch, seed=chosen.seed
        )
        self.training = TorchTraining(
            ready.model.config,
            {name: to_numpy(array) for name, array in ready.model.arrays().items()},
            beta_1=chosen.beta_1,
            beta_2=chosen.beta_2,
            weight_decay=chosen.weight_decay,
            clip=chosen.clip or None,
        )

    def steps(self, done: int, count: int) -> tuple[list[float], list[float]]:
        """Losses and seconds of the next updates; batches are made within the time, as in ours."""
        losses, seconds = [], []
        for number in range(done, done + count):
            began = time.perf_counter()
            ids = next(self.windows)["input_ids"]
            loss, _ = self.training.step(ids[:, :-1], ids[:, 1:], self.rate(number))
            seconds.append(time.perf_counter() - began)
            losses.append(loss)
        return losses, seconds

    def validation_loss(self, windows: Windows) -> float:
        """Mean nats over the held-out text, cut as ours is."""
        import torch

        total, count = 0.0, 0
        with torch.no_grad():
            for batch in windows.in_order():
                ids = np.asarray(batch["input_ids"])
                labels = ids[:, 1:]
                total += (
                    self.training.loss(*map(torch.from_numpy, (ids[:, :-1], labels))).item()
                    * labels.size
                )
                count += labels.size
        return total / count
