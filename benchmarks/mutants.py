"""Mutations of a file: sources that differ from it in one place."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass


KINDS = ("comparison flipped", "off by one", "`not` dropped", "arguments swapped", "statement removed")
_FLIPPED: dict[type[ast.cmpop], str] = {
    ast.Eq: "!=", ast.NotEq: "==", ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",  # codespell:ignore
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A file with a mistake.

    Attributes:
        file (`str`): Its path in the repository.
        line (`int`): Where the mistake is.
        kind (`str`): One of `KINDS`.
        change (`str`): The place before and after, in one line.
        source (`str`): The whole file.
    """

    file: str
    line: int
    kind: str
    change: str
    source: str


class _File:
    """A source whose nodes can be replaced."""

    def __init__(self, source: str, file: str) -> None:
        self.source, self.file = source, file
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines = source.splitlines(keepends=True)

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Return where a node begins and ends; columns of `ast` are bytes."""
        ends = []
        for line, column in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)):  # type: ignore[attr-defined]
            ends.append(self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode()))
        return ends[0], ends[1]

    def text(self, node: ast.AST) -> str:
        """Return the source of a node."""
        start, end = self.span(node)
        return self.source[start:end]

    def mutant(self, node: ast.AST, kind: str, text: str) -> Mutant:
        """Return the file with another text in place of a node."""
        start, end = self.span(node)
        change = " ".join(f"{self.source[start:end]} -> {text}".split())
        source = self.source[:start] + text + self.source[end:]
        return Mutant(self.file, node.lineno, kind, change, source)  # type: ignore[attr-defined]


def mutants(source: str, file: str) -> Iterator[Mutant]:
    """Find all mutations of a file.

    Args:
        source (`str`): The file.
        file (`str`): Its path, for the report.

    Yields:
        `Mutant`: In the order of the tree; each is valid Python.
    """
    whole, tree = _File(source, file), ast.parse(source)
    annotations = {id(part) for each in _annotations(tree) for part in ast.walk(each)}
    for node in ast.walk(tree):
        if id(node) not in annotations:
            yield from _of(whole, node)


def _annotations(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if (annotation := getattr(node, name, None)) is not None:
                yield annotation


def _of(file: _File, node: ast.AST) -> Iterator[Mutant]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        sides = file.text(node.left), file.text(node.comparators[0])
        # Parentheses around a side belong to no node.
        if file.text(node).startswith(sides[0]) and file.text(node).endswith(sides[1]):
            yield file.mutant(node, KINDS[0], f"{sides[0]} {_FLIPPED[type(node.ops[0])]} {sides[1]}")
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield file.mutant(node, KINDS[1], str(node.value + 1))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield file.mutant(node, KINDS[2], f"bool({file.text(node.operand)})")
    elif isinstance(node, ast.Call):
        yield from _swapped(file, node)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) or isinstance(node, ast.AugAssign):
        yield file.mutant(node, KINDS[4], "pass")


def _swapped(file: _File, node: ast.Call) -> Iterator[Mutant]:
    first = node.args[:2]
    if len(first) < 2 or any(isinstance(each, ast.Starred) for each in first):
        return
    one, other = map(file.text, first)
    start, end = file.span(node)
    begin, stop = file.span(first[0])[0] - start, file.span(first[1])[1] - start
    between = file.source[file.span(first[0])[1] : file.span(first[1])[0]]
    # The question to which type something belongs has no sense the other way round.
    if one != other and file.text(node.func) not in ("isinstance", "issubclass", "getattr", "hasattr", "setattr"):
        text = file.source[start:end]
        yield file.mutant(node, KINDS[3], text[:begin] + other + between + one + text[stop:])
