"""`sparsewm push`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass
class Push:
    """Publish a world model on the Hugging Face hub, with a card made from its metadata.

    Log in first: hf auth login. Then anybody plans with --checkpoint user/name.

    Example: sparsewm push runs/pusht/checkpoint user/pusht-world-model --license apache-2.0
    """

    checkpoint: Positional[Path]
    """Folder that train wrote."""
    name: Positional[str]
    """Repository: user/name; made when there is none."""
    private: bool = False
    """Show a new repository to its owner alone."""
    license: str | None = None
    """Identifier of the licence that the card shall name, e.g. apache-2.0."""

    def run(self) -> int:
        from sparsewm.model.publish import push_to_hub

        print(push_to_hub(self.checkpoint, self.name, self.private, license=self.license))
        return 0
