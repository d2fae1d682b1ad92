"""What each kernel may take, and the instructions that are to be in it. Every kernel of every file needs a row.

A file's rows are patterns of names; the first that fits a whole name is the kernel's. Beside what a row says, no kernel
may keep anything in a thread's own memory, compute in float64, add floats atomically or use tensor cores, unless
its row names such an instruction or excuses it.
"""

import re
from typing import NamedTuple

from machine_code import Kernel

from tinyplm.kernels import attention_plan, cuda, matmul_hopper, matmul_tiles

PORTABLE = ("sm_90a", "sm_80")
"""What files are compiled for."""

ARCHITECTURES: dict[str, tuple[str, ...]] = {"matmul_hopper": ("sm_90a",)}
"""Of files that are not for both."""

_TILES = [" ".join(map(str, tile[1:])) for tile in matmul_tiles.TILES]
_PLAIN_TILES = [" ".join(map(str, tile[1:])) for tile in matmul_tiles.PLAIN_TILES]
_HOPPER_TILES = [" ".join(map(str, tile)) for tile in matmul_hopper.TILES]
_ATTENTION = [
    *(attention_plan.Kind("bfloat16", 64, extras) for extras in (0, 4, 5, 6, 8)),
    *(
        attention_plan.Kind("bfloat16", *of)
        for of in ((32, 4), (128, 0), (128, 4), (256, 0), (256, 4))
    ),
    attention_plan.Kind("float16", 64, 4),
    *(attention_plan.Kind("float", *of) for of in ((64, 6), (128, 0))),
]


def launches(kind: attention_plan.Kind) -> list[attention_plan.Launch]:
    """What attention launches for a kind: forward, for up to 64 queries and for more; of keys; of queries."""
    forward = [attention_plan.forward(kind, queries) for queries in (64, 65)]
    return [*forward, attention_plan.keys(kind), attention_plan.queries(kind)]


_EACH = [launches(kind) for kind in _ATTENTION]
_FORWARD = [launch for each in _EACH for launch in each[:2]]
_KEYS, _QUERIES = [each[2] for each in _EACH], [each[3] for each in _EACH]


def _made(launches: list[attention_plan.Launch]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(launch.file.partition(" ")[2] for launch in launches))


INSTANCES: dict[str, tuple[str, ...]] = {
    "attention": _made(_FORWARD),
    "attention_decode": (
        "bfloat16 8 1 false",
        "bfloat16 16 4 true",
        "float16 8 4 false",
        "float 16 1 false",
    ),
    "attention_pullback": _made(_KEYS + _QUERIES),
    "matmul": (
        *(f"bfloat16 {t} {ab} whole plain" for t in _TILES[:3] for ab in ("n n", "n t", "t n")),
        *(f"bfloat16 {t} {ab} whole plain" for t in _TILES[3:] for ab in ("n t", "t n")),
        *(f"bfloat16 {t} n n single plain" for t in _TILES[::2]),
        *(f"float16 {_TILES[0]} {how}" for how in ("t t whole plain", "t n single gelu")),
        *(f"bfloat16 {t} n n whole gelu_tanh" for t in _TILES[:2]),
        *(f"bfloat16 {t} n t whole slope" for t in _TILES[:2]),
    ),
    "matmul_float32": (
        *(f"{t} {ab} plain" for t in _PLAIN_TILES for ab in ("n n", "n t", "t n")),
        *(f"{_PLAIN_TILES[0]} {how}" for how in ("n n gelu_tanh", "n t slope")),
    ),
    "matmul_few": ("bfloat16 n plain", "bfloat16 t plain", "float16 n gelu", "float16 t slope"),
    "matmul_few_float32": ("1 n plain", "1 t gelu", "8 n gelu_tanh", "8 t plain"),
    "matmul_hopper": (
        *(f"bfloat16 {t} {ab} plain" for t in _HOPPER_TILES for ab in ("n n", "t n")),
        *(f"float16 {_HOPPER_TILES[3]} {how}" for how in ("n t plain", "t t gelu_tanh")),
        *(f"bfloat16 {_HOPPER_TILES[0]} {how}" for how in ("n t slope", "n n gelu_tanh")),
        f"bfloat16 {_HOPPER_TILES[4]} n t slope_tanh",
        *(
            f"bfloat16 {' '.join(map(str, tile))} n n gelu"
            for tile in matmul_hopper.TILES
            if tile.sums <= matmul_hopper.MOST_SUMS["gelu"]
        ),
    ),
    "matmul_parts": ("bfloat16 plain", "float16 gelu", "float32 slope_tanh"),
}
"""Of a file of templates, what its kernels are made for, all that are launched: {"matmul": ("float16 64",)}."""

