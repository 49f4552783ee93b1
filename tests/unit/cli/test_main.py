"""The table of commands: what it loads, and how errors end it."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import typer

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
