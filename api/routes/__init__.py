"""One module for each group of routes. Routes parse, call and answer; they decide nothing about jobs."""
