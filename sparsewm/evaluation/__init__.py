"""Closed-loop evaluation, the simulator as a planning problem, and the gate of encoders."""
