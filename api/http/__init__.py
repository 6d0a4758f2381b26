"""HTTP mechanics that several routes share: problem details, entity tags, Prefer, image responses."""
