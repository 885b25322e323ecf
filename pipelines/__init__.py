"""The jobs: from raw logs to a release, and the `headwater` command that starts them."""
