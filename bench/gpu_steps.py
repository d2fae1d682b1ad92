"""Whole training steps on a card, ours and those of PyTorch: loss, gradients, clipping, AdamW, in bfloat16.

Ours is what `tinyplm pretrain` does: parameters in bfloat16 with float32 masters, batches sent ahead, numbers read
late, steps that come again replayed as a graph. PyTorch keeps float32 parameters, computes under autocast, and compiles
model and loss as one. Both start from the same weights on the same batches; their first losses have to agree.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle
from typing import Any

import numpy as np

from tinyplm.models.gpt2 import Gpt2
from tinyplm.objectives import CausalLM
from tinyplm.optim import AdamW
from tinyplm.train.loop import train

from . import bert_step, t5_step
from .gpu_cases import Case, Ground, Seconds, Work, dtype_of, ground_of
from .gpu_worker import Record, State, said
from .steps import CLIP, SETTINGS, Size

RATE = 1e-4
TURN = 0.7
"""Seconds of steps in a turn."""
ROUNDS = 3
WARM = 4
"""Steps before anything is timed: compiled, sized, recorded, replayed."""
AGREE = 2e-2
"""Share by which first losses may differ, as different numbers are rounded."""

Run = Callable[[int], float]
"""Does so many steps and returns the last one's loss, which waits for them."""


@dataclass(frozen=True)
class Stepped:
    """A step to time.

    Attributes:
        tokens: of a step.
        flops: of its products.
        ours: what makes ours, by variant.
        peers: what makes those of PyTorch, by variant.
        predicted: seconds of a step by the design (none measured).
    """

    tokens: int
    flops: float
    ours: dict[str, Callable[[], Run]]
    peers: dict[str, Callable[[], Run]]
    predicted: Seconds | None = None


# ---- GPT-2


def _gpt(size: Size, parts: int, predicted: Seconds | None = None) -> Stepped:
    """A GPT-2 without dropout, a step of so many batches."""
    ours, theirs = _our_gpts(size, parts), _their_gpts(size, parts)
    return Stepped(size.tokens * parts, size.flops() * parts, ours, theirs, predicted)


def _our_gpts(size: Size, parts: int) -> dict[str, Callable[[], Run]]:
    def make(graph: bool) -> Run:
        model = Gpt2(size.config, rng=None)
        model.load(size.weights())
        return ours(model, CausalLM(), _windows(size), parts, graph)

    return {"graph": partial(make, True), "without a graph": partial(make, False)}


def _windows(size: Size) -> list[dict[str, Any]]:
    """A few batches of random ids."""
    rng = np.random.default_rng(1)
    shape = (size.batch, size.positions + 1)
    return [{"input_ids": rng.integers(0, size.vocabulary, shape)} for _ in range(4)]


def ours(model: Any, objective: Any, batches: list[Any], parts: int, graph: bool) -> Run:
    """Our loop, on the card in bfloat16."""
    model.to("cuda", dtype_of("bfloat16"))
    optimizer = AdamW(model.named_parameters(), **SETTINGS)
    steps = train(
        model, objective, cycle(batches), optimizer, lambda _: RATE,
        rng=np.random.default_rng(2), accumulate=parts, clip=CLIP, graph=graph,
    )  # fmt: skip

    def run(count: int) -> float:
        step = None
        for _ in range(count):
            step = next(steps)
        return step.loss if step is not None else math.nan

    return run


def _their_gpts(size: Size, parts: int) -> dict[str, Callable[[], Run]]:
    def make(mode: str | None) -> Run:
        from .torch_gpt import TorchGpt

        return theirs(TorchGpt(size.config, size.weights()), _gpt_loss, _shifted(size), parts, mode)

    modes: dict[str, str] = {"compiled": "default"}
    if parts == 1:  # gradients that add up lie in a graph's memory, which a replay overwrites
        modes["compiled, graphs"] = "reduce-overhead"
    return {name: partial(make, mode) for name, mode in modes.items()} | {
        "eager": partial(make, None)
    }


def _gpt_loss(model: Any, ids: Any, labels: Any) -> Any:
    from torch.nn import functional

    return functional.cross_entropy(model(ids).flatten(0, 1).float(), labels.flatten())


def _shifted(size: Size) -> list[tuple[Any, ...]]:
    return [
        (np.ascontiguousarray(b["input_ids"][:, :-1]), np.ascontiguousarray(b["input_ids"][:, 1:]))
        for b in _windows(size)
    ]


