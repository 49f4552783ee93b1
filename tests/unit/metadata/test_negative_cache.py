"""Absent names in memory: texts and classes, never the requests that met them."""

import gc
import tracemalloc
import weakref

import pytest

from regmirror.errors import BlobUnknown, ManifestUnknown, UpstreamDenied, UpstreamNotFound
from regmirror.metadata.negative_cache import NEGATIVE_CACHE_BYTES, SWEEP, NegativeCache
from regmirror.oci.names import Repository, Tag

APP, LATEST = Repository("docker.io", "team/app"), Tag("latest")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Request:
    """What a frame holds."""


def meet(request):
    """An error with the frame of a request in its traceback, as asking an upstream leaves it."""
    try:
        try:
            raise UpstreamNotFound("docker.io", "has no such thing")
        except UpstreamNotFound as error:
            raise ManifestUnknown(error.message) from error
    except ManifestUnknown as error:
        return error


def note(absences, tag=LATEST, *, denied=False, max_age=10):
    absences.note(APP, tag, meet(Request()), denied=denied, max_age=max_age)


def test_an_absent_name_is_refused_until_it_expires():
    """B28: text and class of the first error."""
    clock = Clock()
    absences = NegativeCache(clock)
    note(absences)
    absences.check(APP, LATEST, BlobUnknown)
    with pytest.raises(ManifestUnknown, match=r"^docker\.io: has no such thing$"):
        absences.check(APP, LATEST, ManifestUnknown)
    clock.now += 10
    absences.check(APP, LATEST, ManifestUnknown)
    assert len(absences) == 0


def test_every_refusal_is_an_exception_of_its_own():
    """B100: one that is raised again and again gathers the frames of everybody who met it."""
    absences = NegativeCache(Clock())
    note(absences)
    met = []
    for _ in range(2):
        with pytest.raises(ManifestUnknown) as caught:
            absences.check(APP, LATEST, ManifestUnknown)
        met.append(caught.value)
    assert met[0] is not met[1]


@pytest.mark.parametrize(("denied", "cause"), [(False, UpstreamNotFound), (True, UpstreamDenied)])
def test_a_refusal_tells_its_cause(denied, cause):
    """B33: what is gone may be served from before, what is denied may not."""
    absences = NegativeCache(Clock())
    note(absences, denied=denied)
    with pytest.raises(ManifestUnknown) as caught:
        absences.check(APP, LATEST, ManifestUnknown)
    assert type(caught.value.__cause__) is cause


def test_no_request_is_held():
    """B100: the frames of an error hold whoever met it."""
    absences = NegativeCache(Clock())
    request = Request()
    held = weakref.ref(request)
    absences.note(APP, LATEST, meet(request), denied=False, max_age=10)
    del request
    gc.collect()
    assert held() is None


def test_expired_absences_are_dropped():
    """B100: nobody may ever ask for an invented name again."""
    clock = Clock()
    absences = NegativeCache(clock)
    for number in range(100):
        note(absences, Tag(f"t{number}"), max_age=1)
    clock.now += SWEEP
    note(absences)
    assert len(absences) == 1


def test_invented_names_take_no_more_than_their_bytes():
    """B100: whatever is asked for, and however long it is."""
    absences = NegativeCache(Clock())
    error = ManifestUnknown("m" * 10_000)
    tracemalloc.start()
    try:
        for number in range(6_000):
            repository = Repository("docker.io", f"{number:0255}")
            absences.note(repository, Tag(f"{number:0128}"), error, denied=False, max_age=10)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert absences.weight <= NEGATIVE_CACHE_BYTES
    assert taken <= NEGATIVE_CACHE_BYTES
