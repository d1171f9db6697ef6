"""Rules about events, websites, users and clicks. They need no server and read no settings."""
