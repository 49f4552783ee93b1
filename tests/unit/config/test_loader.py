"""Loading the configuration from file, environment and command line, and its errors."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st

from regmirror.config.loader import find_file, load
from regmirror.config.schema import Config
from regmirror.errors import ConfigError

Write = Callable[..., Path]
SHIPPED = Path(__file__).parents[3] / "mirror.toml"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in an empty directory, without variables of this machine."""
    for name in list(os.environ):
        if name.upper().startswith("REGMIRROR_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a configuration file and return its path."""

    def write(text: str, name: str = "my.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_shipped_file_equals_the_defaults() -> None:
    """``mirror.toml`` documents the defaults."""
    assert load(SHIPPED) == Config()


def test_without_a_file_the_defaults_apply() -> None:
    assert find_file() is None
    assert load() == Config()


def test_a_file_overrides_defaults(write: Write) -> None:
    config = load(write('[server]\nlisten = ":1"\n[freshness]\ntag_max_age = "1h"'))

    assert config.server.listen == ":1"
    assert config.freshness.tag_max_age == 3600
    assert config.server.workers == 1


def test_the_environment_overrides_the_file_and_the_command_line_both(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write('[server]\nlisten = ":1"\nworkers = 3\ndrain_timeout = "1s"')
    monkeypatch.setenv("REGMIRROR_SERVER__LISTEN", ":2")
    monkeypatch.setenv("REGMIRROR_SERVER__WORKERS", "4")

    config = load(path, server={"workers": 5})

    assert (config.server.listen, config.server.workers, config.server.drain_timeout) == (":2", 5, 1.0)


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("REGMIRROR_STORAGE__MAX_SIZE", "50GB", lambda c: c.storage.max_size == 50 * 10**9),
        ("regmirror_storage__path", "/x", lambda c: c.storage.path == "/x"),
        ("REGMIRROR_DEFAULT_UPSTREAM", "ghcr.io", lambda c: c.default_upstream == "ghcr.io"),
        ("REGMIRROR_SERVER__TRUSTED_PROXIES", '["10.0.0.0/8"]', lambda c: len(c.server.trusted_proxies) == 1),
        ("REGMIRROR_SERVER", '{"workers": 2}', lambda c: c.server.workers == 2),
        (
            "REGMIRROR_UPSTREAMS__DOCKER_IO__USERNAME",
            "me",
            lambda c: c.upstreams["docker.io"].username == "me",
        ),
        (
            "REGMIRROR_UPSTREAMS",
            '{"my.reg": {"url": "http://my.reg"}}',
            lambda c: c.upstreams["my.reg"].url == "http://my.reg" and "docker.io" in c.upstreams,
        ),
        ("REGMIRROR_FRESHNESS__OFFLINE", "true", lambda c: c.freshness.offline),
    ],
)
def test_every_key_can_be_set_by_the_environment(
    name: str, value: str, read: Callable[[Config], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    assert read(load())


def test_a_host_of_the_file_can_be_named_by_the_environment(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write('[upstreams."my-reg.example:5000"]\nurl = "http://a"')
    monkeypatch.setenv("REGMIRROR_UPSTREAMS__MY_REG_EXAMPLE_5000__PASSWORD", "secret")

    upstream = load(path).upstreams["my-reg.example:5000"]

    assert upstream.password.get_secret_value() == "secret"
    assert upstream.url == "http://a"


def test_a_file_is_found_at_the_default_paths(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_file("chosen.toml") == Path("chosen.toml")
    write("", "mirror.toml")
    assert find_file() == Path("mirror.toml")
    monkeypatch.setenv("REGMIRROR_CONFIG", "/from/environment.toml")
    assert find_file() == Path("/from/environment.toml")
    assert find_file("chosen.toml") == Path("chosen.toml")


def test_default_upstream_below_hosted_is_the_one_of_the_top_level(write: Write) -> None:
    """The overview of all keys shows it there, and it is copied from there."""
    config = load(write('[hosted]\nrepositories = []\ndefault_upstream = "ghcr.io"'))

    assert config.default_upstream == "ghcr.io"


WRONG = [
    ("[server]\nlissten = 1", "server.lissten", None, "see mirror.toml"),
    ("[sever]\nlisten = ''", "sever", None, "see mirror.toml"),
    ("[upstreams.docker.io]\nusername = 'x'", "upstreams.docker.io", None, '[upstreams."docker.io"]'),
    ("[server]\nlisten = 'x'", "server.listen", "'x'", "host:port"),
    ("[server]\nlisten = 5000", "server.listen", "5000", "write a text in quotes"),
    ("[server]\nworkers = -1", "server.workers", "-1", "write 0 to 256"),
    ("[server]\nworkers = 'two'", "server.workers", "'two'", "write a whole number"),
    ("[server]\ndrain_timeout = '5'", "server.drain_timeout", "'5'", "30s"),
    ("[server.tls]\ncertificate = 'a'", "server.tls", None, "both certificate and key"),
    ("[server.tls]\ncertificate='a'\nkey='b'", "server.tls.certificate", "'a'", "correct the path"),
    ("[storage]\nmax_size = 'lots'", "storage.max_size", "'lots'", "50GB"),
    ("[storage]\nurl = 's3://x'", "storage.url", "'s3://x'", "remove the key"),
    ("[metadata]\nurl = 'postgresql://u:p@h'", "metadata.url", None, "remove the key"),
    ("[freshness]\ntag_max_age = -5", "freshness.tag_max_age", "-5", "5m"),
    ("[freshness]\noffline = 'perhaps'", "freshness.offline", "'perhaps'", "write true or false"),
    (
        "[[freshness.rules]]\nmatch = 'docker.io/*'",
        "freshness.rules.0.tag_max_age",
        None,
        "is missing; add it",
    ),
    (
        "[[freshness.rules]]\nmatch = 'library/*'\ntag_max_age = '1h'",
        "freshness.rules.0.match",
        "'library/*'",
        "[upstreams.",
    ),
    (
        "[[freshness.rules]]\nmatch = '**:[9-0]'\ntag_max_age = '1h'",
        "freshness.rules.0.match",
        "'**:[9-0]'",
        "not a pattern",
    ),
    ("[access]\nhtpasswd = '/x'", "access.htpasswd", "'/x'", "remove the key"),
    ("[access]\nanonymous = []", "access.anonymous", "[]", 'write ["pull"]'),
    (
        "[[access.rules]]\nrepositories=['**']\nusers=['a']\nactions=['pull']",
        "access.rules",
        None,
        "remove the table",
    ),
    ("[hosted]\nrepositories = ['a/**']", "hosted.repositories", "['a/**']", "remove the key"),
    ("[[webhooks]]\nurl = 'http://x'", "webhooks", None, "remove the table"),
    ("default_upstream = 'evil.example'", "default_upstream", "'evil.example'", "add [upstreams."),
    ("[upstreams.'Docker.IO']", 'upstreams."Docker.IO"', "'Docker.IO'", "lower case"),
    ("[upstreams.'a/b']", 'upstreams."a/b"', "'a/b'", "not a host name"),
    ("[upstreams.'my.reg']\naliases=['ghcr.io']", 'upstreams."my.reg"', "'ghcr.io'", "already names"),
    ("[upstreams.'my.reg']\nurl='ftp://x'", 'upstreams."my.reg".url', "'ftp://x'", "https://"),
    ("[upstreams.'my.reg']\nurl='https://x/path'", 'upstreams."my.reg".url', None, "without path"),
    ("[upstreams.'my.reg']\nhttp_proxy='x'", 'upstreams."my.reg".http_proxy', "'x'", "http://host:port"),
    ("[upstreams.'my.reg']\nclient_key='x'", 'upstreams."my.reg"', None, "both client_certificate"),
    ("[upstreams.'my.reg']\nca_file='/none'", 'upstreams."my.reg".ca_file', "'/none'", "does not exist"),
    (
        "[upstreams.'my.reg']\nmax_connections=0",
        'upstreams."my.reg".max_connections',
        "0",
        "write 1 to 10000",
    ),
    ("[upstreams.'my.reg']\nrate_limit_reserve=-1", "rate_limit_reserve", "-1", "write 0 or more"),
    (
        "[upstreams.'my.reg']\ndocker_config='/none'",
        'upstreams."my.reg".docker_config',
        "'/none'",
        "does not exist",
    ),
    ("[upstreams.'my.reg']\nread_timeout='0'", 'upstreams."my.reg".read_timeout', "'0'", "greater than 0"),
    ("[upstreams.'my.reg']\nallow=['[z-a]']", 'upstreams."my.reg".allow.0', "'[z-a]'", "not a pattern"),
    ("[upstreams.'my.reg']\nallow='**'", 'upstreams."my.reg".allow', "'**'", 'write a list, as in ["a"]'),
    ("upstreams = 5", "upstreams", None, "is a table; write [upstreams]"),
    ("server = 'x'", "server", None, "is a table; write [server]"),
    ("webhooks = 'x'", "webhooks", None, "is a list of tables; write [[webhooks]]"),
    ("webhooks = ['x']", "webhooks.0", None, "is a table; write [[webhooks]]"),
    ("[upstreams]\n'my.reg' = 'x'", 'upstreams."my.reg"', None, 'write [upstreams."my.reg"]'),
    ("[freshness]\non_missing='lose'", "freshness.on_missing", "'lose'", 'write "forget" or "keep"'),
    ("[storage]\nmax_size=5.5", "storage.max_size", "5.5", "write a size as 500MB"),
    (
        "default_upstream='quay.io'\n[upstreams.'quay.io']\nenabled=false",
        "default_upstream",
        "'quay.io'",
        "is a disabled upstream; set enabled = true or choose another default_upstream",
    ),
    (
        "default_upstream='quay.io'\n[hosted]\ndefault_upstream='ghcr.io'",
        "default_upstream",
        None,
        "is also a key of [hosted]; remove one of the two",
    ),
    ("a = ", "--config", None, "is not TOML"),
    ("a = 1\na = 2", "--config", None, "is not TOML"),
]


@pytest.mark.parametrize(("text", "key", "value", "remedy"), WRONG, ids=[item[0][:60] for item in WRONG])
def test_a_wrong_value_is_explained(
    text: str, key: str, value: str | None, remedy: str, write: Write
) -> None:
    """B80: the key, the value as it was written, and what to do."""
    with pytest.raises(ConfigError) as caught:
        load(write(text))

    message = str(caught.value)
    assert key in caught.value.key
    assert remedy in message
    if value is not None:
        assert f"= {value}" in message


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("REGMIRROR_LISTEN", ":1", "REGMIRROR_LISTEN"),
        ("REGMIRROR_SERVER__LISSTEN", ":1", "server.lissten"),
        ("REGMIRROR_SERVER__LISTEN", "x", "server.listen"),
        ("REGMIRROR_SERVER__LISTEN", "x", "server.listen (REGMIRROR_SERVER__LISTEN) = 'x': write"),
        ("REGMIRROR_SERVER", '{"workers": -1}', "server.workers (REGMIRROR_SERVER) = -1: write 0"),
        ("REGMIRROR_DEFAULT_UPSTREAM", "x.y", "default_upstream (REGMIRROR_DEFAULT_UPSTREAM) ="),
        ("REGMIRROR_SERVER", "{", 'REGMIRROR_SERVER: write a list as JSON, as in ["library/*"]'),
        (
            "REGMIRROR_SERVER__TRUSTED_PROXIES",
            "10.0.0.0/8",
            "REGMIRROR_SERVER__TRUSTED_PROXIES: write a list",
        ),
        ("REGMIRROR_UPSTREAMS__DOCKER_IO__ALLOW", "a/*", "DOCKER_IO__ALLOW: write a list as JSON"),
        (
            "REGMIRROR_UPSTREAMS__DOCKERIO__USERNAME",
            "a",
            "REGMIRROR_UPSTREAMS__DOCKERIO__USERNAME: names no up",
        ),
        ("REGMIRROR_UPSTREAMS", "5", "upstreams"),
    ],
)
def test_a_wrong_variable_is_explained(
    name: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B80: an unknown variable of ours is an error, not a silent default."""
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError) as caught:
        load()
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[upstreams.'my.reg']\npassword = ['hunter2']",
        "[upstreams.'my.reg']\nhttp_proxy = 'socks5://me:hunter2@proxy'",
        "[upstreams.'my.reg']\nurl = 'https://me:hunter2@reg'",
        "[upstreams.'my.reg']\nurl = 'https://me:one/hunter2@two@reg'",
        "[upstreams.'my.reg']\nurl = 'https://reg?token=hunter2'",
        "[upstreams.'my.reg']\nhttp_proxy = 'me:hunter2@proxy:3128'",
        "[upstreams.'my.reg']\npasword = 'hunter2'",
        "[upstreams.'my.reg'.auth]\npassword = 'hunter2'",
        "[upstreams.'my.reg']\nauth = ['hunter2']",
        "[[upstreams]]\nname = 'my.reg'\npassword = 'hunter2'",
        "[upstreams]\n'my.reg' = 'hunter2'",
        "[upstreams.'https://me:hunter2@reg']",
        "[upstreams.'my.reg']\naliases = ['me:hunter2@reg']",
        "upstreams = 'hunter2'",
        "password = 'hunter2'",
        "server = 'hunter2'",
        "[metadata]\nurl = 'postgresql://u:hun@hunter2@h'",
        "[storage]\nurl = 's3://bucket?secret=hunter2'",
        "[[webhooks]]\nurl = 'https://hooks.example/hunter2'\nevents = ['nonsense']",
        "[[webhooks]]\nurl = ['https://hooks.example/hunter2']",
        "webhooks = 'https://hooks.example/hunter2'",
        "[hunter2]\n[hunter2]",
        "[[webhooks]]\nurl = 'x'\nsecret = {a = 'hunter2'}",
    ],
)
def test_no_explanation_shows_a_secret(text: str, write: Write) -> None:
    """B62: what is wrong with a password is not its text."""
    with pytest.raises(ConfigError) as caught:
        load(write(text))
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value)


SECRETS = st.text("abcdefghjkmnpqrtuvwxyz0123456789@:/?#%+", min_size=1).map(
    lambda text: f"s3cr3t{text}t3rc3s"
)
#: Where a secret may stand by mistake; every one of these configurations is invalid.
PLACES: list[Callable[[str], dict[str, Any]]] = [
    lambda secret: {"upstreams": {"my.reg": {"pasword": secret}}},
    lambda secret: {"upstreams": {"my.reg": {"auth": {"user": secret}}}},
    lambda secret: {"upstreams": {"my.reg": {"auth": [{"password": secret}]}}},
    lambda secret: {"upstreams": {"my.reg": {"password": [secret]}}},
    lambda secret: {"upstreams": {"my.reg": secret}},
    lambda secret: {"upstreams": [{"name": "my.reg", "password": secret}]},
    lambda secret: {"upstreams": secret},
    lambda secret: {"upstreams": {"my.reg": {"url": f"https://me:{secret}@my.reg"}}},
    lambda secret: {"upstreams": {"my.reg": {"url": f"https://{secret}@a@my.reg/path"}}},
    lambda secret: {"upstreams": {"my.reg": {"http_proxy": f"socks5://me:{secret}@proxy"}}},
    lambda secret: {"upstreams": {"my.reg": {"http_proxy": f"me:{secret}@proxy:3128"}}},
    lambda secret: {"upstreams": {"my.reg": {"http_proxy": f"http://me:{secret}@proxy:99999"}}},
    lambda secret: {"metadata": {"url": f"postgresql://me:{secret}@host/db"}},
    lambda secret: {"storage": {"url": f"s3://host/bucket?key={secret}"}},
    lambda secret: {"storage": {"pasword": secret}},
    lambda secret: {"storage": secret},
    lambda secret: {"webhooks": [{"url": f"https://hooks.example/{secret}", "events": ["pull"]}]},
    lambda secret: {"webhooks": [{"url": f"https://hooks.example/{secret}", "events": ["none"]}]},
    lambda secret: {"webhooks": [{"url": "x", "secret": {"is": secret}}]},
    lambda secret: {"webhooks": secret},
    lambda secret: {"password": secret},
    lambda secret: {"access": {"token": secret}},
]


@given(secret=SECRETS, place=st.sampled_from(PLACES), is_file=st.booleans())
@example(secret="s3cr3t@0#t3rc3s", place=PLACES[11], is_file=False)
def test_a_secret_in_a_wrong_place_is_shown_nowhere(
    secret: str, place: Callable[[str], dict[str, Any]], is_file: bool
) -> None:
    """B62, B80: misspelled keys, wrong shapes, URLs with several "@"; by file and by environment."""
    tables = place(secret)
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        path = Path(directory) / "my.toml"
        if is_file:
            path.write_text(tomli_w.dumps(tables), encoding="utf-8")
        else:
            path.touch()
            for name, value in tables.items():
                text = value if isinstance(value, str) else json.dumps(value)
                patch.setenv(f"REGMIRROR_{name.upper()}", text)
        with pytest.raises(ConfigError) as caught:
            load(path)
    shown = f"{caught.value} {caught.value!r} {caught.value.key} {caught.value.value}"
    assert "s3cr3t" not in shown
    assert "t3rc3s" not in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGMIRROR_UPSTREAMS__DOCKER_IO__PASWORD", "hunter2"),
        ("REGMIRROR_UPSTREAMS__DOCKER_IO", "hunter2"),
        ("REGMIRROR_UPSTREAMS", "hunter2"),
        ("REGMIRROR_PASWORD", "hunter2"),
        ("REGMIRROR_WEBHOOKS", '["https://hooks.example/hunter2"]'),
    ],
)
def test_a_secret_in_a_wrong_variable_is_not_shown(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B62."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        load()
    assert "hunter2" not in f"{caught.value} {caught.value.value}"


IMPOSSIBLE = ["host:99999", "host:0", "host:x", "xn--", f"{'a' * 64}.example", "[::1", ":80", "a..b"]


@pytest.mark.parametrize("authority", IMPOSSIBLE)
@pytest.mark.parametrize("key", ["url", "http_proxy"])
def test_an_address_that_cannot_exist_is_explained(key: str, authority: str, write: Write) -> None:
    """B80: when the configuration is read, not at the first request."""
    with pytest.raises(ConfigError) as caught:
        load(write(f"[upstreams.'my.reg']\n{key} = 'http://{authority}'"))
    assert caught.value.key == f'upstreams."my.reg".{key}'
    assert caught.value.value == f"http://{authority}"
    assert "host:port" in caught.value.reason


def test_the_name_of_an_upstream_without_a_url_is_a_possible_address(write: Write) -> None:
    """B80: with a url the name is never connected to."""
    with pytest.raises(ConfigError) as caught:
        load(write("[upstreams.'my.reg:99999']"))
    assert caught.value.key == 'upstreams."my.reg:99999"'
    assert "set url" in caught.value.reason
    assert load(write("[upstreams.'my.reg:99999']\nurl = 'http://my.reg'")).upstreams["my.reg:99999"].url


@pytest.mark.parametrize("listen", [f"{'a' * 64}:1", "a..b:1", "a\\u0000b:1"])
def test_an_address_to_listen_at_that_cannot_exist_is_explained(listen: str, write: Write) -> None:
    """B80."""
    with pytest.raises(ConfigError) as caught:
        load(write(f'[server]\nlisten = "{listen}"'))
    assert caught.value.key == "server.listen"
    assert "not a possible host" in caught.value.reason


def test_a_file_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert str(path) in str(caught.value)


def test_a_wrong_key_of_a_quoted_upstream_is_no_hint_about_quoting(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write('[upstreams."my.reg"]\nwrong = 1'))
    assert "is not a configuration key" in str(caught.value)
    assert "quoted" not in str(caught.value)


def test_a_variable_that_the_command_line_overrides_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGMIRROR_SERVER__WORKERS", "2")
    with pytest.raises(ConfigError) as caught:
        load(server={"workers": -1})
    assert caught.value.key == "server.workers"


def test_a_key_of_the_file_does_not_name_a_variable_of_the_same_table(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGMIRROR_SERVER", '{"workers": 2}')
    with pytest.raises(ConfigError) as caught:
        load(write("[server]\nlisten = 'x'"))
    assert caught.value.key == "server.listen"


def test_a_variable_can_extend_an_upstream_that_another_variable_adds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REGMIRROR_UPSTREAMS", '{"my.reg": {"url": "http://my.reg"}}')
    monkeypatch.setenv("REGMIRROR_UPSTREAMS__MY_REG__USERNAME", "me")
    assert load().upstreams["my.reg"].username == "me"


def test_a_file_that_a_variable_names_is_reported_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGMIRROR_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(ConfigError) as caught:
        load(find_file())
    assert caught.value.key == "$REGMIRROR_CONFIG"
