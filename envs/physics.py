"""MuJoCo, imported so that it draws without a screen, and what it says where there is no OpenGL."""

from __future__ import annotations

import os
import sys

NO_GL = (
    "MuJoCo found no OpenGL: set MUJOCO_GL=egl (on Debian and Ubuntu: apt-get install libegl1 "
    "libgl1-mesa-dri) or MUJOCO_GL=osmesa (apt-get install libosmesa6) before Python starts."
)
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo reads it when it is imported
try:
    import mujoco
except (ImportError, RuntimeError, AttributeError) as error:  # an unusable MUJOCO_GL can fail here already
    raise RuntimeError(NO_GL) from error

__all__ = ["NO_GL", "border", "mujoco"]


def border(half: float) -> str:
    """MuJoCo planes round a square table whose side is twice `half`."""
    sides = (("-{0} 0", "1 0"), ("{0} 0", "-1 0"), ("0 -{0}", "0 1"), ("0 {0}", "0 -1"))
    return "".join(
        f'<geom type="plane" size="1 1 1" pos="{place.format(half)} 0" zaxis="{inward} 0"/>'
        for place, inward in sides
    )
