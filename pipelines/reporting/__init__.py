"""Plots and pages: the parts of `report`."""
