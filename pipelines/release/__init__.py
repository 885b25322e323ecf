"""From a run to a release: the graph, its parity with torch, and the files."""
