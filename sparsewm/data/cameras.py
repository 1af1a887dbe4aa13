"""What the project's own LeRobot datasets call their cameras."""

CAMERA, GOAL = "observation.images.camera", "observation.images.goal"
"""The present picture and the picture of the goal."""
