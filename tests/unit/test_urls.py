"""URLs: which ones a connection can be made to, and how they are shown without secrets."""

from __future__ import annotations

import pytest
from yarl import URL

from regmirror.urls import check_authority, has_possible_authority, hide_password, hide_userinfo


@pytest.mark.parametrize(
    "url",
    ["http://a", "https://a.b:5000/v2/?q#f", "http://[::1]:80", "http://user:word@a"],
)
def test_a_host_and_a_port_suffice(url: str) -> None:
    assert has_possible_authority(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("/v2/", "no host"),
        ("mailto:a", "no host"),
        ("http://a:0", "no valid port"),
        ("http://a:65536", "65536|range|port"),
        ("http://a\0b", "NUL|[Cc]ontrol|Invalid|invalid"),
        (f"http://{'a' * 64}.b", "label"),
    ],
)
def test_what_cannot_be_connected_to_is_an_error(url: str, reason: str) -> None:
    assert not has_possible_authority(url)
    with pytest.raises(ValueError, match=reason):
        check_authority(URL(url, encoded=True))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:word@host/path", "https://***@host/path"),
        ("user:word@host", "user:***@host"),
        ("//user:wo@rd@host", "//***@host"),
        ("https://host/path?token=secret", "https://host/path?***"),
        ("https://host/path#secret", "https://host/path?***"),
        ("https://user:wo?rd@host/", "https://***"),
        ("/var/lib/a@b", "/var/lib/a@b"),
        ("https://host", "https://host"),
    ],
)
def test_users_passwords_and_queries_are_masked(text: str, shown: str) -> None:
    assert hide_userinfo(text) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:wo@rd@host/a", "https://user:********@host/a"),
        ("https://user@host", "https://user@host"),
        ("https://host", "https://host"),
    ],
)
def test_a_password_is_masked_and_its_user_is_not(url: str, shown: str) -> None:
    assert hide_password(url) == shown
