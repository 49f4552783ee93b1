"""Memory in front of the database: what is newest counts, and a failing database costs no pull."""

import asyncio

from sqlalchemy.exc import OperationalError

from regmirror.errors import BlobUnknown, ManifestUnknown
from regmirror.events import NotStored
from regmirror.freshness import TagRecord
from regmirror.knowledge import Knowledge
from regmirror.names import Digest, Repository, Tag

APP, LATEST = Repository("docker.io", "team/app"), Tag("latest")
DIGEST = Digest("sha256:" + "0" * 64)
OLD = TagRecord(DIGEST, "x/y", 1, 100.0)
NEW = TagRecord(DIGEST, "x/y", 1, 200.0)


class SlowStore:
    """A database that answers when it is told to, with what it knew when it was asked."""

    def __init__(self):
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def find_tag(self, repository, tag):
        self.asked.set()
        await self.answer.wait()
        return OLD

    async def save_tag(self, repository, tag, record):
        pass

    async def ping(self):
        pass


class BrokenStore:
    """A database that fails whatever it is asked."""

    def __getattr__(self, name):
        async def fail(*_):
            raise OperationalError("SELECT", {}, Exception("disk I/O error"))

        return fail


async def test_what_was_learnt_while_the_database_was_read_is_kept():
    """B25: else the upstream would be asked again by everybody who had looked a moment before."""
    store = SlowStore()
    knowledge = Knowledge(store, emit=lambda event: None, missing_max_age=10)
    finding = asyncio.create_task(knowledge.find_tag(APP, LATEST))
    await store.asked.wait()
    await knowledge.save_tag(APP, LATEST, NEW)
    store.answer.set()

    assert await finding == NEW
    assert knowledge.recall_tag(APP, LATEST) == NEW


async def test_a_database_that_fails_costs_no_pull():
    """B44: what cannot be read is not known, what cannot be written is counted; memory goes on."""
    events = []
    knowledge = Knowledge(BrokenStore(), emit=events.append, missing_max_age=10)

    assert await knowledge.find_tag(APP, LATEST) is None
    assert await knowledge.find_manifest(APP, DIGEST) is None
    assert await knowledge.find_size(DIGEST) is None
    assert not await knowledge.has_right(APP, DIGEST)
    await knowledge.save_tag(APP, LATEST, NEW)
    await knowledge.confirm(APP, DIGEST)

    assert await knowledge.find_tag(APP, LATEST) == NEW
    assert await knowledge.has_right(APP, DIGEST)
    assert {type(event) for event in events} == {NotStored}
    assert {event.detail for event in events} == {"disk I/O error"}


def test_what_is_missing_is_missing_as_what_it_was_asked_for():
    """B28: a digest that is no manifest may be a blob."""
    knowledge = Knowledge(BrokenStore(), emit=lambda event: None, missing_max_age=10)
    error = ManifestUnknown("none")
    knowledge.note_missing(APP, DIGEST, error, denied=False)
    refused = None
    try:
        knowledge.refuse_missing(APP, DIGEST, BlobUnknown)
        knowledge.refuse_missing(APP, DIGEST, ManifestUnknown)
    except ManifestUnknown as caught:
        refused = caught
    assert (type(refused), refused.message) == (ManifestUnknown, error.message)
