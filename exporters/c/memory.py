"""Places in the arena: values that live at different times share bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from exporters.c.program import Conv, Program


@dataclass(frozen=True)
class Block:
    """Bytes that are in use from one step to another, both included; `label` tells people what they hold."""

    size: int
    first: int
    last: int
    label: str = ""

    def meets(self, other: Block) -> bool:
        """Tell whether both are in use at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Plan:
    """Where everything lies.

    Attributes:
        offsets: of each buffer in the arena.
        scratch: of each step's own memory.
        size: bytes of the arena.
        least: the largest sum of bytes that are in use at one step, which no plan can go below, with one filter
            decoded at a time.
        blocks: what was placed, with its offset.
    """

    offsets: list[int]
    scratch: list[int]
    size: int
    least: int
    blocks: list[tuple[Block, int]]


MORE = 20  # an arena may be a 20th larger than the smallest one, for layers that decode several filters at a time


def plan(program: Program) -> Plan:
    """Place all buffers and the kernels' own memory, and let layers decode as many filters at a time as fit beside.

    `least` is that of layers that decode one filter at a time.
    """
    smallest = _plan(program)
    budget = smallest.size + smallest.size // MORE
    layers = {number: step for number, step in enumerate(program.steps) if isinstance(step, Conv)}
    free = {n: budget - _live(smallest, n) for n in layers}
    for share in (1, 2, 4, 8):
        for number, step in layers.items():
            most = min(step.most_filters, 1 + free[number] // step.filter_bytes)
            block = max(1, most // share)
            step.block = block if block < 4 else block - block % 4  # kernels take four at a time
        found = _plan(program)
        if found.size <= budget:
            return replace(found, least=smallest.least)
    for step in layers.values():
        step.block = 1
    return smallest


def _live(found: Plan, number: int) -> int:
    return sum(block.size for block, _ in found.blocks if block.first <= number <= block.last)


def _plan(program: Program) -> Plan:
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, step in enumerate(program.steps):
        for value in step.inputs:
            last[value.buffer] = number
        if step.output is not None:
            first.setdefault(step.output.buffer, number)  # joined values are written by several steps
            last[step.output.buffer] = number
    root = list(range(len(program.sizes)))
    for number, step in enumerate(program.steps):
        if not step.in_place or step.output is None:
            continue
        for value in step.inputs:
            dies = value.buffer >= 0 and last[value.buffer] == number
            if dies and value.size_bytes == step.output.size_bytes == program.sizes[value.buffer]:
                root[step.output.buffer] = root[value.buffer]  # the root comes first: its own root is final
                break
    spans: dict[int, Block] = {}
    labels = _labels(program)
    for buffer, size in enumerate(program.sizes):
        of, span = root[buffer], Block(size, first[buffer], last[buffer], labels[buffer])
        before = spans.get(of)
        if before is not None:
            label = ", ".join(name for name in (before.label, span.label) if name)
            span = Block(size, min(before.first, span.first), max(before.last, span.last), label)
        spans[of] = span
    keys = list(spans)
    blocks = [spans[key] for key in keys]
    scratch_of = {n: len(blocks) + i for i, n in enumerate(n for n, s in enumerate(program.steps) if s.scratch_bytes)}
    for number in scratch_of:
        step = program.steps[number]
        blocks.append(Block(step.scratch_bytes, number, number, f"filters and window of {step.label}"))
    orders = [
        sorted(range(len(blocks)), key=lambda i: (-blocks[i].size, blocks[i].first)),
        sorted(range(len(blocks)), key=lambda i: (blocks[i].first, -blocks[i].size)),
        sorted(range(len(blocks)), key=lambda i: (-blocks[i].size * (blocks[i].last - blocks[i].first + 1), i)),
    ]
    size, places = min((_placed(blocks, order) for order in orders), key=lambda found: found[0])
    least = max((sum(b.size for b in blocks if b.first <= n <= b.last) for n in range(len(program.steps))), default=0)
    position = {key: places[i] for i, key in enumerate(keys)}
    return Plan(
        [position[root[buffer]] for buffer in range(len(program.sizes))],
        [places[scratch_of[n]] if n in scratch_of else 0 for n in range(len(program.steps))],
        size, least, list(zip(blocks, places, strict=True)),
    )  # fmt: skip


def _labels(program: Program) -> list[str]:
    """Return what each buffer is called: by the quantizers whose integers it holds."""
    labels = [""] * len(program.sizes)
    for step in program.steps:
        if step.output is not None and step.place:
            labels[step.output.buffer] = step.place
    return labels


def _placed(blocks: list[Block], order: list[int]) -> tuple[int, list[int]]:
    """Return the size of an arena in which blocks are placed one after the other, each as low as it fits."""
    places = [0] * len(blocks)
    done: list[int] = []
    for i in order:
        others = sorted((places[j], blocks[j].size) for j in done if blocks[j].meets(blocks[i]))
        at = 0
        for start, size in others:
            if at + blocks[i].size <= start:
                break
            at = max(at, start + size)
        places[i] = at
        done.append(i)
    return max((places[i] + b.size for i, b in enumerate(blocks)), default=0), places
