"""Lines for the person who started the server; none of them contains a secret."""

import pytest

from regmirror.config.diff import Changes, Snapshot
from regmirror.config.schema import Config
from regmirror.errors import ConfigError
from regmirror.server.console import (
    log_changes,
    print_changes,
    print_line,
    print_ready,
    reporting_failed_reload,
)


def changes(tables: tuple[str, ...] = (), need_restart: tuple[str, ...] = ()) -> Changes:
    return Changes(Snapshot(Config()), tables, frozenset(), need_restart)


def test_a_line_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("hello")
    assert capsys.readouterr() == ("", "regmirror: hello\n")


@pytest.mark.parametrize(("workers", "end"), [(1, "http://h:1\n"), (3, "http://h:1 with 3 workers\n")])
def test_the_ready_line_has_the_url(capsys: pytest.CaptureFixture[str], workers: int, end: str) -> None:
    print_ready("http://h:1", workers)
    printed = capsys.readouterr().out
    assert printed.startswith("regmirror ")
    assert printed.endswith(end)


def test_changes_are_printed_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    print_changes(changes(("freshness", "upstreams"), ("server.listen",)))
    assert capsys.readouterr().err.splitlines() == [
        "regmirror: configuration reloaded: freshness, upstreams",
        "regmirror: the old value stays until a restart: server.listen",
    ]
    print_changes(changes())
    assert capsys.readouterr().err == "regmirror: configuration reloaded: nothing changed\n"


def test_changes_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    log_changes(changes(("freshness",)))
    assert "freshness" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("a.b", "value", "is wrong"), "a.b"),
        (FileNotFoundError(2, "No such file or directory"), "FileNotFoundError No such file or directory"),
        (ValueError("password=secret"), "ValueError"),
    ],
)
def test_a_failed_reload_is_reported_and_survived(
    capsys: pytest.CaptureFixture[str], error: Exception, text: str
) -> None:
    def reload() -> None:
        raise error

    with reporting_failed_reload():
        reload()
    printed = capsys.readouterr()
    assert printed.err.startswith("regmirror: configuration not reloaded, the old one stays: ")
    assert text in printed.err
    assert "secret" not in printed.err + printed.out
