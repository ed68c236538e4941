"""What a compiled program does on one device, read from XLA: memory, work, collectives, gathers, kernels."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# Instructions of a computation that runs by itself which do no work of their own.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
# A slice of at most so many values is one pixel or less.
PIXEL_VALUES = 4

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}\]])([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+[0-9]+[a-z0-9]*)\[([0-9,]*)\]")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of the optimised program."""

    computation: str  # it belongs to
    entry: bool  # whether that is the program's entry
    name: str
    opcode: str
    result: str  # the type before the opcode
    text: str  # the whole line


def analyse(compiled: jax.stages.Compiled, pixels: int = 0) -> dict[str, Any]:
    """Counts of one compiled program, all for one device.

    Args:
      pixels: of one image; a gather or scatter of single pixels moves at least so many slices. 0: no image.

    Returns:
      `memory` (bytes: arguments, results, temporaries, code, total with shared ones once), `flops`, `bytes_accessed`
      (both by the compiler's own count, which takes the body of a loop once), `collectives` {kind: count, bytes},
      `gathers` and `scatters` {count, of_pixels}, `kernels` {opcode: count} of what runs by itself, `loops` and
      `kernels_in_loops`, those of the former that bodies of loops and conditions hold.
    """
    instructions = list(parse(compiled.as_text() or ""))
    kernels = _kernels(instructions)
    costs = compiled.cost_analysis() or {}
    return {
        "memory": program_memory(compiled),
        "flops": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
        "collectives": _collectives(instructions),
        "gathers": _moves(instructions, "gather", pixels),
        "scatters": _moves(instructions, "scatter", pixels),
        "kernels": _by_opcode(kernels),
        "kernels_in_loops": _by_opcode([one for one in kernels if not one.entry]),
        "loops": sum(one.opcode == "while" for one in instructions),
    }


def parse(text: str) -> Iterator[Instruction]:
    """Instructions of a program's text as XLA prints it."""
    computation, entry = "", False
    for line in text.splitlines():
        if line and not line[0].isspace():
            header = _HEADER.match(line)
            computation, entry = header.group(1) if header else "", line.startswith("ENTRY")
            continue
        match = _INSTRUCTION.match(line)
        opcode = _OPCODE.search(match[2]) if computation and match else None
        if match and opcode:
            yield Instruction(computation, entry, match[1], opcode[1], match[2][: opcode.start(1)], line)


def array_bytes(text: str) -> int:
    """Bytes of all arrays that a type names: `(f32[2,3]{1,0}, u8[4])` has 28."""
    total = 0
    for kind, sides in _ARRAY.findall(text):
        bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])  # f8e4m3 is of 8 bits too
        total += math.prod(_numbers(sides)) * bits // 8
    return total


def program_memory(compiled: jax.stages.Compiled) -> dict[str, int] | None:
    """Bytes of a program's arguments, results, temporaries and code, and of all, shared ones once; None: not known."""
    stated = compiled.memory_analysis()
    if stated is None:
        return None
    parts = {
        "arguments": stated.argument_size_in_bytes,
        "results": stated.output_size_in_bytes,
        "shared": stated.alias_size_in_bytes,
        "temporaries": stated.temp_size_in_bytes,
        "code": stated.generated_code_size_in_bytes,
    }
    return parts | {"total": sum(parts.values()) - 2 * parts["shared"]}


def data_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Bytes of a program's arguments, results and temporaries, shared ones once; None where the backend is silent."""
    memory = program_memory(compiled)
    return None if memory is None else memory["total"] - memory["code"]


def _collectives(instructions: list[Instruction]) -> dict[str, dict[str, int]]:
    by_kind: dict[str, dict[str, int]] = {}
    for one in instructions:
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            entry = by_kind.setdefault(kind, {"count": 0, "bytes": 0})
            entry["count"] += 1
            # An asynchronous start names operands and results: half of it is what moves.
            entry["bytes"] += array_bytes(one.result) // (2 if one.opcode.endswith("-start") else 1)
    return by_kind


def _moves(instructions: list[Instruction], opcode: str, pixels: int) -> dict[str, int]:
    """Gathers or scatters, and those of them that move an image pixel by pixel."""
    every = [one for one in instructions if one.opcode == opcode]
    of_pixels = sum(_is_of_pixels(one, pixels, instructions) for one in every) if pixels else 0
    return {"count": len(every), "of_pixels": of_pixels}


def _is_of_pixels(one: Instruction, pixels: int, instructions: list[Instruction]) -> bool:
    if one.opcode == "gather":
        each = math.prod(_attribute("slice_sizes", one.text))
        moved = math.prod(_shape(one.result))
    else:
        operands = re.findall(r"scatter\((.*?)\)", one.text)[0]
        updates = operands.split(",")[-1].split(" ")[-1].lstrip("%")
        producer = [i for i in instructions if i.computation == one.computation and i.name == updates]
        shape = _shape(producer[0].result) if producer else ()
        moved = math.prod(shape) if producer else math.prod(_shape(one.result))
        each = math.prod(shape[d] for d in _attribute("update_window_dims", one.text) if d < len(shape))
    return each <= PIXEL_VALUES and moved // max(each, 1) >= pixels


def _shape(result: str) -> tuple[int, ...]:
    match = _ARRAY.search(result)
    return _numbers(match.group(2)) if match else ()


def _attribute(name: str, text: str) -> tuple[int, ...]:
    found = re.search(rf"{name}=\{{([0-9,]*)\}}", text)
    return _numbers(found.group(1)) if found else ()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _kernels(instructions: list[Instruction]) -> list[Instruction]:
    """What runs by itself: instructions of the entry and of the bodies of loops and conditions, not inside fusions."""
    inside = set()
    for one in instructions:
        if one.opcode not in ("while", "conditional", "call"):
            inside.update(re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", one.text))
            inside.update(
                *(c.replace("%", "").split(", ") for c in re.findall(r"called_computations=\{(.*?)\}", one.text))
            )
    return [
        one
        for one in instructions
        if one.computation not in inside and one.opcode not in FREE and not one.opcode.endswith("-done")
    ]


def _by_opcode(instructions: list[Instruction]) -> dict[str, int]:
    return dict(collections.Counter(one.opcode for one in instructions).most_common())