CARDS = {"sm_90a": cuda.Card(90, 132, 227 * 1024), "sm_80": cuda.Card(80, 108, 163 * 1024)}
"""An H100 or H200, and an A100."""

PER_PROCESSOR = {"sm_90a": 228 * 1024, "sm_80": 164 * 1024}
"""Bytes of shared memory of a multiprocessor, of which each block takes 1,024 for the system."""

REGISTERS = 65_536
"""Of a multiprocessor. They are given to warps, 256 at a time."""


class Budget(NamedTuple):
    """What a kernel may take.

    Attributes:
        registers: of a thread, at most.
        threads: of a block, as it is launched.
        blocks: that are to fit on a multiprocessor together.
        shared: bytes of static shared memory, at most.
        dynamic: bytes of dynamic shared memory of the largest launch, from the expression that the launcher uses.
        wanted: instructions of which each is there, as in "LDG.128 HMMA.BF16": a name, and what it has behind dots.
        unwanted: instructions that are not there.
        excused: of the rules for all kernels (names in `RULES`), those that do not hold here.
        unbranched: the most instructions LDG.128 in one stretch without a label or a jump, at least so many.
        least: registers of a thread, where warps later take those of others and wait for ever if there are fewer.
    """

    registers: int
    threads: int = cuda.THREADS
    blocks: int = 1
    shared: int = 0
    dynamic: int = 0
    wanted: str = ""
    unwanted: str = ""
    excused: str = ""
    unbranched: int = 0
    least: int = 0


RULES = {
    "local": r"(LDL|STL)(\..*)?",
    "float64": r"D(ADD|MUL|FMA|MNMX|SETP|MMA)(\..*)?|\w+\.(.*\.)?F64(\..*)?|MUFU\..*64H",
    "atomic": r"(RED|ATOM)\w*\.(.*\.)?(F16|F32|F64|BF16)(\..*|x2.*)?",
    "tensor": r"\w*MMA(\..*)?",
}
"""Instructions that no kernel has without saying so in its row."""

VECTORS = "LDG.128 STG.128"
SINGLE = "LDG.U16 STG.U16 LDG.U8"
"""Unwanted where all of a row is read by vectors."""


def _rows_of(forward: Budget, pullback: Budget, name: str) -> dict[str, Budget]:
    """Kernels of a row in each of the shapes of prelude.cu; those that hold a row ask for all of it at once."""
    found = {}
    for way, budget in (("forward", forward), ("pullback", pullback)):
        start = rf"{name}_{way}"
        held = budget._replace(wanted=VECTORS)
        found |= {
            rf"{start}_float32_(warp|block)": held._replace(unbranched=8),
            rf"{start}_\w+_(warp|block)": held._replace(unbranched=4, unwanted=SINGLE),
            rf"{start}_\w+_wide": Budget(64, shared=64, wanted=VECTORS, unwanted=SINGLE),
            rf"{start}_\w+_(narrow|any)": Budget(64, shared=64, unwanted=VECTORS),
        }
    return found


