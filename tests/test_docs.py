"""The documents match the program: names in them exist, and the commands of the README work."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import regmirror
from tests.test_architecture import PLANNED, ROWS

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
#: Prefixes of environment variables that would change the commands of the README.
REMOVED_VARIABLES = ("REGMIRROR_", "MAKE", "MFLAGS", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(?:\.venv/bin/)?regmirror (.+)$")
VARIABLE = re.compile(r"\bREGMIRROR_[A-Z][A-Z0-9_]*[A-Z0-9]\b")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def clean_environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if not name.upper().startswith(REMOVED_VARIABLES)
    }


every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


# --- commands and options


def commands_in(text: str) -> list[str]:
    """Every `regmirror …` in a code span or on a line of a shell block, without the word `regmirror`."""
    lines = CODE_SPAN.findall(FENCE.sub("", text))
    for block in FENCE.finditer(text):
        if block["language"] == "sh":
            lines += block["text"].splitlines()
    return [found[1].partition(" #")[0] for line in lines if (found := COMMAND.match(line.strip()))]


@cache
def output_of(*command: str) -> str:
    """Standard output of the command, in long lines without colours; empty if it fails."""
    environment = clean_environment() | {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    run = subprocess.run(
        [sys.executable, "-m", "regmirror", *command],
        capture_output=True, text=True, env=environment, cwd=ROOT, check=False,
    )  # fmt: skip
    return run.stdout if run.returncode == 0 else ""


@every_document
def test_every_command_and_option_in_the_documents_exists(document: Path) -> None:
    for command in commands_in(document.read_text()):
        name = next((word for word in command.split() if not word.startswith("-")), None)
        described = output_of(name, "--help") if name else output_of("--help")
        assert described, f"`regmirror {command}`: no such command"
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", command):
            options = re.findall(r"(?<!\S)--?[a-z][a-z-]*", described + output_of("--help"))
            assert option in options, f"`regmirror {command}` has no option {option}"


@every_document
def test_the_configurations_of_clients_are_what_the_command_prints(document: Path) -> None:
    for block in FENCE.finditer(document.read_text()):
        if block["mark"] and block["mark"].startswith("client-config "):
            printed = output_of(*block["mark"].split(), "--mirror", "http://mirror.example.com:5000")
            for paragraph in block["text"].strip().split("\n\n"):
                assert paragraph in printed


def test_the_readme_names_commands_at_all() -> None:
    assert len(commands_in((ROOT / "README.md").read_text())) >= 3


@every_document
def test_no_document_installs_the_other_project_of_this_name_from_an_index(document: Path) -> None:
    assert not re.search(r"pip install (?:\S+ )*regmirror(?![\w./-])", document.read_text())


# --- packaging


def test_package_and_image_name_the_same_repository_and_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = dict(
        re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', (ROOT / "Dockerfile").read_text())
    )
    assert labels["source"] == project["urls"]["Repository"]
    assert labels["documentation"] == project["urls"]["Documentation"]
    assert labels["licenses"] == project["license"]


def test_the_issue_templates_direct_vulnerabilities_to_the_security_policy() -> None:
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    config = (ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml").read_text()
    assert f"{repository}/blob/main/SECURITY.md" in config


def test_the_contributing_guide_names_the_enforced_coverage() -> None:
    report = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]["report"]
    assert f"below {report['fail_under']} %" in (ROOT / "CONTRIBUTING.md").read_text()


# --- configuration keys


@cache
def keys() -> frozenset[str]:
    """Every key of mirror.toml, the commented examples included, with the tables above it."""
    found: set[str] = set()
    table = ""
    for line in (ROOT / "mirror.toml").read_text().splitlines():
        text = line.lstrip("# ")
        if header := re.fullmatch(r"\[{1,2}([^\[\]]+)\]{1,2}(?:\s*#.*)?", text):
            # A table for one upstream describes the keys of all of them.
            table = re.sub(r'^upstreams\.".*"$', "upstreams", header[1])
            found.add(table)
        elif key := re.match(r"([a-z_]+)\s*=", text):
            found.add(f"{table}.{key[1]}".lstrip("."))
            found.add(key[1]) if key[1] == "default_upstream" else None
    return frozenset(found)


def key_column(text: str) -> list[str]:
    """Code spans in the first column of every table with the heading `key`."""
    found: list[str] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == "key":
            inside = True
        elif inside:
            found += CODE_SPAN.findall(cells[0])
    return found


@every_document
def test_every_configuration_key_in_a_table_exists(document: Path) -> None:
    for key in key_column(document.read_text()):
        assert re.sub(r'^upstreams\."[^"]*"', "upstreams", key) in keys()


@every_document
def test_every_variable_of_the_environment_is_a_key(document: Path) -> None:
    for variable in VARIABLE.findall(document.read_text()):
        path = variable.removeprefix("REGMIRROR_").lower().replace("__", ".")
        # The second component of an upstream's variable is its host.
        path = re.sub(r"^upstreams\.[a-z0-9_]+\.", "upstreams.", path)
        assert variable == "REGMIRROR_CONFIG" or path in keys(), variable


# --- links, versions, decisions


def anchors_of(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for link in LINK.findall(FENCE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_the_changelog_begins_with_the_current_version() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert regmirror.__version__ == next(version for version in versions if version != "Unreleased")


def test_every_decision_stands_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = LINK.findall((folder / "README.md").read_text())
    assert sorted(path.name for path in folder.glob("[0-9]*.md")) == sorted(set(listed))


@every_document
def test_no_line_of_prose_holds_two_sentences(document: Path) -> None:
    for line in FENCE.sub("", document.read_text()).splitlines():
        if not line.startswith(("|", "#")):
            assert not re.search(r"[a-z)`]\. [A-Z]", CODE_SPAN.sub("`x`", line)), line


def test_the_table_of_layers_is_the_one_that_is_enforced() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| [\w ]+ \| (`.*`) \|$", text.partition("## Walks")[0], re.MULTILINE)
    documented = [CODE_SPAN.findall(packages) for packages in rows]
    enforced = [[name for name in names if name not in PLANNED] for names in ROWS]
    assert documented == enforced


# --- the first minute


@dataclass
class Served:
    url: str
    environment: dict[str, str]
    process: subprocess.Popen[str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def marked_blocks() -> list[str]:
    return [
        block["text"]
        for block in FENCE.finditer((ROOT / "README.md").read_text())
        if block["mark"] == "tested"
    ]


def fetch(url: str) -> tuple[int, str]:
    """Status and body; raises OSError while nothing listens."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as response:
        return response.status, response.read().decode()


