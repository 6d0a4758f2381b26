"""Periodic work of the leading API process: one module per duty, and the reaper."""
