"""The kinds of releases, each with what it can do: `scorer` gives one score a row."""
