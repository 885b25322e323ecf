"""Reports: plots and pages of one run, or of several side by side."""
