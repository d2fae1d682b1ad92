"""NumPy that goes the device code's way: the same shares of threads, the same order of every sum, in float32.

Where no exponential is involved a twin has the bits of the kernel; elsewhere it differs from it by the last bit of one.
A twin beside a definition shows an algorithm to be right; a device beside a twin shows where it strays.
"""

import numpy as np

SINGLE = np.float32


def warp_sum(x):
    """Over the last axis of 32 lanes, as each lane gets it: halves exchanged, then quarters, and so on."""
    lanes = np.arange(32)
    for apart in (16, 8, 4, 2, 1):
        x = x + x[..., lanes ^ apart]
    return x[..., 0]


def team_sum(x):
    """Over the last axis of so many threads: by warps, and then these in their order."""
    of_warp = warp_sum(x.reshape(*x.shape[:-1], -1, 32))
    total = of_warp[..., 0]
    for i in range(1, of_warp.shape[-1]):
        total = total + of_warp[..., i]
    return total


SHAPES = {"warp": (32, 4), "block": (256, 4), "wide": (256, 4), "narrow": (32, 1), "any": (256, 1)}
"""Threads of a team and values of a group, in float32, by the name of a shape of rows."""


def shares(x_RC, shape, fill=0):
    """Rows as (R, groups of a lane, values of a group, lanes): thread l has the groups l, l + lanes, ..."""
    lanes, group = SHAPES[shape]
    R, C = x_RC.shape
    rounds = -(-C // (lanes * group))
    x = np.full((R, rounds * lanes * group), fill, x_RC.dtype)
    x[:, :C] = x_RC
    return x.reshape(R, rounds, lanes, group).transpose(0, 1, 3, 2)


def row_sum(x_RC, shape):
    """Each lane adds up its share in order, and then the team."""
    parts = shares(x_RC, shape)
    total = np.zeros((parts.shape[0], parts.shape[3]), x_RC.dtype)
    for k in range(parts.shape[1]):
        for i in range(parts.shape[2]):
            total = total + parts[:, k, i]
    return team_sum(total)[:, None]


def softmax_forward(x_RC, shape, factor=1.0, first=None, period=1):
    R, C = x_RC.shape
    first = C if first is None else first
    hidden = np.arange(C) > first + np.arange(R)[:, None] % period
    s = np.where(hidden, SINGLE(-np.inf), x_RC * SINGLE(factor))
    top = np.fmax.reduce(s, axis=1, keepdims=True, initial=-np.inf).astype(np.float32)
    e = np.exp(s - np.where(top == -np.inf, SINGLE(0), top))
    total = row_sum(e, shape)
    return e * np.where(total == 0, SINGLE(1), SINGLE(1) / np.where(total == 0, SINGLE(1), total))


def softmax_pullback(g_RC, p_RC, shape, factor=1.0):
    along = row_sum(g_RC * p_RC, shape)
    return SINGLE(factor) * p_RC * (g_RC - along)


def norm_forward(x_RC, branch_RC, gain, bias, eps, shape):
    columns = SINGLE(x_RC.shape[1])
    whole = x_RC + branch_RC
    mean = SINGLE(0) if bias is None else row_sum(whole, shape) / columns
    d = whole - mean
    scale = SINGLE(1) / np.sqrt(row_sum(d * d, shape) / columns + SINGLE(eps))
    y = d * scale * gain + (SINGLE(0) if bias is None else bias)
    return whole, y, mean, scale


def norm_pullback(g_RC, g_sum_RC, x_RC, mean_R1, scale_R1, gain, shape, teams):
    """Team t adds up the rows t, t + teams, ...; then 32 runs of teams, and then these."""
    R, C = x_RC.shape
    share = SINGLE(1) / SINGLE(C)
    normal = (x_RC - (SINGLE(0) if mean_R1 is None else mean_R1)) * scale_R1
    h = g_RC * gain
    along = row_sum(h * normal, shape) * share
    total = SINGLE(0) if mean_R1 is None else row_sum(h, shape) * share
    gx = (h - total - normal * along) * scale_R1 + g_sum_RC
    sums = np.zeros((teams, 2, C), np.float32)
    for r in range(R):
        sums[r % teams, 0] += g_RC[r] * normal[r]
        sums[r % teams, 1] += g_RC[r]
    runs = np.zeros((32, 2, C), np.float32)
    for t in range(teams):
        runs[t % 32] += sums[t]
    for i in range(1, 32):
        runs[0] += runs[i]
    return gx, runs[0, 0], runs[0, 1]


def cross_entropy_row(row, lead, lanes=512, group=4):
    """The largest value and the sum of exponentials of what the others are less, as a block finds them.

    Before the first whole group there are so many values. Each thread keeps the largest that it met, and multiplies its
    sum when it meets a larger one.
    """
    lead = min(lead, row.size)
    groups = (row.size - lead) // group
    body = row[lead : lead + groups * group].reshape(groups, group)
    rest = np.concatenate([row[:lead], row[lead + groups * group :]])
    tops = np.full(lanes, -np.inf, np.float32)
    totals = np.zeros(lanes, np.float32)
    for pieces in (body, rest[:, None]):
        for start in range(0, len(pieces), lanes):
            some = pieces[start : start + lanes]
            top, total = tops[: len(some)], totals[: len(some)]  # views
            here = np.fmax.reduce(some, axis=1)
            larger = here > top
            total[larger] *= np.exp(top[larger] - here[larger])
            top[larger] = here[larger]
            base = np.where(top == -np.inf, SINGLE(0), top)
            for i in range(some.shape[1]):
                total += np.exp(some[:, i] - base)
    top = np.fmax.reduce(tops)
    same = tops == top
    return top, team_sum(np.where(same, totals, totals * np.exp(np.where(same, 0, tops - top))))


def sorted_by_digits(ids, rows, run=512):
    """Keys and places by a radix sort: counts by run, sums before each, and stable moves."""
    keys = np.minimum(ids.astype(np.uint64), rows).astype(np.uint32)
    places = np.arange(ids.size, dtype=np.uint32)
    for shift in range(0, rows.bit_length(), 8):
        digits = (keys >> np.uint32(shift)) % 256
        runs = np.arange(ids.size) // run
        counts = np.zeros((256, -(-ids.size // run)), np.int64)
        np.add.at(counts, (digits, runs), 1)
        start = (np.cumsum(counts) - counts.reshape(-1)).reshape(counts.shape)
        to = np.empty(ids.size, np.int64)
        for n in range(ids.size):
            to[n] = start[digits[n], runs[n]]
            start[digits[n], runs[n]] += 1
        moved_keys, moved_places = np.empty_like(keys), np.empty_like(places)
        moved_keys[to], moved_places[to] = keys, places
        keys, places = moved_keys, moved_places
    return keys, places


def add_rows(g_NC, ids, rows, piece=32):
    """Sums of pieces of sorted positions, and of the pieces of a run."""
    keys, places = sorted_by_digits(ids, rows)
    table = np.zeros((rows, g_NC.shape[1]), np.float32)
    parts = {}
    for start in range(0, ids.size, piece):
        for n in range(start, min(start + piece, ids.size)):
            last = parts.get(keys[n], [])
            value = g_NC[places[n]]
            if last and last[-1][0] == start:
                last[-1] = (start, last[-1][1] + value)
            else:
                parts[keys[n]] = [*last, (start, value)]
    for key, sums in parts.items():
        total = sums[0][1]
        for _, value in sums[1:]:
            total = total + value
        table[key] = total
    return table


def adamw_update(p, g, m, v, *numbers):
    shrink, decay, b_1, b_2, rest_1, rest_2, step_size, root, eps = map(SINGLE, numbers)
    s = g * shrink
    m = b_1 * m + rest_1 * s
    v = b_2 * v + rest_2 * (s * s)
    return p * decay - step_size * m / (np.sqrt(v) * root + eps), m, v


def squares(x, piece=4096, threads=256, group=4):
    """In float64: thread t of a piece's block adds up the groups t, t + threads, ..., then the block its threads, and
    at last one block the pieces."""
    sums = np.array([_squares(x[i : i + piece], threads, group) for i in range(0, x.size, piece)])
    last = np.zeros(1024)
    for start in range(0, sums.size, last.size):
        some = sums[start : start + last.size]
        last[: some.size] += some
    return team_sum(last)


def _squares(x, threads, group):
    groups = x.size // group
    own = np.zeros(threads)
    body = x[: groups * group].reshape(groups, group).astype(np.float64)
    for start in range(0, groups, threads):
        some = body[start : start + threads]
        for i in range(group):
            own[: len(some)] += some[:, i] * some[:, i]
    rest = x[groups * group :].astype(np.float64)
    own[: rest.size] += rest * rest
    return team_sum(own)


def philox(counter, key):
    """Ten rounds of Philox 4x32 on Python's whole numbers."""
    low = (1 << 32) - 1
    x, y, z, w = counter
    k, q = key
    for _ in range(10):
        a, b = 0xD2511F53 * x, 0xCD9E8D57 * z
        x, y, z, w = (b >> 32) ^ y ^ k, b & low, (a >> 32) ^ w ^ q, a & low
        k, q = (k + 0x9E3779B9) & low, (q + 0xBB67AE85) & low
    return x, y, z, w


def product(a_MK, b_KN, parts, chunk, together):
    """Sums of so many terms at a time in float64, rounded to float32 each time; parts of them, in their order."""
    total = np.zeros((a_MK.shape[0], b_KN.shape[1]), np.float32)
    for part in range(parts):
        own = np.zeros_like(total)
        last = min(a_MK.shape[1], (part + 1) * chunk)
        for start in range(part * chunk, last, together):
            sums = own.astype(np.float64)
            for k in range(start, min(start + together, last)):
                term = a_MK[:, k, None] * b_KN[k]
                sums = sums + (term.astype(np.float32) if together == 1 else term)
            own = sums.astype(np.float32)
        total = own if parts == 1 else total + own
    return total


def sum_rows(g_NF, parts):
    """Some rows for each block: every eighth for a warp, then warps in order; then blocks in the same way."""
    N, F = g_NF.shape
    rows = -(-N // parts)
    sums = np.zeros((-(-N // rows), F), np.float32)
    for part in range(len(sums)):
        own = g_NF[part * rows : (part + 1) * rows]
        warps = np.zeros((8, F), np.float32)
        for r in range(len(own)):
            warps[r % 8] += own[r]
        sums[part] = warps[0]
        for w in range(1, 8):
            sums[part] += warps[w]
    return sums[0] if len(sums) == 1 else sum_rows(sums, 1)
