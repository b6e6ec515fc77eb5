"""PEFT's name patterns, matched in linear time: a file's header must not decide the cost of a regular expression.

The subset that names of layers need is translated into an automaton: characters, `.`, escapes, classes, groups,
alternatives, repetitions and anchors. Everything else (flags, look-arounds, back-references) is refused.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from ..errors import LoRAError, shortened


# A pattern for every layer of FLUX.1 takes some 30,000 states, and 2 million steps to match all names.
MAX_LENGTH, MAX_DEPTH, MAX_COUNT, MAX_STATES, MAX_WORK = 2000, 20, 256, 200_000, 5_000_000
MAX_REMEMBERED = 1_000_000
_DIGITS, _WORD = frozenset(string.digits), frozenset(string.ascii_letters + string.digits + "_")
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": _DIGITS.__contains__, "D": lambda c: c not in _DIGITS, "w": _WORD.__contains__, "W": lambda c: c not in _WORD
}  # fmt: skip
_REPEATS = {"*": (0, None), "+": (1, None), "?": (0, 1)}

# An item of a parsed pattern: "char" with a test, "start", "end", "any" of alternatives, "repeat" of an item.
_Item = tuple[str, Any]


def _any(character: str) -> bool:
    return character != "\n"


def _between(low: str, high: str) -> Callable[[str], bool]:
    return lambda character: low <= character <= high


class _Parser:
    """A pattern as nested items."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.position, self.depth = pattern, 0, 0

    def parse(self) -> _Item:
        if len(self.pattern) > MAX_LENGTH:
            self.refuse(f"it is longer than {MAX_LENGTH} characters")
        item = self.alternatives()
        if self.position < len(self.pattern):
            self.refuse("a `)` closes nothing")
        return item

    def refuse(self, reason: str) -> NoReturn:
        raise LoRAError(
            f"The pattern {shortened(self.pattern)!r} cannot be matched: {reason}. Names of layers are matched with "
            "letters, `.`, `\\d`, `\\w`, classes, groups, `|`, `*`, `+`, `?`, `{m,n}`, `^` and `$` only."
        )

    def peek(self, ahead: int = 0) -> str:
        return self.pattern[self.position + ahead : self.position + ahead + 1]

    def take(self) -> str:
        character = self.peek()
        if not character:
            self.refuse("it ends too early")
        self.position += 1
        return character

    def alternatives(self) -> _Item:
        branches: list[list[_Item]] = [[]]
        while (character := self.peek()) and character != ")":
            if character == "|":
                self.position += 1
                branches.append([])
            else:
                branches[-1].append(self.repeated(self.atom()))
        return "any", branches

    def atom(self) -> _Item:
        character = self.take()
        if character in "*+?{":
            self.refuse(f"`{character}` repeats nothing")
        if character == "(":
            return self.group()
        if character == "[":
            return "char", self.character_class()
        if character == "\\":
            return "char", self.escape()
        simple: dict[str, _Item] = {"^": ("start", None), "$": ("end", None), ".": ("char", _any)}
        return simple.get(character) or ("char", character.__eq__)

    def group(self) -> _Item:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.refuse(f"its groups are nested more than {MAX_DEPTH} deep")
        if self.peek() == "?":
            if self.peek(1) != ":":
                self.refuse("it has flags, a named group or a look-around")
            self.position += 2
        item = self.alternatives()
        if self.take() != ")":
            self.refuse("a group is not closed")
        self.depth -= 1
        return item

    def escape(self) -> Callable[[str], bool]:
        character = self.take()
        if character in _CLASSES:
            return _CLASSES[character]
        if character.isalnum():
            self.refuse(f"`\\{character}` has no meaning here")
        return character.__eq__

    def character_class(self) -> Callable[[str], bool]:
        negated = self.peek() == "^"
        self.position += negated
        tests: list[Callable[[str], bool]] = []
        while (character := self.take()) != "]" or not tests:
            if character == "\\":
                tests.append(self.escape())
            elif self.peek() == "-" and self.peek(1) not in ("]", ""):
                self.position += 1
                last = self.take()
                if last == "\\" or last < character:
                    self.refuse(f"the range `{character}-{last}` is empty or ends in an escape")
                tests.append(_between(character, last))
            else:
                tests.append(character.__eq__)
        return lambda c: any(test(c) for test in tests) != negated

    def repeated(self, item: _Item) -> _Item:
        character = self.peek()
        if character == "{":
            bounds = self.counts()
        elif character in _REPEATS and character:
            self.position += 1
            bounds = _REPEATS[character]
        else:
            return item
        # A lazy repetition matches the same names.
        self.position += self.peek() == "?"
        if self.peek() and self.peek() in "*+?{":
            self.refuse("a repetition is repeated")
        return "repeat", (item, *bounds)

    def counts(self) -> tuple[int, int | None]:
        text, closed, _ = self.pattern[self.position + 1 :].partition("}")
        low, comma, high = text.partition(",")
        numbers = [number for number in (low, high) if number]
        if not closed or not numbers or not all(n.isascii() and n.isdigit() and len(n) < 4 for n in numbers):
            self.refuse("a repetition has no counts of up to three digits")
        self.position += len(text) + 2
        least = int(low or 0)
        most = int(high) if high else None if comma else least
        if max(map(int, numbers)) > MAX_COUNT or most is not None and most < least:
            self.refuse(f"a repetition has counts beyond {MAX_COUNT} or the wrong way round")
        return least, most