def _products() -> dict[str, Budget]:
    """Every tile of tensor cores, with as many registers as leave room for its blocks."""
    found = {}
    for tile in matmul_tiles.TILES:
        threads = 32 * tile.warps
        name = rf"_{tile.rows}x{tile.columns}_{tile.down}x{tile.across}_.._"
        row = Budget(REGISTERS // (threads * tile.resident), threads, tile.resident)
        row = row._replace(dynamic=tile.shared, wanted="HMMA.16816.F32 LDSM LDS.128 STG.128")
        found[rf"product_\w+{name}whole_\w+"] = row._replace(wanted=f"{row.wanted} LDGSTS.128")
        if tile in matmul_tiles.TILES[::2]:
            found[rf"product_\w+{name}single_\w+"] = row._replace(unwanted="LDGSTS")
    return found


def _hopper_products() -> dict[str, Budget]:
    """Registers are those at the start; then groups that multiply take them from the one that brings."""
    registers = REGISTERS // matmul_hopper.THREADS // 8 * 8
    wanted = "UTMALDG.3D USETMAXREG WARPGROUP.ARRIVE WARPGROUP.DEPBAR STG.128"
    return {
        rf"product_\w+_{tile.rows}x{tile.columns}_{tile.groups}_{tile.blocks}_\w+": Budget(
            registers, matmul_hopper.THREADS, least=registers, dynamic=tile.shared,
            wanted=f"{wanted} HGMMA.64x{tile.columns}x16.F32{' UCGABAR_ARV' * (tile.cluster - 1)}",
        )
        for tile in matmul_hopper.TILES
    }  # fmt: skip


def _plain_products() -> dict[str, Budget]:
    found = {}
    for tile in matmul_tiles.PLAIN_TILES:
        registers = REGISTERS // (tile.threads * tile.resident)
        found[rf"product_float32_{tile.rows}x{tile.columns}_\w+"] = Budget(
            registers, tile.threads, tile.resident,
            dynamic=tile.shared, wanted="FFMA LDGSTS LDS.128 STG.128",
        )  # fmt: skip
    return found


def _attention(name: str, launches: list[attention_plan.Launch]) -> dict[str, Budget]:
    """One row for halves, which tensor cores multiply, and one for floats."""
    most = {
        kind: max(x.shared for x in launches if ("float_" in f"{x.kernel}_") == kind)
        for kind in (True, False)
    }
    common = Budget(255, attention_plan.BLOCK)
    return {
        rf"{name}_b?float16": common._replace(dynamic=most[False], wanted="HMMA LDSM MUFU.EX2"),
        rf"{name}_float": common._replace(dynamic=most[True], wanted="MUFU.EX2"),
    }


BUDGETS: dict[str, dict[str, Budget]] = {
    "attention": _attention("attention_forward", _FORWARD),
    "attention_decode": {
        r"attention_decode_\w+": Budget(200, attention_plan.BLOCK, 2, shared=20 * 1024),
        r"attention_join_\w+": Budget(64, attention_plan.BLOCK, 8),
    },
    "attention_mask": {"attention_mask": Budget(40, blocks=6)},
    "attention_pullback": {
        **_attention("attention_pullback_keys", _KEYS),
        **_attention("attention_pullback_queries", _QUERIES),
    },
    "attention_sums": {
        r"attention_numbers_\w+": Budget(80, blocks=3, wanted="LDG.128"),
        r"attention_add_pairs_\w+": Budget(64, blocks=4),
        r"attention_add_differences_\w+": Budget(64, blocks=4, shared=8 * 32 * 4),
    },
    "adam": {
        r"adamw_update_many": Budget(64, blocks=4, wanted=f"{VECTORS} STG.64"),
        r"squares_of_many": Budget(64, blocks=4, shared=64, wanted="LDG.128", excused="float64"),
        r"add_up|clip_by_norm": Budget(64, 1024, shared=256, excused="float64"),
    },
    "cross_entropy": {
        r"cross_entropy_forward_\w+": Budget(64, 512, 2, shared=128, wanted="LDG.128"),
        r"cross_entropy_in_place_\w+": Budget(64, 512, 2, shared=128, wanted=VECTORS),
        r"cross_entropy_pullback_\w+": Budget(64, 512, 2, wanted=VECTORS),
        r"cross_entropy_total": Budget(64, 512, shared=128, excused="float64"),
    },
    "dropout": {r"dropout_\w+": Budget(40, blocks=6, wanted=VECTORS)},
    "gelu": {r"gelu_\w+": Budget(64, blocks=4, wanted=VECTORS)},
    "layer_norm": {
        r"norm_finish": Budget(64, 1024, shared=32 * 33 * 4, unwanted=VECTORS),
        # A row held is 32 values of x and 32 of g or of what is added, gain and bias, and two sums of each column.
        **_rows_of(Budget(128, blocks=2, shared=32), Budget(240, shared=32), "norm"),
    },
    "matmul": _products(),
    "matmul_float32": _plain_products(),
    "matmul_hopper": _hopper_products(),
    "matmul_few": {
        r"few_\w+": Budget(
            128, blocks=2, dynamic=36_864, wanted="HMMA.16816.F32 LDSM LDG.128", unbranched=16
        )
    },
    "matmul_few_float32": {
        r"few_float32_8_n[nt]_\w+": Budget(
            128, blocks=2, shared=49_152, wanted="FFMA LDG.128", unbranched=8
        ),
        r"few_float32_1_n[nt]_\w+": Budget(
            96, blocks=2, shared=6_144, wanted="FFMA LDG.128", unbranched=8
        ),
    },
    "matmul_parts": {r"add_parts_\w+": Budget(64, blocks=4, wanted=VECTORS)},
    "relu": {r"relu_\w+": Budget(40, blocks=6, wanted=VECTORS)},
    "scale": {r"scale_\w+": Budget(40, blocks=6, wanted=VECTORS)},
    "softmax": _rows_of(
        Budget(96, blocks=2, shared=64), Budget(96, blocks=2, shared=64), "softmax"
    ),
    "sum_rows": {
        r"sum_rows_float32_groups": Budget(40, blocks=6, shared=4096, wanted="LDG.128"),
        r"sum_rows_\w+_groups": Budget(40, blocks=6, shared=8192, wanted="LDG.128"),
        r"sum_rows_\w+_single": Budget(40, blocks=6, shared=1024),
    },
    "take_rows": {
        r"copy_rows_16": Budget(40, wanted=VECTORS),
        r"copy_rows_[24]": Budget(40, unwanted=VECTORS),
        r"add_rows_float32_groups": Budget(64, wanted=VECTORS),
        r"add_rows_\w+_groups": Budget(64, wanted=VECTORS, unwanted=SINGLE),
        r"add_rows_\w+_single": Budget(64, unwanted=VECTORS),
        r"join_rows": Budget(96, blocks=2, unwanted=VECTORS),
        r"sort_count": Budget(64, 32, shared=1024),
        r"sort_move": Budget(64, 32, shared=257 * 4),
        r"sort_scan": Budget(64, 1024, shared=4096),
    },
}


def budget(file: str, kernel: str) -> Budget:
    """The row of a kernel."""
    rows = BUDGETS.get(file.split(" ")[0], {})
    found = next((row for pattern, row in rows.items() if re.fullmatch(pattern, kernel)), None)
    assert found, f"{file}.cu has a kernel {kernel}, which has no row in tests/gpu/budgets.py"
    return found


def kept_aside(kernel: Kernel) -> list[str]:
    """What a kernel keeps in a thread's own memory, in words."""
    if kernel.stack or kernel.spills:
        return [f"{kernel.stack} bytes of stack, {kernel.spills} spilled"]
    return []


def faults(kernel: Kernel, file: str, arch: str) -> list[str]:
    """What a kernel takes beyond its row, in words."""
    row, found = budget(file, kernel.name), []
    if kernel.registers > row.registers:
        found.append(f"{kernel.registers} registers, {row.registers} allowed")
    if kernel.registers < row.least:
        found.append(f"{kernel.registers} registers, {row.least} wanted")
    found += kept_aside(kernel)
    if kernel.most_threads is None:
        found.append("has no __launch_bounds__")
    elif kernel.most_threads < row.threads:
        found.append(f"compiled for {kernel.most_threads} threads, launched with {row.threads}")
    if kernel.shared > row.shared:
        found.append(f"{kernel.shared} bytes of static shared memory, {row.shared} allowed")
    shared = kernel.shared + row.dynamic
    if shared > CARDS[arch].shared:
        found.append(f"{shared} bytes of shared memory, a block can have {CARDS[arch].shared}")
    warps = -(-row.threads // 32)
    fit = min(
        REGISTERS // (warps * -(-32 * kernel.registers // 256) * 256),
        PER_PROCESSOR[arch] // (shared + 1024),
    )
    if fit < row.blocks:
        found.append(f"{fit} blocks fit on a multiprocessor, {row.blocks} are to")
    return found


def faults_of_instructions(kernel: Kernel, file: str) -> list[str]:
    """Instructions that are missing or that should not be there, in words."""
    row, found = budget(file, kernel.name), []
    wanted = row.wanted.split()
    found += [f"no {name}" for name in wanted if not kernel.has(name)]
    found += [f"has {name}" for name in row.unwanted.split() if kernel.has(name)]
    meant = {name.split(".")[0] for name in wanted}
    for rule, pattern in RULES.items():
        if rule not in row.excused.split():
            has = {i for i in kernel.instructions() if re.fullmatch(pattern, i)}
            found += [f"has {i} ({rule})" for i in sorted(has) if i.split(".")[0] not in meant]
    stretches = re.split(r"^\.L_\w+:|\bBRA\b", kernel.text, flags=re.M)
    most = max(len(re.findall(r"\bLDG\.E\.\S*128\b", part)) for part in stretches)
    if most < row.unbranched:
        found.append(f"{most} loads of 16 bytes without a branch between, {row.unbranched} are to")
    return found
