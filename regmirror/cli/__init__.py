"""The command line: each command calls use cases, never HTTP handlers."""

from regmirror.cli.commands import main

__all__ = ["main"]
