"""Credential helpers: ``docker-credential-X get`` with the server on standard input."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from contextlib import suppress
from typing import Final

TIMEOUT: Final = 15.0  # seconds; some helpers call a cloud's API
_OUTPUT_MAX: Final = 1024 * 1024  # bytes
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class HelperFailed(Exception):
    """A helper failed; the text does not contain its output."""


async def run_helper(helper: str, server: str, timeout: float = TIMEOUT) -> tuple[str, str] | None:
    """User name and secret of ``server``; None if the helper has none. Raises HelperFailed."""
    if _NAME.fullmatch(helper) is None:
        raise HelperFailed("is not the name of a program")
    try:
        process = await asyncio.create_subprocess_exec(
            f"docker-credential-{helper}",
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # so that its child processes can be killed with it
        )
    except OSError as error:
        reason = (error.strerror or "error").lower()
        raise HelperFailed(f"cannot be started: {reason}") from None
    output = await _communicate(process, server.encode(), timeout)
    if process.returncode:
        if b"credentials not found" in output.lower():
            return None
        raise HelperFailed(f"ended with status {process.returncode}")
    return _parse(output)


async def _communicate(process: asyncio.subprocess.Process, server: bytes, timeout: float) -> bytes:
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate(server)
    except TimeoutError:
        raise HelperFailed(f"timed out after {timeout:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return output[:_OUTPUT_MAX]


def _parse(output: bytes) -> tuple[str, str]:
    try:
        result = json.loads(output)
        username, secret = result["Username"], result["Secret"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise HelperFailed("did not print Username and Secret") from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise HelperFailed("did not print Username and Secret")
    return username, secret
