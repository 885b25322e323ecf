"""Networks on their devices: one process or sharded over ranks, their optimisers and state."""
