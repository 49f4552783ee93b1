"""The command line: each command calls use cases directly, never HTTP handlers.

``main`` is the table of commands and ``context`` their common options; ``output`` prints tables
and JSON, ``naming`` parses and formats image names. Each other module is one family of commands.
It is imported when its command runs, so that ``--version`` and ``serve`` stay quick.
"""

from regmirror.cli.main import main

__all__ = ["main"]
