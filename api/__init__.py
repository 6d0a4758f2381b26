"""FastAPI answers here: checks what comes in, creates jobs, tells of them. Never loads torch."""
