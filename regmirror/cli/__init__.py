"""The command line: each command calls use cases, never HTTP handlers.

`commands` what can be typed; `context` the global options; `output` tables and JSON; the rest
one command each, imported when it runs, so that ``--version`` and ``serve`` load none of them.
"""

from regmirror.cli.main import main

__all__ = ["main"]
