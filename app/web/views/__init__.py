"""What answers a request: a module for each path, and no rule that would hold without HTTP."""
