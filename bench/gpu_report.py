"""What a run on a card found: lines of JSON as they come, and one table last.

Lines are written at once, so that a run that is cut short loses nothing. The table has one line for each case: ours,
the share of the floor at the ceilings measured in the same run, what was predicted, and the best peer.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from .gpu_cases import COPY_RATE, PRODUCT_RATE, SINGLE_RATE
from .gpu_worker import Record

TITLE = (
    f"{'microseconds':<46}{'ours':>10} {'10-90 %':>17} {'rate':>10} {'floor':>6}"
    f" {'predicted':>15}  best peer"
)
WIDTH = 46


class Report:
    """The records of a run.

    Args:
        file: to which each record goes as a line.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.records: list[Record] = []
        self.file = file

    def add(self, record: Record) -> None:
        """Keep and write one."""
        self.records.append(record)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def of(self, section: str) -> list[Record]:
        """The records of a section."""
        return [r for r in self.records if r.get("section") == section]

    def floor(self, r: Record) -> float:
        """Seconds that it takes at least, at what this run measured; at what predictions stand on, where it did not."""
        found = {c["ceiling"]: c["rate"] for c in self.of("ceilings") if "rate" in c}
        products = [rate for name, rate in found.items() if name.startswith("product bfloat16")]
        rate = max(products, default=PRODUCT_RATE)
        if r["dtype"] == "float32":
            rate = found.get("product float32", SINGLE_RATE)
        return max(r["flops"] / rate, r["moved"] / found.get("copy", COPY_RATE))


def table(report: Report) -> str:
    """All of it for people: answers, ceilings, what is wrong, times, what was left out."""
    lines = _lines_of_the_card(report)
    if answers := report.of("questions"):
        lines += ["", "questions", *map(_answer, answers)]
    if checks := report.of("checks"):
        lines += ["", *_checks(checks)]
    if compiled := report.of("compile"):
        lines += ["", *_compiled(compiled)]
    times = report.of("times")
    if times:
        lines += ["", TITLE, *_times(times, report)]
    steps = report.of("steps")
    if steps:
        lines += ["", "training steps, tokens a second", *_steps(steps)]
    lines += _failures(report.records)
    if left := report.of("left out"):
        lines += ["", "left out for want of time: " + "; ".join(r["name"] for r in left)]
    return "\n".join(lines)


def _lines_of_the_card(report: Report) -> list[str]:
    lines = []
    for r in report.of("here"):
        versions = ", ".join(f"{name} {v}" for name, v in r.get("versions", {}).items() if v)
        missing = ", ".join(name for name, v in r.get("versions", {}).items() if not v)
        lines += [f"{r.get('card', 'no card')}; {r.get('clocks', '')}", versions]
        lines += [f"not installed: {missing}"] if missing else []
    for r in report.of("ceilings"):
        if "rate" in r:
            unit = "FLOP/s" if r["ceiling"].startswith("product") else "B/s"
            lines.append(f"ceiling: {r['ceiling']} {r['rate'] / 1e12:.2f} T{unit}")
    return lines


def _answer(r: Record) -> str:
    text = f"  {r.get('question', r.get('name', '?')):<32} {r.get('answer', 'no')}"
    return text + (f"   {r['failed'][:150]}" if "failed" in r else "")


def _checks(records: list[Record]) -> list[str]:
    good = [r for r in records if r.get("fine")]
    bad = [r for r in records if not r.get("fine")]
    unknown = [r for r in bad if "unknown" in r]
    lines = [
        f"correct, and twice the same bits: {len(good)} of {len(records) - len(unknown)} checks"
    ]
    for r in bad:
        if "unknown" not in r and "failed" not in r:
            lines.append(
                f"  WRONG {r.get('what')} {r.get('shapes')} {r.get('dtype')}: {r.get('said')}"
            )
    if unknown:
        lines.append("  no arguments are known for " + ", ".join(r["unknown"] for r in unknown))
    return lines


def _compiled(records: list[Record]) -> list[str]:
    done = [r for r in records if "seconds" in r]
    if not done:
        return []
    slow = max(done, key=lambda r: r["seconds"])
    spilled = [r["file"] for r in done if r.get("spills")]
    line = (
        f"compiled {len(done)} files in {sum(r['seconds'] for r in done):.1f} s of compilers' time, the slowest, "
        f"{slow['file']}, in {slow['seconds']:.1f} s"
    )
    return [line + (f"; registers spilled in {', '.join(spilled)}" if spilled else "")]