def wait_until_healthy(served: Served, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert served.process.poll() is None, "make run ended"
        try:
            if fetch(f"{served.url}/healthz")[0] == 200:
                return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"{served.url} is not healthy after {seconds} s")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server started by the README's first command, with its own port and store."""
    command = marked_blocks()[0].strip()
    assert command == "make run"
    port = free_port()
    environment = clean_environment() | {
        "REGMIRROR_CONFIG": str(ROOT / "mirror.toml"),
        "REGMIRROR_STORAGE__PATH": str(tmp_path_factory.mktemp("store")),
    }
    process = subprocess.Popen(
        [*command.split(), f"ARGS=--listen 127.0.0.1:{port}"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    found = Served(f"http://127.0.0.1:{port}", environment, process)
    try:
        wait_until_healthy(found)
        yield found
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.timeout(120)
def test_make_run_serves_with_no_other_set_up(served: Served) -> None:
    assert fetch(f"{served.url}/v2/")[0] == 200


@pytest.mark.timeout(120)
def test_the_commands_beside_the_server_work(served: Served) -> None:
    for line in marked_blocks()[1].splitlines():
        run = subprocess.run(
            line, shell=True, cwd=ROOT, env=served.environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, f"{line}: {run.stderr}"


@pytest.mark.timeout(120)
def test_every_metric_in_the_documents_is_served(served: Served) -> None:
    exported = set(re.findall(r"^# TYPE (regmirror_\w+)", fetch(f"{served.url}/metrics")[1], re.MULTILINE))
    for document in DOCUMENTS:
        for name in re.findall(r"`(regmirror_[a-z_]+)", document.read_text()):
            assert name in exported, f"{name_of(document)} names {name}"


@pytest.mark.timeout(120)
def test_make_run_ends_on_a_signal_and_frees_the_port(served: Served) -> None:
    served.process.terminate()
    served.process.wait(timeout=60)
    with pytest.raises(urllib.error.URLError):
        fetch(f"{served.url}/healthz")
