"""Bridges to other projects; none of them is imported before it is used."""
