"""Times in ISO 8601 text as ONNX nodes: `times` in the graph of a release. Needs operator set 20.

Text that is no time is replaced before it is cut up: a cast of it to a number would fail the whole call. Two
rows are put behind all others, so that every cut gives all of its parts.
"""

from __future__ import annotations

from onnx import TensorProto

from headwater.feature_store import times
from headwater.feature_store.onnx_graph import EncoderGraph, Tensor
from headwater.feature_store.schema import INT64_MIN

INT, STRING, BOOL = TensorProto.INT64, TensorProto.STRING, TensorProto.BOOL

_EXAMPLES = ("1970-01-01T00:00:00.0+00:00", "1970-01-01 00:00:00.0-00:00")
_FIRST_DAY = 719_468
"""Days from the first of March of the year 0 to 1970."""
_ERA_DAYS = 146_097
"""Days of 400 years."""
_DAYS_OF_MONTH = (0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def milliseconds(graph: EncoderGraph, text: Tensor) -> Tensor:
    """Return the time that each text of any shape says, in ms since 1970, INT64_MIN where it says none."""
    nodes = _Nodes(graph)
    shape = graph.add("Shape", text, element=INT)
    column = graph.add("Reshape", text, graph.constant([-1, 1]), element=STRING)
    matches = nodes.matches(column, times.PATTERN)
    examples = graph.constant([[each] for each in _EXAMPLES], STRING)
    known = graph.add(
        "Where", matches, column, graph.constant(_EXAMPLES[0], STRING), element=STRING
    )
    rows = graph.add("Concat", known, examples, element=STRING, axis=0)

    year, month, rest = nodes.cut(rows, "-", 3)
    before, clock = nodes.cut(rest, "T", 2)
    day, spaced = nodes.cut(before, " ", 2)
    clock = nodes.joined(clock, spaced)
    (clock,) = nodes.cut(clock, "Z", 1)
    clock, east = nodes.cut(clock, "+", 2)
    clock, west = nodes.cut(clock, "-", 2)
    hour, minute, second = nodes.cut(clock, ":", 3)
    second, fraction = nodes.cut(second, ".", 2)

    days, is_day = nodes.days(nodes.number(year), nodes.number(month), nodes.number(day))
    minutes = nodes.plus(nodes.times(days, 24 * 60), nodes.times(nodes.number(hour), 60))
    minutes = nodes.plus(minutes, nodes.number(minute))
    minutes = nodes.minus(minutes, nodes.offset(east))
    minutes = nodes.plus(minutes, nodes.offset(west))
    seconds = nodes.plus(nodes.times(minutes, 60), nodes.number(second))
    found = nodes.plus(nodes.times(seconds, 1000), nodes.thousandths(fraction))

    ends = [graph.constant([bound]) for bound in (0, -len(_EXAMPLES), 0)]
    found = graph.add("Slice", found, *ends, element=INT)
    is_day = graph.add("Slice", is_day, *ends, element=BOOL)
    is_time = graph.add("And", matches, is_day, element=BOOL)
    found = graph.add("Where", is_time, found, graph.constant(INT64_MIN), element=INT)
    return graph.add("Reshape", found, shape, element=INT, allowzero=1)


class _Nodes:
    """Short names for the nodes over columns of text and numbers, [N, 1]."""

    def __init__(self, graph: EncoderGraph) -> None:
        self._graph = graph

    def matches(self, text: Tensor, pattern: str) -> Tensor:
        """Return whether the whole text is as a pattern says."""
        return self._graph.add("RegexFullMatch", text, element=BOOL, pattern=pattern)

    def cut(self, text: Tensor, delimiter: str, count: int) -> list[Tensor]:
        """Return the first `count` parts between delimiters, the last with all that follows."""
        graph = self._graph
        most = {} if count == 1 else {"maxsplit": count - 1}
        parts, _ = graph.add_many(
            "StringSplit", text, elements=(STRING, INT), delimiter=delimiter, **most
        )
        return [
            graph.add("Gather", parts, graph.constant(place), element=STRING, axis=2)
            for place in range(count)
        ]

    def joined(self, *texts: Tensor) -> Tensor:
        """Return one text behind the other."""
        first, second = texts
        return self._graph.add("StringConcat", first, second, element=STRING)

    def number(self, digits: Tensor) -> Tensor:
        """Return the number that digits say, 0 of none."""
        return self._graph.cast(self.joined(self._graph.constant("0", STRING), digits), INT)

    def plus(self, left: Tensor, right: Tensor) -> Tensor:
        return self._graph.add("Add", left, right, element=INT)

    def minus(self, left: Tensor, right: Tensor) -> Tensor:
        return self._graph.add("Sub", left, right, element=INT)

    def times(self, number: Tensor, factor: int) -> Tensor:
        return self._graph.add("Mul", number, self._graph.constant(factor), element=INT)

    def over(self, number: Tensor, divisor: int) -> Tensor:
        """Return the whole quotient of numbers that are not negative."""
        return self._graph.add("Div", number, self._graph.constant(divisor), element=INT)

    def modulo(self, number: Tensor, divisor: int) -> Tensor:
        return self._graph.add("Mod", number, self._graph.constant(divisor), element=INT)

    def where(self, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        return self._graph.add("Where", condition, yes, no, element=INT)

    def below(self, number: Tensor, limit: Tensor | int) -> Tensor:
        end = self._graph.constant(limit) if isinstance(limit, int) else limit
        return self._graph.add("Less", number, end, element=BOOL)

    def offset(self, text: Tensor) -> Tensor:
        """Return the minutes of an offset, `05:30`, `0530` or `05`; 0 of none."""
        digits = self.joined(*self.cut(text, ":", 2))
        number = self.number(digits)
        both = self.plus(self.times(self.over(number, 100), 60), self.modulo(number, 100))
        return self.where(self.matches(digits, "[0-9]{4}"), both, self.times(number, 60))

    def thousandths(self, fraction: Tensor) -> Tensor:
        """Return the first three of up to nine digits, as a number; 0 of none."""
        graph = self._graph
        digits = self.joined(fraction, graph.constant("00", STRING))
        # A leading 1 tells how many digits there are.
        marked = graph.cast(self.joined(graph.constant("1", STRING), digits), INT)
        powers = graph.constant([10**power for power in range(4, 12)])
        passed = graph.cast(graph.add("GreaterOrEqual", marked, powers, element=BOOL), INT)
        surplus = graph.add("ReduceSum", passed, graph.constant([-1]), element=INT, keepdims=1)
        power = graph.constant([10**power for power in range(9)])
        divisor = graph.add("Gather", power, surplus, element=INT, axis=0)
        return graph.add("Div", self.number(digits), divisor, element=INT)

    def days(self, year: Tensor, month: Tensor, day: Tensor) -> tuple[Tensor, Tensor]:
        """Return the days since 1970, and whether the month has the day.

        A year from March on has its leap day at the end, and 400 of them are always as long.
        """
        graph = self._graph
        early = graph.cast(self.below(month, 3), INT)
        shifted = self.plus(self.minus(year, early), graph.constant(400))
        month_of_year = self.modulo(self.plus(month, graph.constant(9)), 12)
        before = self.over(self.plus(self.times(month_of_year, 153), graph.constant(2)), 5)
        of_era = self.modulo(shifted, 400)
        leaps = self.minus(self.over(of_era, 4), self.over(of_era, 100))
        in_era = self.plus(self.plus(self.times(of_era, 365), leaps), self.plus(before, day))
        eras = self.times(self.over(shifted, 400), _ERA_DAYS)
        days = self.minus(self.plus(eras, in_era), graph.constant(_FIRST_DAY + _ERA_DAYS + 1))
        length = graph.add("Gather", graph.constant(_DAYS_OF_MONTH), month, element=INT, axis=0)
        february = graph.add("Equal", month, graph.constant(2), element=BOOL)
        leap = graph.add("And", self._is_leap(year), february, element=BOOL)
        end = self.plus(self.plus(length, graph.cast(leap, INT)), graph.constant(1))
        return days, self.below(day, end)

    def _is_leap(self, year: Tensor) -> Tensor:
        graph, zero = self._graph, self._graph.constant(0)
        fourth, hundredth, four_hundredth = (
            graph.add("Equal", self.modulo(year, each), zero, element=BOOL)
            for each in (4, 100, 400)
        )
        usual = graph.add("Xor", fourth, hundredth, element=BOOL)
        return graph.add("Or", usual, four_hundredth, element=BOOL)
