"""Periodic work of the API process that leads: the reaper."""
