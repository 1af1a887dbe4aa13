"""`sparsewm train-policy`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import tyro

from sparsewm.cli.common import about, progress_bar, taken
from sparsewm.training.policy import TrainedPolicy, train_policy
from sparsewm.training.policy_config import PolicyTrainConfig


class TrainPolicy:
    """Train a policy that proposes candidates to the planner, on recorded transitions."""

    tree = PolicyTrainConfig
    interrupted = "interrupted: the same command with --resume goes on from the last checkpoint"

    @classmethod
    def parse(cls, arguments: list[str]) -> TrainPolicy:
        """The command under its flags: these lie over what is usual of a kind in an environment."""
        arguments = ["--help" if word in ("-H", "--help-verbose") else word for word in arguments]
        kind, env, start = (taken(arguments, f"--{name}")[0] for name in ("kind", "env", "start"))
        usual = PolicyTrainConfig.of(
            kind or PolicyTrainConfig.kind, env, None if start is None else Path(start)
        )
        return cls(
            tyro.cli(
                PolicyTrainConfig,
                prog="sparsewm train-policy",
                args=arguments,
                default=usual,
                description=about(PolicyTrainConfig),
            )
        )

    def __init__(self, config: PolicyTrainConfig) -> None:
        self.config = config

    def run(self) -> int:
        done = train_policy(self.config, progress_bar, lambda text: print(text, file=sys.stderr, flush=True))
        print(f"{done.steps} steps in {done.seconds / 60:.1f} min")
        if found := done.metrics.get("validation"):
            print(
                f"of held-out actions the mean of 16 proposals misses {found['error']:.2f} of their square, "
                f"the nearest {found['best']:.2f}; the mean with others' goals {found['other_goals']:.2f}"
            )
            if "future" in found:
                print(f"the imagined future errs by {found['future']:.2f} of what copying the present would")
        print(f"policy in {done.folder}")
        print(f"plan with it: sparsewm {shlex.join(_next(self.config, done))}")
        return 0


def _next(config: PolicyTrainConfig, done: TrainedPolicy) -> list[str]:
    """What to do with the policy, as a command to copy."""
    words = ["plan", "--env", done.environment, "--proposals", str(done.folder)]
    for flag, value in (("--checkpoint", config.checkpoint), ("--encoder", config.encoder)):
        words += [flag, value] if value is not None else []
    return words
