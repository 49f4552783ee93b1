"""Traces which modules of regmirror a request passes through."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import regmirror

PACKAGE = Path(regmirror.__file__).parent
#: Tasks that run beside the requests; their calls belong to no request.
BACKGROUND = {"maintenance.scheduler", "maintenance.news"}


def module_of(frame: FrameType) -> str | None:
    """The module of a frame as ``v2.pull``; None outside regmirror."""
    name = frame.f_code.co_filename
    prefix = f"{PACKAGE}/"
    return name[len(prefix) :].removesuffix(".py").replace("/", ".") if name.startswith(prefix) else None


class Walk:
    """The modules that are entered while it is active, in all threads, in the order of their first call.

    ``calls`` counts the calls into each module, ``entries`` those that come from another module.
    """

    def __init__(self) -> None:
        self.modules: list[str] = []
        self.calls: Counter[str] = Counter()
        self.entries: Counter[str] = Counter()

    def __enter__(self) -> Walk:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        module = module_of(frame) if event == "call" else None
        if module is None or frame.f_code.co_name == "<module>":
            return
        callers = list(_callers(frame))
        if BACKGROUND & {module, *callers}:
            return
        if module not in self.calls:
            self.modules.append(module)
        self.calls[module] += 1
        self.entries[module] += not callers or callers[0] != module


def _callers(frame: FrameType) -> list[str]:
    """The modules of regmirror on the stack of ``frame``, the nearest first."""
    found, caller = [], frame.f_back
    while caller is not None:
        module = module_of(caller)
        if module is not None:
            found.append(module)
        caller = caller.f_back
    return found
