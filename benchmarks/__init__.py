"""Measurements, each beside a peer or a known truth in the same run."""
