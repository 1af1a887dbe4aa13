"""What the project's own LeRobot datasets call their cameras."""

CAMERA, GOAL = "observation.images.camera", "observation.images.goal"
"""The present picture and the picture of the goal."""

ROWS = "observation.rows"
"""Row numbers (present, goal) of pictures that a policy has encoded already."""
