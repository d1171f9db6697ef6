"""What is kept in MongoDB, and every transaction on it. Nothing here knows Redis or HTTP."""
