"""Training of a small SmolVLA, from scratch and offline: `sparsewm train-policy --kind smolvla`."""
