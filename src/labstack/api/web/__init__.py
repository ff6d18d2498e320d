"""Pages for people: console, documentation, assets."""
