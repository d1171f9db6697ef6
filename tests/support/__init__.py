"""What tests start, wait for and build: real servers, and a whole collector."""
