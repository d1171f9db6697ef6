"""The views: a module for each path. No rule belongs here that also holds without HTTP."""
