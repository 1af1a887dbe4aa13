"""A LeRobot policy that plans, and environments of ours for its evaluation.

LeRobot finds them under `--policy.type=sparsewm` and `--env.type=sparsewm` once this package was imported: by
the plugin in `integrations/lerobot_policy_sparsewm`, or by
`--policy.discover_packages_path=sparsewm.integrations.lerobot_policy`.
"""

from sparsewm.integrations.lerobot_policy.configuration_sparsewm import SparseWMConfig
from sparsewm.integrations.lerobot_policy.environment import SparseWMEnv

__all__ = ["SparseWMConfig", "SparseWMEnv"]
