"""Results as pictures: videos of episodes, plots of plans and timings."""
