"""What `GpuKernels` starts on a GPU, in Triton."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def meet(  # type: ignore[no-untyped-def]
    q,
    aged,
    frame,  # its keys, its values, and how far apart two of either are, in units of STEP
    first,
    length,
    known,
    numbers,
    highest,
    total,
    mixed,
    STEP: tl.constexpr,
    N: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """N more keys of a frame, all of them there if WHOLE; softmax begun anew where a score is higher."""
    seen = first + tl.arange(0, N)
    held = known[None, :]
    if not WHOLE:
        held = (seen < length)[:, None] & held
    k = tl.load(frame[0] + seen[:, None] * frame[2] * STEP + numbers[None, :], held, 0.0)
    v = tl.load(frame[1] + seen[:, None] * frame[3] * STEP + numbers[None, :], held, 0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if not WHOLE:
        scores = tl.where((seen < length)[None, :], scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1) * LOG2_E + aged)
    weights = tl.exp2(scores * LOG2_E + (aged - higher)[:, None])
    shrink = tl.exp2(highest - higher)
    total = total * shrink + tl.sum(weights, 1)
    mixed = mixed * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return higher, total, mixed


@triton.jit
def attend(  # type: ignore[no-untyped-def]
    queries,
    keys,  # one pointer a frame, as values and ages
    values,
    ages,
    out,
    query_strides,  # of episode, candidate, token, head, in units of STEP
    strides,  # those of a frame's keys, then of its values, frame after frame
    lengths,
    candidates,
    length,
    heads,
    FRAMES: tl.constexpr,
    AGED: tl.constexpr,  # bit f: the keys of frame f have an age to be added
    SIZE: tl.constexpr,  # of a head
    STEP: tl.constexpr,  # divides all strides, so that the compiler knows how much it may read at once
    D: tl.constexpr,  # SIZE as a power of two
    M: tl.constexpr,  # queries of a program
    N: tl.constexpr,  # keys at a time
):
    """One head of one candidate, M queries: scores never leave the chip, frames are read where they lie."""
    row, head = (tl.program_id(0) // heads).to(tl.int64), (tl.program_id(0) % heads).to(tl.int64)
    episode, candidate = row // candidates, row % candidates
    tokens, numbers = tl.program_id(1) * M + tl.arange(0, M), tl.arange(0, D)
    known, asked = numbers < SIZE, tokens < length
    place = episode * query_strides[0] + candidate * query_strides[1] + head * query_strides[3]
    there = asked[:, None] & known[None, :]
    place = (place + tokens[:, None] * query_strides[2]) * STEP + numbers[None, :]
    q = tl.load(queries + place, there, 0.0)
    highest = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    mixed = tl.zeros([M, D], tl.float32)
    for f in tl.static_range(FRAMES):
        of_keys = episode * strides[8 * f] + candidate * strides[8 * f + 1] + head * strides[8 * f + 3]
        of_values = episode * strides[8 * f + 4] + candidate * strides[8 * f + 5] + head * strides[8 * f + 7]
        k, v = keys[f] + of_keys * STEP, values[f] + of_values * STEP
        frame = (k, v, strides[8 * f + 2], strides[8 * f + 6])
        aged = tl.zeros([M], tl.float32)  # what the age adds to all scores of a query
        if (AGED >> f) & 1:
            age = tl.load(ages[f] + head * SIZE + numbers, known, 0.0).to(tl.float32)
            aged = tl.sum(q.to(tl.float32) * age[None, :], 1) * LOG2_E
        whole = lengths[f] // N * N
        for first in range(0, whole, N):
            highest, total, mixed = meet(
                q, aged, frame, first, whole, known, numbers, highest, total, mixed, STEP, N, True
            )
        if whole < lengths[f]:
            highest, total, mixed = meet(
                q, aged, frame, whole, lengths[f], known, numbers, highest, total, mixed, STEP, N, False
            )
    mixed = mixed / total[:, None]
    place = ((row * length + tokens[:, None]) * heads + head) * SIZE + numbers[None, :]
    tl.store(out + place, mixed.to(out.dtype.element_ty), there)


@triton.jit
def modulate(  # type: ignore[no-untyped-def]
    x,
    total,
    added,
    gate,
    shift,
    scale,
    y,
    candidates,
    length,
    gate_stride,
    shift_stride,
    epsilon,
    ADDS: tl.constexpr,
    SHARED: tl.constexpr,  # x is the same for all candidates
    WIDTH: tl.constexpr,
    W: tl.constexpr,  # the same, as a power of two
):
    """One token."""
    row = tl.program_id(0).to(tl.int64)
    owner = row // length
    source = row
    if SHARED:
        source = owner // candidates * length + row % length
    numbers = tl.arange(0, W)
    inside = numbers < WIDTH
    value = tl.load(x + source * WIDTH + numbers, inside, 0.0)
    if ADDS:
        g = tl.load(gate + owner * gate_stride + numbers, inside, 0.0).to(tl.float32)
        a = tl.load(added + row * WIDTH + numbers, inside, 0.0).to(tl.float32)
        value = (value.to(tl.float32) + g * a).to(value.dtype)
        tl.store(total + row * WIDTH + numbers, value, inside)
    exact = value.to(tl.float32)
    centred = tl.where(inside, exact - tl.sum(exact, 0) / WIDTH, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + epsilon)
    down = tl.load(shift + owner * shift_stride + numbers, inside, 0.0).to(tl.float32)
    wide = tl.load(scale + owner * shift_stride + numbers, inside, 0.0).to(tl.float32)
    tl.store(y + row * WIDTH + numbers, (down + wide * centred / deviation).to(value.dtype), inside)
