"""The order of the sources of a download, and who is blamed for a failure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from regmirror.downloads.source import Source
from regmirror.downloads.source_queue import NOBODY, SourceQueue
from regmirror.errors import UpstreamNotFound
from regmirror.oci.names import Repository
from tests.unit.downloads.scripted import PlannedResponse, Script

ABSENT = UpstreamNotFound("registry.test", "has no such blob")


def source(name: str) -> Source:
    return Script([PlannedResponse()], repository=Repository("registry.test", name)).source


FIRST, SECOND, THIRD = source("first"), source("second"), source("third")
PEER = replace(FIRST, is_upstream=False)


@pytest.fixture
def changes() -> list[str]:
    return []


@pytest.fixture
def queue(changes: list[str]) -> SourceQueue:
    queue = SourceQueue(FIRST, lambda: changes.append("changed"))
    for one in (FIRST, SECOND, THIRD):
        queue.enter(one)
    return queue


def test_each_source_is_taken_once_in_the_order_of_the_readers(
    queue: SourceQueue, changes: list[str]
) -> None:
    assert changes == ["changed"] * 2
    assert [queue.take_other() for _ in range(3)] == [SECOND, THIRD, None]


def test_a_preferred_source_changes_places_with_the_current_one(queue: SourceQueue) -> None:
    queue.prefer(THIRD)
    assert queue.untried == [THIRD, FIRST, SECOND]
    queue.prefer(THIRD)
    assert queue.untried == [THIRD, FIRST, SECOND]


def test_a_source_is_put_back_once(queue: SourceQueue) -> None:
    queue.take_other()
    queue.put_back(SECOND)
    queue.put_back(SECOND)
    queue.put_back(PEER)
    assert [queue.take_other() for _ in range(3)] == [THIRD, SECOND, None]


def test_after_the_end_of_the_file_no_other_source_is_taken(queue: SourceQueue) -> None:
    """B44."""
    queue.close()
    assert queue.take_other() is None


def test_a_repository_without_readers_is_forgotten(queue: SourceQueue) -> None:
    """B100."""
    queue.enter(SECOND)
    queue.reject(SECOND, ABSENT)
    queue.leave(SECOND)
    assert queue.find_rejection(SECOND.repository) is ABSENT
    queue.leave(SECOND)
    assert queue.find_rejection(SECOND.repository) is None
    assert queue.untried == [FIRST, THIRD]
    queue.leave(FIRST)
    assert queue.untried == [FIRST, THIRD]


def test_a_rejection_by_a_source_that_is_no_upstream_concerns_nobody(queue: SourceQueue) -> None:
    queue.reject(PEER, ABSENT)
    assert queue.find_rejection(FIRST.repository) is None
    assert queue.find_rejection(None) is None


def test_another_process_that_fails_for_the_current_source_makes_the_next_one_current(
    queue: SourceQueue,
) -> None:
    """B13, B20."""
    queue.reject_of(str(THIRD.repository), ABSENT)
    assert queue.current is FIRST
    queue.reject_of("", ABSENT)
    queue.reject_of(str(FIRST.repository), ABSENT)
    assert queue.current is SECOND
    queue.take_other()
    with pytest.raises(UpstreamNotFound):
        queue.reject_of(str(SECOND.repository), ABSENT)


def test_the_current_source_is_to_blame_unless_another_one_stated_the_size(queue: SourceQueue) -> None:
    """B20."""
    assert queue.suspected == str(FIRST.repository)
    queue.suspect(SECOND)
    assert queue.suspected == str(SECOND.repository)
    queue.note_response(FIRST, states_size=True)
    queue.suspect(SECOND)
    assert queue.suspected == str(FIRST.repository)
    queue.blame(str(THIRD.repository))
    assert queue.suspected == str(THIRD.repository)


def test_a_size_that_no_upstream_stated_is_nobodys_fault(queue: SourceQueue) -> None:
    queue.suspect(PEER)
    assert queue.suspected == NOBODY
    queue.note_response(PEER, states_size=True)
    queue.suspect(FIRST)
    assert queue.suspected == NOBODY
    assert queue.current is FIRST
