"""The HTTP API: validates requests, creates jobs, reports their state. It never loads torch."""
