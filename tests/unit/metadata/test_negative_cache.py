"""Missing names are cached as class and message, for a limited time and in limited memory."""

import gc
import tracemalloc
import weakref
from typing import Any

import pytest

from regmirror.errors import BlobUnknown, ManifestUnknown, UpstreamDenied, UpstreamNotFound
from regmirror.metadata.negative_cache import (
    DENIED_MAX_AGE,
    EXPIRY_INTERVAL,
    NEGATIVE_CACHE_BYTES,
    NegativeCache,
)
from regmirror.oci.names import Repository, Tag

APP, LATEST = Repository("docker.io", "team/app"), Tag("latest")


class Clock:
    now = 100.0

    def __call__(self) -> Any:
        return self.now


class Request:
    """An object that a frame references."""


def meet(request: pytest.FixtureRequest) -> Any:
    """An error with the frame of a request in its traceback, as a failed upstream request leaves it."""
    try:
        try:
            raise UpstreamNotFound("docker.io", "has no such thing")
        except UpstreamNotFound as error:
            raise ManifestUnknown(error.message) from error
    except ManifestUnknown as error:
        return error


def put(cache: Any, tag: str = LATEST, *, denied: bool = False) -> None:
    cache.put(APP, tag, meet(Request()), denied=denied)


def test_a_missing_name_is_rejected_until_it_expires() -> None:
    """B28: text and class of the first error."""
    clock = Clock()
    cache = NegativeCache(10, clock)
    put(cache)
    cache.check(APP, LATEST, BlobUnknown)
    with pytest.raises(ManifestUnknown, match=r"^docker\.io: has no such thing$"):
        cache.check(APP, LATEST, ManifestUnknown)
    clock.now += 10
    cache.check(APP, LATEST, ManifestUnknown)
    assert len(cache) == 0


def test_every_check_raises_a_new_exception() -> None:
    """B100: one that is raised again collects the frames of every request that caught it."""
    cache = NegativeCache(10, Clock())
    put(cache)
    met = []
    for _ in range(2):
        with pytest.raises(ManifestUnknown) as caught:
            cache.check(APP, LATEST, ManifestUnknown)
        met.append(caught.value)
    assert met[0] is not met[1]


@pytest.mark.parametrize(("denied", "cause"), [(False, UpstreamNotFound), (True, UpstreamDenied)])
def test_the_cause_tells_missing_from_denied(denied: bool, cause: Any) -> None:
    """B33: missing content may be served stale, denied content may not."""
    cache = NegativeCache(10, Clock())
    put(cache, denied=denied)
    with pytest.raises(ManifestUnknown) as caught:
        cache.check(APP, LATEST, ManifestUnknown)
    assert type(caught.value.__cause__) is cause


def test_no_request_is_kept_alive() -> None:
    """B100: the traceback of an error references the request that caught it."""
    cache = NegativeCache(10, Clock())
    request = Request()
    reference = weakref.ref(request)
    cache.put(APP, LATEST, meet(request), denied=False)
    del request
    gc.collect()
    assert reference() is None


def test_expired_entries_are_dropped() -> None:
    """B100: an invented name may never be requested again."""
    clock = Clock()
    cache = NegativeCache(10, clock)
    cache.max_age = 1
    for number in range(100):
        put(cache, Tag(f"t{number}"))
    clock.now += EXPIRY_INTERVAL
    put(cache)
    assert len(cache) == 1


def test_invented_names_take_no_more_than_the_limit() -> None:
    """B100: whatever the number and length of the names."""
    cache = NegativeCache(10, Clock())
    error = ManifestUnknown("m" * 10_000)
    tracemalloc.start()
    try:
        for number in range(6_000):
            repository = Repository("docker.io", f"{number:0255}")
            cache.put(repository, Tag(f"{number:0128}"), error, denied=False)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cache.weight <= NEGATIVE_CACHE_BYTES
    assert taken <= NEGATIVE_CACHE_BYTES


def test_denied_names_expire_early() -> None:
    """B28: access may be granted at any time."""
    clock = Clock()
    cache = NegativeCache(10, clock)
    put(cache, denied=True)
    clock.now += DENIED_MAX_AGE
    cache.check(APP, LATEST, ManifestUnknown)
    assert len(cache) == 0


def test_without_a_max_age_nothing_is_cached() -> None:
    """B28: ``freshness.missing_max_age = 0`` turns it off."""
    cache = NegativeCache(0, Clock())
    put(cache)
    assert len(cache) == 0
