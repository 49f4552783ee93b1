"""Signs of life of single requests, for those who wait for them."""

from __future__ import annotations

import math
import time
from weakref import WeakValueDictionary


class RequestActivity:
    """When something last came for one subject, by the monotonic clock that event loops use."""

    def __init__(self) -> None:
        self.heard_at = -math.inf


class ActivityMonitor:
    """The signs of one upstream's requests, by repository and tag, digest or list.

    Only subjects that somebody waits for are kept.
    """

    def __init__(self) -> None:
        self._watched: WeakValueDictionary[tuple[str, str], RequestActivity] = WeakValueDictionary()

    def watch(self, repository: str, subject: str) -> RequestActivity:
        """The signs of a subject, kept up to date for as long as the caller holds them."""
        signs = self._watched.get((repository, subject))
        if signs is None:
            signs = self._watched[repository, subject] = RequestActivity()
        return signs

    def note(self, repository: str, subject: str) -> None:
        """Something came for a subject."""
        signs = self._watched.get((repository, subject))
        if signs is not None:
            signs.heard_at = time.monotonic()
