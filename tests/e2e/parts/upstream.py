"""An upstream for regmirror: a registry with a recorder in front."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.parts.recorder import Recorder
from tests.e2e.parts.registry import Registry


class Upstream(Recorder):
    """A recorder that also counts the requests to the registry's token server."""

    def __init__(self, registry: Registry, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(registry.url, tls=tls)
        self._tokens = registry.tokens.requests
        self._start = len(self._tokens)

    def token_requests(self) -> list[str]:
        """Return the token requests since the last `forget`."""
        return self._tokens[self._start :]

    def cost(self) -> int:
        """Return the number of registry and token requests, as an operator of the upstream counts them."""
        return len(self.requests) + len(self.token_requests())

    def forget(self) -> None:
        """Delete the recorded requests."""
        self.requests.clear()
        self._start = len(self._tokens)

    def describe(self) -> str:
        """Return the whole record, for the message of a failed assertion."""
        return "\n".join([*map(str, self.requests), *self.token_requests()])

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Assert that nothing inside reaches the upstream."""
        self.forget()
        yield
        assert self.cost() == 0, self.describe()