def theirs(
    model: Any,
    loss: Callable[..., Any],
    batches: list[tuple[Any, ...]],
    parts: int,
    mode: str | None,
) -> Run:
    """PyTorch's step: parameters float32, autocast, fused AdamW; compiled in a mode, or as it is written."""
    import torch

    from .gpu_peers import DEVICE

    model = model.to(DEVICE).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": SETTINGS["weight_decay"]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=RATE, betas=(SETTINGS["beta_1"], SETTINGS["beta_2"]), eps=1e-8, fused=True,
    )  # fmt: skip

    def forward(*batch: Any) -> Any:
        with torch.autocast(DEVICE, torch.bfloat16):
            return loss(model, *batch)

    if mode is not None:
        forward = torch.compile(forward, mode=mode, dynamic=False)
    pinned = [tuple(_pinned(torch.from_numpy(a)) for a in batch) for batch in batches]
    given = cycle(pinned)

    def run(count: int) -> float:
        total = torch.zeros((), device=DEVICE)
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), device=DEVICE)
            for _ in range(parts):
                batch = tuple(t.to(DEVICE, non_blocking=True) for t in next(given))
                if mode == "reduce-overhead":
                    torch.compiler.cudagraph_mark_step_begin()
                part = forward(*batch) / parts
                part.backward()
                total += part.detach()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
        return float(total)

    return run


def _pinned(batch: Any) -> Any:
    from .gpu_peers import DEVICE

    return batch.pin_memory() if DEVICE == "cuda" else batch


# ---- BERT and T5


def _bert() -> Stepped:
    size = bert_step.Size(12, 12, 768, 32, 512, 30_522)
    return Stepped(
        size.batch * size.length,
        size.flops(),
        {"graph": partial(_our_bert, size)},
        {variant: partial(_their_bert, size, mode) for variant, mode in _MODES.items()},
    )


_MODES = {"transformers compiled": "default", "transformers eager": None}


def _our_bert(size: bert_step.Size) -> Run:
    from tinyplm.models.bert import Bert

    model = Bert(size.config, rng=None)
    model.load(size.weights())
    return ours(model, _AsItIs(size.objective()), [size.batch_of_pairs()], 1, True)


