"""`sparsewm demo`."""

from __future__ import annotations

from dataclasses import dataclass

from sparsewm.errors import UserError


@dataclass
class Demo:
    """Set a goal by hand and watch an agent plan, in a browser.

    The page is served on this machine alone. It needs pip install 'sparsewm[demo]'.

    Example: sparsewm demo --env pusht
    """

    env: str = "wall"
    """Environment it begins with."""
    port: int = 7860
    """Port on this machine."""

    interrupted = "the page is closed"

    def run(self) -> int:
        if not 1024 <= self.port <= 65535:
            raise UserError(f"`port` lies between 1024 and 65535, got {self.port}")
        from sparsewm.demo.page import LOOPBACK, serve

        print(f"http://{LOOPBACK}:{self.port} shows {self.env}; Ctrl-C ends it", flush=True)
        serve(self.env, self.port)
        return 0