def _times(records: list[Record], report: Report) -> list[str]:
    groups: dict[str, list[Record]] = {}
    for r in records:
        if "what" in r:
            groups.setdefault(f"{r['what']} {r['shapes']} {short(r['dtype'])}", []).append(r)
    return [_line(name, _in_turns(group), report) for name, group in groups.items()]


def _in_turns(group: list[Record]) -> list[Record]:
    """Without times that were taken alone, where others were taken beside the peers."""
    beside = {(r["library"], r["variant"]) for r in group if "median" in r and "alone" not in r}
    return [r for r in group if "alone" not in r or (r["library"], r["variant"]) not in beside]


def _line(name: str, group: list[Record], report: Report) -> str:
    timed = [r for r in group if "median" in r]
    ours = min((r for r in timed if r["library"] == "ours"), key=_median, default=None)
    peers = sorted((r for r in timed if r["library"] != "ours"), key=_median)
    peer = ""
    if peers:
        best = peers[0]
        peer = f"{best['library']} {best['variant']} {micro(best['median'])}"
        peer += f" = {best['median'] / ours['median']:.2f}x" if ours else ""
    if ours is None:
        reason = "WRONG" if any("wrong" in r for r in group) else "failed"
        return f"{name:<{WIDTH}}{reason:>10} {'':>17} {'':>10} {'':>6} {'':>15}  {peer}"
    floor = report.floor(ours)
    spread = f"{micro(ours['low'])}-{micro(ours['high'])}"
    return (
        f"{name:<{WIDTH}}{micro(ours['median']):>10} {spread:>17} {rate(ours):>10}"
        f" {floor / ours['median']:>6.0%} {predicted(ours):>15}  {peer}"
    )


def _median(r: Record) -> float:
    return float(r["median"])


def _steps(records: list[Record]) -> list[str]:
    groups: dict[str, list[Record]] = {}
    for r in records:
        groups.setdefault(r.get("shapes", r["name"]), []).append(r)
    lines = []
    for name, group in groups.items():
        shown = [
            f"{r['library']} {r['variant']} {r['tokens_per_second'] / 1e3:,.0f} k ({r['median'] * 1e3:.2f} ms)"
            for r in group
            if "tokens_per_second" in r
        ]
        expected = next((f"; predicted {predicted(r)} us" for r in group if r.get("predicted")), "")
        lines.append(f"  {name}: {'; '.join(shown) or 'failed'}{expected}")
    return lines


def _failures(records: Iterable[Record]) -> list[str]:
    """Ours one by one; of peers, which do not take everything, how often each failed and what it said first."""
    lines: list[str] = []
    peers: dict[str, list[str]] = {}
    for r in records:
        if "failed" in r and r.get("library", "ours") != "ours":
            peers.setdefault(f"{r['library']} {r['variant']}", []).append(r["failed"][:120])
        elif "failed" in r and r.get("section") != "questions":
            whose = (
                f"{r['variant']} {r.get('shapes', '')} {r.get('dtype', '')}: "
                if "variant" in r
                else ""
            )
            lines.append(f"  {r.get('name', '')}: {whose}{r['failed'][:200]}")
        elif "wrong" in r:
            how = r.get("said") or f"{r['wrong']:.2g} of what is allowed"
            lines.append(
                f"  {r['what']} {r['shapes']} {r['dtype']}: {r['library']} {r['variant']} is wrong: {how}"
            )
    lines = ["", "failed", *dict.fromkeys(lines)] if lines else []
    if peers:
        lines += ["", "peers that did not take a case"]
        lines += [f"  {name}, {len(said)} of them: {said[0]}" for name, said in peers.items()]
    return lines


def short(dtype: str) -> str:
    """A type's name for a table."""
    return {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(dtype, dtype)


def micro(seconds: float) -> str:
    """Microseconds, in four digits or so."""
    value = seconds * 1e6
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def rate(r: Record) -> str:
    """Operations per second where those decide, else bytes."""
    if r["flops"] / PRODUCT_RATE > r["moved"] / COPY_RATE:
        return f"{r['flops'] / r['median'] / 1e12:.0f} TF/s"
    return f"{r['moved'] / r['median'] / 1e12:.2f} TB/s"


def predicted(r: Record) -> str:
    """The times that were expected."""
    if not r.get("predicted"):
        return "-"
    low, high = r["predicted"]
    return f"{micro(low)}-{micro(high)}" if low != high else micro(low)
