"""images → views → model → loss → checkpoint."""
