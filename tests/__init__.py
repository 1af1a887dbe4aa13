"""A package: a dependency installs one called tests, too, which would win over a mere folder."""
