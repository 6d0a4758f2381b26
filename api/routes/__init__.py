"""One module per group of routes. A route parses, calls and answers, and decides nothing."""
