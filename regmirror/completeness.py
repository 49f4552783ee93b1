"""Whether an image can be pulled from what is stored: its manifest alone is no use to anybody.

Some clients (podman) choose a registry by its manifest and ask no other one for the layers. So a
manifest whose layers can neither be found here nor fetched is better not served (B39).
"""

from __future__ import annotations

from typing import Final

from regmirror.blobs.local import LocalBlobStore
from regmirror.knowledge import Knowledge
from regmirror.manifests import Descriptor, Manifest, NotAManifest, parse_document, references
from regmirror.names import Digest, Repository

#: ``{}``, the config of artifacts that have none (image specification, "Guidance for an Empty
#: Descriptor"): everybody knows it.
EMPTY: Final = Digest("sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")
DEPTH_MAX: Final = 3  # an index may name indexes


class Completeness:
    """Looks at the store and at what is known of manifests; asks no upstream."""

    def __init__(self, knowledge: Knowledge, store: LocalBlobStore) -> None:
        self._knowledge, self._store = knowledge, store

    async def find_gap(self, repository: Repository, manifest: Manifest, depth: int = 0) -> str | None:
        """What is missing here of the image, in words; None if it can be pulled.

        Of an index one complete image is enough: nobody pulls the others.
        """
        try:
            named = references(parse_document(manifest.payload))
        except NotAManifest:
            return None
        children = [item for item in named if item.role == "manifest"]
        gap = self._gap([item for item in named if item.role in ("config", "layer")])
        if gap is not None or not children:
            return gap
        if depth < DEPTH_MAX:
            for child in children:
                held = await self._knowledge.find_manifest(repository, child.digest)
                if held is not None and await self.find_gap(repository, held, depth + 1) is None:
                    return None
        return f"of none of its {len(children)} images are all layers stored"

    def _gap(self, parts: list[Descriptor]) -> str | None:
        wanted = {item.digest: item.role for item in parts if item.fetchable and item.digest != EMPTY}
        missing = {digest for digest in wanted if not self._store.path(digest).exists()}
        if not missing:
            return None
        layers = [digest for digest, role in wanted.items() if role == "layer"]
        stored = len(set(layers) - missing)
        without = ", and not its config" if len(missing) > len(layers) - stored else ""
        return f"{stored} of its {len(layers)} layers are stored{without}"
