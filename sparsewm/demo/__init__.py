"""A local page on which one sets a goal by hand and watches an agent plan; `sparsewm demo` opens it."""
