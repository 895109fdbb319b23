"""What XLA's text of a compiled program says: what chips send to each other, and what a TPU's main
memory moves.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_COLLECTIVE = re.compile(
    r" = (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(-start)?\(.*channel_id=(\d+)"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_OPERATION = re.compile(r"\s([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(body|condition|to_apply|calls|true_computation|false_computation|branch_computations)="
    r"\{?((?:%[\w.\-]+(?:, )?)+)"
)
_FREE = {
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}  # nothing is read or written; nor by the end of what began earlier
_COPIES = {"async-start", "copy-start", "dynamic-slice-start", "slice-start"}
_PARTS = {"dynamic-slice", "gather", "slice"}  # which read as much of the first as they give


def sent(program: str) -> dict[str, int]:
    """Bytes of the arrays that a program's chips exchange, {"all-gather": …}: of each the whole
    array, of the body of a loop once.
    """
    found: dict[tuple[str, tuple, str], int] = {}
    reduces = False
    for line in program.splitlines():
        if not line.startswith(" "):
            reduces = "reduce-scatter" in line  # the TPU's is a program of its own
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        shapes, kind, start, channel = match.groups()
        name = "reduce-scatter" if reduces else kind
        arrays = tuple(array[:2] for array in _ARRAY.findall(shapes))
        total = sum(_bytes(*array) for array in arrays)
        # One that runs beside other work is written once for each of its parts.
        found[name, arrays, channel] = total // 2 if start else total  # what comes, what goes
    totals: dict[str, int] = {}
    for (name, _, _), count in sorted(found.items()):
        totals[name] = totals.get(name, 0) + count
    return totals


class _Instruction(NamedTuple):
    operation: str
    arrays: list[tuple[int, bool]]  # that it gives: bytes, whether in main memory
    operands: list[str]
    text: str

    @property
    def size(self) -> int:
        return sum(count for count, _ in self.arrays)

    @property
    def in_memory(self) -> int:
        return sum(count for count, main in self.arrays if main)


_Computations = Mapping[str, Mapping[str, _Instruction]]


def moved(program: str) -> int:
    """Bytes that a TPU's main memory is read or written, of the body of a loop once, of a choice
    its dearest branch.

    What stays in the fast memory on the chip is not counted, nor that padding makes arrays larger.
    XLA's own count, "bytes accessed", is of both memories.
    """
    computations, entry = _parsed(program)
    return _moved(computations, entry)


def _parsed(program: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    computations: dict[str, dict[str, _Instruction]] = {}
    entry = name = ""
    for line in program.splitlines():
        head = _HEAD.match(line)
        if head:
            name = head[2]
            computations[name] = {}
            entry = name if head[1] else entry
        elif found := _LINE.match(line):
            operation = _OPERATION.search(" " + found[2])
            if operation and name:
                split = operation.start()
                given, rest = found[2][:split], found[2][split:]
                operands = _NAME.findall(rest.split("), ")[0])
                arrays = [_array(*array) for array in _ARRAY.findall(given)]
                instruction = _Instruction(operation[1], arrays, operands, found[2])
                computations[name][found[1]] = instruction
    return computations, entry


def _moved(computations: _Computations, name: str) -> int:
    total = 0
    inside = computations[name]
    for instruction in inside.values():
        if instruction.operation == "while":
            total += sum(_moved(computations, part) for part in _called(instruction))
        elif instruction.operation == "call":
            total += _moved(computations, _called(instruction)[0])
        elif instruction.operation == "conditional":
            total += max(_moved(computations, part) for part in _called(instruction))
        elif instruction.operation in _COPIES:
            total += _copied(instruction)
        elif instruction.operation == "fusion":
            total += _of_fusion(instruction, inside, computations[_called(instruction)[0]])
        elif instruction.operation not in _FREE and not instruction.operation.endswith("-done"):
            given = [inside[operand] for operand in instruction.operands if operand in inside]
            total += _of_operation(instruction, given)
    return total


def _copied(instruction: _Instruction) -> int:
    """Of a copy, or a part of an array, that goes from one memory to the other, or within one."""
    first = instruction.arrays[0]
    if instruction.text.startswith("(("):  # ((source, places), destination, …)
        source, _, rest = instruction.text.partition("), ")
        first = _array(*_ARRAY.findall(source)[0])
        second = _array(*_ARRAY.findall(rest)[0])
    else:
        second = instruction.arrays[1]
    return min(first[0], second[0]) * (first[1] + second[1])


def _of_operation(instruction: _Instruction, given: Sequence[_Instruction]) -> int:
    if instruction.operation in _PARTS:
        reads = instruction.size if given and given[0].in_memory else 0
        return reads + instruction.in_memory
    if instruction.operation == "dynamic-update-slice" and len(given) > 1:
        return given[1].in_memory + (given[1].size if instruction.in_memory else 0)
    return instruction.in_memory + sum(operand.in_memory for operand in given)


def _of_fusion(
    instruction: _Instruction,
    around: Mapping[str, _Instruction],
    inside: Mapping[str, _Instruction],
) -> int:
    """What one reads of its operands, which may be a part, and writes, which may be a part too."""
    users: dict[str, list[_Instruction]] = {}
    parameters = {}
    for name, part in inside.items():
        if part.operation == "parameter":
            number = re.search(r"parameter\((\d+)\)", part.text)
            assert number is not None
            parameters[int(number[1])] = name
        for place, operand in enumerate(part.operands):
            in_place = part.operation == "dynamic-update-slice" and place == 0
            users.setdefault(operand, []).append(part._replace(arrays=[]) if in_place else part)
    total = 0
    for number, operand in enumerate(instruction.operands):
        if operand not in around or not around[operand].in_memory:
            continue
        reads = users.get(parameters.get(number, ""), [])
        parts = all(read.operation in _PARTS or not read.arrays for read in reads)
        total += sum(read.size for read in reads) if parts else around[operand].in_memory
    root = list(inside.values())[-1]
    if root.operation == "dynamic-update-slice" and instruction.in_memory:
        return total + inside[root.operands[1]].size
    return total + instruction.in_memory


def _called(instruction: _Instruction) -> list[str]:
    found = []
    for _, names in _CALLED.findall(instruction.text):
        found += _NAME.findall(names)
    return found


def _array(kind: str, sides: str, layout: str) -> tuple[int, bool]:
    return _bytes(kind, sides), "S(" not in layout


def _bytes(kind: str, sides: str) -> int:
    """Of an array as XLA writes it: ("bf16", "2,3")."""
    bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
    return math.prod(int(side) for side in sides.split(",") if side) * bits // 8