class NamePatterns:
    """Patterns for names of modules, tried in their order as PEFT tries them.

    A pattern fits a name that it matches whole, or from behind a dot up to its end; `^` holds at the beginning only.

    Args:
        patterns (`Iterable[str]`): The patterns.

    Raises:
        LoRAError: If one is not a pattern, goes beyond names of layers, or is too large; or if they are together.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = list(patterns)
        # Every state is a test of a character and the state after it, or the states that are entered without one.
        self.tests: list[Callable[[str], bool] | str | None] = []
        self.following: list[tuple[int, ...]] = []
        self.ends: dict[int, int] = {}
        self.starts = [self._compile(index, pattern) for index, pattern in enumerate(self.patterns)]
        self.steps: dict[tuple[tuple[int, ...], str], tuple[int, ...]] = {}
        self.work = self.remembered = 0

    def _state(self, test: Callable[[str], bool] | str | None, following: tuple[int, ...]) -> int:
        if len(self.tests) >= MAX_STATES:
            raise LoRAError(
                f"The patterns for names of layers are too large: expected no more than {MAX_STATES} states in all."
            )
        self.tests.append(test)
        self.following.append(following)
        return len(self.tests) - 1

    def _compile(self, index: int, pattern: str) -> int:
        end = self._state(None, ())
        self.ends[end] = index
        return self._build(_Parser(pattern).parse(), end)

    def _build(self, item: _Item, after: int) -> int:
        """Add the states of an item in front of `after`; return the first of them."""
        kind, content = item
        if kind == "any":
            return self._join([self._sequence(branch, after) for branch in content])
        if kind == "repeat":
            repeated, least, most = content
            return self._repeat(repeated, least, most, after)
        return self._state(content if kind == "char" else kind, (after,))

    def _join(self, starts: list[int]) -> int:
        return starts[0] if len(starts) == 1 else self._state(None, tuple(starts))

    def _sequence(self, items: list[_Item], after: int) -> int:
        for item in reversed(items):
            after = self._build(item, after)
        return after

    def _repeat(self, item: _Item, least: int, most: int | None, after: int) -> int:
        if most is None:
            loop = self._state(None, ())
            self.following[loop] = (self._build(item, loop), after)
            after = loop
        for _ in range(most - least if most is not None else 0):
            after = self._join([self._build(item, after), after])
        return self._sequence([item] * least, after)

    def first(self, name: str) -> str | None:
        """Return the first pattern that fits `name`, or `None`."""
        states: tuple[int, ...] = ()
        for position, character in enumerate(name):
            begin = position == 0
            if begin or name[position - 1] == ".":
                states = self._closed((*states, *self.starts), begin, False)
            states = self._step(states, character)
        found = [self.ends[state] for state in self._closed(states, not name, True) if state in self.ends]
        return self.patterns[min(found)] if found else None

    def _step(self, states: tuple[int, ...], character: str) -> tuple[int, ...]:
        # Names of layers share their beginnings, so most steps have been taken before.
        key = (states, character)
        if key not in self.steps:
            tests = ((state, self.tests[state]) for state in states)
            after = [self.following[state][0] for state, test in tests if callable(test) and test(character)]
            if self.remembered > MAX_REMEMBERED:
                self.steps.clear()
                self.remembered = 0
            self.steps[key] = self._closed(after, False, False)
            self.remembered += len(states) + len(self.steps[key])
        return self.steps[key]

    def _closed(self, states: Iterable[int], at_start: bool, at_end: bool) -> tuple[int, ...]:
        """Return the states with all that are entered from them without a character."""
        seen: set[int] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state in seen:
                continue
            seen.add(state)
            test = self.tests[state]
            if test is None or test == "start" and at_start or test == "end" and at_end:
                waiting.extend(self.following[state])
        self.work += len(seen)
        if self.work > MAX_WORK:
            raise LoRAError("The patterns for names of layers fit too many names at once; give fewer or plainer ones.")
        return tuple(sorted(seen))
