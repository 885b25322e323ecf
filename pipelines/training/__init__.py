"""The parts of `train`."""
