"""TLS of one upstream: trusted authorities and the client certificate (B63)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from regmirror.config.schema import Upstream
from regmirror.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Certificates:
    """Contexts for the upstream's own host, and for storage and token endpoints elsewhere.

    ``True`` stands for aiohttp's own context with the system's authorities. Other hosts
    never see the client certificate, because it identifies the mirror. ``insecure`` applies to the
    upstream's own host alone: the certificate of any other host, such as a token endpoint, is
    verified against the authorities of the system and ``ca_file``.
    """

    own: ssl.SSLContext | bool
    others: ssl.SSLContext | bool

    @classmethod
    def load(cls, name: str, config: Upstream) -> Certificates:
        """Read the files that the configuration names; raises ConfigError with the key."""
        key = f'upstreams."{name}"'
        others = _trusting(config, f"{key}.ca_file")
        if not (config.client_certificate or config.insecure):
            return cls(others, others)
        own = _trusting(config, f"{key}.ca_file", is_private=True)
        if isinstance(own, ssl.SSLContext):
            if config.client_certificate:
                _show(own, config, key)
            if config.insecure:
                own.check_hostname = False
                own.verify_mode = ssl.CERT_NONE
        return cls(own, others)

    def context(self, *, is_own_host: bool) -> ssl.SSLContext | bool:
        return self.own if is_own_host else self.others


def _trusting(config: Upstream, key: str, *, is_private: bool = False) -> ssl.SSLContext | bool:
    """A context with the authorities to trust; ``True`` if the shared one suffices."""
    if not (config.ca_file or is_private):
        return True
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    if config.ca_file:
        try:
            context.load_verify_locations(Path(config.ca_file).expanduser())
        except (OSError, ssl.SSLError) as error:
            reason = f"contains no readable certificates ({_brief(error)})"
            raise ConfigError(key, config.ca_file, reason) from None
    return context


def _show(context: ssl.SSLContext, config: Upstream, key: str) -> None:
    certificate = Path(config.client_certificate).expanduser()
    private = Path(config.client_key).expanduser()
    for field, path in (("client_certificate", certificate), ("client_key", private)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{key}.{field}", str(path), _brief(error)) from None
    try:
        # Without a password OpenSSL would ask for one on the terminal and wait.
        context.load_cert_chain(certificate, private, password="")
    except (OSError, ValueError) as error:
        reason = (
            "cannot be used with client_certificate; give the certificate in PEM and its own key "
            f"without a password ({_brief(error)})"
        )
        raise ConfigError(f"{key}.client_key", config.client_key, reason) from None


def _brief(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").lower().replace("_", " ")
    return (getattr(error, "strerror", None) or str(error)).lower()
