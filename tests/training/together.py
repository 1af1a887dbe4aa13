"""What one of two processes that train together does: `python -m tests.training.together DATASET FOLDER`."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsewm.cli import main
from sparsewm.errors import UserError
from sparsewm.training.parallel import Processes, connect
from tests.training.tiny import make_trainer

PAGE = Path(__file__).parents[2] / "docs/howto/several_devices.md"
BATCH = 5  # 3 and 2 windows; 2 where some of the groups are left out and the patches stay together


def said(work: Callable[[], Any]) -> str | None:
    try:
        work()
    except UserError as error:
        return str(error)
    return None


def run_page() -> None:
    """The program of the page on several devices, in the present folder."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(program, "several.py", "exec"), {"__name__": "__main__"})


def all_of_it(data: Path, folder: Path, processes: Processes) -> dict[str, Any]:
    """Everything that is asked of several processes, one after the other."""
    curve: list[float] = []
    whole = make_trainer(data, folder / "whole", torch.float32, processes=processes, batch=BATCH)
    whole.run(lambda _, values: curve.append(values["loss"]))

    make_trainer(data, folder / "parts", torch.float32, processes=processes, batch=BATCH).run(until=6)
    processes.by_main(lambda: shutil.copytree(folder / "parts", folder / "left"))
    resumed = make_trainer(data, folder / "parts", torch.float32, processes=processes, batch=BATCH)
    resumed.resume()
    steps = [resumed.step]
    resumed.run()
    same = all(
        torch.equal(a, b) for a, b in zip(whole.optimizer.masters, resumed.optimizer.masters, strict=True)
    )

    failing = make_trainer(data, folder / "failing", torch.float32, processes=processes, batch=BATCH)
    read = failing.batch

    def fail(step: int) -> dict[str, Tensor]:
        if step == 2 and not processes.main:
            raise UserError("a picture of the second process is damaged")
        return read(step)

    failing.batch = fail  # type: ignore[method-assign]
    diverging = make_trainer(data, folder / "diverging", torch.float32, processes=processes, batch=BATCH)
    if not processes.main:
        losses = diverging.losses
        diverging.losses = lambda step: {  # type: ignore[method-assign]
            name: value * (math.nan if step == 3 else 1) for name, value in losses(step).items()
        }
    other = make_trainer(data, folder / "other", torch.float32, seed=processes.index, processes=processes)
    order: list[int] = []

    def refuse() -> None:
        raise UserError("the main process cannot write")

    os.chdir(folder)
    run_page()
    with pytest.raises(SystemExit) as exit:
        main(["train", "--dataset", "nowhere.h5"])

    return {
        "index": processes.index,
        "losses": curve,
        "resumed at": steps,
        "same": same,
        "masters": [float(master.double().sum()) for master in whole.optimizer.masters],
        "metrics": [entry["step"] for entry in whole.metrics],
        "failing": said(failing.run),
        "diverging": said(diverging.run),
        "other": said(other.run),
        "refused": said(lambda: processes.by_main(refuse)),
        "exit": exit.value.code,
        "turn": processes.in_turn(lambda: order.append(processes.index) or len(order)),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    found = all_of_it(Path(sys.argv[1]), Path(sys.argv[2]), connect("cpu"))
    Path(sys.argv[2], f"{found['index']}.json").write_text(json.dumps(found))
