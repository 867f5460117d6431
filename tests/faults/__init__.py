"""Every step of the pipeline, killed at each of its writes and run again."""