class _AsItIs:
    """An objective whose batches are prepared already."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective

    def prepare(self, batch: Any, *, rng: Any) -> Any:
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)


def _their_bert(size: bert_step.Size, mode: str | None) -> Run:
    import torch
    import transformers

    from tinyplm.hub.bert import write_arrays, write_config

    config = transformers.BertConfig(**write_config(size.config, None))
    model = transformers.BertForPreTraining(config)
    arrays = write_arrays(size.config, size.weights())
    model.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()}, strict=False)
    batch = size.batch_of_pairs()
    batch["next_sentence_label"] = batch.pop("next_sentence_labels")
    return _their_model(model, batch, mode)


def _their_model(model: Any, batch: dict[str, Any], mode: str | None) -> Run:
    names = list(batch)

    def loss(model: Any, *values: Any) -> Any:
        return model(**dict(zip(names, values, strict=True))).loss

    return theirs(model, loss, [tuple(np.asarray(v) for v in batch.values())], 1, mode)


def _t5(size: t5_step.Size) -> Stepped:
    return Stepped(
        size.batch * (size.inputs + size.targets),
        size.flops(),
        {"graph": partial(_our_t5, size)},
        {variant: partial(_their_t5, size, mode) for variant, mode in _MODES.items()},
    )


def _our_t5(size: t5_step.Size) -> Run:
    from tinyplm.models.t5 import T5
    from tinyplm.objectives import SpanCorruption

    model = T5(size.config, rng=None)
    model.load(size.weights())
    objective = _AsItIs(SpanCorruption(sentinels=(0,), end=1))
    return ours(model, objective, [size.prepared()], 1, True)


def _their_t5(size: t5_step.Size, mode: str | None) -> Run:
    import torch
    import transformers

    from tinyplm.hub.t5 import write_arrays, write_config

    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**write_config(size.config, None))
    )
    arrays = write_arrays(size.config, size.weights())
    model.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in arrays.items()}, strict=False)  # fmt: skip
    return _their_model(model, size.prepared(), mode)


# ---- all of them

GPT2 = Size(12, 12, 768, 16, 1024, 50_304)
CHARACTERS = Size(6, 6, 384, 64, 256, 65)
STEPS: dict[str, tuple[Callable[[], Stepped], int]] = {
    "GPT-2 124M, 4 of 16x1024": (partial(_gpt, GPT2, 4, (0.114, 0.150)), 1),
    "GPT 6 layers 384 wide, 64x256": (partial(_gpt, CHARACTERS, 1), 1),
    "BERT-base, 32x512": (_bert, 2),
    "T5-small, 32x512": (partial(_t5, t5_step.Size(6, 8, 512, 32, 512, 32_128)), 2),
    "T5-base, 32x512": (partial(_t5, t5_step.Size(12, 12, 768, 32, 512, 32_128)), 3),
}
"""By name, with their priority."""


@cache
def _stepped(name: str) -> Stepped:
    return STEPS[name][0]()


def cases(settings: dict[str, Any]) -> list[Case]:
    """None where sizes were asked for, which are those of kernels."""
    if settings.get("sizes"):
        return []
    found = []
    for name, (_, priority) in STEPS.items():
        stepped = _stepped(name)
        found.append(
            Case(
                family="steps",
                what="step",
                shapes=name,
                dtype="bfloat16",
                flops=stepped.flops,
                moved=0.0,
                predicted=stepped.predicted,
                source="12, good and second version" if stepped.predicted else "",
                priority=priority,
                seconds=40.0,
                limit=240.0,
                quick=priority == 1,
                compiles=True,
                build=lambda ground: Work([], lambda results: 0.0),
                files=partial(_launched, name) if priority == 1 else None,
                function="bench.gpu_steps:timed",
                warming="bench.gpu_steps:warmed",
            )
        )
    return found


def _launched(name: str, ground: Ground) -> list[str]:
    """Launches what a step does."""
    next(iter(_stepped(name).ours.values()))()(1)
    return []


def timed(state: State, name: str) -> Iterator[Record]:
    """Ours and then PyTorch's, each as soon as it is there; ours once more at the end, as clocks may have changed."""
    ground = ground_of(state)
    case = next(c for c in cases(state.settings) if c.name == name)
    stepped, first, again = _stepped(case.shapes), math.nan, None
    entries = [("ours", variant, make) for variant, make in stepped.ours.items()]
    if "torch" in ground.peers:
        entries += [("torch", variant, make) for variant, make in stepped.peers.items()]
    for library, variant, make in entries:
        about = case.about() | {"library": library, "variant": variant}
        try:
            began = time.perf_counter()
            run = make()
            loss = run(1)
            run(WARM)
            about["ready"] = time.perf_counter() - began
            if math.isnan(first):
                first = loss
            if not abs(loss - first) <= AGREE * abs(first):
                yield about | {"wrong": loss, "said": f"first loss {loss:.4f}, ours {first:.4f}"}
                continue
            yield (
                about
                | {"loss": loss, "memory": _memory(ground, library)}
                | _turns(ground, run, stepped)
            )
            again = again or (about, run)
        except Exception as problem:
            yield about | {"failed": said(problem)}
            ground.card.synchronize()
        finally:
            run = None  # of ours the first is still held
            ground.free()
    if again is not None and len(entries) > 1:
        about, run = again
        yield about | {"again": _turns(ground, run, stepped)["median"]}
    again = run = None
    ground.free()


def _turns(ground: Ground, run: Run, stepped: Stepped) -> Record:
    """Seconds of a step, batches and all that the host does for them included."""
    began = time.perf_counter()
    run(1)
    count = max(1, round(TURN / (time.perf_counter() - began)))
    found = []
    for _ in range(ROUNDS):
        ground.card.synchronize()
        began = time.perf_counter()
        loss = run(count)
        found.append((time.perf_counter() - began) / count)
        ground.card.wait(0.3)
    median = statistics.median(found)
    return {
        "how": "wall",
        "median": median,
        "low": min(found),
        "high": max(found),
        "samples": count * ROUNDS,
        "last_loss": loss,
        "tokens": stepped.tokens,
        "tokens_per_second": stepped.tokens / median,
    }


def _memory(ground: Ground, library: str) -> int:
    """Bytes that a library has taken from the card."""
    if library == "torch":
        import torch

        return int(torch.cuda.memory_reserved())
    return int(ground.xp.get_default_memory_pool().total_bytes())


def warmed(state: State, name: str) -> Iterator[Record]:
    """Let PyTorch compile its steps."""
    case = next(c for c in cases(state.settings) if c.name == name)
    for variant, make in _stepped(case.shapes).peers.items():
        if "compiled" in variant:
            try:
                make()(1)
            except Exception as problem:
                yield {"what": name, "variant": variant, "note": said(problem)}
