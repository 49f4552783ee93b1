"""Retries of a fetch: which failures are final, and which bytes count as progress."""

import pytest

from regmirror.downloads.fetcher import CIRCUIT_WAITS_MAX, PAUSES, TRICKLE, NoOtherSources, fetch
from regmirror.downloads.source import Body, Sleep, Source
from regmirror.errors import UpstreamCircuitOpen, UpstreamContentInvalid, UpstreamFailed, UpstreamTimeout
from tests.unit.downloads.scripted import DATA, PlannedResponse, Script, broken

OPEN_CIRCUIT = UpstreamCircuitOpen(
    "registry.test", "has an open circuit", reason="circuit-open", retry_after=5.0
)
HALF = len(DATA) // 2


class Bytes:
    """A sink in memory."""

    def __init__(self) -> None:
        self.data = b""
        self.size: int | None = None

    @property
    def offset(self) -> int:
        return len(self.data)

    async def begin(self, size: int | None, source: Source) -> None:
        self.size = size

    async def append(self, piece: bytes | memoryview) -> None:
        self.data += piece

    async def splice_from(self, body: Body) -> int:
        return 0

    async def matches_digest(self) -> bool:
        return self.data == DATA


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def sleep(pauses: list[float]) -> Sleep:
    async def note(seconds: float) -> None:
        pauses.append(seconds)

    return note


async def test_an_upstream_that_rests_is_waited_for(sleep: Sleep, pauses: list[float]) -> None:
    """B19, B33: what broke off is resumed when the circuit may be closed again."""
    refused = PlannedResponse(error=broken, refuses=True)
    script = Script(
        [
            PlannedResponse(stop=HALF, error=broken),
            refused,
            refused,
            PlannedResponse(error=OPEN_CIRCUIT, refuses=True),
            PlannedResponse(),
        ]
    )
    sink = Bytes()
    await fetch(script.source, sink, NoOtherSources(), sleep)
    assert sink.data == DATA
    assert pauses == [*PAUSES, 5.0]
    assert script.requested == [0, *[HALF] * 4]


async def test_an_upstream_that_rests_on_is_given_up(sleep: Sleep, pauses: list[float]) -> None:
    """B20: within a bound."""
    script = Script(
        [PlannedResponse(stop=HALF, error=broken), PlannedResponse(error=OPEN_CIRCUIT, refuses=True)]
    )
    with pytest.raises(UpstreamCircuitOpen):
        await fetch(script.source, Bytes(), NoOtherSources(), sleep)
    assert pauses.count(5.0) == CIRCUIT_WAITS_MAX


async def test_a_blob_that_has_not_begun_waits_for_nobody(sleep: Sleep, pauses: list[float]) -> None:
    """B34: its client is to fall back."""
    with pytest.raises(UpstreamCircuitOpen):
        await fetch(
            Script([PlannedResponse(error=OPEN_CIRCUIT, refuses=True)]).source,
            Bytes(),
            NoOtherSources(),
            sleep,
        )
    assert pauses == []


async def test_other_failures_are_as_before(sleep: Sleep, pauses: list[float]) -> None:
    script = Script([PlannedResponse(stop=HALF, error=broken), PlannedResponse(error=broken, refuses=True)])
    with pytest.raises(UpstreamFailed):
        await fetch(script.source, Bytes(), NoOtherSources(), sleep)
    assert pauses == list(PAUSES)


async def test_spliced_bytes_count_against_the_stated_size(sleep: Sleep) -> None:
    """B40: a blob that is spliced into its file has no more bytes than were stated."""

    class Spliced(Bytes):
        async def splice_from(self, body: Body) -> int:
            self.calls = getattr(self, "calls", 0) + 1
            return len(DATA) if self.calls == 1 else 0

    with pytest.raises(UpstreamContentInvalid, match="sent more than"):
        await fetch(Script([PlannedResponse()]).source, Spliced(), NoOtherSources(), sleep)


LATE = UpstreamTimeout("registry.test", "did not answer", reason="read")
LARGE = bytes(20 * TRICKLE)


def stutter(brings: int) -> Script:
    """A source each of whose responses brings so many bytes, and then stalls."""
    stops = range(brings, 20 * brings, brings)
    return Script([*(PlannedResponse(LARGE, stop, error=LATE) for stop in stops), PlannedResponse(LARGE)])


async def test_bytes_that_trickle_do_not_reset_the_retries(sleep: Sleep, pauses: list[float]) -> None:
    """B35, B100: an upstream that sends a few bytes and stalls, at every try, is given up."""
    with pytest.raises(UpstreamTimeout):
        await fetch(stutter(TRICKLE // 2).source, Bytes(), NoOtherSources(), sleep)
    assert pauses == list(PAUSES[1:])


async def test_a_slow_upstream_that_brings_much_each_time_is_not_given_up(
    sleep: Sleep, pauses: list[float]
) -> None:
    """B19."""
    sink = Bytes()
    await fetch(stutter(TRICKLE).source, sink, NoOtherSources(), sleep)
    assert len(sink.data) == len(LARGE)
    assert pauses == [PAUSES[0]] * 19
