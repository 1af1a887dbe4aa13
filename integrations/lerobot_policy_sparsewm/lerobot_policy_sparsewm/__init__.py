"""Tells LeRobot of `--policy.type=sparsewm` and `--env.type=sparsewm` when it looks for plugins."""

import sparsewm.integrations.lerobot_policy  # noqa: F401
