"""What is kept in MongoDB, and how a batch of events is applied to it exactly once."""
