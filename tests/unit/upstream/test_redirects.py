"""Which redirects are followed, and that their targets stay byte for byte."""

import pytest
from yarl import URL

from regmirror.errors import UpstreamFailed
from regmirror.upstream.redirects import next_url

BLOB = URL("https://reg.example/v2/a/blobs/sha256:0", encoded=True)


@pytest.mark.parametrize(
    "location",
    [
        "https://cdn.example/a%2Fb|c+d~e?X-Sig=a%2Bb+c%20d&empty=&flag&odd=|%7C~%7E!*'();:@",
        "https://cdn.example/%2e%2e/a%2f?q=%c3%a4",
    ],
)
def test_a_location_stays_byte_for_byte(location: str) -> None:
    """B55: a signature covers the bytes."""
    assert str(next_url("r", BLOB, location, BLOB.origin())) == location


def test_a_relative_location_is_relative_to_the_request() -> None:
    """B55."""
    expected = "https://reg.example/data/x?y=%2F"
    assert expected == str(next_url("r", BLOB, "/data/x?y=%2F", BLOB.origin()))
    expected = "https://reg.example/v2/a/blobs/other"
    assert expected == str(next_url("r", BLOB, "other", BLOB.origin()))
    assert str(next_url("r", BLOB, "//cdn.example/x#part", BLOB.origin())) == "https://cdn.example/x"


@pytest.mark.parametrize(
    "location",
    [
        "http://cdn.example/x",
        "ftp://cdn.example/x",
        "https://user:s3cret@cdn.example/x",
        "https://169.254.169.254/x",
        "https://localhost/x",
        "https://[::1]/x",
        "https://cdn.example:99999/x",
        "https://cdn.example:0/x",
        "https://xn--/x",
        f"https://{'a' * 64}.example/x",
        "https://a..b/x",
        "https://cdn.example/a b",
        "https://cdn.example/ä",
        "",
    ],
)
def test_a_location_that_must_not_be_followed_is_a_failure(location: str) -> None:
    """B55: https to http, internal addresses, user names, nonsense."""
    with pytest.raises(UpstreamFailed) as caught:
        next_url("r", BLOB, location, BLOB.origin())
    assert caught.value.reason == "redirect"
    assert "s3cret" not in str(caught.value)
