"""Real servers and a whole collector for tests, and ways to wait for them."""
