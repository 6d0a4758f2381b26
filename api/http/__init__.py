"""HTTP mechanics that several routes share: problem details, ETags, Prefer, image responses."""
