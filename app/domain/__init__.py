"""The rules of the domain: pure functions and schemas, no input or output of any kind."""
