"""Trust: what is promised of broken inputs, kills, starved machines and odd numbers."""
