"""Environments of other people's benchmarks as simulators of ours: OGBench, Meta-World, dm_control, TwoRoom.

Each needs an extra of its own, imported when an environment is made: `envs.make("ogbench/cube-single")`.
Physics, pictures, starts and rules of success are the benchmark's (docs/howto/benchmarks.md).
"""
