"""Data with planted truth: which pairs of fields and which ids decide the label is known."""
