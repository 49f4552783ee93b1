"""The table of commands: what it loads, and how errors end it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

from regmirror import __version__
from regmirror.cli.context import Context
from regmirror.config.schema import Config
from regmirror.errors import ConfigError, RegmirrorError

commands = importlib.import_module("regmirror.cli.main")  # the package exports a function of this name


def loaded_by(code: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(run.stdout.split())


def test_the_version_is_printed_without_loading_the_program() -> None:
    heavy = {"rich", "pydantic", "sqlalchemy", "aiohttp", "prometheus_client", "humanize"}
    assert heavy & loaded_by("import regmirror.cli") == set()


def test_only_commands_that_print_tables_load_rich() -> None:
    """structlog imports rich if it is installed; the command line does not."""
    assert "rich" not in loaded_by(
        "import regmirror.cli, regmirror.cli.check_config, regmirror.cli.client_config, regmirror.cli.output"
    )


def failure_of(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(commands, "app", fail)
    with pytest.raises(SystemExit) as caught:
        commands.main()
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            ConfigError("server.listen", "x", "write host:port"),
            2,
            "wrong configuration: server.listen = 'x': write host:port",
        ),
        (RegmirrorError("alpine is not cached"), 1, "alpine is not cached"),
        (PermissionError(13, "Permission denied", "/data"), 1, "/data: permission denied"),
        (OSError("broken"), 1, "broken"),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(
    error: Exception,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert failure_of(error, monkeypatch) == status
    assert capsys.readouterr().err == f"regmirror: {line}\n"


def test_a_defect_is_one_line_with_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failure_of(KeyError("x"), monkeypatch) == 1
    line = capsys.readouterr().err
    assert line.startswith("regmirror: internal error, please report it: KeyError('x') at ")
    assert line.count("\n") == 1


def test_an_interrupt_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failure_of(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err == ""


def test_every_command_and_option_has_a_help_text() -> None:
    command = typer.main.get_command(commands.app)
    assert isinstance(command, typer.core.TyperGroup)
    for name, item in command.commands.items():
        assert item.help, name
        for parameter in item.params:
            assert getattr(parameter, "help", None), (name, parameter.name)


@pytest.mark.parametrize(
    "arguments",
    [
        ["check-config"],
        ["client-config", "podman"],
        ["client-config", "docker", "--mirror", "https://m"],
        ["status", "--listen", "127.0.0.1:1"],
        ["ls"],
        ["inspect", "alpine:3"],
        ["gc", "--dry-run"],
        ["evict", "--dry-run", "--to", "1GB"],
        ["purge", "alpine:3"],
        ["pin", "alpine"],
        ["pins"],
    ],
    ids=" ".join,
)
def test_each_command_prints_json(context: Context, arguments: list[str]) -> None:
    result = CliRunner().invoke(commands.app, ["--config", str(context.config), *arguments, "--json"])
    assert result.exit_code == 0, result.output
    json.loads(result.output)


@pytest.mark.parametrize("arguments", [["check-config"], ["client-config", "k3s"], ["status"]], ids=" ".join)
def test_each_command_prints_text(context: Context, arguments: list[str]) -> None:
    result = CliRunner().invoke(commands.app, ["--config", str(context.config), *arguments])
    assert result.exit_code == 0, result.output
    assert result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["evict", "--to", "much"],
        ["scrub", "--rate", "fast/s"],
        ["pin", "[z-a]"],
        ["purge", "sha256:short"],
        ["pin", ""],
        ["pin", "/"],
        ["pin", "team/[ab"],
        ["purge", ""],
        ["purge", "team/[ab*"],
        ["purge", "[z-a]"],
        ["ls", "[z-a]"],
        ["ls", ""],
        ["ls", "team/[ab"],
        ["inspect", "Alpine"],
        ["client-config", "k3s", "--mirror", "m"],
    ],
    ids=" ".join,
)
def test_a_malformed_argument_is_a_usage_error(context: Context, arguments: list[str]) -> None:
    result = CliRunner().invoke(commands.app, ["--config", str(context.config), *arguments])
    assert result.exit_code == 2


def test_a_value_error_of_the_work_is_no_usage_error(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr("regmirror.cli.removals.change_store", fail)
    result = CliRunner().invoke(commands.app, ["--config", str(context.config), "purge", "alpine:3"])
    assert (type(result.exception), result.exit_code) == (ValueError, 1)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("gc", "Remove unreferenced content that is older than gc.grace."),
        ("evict", "Evict the least recently pulled content to free space."),
        ("purge", "or the content of a digest; pins do not protect."),
        ("purge", "Such as 'alpine:3.20', 'ghcr.io/org/*' or 'sha256:…'."),
        ("ls", "default: $REGMIRROR_CONFIG, ./mirror.toml, /etc/regmirror/mirror.toml."),
    ],
)
def test_the_help_of_a_command_states_its_conditions(command: str, text: str) -> None:
    result = CliRunner().invoke(commands.app, [command, "--help"], env={"COLUMNS": "300"}, terminal_width=300)
    assert text in " ".join(result.output.split())


def test_a_pin_that_does_not_exist_is_an_error(context: Context) -> None:
    result = CliRunner().invoke(commands.app, ["--config", str(context.config), "unpin", "alpine"])
    assert isinstance(result.exception, RegmirrorError)


def test_scrub_passes_its_rate_in_bytes(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[int | None] = []
    monkeypatch.setattr("regmirror.cli.scrub.scrub_store", lambda context, rate: rates.append(rate))
    for options in ([], ["--rate", "20MB/s"], ["--rate", "1KiB"]):
        assert CliRunner().invoke(commands.app, ["scrub", *options]).exit_code == 0
    assert rates == [None, 20_000_000, 1024]


def test_serve_overrides_the_configuration_and_returns_the_status_of_the_server(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[Config] = []

    def serve(read: Callable[[], Config]) -> int:
        configs.append(read())
        return 7

    monkeypatch.setattr("regmirror.server.workers.serve", serve)
    options = ["--config", str(context.config), "--listen", ":1", "--workers", "2", "--offline"]
    assert CliRunner().invoke(commands.app, ["serve", *options]).exit_code == 7
    assert CliRunner().invoke(commands.app, ["serve", "--config", str(context.config)]).exit_code == 7
    changed, default = configs
    assert (changed.server.listen, changed.server.workers, changed.freshness.offline) == (":1", 2, True)
    assert (default.server, default.freshness) == (Config().server, Config().freshness)


def test_the_version_is_one_line() -> None:
    result = CliRunner().invoke(commands.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"regmirror {__version__}\n")
