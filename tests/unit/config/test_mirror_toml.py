"""The annotated default configuration is the default configuration."""

import os
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from regmirror.config import loader
from regmirror.config.schema import (
    Access,
    AccessRule,
    Config,
    Freshness,
    FreshnessRule,
    Gc,
    Hosted,
    MetadataSection,
    Scrub,
    Section,
    Server,
    Storage,
    Tls,
    Upstream,
    Webhook,
)

FILE = Path(__file__).parents[3] / "mirror.toml"
LINES = FILE.read_text().splitlines()
#: The header above a table's keys; tables that come as lists stand there as comments.
TABLES: dict[str, type[BaseModel]] = {
    "": Config,
    "[server]": Server,
    "[server.tls]": Tls,
    "[storage]": Storage,
    "[metadata]": MetadataSection,
    "[freshness]": Freshness,
    "[[freshness.rules]]": FreshnessRule,
    "[gc]": Gc,
    "[scrub]": Scrub,
    "[access]": Access,
    "[[access.rules]]": AccessRule,
    "[hosted]": Hosted,
    "[[webhooks]]": Webhook,
    '[upstreams."docker.io"]': Upstream,
}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("REGMIRROR_")]:
        monkeypatch.delenv(name)


def keys_and_comments() -> dict[str, dict[str, str]]:
    """Under each header every key, as a value or as a comment, with its comment."""
    found: dict[str, dict[str, str]] = {"": {}}
    header = ""
    for line in LINES:
        text = re.sub(r"^# (?=\[\[|[a-z_]+ = )", "", line)
        if text.startswith("["):
            header = text.partition(" ")[0]
            found[header] = {}
        elif match := re.match(r"([a-z_]+) = (.*)", text):
            value, _, comment = match[2].rpartition("#")
            found[header][match[1]] = comment.strip() if value else ""
    return found


def values_of(model: type[BaseModel]) -> set[str]:
    """The keys of a table that are no tables themselves."""
    tables = {
        "server",
        "storage",
        "metadata",
        "freshness",
        "gc",
        "scrub",
        "access",
        "hosted",
        "tls",
        "groups",
    }
    return set(model.model_fields) - tables - {"rules", "webhooks", "upstreams"}


def test_the_file_is_equal_to_the_defaults_in_code() -> None:
    assert loader.load(FILE) == Config()


@pytest.mark.parametrize("header", TABLES, ids=lambda header: header or "top")
def test_every_key_of_the_models_appears(header: str) -> None:
    assert values_of(TABLES[header]) == set(keys_and_comments()[header])


def test_no_table_is_missing() -> None:
    def tables(model: type[BaseModel]) -> set[type[BaseModel]]:
        inner = {str(field.annotation): field.annotation for field in model.model_fields.values()}
        return {item for item in inner.values() if isinstance(item, type) and issubclass(item, Section)}

    assert tables(Config) | tables(Server) <= set(TABLES.values())
    assert "[access.groups]" in keys_and_comments()


@pytest.mark.parametrize("header", TABLES, ids=lambda header: header or "top")
def test_every_key_has_a_comment(header: str) -> None:
    for key, comment in keys_and_comments()[header].items():
        assert comment, key


def test_the_default_upstream_stands_above_every_table() -> None:
    """Below a header TOML would read it as a key of that table."""
    first = next(line for line in LINES if line and not line.startswith("#"))
    assert first.startswith("default_upstream = ")
