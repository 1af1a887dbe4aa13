"""MuJoCo, imported when it is first used, so that it draws without a screen or says what it lacks."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

NO_GL = (
    "MuJoCo found no OpenGL: set MUJOCO_GL=egl (on Debian and Ubuntu: apt-get install libegl1 "
    "libgl1-mesa-dri) or MUJOCO_GL=osmesa (apt-get install libosmesa6) before Python starts."
)


def before_mujoco() -> None:
    """What has to be done before anybody imports MuJoCo.

    It draws off screen where there is none, by a variable that it reads when it is imported. And Triton comes
    first where there is one, since OpenGL drawn by software shows all the process its LLVM: Triton, which
    torch's compiler imports, would take that for its own and end the process.
    """
    if sys.platform != "linux" or "mujoco" in sys.modules:
        return
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")
    with contextlib.suppress(Exception):  # broken ones, too, are none of ours
        importlib.import_module("triton")


def load() -> Any:
    """The module `mujoco`; where there is no usable OpenGL, without drawing: physics needs none.

    Raises:
        RuntimeError: it cannot be imported either way.
    """
    before_mujoco()
    try:
        return importlib.import_module("mujoco")
    except Exception:  # each GL backend fails in its own way
        for name in [name for name in sys.modules if name.partition(".")[0] == "mujoco"]:
            del sys.modules[name]
    wanted = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disabled"
    try:
        return importlib.import_module("mujoco")
    except Exception as error:
        raise RuntimeError(
            f"MuJoCo does not import ({error}): install it again (pip install mujoco)"
        ) from error
    finally:
        if wanted is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = wanted


class _MuJoCo:
    """Stands in for the module; what is asked for once is kept."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(load(), name)
        setattr(self, name, found)
        return found


if TYPE_CHECKING:
    import mujoco
else:
    mujoco = _MuJoCo()

__all__ = ["NO_GL", "before_mujoco", "border", "mujoco"]


def border(half: float) -> str:
    """MuJoCo planes round a square table whose side is twice `half`."""
    sides = (("-{0} 0", "1 0"), ("{0} 0", "-1 0"), ("0 -{0}", "0 1"), ("0 {0}", "0 -1"))
    return "".join(
        f'<geom type="plane" size="1 1 1" pos="{place.format(half)} 0" zaxis="{inward} 0"/>'
        for place, inward in sides
    )
