"""The data in MongoDB, and every transaction on it. Nothing here knows about Redis or HTTP."""
